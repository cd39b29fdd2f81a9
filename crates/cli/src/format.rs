//! What an answer must look like, as arguments say it.

use std::path::PathBuf;

use anyhow::Context as _;
use engine::TokenMask;
use formats::durable::read_text;
use grammar::{Grammar, GrammarCompiler, MAX_SOURCE_BYTES};

use crate::failure::Failure;
use crate::open_model::OpenModel;

/// Largest file of a schema: with its space it may be longer than what is read of it.
const MAX_SCHEMA_BYTES: u64 = 1 << 20;

/// At most one form that the answer is kept to.
#[derive(Debug, clap::Args)]
#[group(multiple = false)]
pub(crate) struct FormatArgs {
    /// Keep the answer to JSON of the JSON Schema in this file
    #[arg(long, value_name = "FILE")]
    json_schema: Option<PathBuf>,
    /// Keep the answer to a text that this regular expression matches as a whole
    #[arg(long, value_name = "REGEX")]
    regex: Option<String>,
    /// Keep the answer to one of several texts; give each with the option
    #[arg(long, value_name = "TEXT")]
    choice: Vec<String>,
    /// Keep the answer to the grammar in this file, in Lark's notation, from its rule `start` on
    #[arg(long, value_name = "FILE")]
    grammar: Option<PathBuf>,
}

impl FormatArgs {
    /// The form, before a model is there.
    pub(crate) fn read(&self) -> anyhow::Result<Option<Grammar>> {
        if let Some(path) = &self.json_schema {
            let text = read_text(path, MAX_SCHEMA_BYTES)?;
            let schema = serde_json::from_str(&text)
                .with_context(|| format!("{} is not JSON", path.display()))?;
            return Ok(Some(Grammar::JsonSchema(schema)));
        }
        if let Some(path) = &self.grammar {
            return Ok(Some(Grammar::Lark(read_text(path, MAX_SOURCE_BYTES as u64)?)));
        }
        let regex = self.regex.clone().map(Grammar::Regex);
        let is_choice = !self.choice.is_empty();
        Ok(regex.or_else(|| is_choice.then(|| Grammar::Choice(self.choice.clone()))))
    }
}

/// The mask that keeps an answer of the model to a form.
pub(crate) fn mask_of(grammar: &Grammar, model: &OpenModel) -> anyhow::Result<Box<dyn TokenMask>> {
    let tokenizer = model.tokenizer()?;
    let compiler = GrammarCompiler::new(tokenizer, model.config.vocab_size, &model.eos_ids)?;
    Ok(Box::new(compiler.compile(grammar).map_err(Failure::usage)?))
}
