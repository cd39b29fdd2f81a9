//! From a checked request to text: renders and encodes the prompt, runs the engine, decodes its tokens.

use std::sync::Arc;

use api::{ChatMessage, ChatRole, FinishReason, PromptInput, SamplingFields, Usage};
use engine::{Event, EventReceiver, GenerationRequest, Sampling, StopDecision, StopMatcher};
use tokenizer::{AnswerText, Conversation, Ending, Message, Role, TextStream, Tokenizer};
use tracing::info;

use crate::app::App;
use crate::failure::Failure;
use crate::registry::LoadedModel;

/// A running generation. Dropping it cancels the work.
pub(crate) struct Generation {
    events: EventReceiver,
    tokenizer: Arc<Tokenizer>,
    text: AnswerText,
}

/// What a generation yields.
#[derive(Debug)]
pub(crate) enum Piece {
    /// More text, never empty.
    Text(String),
    /// The end; the text it may bring is the last.
    Finished { text: String, reason: FinishReason, usage: Usage },
}

/// The tokens of a prompt, and how its answer becomes text.
pub(crate) struct Prompt {
    token_ids: Vec<u32>,
    text_stream: TextStream,
}

/// Runs work that takes milliseconds outside of the event loop, a few at a time. A caller that goes away while it waits
/// leaves its place.
pub(crate) async fn in_background<T: Send + 'static>(
    app: &App,
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    let place = Arc::clone(&app.encoders).acquire_owned().await;
    let place = place.expect("nobody closes the semaphore");
    let work = move || {
        // Kept to the end of the work, which goes on when the caller is gone.
        let _place = place;
        work()
    };
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => outcome,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(Failure::Engine(engine::EngineError::Stopped)),
        },
    }
}

/// Renders a conversation with the model's template. Encoding is linear in the text but not short: call it outside the
/// event loop.
pub(crate) fn chat_prompt(
    name: &str,
    model: &LoadedModel,
    messages: Vec<ChatMessage>,
) -> Result<Prompt, Failure> {
    let Some(template) = &model.template else {
        return Err(Failure::NoChatTemplate { name: name.to_owned() });
    };
    let messages = messages.into_iter().map(|message| {
        let role = match message.role {
            ChatRole::System => Role::System,
            ChatRole::User => Role::User,
            ChatRole::Assistant => Role::Assistant,
        };
        Message::new(role, message.content)
    });
    let conversation = Conversation { messages: messages.collect() };
    let rendered = template
        .render(&model.tokenizer, &conversation, Ending::AwaitAnswer)
        .map_err(|error| Failure::Conversation { detail: error.to_string() })?;
    let text_stream = TextStream::answer(template);
    Ok(Prompt { token_ids: rendered.token_ids, text_stream })
}

/// As [`chat_prompt`], leaving out the oldest exchanges until a quarter of the context is free for the answer; tells how
/// many messages were left out. Instructions and the last message always stay.
pub(crate) fn recent_chat_prompt(
    name: &str,
    model: &LoadedModel,
    messages: Vec<ChatMessage>,
) -> Result<(Prompt, usize), Failure> {
    let context_len = model.engine.context_len();
    let n_instructions =
        usize::from(messages.first().is_some_and(|message| message.role == ChatRole::System));
    let without = |n_exchanges: usize| {
        let recent = &messages[n_instructions + 2 * n_exchanges..];
        chat_prompt(name, model, [&messages[..n_instructions], recent].concat())
    };
    let fits = |prompt: &Prompt| prompt.token_ids.len() <= context_len - context_len / 4;
    let n_exchanges = messages.len().saturating_sub(n_instructions + 1) / 2;
    let whole = without(0)?;
    if n_exchanges == 0 || fits(&whole) {
        return Ok((whole, 0));
    }
    // Fewer messages never have more tokens, so the first number that fits is found by halving; leaving out one exchange
    // after the other would render a long conversation hundreds of times.
    let (mut too_few, mut enough) = (0, n_exchanges);
    while too_few + 1 < enough {
        let middle = too_few.midpoint(enough);
        if fits(&without(middle)?) { enough = middle } else { too_few = middle }
    }
    Ok((without(enough)?, 2 * enough))
}

