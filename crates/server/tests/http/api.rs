//! The API: answers whole and in pieces, and what is refused.

use serde_json::{Value, json};

use crate::client::{Connection, get, post};
use crate::fixture::{self, Fixture, chat};

const CHAT: &str = "/v1/chat/completions";

fn whole_text(fixture: &Fixture, more: &Value) -> (String, Value) {
    let body = post(fixture.address(), CHAT, &chat(more)).json();
    let choice = &body["choices"][0];
    (choice["message"]["content"].as_str().unwrap().to_owned(), choice["finish_reason"].clone())
}

#[test]
fn a_chat_answer_has_text_counts_and_a_reason() {
    let fixture = fixture::start();
    let response = post(fixture.address(), CHAT, &chat(&json!({"max_tokens": 12})));
    assert_eq!(response.status, 200);
    let body = response.json();
    assert_eq!(body["object"], "chat.completion");
    assert_eq!(body["model"], "tiny");
    let usage = &body["usage"];
    assert_eq!(usage["completion_tokens"], 12);
    assert_eq!(
        usage["total_tokens"].as_u64().unwrap(),
        usage["prompt_tokens"].as_u64().unwrap() + 12
    );
    assert_eq!(body["choices"][0]["finish_reason"], "length");
    assert_eq!(body["choices"][0]["message"]["role"], "assistant");
}

#[test]
fn tokens_are_scored_where_that_is_asked_for() {
    let fixture = fixture::start();
    let more = json!({"max_tokens": 12, "temperature": 0, "logprobs": true, "top_logprobs": 2});
    let body = post(fixture.address(), CHAT, &chat(&more)).json();
    let content = body["choices"][0]["logprobs"]["content"].as_array().unwrap();
    assert_eq!(content.len(), 12);
    let bytes: Vec<u8> = content
        .iter()
        .flat_map(|token| token["bytes"].as_array().unwrap())
        .map(|byte| u8::try_from(byte.as_u64().unwrap()).unwrap())
        .collect();
    let text = body["choices"][0]["message"]["content"].as_str().unwrap();
    assert_eq!(String::from_utf8_lossy(&bytes).trim(), text.trim());
    for token in content {
        // Greedy: the token is the likeliest.
        assert_eq!(token["logprob"], token["top_logprobs"][0]["logprob"]);
        assert_eq!(token["top_logprobs"].as_array().unwrap().len(), 2);
    }
    // The same in pieces.
    let mut more = more;
    more["stream"] = json!(true);
    let events = post(fixture.address(), CHAT, &chat(&more)).events();
    let pieces: Vec<Value> = events
        .iter()
        .filter_map(|(_, data)| serde_json::from_str::<Value>(data).ok())
        .flat_map(|event| {
            event["choices"][0]["logprobs"]["content"].as_array().cloned().unwrap_or_default()
        })
        .collect();
    assert_eq!(&pieces, content);
}

#[test]
fn equal_seeds_give_equal_answers_and_greedy_ignores_the_seed() {
    let fixture = fixture::start();
    let text = |more: Value| whole_text(&fixture, &more).0;
    assert_eq!(text(json!({"seed": 1})), text(json!({"seed": 1})));
    assert_ne!(text(json!({"seed": 1})), text(json!({"seed": 2})));
    assert_eq!(
        text(json!({"seed": 1, "temperature": 0})),
        text(json!({"seed": 2, "temperature": 0}))
    );
}

