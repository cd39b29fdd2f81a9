//! The fields that chat and text completions share.

use serde_json::Value;

use crate::fields::{Fields, wrong_type};
use crate::format::AnswerFormat;
use crate::{MAX_CHOICES, MAX_MODEL_NAME_BYTES, MAX_STOP_BYTES, MAX_STOP_STRINGS, RequestError};

/// Most entries of `logit_bias`.
const MAX_LOGIT_BIASES: usize = 1024;

/// Most scores at a place, of all answers together: of a token and of the likeliest beside it.
const MAX_SCORED: usize = 128;

/// Largest `max_tokens` that is accepted; the answer also ends where the context does.
const MAX_TOKENS_LIMIT: i64 = 1 << 31;

/// How the answer is to be drawn; absent fields take the model's defaults.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SamplingFields {
    /// 0 takes the likeliest token; from 0 to 2.
    pub temperature: Option<f32>,
    /// Keeps the likeliest tokens whose probabilities sum to this; from 0 to 1.
    pub top_p: Option<f32>,
    /// Keeps this many likeliest tokens; none keeps all.
    pub top_k: Option<u32>,
    /// Keeps tokens at least so likely as this part of the likeliest; from 0 to 1.
    pub min_p: Option<f32>,
    /// Keeps the tokens that are as surprising as the mean, up to this sum of probabilities; from 0 to 1.
    pub typical_p: Option<f32>,
    /// Divides or multiplies the logits of tokens that were there before; above 0.
    pub repetition_penalty: Option<f32>,
    /// Taken from the logits of tokens of the answer; from -2 to 2.
    pub presence_penalty: Option<f32>,
    /// Taken from the logit of a token for each time it is in the answer; from -2 to 2.
    pub frequency_penalty: Option<f32>,
    /// Added to the logits of tokens, by id; from -100 to 100.
    pub logit_bias: Vec<(u32, f32)>,
    /// Equal seeds and requests give equal answers. `random_seed` is the Mistral name of this field.
    pub seed: Option<u64>,
    /// Most tokens to generate; none goes on to the end of the context.
    pub max_tokens: Option<usize>,
    /// Texts that end the answer; they are not part of it.
    pub stop: Vec<String>,
    /// What the answer must look like, and the field that says it; none leaves it to the model.
    pub format: Option<(AnswerFormat, &'static str)>,
    /// Answers to each prompt, from 1; the i-th takes the seed plus i.
    pub n_answers: usize,
}

/// Whether the answer comes in pieces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum StreamFields {
    /// One JSON document.
    #[default]
    Whole,
    /// Server-sent events, no usage.
    Pieces,
    /// Server-sent events, then one event with the usage.
    PiecesAndUsage,
}

