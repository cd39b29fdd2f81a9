//! Defaults for generation, in `generation_config.json`.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::{GENERATION_FILE, read_json};
use crate::FormatError;
use crate::fields::Fields;

/// Defaults for generation.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerationConfig {
    /// Token put before a text.
    pub bos_id: Option<u32>,
    /// Tokens that end an answer.
    pub eos_ids: Vec<u32>,
    /// Sampling temperature.
    pub temperature: Option<f64>,
    /// Share of probability that sampling keeps.
    pub top_p: Option<f64>,
}

impl GenerationConfig {
    pub(super) fn to_json(&self) -> Value {
        let mut object = Map::new();
        object.insert("bos_token_id".to_owned(), json!(self.bos_id));
        let eos = match self.eos_ids.as_slice() {
            [] => Value::Null,
            [one] => json!(one),
            many => json!(many),
        };
        object.insert("eos_token_id".to_owned(), eos);
        if self.temperature.is_some() || self.top_p.is_some() {
            object.insert("do_sample".to_owned(), json!(true));
        }
        for (key, number) in [("temperature", self.temperature), ("top_p", self.top_p)] {
            if let Some(number) = number {
                object.insert(key.to_owned(), json!(number));
            }
        }
        Value::Object(object)
    }
}

/// Other keys of the file are defaults of transformers' own generation loop, which a request states by itself here.
pub(super) fn read_generation(
    dir: &Path,
    vocab_size: usize,
) -> Result<Option<GenerationConfig>, FormatError> {
    let path = dir.join(GENERATION_FILE);
    let Some(value) = read_json(&path)? else { return Ok(None) };
    let object = serde_json::from_value(value).map_err(FormatError::json(&path))?;
    let mut fields = Fields::new(&path, "", object);
    // Where the file says that nothing is sampled, transformers does not look at these numbers.
    let is_sampled = fields.flag("do_sample")? != Some(false);
    Ok(Some(GenerationConfig {
        bos_id: fields.token_ids("bos_token_id", vocab_size)?.first().copied(),
        eos_ids: fields.token_ids("eos_token_id", vocab_size)?,
        temperature: fields.number("temperature", 0.0, 100.0)?.filter(|_| is_sampled),
        top_p: fields.number("top_p", 0.0, 1.0)?.filter(|_| is_sampled),
    }))
}
