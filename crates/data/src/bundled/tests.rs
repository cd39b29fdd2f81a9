//! Properties of the generated text, on a corpus of 1.5 MB.

use std::collections::{BTreeMap, HashSet};

use super::{documents, share_percent, validation};
use crate::sheet::{Origin, SheetBuilder, sentence_hash, sentences};
use crate::{Document, Language};

const BYTES: usize = 1_500_000;

fn corpus() -> Vec<Document> {
    documents(7, BYTES).collect()
}

#[test]
fn a_seed_gives_the_same_documents_and_another_seed_others() {
    let first: Vec<Document> = documents(7, 200_000).collect();
    let second: Vec<Document> = documents(7, 200_000).collect();
    assert_eq!(first, second);
    let other: Vec<Document> = documents(8, 200_000).collect();
    assert_ne!(first, other);
}

#[test]
fn a_shorter_corpus_is_a_prefix_of_a_longer_one() {
    let long: Vec<Document> = documents(7, 200_000).collect();
    let short: Vec<Document> = documents(7, 80_000).collect();
    assert_eq!(short[..], long[..short.len()]);
}

#[test]
fn every_prefix_has_about_the_mix_of_the_whole() {
    let mut written: BTreeMap<Language, usize> = BTreeMap::new();
    let mut total = 0;
    for document in documents(7, 600_000) {
        let language = document.language.unwrap();
        *written.entry(language).or_default() += document.text.len();
        total += document.text.len();
        if total > 200_000 {
            for language in Language::ALL {
                let percent = written[&language] * 100 / total;
                assert!(percent.abs_diff(share_percent(language)) <= 2, "{language:?} {percent}");
            }
        }
    }
}

#[test]
fn no_sentence_occurs_twice() {
    let mut builder = SheetBuilder::default();
    for document in corpus() {
        builder.add(&document).unwrap();
    }
    let sheet = builder.finish(Origin::Files { path: "test".into() }, None).unwrap();
    assert_eq!(sheet.languages.len(), 5);
    for language in sheet.languages {
        assert!(language.repeated_sentence_share < 0.001, "{language:?}");
        assert!(language.zstd19_ratio > 0.2, "{language:?}");
        assert!(language.kinds.len() >= 10, "{language:?}");
    }
}

#[test]
fn held_out_sentences_are_absent_from_training() {
    let training: HashSet<u64> = corpus()
        .iter()
        .flat_map(|d| sentences(&d.text).map(sentence_hash).collect::<Vec<_>>())
        .collect();
    for language in Language::ALL {
        let held_out = validation(7, language);
        let bytes: usize = held_out.iter().map(|d| d.text.len()).sum();
        assert!((super::VALIDATION_BYTES..super::VALIDATION_BYTES * 11 / 10).contains(&bytes));
        for document in held_out {
            assert_eq!(document.language, Some(language));
            for sentence in sentences(&document.text) {
                assert!(!training.contains(&sentence_hash(sentence)), "{sentence}");
            }
        }
    }
}

#[test]
fn text_is_clean() {
    for document in corpus() {
        let text = &document.text;
        for mark in
            ["  ", " ,", " .", "l' ", "d' ", "{", "}", "[", "]", "|", "\u{1}", "\u{2}", "Halbrane"]
        {
            assert!(!text.contains(mark), "`{mark}` in {text}");
        }
        assert!(!text.starts_with(char::is_whitespace) && !text.ends_with(char::is_whitespace));
        if document.language == Some(Language::French) {
            for mistake in
                [" de le ", " à le ", " de les ", " à les ", " le a", " que il", " de un "]
            {
                assert!(!text.contains(mistake), "`{mistake}` in {text}");
            }
        }
    }
}

/// Numbers of a text line in order.
fn numbers(text: &str) -> Vec<i64> {
    text.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse().ok()).collect()
}

#[test]
fn stated_equations_hold() {
    let mut n_checked = 0;
    for document in corpus().iter().filter(|d| d.kind == "arithmetic") {
        for (at, _) in document.text.match_indices(" = ") {
            let head: Vec<&str> = document.text[..at].split_whitespace().collect();
            let result = numbers(&document.text[at + 3..])[0];
            // A sum may have more than two terms; it is read backwards to its first one.
            let mut value = None;
            let mut terms = head.len() - 1;
            while terms >= 2 && matches!(head[terms - 1], "+" | "-" | "×") {
                terms -= 2;
            }
            for pair in head[terms..]
                .chunks(2)
                .enumerate()
                .flat_map(|(i, c)| if i == 0 { vec![("+", c[0])] } else { vec![] })
            {
                value = numbers(pair.1).first().copied();
            }
            let mut value = value.unwrap();
            for step in head[terms + 1..].chunks(2).filter(|c| c.len() == 2) {
                let operand = numbers(step[1])[0];
                value = match step[0] {
                    "+" => value + operand,
                    "-" => value - operand,
                    _ => value * operand,
                };
            }
            assert_eq!(value, result, "{}", document.text);
            n_checked += 1;
        }
    }
    assert!(n_checked > 300, "{n_checked}");
}
