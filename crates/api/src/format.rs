//! What an answer must look like: `response_format` of the OpenAI and Mistral dialects, `structured_outputs` of vLLM's.

use serde_json::{Value, json};

use crate::RequestError;
use crate::fields::{Fields, shown, wrong_type};

/// Most texts of a choice.
const MAX_CHOICE_TEXTS: usize = 1024;

/// What an answer must look like.
#[derive(Debug, Clone, PartialEq)]
pub enum AnswerFormat {
    /// JSON that a schema holds for.
    JsonSchema(Value),
    /// A text that a regular expression matches as a whole.
    Regex(String),
    /// One of these texts, at least one.
    Choice(Vec<String>),
    /// A text of a grammar in Lark's notation.
    Lark(String),
}

impl AnswerFormat {
    /// Any JSON object.
    fn any_object() -> Self {
        Self::JsonSchema(json!({"type": "object"}))
    }

    /// Reads the fields that say it; none leaves it to the model. The second value is the field that said it.
    pub(crate) fn read(
        fields: &mut Fields,
        ignored: &mut Vec<String>,
    ) -> Result<Option<(Self, &'static str)>, RequestError> {
        let by_format = read_response_format(fields, ignored)?;
        let by_output = read_structured_outputs(fields, ignored)?;
        match (by_format, by_output) {
            (Some(_), Some(_)) => {
                let param = fields.path(RESPONSE_FORMAT);
                Err(RequestError::Conflict { param, other: STRUCTURED_OUTPUTS })
            }
            (Some(format), None) => Ok(Some((format, RESPONSE_FORMAT))),
            (None, Some(format)) => Ok(Some((format, STRUCTURED_OUTPUTS))),
            (None, None) => Ok(None),
        }
    }
}

const RESPONSE_FORMAT: &str = "response_format";
const STRUCTURED_OUTPUTS: &str = "structured_outputs";

fn read_response_format(
    fields: &mut Fields,
    ignored: &mut Vec<String>,
) -> Result<Option<AnswerFormat>, RequestError> {
    let path = fields.path(RESPONSE_FORMAT);
    let Some(value) = fields.take(RESPONSE_FORMAT) else { return Ok(None) };
    let mut format = Fields::nested(path, value)?;
    let param = format.path("type");
    let read = match format.string("type")?.as_deref() {
        Some("text") => None,
        Some("json_object") => Some(AnswerFormat::any_object()),
        Some("json_schema") => Some(read_json_schema(&mut format, ignored)?),
        None => return Err(RequestError::Missing { param, expected: "a format" }),
        Some(other) => {
            let got = shown(&Value::from(other));
            let accepted = "formats are text, json_object and json_schema";
            return Err(RequestError::Unsupported { param, got, accepted });
        }
    };
    // Clients send it as null with other formats.
    format.refuse_unless("json_schema", |_| false, "it goes with the type json_schema")?;
    format.ignored(ignored);
    Ok(read)
}

/// `{"name": ..., "schema": {...}, "strict": ...}`; the schema is kept whatever `strict` says.
fn read_json_schema(
    format: &mut Fields,
    ignored: &mut Vec<String>,
) -> Result<AnswerFormat, RequestError> {
    let path = format.path("json_schema");
    let Some(value) = format.take("json_schema") else {
        return Err(RequestError::Missing { param: path, expected: "an object with a schema" });
    };
    let mut named = Fields::nested(path, value)?;
    let schema = read_schema(&mut named, "schema")?;
    named.accept(&["name", "description", "strict"]);
    let param = named.path("schema");
    named.ignored(ignored);
    schema.ok_or(RequestError::Missing { param, expected: "a JSON schema" })
}

/// A schema as it is, or as a text of JSON.
fn read_schema(fields: &mut Fields, name: &str) -> Result<Option<AnswerFormat>, RequestError> {
    let param = fields.path(name);
    let schema = match fields.take(name) {
        None => return Ok(None),
        Some(Value::String(text)) => match serde_json::from_str(&text) {
            Ok(schema) => schema,
            Err(_) => {
                let (expected, got) =
                    ("a JSON schema".to_owned(), "a text that is not JSON".to_owned());
                return Err(RequestError::OutOfRange { param, expected, got });
            }
        },
        Some(schema) => schema,
    };
    match schema {
        Value::Object(_) | Value::Bool(_) => Ok(Some(AnswerFormat::JsonSchema(schema))),
        other => Err(wrong_type(param, "a JSON schema", &other)),
    }
}

/// An object with one of `json`, `regex`, `choice`, `grammar`, `json_object`.
fn read_structured_outputs(
    fields: &mut Fields,
    ignored: &mut Vec<String>,
) -> Result<Option<AnswerFormat>, RequestError> {
    let path = fields.path(STRUCTURED_OUTPUTS);
    let Some(value) = fields.take(STRUCTURED_OUTPUTS) else { return Ok(None) };
    let mut outputs = Fields::nested(path.clone(), value)?;
    let kinds = [
        read_schema(&mut outputs, "json")?,
        outputs.string("regex")?.map(AnswerFormat::Regex),
        read_choice(&mut outputs)?.map(AnswerFormat::Choice),
        outputs.string("grammar")?.map(AnswerFormat::Lark),
        outputs.flag("json_object")?.filter(|&wanted| wanted).map(|_| AnswerFormat::any_object()),
    ];
    outputs.ignored(ignored);
    let mut kinds = kinds.into_iter().flatten();
    let (first, second) = (kinds.next(), kinds.next());
    if first.is_some() && second.is_none() {
        return Ok(first);
    }
    let expected = "one of json, regex, choice, grammar and json_object".to_owned();
    let got = if first.is_none() { "none of them" } else { "several" }.to_owned();
    Err(RequestError::OutOfRange { param: path, expected, got })
}

fn read_choice(fields: &mut Fields) -> Result<Option<Vec<String>>, RequestError> {
    let param = fields.path("choice");
    let entries = match fields.take("choice") {
        None => return Ok(None),
        Some(Value::Array(entries)) => entries,
        Some(other) => return Err(wrong_type(param, "an array of texts", &other)),
    };
    if entries.is_empty() {
        let expected = "at least one text".to_owned();
        return Err(RequestError::OutOfRange { param, expected, got: "empty".to_owned() });
    }
    if entries.len() > MAX_CHOICE_TEXTS {
        let (limit, got) = (MAX_CHOICE_TEXTS, entries.len());
        return Err(RequestError::TooLong { param, unit: "entries", limit, got });
    }
    let texts = entries.into_iter().enumerate().map(|(i, entry)| match entry {
        Value::String(text) => Ok(text),
        other => Err(wrong_type(format!("{param}[{i}]"), "a text", &other)),
    });
    texts.collect::<Result<_, _>>().map(Some)
}
