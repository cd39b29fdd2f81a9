//! From a checked request to text: renders and encodes the prompt, runs the engine, decodes its tokens.

use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use api::{
    AnswerFormat, ChatMessage, ChatRole, FinishReason, PromptInput, SamplingFields, TokenLogprob,
    TopLogprob, Usage,
};
use engine::{
    EngineHandle, Event, EventReceiver, GenerationRequest, Logprobs, Sampling, ScoredToken,
    StopDecision, StopMatcher, TokenMask,
};
use grammar::{Grammar, GrammarMask};
use tokenizer::{
    AnswerText, ChatTemplate, Conversation, Ending, Message, Role, TextStream, Tokenizer,
};
use tracing::info;

use crate::failure::Failure;
use crate::registry::ServedModel;

/// A running generation. Dropping it cancels the work.
pub(crate) struct Generation {
    events: EventReceiver,
    /// A model that is removed meanwhile answers to the end: with its last handle an engine stops.
    _engine: EngineHandle,
    tokenizer: Arc<Tokenizer>,
    text: AnswerText,
    eos_ids: Vec<u32>,
    is_scored: bool,
}

/// All generations of one request, in the order of the choices of its answer. Dropping it cancels the work.
pub(crate) struct Generations {
    running: Vec<Option<Generation>>,
    /// The one that is looked at first, so that none waits for another.
    first: usize,
}

/// What a generation yields.
#[derive(Debug)]
pub(crate) enum Piece {
    /// How likely the next token of the prompt was, from the second on, where that was asked for; before any text.
    Prompt(TokenLogprob),
    /// More text; it is never empty, unless tokens are scored. Text that is held back comes later than its token.
    Text { text: String, logprob: Option<TokenLogprob> },
    /// The end; the text it may bring is the last.
    Finished { text: String, reason: FinishReason, usage: Usage },
}

/// What is said of the likelihood of tokens.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Scores {
    /// How many likeliest tokens are named beside each; none when tokens are not scored.
    pub(crate) n_top: Option<usize>,
    /// Whether the tokens of the prompt are scored too.
    pub(crate) of_prompt: bool,
}

/// The tokens of a prompt, and how its answer becomes text.
pub(crate) struct Prompt {
    pub(crate) token_ids: Vec<u32>,
    text_stream: TextStream,
}

/// Times that a conversation is rendered whose tokens were counted as too few; one is enough where the template adds the
/// same to every exchange.
const MAX_RENDERINGS: usize = 4;

/// Renders a conversation with the model's template. Encoding is linear in the text but not short: call it outside the
/// event loop.
pub(crate) fn chat_prompt(
    name: &str,
    model: &ServedModel,
    messages: Vec<ChatMessage>,
) -> Result<Prompt, Failure> {
    chat_prompt_until(name, model, messages, Instant::now() + ChatTemplate::MAX_TIME)
}

fn chat_prompt_until(
    name: &str,
    model: &ServedModel,
    messages: Vec<ChatMessage>,
    end: Instant,
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
        .render_until(&model.tokenizer, &conversation, Ending::AwaitAnswer, end)
        .map_err(|error| Failure::Conversation { detail: error.to_string() })?;
    let text_stream = TextStream::answer(template);
    Ok(Prompt { token_ids: rendered.token_ids, text_stream })
}

