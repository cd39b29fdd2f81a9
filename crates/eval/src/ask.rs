//! Asks a model many short questions at once.

use std::collections::VecDeque;

use engine::{
    EngineError, EngineHandle, EngineLimits, Event, EventReceiver, FinishReason, GenerationRequest,
    Logprobs, Sampling, ScoredToken, StopAtIds,
};
use model::{CacheKind, KvBlocks, ModelConfig};
use tensor::DType;
use tokenizer::{ChatTemplate, Conversation, Ending, Message, Role, TextStream, Tokenizer};

use crate::EvalError;

/// Questions that an engine made with [`engine_limits`] works on at once.
const N_RUNNING: usize = 64;

/// Questions handed to the engine before the oldest is collected.
const MAX_IN_FLIGHT: usize = 2 * N_RUNNING;

/// Tokens of one step: every running question decodes, and about fifteen new ones begin.
const STEP_TOKENS: usize = 512;

/// Room for question and answer, on average.
const CACHE_TOKENS: usize = 256;

/// A model that can be asked.
#[derive(Clone, Copy)]
pub struct ChatModel<'a> {
    /// The running engine.
    pub engine: &'a EngineHandle,
    /// Turns text into ids and back.
    pub tokenizer: &'a Tokenizer,
    /// Renders the questions.
    pub template: &'a ChatTemplate,
    /// Tokens that end an answer.
    pub eos_ids: &'a [u32],
}

/// What a model said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The answer without control tokens and without what the template puts before it.
    pub text: String,
    /// The tokens generated, the one that ended the answer included.
    pub token_ids: Vec<u32>,
    /// Tokens of the rendered question.
    pub n_prompt_tokens: usize,
    /// Whether the model ended the answer or ran out of room.
    pub finish: FinishReason,
}

/// Limits of an engine that answers many short questions quickly: 64 at once, and cache for 256 tokens each, or for one
/// question of the whole context if that is more.
#[must_use]
pub fn engine_limits(config: &ModelConfig, dtype: DType) -> EngineLimits {
    let cache_bytes =
        |n_tokens| KvBlocks::bytes_for(config, dtype, CacheKind::Operands, n_tokens, STEP_TOKENS);
    let per_question = cache_bytes(CACHE_TOKENS.min(config.context_len));
    let longest = cache_bytes(config.context_len);
    EngineLimits {
        max_running: N_RUNNING,
        max_waiting: MAX_IN_FLIGHT,
        cache_bytes: (N_RUNNING * per_question).max(longest),
        step_tokens: STEP_TOKENS,
        ..EngineLimits::default()
    }
}

/// Asks each question as a conversation of its own, greedily, and gives the answers in the order of the questions. An
/// answer ends with one of the model's end tokens, after `max_tokens`, or where the context does ([`Answer::finish`] says which).
///
/// `progress` is called after each answer with the number answered and the number of questions.
///
/// Answers do not depend on how the engine batches them. At most 128 questions are in flight, fewer if the engine's queue
/// is shorter.
///
/// # Errors
/// When a question cannot be rendered, or the engine refuses or fails it; the questions in flight are given up.
pub fn answer_questions(
    model: ChatModel<'_>,
    questions: &[&str],
    max_tokens: usize,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Vec<Answer>, EvalError> {
    let mut answers = Vec::with_capacity(questions.len());
    let mut in_flight: VecDeque<EventReceiver> = VecDeque::with_capacity(MAX_IN_FLIGHT);
    let mut collect = |receiver: EventReceiver| -> Result<(), EvalError> {
        let question_idx = answers.len();
        let answer = collect_answer(receiver, model.tokenizer, model.template);
        answers.push(answer.map_err(|source| EvalError::Generate { question_idx, source })?);
        progress(answers.len(), questions.len());
        Ok(())
    };
    for (question_idx, question) in questions.iter().enumerate() {
        let prompt = render(model.tokenizer, model.template, question)
            .map_err(|source| EvalError::Render { question_idx, source })?;
        if in_flight.len() == MAX_IN_FLIGHT
            && let Some(oldest) = in_flight.pop_front()
        {
            collect(oldest)?;
        }
        loop {
            let request = GenerationRequest {
                prompt: prompt.clone(),
                max_tokens: Some(max_tokens),
                sampling: Sampling::GREEDY,
                logprobs: Logprobs::default(),
                adapter: None,
                mask: None,
                stop: Box::new(StopAtIds(model.eos_ids.to_vec())),
            };
            match model.engine.submit(request) {
                Ok(receiver) => {
                    in_flight.push_back(receiver);
                    break;
                }
                Err(source @ EngineError::QueueFull { .. }) => {
                    // One of ours that ends makes a place; if none is ours, others hold the queue.
                    let Some(oldest) = in_flight.pop_front() else {
                        return Err(EvalError::Generate { question_idx, source });
                    };
                    collect(oldest)?;
                }
                Err(source) => return Err(EvalError::Generate { question_idx, source }),
            }
        }
    }
    in_flight.into_iter().try_for_each(collect)?;
    Ok(answers)
}

fn render(
    tokenizer: &Tokenizer,
    template: &ChatTemplate,
    question: &str,
) -> Result<Vec<u32>, tokenizer::Error> {
    let conversation = Conversation { messages: vec![Message::new(Role::User, question)] };
    Ok(template.render(tokenizer, &conversation, Ending::AwaitAnswer)?.token_ids)
}

fn collect_answer(
    mut receiver: EventReceiver,
    tokenizer: &Tokenizer,
    template: &ChatTemplate,
) -> Result<Answer, EngineError> {
    let mut stream = TextStream::answer(template);
    let (mut text, mut token_ids) = (String::new(), Vec::new());
    loop {
        match receiver.recv_blocking() {
            Some(Event::PromptToken(_)) => {}
            Some(Event::Token(ScoredToken { token_id, .. })) => {
                text.push_str(&stream.push(tokenizer, token_id));
                token_ids.push(token_id);
            }
            Some(Event::Finished { reason, n_prompt_tokens, .. }) => {
                text.push_str(&stream.finish());
                return Ok(Answer { text, token_ids, n_prompt_tokens, finish: reason });
            }
            Some(Event::Failed(error)) => return Err(error),
            None => return Err(EngineError::Stopped),
        }
    }
}

#[cfg(test)]
mod tests;
