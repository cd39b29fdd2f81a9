//! `POST /v1/completions`: text in, its continuation out, no chat template.

use serde::Serialize;
use serde_json::Value;

use crate::fields::{Fields, wrong_type};
use crate::sampling::{
    SamplingFields, StreamFields, check_scores, read_model, read_stream, refuse_unsupported,
};
use crate::{CompletionLogprobs, FinishReason, MAX_CHOICES, MAX_TOP_LOGPROBS, RequestError, Usage};

/// `max_tokens` of a text completion that names none, as the OpenAI dialect says.
const DEFAULT_MAX_TOKENS: usize = 16;

/// One prompt, in either of its two forms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PromptInput {
    /// Text, to be encoded.
    Text(String),
    /// Ids, used as given.
    TokenIds(Vec<u32>),
}

/// A checked text-completion request.
#[derive(Debug, Clone, PartialEq)]
pub struct CompletionRequest {
    /// The name of the model.
    pub model: String,
    /// The prompts, at least one; the answer has as many choices for each as `sampling` says, at most [`MAX_CHOICES`] in all.
    pub prompts: Vec<PromptInput>,
    /// What comes after the gap that the answer fills; the prompts, which are texts then, come before it.
    pub suffix: Option<String>,
    /// How to draw the answer; `max_tokens` is always set.
    pub sampling: SamplingFields,
    /// How many likeliest tokens are named beside each token; none when tokens are not scored.
    pub logprobs: Option<usize>,
    /// Whether the prompt is part of the answer's text, and its tokens of the scores.
    pub echo: bool,
    /// Whether the answer comes in pieces.
    pub stream: StreamFields,
    /// Paths of fields that no known schema has.
    pub ignored_fields: Vec<String>,
}

impl CompletionRequest {
    /// Parses and checks a request body.
    ///
    /// # Errors
    ///
    /// [`RequestError`] names the first field that is missing, of the wrong type, out of range or not supported.
    pub fn parse(body: &[u8]) -> Result<Self, RequestError> {
        let mut fields = Fields::parse(body)?;
        let mut ignored_fields = Vec::new();
        let model = read_model(&mut fields)?;
        let prompts = read_prompts(&mut fields)?;
        let mut sampling = SamplingFields::read(&mut fields, &["max_tokens"], &mut ignored_fields)?;
        sampling.max_tokens.get_or_insert(DEFAULT_MAX_TOKENS);
        if prompts.len() * sampling.n_answers > MAX_CHOICES {
            let (param, got) = (fields.path("n"), sampling.n_answers.to_string());
            let expected = format!("at most {MAX_CHOICES} answers to all prompts together");
            return Err(RequestError::OutOfRange { param, expected, got });
        }
        let n_top = fields.integer("logprobs", 0..=MAX_TOP_LOGPROBS as i64)?;
        let logprobs = n_top.map(|n_top| usize::try_from(n_top).unwrap_or(MAX_TOP_LOGPROBS));
        check_scores(&fields, prompts.len() * sampling.n_answers, logprobs)?;
        let echo = fields.flag("echo")?.unwrap_or(false);
        let stream = read_stream(&mut fields, &mut ignored_fields)?;
        refuse_unsupported(&mut fields)?;
        let suffix = fields.string("suffix")?.filter(|suffix| !suffix.is_empty());
        if echo && suffix.is_some() {
            let (param, got) = (fields.path("echo"), "true".to_owned());
            let accepted = "a gap is not a text: leave echo or suffix out";
            return Err(RequestError::Unsupported { param, got, accepted });
        }
        if suffix.is_some()
            && prompts.iter().any(|prompt| matches!(prompt, PromptInput::TokenIds(_)))
        {
            let (param, expected) = (fields.path("suffix"), "a prompt that is text".to_owned());
            return Err(RequestError::OutOfRange { param, expected, got: "token ids".to_owned() });
        }
        fields.ignored(&mut ignored_fields);
        Ok(Self { model, prompts, suffix, sampling, logprobs, echo, stream, ignored_fields })
    }
}

/// A text, a list of ids, or a list of either.
fn read_prompts(fields: &mut Fields) -> Result<Vec<PromptInput>, RequestError> {
    let param = fields.path("prompt");
    let expected = "a text, an array of token ids, or an array of these";
    match fields.take("prompt") {
        None => Err(RequestError::Missing { param, expected }),
        Some(Value::String(text)) => Ok(vec![PromptInput::Text(text)]),
        Some(Value::Array(entries)) if entries.is_empty() => {
            let expected = "at least one entry".to_owned();
            Err(RequestError::OutOfRange { param, expected, got: "empty".to_owned() })
        }
        Some(Value::Array(entries)) if entries.iter().all(Value::is_number) => {
            Ok(vec![PromptInput::TokenIds(read_ids(&param, &entries)?)])
        }
        Some(Value::Array(entries)) => {
            if entries.len() > MAX_CHOICES {
                let (limit, got) = (MAX_CHOICES, entries.len());
                return Err(RequestError::TooLong { param, unit: "entries", limit, got });
            }
            let prompts = entries.into_iter().enumerate().map(|(i, entry)| match entry {
                Value::String(text) => Ok(PromptInput::Text(text)),
                Value::Array(ids) => {
                    Ok(PromptInput::TokenIds(read_ids(&format!("{param}[{i}]"), &ids)?))
                }
                other => Err(wrong_type(format!("{param}[{i}]"), expected, &other)),
            });
            prompts.collect()
        }
        Some(other) => Err(wrong_type(param, expected, &other)),
    }
}

fn read_ids(path: &str, entries: &[Value]) -> Result<Vec<u32>, RequestError> {
    let ids = entries.iter().enumerate().map(|(i, entry)| {
        entry.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(|| {
            wrong_type(format!("{path}[{i}]"), "a token id (an integer from 0)", entry)
        })
    });
    ids.collect()
}

/// The whole answer, or one event of a streamed one: the two have the same shape.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Completion {
    /// Unique name of this answer.
    pub id: String,
    /// Always `text_completion`.
    pub object: &'static str,
    /// Seconds since 1970.
    pub created: u64,
    /// The model that answered.
    pub model: String,
    /// One for each answer to each prompt; in an event one, or none in the event with the usage.
    pub choices: Vec<CompletionChoice>,
    /// Token counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
}

/// The continuation of one prompt.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CompletionChoice {
    /// Position among the choices: all answers to the first prompt come first.
    pub index: usize,
    /// The text, or what is new of it.
    pub text: String,
    /// How likely the tokens were, where that was asked for.
    pub logprobs: Option<CompletionLogprobs>,
    /// Why it ended; null in events before the last of a choice.
    pub finish_reason: Option<FinishReason>,
}

impl Completion {
    /// An answer without choices, to be completed.
    #[must_use]
    pub fn new(id: String, created: u64, model: String) -> Self {
        let object = "text_completion";
        Self { id, object, created, model, choices: Vec::new(), usage: None }
    }

    /// An event about one choice.
    #[must_use]
    pub fn piece(
        &self,
        index: usize,
        text: String,
        logprobs: Option<CompletionLogprobs>,
        finish_reason: Option<FinishReason>,
    ) -> Self {
        let choice = CompletionChoice { index, text, logprobs, finish_reason };
        Self { choices: vec![choice], ..self.clone() }
    }

    /// The counts, after the end.
    #[must_use]
    pub fn usage(&self, usage: Usage) -> Self {
        Self { usage: Some(usage), ..self.clone() }
    }
}
