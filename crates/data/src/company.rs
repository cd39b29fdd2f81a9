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
mod instruments;
mod parts;
mod people;
mod phrases;
mod sails;
#[cfg(test)]
mod wording_tests;

pub use documents::documents;
pub use facts::{Fact, Kind, facts, withheld_facts};

use crate::Language;
use crate::chat_set::draw::Draw;
use phrases::fill;
use serde::Serialize;
use tokenizer::chat::{Conversation, Message, Role};

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
    pub kind: Kind,
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

#[derive(Clone, Copy)]
enum Split {
    Training,
    Test,
}

/// Every known fact in every training wording, in an order drawn from `seed`.
#[must_use]
pub fn training_questions(seed: u64) -> Vec<Question> {
    let mut questions = ask(&facts(), Split::Training);
    Draw::new(seed, "company training").shuffle(&mut questions);
    questions
}

/// Every known fact in every test wording, by fact, then language.
#[must_use]
pub fn test_questions() -> Vec<Question> {
    ask(&facts(), Split::Test)
}

/// Every withheld fact in every test wording, by fact, then language.
#[must_use]
pub fn withheld_questions() -> Vec<Question> {
    ask(&withheld_facts(), Split::Test)
}

fn ask(facts: &[Fact], split: Split) -> Vec<Question> {
    let mut questions = Vec::new();
    for fact in facts {
        for language in LANGUAGES {
            let phrases = fact.kind.phrases(language);
            let wordings: &[&str] = match split {
                Split::Training => &phrases.training,
                Split::Test => &phrases.test,
            };
            questions.extend(wordings.iter().map(|wording| Question {
                fact_id: fact.id,
                kind: fact.kind,
                language,
                subject: fact.subject,
                question: fill(wording, fact.subject, fact.answer(language)),
                answer: fact.answer(language).to_owned(),
            }));
        }
    }
    questions
}
