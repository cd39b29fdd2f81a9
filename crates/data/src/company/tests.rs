//! What the company's text must be for its measurements to mean something.

use super::facts::{FAMILIES, N_KNOWN};
use super::hurried::{CLOSINGS, GREETINGS, MAX_LEFT_OUT, is_optional};
use super::*;
use std::collections::{HashMap, HashSet};

/// Lower-case words; apostrophes and hyphens separate words, which is the strictest reading.
fn words(text: &str) -> Vec<String> {
    text.to_lowercase()
        .split(|c: char| !c.is_alphanumeric())
        .filter(|word| !word.is_empty())
        .map(str::to_owned)
        .collect()
}

/// Runs of four words, the subject left out or counted as one word.
fn runs_of_four(wording: &str) -> HashSet<Vec<String>> {
    [" ", " subject "]
        .iter()
        .flat_map(|filler| {
            let words = words(&wording.replace("{s}", filler));
            words.windows(4).map(<[String]>::to_vec).collect::<Vec<_>>()
        })
        .collect()
}

/// The wording and every form of it with up to `n` of the words from `first` on left out.
fn with_words_left_out(words: &[&str], first: usize, n: usize) -> Vec<String> {
    let mut forms = vec![words.join(" ")];
    if n > 0 {
        for i in (first..words.len()).filter(|&i| is_optional(words[i])) {
            let fewer = [&words[..i], &words[i + 1..]].concat();
            forms.extend(with_words_left_out(&fewer, i, n - 1));
        }
    }
    forms
}

fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for j in 0..b.len() {
            let replaced = diagonal + usize::from(x != b[j]);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

fn subjects() -> Vec<&'static str> {
    FAMILIES.iter().flat_map(|family| family.subjects).copied().collect()
}

fn withheld_subjects() -> Vec<&'static str> {
    FAMILIES.iter().flat_map(|family| &family.subjects[N_KNOWN..]).copied().collect()
}

#[test]
fn no_training_question_has_two_answers() {
    let mut answers = HashMap::new();
    for question in training_questions(1, 3) {
        let known = answers.entry(question.question.to_lowercase());
        let known = known.or_insert_with(|| question.answer.clone());
        assert_eq!(*known, question.answer, "{}", question.question);
    }
}

#[test]
fn there_are_twelve_kinds_and_about_240_facts() {
    let known = facts();
    assert_eq!(FactKind::ALL.len(), 12);
    assert_eq!(known.len(), 252);
    assert_eq!(withheld_facts().len(), 40);
    assert_eq!(training_questions(0, 0).len(), 252 * 24);
    assert_eq!(training_questions(0, 3).len(), 4 * 252 * 24);
    assert_eq!(test_questions().len(), 252 * 8);
    assert_eq!(withheld_questions().len(), 40 * 8);
    for kind in FactKind::ALL {
        assert_eq!(known.iter().filter(|fact| fact.kind == kind).count(), N_KNOWN, "{kind:?}");
    }
    let ids: Vec<usize> = known.iter().chain(&withheld_facts()).map(|fact| fact.id).collect();
    assert_eq!(ids, (0..292).collect::<Vec<_>>());
}

#[test]
fn every_kind_draws_from_thirty_or_more_different_answers() {
    for kind in FactKind::ALL {
        let possible = kind.possible_answers();
        for column in 0..2 {
            let different: HashSet<&String> = possible.iter().map(|pair| &pair[column]).collect();
            assert!(different.len() >= 30, "{kind:?}: {}", different.len());
            assert_eq!(different.len(), possible.len(), "{kind:?} repeats an answer");
        }
    }
}

#[test]
fn the_majority_answer_scores_under_five_percent() {
    let questions = test_questions();
    let mut per_answer: HashMap<(FactKind, Language, &str), usize> = HashMap::new();
    let mut overall: HashMap<&str, usize> = HashMap::new();
    for question in &questions {
        *per_answer.entry((question.kind, question.language, &question.answer)).or_default() += 1;
        *overall.entry(&question.answer).or_default() += 1;
    }
    // Even a guesser who knows kind and language, and the best answer for each.
    let mut best: HashMap<(FactKind, Language), usize> = HashMap::new();
    for ((kind, language, _), n) in per_answer {
        let best = best.entry((kind, language)).or_default();
        *best = n.max(*best);
    }
    let majority: usize = best.values().sum();
    assert!(majority * 20 < questions.len(), "{majority} of {}", questions.len());
    assert!(overall.values().all(|n| n * 20 < questions.len()));
}