/// As [`chat_prompt`], leaving out the oldest exchanges until a quarter of the context is free for the answer; tells how
/// many messages were left out. Instructions and the last message always stay.
///
/// Time: what is kept is counted and rendered a few times, which together take no longer than one rendering may; what is left
/// out is not looked at, however long it is.
pub(crate) fn recent_chat_prompt(
    name: &str,
    model: &ServedModel,
    messages: Vec<ChatMessage>,
) -> Result<(Prompt, usize), Failure> {
    let end = Instant::now() + ChatTemplate::MAX_TIME;
    let context_len = model.engine.context_len();
    let room = context_len - context_len / 4;
    let n_instructions =
        usize::from(messages.first().is_some_and(|message| message.role == ChatRole::System));
    let exchanges = &messages[n_instructions..];
    let n_exchanges = exchanges.len().saturating_sub(1) / 2;
    let without = |n_left_out: usize| {
        let recent = &exchanges[2 * n_left_out..];
        chat_prompt_until(name, model, [&messages[..n_instructions], recent].concat(), end)
    };
    let n_tokens = |exchange_idx: usize| -> usize {
        let exchange = &exchanges[2 * exchange_idx..2 * exchange_idx + 2];
        exchange.iter().map(|message| model.tokenizer.encode(&message.content).len()).sum()
    };
    let shortest = without(n_exchanges)?;
    if n_exchanges == 0 || shortest.token_ids.len() >= room {
        return Ok((shortest, 2 * n_exchanges));
    }
    // What the template adds to the newest exchange, it adds to the others.
    let with_newest = without(n_exchanges - 1)?;
    if with_newest.token_ids.len() > room {
        return Ok((shortest, 2 * n_exchanges));
    }
    let taken = with_newest.token_ids.len().saturating_sub(shortest.token_ids.len());
    let n_added = taken.saturating_sub(n_tokens(n_exchanges - 1));
    let mut n_left_out = n_exchanges - 1;
    let mut total = with_newest.token_ids.len();
    while n_left_out > 0 && total <= room {
        total += n_tokens(n_left_out - 1) + n_added;
        n_left_out -= usize::from(total <= room);
    }
    for _ in 0..MAX_RENDERINGS {
        let prompt = without(n_left_out)?;
        let excess = prompt.token_ids.len().saturating_sub(room);
        if excess == 0 {
            return Ok((prompt, 2 * n_left_out));
        }
        let mut n_dropped = 0;
        while n_dropped < excess && n_left_out < n_exchanges {
            n_dropped += n_tokens(n_left_out) + n_added;
            n_left_out += 1;
        }
    }
    Ok((shortest, 2 * n_exchanges))
}

/// Encodes the prompt of a text completion: text gets the token that begins a document where the tokenizer has it so,
/// and what comes after the gap where there is one; ids are used as given.
pub(crate) fn text_prompt(
    name: &str,
    model: &ServedModel,
    input: PromptInput,
    suffix: Option<&str>,
) -> Result<Prompt, Failure> {
    let token_ids = match (input, suffix) {
        (PromptInput::TokenIds(token_ids), _) => token_ids,
        (PromptInput::Text(text), None) => model.tokenizer.encode_prompt(&text),
        (PromptInput::Text(text), Some(suffix)) => model
            .tokenizer
            .render_fill_in_the_middle(&text, suffix)
            .map(|rendered| rendered.token_ids)
            .map_err(|_| Failure::NoFillInTheMiddle { name: name.to_owned() })?,
    };
    let text_stream = TextStream::after(&model.tokenizer, &token_ids);
    Ok(Prompt { token_ids, text_stream })
}

/// Hands a prompt to the engine, as often as answers to it are wanted; `param` is the field that the prompt came from. If the engine
/// refuses one, the others are cancelled.
pub(crate) fn start(
    name: &str,
    model: &ServedModel,
    prompt: &Prompt,
    settings: &AnswerSettings<'_>,
    param: &'static str,
) -> Result<Vec<Generation>, Failure> {
    let context_len = model.engine.context_len();
    let n_prompt_tokens = prompt.token_ids.len();
    if n_prompt_tokens >= context_len {
        let model = name.to_owned();
        return Err(Failure::ContextFull { model, n_prompt_tokens, context_len, param });
    }
    let first = sampling(model, settings.fields);
    let started = (0..settings.fields.n_answers).map(|answer_idx| {
        // Equal seeds would give equal answers.
        let seed = first.seed.wrapping_add(answer_idx as u64);
        start_one(model, prompt, settings, Sampling { seed, ..first.clone() })
    });
    started.collect()
}

