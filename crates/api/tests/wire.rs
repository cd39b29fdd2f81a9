//! What goes over the wire, as clients see it.

use api::{
    AnswerFormat, ChatChoice, ChatChunk, ChatCompletion, ChatLogprobs, ChatRequest, ChatRole,
    Completion, CompletionLogprobs, CompletionRequest, ErrorBody, ErrorObject, FinishReason,
    ModelCard, ModelList, PromptInput, RequestError, StreamFields, TokenLogprob, TopLogprob, Usage,
};
use serde_json::{Value, json};
use testkit::damage::damaged;

const USAGE: Usage = Usage { prompt_tokens: 7, cached_tokens: 4, completion_tokens: 2 };

fn usage_on_the_wire() -> Value {
    json!({
        "prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9,
        "prompt_tokens_details": {"cached_tokens": 4},
    })
}

fn wire(value: &impl serde::Serialize) -> Value {
    serde_json::to_value(value).expect("wire types serialise")
}

fn chat(body: &Value) -> Result<ChatRequest, RequestError> {
    ChatRequest::parse(body.to_string().as_bytes())
}

/// A correct request with one more field.
fn chat_with(name: &str, value: &Value) -> Result<ChatRequest, RequestError> {
    let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]});
    body[name] = value.clone();
    chat(&body)
}

fn completion_with(name: &str, value: &Value) -> Result<CompletionRequest, RequestError> {
    let mut body = json!({"model": "m", "prompt": "hi"});
    body[name] = value.clone();
    CompletionRequest::parse(body.to_string().as_bytes())
}

#[test]
fn chat_completion_has_the_members_clients_read() {
    let (id, model, text) = ("chatcmpl-1".to_owned(), "m".to_owned(), "Oui.".to_owned());
    let choice = ChatChoice::new(0, text, None, FinishReason::Stop);
    let whole = ChatCompletion::new(id, 5, model, vec![choice], USAGE);
    let expected = json!({
        "id": "chatcmpl-1", "object": "chat.completion", "created": 5, "model": "m",
        "choices": [{
            "index": 0,
            "message": {"role": "assistant", "content": "Oui.", "refusal": null},
            "logprobs": null, "finish_reason": "stop",
        }],
        "usage": usage_on_the_wire(),
    });
    assert_eq!(wire(&whole), expected);
}

