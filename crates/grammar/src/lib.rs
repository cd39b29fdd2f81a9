//! What an answer must look like: JSON of a schema, a regular expression, one of several texts or a Lark grammar, as masks for the
//! engine.
//!
//! The crate fences in `llguidance`, which knows the formats and finds the tokens that may come next; here it meets our tokenizer
//! and our engine. It draws no token and reads no file.
//!
//! ```
//! use engine::{TokenMask, TokenSet};
//! use grammar::{Grammar, GrammarCompiler};
//! use tokenizer::{BpeTrainer, TrainOptions};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut trainer = BpeTrainer::new(TrainOptions { vocab_size: 272, ..TrainOptions::default() });
//! trainer.feed("the wind of the west and the wind of the east, the wind of the sea and the sand");
//! let tokenizer = trainer.train()?;
//! let n = tokenizer.vocab_size();
//! let compiler = GrammarCompiler::new(&tokenizer, n, &[tokenizer.eos_id()])?;
//! let mut mask = compiler.compile(&Grammar::Choice(vec!["yes".to_owned(), "no".to_owned()]))?;
//! let mut allowed = TokenSet::none_of(n);
//! mask.allowed(&mut allowed)?;
//! let begins = |text: &str| allowed.contains(tokenizer.encode(text)[0]);
//! assert!(begins("n") && !begins("x"));
//! # Ok(())
//! # }
//! ```

use std::fmt;
use std::sync::Arc;

use engine::{TokenMask, TokenSet};
use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};
use llguidance::{JsonCompileOptions, Matcher, ParserFactory};
use serde_json::{Value, json};
use tokenizer::Tokenizer;

/// States of a lexer of one answer, of up to 2 KiB each; the library's own bound is ten times as high.
const MAX_LEXER_STATES: usize = 25_000;

/// Space between the parts of JSON: one, or a line break and indentation. Without a bound a model that likes space never ends.
const JSON_SPACE: &str = r" |\n[ \t]{0,32}";

/// Longest part of the library's reasons that is repeated, in characters.
const MAX_DETAIL_CHARS: usize = 300;

/// What an answer must look like.
#[derive(Debug, Clone, PartialEq)]
pub enum Grammar {
    /// JSON that a schema holds for. Keywords that cannot be kept are refused, not ignored.
    JsonSchema(Value),
    /// A text that a regular expression matches as a whole.
    Regex(String),
    /// One of these texts.
    Choice(Vec<String>),
    /// A text of a grammar in Lark's notation, from its rule `start` on.
    Lark(String),
}

/// Why there is no mask.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GrammarError {
    /// What is asked for is no grammar, or cannot be kept.
    #[error("{what} cannot be followed: {detail}")]
    Grammar {
        /// The kind of grammar.
        what: &'static str,
        /// Why.
        detail: String,
    },
    /// The vocabulary cannot be indexed.
    #[error("the vocabulary cannot be indexed for grammars: {detail}")]
    Vocabulary {
        /// Why.
        detail: String,
    },
}

/// Makes masks for one model; takes some milliseconds and megabytes to make, for it indexes the vocabulary.
pub struct GrammarCompiler {
    factory: ParserFactory,
    eos_ids: Arc<[u32]>,
}

impl fmt::Debug for GrammarCompiler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GrammarCompiler").field("eos_ids", &self.eos_ids).finish_non_exhaustive()
    }
}

impl GrammarCompiler {
    /// A compiler for a model of `vocab_size` ids, at least as many as the tokenizer has, that ends its answers with one of `eos_ids`.
    ///
    /// # Errors
    /// [`GrammarError::Vocabulary`], also when there is no such id, for an answer that is complete could not end.
    pub fn new(
        tokenizer: &Tokenizer,
        vocab_size: usize,
        eos_ids: &[u32],
    ) -> Result<Self, GrammarError> {
        let vocabulary = |detail: String| GrammarError::Vocabulary { detail };
        let Some(&tok_eos) = eos_ids.first() else {
            return Err(vocabulary("no token ends an answer".to_owned()));
        };
        let n_ids = u32::try_from(vocab_size).map_err(|error| vocabulary(error.to_string()))?;
        if let Some(id) = eos_ids.iter().find(|&&id| id >= n_ids) {
            return Err(vocabulary(format!("token {id} ends answers, expected less than {n_ids}")));
        }
        let words: Vec<Vec<u8>> = (0..n_ids).map(|id| word(tokenizer, id)).collect();
        let trie = TokTrie::from(&TokRxInfo::new(n_ids, tok_eos), &words);
        let env: TokEnv = Arc::new(ApproximateTokEnv::new(trie.with_eos_tokens(eos_ids)));
        let factory = ParserFactory::new_simple(&env);
        let mut factory = factory.map_err(|error| vocabulary(error.to_string()))?;
        factory.quiet();
        let limits = factory.limits_mut();
        limits.max_lexer_states = MAX_LEXER_STATES;
        // Errors go to the client: they must not hold the answer or the library's inner state.
        limits.verbose_errors = false;
        Ok(Self { factory, eos_ids: eos_ids.into() })
    }

