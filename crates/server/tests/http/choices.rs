//! Several answers, their scores, and the form that they are kept to.

use serde_json::{Value, json};

use crate::client::post;
use crate::fixture::{self, Fixture, chat};

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

fn texts(body: &Value) -> Vec<String> {
    let choices = body["choices"].as_array().unwrap();
    let indices: Vec<u64> =
        choices.iter().map(|choice| choice["index"].as_u64().unwrap()).collect();
    assert!(indices.iter().zip(0..).all(|(&index, i)| index == i), "{indices:?}");
    let text = |choice: &Value| {
        choice["message"]["content"].as_str().or(choice["text"].as_str()).map(str::to_owned)
    };
    choices.iter().map(|choice| text(choice).unwrap()).collect()
}

#[test]
fn several_answers_differ_as_their_seeds_do_and_count_the_prompt_once() {
    let fixture = fixture::start();
    let ask = |more: Value| post(fixture.address(), CHAT, &chat(&more)).json();
    let three = ask(json!({"n": 3, "seed": 20, "max_tokens": 15}));
    for (seed, text) in (20..).zip(texts(&three)) {
        let alone = ask(json!({"seed": seed, "max_tokens": 15}));
        assert_eq!(texts(&alone), [text]);
        assert_eq!(alone["usage"]["prompt_tokens"], three["usage"]["prompt_tokens"]);
    }
    assert_eq!(three["usage"]["completion_tokens"], 45);
    // The same in pieces, each with its index.
    let more = json!({"n": 3, "seed": 20, "max_tokens": 15, "stream": true, "stream_options": {"include_usage": true}});
    let mut streamed = vec![String::new(); 3];
    let mut usage = Value::Null;
    for (_, data) in post(fixture.address(), CHAT, &chat(&more)).events() {
        let Ok(event) = serde_json::from_str::<Value>(&data) else { continue };
        match event["choices"].as_array().unwrap().first() {
            Some(choice) => streamed[choice["index"].as_u64().unwrap() as usize]
                .push_str(choice["delta"]["content"].as_str().unwrap_or_default()),
            None => usage = event["usage"].clone(),
        }
    }
    assert_eq!(streamed, texts(&three));
    assert_eq!(usage["completion_tokens"], 45);
    assert_eq!(usage["prompt_tokens"], three["usage"]["prompt_tokens"]);
}

#[test]
fn text_completions_have_several_answers_to_several_prompts() {
    let fixture = fixture::start();
    let ask = |prompt: Value, more: Value| {
        let mut body = json!({"model": "tiny", "prompt": prompt, "seed": 3, "max_tokens": 9});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        post(fixture.address(), COMPLETIONS, &body).json()
    };
    let four = ask(json!(["la mer", "le vent"]), json!({"n": 2}));
    let of = |prompt: &str| texts(&ask(json!(prompt), json!({"n": 2})));
    assert_eq!(texts(&four), [of("la mer"), of("le vent")].concat());
    let one = ask(json!(["la mer", "le vent"]), json!({}));
    assert_eq!(four["usage"]["prompt_tokens"], one["usage"]["prompt_tokens"]);
    let too_many = json!({"model": "tiny", "prompt": vec!["a"; 20], "n": 2});
    let refused = post(fixture.address(), COMPLETIONS, &too_many);
    assert_eq!((refused.status, &refused.error()["param"]), (400, &json!("n")));
}