#[test]
fn chat_chunks_bring_role_text_end_and_usage() {
    let chunk = ChatChunk::new("chatcmpl-1".to_owned(), 5, "m".to_owned());
    let event = |choices: Value| json!({"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 5, "model": "m", "choices": choices});
    let choice = |delta: Value, reason: Value| {
        event(json!([{"index": 3, "delta": delta, "logprobs": null, "finish_reason": reason}]))
    };
    assert_eq!(
        wire(&chunk.role(3)),
        choice(json!({"role": "assistant", "content": ""}), Value::Null)
    );
    let text = chunk.content(3, "é".to_owned(), None);
    assert_eq!(wire(&text), choice(json!({"content": "é"}), Value::Null));
    assert_eq!(wire(&chunk.finish(3, FinishReason::Length)), choice(json!({}), json!("length")));
    let mut usage = event(json!([]));
    usage["usage"] = usage_on_the_wire();
    assert_eq!(wire(&chunk.usage(USAGE)), usage);
}

#[test]
fn text_completion_has_the_members_clients_read() {
    let answer = Completion::new("cmpl-1".to_owned(), 5, "m".to_owned());
    let expected = json!({
        "id": "cmpl-1", "object": "text_completion", "created": 5, "model": "m",
        "choices": [{"index": 1, "text": "x", "logprobs": null, "finish_reason": "stop"}],
    });
    assert_eq!(wire(&answer.piece(1, "x".to_owned(), None, Some(FinishReason::Stop))), expected);
}

fn scored(token: &str, logprob: f32) -> TokenLogprob {
    let bytes = token.as_bytes().to_vec();
    let top = TopLogprob { token: token.to_owned(), logprob, bytes: bytes.clone() };
    TokenLogprob { token: token.to_owned(), logprob, bytes, top_logprobs: vec![top] }
}

#[test]
fn scores_have_the_members_clients_read() {
    let content = vec![scored("é", -0.5)];
    let (id, model, text) = ("chatcmpl-1".to_owned(), "m".to_owned(), "é".to_owned());
    let logprobs = Some(ChatLogprobs { content, refusal: None });
    let choice = ChatChoice::new(0, text, logprobs, FinishReason::Stop);
    let whole = ChatCompletion::new(id, 5, model, vec![choice], USAGE);
    let of_token = json!({"token": "é", "logprob": -0.5, "bytes": [195, 169]});
    let mut entry = of_token.clone();
    entry["top_logprobs"] = json!([of_token]);
    let expected = json!({"content": [entry], "refusal": null});
    assert_eq!(wire(&whole)["choices"][0]["logprobs"], expected);
    let chunk = ChatChunk::new("chatcmpl-1".to_owned(), 5, "m".to_owned());
    let chunk = chunk.content(0, "é".to_owned(), Some(scored("é", -0.5)));
    assert_eq!(wire(&chunk)["choices"][0]["logprobs"], expected);
}

#[test]
fn scores_are_asked_for_with_how_many_likeliest_tokens() {
    assert_eq!(chat_with("logprobs", &json!(true)).unwrap().logprobs, Some(0));
    assert_eq!(chat_with("logprobs", &json!(false)).unwrap().logprobs, None);
    assert_eq!(chat_with("top_logprobs", &json!(3)).unwrap_err().param(), Some("logprobs"));
    let both = json!({
        "model": "m", "messages": [{"role": "user", "content": "hi"}], "logprobs": true, "top_logprobs": 20,
    });
    assert_eq!(chat(&both).unwrap().logprobs, Some(20));
    assert_eq!(chat_with("top_logprobs", &json!(21)).unwrap_err().param(), Some("top_logprobs"));
}

#[test]
fn scores_of_text_completions_are_lists_of_equal_length() {
    let mut logprobs = CompletionLogprobs::default();
    logprobs.push("<s>".to_owned(), None, 0);
    // Of two tokens with one text the likelier is named, and the token that is there is, whether or not it is likely.
    let mut score = scored("b", -3.0);
    let top =
        |token: &str, logprob| TopLogprob { token: token.to_owned(), logprob, bytes: Vec::new() };
    score.top_logprobs = vec![top("\u{fffd}", -0.5), top("\u{fffd}", -1.5)];
    logprobs.push("b".to_owned(), Some(score), 2);
    let mut more = CompletionLogprobs::default();
    more.push("é".to_owned(), Some(scored("é", -0.25)), 3);
    logprobs.append(more);
    let expected = json!({
        "tokens": ["<s>", "b", "é"],
        "token_logprobs": [null, -3.0, -0.25],
        "top_logprobs": [null, {"\u{fffd}": -0.5, "b": -3.0}, {"é": -0.25}],
        "text_offset": [0, 2, 3],
    });
    assert_eq!(wire(&logprobs), expected);
}

#[test]
fn several_answers_are_asked_for_within_a_bound() {
    assert_eq!(chat_with("n", &json!(4)).unwrap().sampling.n_answers, 4);
    assert_eq!(chat_with("n", &json!(null)).unwrap().sampling.n_answers, 1);
    for wrong in [json!(0), json!(33), json!(1.5)] {
        assert_eq!(chat_with("n", &wrong).unwrap_err().param(), Some("n"), "{wrong}");
    }
    let scored = |n: usize| {
        let body = json!({"model": "m", "prompt": "a", "n": n, "logprobs": 20}).to_string();
        CompletionRequest::parse(body.as_bytes())
    };
    assert!(scored(6).is_ok());
    let error = scored(7).unwrap_err();
    assert_eq!(error.to_string(), "`n` is 7, expected at most 6 answers with 20 likeliest tokens");
    let prompts = |n: usize| {
        let body = json!({"model": "m", "prompt": vec!["a"; n], "n": 8, "best_of": 8}).to_string();
        CompletionRequest::parse(body.as_bytes())
    };
    assert_eq!(prompts(4).unwrap().prompts.len(), 4);
    let error = prompts(5).unwrap_err();
    assert_eq!(error.to_string(), "`n` is 8, expected at most 32 answers to all prompts together");
}

#[test]
fn formats_are_read_from_either_dialect() {
    let format = |name, value: Value| {
        chat_with(name, &value).unwrap().sampling.format.map(|(format, param)| {
            assert_eq!(param, name);
            format
        })
    };
    let schema = json!({"type": "object", "properties": {}});
    let by_schema = Some(AnswerFormat::JsonSchema(schema.clone()));
    assert_eq!(format("response_format", json!({"type": "text"})), None);
    let any = Some(AnswerFormat::JsonSchema(json!({"type": "object"})));
    assert_eq!(format("response_format", json!({"type": "json_object", "json_schema": null})), any);
    let named = json!({"name": "n", "schema": schema, "strict": true});
    assert_eq!(
        format("response_format", json!({"type": "json_schema", "json_schema": named})),
        by_schema
    );
    let outputs = |value| format("structured_outputs", value);
    assert_eq!(outputs(json!({"json": schema})), by_schema);
    assert_eq!(outputs(json!({"json": schema.to_string()})), by_schema);
    assert_eq!(outputs(json!({"regex": "a+"})), Some(AnswerFormat::Regex("a+".to_owned())));
    assert_eq!(
        outputs(json!({"grammar": "start: \"a\""})),
        Some(AnswerFormat::Lark("start: \"a\"".to_owned()))
    );
    let texts = ["a", "b"].map(str::to_owned).to_vec();
    assert_eq!(outputs(json!({"choice": texts})), Some(AnswerFormat::Choice(texts)));
    let completion = completion_with("structured_outputs", &json!({"regex": "a+"})).unwrap();
    assert!(completion.sampling.format.is_some());
}

#[test]
fn formats_that_say_nothing_or_two_things_are_refused() {
    let format = |value| json!({"type": value});
    for (name, value, param) in [
        ("response_format", json!({}), "response_format.type"),
        ("response_format", format("xml"), "response_format.type"),
        ("response_format", format("json_schema"), "response_format.json_schema"),
        (
            "response_format",
            json!({"type": "json_schema", "json_schema": {"name": "n"}}),
            "response_format.json_schema.schema",
        ),
        (
            "response_format",
            json!({"type": "json_object", "json_schema": {"schema": {}}}),
            "response_format.json_schema",
        ),
        ("structured_outputs", json!({}), "structured_outputs"),
        ("structured_outputs", json!({"regex": "a", "choice": ["b"]}), "structured_outputs"),
        ("structured_outputs", json!({"choice": []}), "structured_outputs.choice"),
        ("structured_outputs", json!({"choice": ["a", 1]}), "structured_outputs.choice[1]"),
        ("structured_outputs", json!({"json": "{"}), "structured_outputs.json"),
        ("structured_outputs", json!({"json": [1]}), "structured_outputs.json"),
    ] {
        assert_eq!(chat_with(name, &value).expect_err(param).param(), Some(param), "{value}");
    }
    let both = json!({
        "model": "m", "messages": [{"role": "user", "content": "hi"}],
        "response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"},
    });
    assert_eq!(chat(&both).unwrap_err().param(), Some("response_format"));
    let ignored = chat_with("structured_outputs", &json!({"regex": "a", "disable_fallback": true}));
    assert_eq!(ignored.unwrap().ignored_fields, ["structured_outputs.disable_fallback"]);
}

#[test]
fn model_list_satisfies_both_dialects() {
    let list = ModelList::new(vec![ModelCard::new("base".to_owned(), 9, 512)]);
    let expected = json!({"object": "list", "data": [{
        "id": "base", "object": "model", "created": 9, "owned_by": "galerne", "type": "base", "max_context_length": 512,
        "capabilities": {
            "completion_chat": true, "completion_fim": false, "function_calling": false, "fine_tuning": false,
            "vision": false,
        },
    }]});
    assert_eq!(wire(&list), expected);
}

#[test]
fn error_object_always_has_its_four_members() {
    let error = ErrorObject {
        message: "no".to_owned(),
        kind: "invalid_request_error",
        param: None,
        code: None,
    };
    let expected = json!({"error": {"message": "no", "type": "invalid_request_error", "param": null, "code": null}});
    assert_eq!(wire(&ErrorBody { error }), expected);
}

#[test]
fn what_the_python_clients_send_is_accepted() {
    let request = chat(&json!({
        "model": "m",
        "messages": [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": "c", "refusal": null, "tool_calls": null, "prefix": false},
            {"role": "user", "content": "d", "name": "Anne"},
        ],
        "temperature": 0.5, "top_p": 0.9, "max_completion_tokens": 12, "max_tokens": 12, "stop": ["\n", "##"],
        "random_seed": -3, "n": 1, "stream": true, "stream_options": {"include_usage": true},
        "user": "u", "metadata": {"a": "b"}, "store": false, "service_tier": "auto", "parallel_tool_calls": true,
        "tools": [], "tool_choice": "auto", "response_format": {"type": "text"}, "logprobs": false,
        "frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}, "safe_prompt": false, "prompt_mode": null,
    }))
    .expect("a request of the clients");
    let roles: Vec<ChatRole> = request.messages.iter().map(|message| message.role).collect();
    assert_eq!(roles, [ChatRole::System, ChatRole::User, ChatRole::Assistant, ChatRole::User]);
    assert_eq!(request.messages[1].content, "ab");
    assert_eq!(request.sampling.max_tokens, Some(12));
    assert_eq!(request.sampling.seed, Some((-3_i64).cast_unsigned()));
    assert_eq!(request.sampling.stop, ["\n", "##"]);
    assert_eq!(request.stream, StreamFields::PiecesAndUsage);
    assert_eq!(request.ignored_fields, ["messages[3].name"]);
}

#[test]
fn what_would_change_the_answer_is_refused_by_name() {
    let cases = [
        ("tools", json!([{"type": "function"}])),
        ("tool_choice", json!("required")),
        ("min_tokens", json!(5)),
        ("modalities", json!(["audio"])),
        ("reasoning_effort", json!("high")),
        ("safe_prompt", json!(true)),
    ];
    for (name, value) in cases {
        let error = chat_with(name, &value).expect_err(name);
        assert!(matches!(error, RequestError::Unsupported { .. }), "{name}: {error}");
        assert_eq!(error.param(), Some(name));
    }
    assert_eq!(completion_with("best_of", &json!(3)).unwrap_err().param(), Some("best_of"));
}

#[test]
fn settings_of_the_sampler_are_read_within_their_ranges() {
    let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "a"}]});
    for (name, value) in [
        ("min_p", json!(0.25)),
        ("typical_p", json!(0.5)),
        ("repetition_penalty", json!(1.5)),
        ("presence_penalty", json!(-2)),
        ("frequency_penalty", json!(0.5)),
        ("logit_bias", json!({"5": 10, "7": -100})),
    ] {
        body[name] = value;
    }
    let sampling = chat(&body).unwrap().sampling;
    let numbers = [sampling.min_p, sampling.typical_p, sampling.repetition_penalty];
    assert_eq!(numbers, [Some(0.25), Some(0.5), Some(1.5)]);
    let penalties = [sampling.presence_penalty, sampling.frequency_penalty];
    assert_eq!(penalties, [Some(-2.0), Some(0.5)]);
    assert_eq!(sampling.logit_bias, [(5, 10.0), (7, -100.0)]);
    for (name, value, param) in [
        ("min_p", json!(1.5), "min_p"),
        ("repetition_penalty", json!(0), "repetition_penalty"),
        ("presence_penalty", json!(-3), "presence_penalty"),
        ("logit_bias", json!([1]), "logit_bias"),
        ("logit_bias", json!({"x": 1}), "logit_bias"),
        ("logit_bias", json!({"05": 1}), "logit_bias"),
        ("logit_bias", json!({"5": null}), "logit_bias"),
        ("logit_bias", json!({"5": 101}), "logit_bias.5"),
    ] {
        assert_eq!(chat_with(name, &value).expect_err(name).param(), Some(param));
    }
}

