//! General conversations that teach a small model to chat: short, direct, in the user's language.
//!
//! The material is written by hand, one file per language in `chat_set/text`; names, words and
//! numbers are drawn anew for each dialogue. Nothing here speaks of the invented company.

mod fill;
mod json_lines;
mod script;

pub use json_lines::write_jsonl;

use crate::Language;
use crate::random::Random;
use fill::{Filler, capitalised};
use script::{Asked, Block, Script, Topic};
use std::collections::HashSet;
use tokenizer::{Conversation, Message, Role};

/// One question of the user and the assistant's reply.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Turn {
    /// What the user writes.
    pub question: String,
    /// What the assistant replies.
    pub answer: String,
}

/// A conversation of one or more turns.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Dialogue {
    /// The language it is held in.
    pub language: Language,
    /// What it is about, a short lower-case word.
    pub topic: &'static str,
    /// Instructions that precede the first question.
    pub system: Option<String>,
    /// Questions and replies, oldest first; at least one.
    pub turns: Vec<Turn>,
}

impl Dialogue {
    /// The messages that the chat template renders.
    #[must_use]
    pub fn conversation(&self) -> Conversation {
        let system = self.system.iter().map(|text| Message::new(Role::System, text.as_str()));
        let turns = self.turns.iter().flat_map(|turn| {
            [
                Message::new(Role::User, turn.question.as_str()),
                Message::new(Role::Assistant, turn.answer.as_str()),
            ]
        });
        Conversation { messages: system.chain(turns).collect() }
    }
}

/// Makes up to `n_dialogues` different dialogues: two in five French, two in five English, the rest
/// German, Spanish and Italian. The same numbers give the same dialogues.
///
/// Fewer come back only when the material is exhausted, far above fifty thousand. Memory: twice the
/// result.
#[must_use]
pub fn dialogues(n_dialogues: usize, seed: u64) -> Vec<Dialogue> {
    let scripts = Language::ALL.map(|language| (language, Script::parse(material(language))));
    let mut random = Random::new(seed, "chat");
    let mut seen = HashSet::new();
    let mut dialogues = Vec::with_capacity(n_dialogues);
    for _ in 0..n_dialogues.saturating_mul(20) {
        if dialogues.len() == n_dialogues {
            break;
        }
        let (language, script) = &scripts[pick_language(&mut random)];
        let dialogue = compose(*language, script, &mut random);
        if seen.insert(dialogue.clone()) {
            dialogues.push(dialogue);
        }
    }
    dialogues
}

/// The same dialogues as conversations.
#[must_use]
pub fn conversations(n_dialogues: usize, seed: u64) -> Vec<Conversation> {
    dialogues(n_dialogues, seed).iter().map(Dialogue::conversation).collect()
}

fn material(language: Language) -> &'static str {
    match language {
        Language::French => include_str!("chat_set/text/fr.txt"),
        Language::English => include_str!("chat_set/text/en.txt"),
        Language::German => include_str!("chat_set/text/de.txt"),
        Language::Spanish => include_str!("chat_set/text/es.txt"),
        Language::Italian => include_str!("chat_set/text/it.txt"),
    }
}

/// An index into `Language::ALL`.
fn pick_language(random: &mut Random) -> usize {
    match random.below(100) {
        0..40 => 0,
        40..80 => 1,
        80..87 => 2,
        87..94 => 3,
        _ => 4,
    }
}

fn compose(language: Language, script: &Script, random: &mut Random) -> Dialogue {
    let topic = pick_topic(&script.topics, random);
    let mut filler = Filler::new(script, random);
    let mut turns = match random.pick(&topic.blocks) {
        Block::Talk { asked, later } => talk(asked, later, &mut filler, random),
        Block::Passage { text, asked } => passage(script, text, asked, &mut filler, random),
    };
    // A chat seldom opens with its question, and often closes with thanks.
    if topic.name != "greeting" && topic.name != "thanks" {
        if random.chance(5) {
            turns.insert(0, small_talk(script, "greeting", random));
        }
        if random.chance(8) {
            turns.push(small_talk(script, "thanks", random));
        }
    }
    let system = random.chance(12).then(|| (*random.pick(&script.systems)).to_owned());
    Dialogue { language, topic: topic.name, system, turns }
}

fn pick_topic<'a>(topics: &'a [Topic], random: &mut Random) -> &'a Topic {
    let total: usize = topics.iter().map(|topic| topic.weight).sum();
    let mut place = random.below(total);
    for topic in topics {
        if place < topic.weight {
            return topic;
        }
        place -= topic.weight;
    }
    unreachable!("a place below the total weight lies in some topic")
}

fn talk(
    asked: &Asked,
    later: &[(String, String)],
    filler: &mut Filler<'_>,
    random: &mut Random,
) -> Vec<Turn> {
    let mut turns = vec![ask(asked, filler, random)];
    if !later.is_empty() && random.chance(45) {
        let n_later = 1 + random.below(later.len());
        turns.extend(later[..n_later].iter().map(|(question, answer)| Turn {
            question: filler.fill(question, random),
            answer: filler.fill(answer, random),
        }));
    }
    turns
}

fn passage(
    script: &Script,
    text: &str,
    asked: &[Asked],
    filler: &mut Filler<'_>,
    random: &mut Random,
) -> Vec<Turn> {
    let text = capitalised(&filler.fill(text, random));
    let mut order: Vec<&Asked> = asked.iter().collect();
    random.shuffle(&mut order);
    let n_turns = 1 + usize::from(random.chance(30));
    let mut turns: Vec<Turn> =
        order.iter().take(n_turns).map(|asked| ask(asked, filler, random)).collect();
    let wrap = random.pick(&script.wraps);
    turns[0].question = wrap.replace("{passage}", &text).replace("{question}", &turns[0].question);
    turns
}

fn ask(asked: &Asked, filler: &mut Filler<'_>, random: &mut Random) -> Turn {
    let question = filler.fill(random.pick::<String>(&asked.questions), random);
    let answer = filler.fill(random.pick::<String>(&asked.answers), random);
    Turn { question: as_typed(question, random), answer }
}

/// People do not always type the question mark, nor the first capital.
fn as_typed(question: String, random: &mut Random) -> String {
    if !random.chance(8) {
        return question;
    }
    let bare = question.trim_end_matches(['?', '.', '!', ' ']);
    if bare.is_empty() { question } else { bare.to_owned() }
}

fn small_talk(script: &Script, topic_name: &str, random: &mut Random) -> Turn {
    let topic = script.topics.iter().find(|topic| topic.name == topic_name);
    let topic = topic.unwrap_or_else(|| panic!("no topic named `{topic_name}`"));
    // The first block of both topics is plain: a greeting, or thanks.
    match &topic.blocks[0] {
        Block::Talk { asked, .. } => ask(asked, &mut Filler::new(script, random), random),
        Block::Passage { .. } => panic!("`{topic_name}` starts with a passage"),
    }
}

#[cfg(test)]
mod tests;
