//! Reads a request body within its bounds, and tells the client which of its fields counted for nothing.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::Response;
use hyper::body::Body as _;

use crate::config::ServerLimits;
use crate::failure::Failure;

/// The whole body, or a failure once it is too large or too slow.
pub(crate) async fn read(
    headers: &HeaderMap,
    body: Body,
    limits: &ServerLimits,
) -> Result<Bytes, Failure> {
    let limit_bytes = limits.max_body_bytes;
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok());
    let announced = announced.and_then(|length| length.parse::<u64>().ok());
    let too_large = |length: u64| length > limit_bytes as u64;
    if announced.is_some_and(too_large) || too_large(body.size_hint().lower()) {
        return Err(Failure::BodyTooLarge { limit_bytes });
    }
    let reading = axum::body::to_bytes(body, limit_bytes);
    match tokio::time::timeout(limits.body_timeout, reading).await {
        Err(_) => Err(Failure::BodyTimeout { limit_s: whole_seconds(limits.body_timeout) }),
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(error)) if is_length_limit(&error) => Err(Failure::BodyTooLarge { limit_bytes }),
        Ok(Err(_)) => Err(Failure::BodyBroken),
    }
}

fn whole_seconds(duration: Duration) -> u64 {
    duration.as_secs().max(1)
}

/// A body without a length is too large if the reader gave up at the limit rather than at an error of the connection.
fn is_length_limit(error: &axum::Error) -> bool {
    let mut source: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = source {
        if error.is::<hyper::Error>() {
            return false;
        }
        source = error.source();
    }
    true
}

/// Names the fields that were not understood in a header of the response.
pub(crate) fn naming_ignored(mut response: Response, ignored: &[String]) -> Response {
    if ignored.is_empty() {
        return response;
    }
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_-.[]".contains(c);
    let names: Vec<String> = ignored
        .iter()
        .map(|name| name.chars().map(|c| if is_plain(c) { c } else { '?' }).collect())
        .collect();
    if let Ok(value) = HeaderValue::from_str(&names.join(", ")) {
        response.headers_mut().insert("x-galerne-ignored-fields", value);
    }
    response
}
