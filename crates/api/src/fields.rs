//! Reads a JSON object field by field, so that every error names the field it is about.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use crate::{MAX_IGNORED_FIELDS, RequestError};

/// Longest part of an offending value that an error message repeats, in characters.
const MAX_SHOWN_CHARS: usize = 60;

/// An object whose fields are taken one by one; what remains was not understood.
#[derive(Debug)]
pub(crate) struct Fields {
    map: Map<String, Value>,
    /// Prefix of the paths in errors: empty, or such as `messages[2].`.
    prefix: String,
}

impl Fields {
    /// Parses a body. Depth is bounded by the JSON parser (128 levels), size by the caller.
    pub(crate) fn parse(body: &[u8]) -> Result<Self, RequestError> {
        let value: Value = serde_json::from_slice(body)
            .map_err(|error| RequestError::NotJson { detail: error.to_string() })?;
        match value {
            Value::Object(map) => Ok(Self { map, prefix: String::new() }),
            other => Err(RequestError::NotAnObject { got: kind_of(&other) }),
        }
    }

    /// The fields of the object at `path`.
    pub(crate) fn nested(path: String, value: Value) -> Result<Self, RequestError> {
        match value {
            Value::Object(map) => Ok(Self { map, prefix: format!("{path}.") }),
            other => Err(wrong_type(path, "an object", &other)),
        }
    }

    /// The full path of a field of this object.
    pub(crate) fn path(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// Takes a field; null counts as absent.
    pub(crate) fn take(&mut self, name: &str) -> Option<Value> {
        self.map.remove(name).filter(|value| !value.is_null())
    }

    pub(crate) fn string(&mut self, name: &str) -> Result<Option<String>, RequestError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(wrong_type(self.path(name), "a string", &other)),
        }
    }

    pub(crate) fn flag(&mut self, name: &str) -> Result<Option<bool>, RequestError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(value)),
            Some(other) => Err(wrong_type(self.path(name), "true or false", &other)),
        }
    }

    pub(crate) fn number(
        &mut self,
        name: &str,
        range: RangeInclusive<f64>,
    ) -> Result<Option<f64>, RequestError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let Some(number) = value.as_f64() else {
            return Err(wrong_type(self.path(name), "a number", &value));
        };
        if range.contains(&number) {
            return Ok(Some(number));
        }
        let expected = format!("a number from {} to {}", range.start(), range.end());
        Err(RequestError::OutOfRange { param: self.path(name), expected, got: shown(&value) })
    }

    pub(crate) fn integer(
        &mut self,
        name: &str,
        range: RangeInclusive<i64>,
    ) -> Result<Option<i64>, RequestError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        if !value.is_number() {
            return Err(wrong_type(self.path(name), "an integer", &value));
        }
        match value.as_i64() {
            Some(number) if range.contains(&number) => Ok(Some(number)),
            _ => {
                let expected = format!("an integer from {} to {}", range.start(), range.end());
                let got = shown(&value);
                Err(RequestError::OutOfRange { param: self.path(name), expected, got })
            }
        }
    }

    /// Refuses a field that would change the answer, unless `changes_nothing` holds for its value.
    pub(crate) fn refuse_unless(
        &mut self,
        name: &str,
        changes_nothing: fn(&Value) -> bool,
        accepted: &'static str,
    ) -> Result<(), RequestError> {
        match self.take(name) {
            Some(value) if !changes_nothing(&value) => {
                let got = shown(&value);
                Err(RequestError::Unsupported { param: self.path(name), got, accepted })
            }
            _ => Ok(()),
        }
    }

    /// Accepts fields that cannot change the answer.
    pub(crate) fn accept(&mut self, names: &[&str]) {
        for name in names {
            self.map.remove(*name);
        }
    }

    /// The paths of the fields nobody asked for, at most [`MAX_IGNORED_FIELDS`]; beyond them one entry says that there
    /// are more.
    pub(crate) fn ignored(self, into: &mut Vec<String>) {
        for name in self.map.keys() {
            if into.len() < MAX_IGNORED_FIELDS {
                let name: String = name.chars().take(MAX_SHOWN_CHARS).collect();
                into.push(format!("{}{name}", self.prefix));
            } else if into.len() == MAX_IGNORED_FIELDS {
                into.push("...".to_owned());
            }
        }
    }
}

/// An error about a value of the wrong kind.
pub(crate) fn wrong_type(param: String, expected: &'static str, got: &Value) -> RequestError {
    RequestError::WrongType { param, expected, got: kind_of(got) }
}

/// The JSON kind of a value, with its article.
pub(crate) fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// A value as JSON, shortened: an error must not repeat a prompt.
pub(crate) fn shown(value: &Value) -> String {
    match value {
        Value::Array(entries) => format!("an array of {} entries", entries.len()),
        Value::Object(_) => "an object".to_owned(),
        Value::String(text) if text.chars().count() > MAX_SHOWN_CHARS => {
            format!("a string of {} bytes", text.len())
        }
        _ => value.to_string(),
    }
}
