//! Fields of a JSON object, taken one by one, so that what nobody took can be refused.

use std::fmt::Display;
use std::path::Path;

use serde_json::{Map, Value};

use crate::FormatError;

/// Longest value shown in an error.
const MAX_SHOWN: usize = 80;
/// Most token ids of one field.
const MAX_TOKEN_IDS: usize = 64;

/// The fields of an object that have not been taken yet.
pub(crate) struct Fields<'a> {
    path: &'a Path,
    /// Name of the object inside the file, empty at the top.
    parent: &'a str,
    object: Map<String, Value>,
}

/// Whether two values are equal, `1` and `1.0` included.
pub(crate) fn same(left: &Value, right: &Value) -> bool {
    left == right || (left.is_number() && left.as_f64() == right.as_f64())
}

fn shown(value: impl Display) -> String {
    let text = value.to_string();
    match text.char_indices().nth(MAX_SHOWN) {
        None => text,
        Some((end, _)) => format!("{}...", &text[..end]),
    }
}

impl<'a> Fields<'a> {
    pub(crate) fn new(path: &'a Path, parent: &'a str, object: Map<String, Value>) -> Self {
        Self { path, parent, object }
    }

    pub(crate) fn path(&self) -> &'a Path {
        self.path
    }

    pub(crate) fn has(&self, field: &str) -> bool {
        self.object.contains_key(field)
    }

    pub(crate) fn take(&mut self, field: &str) -> Option<Value> {
        self.object.remove(field)
    }

    /// The value, with null as good as absent.
    pub(crate) fn take_present(&mut self, field: &str) -> Option<Value> {
        self.object.remove(field).filter(|value| !value.is_null())
    }

    pub(crate) fn full_name(&self, field: &str) -> String {
        if self.parent.is_empty() { field.to_owned() } else { format!("{}.{field}", self.parent) }
    }

    pub(crate) fn bad(&self, field: &str, got: impl Display, expected: String) -> FormatError {
        let (path, field) = (self.path.to_owned(), self.full_name(field));
        FormatError::Field { path, field: shown(field), got: shown(got), expected }
    }

    pub(crate) fn unsupported(&self, field: &str, got: Value, reason: &'static str) -> FormatError {
        let (path, field) = (self.path.to_owned(), self.full_name(field));
        FormatError::UnsupportedSetting { path, field: shown(field), got: shown(got), reason }
    }

    /// A whole number in `min..=max` that must be there.
    pub(crate) fn count(
        &mut self,
        field: &str,
        min: usize,
        max: usize,
    ) -> Result<usize, FormatError> {
        let found = self.optional_count(field, min, max)?;
        found.ok_or_else(|| self.bad(field, "missing", format!("a whole number {min}..={max}")))
    }

    /// A whole number in `min..=max`, if it is there.
    pub(crate) fn optional_count(
        &mut self,
        field: &str,
        min: usize,
        max: usize,
    ) -> Result<Option<usize>, FormatError> {
        let Some(value) = self.take_present(field) else { return Ok(None) };
        let number = value.as_u64().and_then(|number| usize::try_from(number).ok());
        match number.filter(|number| (min..=max).contains(number)) {
            Some(number) => Ok(Some(number)),
            None => Err(self.bad(field, value, format!("a whole number {min}..={max}"))),
        }
    }

    /// A number in `min..=max`, if it is there.
    pub(crate) fn number(
        &mut self,
        field: &str,
        min: f64,
        max: f64,
    ) -> Result<Option<f64>, FormatError> {
        let Some(value) = self.take_present(field) else { return Ok(None) };
        match value.as_f64().filter(|number| (min..=max).contains(number)) {
            Some(number) => Ok(Some(number)),
            None => Err(self.bad(field, value, format!("a number {min:e}..={max:e}"))),
        }
    }

    pub(crate) fn flag(&mut self, field: &str) -> Result<Option<bool>, FormatError> {
        let Some(value) = self.take_present(field) else { return Ok(None) };
        match value {
            Value::Bool(flag) => Ok(Some(flag)),
            other => Err(self.bad(field, other, "true or false".to_owned())),
        }
    }

    /// A list of ids, or one; none when it is absent or null.
    pub(crate) fn token_ids(
        &mut self,
        field: &str,
        vocab_size: usize,
    ) -> Result<Vec<u32>, FormatError> {
        let values = match self.take_present(field) {
            None => Vec::new(),
            Some(Value::Array(values)) => values,
            Some(one) => vec![one],
        };
        if values.len() > MAX_TOKEN_IDS {
            let got = format!("{} ids", values.len());
            return Err(self.bad(field, got, format!("at most {MAX_TOKEN_IDS} ids")));
        }
        values.iter().map(|value| self.token_id(field, value, vocab_size)).collect()
    }

    pub(crate) fn token_id(
        &self,
        field: &str,
        value: &Value,
        vocab_size: usize,
    ) -> Result<u32, FormatError> {
        let id = value.as_u64().filter(|&id| id < vocab_size as u64);
        id.and_then(|id| u32::try_from(id).ok())
            .ok_or_else(|| self.bad(field, value, format!("a token id below {vocab_size}")))
    }

    /// Refuses the first field that nobody took and that is not null.
    pub(crate) fn refuse_the_rest(&self, reason: &'static str) -> Result<(), FormatError> {
        match self.object.iter().find(|(_, value)| !value.is_null()) {
            None => Ok(()),
            Some((field, value)) => Err(self.unsupported(field, value.clone(), reason)),
        }
    }
}