/// Encodes the prompt of a text completion: text gets the token that begins a document where the tokenizer has it so,
/// ids are used as given.
pub(crate) fn text_prompt(model: &LoadedModel, input: PromptInput) -> Prompt {
    let token_ids = match input {
        PromptInput::TokenIds(token_ids) => token_ids,
        PromptInput::Text(text) => model.tokenizer.encode_prompt(&text),
    };
    let text_stream = TextStream::after(&model.tokenizer, &token_ids);
    Prompt { token_ids, text_stream }
}

/// Hands a prompt to the engine; `param` is the field it came from.
pub(crate) fn start(
    name: &str,
    model: &LoadedModel,
    prompt: Prompt,
    fields: &SamplingFields,
    param: &'static str,
) -> Result<Generation, Failure> {
    let context_len = model.engine.context_len();
    let n_prompt_tokens = prompt.token_ids.len();
    if n_prompt_tokens >= context_len {
        let model = name.to_owned();
        return Err(Failure::ContextFull { model, n_prompt_tokens, context_len, param });
    }
    let matcher = AnswerMatcher {
        eos_ids: model.eos_ids.clone(),
        tokenizer: Arc::clone(&model.tokenizer),
        text: AnswerText::new(prompt.text_stream.clone(), fields.stop.clone()),
    };
    let request = GenerationRequest {
        prompt: prompt.token_ids,
        max_tokens: fields.max_tokens,
        sampling: sampling(model, fields),
        stop: Box::new(matcher),
    };
    let events = model.engine.submit(request)?;
    let text = AnswerText::new(prompt.text_stream, fields.stop.clone());
    Ok(Generation { events, tokenizer: Arc::clone(&model.tokenizer), text })
}

/// The settings of a request over the defaults of the model; without a seed, one of the system's.
fn sampling(model: &LoadedModel, fields: &SamplingFields) -> Sampling {
    let defaults = model.defaults;
    Sampling {
        temperature: fields.temperature.unwrap_or(defaults.temperature),
        top_k: fields.top_k.or(defaults.top_k),
        top_p: fields.top_p.unwrap_or(defaults.top_p),
        seed: fields.seed.unwrap_or_else(crate::ids::random_u64),
    }
}

impl Generation {
    /// The next piece; after [`Piece::Finished`] there is none.
    pub(crate) async fn next(&mut self) -> Result<Option<Piece>, Failure> {
        while let Some(event) = self.events.recv().await {
            match event {
                Event::Token { token_id, .. } => {
                    let text = self.text.push(&self.tokenizer, token_id);
                    if !text.is_empty() {
                        return Ok(Some(Piece::Text(text)));
                    }
                }
                Event::Finished { reason, n_prompt_tokens, n_generated } => {
                    let reason = match reason {
                        engine::FinishReason::Stop => FinishReason::Stop,
                        engine::FinishReason::Length => FinishReason::Length,
                    };
                    info!(n_prompt_tokens, n_generated, ?reason, "generation finished");
                    let usage =
                        Usage { prompt_tokens: n_prompt_tokens, completion_tokens: n_generated };
                    return Ok(Some(Piece::Finished { text: self.text.finish(), reason, usage }));
                }
                Event::Failed(error) => return Err(Failure::Engine(error)),
            }
        }
        Ok(None)
    }

    /// The whole text, for answers that are not streamed.
    pub(crate) async fn collect(mut self) -> Result<(String, FinishReason, Usage), Failure> {
        let mut whole = String::new();
        loop {
            match self.next().await? {
                Some(Piece::Text(text)) => whole.push_str(&text),
                Some(Piece::Finished { text, reason, usage }) => {
                    whole.push_str(&text);
                    return Ok((whole, reason, usage));
                }
                None => return Err(Failure::Engine(engine::EngineError::Stopped)),
            }
        }
    }
}

/// Ends an answer at one of the model's end tokens or at a stop string, on the engine's thread.
struct AnswerMatcher {
    eos_ids: Vec<u32>,
    tokenizer: Arc<Tokenizer>,
    text: AnswerText,
}

impl StopMatcher for AnswerMatcher {
    fn push(&mut self, token_id: u32) -> StopDecision {
        if self.eos_ids.contains(&token_id) {
            return StopDecision::Stop;
        }
        if !self.text.has_stops() {
            return StopDecision::Continue;
        }
        self.text.push(&self.tokenizer, token_id);
        if self.text.is_stopped() {
            StopDecision::Stop
        } else if self.text.is_holding() {
            StopDecision::HoldBack
        } else {
            StopDecision::Continue
        }
    }
}
