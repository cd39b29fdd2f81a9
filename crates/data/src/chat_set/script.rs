//! The hand-written material of one language, read from a small line format.
//!
//! ```text
//! slot NAME            entries follow, separated by `;` or lines, forms of an entry by `|`
//! system               one system prompt per line
//! wrap                 one way per line to show {passage} with {question}
//! topic NAME WEIGHT    the blocks below belong to it
//! ? question           one of several wordings
//! = answer             one of several answers
//! > later question     follows the turn before it, answered by the `<` line after it
//! @ passage            the `?` and `=` lines below it ask about it
//! ```
//!
//! Empty lines end blocks. `\n` in a line is a line break.

use std::collections::BTreeMap;

/// One question in several wordings with its possible answers.
#[derive(Debug, Default)]
pub(super) struct Asked {
    pub(super) questions: Vec<String>,
    pub(super) answers: Vec<String>,
}

/// What one dialogue is made from.
#[derive(Debug)]
pub(super) enum Block {
    /// A question, and further turns that may follow it in this order.
    Talk { asked: Asked, later: Vec<(String, String)> },
    /// A text and questions about it.
    Passage { text: String, asked: Vec<Asked> },
}

/// Blocks about one thing.
#[derive(Debug)]
pub(super) struct Topic {
    pub(super) name: &'static str,
    pub(super) weight: usize,
    pub(super) blocks: Vec<Block>,
}

/// Everything written in one language.
#[derive(Debug, Default)]
pub(super) struct Script {
    /// Entries of each slot; an entry has one or more forms.
    pub(super) slots: BTreeMap<&'static str, Vec<Vec<&'static str>>>,
    pub(super) systems: Vec<&'static str>,
    pub(super) wraps: Vec<String>,
    pub(super) topics: Vec<Topic>,
}

impl Script {
    /// Reads the material of one language.
    ///
    /// # Panics
    /// When the text, which is part of this program, is not in the format above.
    pub(super) fn parse(text: &'static str) -> Self {
        let mut script = Self::default();
        let mut paragraph: Vec<&'static str> = Vec::new();
        for line in text.lines().chain([""]) {
            if !line.is_empty() {
                paragraph.push(line);
            } else if !paragraph.is_empty() {
                script.add(&paragraph);
                paragraph.clear();
            }
        }
        script
    }

    fn add(&mut self, paragraph: &[&'static str]) {
        let (first, rest) = (paragraph[0], &paragraph[1..]);
        let mut words = first.split(' ');
        match (words.next(), words.next()) {
            (Some("slot"), Some(name)) => {
                let entries = rest.iter().flat_map(|line| line.split(';'));
                let forms = |entry: &'static str| entry.split('|').map(str::trim).collect();
                self.slots.insert(name, entries.map(forms).collect());
            }
            (Some("system"), None) => self.systems = rest.to_vec(),
            (Some("wrap"), None) => self.wraps = rest.iter().map(|line| unescape(line)).collect(),
            (Some("topic"), Some(name)) => {
                let weight = words.next().and_then(|word| word.parse().ok());
                let weight = weight.unwrap_or_else(|| panic!("no weight in `{first}`"));
                self.topics.push(Topic { name, weight, blocks: vec![parse_block(rest)] });
            }
            _ => {
                let topic = self.topics.last_mut();
                let topic = topic.unwrap_or_else(|| panic!("`{first}` stands before any topic"));
                topic.blocks.push(parse_block(paragraph));
            }
        }
    }
}

fn parse_block(lines: &[&str]) -> Block {
    let mut passage = None;
    let mut asked: Vec<Asked> = Vec::new();
    let mut later: Vec<(String, String)> = Vec::new();
    for line in lines {
        let (marker, text) = line.split_at(line.len().min(2));
        let text = unescape(text);
        match marker {
            "@ " => passage = Some(text),
            "? " => match asked.last_mut() {
                Some(open) if open.answers.is_empty() => open.questions.push(text),
                _ => asked.push(Asked { questions: vec![text], answers: Vec::new() }),
            },
            "= " => match asked.last_mut() {
                Some(open) => open.answers.push(text),
                None => panic!("answer before any question: `{line}`"),
            },
            "> " => later.push((text, String::new())),
            "< " => match later.last_mut() {
                Some(open) => open.1 = text,
                None => panic!("`{line}` follows no later question"),
            },
            _ => panic!("unknown marker: `{line}`"),
        }
    }
    let complete = |asked: &Asked| !asked.questions.is_empty() && !asked.answers.is_empty();
    assert!(!asked.is_empty() && asked.iter().all(complete), "incomplete block: {lines:?}");
    assert!(later.iter().all(|(_, answer)| !answer.is_empty()), "no answer: {lines:?}");
    match passage {
        Some(text) => Block::Passage { text, asked },
        None => {
            assert_eq!(asked.len(), 1, "two questions without a passage: {lines:?}");
            Block::Talk { asked: asked.remove(0), later }
        }
    }
}

/// Line breaks are written `\\n` in the material.
pub(super) fn unescape(line: &str) -> String {
    line.replace("\\n", "\n")
}
