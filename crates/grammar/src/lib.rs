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
use llguidance::api::{GrammarInit, TopLevelGrammar};
use llguidance::earley::lexerspec::LexerSpec;
use llguidance::toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};
use llguidance::{JsonCompileOptions, Matcher, ParserFactory};
use serde_json::{Value, json};
use tokenizer::Tokenizer;

/// Longest grammar: a schema as JSON, an expression, a choice with its quotes, the text of Lark.
pub const MAX_SOURCE_BYTES: usize = 32 << 10;

/// Stack on which a grammar is read: more than twice of what `the_deepest_grammars_are_refused_or_read` takes without optimisation.
const STACK_BYTES: usize = 128 << 20;

/// Most kinds of words (texts, expressions) of a grammar, and states of a lexer of one answer. A state takes up to 1 KiB and 8 bytes for
/// each kind of word that it may still become: at most 45 MiB in all.
const MAX_LEXEMES: usize = 1_000;
const MAX_LEXER_STATES: usize = 5_000;

/// What finding the tokens for one place may cost: a few milliseconds. All requests of a step wait for the slowest.
const STEP_FUEL: u64 = 50_000;
const STEP_ITEMS: usize = 20_000;

/// What is said where the library gives up in a panic.
const UNREADABLE: &str = "it cannot be read";

/// Space between the parts of JSON: one, or a line break and indentation. Without a bound a model that likes space never ends.
const JSON_SPACE: &str = r" |\n[ \t]{0,32}";

/// Longest part of the library's reasons that is repeated, in characters.
const MAX_DETAIL_CHARS: usize = 200;

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
        let words: Vec<Vec<u8>> = (0..n_ids).map(|id| word(tokenizer, id, eos_ids)).collect();
        let trie = TokTrie::from(&TokRxInfo::new(n_ids, tok_eos), &words);
        let env: TokEnv = Arc::new(ApproximateTokEnv::new(trie.with_eos_tokens(eos_ids)));
        let factory = ParserFactory::new_simple(&env);
        let mut factory = factory.map_err(|error| vocabulary(error.to_string()))?;
        factory.quiet();
        let limits = factory.limits_mut();
        limits.max_lexer_states = MAX_LEXER_STATES;
        (limits.step_lexer_fuel, limits.step_max_items) = (STEP_FUEL, STEP_ITEMS);
        limits.precompute_large_lexemes = false;
        // Errors go to the client: they must not hold the answer or the library's inner state.
        limits.verbose_errors = false;
        Ok(Self { factory, eos_ids: eos_ids.into() })
    }

    /// The mask of one answer. Bounded, but it may take long: not for an event loop.
    ///
    /// # Errors
    /// [`GrammarError::Grammar`].
    pub fn compile(&self, grammar: &Grammar) -> Result<GrammarMask, GrammarError> {
        let what = grammar.what();
        let refused = |detail: String| GrammarError::Grammar { what, detail };
        let source = grammar.source();
        if source.len() > MAX_SOURCE_BYTES {
            let (got, limit) = (source.len(), MAX_SOURCE_BYTES);
            return Err(refused(format!("it has {got} bytes, at most {limit} are accepted")));
        }
        let matcher = on_deep_stack(|| self.matcher(grammar, source)).map_err(refused)?;
        Ok(GrammarMask { matcher, eos_ids: Arc::clone(&self.eos_ids) })
    }

    fn matcher(&self, grammar: &Grammar, source: String) -> Result<Matcher, String> {
        let parsed = match grammar {
            Grammar::JsonSchema(schema) => TopLevelGrammar::from_json_schema(with_space(schema)),
            Grammar::Regex(regex) => TopLevelGrammar::from_regex(regex),
            Grammar::Choice(texts) if texts.is_empty() => return Err("it has no text".to_owned()),
            Grammar::Choice(_) | Grammar::Lark(_) => TopLevelGrammar::from_lark(source),
        };
        let parts = GrammarInit::Serialized(parsed)
            .to_internal(Some(self.factory.tok_env().clone()), self.factory.limits().clone());
        let (grammar, lexer) = parts.map_err(|error| reason(&error.to_string()))?;
        self.check_lexer(&lexer)?;
        let parser =
            self.factory.create_parser_from_init_default(GrammarInit::Internal(grammar, lexer));
        let matcher = Matcher::new(parser);
        matcher.get_error().map_or(Ok(matcher), |error| Err(reason(&error)))
    }

    /// Refuses lexers that take too long to begin with: the library itself looks at every first byte without a bound, and some
    /// expressions take 2^40 states to show that nothing matches.
    fn check_lexer(&self, lexer: &LexerSpec) -> Result<(), String> {
        let (got, limit) = (lexer.lexemes.len(), MAX_LEXEMES);
        if got > limit {
            return Err(format!("it has {got} kinds of words, at most {limit} are accepted"));
        }
        let mut limits = self.factory.limits().clone();
        let states = lexer.to_regex_vec(&mut limits);
        let mut states = states.map_err(|error| reason(&error.to_string()))?;
        states.set_fuel(limits.initial_lexer_fuel);
        let start = states.initial_state(&lexer.all_lexemes());
        for byte in 0..=u8::MAX {
            states.transition(start, byte);
            if let Some(error) = states.get_error() {
                return Err(reason(&error));
            }
        }
        Ok(())
    }
}