impl SamplingFields {
    /// Reads the fields; `limit_names` are the names under which the dialect knows `max_tokens`.
    pub(crate) fn read(
        fields: &mut Fields,
        limit_names: &[&'static str],
        ignored: &mut Vec<String>,
    ) -> Result<Self, RequestError> {
        // Other servers use both 0 and -1 for "no limit".
        let top_k = fields.integer("top_k", -1..=i64::from(u32::MAX))?;
        let seed = one_of(fields, &["seed", "random_seed"], i64::MIN..=i64::MAX)?;
        let max_tokens = one_of(fields, limit_names, 0..=MAX_TOKENS_LIMIT)?;
        let mut number = |name, range| {
            Ok::<_, RequestError>(fields.number(name, range)?.map(|value| value as f32))
        };
        Ok(Self {
            temperature: number("temperature", 0.0..=2.0)?,
            top_p: number("top_p", 0.0..=1.0)?,
            min_p: number("min_p", 0.0..=1.0)?,
            typical_p: number("typical_p", 0.0..=1.0)?,
            repetition_penalty: number("repetition_penalty", 0.01..=100.0)?,
            presence_penalty: number("presence_penalty", -2.0..=2.0)?,
            frequency_penalty: number("frequency_penalty", -2.0..=2.0)?,
            logit_bias: read_logit_bias(fields)?,
            top_k: top_k.and_then(|value| u32::try_from(value).ok()).filter(|&value| value > 0),
            seed: seed.map(i64::cast_unsigned),
            max_tokens: max_tokens.and_then(|value| usize::try_from(value).ok()),
            stop: read_stop(fields)?,
            format: AnswerFormat::read(fields, ignored)?,
            n_answers: read_n(fields)?,
        })
    }
}

/// Reads `n`, and `best_of`, which may say the same.
fn read_n(fields: &mut Fields) -> Result<usize, RequestError> {
    let n = fields.integer("n", 1..=MAX_CHOICES as i64)?.unwrap_or(1);
    let param = fields.path("best_of");
    match fields.integer("best_of", 1..=i64::MAX)? {
        Some(best_of) if best_of != n => {
            let accepted = "only the value of n is accepted";
            Err(RequestError::Unsupported { param, got: best_of.to_string(), accepted })
        }
        _ => Ok(usize::try_from(n).unwrap_or(MAX_CHOICES)),
    }
}

/// Refuses to name so many likeliest tokens in so many answers that these would fill the memory: a name takes some 80 bytes.
pub(crate) fn check_scores(
    fields: &Fields,
    n_answers: usize,
    n_top: Option<usize>,
) -> Result<(), RequestError> {
    let most = MAX_SCORED / n_answers;
    match n_top {
        Some(n_top) if n_top + 1 > most => Err(RequestError::OutOfRange {
            param: fields.path("n"),
            expected: format!(
                "at most {} answers with {n_top} likeliest tokens",
                MAX_SCORED / (n_top + 1)
            ),
            got: n_answers.to_string(),
        }),
        _ => Ok(()),
    }
}

/// Reads `logit_bias`: an object of biases by token id.
fn read_logit_bias(fields: &mut Fields) -> Result<Vec<(u32, f32)>, RequestError> {
    let path = fields.path("logit_bias");
    let biases = match fields.take("logit_bias") {
        None => return Ok(Vec::new()),
        Some(Value::Object(biases)) => biases,
        Some(other) => return Err(wrong_type(path, "an object", &other)),
    };
    if biases.len() > MAX_LOGIT_BIASES {
        let (limit, got) = (MAX_LOGIT_BIASES, biases.len());
        return Err(RequestError::TooLong { param: path, unit: "entries", limit, got });
    }
    let names: Vec<String> = biases.keys().cloned().collect();
    let mut by_id = Fields::nested(path.clone(), Value::Object(biases))?;
    let mut read = Vec::with_capacity(names.len());
    for name in names {
        // As JSON writes the number: "05" would be another name of 5.
        let id = name.parse::<u32>().ok().filter(|id| id.to_string() == name);
        // The value is looked at only then, for its errors name it by the whole key.
        let bias = id.and_then(|_| by_id.number(&name, -100.0..=100.0).transpose()).transpose()?;
        let (Some(id), Some(bias)) = (id, bias) else {
            let expected = "numbers by the ids of tokens".to_owned();
            let got = name.chars().take(20).collect();
            return Err(RequestError::OutOfRange { param: path, expected, got });
        };
        read.push((id, bias as f32));
    }
    Ok(read)
}

/// Reads an integer that has several names; equal values under two names are fine.
fn one_of(
    fields: &mut Fields,
    names: &[&'static str],
    range: std::ops::RangeInclusive<i64>,
) -> Result<Option<i64>, RequestError> {
    let mut found: Option<(&str, i64)> = None;
    for &name in names {
        match (found, fields.integer(name, range.clone())?) {
            (Some((first, value)), Some(other)) if value != other => {
                return Err(RequestError::Conflict { param: fields.path(first), other: name });
            }
            (None, Some(value)) => found = Some((name, value)),
            _ => {}
        }
    }
    Ok(found.map(|(_, value)| value))
}

fn read_stop(fields: &mut Fields) -> Result<Vec<String>, RequestError> {
    let path = fields.path("stop");
    let entries = match fields.take("stop") {
        None => return Ok(Vec::new()),
        Some(Value::String(text)) => vec![Value::String(text)],
        Some(Value::Array(entries)) => entries,
        Some(other) => return Err(wrong_type(path, "a string or an array of strings", &other)),
    };
    if entries.len() > MAX_STOP_STRINGS {
        let got = entries.len();
        let limit = MAX_STOP_STRINGS;
        return Err(RequestError::TooLong { param: path, unit: "entries", limit, got });
    }
    let mut stop = Vec::with_capacity(entries.len());
    for (i, entry) in entries.into_iter().enumerate() {
        let param = format!("{path}[{i}]");
        match entry {
            Value::String(text) if text.is_empty() => {
                let expected = "at least one character".to_owned();
                return Err(RequestError::OutOfRange { param, expected, got: "empty".to_owned() });
            }
            Value::String(text) if text.len() > MAX_STOP_BYTES => {
                let (limit, got) = (MAX_STOP_BYTES, text.len());
                return Err(RequestError::TooLong { param, unit: "bytes", limit, got });
            }
            Value::String(text) => stop.push(text),
            other => return Err(wrong_type(param, "a string", &other)),
        }
    }
    Ok(stop)
}

/// Reads the required model name.
pub(crate) fn read_model(fields: &mut Fields) -> Result<String, RequestError> {
    let param = fields.path("model");
    let Some(model) = fields.string("model")? else {
        return Err(RequestError::Missing { param, expected: "the name of a model" });
    };
    if model.len() > MAX_MODEL_NAME_BYTES {
        let (limit, got) = (MAX_MODEL_NAME_BYTES, model.len());
        return Err(RequestError::TooLong { param, unit: "bytes", limit, got });
    }
    Ok(model)
}

/// Reads `stream` and `stream_options`.
pub(crate) fn read_stream(
    fields: &mut Fields,
    ignored: &mut Vec<String>,
) -> Result<StreamFields, RequestError> {
    let stream = fields.flag("stream")?.unwrap_or(false);
    let path = fields.path("stream_options");
    let mut include_usage = false;
    if let Some(options) = fields.take("stream_options") {
        let mut options = Fields::nested(path, options)?;
        include_usage = options.flag("include_usage")?.unwrap_or(false);
        // Padding against traffic analysis: it changes no content.
        options.accept(&["include_obfuscation"]);
        options.ignored(ignored);
    }
    Ok(match (stream, include_usage) {
        (false, _) => StreamFields::Whole,
        (true, false) => StreamFields::Pieces,
        (true, true) => StreamFields::PiecesAndUsage,
    })
}

/// Fields of every published schema that cannot change the answer.
const HARMLESS: [&str; 8] = [
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "parallel_tool_calls",
];

/// Refuses what is not supported in either kind of completion, accepts what is harmless.
pub(crate) fn refuse_unsupported(fields: &mut Fields) -> Result<(), RequestError> {
    let zero = |value: &Value| value.as_f64() == Some(0.0);
    fields.refuse_unless("min_tokens", zero, "only 0 is accepted")?;
    fields.accept(&HARMLESS);
    Ok(())
}

/// True for `false` itself: the neutral value of an unsupported switch.
pub(crate) fn is_false(value: &Value) -> bool {
    value.as_bool() == Some(false)
}

/// True for an empty array.
pub(crate) fn is_empty_array(value: &Value) -> bool {
    value.as_array().is_some_and(Vec::is_empty)
}