/// Scores of a completion, whole and in pieces.
fn scored(fixture: &Fixture, more: &Value) -> (String, Value) {
    let mut body =
        json!({"model": "tiny", "prompt": "le vent de la mer", "temperature": 0, "max_tokens": 6});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let whole = post(fixture.address(), COMPLETIONS, &body).json();
    let choice = &whole["choices"][0];
    body["stream"] = json!(true);
    let mut text = String::new();
    let mut logprobs =
        json!({"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []});
    for (_, data) in post(fixture.address(), COMPLETIONS, &body).events() {
        let Ok(event) = serde_json::from_str::<Value>(&data) else { continue };
        text.push_str(event["choices"][0]["text"].as_str().unwrap());
        for (name, list) in logprobs.as_object_mut().unwrap() {
            let more = event["choices"][0]["logprobs"][name].as_array().cloned();
            list.as_array_mut().unwrap().extend(more.unwrap_or_default());
        }
    }
    assert_eq!(text, choice["text"].as_str().unwrap());
    if !choice["logprobs"].is_null() {
        assert_eq!(logprobs, choice["logprobs"]);
    }
    (text, choice["logprobs"].clone())
}

#[test]
fn an_echoed_prompt_is_text_and_its_tokens_are_scored() {
    let fixture = fixture::start();
    let (answer, logprobs) = scored(&fixture, &json!({}));
    assert_eq!(logprobs, Value::Null);
    let (text, logprobs) = scored(&fixture, &json!({"echo": true}));
    assert_eq!((text, logprobs), (format!("le vent de la mer{answer}"), Value::Null));

    let (text, of_both) = scored(&fixture, &json!({"echo": true, "logprobs": 2}));
    assert_eq!(text, format!("le vent de la mer{answer}"));
    let (text, of_answer) = scored(&fixture, &json!({"logprobs": 2}));
    assert_eq!(text, answer);
    let list = |of: &Value, name: &str| of[name].as_array().unwrap().clone();
    let n_prompt = list(&of_both, "tokens").len() - 6;
    for name in ["tokens", "token_logprobs", "top_logprobs"] {
        assert_eq!(list(&of_both, name)[n_prompt..], list(&of_answer, name)[..], "{name}");
    }
    assert_eq!(
        (&of_both["tokens"][0], &of_both["token_logprobs"][0]),
        (&json!("<s>"), &Value::Null)
    );
    let scores = list(&of_both, "token_logprobs");
    assert!(scores[1..].iter().all(|score| score.as_f64().unwrap() < 0.0), "{scores:?}");
    // Each token of the prompt begins where those before it end; what the model says need not be whole characters.
    let (tokens, offsets) = (list(&of_both, "tokens"), list(&of_both, "text_offset"));
    let mut n_chars = 0;
    for (token, offset) in tokens.iter().zip(&offsets).take(n_prompt).skip(1) {
        assert_eq!(*offset, n_chars, "{tokens:?}");
        n_chars += token.as_str().unwrap().chars().count();
    }
    assert!(offsets.is_sorted_by_key(|offset| offset.as_u64()), "{offsets:?}");
    // Greedy: each generated token is the likeliest, and among at most three.
    for (score, top) in
        list(&of_answer, "token_logprobs").iter().zip(list(&of_answer, "top_logprobs"))
    {
        let top: Vec<f64> =
            top.as_object().unwrap().values().map(|score| score.as_f64().unwrap()).collect();
        assert!(
            top.len() <= 3 && top.iter().all(|other| *other <= score.as_f64().unwrap()),
            "{top:?} {score}"
        );
    }
}

/// As evaluation programs ask: ids, scored, with nothing or one token generated.
#[test]
fn prompts_of_ids_are_scored_though_nothing_is_generated() {
    let fixture = fixture::start();
    let ask = |max_tokens: u32| {
        let body = json!({
            "model": "tiny", "prompt": [[1, 40, 50, 60], [1, 40]], "temperature": 0, "max_tokens": max_tokens,
            "logprobs": 1, "echo": true, "seed": 1234,
        });
        post(fixture.address(), COMPLETIONS, &body).json()
    };
    let (none, one) = (ask(0), ask(1));
    for (index, n) in [(0, 4), (1, 2)] {
        let scores = |body: &Value| {
            body["choices"][index]["logprobs"]["token_logprobs"].as_array().unwrap().clone()
        };
        assert_eq!((scores(&none).len(), scores(&one).len()), (n, n + 1));
        assert_eq!(scores(&none)[..], scores(&one)[..n]);
    }
    // The score of a token after the same tokens is the same.
    let second = |index: usize| &none["choices"][index]["logprobs"]["token_logprobs"][1];
    assert_eq!(second(0), second(1));
}

#[test]
fn answers_keep_to_their_format() {
    let fixture = fixture::start();
    let ask = |more: Value| post(fixture.address(), CHAT, &chat(&more));
    let schema = json!({
        "type": "object", "properties": {"wind": {"enum": ["galerne", "mistral"]}, "force": {"type": "integer", "maximum": 12, "minimum": 0}},
        "required": ["wind", "force"], "additionalProperties": false,
    });
    let format = json!({"type": "json_schema", "json_schema": {"name": "wind", "schema": schema, "strict": true}});
    let body = ask(json!({"response_format": format, "max_tokens": 120, "n": 4})).json();
    for (text, choice) in texts(&body).iter().zip(body["choices"].as_array().unwrap()) {
        assert_eq!(choice["finish_reason"], "stop", "{text}");
        let answer: Value = serde_json::from_str(text).unwrap();
        assert!(answer["wind"] == "galerne" || answer["wind"] == "mistral", "{text}");
        assert!((0..=12).contains(&answer["force"].as_i64().unwrap()), "{text}");
    }
    let outputs = json!({"choice": ["oui", "non"]});
    let text = texts(&ask(json!({"structured_outputs": outputs, "temperature": 0})).json());
    assert!(text == ["oui"] || text == ["non"], "{text:?}");
    let body = json!({"model": "tiny", "prompt": "le vent", "structured_outputs": {"regex": "[0-9]{3}"}, "max_tokens": 9});
    let text = &texts(&post(fixture.address(), COMPLETIONS, &body).json())[0];
    assert!(text.len() == 3 && text.bytes().all(|byte| byte.is_ascii_digit()), "{text}");
}

#[test]
fn formats_that_cannot_be_kept_are_refused_with_the_reason() {
    let fixture = fixture::start();
    let format = json!({"regex": "a(b"});
    let refused = post(fixture.address(), CHAT, &chat(&json!({"structured_outputs": format})));
    assert_eq!((refused.status, &refused.error()["code"]), (400, &json!("invalid_grammar")));
    assert_eq!(refused.error()["param"], "structured_outputs");
    let message = refused.error()["message"].as_str().unwrap().to_owned();
    assert!(message.starts_with("the regular expression cannot be followed: "), "{message}");
    // The next request is none the worse.
    let fine = post(fixture.address(), CHAT, &chat(&json!({"max_tokens": 2})));
    assert_eq!(fine.status, 200);
}
