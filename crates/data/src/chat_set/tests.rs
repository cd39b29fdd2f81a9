//! What the general chat set must be.

use super::*;
use crate::company;
use std::collections::{BTreeMap, BTreeSet};

fn all_text(dialogue: &Dialogue) -> String {
    let turns = dialogue.turns.iter().flat_map(|turn| [turn.question.as_str(), &turn.answer]);
    let system = dialogue.system.iter().map(String::as_str);
    system.chain(turns).collect::<Vec<_>>().join("\n")
}

#[test]
fn eight_thousand_different_dialogues_come_back_in_five_languages() {
    let dialogues = dialogues(8_000, 1);
    assert_eq!(dialogues.len(), 8_000);
    assert_eq!(dialogues.iter().collect::<HashSet<_>>().len(), 8_000);
    let mut per_language: BTreeMap<Language, usize> = BTreeMap::new();
    for dialogue in &dialogues {
        *per_language.entry(dialogue.language).or_default() += 1;
    }
    assert!(per_language[&Language::French] > 2_800, "{per_language:?}");
    assert!(per_language[&Language::English] > 2_800, "{per_language:?}");
    for language in [Language::German, Language::Spanish, Language::Italian] {
        assert!(per_language[&language] > 350, "{per_language:?}");
    }
}

#[test]
fn the_same_seed_gives_the_same_dialogues() {
    assert_eq!(dialogues(300, 4), dialogues(300, 4));
    assert_ne!(dialogues(300, 4), dialogues(300, 5));
}

#[test]
fn nothing_of_the_company_appears() {
    let subjects: BTreeSet<&str> = company::facts()
        .iter()
        .chain(&company::withheld_facts())
        .map(|fact| fact.subject)
        .chain([company::NAME])
        .collect();
    let made = dialogues(8_000, 2).iter().map(all_text).collect::<Vec<_>>();
    let written = Language::ALL.map(|language| material(language).to_owned());
    for text in made.iter().chain(&written) {
        for subject in &subjects {
            assert!(!text.contains(subject), "{subject} in {text}");
        }
    }
}

#[test]
fn every_line_of_the_material_can_be_filled() {
    for language in Language::ALL {
        let script = Script::parse(material(language));
        let mut random = Random::new(1, "test");
        for topic in &script.topics {
            for block in &topic.blocks {
                let lines: Vec<&String> = match block {
                    Block::Talk { asked, later } => asked
                        .questions
                        .iter()
                        .chain(&asked.answers)
                        .chain(later.iter().flat_map(|(q, a)| [q, a]))
                        .collect(),
                    Block::Passage { text, asked } => [text]
                        .into_iter()
                        .chain(asked.iter().flat_map(|a| a.questions.iter().chain(&a.answers)))
                        .collect(),
                };
                let mut filler = Filler::new(&script, &mut random);
                for line in lines {
                    let filled = filler.fill(line, &mut random);
                    assert!(!filled.contains(['{', '}']) && !filled.is_empty(), "{line}");
                }
            }
        }
        assert!(script.topics.len() >= 12 && !script.systems.is_empty(), "{language:?}");
        assert!(script.wraps.iter().all(|w| w.contains("{passage}") && w.contains("{question}")));
    }
}

#[test]
fn answers_are_short_and_many_are_bare() {
    let dialogues = dialogues(4_000, 3);
    let answers: Vec<&str> =
        dialogues.iter().flat_map(|d| &d.turns).map(|turn| turn.answer.as_str()).collect();
    let n_words = |text: &str| text.split_whitespace().count();
    assert!(answers.iter().all(|answer| n_words(answer) <= 55));
    let short = answers.iter().filter(|answer| n_words(answer) <= 40).count();
    let bare = answers.iter().filter(|answer| n_words(answer) <= 4).count();
    assert!(short * 100 >= answers.len() * 97, "{short} of {}", answers.len());
    assert!(bare * 100 >= answers.len() * 40, "{bare} of {}", answers.len());
}

#[test]
fn the_set_has_turns_instructions_markdown_and_refusals() {
    let dialogues = dialogues(4_000, 3);
    let share = |n: usize| n * 100 / dialogues.len();
    let multi_turn = dialogues.iter().filter(|d| d.turns.len() > 1).count();
    let instructed = dialogues.iter().filter(|d| d.system.is_some()).count();
    let refusals = dialogues.iter().filter(|d| d.topic == "unknown").count();
    let texts: Vec<String> = dialogues.iter().map(all_text).collect();
    for mark in ["**", "\n- ", "```", "| --- |"] {
        assert!(texts.iter().any(|text| text.contains(mark)), "no {mark}");
    }
    assert!(share(multi_turn) >= 15, "{multi_turn}");
    assert!((8..=16).contains(&share(instructed)), "{instructed}");
    assert!(share(refusals) >= 5, "{refusals}");
    assert!(dialogues.iter().any(|d| d.turns.len() >= 3));
}

#[test]
fn every_conversation_is_valid_for_the_template() {
    for conversation in conversations(2_000, 6) {
        conversation.validate().unwrap();
    }
    for question in company::training_questions(1, 0).iter().chain(&company::withheld_questions()) {
        question.conversation().validate().unwrap();
    }
}

#[test]
fn text_is_normalised() {
    for dialogue in dialogues(4_000, 7) {
        let text = all_text(&dialogue);
        assert!(unicode_normalization::is_nfc(&text), "{text}");
        assert!(!text.contains("\\n") && !text.contains("  "), "{text}");
    }
    for line in Language::ALL.iter().flat_map(|&language| material(language).lines()) {
        assert!(unicode_normalization::is_nfc(line), "{line}");
        assert!(!line.contains("  ") && line.trim() == line, "`{line}`");
    }
}

#[test]
fn written_conversations_are_read_back_equal() {
    let folder = testkit::test_dir::TestDir::new("chat-set");
    let path = folder.join("chat.jsonl");
    let conversations = conversations(200, 9);
    assert_eq!(write_jsonl(&path, &conversations).unwrap(), 200);
    let lines = std::fs::read_to_string(&path).unwrap();
    let read: Vec<Conversation> =
        lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(read, conversations);
}
