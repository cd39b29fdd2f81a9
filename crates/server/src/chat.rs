//! `POST /v1/chat/completions`.

use std::sync::Arc;

use api::{ChatChunk, ChatCompletion, ChatLogprobs, ChatRequest, StreamFields};
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
    let generation = start(&app, request).await?;
    let (id, created) = (ids::answer_id("chatcmpl"), ids::unix_time());
    let response = if stream == StreamFields::Whole {
        let Answer { text, logprobs, reason, usage, .. } = generation.collect().await?;
        let logprobs = is_scored.then_some(ChatLogprobs { content: logprobs, refusal: None });
        Json(ChatCompletion::new(id, created, name, text, logprobs, reason, usage)).into_response()
    } else {
        let chunk = ChatChunk::new(id, created, name);
        sse::respond(move |sink| send_pieces(sink, chunk, generation, stream))
    };
    Ok(body::naming_ignored(response, &ignored))
}

/// Renders and encodes on a thread for blocking work, then hands the prompt to the engine.
async fn start(app: &SharedApp, request: ChatRequest) -> Result<Generation, Failure> {
    let model = app.models.get(&request.model)?;
    let places = Arc::clone(&model.encoders);
    generation::in_background(&places, move || {
        let prompt = generation::chat_prompt(&request.model, &model, request.messages)?;
        let n_top = request.logprobs;
        generation::start(&request.model, &model, prompt, &request.sampling, n_top, "messages")
    })
    .await
}

async fn send_pieces(
    sink: EventSink,
    chunk: ChatChunk,
    mut generation: Generation,
    stream: StreamFields,
) -> Result<(), ClientGone> {
    sink.data(&chunk.role()).await?;
    loop {
        match generation.next().await {
            Ok(Some(Piece::Text { text, logprob })) => {
                sink.data(&chunk.content(text, logprob)).await?;
            }
            Ok(Some(Piece::Finished { text, reason, usage })) => {
                if !text.is_empty() {
                    sink.data(&chunk.content(text, None)).await?;
                }
                sink.data(&chunk.finish(reason)).await?;
                if stream == StreamFields::PiecesAndUsage {
                    sink.data(&chunk.usage(usage)).await?;
                }
                return sink.done().await;
            }
            Ok(None) => return Ok(()),
            Err(failure) => {
                // The status is sent already; clients read an error object in the stream.
                failure.log();
                return sink.data(&failure.body()).await;
            }
        }
    }
}
