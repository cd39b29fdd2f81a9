//! Defaults for generation, in `generation_config.json`.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::{GENERATION_FILE, read_json};
use crate::FormatError;

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
    let bad = |field: &str, got: &Value, expected: String| FormatError::Field {
        path: path.clone(),
        field: field.to_owned(),
        got: got.to_string().chars().take(80).collect(),
        expected,
    };
    let ids = |field: &str| -> Result<Vec<u32>, FormatError> {
        let values = match &value[field] {
            Value::Null => &[],
            Value::Array(values) => values.as_slice(),
            one => std::slice::from_ref(one),
        };
        let id_of = |one: &Value| {
            let id = one.as_u64().filter(|&id| id < vocab_size as u64);
            id.and_then(|id| u32::try_from(id).ok())
                .ok_or_else(|| bad(field, one, format!("a token id below {vocab_size}")))
        };
        values.iter().map(id_of).collect()
    };
    let number = |field: &str, max: f64| match &value[field] {
        Value::Null => Ok(None),
        got => match got.as_f64().filter(|number| (0.0..=max).contains(number)) {
            Some(number) => Ok(Some(number)),
            None => Err(bad(field, got, format!("a number 0..={max}"))),
        },
    };
    // Where the file says that nothing is sampled, transformers does not look at these numbers.
    let is_sampled = value["do_sample"] != json!(false);
    Ok(Some(GenerationConfig {
        bos_id: ids("bos_token_id")?.first().copied(),
        eos_ids: ids("eos_token_id")?,
        temperature: number("temperature", 100.0)?.filter(|_| is_sampled),
        top_p: number("top_p", 1.0)?.filter(|_| is_sampled),
    }))
}
