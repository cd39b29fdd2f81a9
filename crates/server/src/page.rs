//! The chat page: its document, its files, and the stream of rendered answers it reads.

use std::sync::Arc;
use std::time::{Duration, Instant};

use api::{ChatRequest, FinishReason, RequestError, Usage};
use askama::Template;
use axum::Json;
use axum::body::Body;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::app::SharedApp;
use crate::failure::Failure;
use crate::generation::{self, AnswerSettings, Generations, Piece, Scores};
use crate::markdown::BlockStream;
use crate::sse::{self, ClientGone, EventSink};
use crate::texts::{Language, Texts};
use crate::{assets, background, body};

/// Shortest time between the first token and the last that a speed is worked out from: tokens that were there already say
/// nothing of it.
const SHORTEST_TIMED_S: f64 = 0.1;

/// Time between two renderings of the open block of an answer.
const RENDER_INTERVAL: Duration = Duration::from_millis(100);

/// The document at `/`.
#[derive(Template)]
#[template(path = "chat.html")]
struct ChatPage<'a> {
    texts: &'a Texts,
    /// The same texts for the scripts, as JSON.
    texts_json: String,
    models: Vec<String>,
    is_starting: bool,
    status: String,
}

/// What the address of the page may say.
#[derive(Deserialize)]
pub(crate) struct PageQuery {
    lang: Option<String>,
}

/// `GET /`.
pub(crate) async fn index(
    State(app): State<SharedApp>,
    query: Result<Query<PageQuery>, QueryRejection>,
    headers: HeaderMap,
) -> Result<Response, Failure> {
    let Query(query) = query?;
    let accept = headers.get(header::ACCEPT_LANGUAGE).and_then(|value| value.to_str().ok());
    let texts = Language::choose(query.lang.as_deref(), accept).texts();
    let texts_json = serde_json::to_string(texts).expect("texts are strings");
    let models = app.models.chat_names();
    let (is_starting, status) = (app.models.is_starting(), app.models.status());
    let page = ChatPage { texts, texts_json, models, is_starting, status };
    let html = page.render().expect("the template writes to a string and cannot fail");
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_LANGUAGE, texts.lang),
        (header::CACHE_CONTROL, "no-store"),
        (header::VARY, "accept-language"),
    ];
    Ok((headers, html).into_response())
}

/// `GET /assets/{name}`: the files embedded in the program.
pub(crate) async fn asset(
    name: Result<Path<String>, PathRejection>,
    request: Request,
) -> Result<Response, Failure> {
    let Path(name) = name?;
    match assets::find(&name) {
        Some(asset) => Ok(asset_response(asset, request.headers())),
        None => Err(Failure::NotFound {
            method: "GET".to_owned(),
            path: format!("/assets/{name}").chars().take(200).collect(),
        }),
    }
}

/// `GET /favicon.ico`: browsers ask for it whatever the page says.
pub(crate) async fn favicon(headers: HeaderMap) -> Response {
    assets::find("icon.svg").map_or_else(
        || StatusCode::NOT_FOUND.into_response(),
        |asset| asset_response(asset, &headers),
    )
}

fn asset_response(asset: &assets::Asset, headers: &HeaderMap) -> Response {
    let tag = asset.entity_tag();
    let known =
        headers.get(header::IF_NONE_MATCH).is_some_and(|known| known.as_bytes() == tag.as_bytes());
    let mut response = if known {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        ([(header::CONTENT_TYPE, asset.content_type)], asset.bytes).into_response()
    };
    let headers = response.headers_mut();
    // The names have no version, so that modules can import one another: browsers ask each time and get 304.
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        headers.insert(header::ETAG, tag);
    }
    response
}

/// `GET /chat/status`: what the page asks while no model is there.
pub(crate) async fn status(State(app): State<SharedApp>) -> Json<Value> {
    let models = app.models.chat_names();
    let status = match models.is_empty() {
        true if app.models.is_starting() => "starting",
        true => "idle",
        false => "ok",
    };
    Json(json!({"status": status, "detail": app.models.status(), "models": models}))
}

