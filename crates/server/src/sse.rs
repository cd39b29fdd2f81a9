//! Server-sent events from a task to a connection, with the client's going away seen at once.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, header};
use axum::response::Response;
use hyper::body::Frame;
use serde::Serialize;
use tokio::sync::mpsc;

/// Events that wait for a slow connection; a task that is further ahead pauses, the tokens of its generation wait in the
/// bounded channel of the engine.
const MAX_WAITING_EVENTS: usize = 32;

/// Quiet time after which a comment is sent, so that proxies keep the connection and a dead one is noticed.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// The task's end.
pub(crate) struct EventSink {
    sender: mpsc::Sender<Item>,
}

enum Item {
    Event(Bytes),
    End,
}

/// The client went away.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ClientGone;

/// A streamed answer; `produce` runs as a task of its own and is dropped as soon as the client goes away.
pub(crate) fn respond<P, F>(produce: P) -> Response
where
    P: FnOnce(EventSink) -> F,
    F: Future<Output = Result<(), ClientGone>> + Send + 'static,
{
    let (sender, receiver) = mpsc::channel(MAX_WAITING_EVENTS);
    let alive = sender.clone();
    let producing = produce(EventSink { sender });
    tokio::spawn(async move {
        let mut producing = std::pin::pin!(producing);
        loop {
            tokio::select! {
                biased;
                outcome = &mut producing => {
                    if outcome.is_ok() {
                        drop(alive.send(Item::End).await);
                    }
                    break;
                }
                () = alive.closed() => break,
                () = tokio::time::sleep(KEEP_ALIVE) => {
                    // A full channel means that events are waiting: no need for a sign of life.
                    drop(alive.try_send(Item::Event(Bytes::from_static(b": still here\n\n"))));
                }
            }
        }
    });
    let mut response = Response::new(Body::new(EventBody { receiver, ended: false }));
    let headers = response.headers_mut();
    headers
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // Proxies that buffer would turn a stream into a wait.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

impl EventSink {
    /// Sends `data: <json>`.
    pub(crate) async fn data(&self, value: &impl Serialize) -> Result<(), ClientGone> {
        self.send(None, &json(value)).await
    }

    /// Sends `event: <name>` and `data: <json>`.
    pub(crate) async fn named(&self, name: &str, value: &impl Serialize) -> Result<(), ClientGone> {
        self.send(Some(name), &json(value)).await
    }

    /// Sends the end mark of the OpenAI dialect.
    pub(crate) async fn done(&self) -> Result<(), ClientGone> {
        self.send(None, "[DONE]").await
    }

    async fn send(&self, name: Option<&str>, data: &str) -> Result<(), ClientGone> {
        let mut event = String::with_capacity(data.len() + 32);
        if let Some(name) = name {
            event.push_str("event: ");
            event.push_str(name);
            event.push('\n');
        }
        event.push_str("data: ");
        event.push_str(data);
        event.push_str("\n\n");
        self.sender.send(Item::Event(Bytes::from(event))).await.map_err(|_| ClientGone)
    }
}

/// JSON has no line breaks outside of strings, and escapes them inside, so it is one `data:` line.
fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("wire types have string keys and finite numbers")
}

/// The connection's end.
struct EventBody {
    receiver: mpsc::Receiver<Item>,
    ended: bool,
}

/// The task panicked; ending the connection tells the client that the answer is not complete.
#[derive(Debug, thiserror::Error)]
#[error("the stream ended before the answer")]
struct Broken;

impl hyper::body::Body for EventBody {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let item = std::task::ready!(self.receiver.poll_recv(context));
        self.ended = !matches!(item, Some(Item::Event(_)));
        Poll::Ready(match item {
            Some(Item::Event(bytes)) => Some(Ok(Frame::data(bytes))),
            Some(Item::End) => None,
            None => Some(Err(Broken)),
        })
    }
}