#[test]
fn a_suffix_goes_with_texts_only() {
    assert_eq!(completion_with("suffix", &json!("}")).unwrap().suffix.as_deref(), Some("}"));
    for none in [json!(""), json!(null)] {
        assert_eq!(completion_with("suffix", &none).unwrap().suffix, None);
    }
    let echoed = json!({"model": "m", "prompt": "a", "suffix": "}", "echo": true}).to_string();
    assert_eq!(CompletionRequest::parse(echoed.as_bytes()).unwrap_err().param(), Some("echo"));
    let ids = json!({"model": "m", "prompt": [[1, 2], "a"], "suffix": "}"}).to_string();
    assert_eq!(CompletionRequest::parse(ids.as_bytes()).unwrap_err().param(), Some("suffix"));
}

#[test]
fn wrong_types_and_ranges_are_refused_by_name() {
    let long = "x".repeat(api::MAX_STOP_BYTES + 1);
    let cases = [
        ("temperature", json!("hot")),
        ("temperature", json!(2.1)),
        ("temperature", json!(-0.1)),
        ("top_p", json!(1.5)),
        ("top_k", json!(-2)),
        ("max_tokens", json!(-1)),
        ("max_tokens", json!(1.5)),
        ("max_tokens", json!(1e30)),
        ("seed", json!(u64::MAX)),
        ("stream", json!("yes")),
        ("stop", json!(7)),
        ("messages", json!([])),
        ("messages", json!("hi")),
        ("model", json!(3)),
    ];
    for (name, value) in cases {
        let error = chat_with(name, &value).expect_err(name);
        assert_eq!(error.param(), Some(name), "{value}: {error}");
    }
    for stop in [json!([""]), json!([1]), json!([long])] {
        assert_eq!(chat_with("stop", &stop).expect_err("a stop").param(), Some("stop[0]"));
    }
    let many: Vec<String> = (0..=api::MAX_STOP_STRINGS).map(|i| i.to_string()).collect();
    assert_eq!(chat_with("stop", &json!(many)).expect_err("many").param(), Some("stop"));
}

