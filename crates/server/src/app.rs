//! The routes. What is not listed here does not exist; every route passes the guard.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router, middleware};
use engine::EngineLoad;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use crate::config::ServerLimits;
use crate::failure::Failure;
use crate::markdown::MarkdownRenderer;
use crate::registry::ModelRegistry;
use crate::{chat, completions, guard, models, page};

/// What all requests share.
pub(crate) struct App {
    pub(crate) models: ModelRegistry,
    pub(crate) limits: ServerLimits,
    pub(crate) markdown: MarkdownRenderer,
    /// The place for work that looks at all models that can be loaded.
    pub(crate) listing: Arc<Semaphore>,
}

/// What all requests share, as routes take it.
pub(crate) type SharedApp = Arc<App>;

/// The router around a list of models.
pub(crate) fn router(models: ModelRegistry, limits: ServerLimits) -> Router {
    let (markdown, listing) = (MarkdownRenderer::new(), Arc::new(Semaphore::new(1)));
    let app = Arc::new(App { models, limits, markdown, listing });
    let routes = Router::new()
        .route("/", get(page::index))
        .route("/assets/{name}", get(page::asset))
        .route("/favicon.ico", get(page::favicon))
        .route("/chat/status", get(page::status))
        .route("/chat/stream", post(page::stream))
        .route("/health", get(health))
        .route("/models", get(models::states))
        .route("/models/load", post(models::load))
        .route("/models/unload", post(models::unload))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{name}", get(models::one))
        .route("/v1/chat/completions", post(chat::complete))
        .route("/v1/completions", post(completions::complete));
    #[cfg(test)]
    let routes = routes.route("/panic", get(panics)).route("/panic/stream", get(panics_midway));
    routes
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(middleware::from_fn(guard::guard))
        .with_state(app)
}

/// `ok` with status 200 once the server has started, and under `load` what each model's engine does and has done since it was started; models
/// that differ in their adapter share one and its numbers. Until then `starting` with status 503, so that a program can wait for
/// the status alone.
async fn health(State(app): State<SharedApp>) -> Response {
    let loads = app.models.loads();
    let models: Vec<_> = loads.iter().map(|(name, _)| name).collect();
    if app.models.is_starting() {
        let body = json!({"status": "starting", "detail": app.models.status(), "models": []});
        return (StatusCode::SERVICE_UNAVAILABLE, Json(body)).into_response();
    }
    let of_model = |(name, load): &(String, EngineLoad)| (name.clone(), load_of(load));
    let loads: serde_json::Map<_, _> = loads.iter().map(of_model).collect();
    Json(json!({"status": "ok", "models": models, "load": loads})).into_response()
}

fn load_of(load: &EngineLoad) -> Value {
    json!({
        "running": load.n_running,
        "waiting": load.n_waiting,
        "prompt_tokens": load.n_prompt_tokens,
        "cached_tokens": load.n_reused_tokens,
        "preemptions": load.n_preemptions,
        "draft_tokens": load.n_draft_tokens,
        "accepted_tokens": load.n_accepted_tokens,
    })
}

async fn not_found(request: Request) -> Failure {
    let path = request.uri().path().chars().take(200).collect();
    Failure::NotFound { method: request.method().to_string(), path }
}

async fn method_not_allowed(request: Request) -> Failure {
    let path = request.uri().path().chars().take(200).collect();
    Failure::MethodNotAllowed { method: request.method().to_string(), path }
}

#[cfg(test)]
async fn panics() {
    panic!("on purpose");
}

#[cfg(test)]
async fn panics_midway() -> Response {
    crate::sse::respond(async |sink| {
        sink.data(&"first").await?;
        panic!("on purpose");
    })
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Read, Write};
    use std::net::TcpStream;

    use crate::{ModelRegistry, ServerConfig, bind};

    #[test]
    fn a_panic_is_an_answer_and_the_connection_lives_on() {
        let server = bind(ServerConfig::on_port(0)).unwrap().start(ModelRegistry::new()).unwrap();
        let mut stream = BufReader::new(TcpStream::connect(server.address()).unwrap());
        for (path, status) in [("/panic", 500), ("/health", 503), ("/panic", 500)] {
            let head = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
            stream.get_mut().write_all(head.as_bytes()).unwrap();
            let mut length = 0;
            let mut line = String::new();
            stream.read_line(&mut line).unwrap();
            assert!(line.starts_with(&format!("HTTP/1.1 {status} ")), "{line}");
            while line.trim() != "" {
                line.clear();
                stream.read_line(&mut line).unwrap();
                if let Some(value) = line.strip_prefix("content-length: ") {
                    length = value.trim().parse().unwrap();
                }
            }
            let mut body = vec![0; length];
            stream.read_exact(&mut body).unwrap();
            assert!(!String::from_utf8(body).unwrap().contains("on purpose"));
        }
    }

    #[test]
    fn a_panic_in_a_stream_does_not_look_like_its_end() {
        let server = bind(ServerConfig::on_port(0)).unwrap().start(ModelRegistry::new()).unwrap();
        let mut stream = TcpStream::connect(server.address()).unwrap();
        stream.write_all(b"GET /panic/stream HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        // How much arrives before the break is chance; a whole chunked body would end so.
        assert!(!text.ends_with("0\r\n\r\n"), "{text}");
    }
}