impl Grammar {
    fn what(&self) -> &'static str {
        match self {
            Self::JsonSchema(_) => "the JSON schema",
            Self::Regex(_) => "the regular expression",
            Self::Choice(_) => "the choice",
            Self::Lark(_) => "the grammar",
        }
    }

    /// Its text, that of a choice in Lark's notation.
    fn source(&self) -> String {
        match self {
            Self::JsonSchema(schema) => schema.to_string(),
            Self::Regex(text) | Self::Lark(text) => text.clone(),
            Self::Choice(texts) => choice(texts),
        }
    }
}

/// Runs `work` where the deepest grammar of [`MAX_SOURCE_BYTES`] ends in an error and not in the end of the process: the library
/// recurses over some forms without a bound (`the_deepest_grammars_are_refused_or_read`). Memory of a stack is taken when it is first used.
fn on_deep_stack<T: Send>(work: impl FnOnce() -> Result<T, String> + Send) -> Result<T, String> {
    std::thread::scope(|scope| {
        let builder =
            std::thread::Builder::new().name("grammar".to_owned()).stack_size(STACK_BYTES);
        let started = builder.spawn_scoped(scope, work);
        let worker = started.map_err(|error| format!("there is no thread to read it: {error}"))?;
        worker.join().unwrap_or_else(|_| Err(UNREADABLE.to_owned()))
    })
}

/// The bytes of a token, marked where it stands for no text or ends the answer, so that no grammar of texts allows it.
fn word(tokenizer: &Tokenizer, token_id: u32, eos_ids: &[u32]) -> Vec<u8> {
    let bytes = tokenizer.token_bytes(token_id).unwrap_or_default();
    if tokenizer.is_control(token_id) || eos_ids.contains(&token_id) {
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

/// Texts as alternatives of one word in Lark's notation, whose strings are those of JSON.
fn choice(texts: &[String]) -> String {
    let quoted = texts.iter().map(|text| Value::from(text.as_str()).to_string());
    format!("start: CHOICE\nCHOICE: {}", quoted.collect::<Vec<_>>().join(" | "))
}

/// The library's reason for whoever sent the grammar: one line without control characters, and nothing of a panic, which names the
/// folders of this program's source.
fn reason(error: &str) -> String {
    if error.starts_with("panic") {
        return UNREADABLE.to_owned();
    }
    let told = error.split("<backtrace>").next().unwrap_or_default();
    let words: Vec<&str> = told.split_whitespace().collect();
    let line = words.join(" ");
    line.chars().filter(|c| !c.is_control()).take(MAX_DETAIL_CHARS).collect()
}

/// What may come next in one answer.
pub struct GrammarMask {
    matcher: Matcher,
    eos_ids: Arc<[u32]>,
}

impl GrammarMask {
    /// The mask of another answer of the same form, without compiling it again. Taken before the first token, it is fresh.
    #[must_use]
    pub fn another(&self) -> Self {
        Self { matcher: self.matcher.deep_clone(), eos_ids: Arc::clone(&self.eos_ids) }
    }
}

impl TokenMask for GrammarMask {
    fn allowed(&mut self, allowed: &mut TokenSet) -> Result<(), String> {
        let mask =
            self.matcher.compute_mask_or_eos().map_err(|error| reason(&error.to_string()))?;
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
        self.matcher.consume_token(token_id).map_err(|error| reason(&error.to_string()))
    }
}

#[cfg(test)]
mod tests;