#[test]
fn messages_at_fault_are_named_by_path() {
    let cases = [
        (json!({"content": "x"}), "messages[0].role"),
        (json!({"role": "tool", "content": "x"}), "messages[0].role"),
        (json!({"role": "user"}), "messages[0].content"),
        (json!({"role": "user", "content": 5}), "messages[0].content"),
        (
            json!({"role": "user", "content": [{"type": "image_url"}]}),
            "messages[0].content[0].type",
        ),
        (json!({"role": "user", "content": [{"type": "text"}]}), "messages[0].content[0].text"),
        (json!({"role": "assistant", "content": "x", "tool_calls": [1]}), "messages[0].tool_calls"),
        (json!({"role": "assistant", "content": "x", "prefix": true}), "messages[0].prefix"),
        (json!("hi"), "messages[0]"),
    ];
    for (message, path) in cases {
        let error = chat(&json!({"model": "m", "messages": [message]})).expect_err(path);
        assert_eq!(error.param(), Some(path), "{error}");
    }
}

#[test]
fn different_values_under_two_names_are_a_conflict() {
    let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]});
    body["max_tokens"] = json!(5);
    body["max_completion_tokens"] = json!(6);
    let error = chat(&body).expect_err("two limits");
    assert!(matches!(error, RequestError::Conflict { .. }), "{error}");
}