fn start_one(
    model: &ServedModel,
    prompt: &Prompt,
    settings: &AnswerSettings<'_>,
    sampling: Sampling,
) -> Result<Generation, Failure> {
    let AnswerSettings { fields, mask, scores } = settings;
    let text = AnswerText::new(prompt.text_stream.clone(), fields.stop.clone());
    let matcher = AnswerMatcher {
        eos_ids: model.eos_ids.clone(),
        tokenizer: Arc::clone(&model.tokenizer),
        text: text.clone(),
    };
    let logprobs = Logprobs { n_top: scores.n_top.unwrap_or(0), of_prompt: scores.of_prompt };
    let request = GenerationRequest {
        prompt: prompt.token_ids.clone(),
        max_tokens: fields.max_tokens,
        sampling,
        logprobs,
        adapter: model.adapter.clone(),
        mask: mask.as_ref().map(|mask| -> Box<dyn TokenMask> { Box::new(mask.another()) }),
        stop: Box::new(matcher),
    };
    Ok(Generation {
        events: model.engine.submit(request)?,
        _engine: model.engine.clone(),
        tokenizer: Arc::clone(&model.tokenizer),
        text,
        eos_ids: model.eos_ids.clone(),
        is_scored: scores.n_top.is_some(),
    })
}

/// What all answers to one request share.
pub(crate) struct AnswerSettings<'a> {
    fields: &'a SamplingFields,
    /// Keeps them to their format; compiled once for all of them.
    mask: Option<GrammarMask>,
    scores: Scores,
}

impl<'a> AnswerSettings<'a> {
    pub(crate) fn new(
        model: &ServedModel,
        fields: &'a SamplingFields,
        scores: Scores,
    ) -> Result<Self, Failure> {
        Ok(Self { fields, mask: mask(model, fields)?, scores })
    }
}

fn mask(model: &ServedModel, fields: &SamplingFields) -> Result<Option<GrammarMask>, Failure> {
    let Some((format, param)) = fields.format.clone() else { return Ok(None) };
    let grammar = match format {
        AnswerFormat::JsonSchema(schema) => Grammar::JsonSchema(schema),
        AnswerFormat::Regex(regex) => Grammar::Regex(regex),
        AnswerFormat::Choice(texts) => Grammar::Choice(texts),
        AnswerFormat::Lark(text) => Grammar::Lark(text),
    };
    let failed = |source| Failure::Grammar { source, param };
    model.grammars().map_err(failed)?.compile(&grammar).map_err(failed).map(Some)
}

/// The settings of a request over the defaults of the model; without a seed, one of the system's.
fn sampling(model: &ServedModel, fields: &SamplingFields) -> Sampling {
    let (defaults, plain) = (model.defaults, Sampling::PLAIN);
    Sampling {
        temperature: fields.temperature.unwrap_or(defaults.temperature),
        top_k: fields.top_k.or(defaults.top_k),
        top_p: fields.top_p.unwrap_or(defaults.top_p),
        typical_p: fields.typical_p.unwrap_or(plain.typical_p),
        min_p: fields.min_p.unwrap_or(plain.min_p),
        repetition_penalty: fields.repetition_penalty.unwrap_or(plain.repetition_penalty),
        presence_penalty: fields.presence_penalty.unwrap_or(plain.presence_penalty),
        frequency_penalty: fields.frequency_penalty.unwrap_or(plain.frequency_penalty),
        logit_bias: fields.logit_bias.clone(),
        seed: fields.seed.unwrap_or_else(crate::ids::random_u64),
    }
}

impl Generation {
    /// The next piece; after [`Piece::Finished`] there is none.
    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Result<Option<Piece>, Failure>> {
        while let Some(event) = ready!(self.events.poll_recv(context)) {
            if let Some(piece) = self.piece_of(event).transpose() {
                return Poll::Ready(piece.map(Some));
            }
        }
        Poll::Ready(Ok(None))
    }

