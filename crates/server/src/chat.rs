//! `POST /v1/chat/completions`.

use std::sync::Arc;

use api::{
    ChatChoice, ChatChunk, ChatCompletion, ChatLogprobs, ChatRequest, StreamFields, TokenLogprob,
};
use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};

use crate::app::SharedApp;
use crate::failure::Failure;
use crate::generation::{self, AnswerSettings, Generations, Piece, Scores, TotalUsage};
use crate::sse::{self, ClientGone, EventSink};
use crate::{background, body, ids};

/// Answers a conversation, whole or in pieces.
pub(crate) async fn complete(
    State(app): State<SharedApp>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Failure> {
    let bytes = body::read(&headers, body, &app.limits).await?;
    let request = ChatRequest::parse(&bytes)?;
    // An answer may take minutes, and a body megabytes.
    drop(bytes);
    let (name, stream) = (request.model.clone(), request.stream);
    let (ignored, is_scored) = (request.ignored_fields.clone(), request.logprobs.is_some());
    let n_answers = request.sampling.n_answers;
    let generations = start(&app, request).await?;
    let (id, created) = (ids::answer_id("chatcmpl"), ids::unix_time());
    let response = if stream == StreamFields::Whole {
        let (choices, usage) = collect(generations, n_answers, is_scored).await?;
        Json(ChatCompletion::new(id, created, name, choices, usage.total())).into_response()
    } else {
        let chunk = ChatChunk::new(id, created, name);
        sse::respond(move |sink| send_pieces(sink, chunk, generations, n_answers, stream))
    };
    Ok(body::naming_ignored(response, &ignored))
}

/// Renders and encodes on a thread for blocking work, then hands the prompt to the engine.
async fn start(app: &SharedApp, request: ChatRequest) -> Result<Generations, Failure> {
    let model = app.models.get(&request.model)?;
    let places = Arc::clone(&model.encoders);
    background::run_in_turn(&places, move || {
        let ChatRequest { model: name, messages, sampling, logprobs, .. } = request;
        let prompt = generation::chat_prompt(&name, &model, messages)?;
        let scores = Scores { n_top: logprobs, of_prompt: false };
        let settings = AnswerSettings::new(&model, &sampling, scores)?;
        let started = generation::start(&name, &model, &prompt, &settings, "messages")?;
        Ok(Generations::new(started))
    })
    .await
}

/// The whole answers, where they are not streamed.
async fn collect(
    mut generations: Generations,
    n_answers: usize,
    is_scored: bool,
) -> Result<(Vec<ChatChoice>, TotalUsage), Failure> {
    let mut usage = TotalUsage::new(n_answers);
    let mut whole: Vec<(String, Vec<TokenLogprob>)> = vec![Default::default(); n_answers];
    let mut choices = Vec::with_capacity(n_answers);
    while let Some((index, piece)) = generations.next().await? {
        let (content, scores) = &mut whole[index];
        match piece {
            Piece::Prompt(_) => {}
            Piece::Text { text, logprob } => {
                content.push_str(&text);
                scores.extend(logprob);
            }
            Piece::Finished { text, reason, usage: of_choice } => {
                content.push_str(&text);
                usage.add(index, of_choice);
                let (content, scores) = (std::mem::take(content), std::mem::take(scores));
                let logprobs = ChatLogprobs { content: scores, refusal: None };
                let logprobs = is_scored.then_some(logprobs);
                choices.push(ChatChoice::new(index, content, logprobs, reason));
            }
        }
    }
    choices.sort_by_key(|choice| choice.index);
    Ok((choices, usage))
}

/// The pieces of all answers as they come.
async fn send_pieces(
    sink: EventSink,
    chunk: ChatChunk,
    mut generations: Generations,
    n_answers: usize,
    stream: StreamFields,
) -> Result<(), ClientGone> {
    for index in 0..n_answers {
        sink.data(&chunk.role(index)).await?;
    }
    let mut usage = TotalUsage::new(n_answers);
    loop {
        match generations.next().await {
            Ok(Some((_, Piece::Prompt(_)))) => {}
            Ok(Some((index, Piece::Text { text, logprob }))) => {
                sink.data(&chunk.content(index, text, logprob)).await?;
            }
            Ok(Some((index, Piece::Finished { text, reason, usage: of_choice }))) => {
                if !text.is_empty() {
                    sink.data(&chunk.content(index, text, None)).await?;
                }
                usage.add(index, of_choice);
                sink.data(&chunk.finish(index, reason)).await?;
            }
            Ok(None) => break,
            Err(failure) => {
                // The status is sent already; clients read an error object in the stream.
                failure.log();
                return sink.data(&failure.body()).await;
            }
        }
    }
    if stream == StreamFields::PiecesAndUsage {
        sink.data(&chunk.usage(usage.total())).await?;
    }
    sink.done().await
}