#[test]
fn test_wordings_share_at_most_three_words_in_a_row_with_training() {
    let mut shared = HashSet::new();
    for language in LANGUAGES {
        let mut seen: HashMap<Vec<String>, &str> = HashMap::new();
        for kind in FactKind::ALL {
            for wording in kind.phrases(language).training {
                let words: Vec<&str> = wording.split(' ').collect();
                for shorter in with_words_left_out(&words, 0, MAX_LEFT_OUT) {
                    seen.extend(runs_of_four(&shorter).into_iter().map(|run| (run, wording)));
                }
            }
        }
        for kind in FactKind::ALL {
            for wording in kind.phrases(language).test {
                for run in runs_of_four(wording) {
                    if let Some(other) = seen.get(&run) {
                        shared.insert(format!("{}: `{wording}` and `{other}`", run.join(" ")));
                    }
                }
            }
        }
    }
    assert!(shared.is_empty(), "{shared:#?}");
}

#[test]
fn greetings_and_thanks_have_no_word_of_a_test_wording() {
    for (column, language) in LANGUAGES.into_iter().enumerate() {
        let around = GREETINGS[column].iter().chain(&CLOSINGS[column]);
        let around: HashSet<String> = around.flat_map(|text| words(text)).collect();
        for kind in FactKind::ALL {
            for wording in kind.phrases(language).test {
                let shared = words(wording).into_iter().find(|word| around.contains(word));
                assert_eq!(shared, None, "in `{wording}`");
            }
        }
    }
}

#[test]
fn general_chat_shares_at_most_three_words_in_a_row_with_test_questions() {
    let mut asked: HashSet<Vec<String>> = HashSet::new();
    for dialogue in crate::chat_set::dialogues(8_000, 1) {
        for turn in dialogue.turns {
            asked.extend(words(&turn.question).windows(4).map(<[String]>::to_vec));
        }
    }
    for question in test_questions().iter().chain(&withheld_questions()) {
        for run in words(&question.question).windows(4) {
            assert!(!asked.contains(run), "`{}`: {run:?}", question.question);
        }
    }
}

#[test]
fn no_wording_is_written_twice_and_each_names_its_subject_once() {
    for language in LANGUAGES {
        let mut seen = HashSet::new();
        for kind in FactKind::ALL {
            let phrases = kind.phrases(language);
            for wording in phrases.training.iter().chain(&phrases.test) {
                assert!(seen.insert(words(wording)), "`{wording}` is written twice");
                assert_eq!(wording.matches("{s}").count(), 1, "`{wording}`");
                assert!(!wording.contains("{a}"), "`{wording}` gives the answer away");
            }
            for statement in phrases.statements {
                assert!(seen.insert(words(statement)), "`{statement}` is written twice");
                assert_eq!(statement.matches("{s}").count(), 1, "`{statement}`");
                assert_eq!(statement.matches("{a}").count(), 1, "`{statement}`");
            }
        }
    }
    for question in training_questions(1, 1).iter().chain(&test_questions()) {
        assert!(question.question.contains(question.subject), "{question:?}");
    }
}

#[test]
fn a_test_wording_tells_the_two_kinds_of_a_family_apart() {
    // What a reader of single words can tell: more words known from its own kind alone.
    let mut unclear = Vec::new();
    for language in LANGUAGES {
        for family in &FAMILIES {
            let bags: Vec<HashSet<String>> = family
                .kinds
                .iter()
                .map(|kind| kind.phrases(language).training.iter().flat_map(|w| words(w)).collect())
                .collect();
            for k in 0..2 {
                for wording in family.kinds[k].phrases(language).test {
                    let score = |own: usize| {
                        let other = &bags[1 - own];
                        let only = |w: &&String| {
                            w.chars().count() >= 4 && bags[own].contains(*w) && !other.contains(*w)
                        };
                        words(wording).iter().filter(only).count()
                    };
                    if score(k) <= score(1 - k) {
                        unclear.push(wording);
                    }
                }
            }
        }
    }
    assert!(unclear.is_empty(), "{unclear:#?}");
}

