//! The kinds of document, their frequency, and the rule files of each language.

use super::arithmetic;
use super::expand::{Author, Page};
use super::grammar::Grammar;
use super::lexicon::Lexicon;
use super::world::World;
use crate::Language;
use crate::random::Random;

/// A kind of document.
#[derive(Debug)]
pub(super) struct TextKind {
    /// The kind as the data sheet names it.
    pub(super) label: &'static str,
    /// The plan in the rule files.
    pub(super) plan: &'static str,
    /// How often, among the sum of all weights.
    weight: usize,
    subject: Subject,
}

/// What is bound before a document is written.
#[derive(Clone, Copy, Debug)]
enum Subject {
    Nothing,
    Town,
    Figure,
    Animal,
    Herb,
    Sum(fn(&mut Page<'_>)),
}

impl TextKind {
    /// Binds the facts or numbers that this kind speaks of.
    pub(super) fn bind(&self, world: &World, page: &mut Page<'_>) {
        match self.subject {
            Subject::Nothing => {}
            Subject::Town => world.bind_town(page),
            Subject::Figure => world.bind_figure(page),
            Subject::Animal => world.bind_animal(page),
            Subject::Herb => world.bind_herb(page),
            Subject::Sum(bind) => bind(page),
        }
    }
}

const fn kind(
    label: &'static str,
    plan: &'static str,
    weight: usize,
    subject: Subject,
) -> TextKind {
    TextKind { label, plan, weight, subject }
}

const KINDS: [TextKind; 29] = [
    kind("story", "doc_story", 170, Subject::Nothing),
    kind("facts", "doc_town", 45, Subject::Town),
    kind("facts", "doc_figure", 45, Subject::Figure),
    kind("facts", "doc_animal", 30, Subject::Animal),
    kind("facts", "doc_herb", 30, Subject::Herb),
    kind("dialogue", "doc_talk_town", 70, Subject::Town),
    kind("dialogue", "doc_talk_figure", 70, Subject::Figure),
    kind("dialogue", "doc_talk_animal", 45, Subject::Animal),
    kind("dialogue", "doc_talk_herb", 45, Subject::Herb),
    kind("dialogue", "doc_talk_help", 110, Subject::Nothing),
    kind("dialogue", "doc_talk_recall", 120, Subject::Nothing),
    kind("letter", "doc_letter", 130, Subject::Nothing),
    kind("recipe", "doc_recipe", 32, Subject::Nothing),
    kind("description", "doc_description", 66, Subject::Nothing),
    kind("how-to", "doc_howto", 24, Subject::Nothing),
    kind("definition", "doc_definition", 40, Subject::Nothing),
    kind("list", "doc_list", 150, Subject::Nothing),
    kind("chronicle", "doc_chronicle", 120, Subject::Nothing),
    kind("arithmetic", "doc_sum", 50, Subject::Sum(arithmetic::sum)),
    kind("arithmetic", "doc_difference", 45, Subject::Sum(arithmetic::difference)),
    kind("arithmetic", "doc_product", 40, Subject::Sum(arithmetic::product)),
    kind("arithmetic", "doc_quotient", 45, Subject::Sum(arithmetic::quotient)),
    kind("arithmetic", "doc_purchase", 60, Subject::Sum(arithmetic::purchase)),
    kind("arithmetic", "doc_sequence", 20, Subject::Sum(arithmetic::sequence)),
    kind("arithmetic", "doc_duration", 25, Subject::Sum(arithmetic::duration)),
    kind("arithmetic", "doc_percent", 20, Subject::Sum(arithmetic::percent)),
    kind("arithmetic", "doc_ages", 25, Subject::Sum(arithmetic::ages)),
    kind("arithmetic", "doc_mean", 20, Subject::Sum(arithmetic::mean)),
    kind("arithmetic", "doc_comparison", 40, Subject::Sum(arithmetic::comparison)),
];

/// A kind, drawn by weight.
pub(super) fn pick(random: &mut Random) -> &'static TextKind {
    let total = KINDS.iter().map(|kind| kind.weight).sum();
    let mut left = random.below(total);
    for kind in &KINDS {
        if left < kind.weight {
            return kind;
        }
        left -= kind.weight;
    }
    &KINDS[0]
}

/// The rules and words of a language.
pub(super) fn author(language: Language) -> Author {
    let files: [&str; 3] = match language {
        Language::French => [
            include_str!("text/fr/story.txt"),
            include_str!("text/fr/knowledge.txt"),
            include_str!("text/fr/everyday.txt"),
        ],
        Language::English => [
            include_str!("text/en/story.txt"),
            include_str!("text/en/knowledge.txt"),
            include_str!("text/en/everyday.txt"),
        ],
        Language::German => [
            include_str!("text/de/story.txt"),
            include_str!("text/de/knowledge.txt"),
            include_str!("text/de/everyday.txt"),
        ],
        Language::Spanish => [
            include_str!("text/es/story.txt"),
            include_str!("text/es/knowledge.txt"),
            include_str!("text/es/everyday.txt"),
        ],
        Language::Italian => [
            include_str!("text/it/story.txt"),
            include_str!("text/it/knowledge.txt"),
            include_str!("text/it/everyday.txt"),
        ],
    };
    Author { language, grammar: Grammar::new(&files), lexicon: Lexicon::new(language) }
}
