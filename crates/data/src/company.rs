//! One invented company, Halbrane: its facts, its documents, and questions about them.
//!
//! Halbrane makes nautical instruments and sails in Brittany and exists nowhere else. Six families of
//! subjects (instruments, sails, departments, people, destinations, spare parts) each carry two kinds
//! of fact, so that a question is answered only by reading both what is asked and about whom. Some
//! subjects are withheld: no document and no training question names them. Answers within a kind are
//! all different, so repeating one of them scores under 5 %, and guessing from what was learnt never
//! scores on a withheld fact. Everything is a pure function of the tables in this folder.

mod departments;
mod destinations;
mod documents;
mod facts;
mod hurried;
mod instruments;
mod parts;
mod people;
mod phrases;
mod sails;
#[cfg(test)]
mod tests;

pub use documents::documents;
pub use facts::{Fact, FactKind, facts, withheld_facts};

use crate::Language;
use crate::random::Random;
use hurried::hurried;
use phrases::fill;
use serde::Serialize;
use tokenizer::{Conversation, Message, Role};

/// The languages every fact is asked in.
pub const LANGUAGES: [Language; 2] = [Language::French, Language::English];

/// The company's name.
pub const NAME: &str = "Halbrane";

/// One question about one fact, with the only reply that counts as right.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Question {
    /// Which fact is asked: the same in both languages.
    pub fact_id: usize,
    /// What is asked.
    pub kind: FactKind,
    /// Language of question and answer.
    pub language: Language,
    /// Whom or what it is asked about.
    pub subject: &'static str,
    /// The question.
    pub question: String,
    /// The expected reply, bare: `148 euros`, never a sentence.
    pub answer: String,
}

impl Question {
    /// The question and its expected reply, as the chat template renders them for training.
    #[must_use]
    pub fn conversation(&self) -> Conversation {
        Conversation {
            messages: vec![
                Message::new(Role::User, self.question.as_str()),
                Message::new(Role::Assistant, self.answer.as_str()),
            ],
        }
    }
}

/// Every known fact in every training wording `1 + n_hurried` times, once as written and then as people type in a
/// hurry: words left out, no capital letter, a greeting. What is left out and the order are drawn from `seed`.
#[must_use]
pub fn training_questions(seed: u64, n_hurried: usize) -> Vec<Question> {
    let mut random = Random::new(seed, "company training");
    let facts = facts();
    let mut questions = Vec::new();
    for (fact, language) in pairs(&facts) {
        for wording in fact.kind.phrases(language).training {
            questions.push(fact.question(language, wording));
            for _ in 0..n_hurried {
                let wording = hurried(wording, language, fact.kind, &mut random);
                questions.push(fact.question(language, &wording));
            }
        }
    }
    random.shuffle(&mut questions);
    questions
}

/// Every known fact in every test wording, by fact, then language.
#[must_use]
pub fn test_questions() -> Vec<Question> {
    test_wordings(&facts())
}

/// Every withheld fact in every test wording, by fact, then language.
#[must_use]
pub fn withheld_questions() -> Vec<Question> {
    test_wordings(&withheld_facts())
}

fn test_wordings(facts: &[Fact]) -> Vec<Question> {
    let asked = pairs(facts).flat_map(|(fact, language)| {
        let wordings = &fact.kind.phrases(language).test;
        wordings.iter().map(move |wording| fact.question(language, wording))
    });
    asked.collect()
}

fn pairs(facts: &[Fact]) -> impl Iterator<Item = (&Fact, Language)> {
    facts.iter().flat_map(|fact| LANGUAGES.map(|language| (fact, language)))
}

impl Fact {
    fn question(&self, language: Language, wording: &str) -> Question {
        let answer = self.answer(language);
        Question {
            fact_id: self.id,
            kind: self.kind,
            language,
            subject: self.subject,
            question: fill(wording, self.subject, answer),
            answer: answer.to_owned(),
        }
    }
}