    /// What an event means for the reader, if anything.
    fn piece_of(&mut self, event: Event) -> Result<Option<Piece>, Failure> {
        match event {
            Event::PromptToken(token) => Ok(Some(Piece::Prompt(named(&self.tokenizer, token)))),
            Event::Token(token) => {
                let text = self.text.push(&self.tokenizer, token.token_id);
                let is_named = self.is_scored && !self.eos_ids.contains(&token.token_id);
                let logprob = is_named.then(|| named(&self.tokenizer, token));
                let is_seen = !text.is_empty() || logprob.is_some();
                Ok(is_seen.then_some(Piece::Text { text, logprob }))
            }
            Event::Finished { reason, n_prompt_tokens, n_reused_tokens, n_generated } => {
                let reason = match reason {
                    engine::FinishReason::Stop => FinishReason::Stop,
                    engine::FinishReason::Length => FinishReason::Length,
                };
                info!(
                    n_prompt_tokens,
                    n_reused_tokens,
                    n_generated,
                    ?reason,
                    "generation finished"
                );
                let usage = Usage {
                    prompt_tokens: n_prompt_tokens,
                    cached_tokens: n_reused_tokens,
                    completion_tokens: n_generated,
                };
                Ok(Some(Piece::Finished { text: self.text.finish(), reason, usage }))
            }
            Event::Failed(error) => Err(Failure::Engine(error)),
        }
    }
}

impl Generations {
    pub(crate) fn new(generations: Vec<Generation>) -> Self {
        Self { running: generations.into_iter().map(Some).collect(), first: 0 }
    }

    /// The next piece of any of them and its place among them; none when all are complete.
    pub(crate) async fn next(&mut self) -> Result<Option<(usize, Piece)>, Failure> {
        std::future::poll_fn(|context| self.poll_next(context)).await
    }

    fn poll_next(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Result<Option<(usize, Piece)>, Failure>> {
        let n = self.running.len();
        for idx in (self.first..n).chain(0..self.first) {
            let Some(generation) = &mut self.running[idx] else { continue };
            match generation.poll_next(context) {
                Poll::Pending => {}
                Poll::Ready(Err(failure)) => return Poll::Ready(Err(failure)),
                Poll::Ready(Ok(piece)) => {
                    let piece = piece.ok_or(Failure::Engine(engine::EngineError::Stopped))?;
                    if matches!(piece, Piece::Finished { .. }) {
                        self.running[idx] = None;
                    }
                    self.first = idx + 1;
                    return Poll::Ready(Ok(Some((idx, piece))));
                }
            }
        }
        if self.running.iter().any(Option::is_some) { Poll::Pending } else { Poll::Ready(Ok(None)) }
    }
}

/// Token counts of answers, the first `n_answers` of which answer the first prompt, and so on: each prompt counts once.
#[derive(Debug)]
pub(crate) struct TotalUsage {
    n_answers: usize,
    total: Usage,
}

impl TotalUsage {
    pub(crate) fn new(n_answers: usize) -> Self {
        Self { n_answers, total: Usage::default() }
    }

    /// Counts the answer at `index`.
    pub(crate) fn add(&mut self, index: usize, usage: Usage) {
        let repeats = !index.is_multiple_of(self.n_answers);
        let prompt =
            if repeats { Usage { prompt_tokens: 0, cached_tokens: 0, ..usage } } else { usage };
        self.total = self.total.plus(prompt);
    }

    pub(crate) fn total(&self) -> Usage {
        self.total
    }
}

/// The text of a token, with bytes that are no UTF-8 by themselves as U+FFFD.
pub(crate) fn token_text(tokenizer: &Tokenizer, token_id: u32) -> String {
    String::from_utf8_lossy(tokenizer.token_bytes(token_id).unwrap_or_default()).into_owned()
}

/// A scored token with its bytes and text.
fn named(tokenizer: &Tokenizer, scored: ScoredToken) -> TokenLogprob {
    let bytes = |id| tokenizer.token_bytes(id).unwrap_or_default().to_vec();
    let top = scored.top.iter().map(|&(id, logprob)| TopLogprob {
        token: token_text(tokenizer, id),
        logprob,
        bytes: bytes(id),
    });
    TokenLogprob {
        token: token_text(tokenizer, scored.token_id),
        logprob: scored.logprob,
        bytes: bytes(scored.token_id),
        top_logprobs: top.collect(),
    }
}

/// Ends an answer at one of the model's end tokens or at a stop string, while the engine waits.
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
