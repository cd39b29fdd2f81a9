use std::fs;

use serde::Deserialize;
use testkit::golden::workspace_root;

use super::python_json::parse;
use super::*;

#[derive(Deserialize)]
struct Line {
    request: serde_json::Value,
    pieces: Option<Vec<(String, String)>>,
}

/// Every request that mistral-common renders gives the same pieces, and what it refuses is refused.
#[test]
fn requests_are_rendered_as_by_mistral_common() {
    for version in InstructVersion::ALL {
        let path = workspace_root().join(format!("golden/instruct/{}.jsonl", version.name()));
        let text = fs::read_to_string(&path).unwrap();
        let mut n_rendered = 0;
        for (i, line) in text.lines().enumerate() {
            let expected: Line = serde_json::from_str(line).unwrap();
            // Members keep their order when they are read from the text.
            let end = line.rfind(",\"pieces\":").unwrap();
            let request: Result<InstructRequest, _> =
                serde_json::from_str(&line["{\"request\":".len()..end]);
            let request = request.unwrap_or_else(|error| panic!("{error}: {}", expected.request));
            let shown = |result: Vec<Piece>| -> Vec<(String, String)> {
                result
                    .into_iter()
                    .map(|piece| match piece.content {
                        PieceContent::Control(name) => ("control".to_owned(), name.to_owned()),
                        PieceContent::Text(text) => ("text".to_owned(), text),
                    })
                    .collect()
            };
            let got = pieces(version, &request, Ending::AwaitAnswer);
            match (&expected.pieces, got) {
                (Some(expected), Ok(got)) => {
                    n_rendered += 1;
                    assert_eq!(&shown(got), expected, "{} line {i}", version.name());
                }
                (None, Err(_)) => {}
                (expected, got) => {
                    panic!("{} line {i}: {got:?}, expected {expected:?}: {line}", version.name())
                }
            }
        }
        assert!(n_rendered >= 350, "{n_rendered} requests of {}", version.name());
    }
}

#[test]
fn only_what_the_assistant_writes_is_trained() {
    let request: InstructRequest = serde_json::from_str(
        r#"{"messages": [{"role": "user", "content": "u"},
            {"role": "assistant", "content": "a", "tool_calls": [{"id": "123456789", "function": {"name": "f", "arguments": "{}"}}]},
            {"role": "tool", "tool_call_id": "123456789", "content": "r"}, {"role": "user", "content": "v"}]}"#,
    )
    .unwrap();
    for version in [InstructVersion::V7, InstructVersion::V11, InstructVersion::V13] {
        let trained: Vec<PieceContent> = pieces(version, &request, Ending::AwaitAnswer)
            .unwrap()
            .into_iter()
            .filter(|piece| piece.is_trained)
            .map(|piece| piece.content)
            .collect();
        assert_eq!(trained.first(), Some(&PieceContent::Text("a".to_owned())));
        assert_eq!(trained.last(), Some(&PieceContent::Control("</s>")));
        assert!(!trained.contains(&PieceContent::Text("r".to_owned())));
    }
}

#[test]
fn json_is_written_as_python_writes_it() {
    for (text, expected) in [
        ("{\"b\":1,\"a\":[1,2]}", r#"{"b": 1, "a": [1, 2]}"#),
        (" [ ] ", "[]"),
        ("{\"a\":1,\"b\":2,\"a\":3}", r#"{"a": 3, "b": 2}"#),
        ("-0", "0"),
        ("-0.0", "-0.0"),
        ("1E400", "Infinity"),
        ("1e16", "1e+16"),
        ("123456789.0", "123456789.0"),
        ("0.0001", "0.0001"),
        ("0.00001", "1e-05"),
        ("123456789012345678901234567890", "123456789012345678901234567890"),
        ("NaN", "NaN"),
        (r#""\u00e9\ud83d\ude42\u0007/""#, "\"é🙂\\u0007/\""),
    ] {
        assert_eq!(parse(text).map(|json| json.dump()).as_deref(), Some(expected), "{text}");
    }
    let deep = "[".repeat(200) + &"]".repeat(200);
    for text in
        ["", "{", "[1,]", "{\"a\" 1}", "01", "1 2", "\"\n\"", "'a'", "\"\\ud800\"", "tru", &deep]
    {
        assert_eq!(parse(text), None, "{text}");
    }
}

#[test]
fn what_is_wrong_with_a_request_is_said() {
    let error = |json: &str, version| {
        let request = serde_json::from_str(json).unwrap();
        pieces(version, &request, Ending::AwaitAnswer).unwrap_err().to_string()
    };
    let v7 = InstructVersion::V7;
    assert_eq!(
        error(r#"{"messages": []}"#, v7),
        "messages is empty, expected at least one message"
    );
    let tool_first =
        r#"{"messages": [{"role": "user", "content": "u"}, {"role": "tool", "content": "r"}]}"#;
    assert!(error(tool_first, v7).starts_with("messages[1] has role tool"));
    let bad_id = r#"{"messages": [{"role": "user", "content": "u"}, {"role": "assistant",
        "tool_calls": [{"id": "x", "function": {"name": "f", "arguments": ""}}], "prefix": true}]}"#;
    assert!(error(bad_id, v7).contains("9 letters and digits"), "{}", error(bad_id, v7));
    let request = serde_json::from_str(bad_id).unwrap();
    assert!(pieces(InstructVersion::V13, &request, Ending::AwaitAnswer).is_ok());
    let unknown = r#"{"messages": [{"role": "user", "content": "u", "audio": 1}]}"#;
    assert!(serde_json::from_str::<InstructRequest>(unknown).is_err());
}