#[test]
fn pieces_come_in_order_and_make_the_whole() {
    let fixture = fixture::start();
    let (expected, reason) = whole_text(&fixture, &json!({"max_tokens": 40}));
    let more = json!({"max_tokens": 40, "stream": true, "stream_options": {"include_usage": true}});
    let response = post(fixture.address(), CHAT, &chat(&more));
    assert_eq!(response.header("content-type"), Some("text/event-stream; charset=utf-8"));
    let events: Vec<String> = response.events().into_iter().map(|(_, data)| data).collect();
    let (done, events) = events.split_last().unwrap();
    assert_eq!(done, "[DONE]");
    let events: Vec<Value> =
        events.iter().map(|data| serde_json::from_str(data).unwrap()).collect();
    let (usage, events) = events.split_last().unwrap();
    assert_eq!(usage["choices"], json!([]));
    assert_eq!(usage["usage"]["completion_tokens"], 40);
    let (end, events) = events.split_last().unwrap();
    assert_eq!(end["choices"][0]["finish_reason"], reason);
    assert_eq!(end["choices"][0]["delta"], json!({}));
    assert_eq!(events[0]["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
    let mut text = String::new();
    for event in events {
        assert_eq!(event["id"], usage["id"]);
        assert_eq!(event["choices"][0]["finish_reason"], Value::Null);
        text.push_str(event["choices"][0]["delta"]["content"].as_str().unwrap());
    }
    assert_eq!(text, expected);
}

#[test]
fn a_stream_without_the_option_has_no_usage() {
    let fixture = fixture::start();
    let response = post(fixture.address(), CHAT, &chat(&json!({"max_tokens": 3, "stream": true})));
    assert!(!response.body.contains("usage"), "{}", response.body);
    assert!(response.body.ends_with("data: [DONE]\n\n"));
}

#[test]
fn a_stop_string_ends_the_answer_before_it_in_both_forms() {
    let fixture = fixture::start();
    let (whole, _) = whole_text(&fixture, &json!({"max_tokens": 60}));
    // Any three characters from the middle; the answer ends before their first occurrence.
    let stop: String = whole.chars().skip(20).take(3).collect();
    let expected = &whole[..whole.find(&stop).unwrap()];
    let more = json!({"max_tokens": 60, "stop": [stop, "never said"]});
    let (text, reason) = whole_text(&fixture, &more);
    assert_eq!((text.as_str(), reason), (expected, json!("stop")));
    let mut streamed = chat(&more);
    streamed["stream"] = json!(true);
    let mut text = String::new();
    for (_, data) in post(fixture.address(), CHAT, &streamed).events() {
        if let Ok(event) = serde_json::from_str::<Value>(&data) {
            text.push_str(event["choices"][0]["delta"]["content"].as_str().unwrap_or_default());
        }
    }
    assert_eq!(text, expected);
}

#[test]
fn an_answer_without_limit_ends_with_the_context() {
    let fixture = fixture::start();
    let body = post(fixture.address(), CHAT, &chat(&json!({"temperature": 0}))).json();
    let total = body["usage"]["total_tokens"].as_u64().unwrap();
    let reason = body["choices"][0]["finish_reason"].as_str().unwrap();
    assert!(total == 200 || reason == "stop", "{total} {reason}");
    let none = post(fixture.address(), CHAT, &chat(&json!({"max_tokens": 0}))).json();
    assert_eq!(none["choices"][0]["message"]["content"], "");
    assert_eq!(none["choices"][0]["finish_reason"], "length");
}

#[test]
fn text_completions_take_texts_and_ids_and_several_at_once() {
    let fixture = fixture::start();
    let complete = |prompt: Value, stream: bool| {
        let body = json!({"model": "tiny", "prompt": prompt, "temperature": 0, "max_tokens": 9, "stream": stream});
        post(fixture.address(), "/v1/completions", &body)
    };
    let one = complete(json!("le vent"), false).json();
    let text = |body: &Value, i: usize| body["choices"][i]["text"].as_str().unwrap().to_owned();
    let two = complete(json!(["la mer", "le vent"]), false).json();
    assert_eq!(two["choices"][1]["index"], 1);
    assert_eq!(text(&two, 1), text(&one, 0));
    assert_eq!(two["usage"]["completion_tokens"], 18);
    let mut streamed = [String::new(), String::new()];
    for (_, data) in complete(json!(["la mer", "le vent"]), true).events() {
        if let Ok(event) = serde_json::from_str::<Value>(&data) {
            let index = event["choices"][0]["index"].as_u64().unwrap() as usize;
            streamed[index].push_str(&text(&event, 0));
        }
    }
    assert_eq!(streamed, [text(&two, 0), text(&two, 1)]);
    let ids = complete(json!([1, 2, 3]), false).json();
    assert_eq!(ids["usage"]["prompt_tokens"], 3);
    let wrong = complete(json!([1, 100_000]), false);
    assert_eq!((wrong.status, &wrong.error()["param"]), (400, &json!("prompt")));
}

#[test]
fn a_model_without_the_tokens_for_gaps_fills_none() {
    let fixture = fixture::start();
    let body = json!({"model": "tiny", "prompt": "le ", "suffix": " vent"});
    let refused = post(fixture.address(), "/v1/completions", &body);
    assert_eq!((refused.status, &refused.error()["param"]), (400, &json!("suffix")));
    assert_eq!(refused.error()["code"], "no_fill_in_the_middle");
}

#[test]
fn models_are_listed_and_found_by_name() {
    let fixture = fixture::start();
    let list = get(fixture.address(), "/v1/models").json();
    assert_eq!(list["data"][0]["id"], "tiny");
    assert_eq!(list["data"][0]["max_context_length"], 200);
    let one = get(fixture.address(), "/v1/models/tiny");
    assert_eq!(one.json(), list["data"][0]);
    assert_eq!(get(fixture.address(), "/v1/models/other").status, 404);
}

#[test]
fn addresses_that_cannot_be_read_are_json_errors() {
    let fixture = fixture::start();
    for path in ["/v1/models/%FF", "/assets/%FF", "/?lang=fr&lang=en"] {
        let response = get(fixture.address(), path);
        assert_eq!(response.status, 400, "{path}");
        assert_eq!(response.error()["code"], "invalid_address", "{path}");
    }
}

#[test]
fn an_unknown_model_is_answered_with_the_names_there_are() {
    let fixture = fixture::start();
    let response = post(fixture.address(), CHAT, &chat(&json!({"model": "gpt-4"})));
    let error = response.error();
    assert_eq!(response.status, 404);
    assert_eq!((&error["param"], &error["code"]), (&json!("model"), &json!("model_not_found")));
    let message = error["message"].as_str().unwrap();
    assert!(message.contains("`gpt-4`") && message.contains("`tiny`"), "{message}");
}

#[test]
fn a_prompt_longer_than_the_context_is_refused_with_both_numbers() {
    let fixture = fixture::start();
    let long = json!([{"role": "user", "content": "xyz ".repeat(300)}]);
    let response = post(fixture.address(), CHAT, &chat(&json!({"messages": long})));
    let error = response.error();
    assert_eq!(response.status, 400);
    assert_eq!(error["code"], "context_length_exceeded");
    assert_eq!(error["param"], "messages");
    let message = error["message"].as_str().unwrap();
    assert!(message.contains(" 200 tokens"), "{message}");
    assert!(message.starts_with("the prompt has "), "{message}");
}

#[test]
fn conversations_out_of_turn_are_refused_and_fields_are_named() {
    let fixture = fixture::start();
    let twice = json!([{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]);
    let response = post(fixture.address(), CHAT, &chat(&json!({"messages": twice})));
    assert_eq!((response.status, &response.error()["param"]), (400, &json!("messages")));
    let response = post(fixture.address(), CHAT, &chat(&json!({"temperature": 9})));
    assert_eq!((response.status, &response.error()["param"]), (400, &json!("temperature")));
    let response = post(fixture.address(), CHAT, &chat(&json!({"max_tokens": 1, "colour": 1})));
    assert_eq!(response.status, 200);
    assert_eq!(response.header("x-galerne-ignored-fields"), Some("colour"));
}

#[test]
fn a_model_without_a_template_continues_text_only() {
    let fixture = fixture::start();
    let mut base = fixture::model(50, engine::EngineLimits::default());
    base.template = None;
    fixture.models.add("base", base).unwrap();
    let response = post(fixture.address(), CHAT, &chat(&json!({"model": "base"})));
    assert_eq!((response.status, &response.error()["code"]), (400, &json!("no_chat_template")));
    let body = json!({"model": "base", "prompt": "le vent", "max_tokens": 2});
    assert_eq!(post(fixture.address(), "/v1/completions", &body).status, 200);
    let cards = get(fixture.address(), "/v1/models").json();
    assert_eq!(cards["data"][1]["capabilities"]["completion_chat"], false);
}

#[test]
fn one_connection_serves_many_requests() {
    let fixture = fixture::start();
    let mut connection = Connection::open(fixture.address());
    let body = chat(&json!({"max_tokens": 2, "stream": true})).to_string();
    for _ in 0..3 {
        connection.request("GET", "/health", &[], b"");
        assert_eq!(connection.response().json()["status"], "ok");
        connection.request("POST", CHAT, &[], body.as_bytes());
        assert!(connection.response().body.ends_with("data: [DONE]\n\n"));
        connection.request("POST", CHAT, &[], b"nonsense");
        assert_eq!(connection.response().status, 400);
    }
}
