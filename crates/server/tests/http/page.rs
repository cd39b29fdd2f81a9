//! The chat page: its document, its files, its stream.

use serde_json::{Value, json};

use crate::client::{get, get_with, post};
use crate::fixture::{self, chat};

#[test]
fn the_page_speaks_the_language_asked_for() {
    let fixture = fixture::start();
    let cases = [
        ("/", None, "en"),
        ("/", Some("fr-FR,fr;q=0.9,en;q=0.5"), "fr"),
        ("/?lang=fr", Some("en"), "fr"),
        ("/?lang=en", Some("fr"), "en"),
        ("/?lang=xx", Some("fr"), "fr"),
    ];
    for (path, accept, expected) in cases {
        let headers: Vec<(&str, &str)> =
            accept.map(|tag| ("Accept-Language", tag)).into_iter().collect();
        let page = get_with(fixture.address(), path, &headers);
        assert_eq!(page.status, 200);
        assert!(page.body.contains(&format!("<html lang=\"{expected}\">")), "{path} {accept:?}");
        assert_eq!(page.header("content-language"), Some(expected));
    }
}

#[test]
fn the_page_has_its_controls_and_nothing_inline_or_from_elsewhere() {
    let fixture = fixture::start();
    let page = get(fixture.address(), "/");
    for id in ["prompt", "send", "stop", "model", "new-chat", "messages", "announce", "to-end"] {
        assert!(page.body.contains(&format!("id=\"{id}\"")), "{id}");
    }
    assert!(page.body.contains("<option value=\"tiny\">"));
    for forbidden in ["<style", " style=", " onclick", "http://", "https://", "<script>"] {
        assert!(!page.body.contains(forbidden), "{forbidden}");
    }
    let policy = page.header("content-security-policy").unwrap();
    assert!(policy.starts_with("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
}

#[test]
fn files_are_served_with_their_type_and_not_sent_twice() {
    let fixture = fixture::start();
    for (name, content_type) in [
        ("chat.css", "text/css; charset=utf-8"),
        ("chat.js", "text/javascript; charset=utf-8"),
        ("icon.svg", "image/svg+xml"),
    ] {
        let path = format!("/assets/{name}");
        let file = get(fixture.address(), &path);
        assert_eq!((file.status, file.header("content-type")), (200, Some(content_type)));
        let tag = file.header("etag").unwrap();
        let again = get_with(fixture.address(), &path, &[("If-None-Match", tag)]);
        assert_eq!((again.status, again.body.len()), (304, 0));
    }
}

#[test]
fn the_stream_brings_blocks_and_text_and_ends_with_the_counts() {
    let fixture = fixture::start();
    let request = chat(&json!({"max_tokens": 80}));
    let whole = post(fixture.address(), "/v1/chat/completions", &request).json();
    let response = post(fixture.address(), "/chat/stream", &request);
    let events: Vec<(String, Value)> = response
        .events()
        .into_iter()
        .map(|(name, data)| (name, serde_json::from_str(&data).unwrap()))
        .collect();
    let text: String = events
        .iter()
        .filter(|(name, _)| name == "text")
        .map(|(_, data)| data["text"].as_str().unwrap())
        .collect();
    assert_eq!(text, whole["choices"][0]["message"]["content"].as_str().unwrap());
    let blocks: Vec<u64> = events
        .iter()
        .filter(|(name, _)| name == "block")
        .map(|(_, data)| data["block"].as_u64().unwrap())
        .collect();
    assert!(!blocks.is_empty() && blocks.is_sorted(), "finished blocks never change: {blocks:?}");
    let (name, done) = events.last().unwrap();
    assert_eq!(name, "done");
    assert_eq!(done["usage"], whole["usage"]);
    assert_eq!(done["finish_reason"], whole["choices"][0]["finish_reason"]);
}

#[test]
fn a_conversation_longer_than_the_context_loses_its_oldest_exchanges_and_says_so() {
    let fixture = fixture::start();
    let mut messages = Vec::new();
    for i in 0..6 {
        messages.push(json!({"role": "user", "content": format!("le vent de la mer, le vent de la terre {i}")}));
        messages.push(
            json!({"role": "assistant", "content": "la galerne est un vent de la mer, dit la mer"}),
        );
    }
    messages.push(json!({"role": "user", "content": "et un autre"}));
    let stream = |messages: &[Value]| {
        let request = chat(&json!({"messages": messages, "max_tokens": 20, "temperature": 0}));
        let events = post(fixture.address(), "/chat/stream", &request).events();
        events
            .into_iter()
            .map(|(name, data)| (name, serde_json::from_str(&data).unwrap()))
            .collect()
    };
    let events: Vec<(String, Value)> = stream(&messages);
    let (name, left_out) = &events[0];
    assert_eq!(name, "left_out");
    let n_left_out = left_out["n_messages"].as_u64().unwrap() as usize;
    assert!(n_left_out > 0 && n_left_out < 12 && n_left_out.is_multiple_of(2), "{n_left_out}");
    let rest: Vec<(String, Value)> = stream(&messages[n_left_out..]);
    let usage = |events: &[(String, Value)]| events.last().unwrap().1["usage"].clone();
    for name in ["prompt_tokens", "completion_tokens"] {
        assert_eq!(usage(&rest)[name], usage(&events)[name]);
    }
    let cached = |events: &[(String, Value)]| {
        usage(events)["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap()
    };
    assert_eq!(cached(&events), 0);
    assert!(cached(&rest) > 100, "the same prompt again is not computed again");
    assert_ne!(rest[0].0, "left_out");
    assert_eq!(stream(&messages[n_left_out - 2..])[0].0, "left_out", "no more is left out");
    // What is left out is not rendered: the template refuses a question without text.
    messages[0]["content"] = json!("");
    assert_eq!(stream(&messages)[0].1["n_messages"], n_left_out);
    let alone = json!([{"role": "user", "content": "xyz ".repeat(300)}]);
    let response = post(fixture.address(), "/chat/stream", &chat(&json!({"messages": alone})));
    assert_eq!(
        (response.status, &response.error()["code"]),
        (400, &json!("context_length_exceeded"))
    );
}