/// `POST /chat/stream`: takes a chat request of the API and answers with events of its own, which name what they hold:
/// `left_out` `{n_messages}` says that the oldest messages did not fit into the context, `block` `{block, html}` replaces the
/// HTML of a block, `text` `{text}` is Markdown to append, `done` and `error` end.
pub(crate) async fn stream(
    State(app): State<SharedApp>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Failure> {
    let bytes = body::read(&headers, body, &app.limits).await?;
    let request = ChatRequest::parse(&bytes)?;
    // An answer may take minutes, and a body megabytes.
    drop(bytes);
    if request.sampling.n_answers > 1 {
        let (param, got) = ("n".to_owned(), request.sampling.n_answers.to_string());
        let accepted = "the page shows one answer";
        return Err(RequestError::Unsupported { param, got, accepted }.into());
    }
    let model = app.models.get(&request.model)?;
    let places = Arc::clone(&model.encoders);
    let (generations, n_left_out) = background::run_in_turn(&places, move || {
        let ChatRequest { model: name, messages, sampling, .. } = request;
        let (prompt, n_left_out) = generation::recent_chat_prompt(&name, &model, messages)?;
        let scores = Scores::default();
        let settings = AnswerSettings::new(&model, &sampling, scores)?;
        let started = generation::start(&name, &model, &prompt, &settings, "messages")?;
        Ok((Generations::new(started), n_left_out))
    })
    .await?;
    Ok(sse::respond(async move |sink| {
        if n_left_out > 0 {
            sink.named("left_out", &json!({ "n_messages": n_left_out })).await?;
        }
        send_blocks(sink, app, generations).await
    }))
}

/// The last event of a complete answer.
#[derive(Serialize)]
struct Done {
    finish_reason: FinishReason,
    usage: Usage,
    /// From the first to the last token.
    tokens_per_s: Option<f64>,
}

/// An answer on its way to the page.
#[derive(Default)]
struct Answer {
    blocks: BlockStream,
    /// Markdown that has not been sent.
    unsent: String,
    first_token: Option<Instant>,
}

impl Answer {
    fn push(&mut self, text: &str) {
        self.first_token.get_or_insert_with(Instant::now);
        self.blocks.push(text);
        self.unsent.push_str(text);
    }

    async fn flush(&mut self, sink: &EventSink, app: &SharedApp) -> Result<(), ClientGone> {
        for update in self.blocks.take_updates(&app.markdown) {
            sink.named("block", &update).await?;
        }
        if !self.unsent.is_empty() {
            let text = std::mem::take(&mut self.unsent);
            sink.named("text", &json!({ "text": text })).await?;
        }
        Ok(())
    }
}

async fn send_blocks(
    sink: EventSink,
    app: SharedApp,
    mut generations: Generations,
) -> Result<(), ClientGone> {
    let mut answer = Answer::default();
    let mut next_flush = tokio::time::Instant::now();
    loop {
        let piece = tokio::select! {
            biased;
            () = tokio::time::sleep_until(next_flush), if !answer.unsent.is_empty() => {
                answer.flush(&sink, &app).await?;
                next_flush = tokio::time::Instant::now() + RENDER_INTERVAL;
                continue;
            }
            piece = generations.next() => piece,
        };
        match piece {
            Ok(Some((_, Piece::Prompt(_)))) => {}
            Ok(Some((_, Piece::Text { text, .. }))) => answer.push(&text),
            Ok(Some((_, Piece::Finished { text, reason, usage }))) => {
                answer.push(&text);
                answer.blocks.finish();
                answer.flush(&sink, &app).await?;
                let seconds = answer.first_token.map(|start| start.elapsed().as_secs_f64());
                let n_timed = usage.completion_tokens.saturating_sub(1);
                let tokens_per_s = seconds
                    .filter(|&seconds| seconds >= SHORTEST_TIMED_S && n_timed > 0)
                    .map(|seconds| n_timed as f64 / seconds);
                return sink
                    .named("done", &Done { finish_reason: reason, usage, tokens_per_s })
                    .await;
            }
            Ok(None) => return Ok(()),
            Err(failure) => {
                failure.log();
                answer.blocks.finish();
                answer.flush(&sink, &app).await?;
                return sink.named("error", &failure.body()).await;
            }
        }
    }
}
