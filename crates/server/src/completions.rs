//! `POST /v1/completions`.

use std::sync::Arc;

use api::{Completion, CompletionChoice, CompletionRequest, StreamFields, Usage};
use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};

use crate::app::SharedApp;
use crate::failure::Failure;
use crate::generation::{self, Answer, Generation, Piece};
use crate::sse::{self, ClientGone, EventSink};
use crate::{body, ids};

/// Continues one or several texts, whole or in pieces.
pub(crate) async fn complete(
    State(app): State<SharedApp>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Failure> {
    let bytes = body::read(&headers, body, &app.limits).await?;
    let request = CompletionRequest::parse(&bytes)?;
    // An answer may take minutes, and a body megabytes.
    drop(bytes);
    let (name, stream) = (request.model.clone(), request.stream);
    let ignored = request.ignored_fields.clone();
    let model = app.models.get(&name)?;
    // All are started before any is read: if the engine refuses one, dropping the others cancels them.
    let places = Arc::clone(&model.encoders);
    let generations = generation::in_background(&places, move || {
        let CompletionRequest { model: name, prompts, suffix, sampling, .. } = request;
        let started = prompts.into_iter().map(|input| {
            let prompt = generation::text_prompt(&name, &model, input, suffix.as_deref())?;
            generation::start(&name, &model, prompt, &sampling, None, "prompt")
        });
        started.collect::<Result<Vec<Generation>, Failure>>()
    })
    .await?;
    let answer = Completion::new(ids::answer_id("cmpl"), ids::unix_time(), name);
    let response = if stream == StreamFields::Whole {
        Json(collect(answer, generations).await?).into_response()
    } else {
        sse::respond(move |sink| send_pieces(sink, answer, generations, stream))
    };
    Ok(body::naming_ignored(response, &ignored))
}

async fn collect(answer: Completion, generations: Vec<Generation>) -> Result<Completion, Failure> {
    let mut choices = Vec::with_capacity(generations.len());
    let mut total = Usage::default();
    for (index, generation) in generations.into_iter().enumerate() {
        let Answer { text, reason, usage, .. } = generation.collect().await?;
        total = total.plus(usage);
        let finish_reason = Some(reason);
        choices.push(CompletionChoice { index, text, logprobs: None, finish_reason });
    }
    Ok(Completion { choices, usage: Some(total), ..answer })
}

/// One choice after the other; the engine works on all of them at once.
async fn send_pieces(
    sink: EventSink,
    answer: Completion,
    generations: Vec<Generation>,
    stream: StreamFields,
) -> Result<(), ClientGone> {
    let mut total = Usage::default();
    for (index, mut generation) in generations.into_iter().enumerate() {
        loop {
            match generation.next().await {
                Ok(Some(Piece::Text { text, .. })) => {
                    sink.data(&answer.piece(index, text, None)).await?;
                }
                Ok(Some(Piece::Finished { text, reason, usage })) => {
                    total = total.plus(usage);
                    sink.data(&answer.piece(index, text, Some(reason))).await?;
                    break;
                }
                Ok(None) => break,
                Err(failure) => {
                    failure.log();
                    return sink.data(&failure.body()).await;
                }
            }
        }
    }
    if stream == StreamFields::PiecesAndUsage {
        sink.data(&answer.usage(total)).await?;
    }
    sink.done().await
}
