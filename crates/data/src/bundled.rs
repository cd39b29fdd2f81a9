//! The bundled corpus: text about an invented world, written by a deterministic generator.
//!
//! Hand-authored rules and word lists (`bundled/text/`) are expanded with integer arithmetic only, so
//! a seed gives the same bytes on every machine. No sentence is written twice: a passage that holds a
//! used sentence is drawn again, and its document is dropped when no fresh one is found. Memory is
//! 8 bytes to 16 bytes per sentence (about 5 MB for 22 MB of text), whatever is done with the
//! documents.
//!
//! ```
//! let documents: Vec<data::Document> = data::bundled::documents(7, 20_000).collect();
//! assert!(documents.iter().map(|d| d.text.len()).sum::<usize>() >= 20_000);
//! ```

mod arithmetic;
mod expand;
mod grammar;
mod kinds;
mod lexicon;
mod names;
mod numerals;
mod phrase;
mod polish;
mod world;

use std::collections::HashSet;

use crate::random::Random;
use crate::sheet::{sentence_hash, sentences};
use crate::{Document, Language};
use expand::{Author, Page};
use world::World;

/// Changes when the same seed gives other bytes than before.
pub const GENERATOR_VERSION: u32 = 2;

/// The size of the corpus that `quickstart` makes.
pub const DEFAULT_BYTES: usize = 22_000_000;

/// Bytes of held-out text per language.
pub const VALIDATION_BYTES: usize = 100_000;

/// The licence of the generated text, authored for this project.
pub const TEXT_LICENCE: &str = "Apache-2.0";

/// The share of a language in the corpus, in 100.
#[must_use]
pub fn share_percent(language: Language) -> usize {
    match language {
        Language::French => 45,
        Language::English => 40,
        Language::German | Language::Spanish | Language::Italian => 5,
    }
}

/// Training documents, in an order in which every prefix has about the mix of the whole.
///
/// The last document makes the total reach `bytes`. No sentence of `validation` with the same seed
/// occurs.
#[must_use]
pub fn documents(seed: u64, bytes: usize) -> Documents {
    let mut stream = Documents::new(seed);
    for language in Language::ALL {
        stream.held_out(language);
    }
    stream.random = Random::new(seed, "training");
    stream.bytes_left = bytes;
    stream
}

/// Held-out documents of one language, about `VALIDATION_BYTES`.
#[must_use]
pub fn validation(seed: u64, language: Language) -> Vec<Document> {
    // Languages are written in one order always: the sentences of one bar those of the next.
    let mut stream = Documents::new(seed);
    for other in Language::ALL {
        let held_out = stream.held_out(other);
        if other == language {
            return held_out;
        }
    }
    Vec::new()
}

/// The stream of documents that `documents` returns.
#[derive(Debug)]
pub struct Documents {
    authors: Vec<Author>,
    world: World,
    seen: Seen,
    random: Random,
    written: [usize; Language::ALL.len()],
    bytes_left: usize,
}

impl Documents {
    fn new(seed: u64) -> Self {
        let authors: Vec<Author> = Language::ALL.into_iter().map(kinds::author).collect();
        let world = World::new(&authors[0].lexicon);
        Self {
            authors,
            world,
            seen: Seen::default(),
            random: Random::new(seed, "corpus"),
            written: [0; Language::ALL.len()],
            bytes_left: 0,
        }
    }

    fn held_out(&mut self, language: Language) -> Vec<Document> {
        let mut held_out = Vec::new();
        let mut bytes = 0;
        self.random = Random::new(self.random.next_u64(), "held out");
        while bytes < VALIDATION_BYTES {
            let document = self.write(language as usize);
            bytes += document.text.len();
            held_out.push(document);
        }
        held_out
    }

    /// The language that is furthest behind its share.
    fn next_language(&self) -> usize {
        let behind = |i: &usize| self.written[*i] * 100 / share_percent(Language::ALL[*i]);
        (0..Language::ALL.len()).min_by_key(behind).unwrap_or(0)
    }

    fn write(&mut self, language: usize) -> Document {
        let author = &self.authors[language];
        loop {
            let kind = kinds::pick(&mut self.random);
            let seed = self.random.next_u64();
            let mut page = Page::new(Random::new(seed, "page"), &self.world);
            kind.bind(&self.world, &mut page);
            if let Some(text) = author.document(kind.plan, &mut page, &mut self.seen) {
                let language = Some(author.language);
                return Document { language, kind: kind.label.to_owned(), text };
            }
        }
    }
}

impl Iterator for Documents {
    type Item = Document;

    fn next(&mut self) -> Option<Document> {
        if self.bytes_left == 0 {
            return None;
        }
        let language = self.next_language();
        let document = self.write(language);
        self.written[language] += document.text.len();
        self.bytes_left = self.bytes_left.saturating_sub(document.text.len());
        Some(document)
    }
}

/// The sentences written so far, as hashes.
#[derive(Debug, Default)]
struct Seen {
    hashes: HashSet<u64, BuildIdentity>,
}

impl Seen {
    fn contains(&self, hash: u64) -> bool {
        self.hashes.contains(&hash)
    }

    /// Records the sentences of a document; false, and nothing recorded, when one is known.
    fn claim(&mut self, text: &str) -> bool {
        let mut hashes: Vec<u64> = sentences(text).map(sentence_hash).collect();
        let count = hashes.len();
        hashes.sort_unstable();
        hashes.dedup();
        if hashes.len() < count || hashes.iter().any(|hash| self.contains(*hash)) {
            return false;
        }
        self.hashes.extend(hashes);
        true
    }
}

/// The keys are hashes already.
#[derive(Clone, Debug, Default)]
struct Identity(u64);

type BuildIdentity = std::hash::BuildHasherDefault<Identity>;

impl std::hash::Hasher for Identity {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(byte);
        }
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = value;
    }
}

#[cfg(test)]
mod tests;