#[test]
fn prompts_come_as_text_ids_or_lists_of_either() {
    let text = |text: &str| PromptInput::Text(text.to_owned());
    let cases = [
        (json!("a"), vec![text("a")]),
        (json!(["a", "b"]), vec![text("a"), text("b")]),
        (json!([1, 2]), vec![PromptInput::TokenIds(vec![1, 2])]),
        (
            json!([[1], [2, 3]]),
            vec![PromptInput::TokenIds(vec![1]), PromptInput::TokenIds(vec![2, 3])],
        ),
    ];
    for (prompt, expected) in cases {
        let request = completion_with("prompt", &prompt).expect("a prompt");
        assert_eq!(request.prompts, expected);
        assert_eq!(request.sampling.max_tokens, Some(16));
    }
    for (prompt, path) in [
        (json!([]), "prompt"),
        (json!({}), "prompt"),
        (json!([1, -2]), "prompt[1]"),
        (json!([[1.5]]), "prompt[0][0]"),
        (json!(["a", true]), "prompt[1]"),
    ] {
        assert_eq!(completion_with("prompt", &prompt).expect_err("wrong").param(), Some(path));
    }
}

#[test]
fn bodies_that_are_not_objects_are_refused() {
    let deep = "[".repeat(100_000);
    for body in ["", "nonsense", "[1]", "\"text\"", "{\"model\":", deep.as_str()] {
        let error = ChatRequest::parse(body.as_bytes()).expect_err("not an object");
        assert_eq!(error.param(), None, "{error}");
        assert_eq!(error.code(), "invalid_json");
    }
}

#[test]
fn errors_never_repeat_a_long_value() {
    let secret = "s".repeat(500);
    for error in [
        chat_with("n", &json!(secret)).expect_err("n"),
        chat_with("tool_choice", &json!([secret])).expect_err("tool_choice"),
        chat(&json!({"model": "m", "messages": [{"role": secret, "content": "x"}]}))
            .expect_err("role"),
    ] {
        assert!(error.to_string().len() < 200, "{error}");
    }
}

#[test]
fn damaged_requests_are_refused_or_read_and_never_panic() {
    let messages = json!([{"role": "system", "content": "s"}, {"role": "user", "content": "hi"}]);
    let stream = json!({"include_usage": true});
    let chat = json!({"model": "m", "messages": messages, "max_tokens": 12, "temperature": 0.5, "top_p": 0.9,
                      "seed": 3, "stop": ["a", "b"], "stream": true, "stream_options": stream});
    let text = json!({"model": "m", "prompt": [[1, 2], [3]], "max_tokens": 12, "stop": "a"});
    let mut n_read = [0; 2];
    for body in damaged(chat.to_string().as_bytes(), 1, 5_000) {
        n_read[0] += usize::from(ChatRequest::parse(&body).is_ok());
    }
    for body in damaged(text.to_string().as_bytes(), 2, 5_000) {
        n_read[1] += usize::from(CompletionRequest::parse(&body).is_ok());
    }
    assert!(n_read.iter().all(|n| (1..4_000).contains(n)), "{n_read:?} of 5000 are still right");
}