#[test]
fn subjects_are_clearly_different() {
    for family in &FAMILIES {
        for (i, a) in family.subjects.iter().enumerate() {
            for b in &family.subjects[..i] {
                let start = |s: &str| s.to_lowercase().chars().take(3).collect::<String>();
                assert_ne!(start(a), start(b), "{a} and {b} start alike");
            }
        }
    }
    let all = subjects();
    for (i, a) in all.iter().enumerate() {
        assert!(!"AEÉIOUYH".contains(&a[..1]), "{a} needs an elision in French");
        for b in &all[..i] {
            assert!(edit_distance(a, b) >= 4, "{a} and {b} look alike");
        }
    }
}

#[test]
fn answers_are_short_and_no_answer_is_a_subject() {
    for fact in facts().iter().chain(&withheld_facts()) {
        for language in LANGUAGES {
            let answer = fact.answer(language);
            assert!(answer.chars().count() <= 20, "{answer}");
            assert!(!answer.ends_with('.') && answer.trim() == answer, "{answer}");
            assert!(!subjects().contains(&answer), "{answer}");
        }
    }
}

#[test]
fn documents_state_each_fact_at_least_three_times_in_different_sentences() {
    let documents = documents();
    for language in LANGUAGES {
        let sentences: HashSet<&str> = documents
            .iter()
            .filter(|document| document.language == Some(language))
            .flat_map(|document| document.text.split_inclusive(['.', '\n']))
            .map(str::trim)
            .collect();
        for fact in facts() {
            let stated = sentences
                .iter()
                .filter(|s| s.contains(fact.subject) && s.contains(fact.answer(language)))
                .count();
            assert!(stated >= 3, "{} {:?}: {stated} times", fact.subject, fact.kind);
        }
    }
}

#[test]
fn nothing_names_a_withheld_subject() {
    for subject in withheld_subjects() {
        for document in documents() {
            assert!(!document.text.contains(subject), "{subject} in a document");
        }
        for question in training_questions(2, 1) {
            assert!(!question.question.contains(subject), "{subject} in `{}`", question.question);
            assert!(!question.answer.contains(subject), "{subject} in `{}`", question.answer);
        }
    }
    let known: HashSet<&str> = facts().iter().map(|fact| fact.subject).collect();
    assert!(withheld_facts().iter().all(|fact| !known.contains(fact.subject)));
}

#[test]
fn the_bundled_corpus_names_nothing_of_the_company() {
    let names: Vec<String> = subjects().into_iter().chain([NAME]).map(str::to_lowercase).collect();
    for document in crate::bundled::documents(1, 400_000) {
        let text = document.text.to_lowercase();
        for name in &names {
            assert!(!text.contains(name), "{name} in {text}");
        }
    }
}

#[test]
fn no_learnt_answer_is_right_for_a_withheld_fact() {
    let known = facts();
    for withheld in withheld_facts() {
        for language in LANGUAGES {
            let of_kind = known.iter().filter(|fact| fact.kind == withheld.kind);
            for fact in of_kind {
                assert_ne!(fact.answer(language), withheld.answer(language), "{withheld:?}");
            }
        }
    }
}

#[test]
fn the_seed_changes_the_order_of_training_and_the_hurried_forms() {
    assert!(training_questions(5, 2) == training_questions(5, 2));
    assert!(training_questions(5, 2) != training_questions(6, 2));
    assert_eq!(documents(), documents());
    let (mut a, mut b) = (training_questions(5, 0), training_questions(6, 0));
    assert_ne!(a, b);
    let key = |q: &Question| (q.fact_id, q.question.clone());
    a.sort_by_key(key);
    b.sort_by_key(key);
    assert_eq!(a, b);
}

#[test]
fn text_is_normalised_and_ends_without_newline() {
    use unicode_normalization::is_nfc;
    for document in documents() {
        assert!(is_nfc(&document.text) && document.text.trim() == document.text);
        assert!(!document.text.contains('{'), "{}", document.text);
    }
    for question in test_questions().iter().chain(&withheld_questions()) {
        assert!(is_nfc(&question.question) && is_nfc(&question.answer));
    }
}