    /// The mask of one answer. Bounded, but it may take tens of milliseconds: not for an event loop.
    ///
    /// # Errors
    /// [`GrammarError::Grammar`].
    pub fn compile(&self, grammar: &Grammar) -> Result<GrammarMask, GrammarError> {
        let (what, parsed) = match grammar {
            Grammar::Choice(texts) if texts.is_empty() => {
                let (what, detail) = ("the choice", "it has no text".to_owned());
                return Err(GrammarError::Grammar { what, detail });
            }
            Grammar::JsonSchema(schema) => {
                ("the JSON schema", TopLevelGrammar::from_json_schema(with_space(schema)))
            }
            Grammar::Regex(regex) => ("the regular expression", TopLevelGrammar::from_regex(regex)),
            Grammar::Choice(texts) => ("the choice", TopLevelGrammar::from_lark(choice(texts))),
            Grammar::Lark(text) => ("the grammar", TopLevelGrammar::from_lark(text.clone())),
        };
        let matcher = Matcher::new(self.factory.create_parser(parsed));
        match matcher.get_error() {
            Some(error) => Err(GrammarError::Grammar { what, detail: one_line(&error) }),
            None => {
                let eos_ids = Arc::clone(&self.eos_ids);
                Ok(GrammarMask { matcher, eos_ids })
            }
        }
    }
}

/// The bytes of a token, marked where it stands for no text, so that no grammar of texts allows it.
fn word(tokenizer: &Tokenizer, token_id: u32) -> Vec<u8> {
    let bytes = tokenizer.token_bytes(token_id).unwrap_or_default();
    if tokenizer.is_control(token_id) {
        [&[TokTrie::SPECIAL_TOKEN_MARKER], bytes].concat()
    } else {
        bytes.to_vec()
    }
}

/// The schema with what the library is to know of space.
fn with_space(schema: &Value) -> Value {
    let whitespace_pattern = Some(JSON_SPACE.to_owned());
    let options = JsonCompileOptions { whitespace_pattern, ..JsonCompileOptions::default() };
    // The schema `true` holds for everything, as the empty one does.
    let mut schema = if *schema == Value::Bool(true) { json!({}) } else { schema.clone() };
    if schema.is_object() {
        options.apply_to(&mut schema);
    }
    schema
}

/// Texts as alternatives in Lark's notation, whose strings are those of JSON.
fn choice(texts: &[String]) -> String {
    let quoted: Vec<String> =
        texts.iter().map(|text| Value::from(text.as_str()).to_string()).collect();
    format!("start: {}", quoted.join(" | "))
}

/// The library's reason without its line breaks, which may be long.
fn one_line(error: &str) -> String {
    let words: Vec<&str> = error.split_whitespace().collect();
    words.join(" ").chars().take(MAX_DETAIL_CHARS).collect()
}

/// What may come next in one answer.
pub struct GrammarMask {
    matcher: Matcher,
    eos_ids: Arc<[u32]>,
}

impl TokenMask for GrammarMask {
    fn allowed(&mut self, allowed: &mut TokenSet) -> Result<(), String> {
        let mask =
            self.matcher.compute_mask_or_eos().map_err(|error| one_line(&error.to_string()))?;
        for (word, bits) in allowed.words_mut().iter_mut().zip(mask.as_slice()) {
            *word = *bits;
        }
        Ok(())
    }

    fn push(&mut self, token_id: u32) -> Result<(), String> {
        // The end is allowed where the answer is complete; a grammar has nothing to say of what comes after.
        if self.eos_ids.contains(&token_id) {
            return Ok(());
        }
        self.matcher.consume_token(token_id).map_err(|error| one_line(&error.to_string()))
    }
}

#[cfg(test)]
mod tests;
