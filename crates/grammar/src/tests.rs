//! Answers drawn at random from what a mask allows: each is what was asked for.

use engine::{TokenMask, TokenSet};
use testkit::random::Rng;
use tokenizer::{BpeTrainer, TrainOptions};

use super::*;

/// Ids that the model has beyond those of the tokenizer.
const N_BEYOND: usize = 5;

fn tokenizer() -> Tokenizer {
    let mut trainer = BpeTrainer::new(TrainOptions { vocab_size: 300, ..TrainOptions::default() });
    trainer.feed(
        r#"{"name": "Ada", "age": 36, "tags": ["red"]} {"name": "Eve", "age": 36, "tags": ["red", "green"]} yes no maybe,
        the green and the red, 2026-11-27 and 2026-11-28 [true, false, null, true, false] maybe yes, maybe no, the name"#,
    );
    trainer.train().unwrap()
}

fn compiler(tokenizer: &Tokenizer) -> GrammarCompiler {
    let vocab_size = tokenizer.vocab_size() + N_BEYOND;
    GrammarCompiler::new(tokenizer, vocab_size, &[tokenizer.eos_id()]).unwrap()
}

/// Draws allowed tokens until the end, or until there are `max_tokens`; then none.
fn draw(
    tokenizer: &Tokenizer,
    mut mask: GrammarMask,
    rng: &mut Rng,
    max_tokens: usize,
) -> Option<String> {
    let mut token_ids = Vec::new();
    let mut allowed = TokenSet::none_of(tokenizer.vocab_size() + N_BEYOND);
    while token_ids.len() < max_tokens {
        allowed.clear();
        mask.allowed(&mut allowed).unwrap();
        let ids: Vec<u32> = (0..tokenizer.vocab_size() as u32 + N_BEYOND as u32)
            .filter(|&id| allowed.contains(id))
            .collect();
        assert!(ids.iter().all(|&id| !tokenizer.is_control(id) || id == tokenizer.eos_id()));
        assert!(ids.iter().all(|&id| (id as usize) < tokenizer.vocab_size()));
        let id = ids[rng.below(ids.len())];
        mask.push(id).unwrap();
        if id == tokenizer.eos_id() {
            return Some(tokenizer.decode(&token_ids));
        }
        token_ids.push(id);
    }
    None
}

/// Many answers that came to their end.
fn answers(grammar: &Grammar) -> Vec<String> {
    let tokenizer = tokenizer();
    let compiler = compiler(&tokenizer);
    let mut rng = Rng::new(9);
    let drawn =
        (0..60).filter_map(|_| draw(&tokenizer, compiler.compile(grammar).unwrap(), &mut rng, 400));
    let drawn: Vec<String> = drawn.collect();
    assert!(drawn.len() > 20, "{} of 60 came to an end", drawn.len());
    drawn
}

#[test]
fn a_choice_is_one_of_its_texts() {
    let texts = ["yes", "no \"quoted\"\n", "maybe", "été"].map(str::to_owned).to_vec();
    let mut seen = answers(&Grammar::Choice(texts.clone()));
    seen.sort();
    seen.dedup();
    let mut expected = texts;
    expected.sort();
    assert_eq!(seen, expected, "all of them come, and no other");
}

#[test]
fn a_regular_expression_matches_the_whole_answer() {
    for answer in answers(&Grammar::Regex(r"[0-9]{4}-[0-9]{2}".to_owned())) {
        let (year, month) = answer.split_once('-').unwrap();
        assert!(year.len() == 4 && month.len() == 2, "{answer}");
        assert!(year.bytes().chain(month.bytes()).all(|byte| byte.is_ascii_digit()), "{answer}");
    }
}

#[test]
fn json_keeps_its_schema() {
    let schema = json!({
        "type": "object",
        "properties": {
            "colour": {"enum": ["red", "green"]},
            "age": {"type": "integer", "minimum": 3, "maximum": 120},
            "tags": {"type": "array", "items": {"$ref": "#/$defs/tag"}, "maxItems": 2}
        },
        "required": ["colour", "age"],
        "additionalProperties": false,
        "$defs": {"tag": {"type": "string", "maxLength": 4}}
    });
    let mut n_tagged = 0;
    for answer in answers(&Grammar::JsonSchema(schema)) {
        let value: Value = serde_json::from_str(&answer).unwrap();
        let object = value.as_object().unwrap();
        assert!(object.keys().all(|key| ["colour", "age", "tags"].contains(&key.as_str())));
        assert!(object["colour"] == "red" || object["colour"] == "green", "{answer}");
        assert!((3..=120).contains(&object["age"].as_i64().unwrap()), "{answer}");
        if let Some(tags) = object.get("tags") {
            n_tagged += 1;
            let tags = tags.as_array().unwrap();
            assert!(tags.len() <= 2);
            assert!(tags.iter().all(|tag| tag.as_str().unwrap().chars().count() <= 4), "{answer}");
        }
    }
    assert!(n_tagged > 0);
}

/// Greed for space ends: after one blank, or a line break and 32 blanks, something else must come.
#[test]
fn space_in_json_is_bounded() {
    let tokenizer = tokenizer();
    let compiler = compiler(&tokenizer);
    let byte = |text: &str| tokenizer.encode(text)[0];
    let mut allowed = TokenSet::none_of(tokenizer.vocab_size());
    for (before, n_blanks) in [("[", 1), ("[\n", 32)] {
        let mut mask = compiler.compile(&Grammar::JsonSchema(json!(true))).unwrap();
        before.chars().for_each(|c| mask.push(byte(&c.to_string())).unwrap());
        for n in 0..=n_blanks {
            allowed.clear();
            mask.allowed(&mut allowed).unwrap();
            assert!(allowed.contains(byte("1")), "after {n} blanks");
            assert_eq!(allowed.contains(byte(" ")), n < n_blanks, "after {n} blanks");
            if n < n_blanks {
                mask.push(byte(" ")).unwrap();
            }
        }
    }
}

#[test]
fn lark_grammars_are_followed() {
    let grammar = "start: pair (\",\" pair)?\npair: /[a-c]/ \"=\" /[0-9]/\n";
    for answer in answers(&Grammar::Lark(grammar.to_owned())) {
        for pair in answer.split(',') {
            assert!(matches!(pair.as_bytes(), [b'a'..=b'c', b'=', b'0'..=b'9']), "{answer}");
        }
    }
}

#[test]
fn what_cannot_be_followed_is_refused_in_one_line() {
    let tokenizer = tokenizer();
    let compiler = compiler(&tokenizer);
    let lark = |text: &str| Grammar::Lark(text.to_owned());
    let refused = [
        (Grammar::JsonSchema(json!({"type": "strin"})), "the JSON schema"),
        (Grammar::JsonSchema(json!({"not": {"type": "string"}})), "the JSON schema"),
        (Grammar::JsonSchema(json!({"$ref": "https://example.org/schema"})), "the JSON schema"),
        (Grammar::JsonSchema(json!(false)), "the JSON schema"),
        (Grammar::Regex("a(b".to_owned()), "the regular expression"),
        (Grammar::Regex("(".repeat(100_000)), "the regular expression"),
        (Grammar::Choice(Vec::new()), "the choice"),
        (lark("start: unknown\n"), "the grammar"),
        (lark(""), "the grammar"),
        (lark(&"(".repeat(100_000)), "the grammar"),
    ];
    for (grammar, what) in refused {
        let shown = format!("{grammar:.60?}");
        let Err(error) = compiler.compile(&grammar) else { panic!("{shown} is accepted") };
        let error = error.to_string();
        assert!(error.starts_with(&format!("{what} cannot be followed: ")), "{shown}: {error}");
        assert!(!error.contains('\n') && error.len() < 600, "{shown}: {error}");
    }
}

/// As many levels as fit into the longest grammar between a beginning and an end.
fn chain(
    beginning: &str,
    level: impl Fn(usize) -> String,
    end: impl Fn(usize) -> String,
) -> String {
    let mut text = beginning.to_owned();
    for i in 0.. {
        let next = level(i);
        if text.len() + next.len() + end(i + 1).len() > MAX_SOURCE_BYTES {
            return text + &end(i);
        }
        text += &next;
    }
    unreachable!("a level has at least one byte")
}

/// Forms over which the library recurses without a bound, at the greatest size: an error or a mask, and the process goes on.
#[test]
fn the_deepest_grammars_are_refused_or_read() {
    let tokenizer = tokenizer();
    let compiler = compiler(&tokenizer);
    let name = |i: usize| -> String {
        [i / 676, i / 26 % 26, i % 26].map(|i| char::from(b'a' + i as u8)).iter().collect()
    };
    let rules = chain(
        "start: aaa\n",
        |i| format!("{}:{}\n", name(i), name(i + 1)),
        |i| format!("{}: \"x\"\n", name(i)),
    );
    let words = chain(
        "start: AAA\n",
        |i| format!("{}:{}\n", name(i), name(i + 1)).to_uppercase(),
        |i| format!("{}: \"x\"\n", name(i).to_uppercase()),
    );
    let n = rules.lines().count();
    assert!(n > 4000 && words.lines().count() == n, "{n} rules");
    // Chains that mean something are read, whatever stands at their end.
    for text in [rules, words] {
        let mask = compiler.compile(&Grammar::Lark(text)).unwrap();
        assert_eq!(draw(&tokenizer, mask, &mut Rng::new(1), 5).as_deref(), Some("x"));
    }
    for text in [
        chain("start: ", |_| "(".to_owned(), |_| "\"a\"".to_owned()),
        chain("start: ", |_| "a{".to_owned(), |_| String::new()),
        chain("start %if ", |_| "not(".to_owned(), |_| String::new()),
    ] {
        assert!(compiler.compile(&Grammar::Lark(text)).is_err());
    }
    let definitions: serde_json::Map<String, Value> = (0..700)
        .map(|i| (format!("a{i}"), json!({"$ref": format!("#/$defs/a{}", i + 1)})))
        .chain([("a700".to_owned(), json!({"type": "null"}))])
        .collect();
    let properties: serde_json::Map<String, Value> =
        (0..2400).map(|i| (format!("p{i}"), json!({}))).collect();
    for schema in [
        json!({"$ref": "#/$defs/a0", "$defs": definitions}),
        json!({"type": "object", "properties": properties}),
        (0..60).fold(json!({}), |inner, _| json!({"items": inner})),
    ] {
        assert!(schema.to_string().len() < MAX_SOURCE_BYTES, "{}", schema.to_string().len());
        // Read or refused, for too many words: the process goes on.
        drop(compiler.compile(&Grammar::JsonSchema(schema)));
    }
    let long = Grammar::Regex("a".repeat(MAX_SOURCE_BYTES + 1));
    let error = compiler.compile(&long).err().unwrap().to_string();
    assert!(error.ends_with("it has 32769 bytes, at most 32768 are accepted"), "{error}");
}

/// What is made to take long ends in an error, or goes on in bounded steps.
#[test]
fn hostile_grammars_end() {
    let tokenizer = tokenizer();
    let compiler = compiler(&tokenizer);
    let nested = (0..12).fold(
        json!({"type": "string"}),
        |inner, _| json!({"type": "object", "properties": {"a": inner.clone(), "b": inner}}),
    );
    let ambiguous = "start: a a a a a a\na: (\"a\" | \"aa\" | a a)*\n";
    let needs = |first: &str, second: &str| json!({"anyOf": [{"const": "a"}, {"type": "string", "allOf": [{"pattern": first}, {"pattern": second}]}]});
    for grammar in [
        Grammar::Regex("((a{1,900}){1,900}){1,900}".to_owned()),
        Grammar::Regex("(.*a.*b.*c.*d.*e){50}".to_owned()),
        Grammar::Regex(format!("({})*", "(a|b)?".repeat(3000))),
        Grammar::Regex("[^a]*a.{2000}".to_owned()),
        Grammar::Regex("\\w".repeat(MAX_SOURCE_BYTES / 2)),
        Grammar::Lark(ambiguous.to_owned()),
        // Remainders, of which there are as many as the number; and 2^40 states until it is clear that nothing matches.
        Grammar::JsonSchema(json!({"type": "integer", "multipleOf": 99_999_989})),
        Grammar::Lark(
            "start: T\nT: \"a\" | \"b\" (/[01]*1[01]{40}/ & /[01]*0[01]{40}/)\n".to_owned(),
        ),
        Grammar::JsonSchema(needs("^[01]*1[01]{40}$", "^[01]*0[01]{40}$")),
        Grammar::JsonSchema(json!({"type": "array", "minItems": 1_000_000_000_u64})),
        Grammar::JsonSchema(json!({"$ref": "#"})),
        Grammar::JsonSchema(json!({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}})),
        Grammar::JsonSchema(nested),
    ] {
        let Ok(mut mask) = compiler.compile(&grammar) else { continue };
        let mut allowed = TokenSet::none_of(tokenizer.vocab_size());
        let mut rng = Rng::new(1);
        for _ in 0..100 {
            allowed.clear();
            if mask.allowed(&mut allowed).is_err() {
                break;
            }
            let ids: Vec<u32> =
                (0..tokenizer.vocab_size() as u32).filter(|&id| allowed.contains(id)).collect();
            if ids.is_empty() || mask.push(ids[rng.below(ids.len())]).is_err() {
                break;
            }
        }
    }
}

/// The library cuts a text within a character there, which it says with a backtrace.
#[test]
fn a_panic_of_the_library_is_told_without_its_backtrace() {
    let tokenizer = tokenizer();
    let compiler = compiler(&tokenizer);
    let schema = json!({"type": "string", "minLength": "é".repeat(80)});
    let error = compiler.compile(&Grammar::JsonSchema(schema)).err().unwrap().to_string();
    assert_eq!(error, "the JSON schema cannot be followed: it cannot be read");
}

/// A token of text that ends answers, as some models have it, is not taken for text.
#[test]
fn a_token_that_ends_answers_is_no_text() {
    let tokenizer = tokenizer();
    let n = tokenizer.vocab_size();
    let end = tokenizer.encode("e")[0];
    let compiler = GrammarCompiler::new(&tokenizer, n, &[tokenizer.eos_id(), end]).unwrap();
    let mask = compiler.compile(&Grammar::Regex("e[a-f]".to_owned())).unwrap();
    for mut mask in [mask.another(), mask] {
        let mut allowed = TokenSet::none_of(n);
        // The byte alone would end the answer; tokens that begin with it are there or not, so that nothing may come.
        let outcome = mask.allowed(&mut allowed);
        assert!(outcome.is_err() || !allowed.contains(end), "{outcome:?}");
    }
    let plain = GrammarCompiler::new(&tokenizer, n, &[tokenizer.eos_id()]).unwrap();
    let mut mask = plain.compile(&Grammar::Regex("e[a-f]".to_owned())).unwrap();
    let mut allowed = TokenSet::none_of(n);
    mask.allowed(&mut allowed).unwrap();
    assert!(allowed.contains(end));
}

#[test]
fn an_answer_must_be_able_to_end() {
    let tokenizer = tokenizer();
    let n = tokenizer.vocab_size();
    let error = GrammarCompiler::new(&tokenizer, n, &[]).unwrap_err().to_string();
    assert!(error.contains("no token ends an answer"), "{error}");
    let error = GrammarCompiler::new(&tokenizer, n, &[n as u32]).unwrap_err().to_string();
    assert!(error.contains(&format!("token {n} ends answers")), "{error}");
}

#[test]
fn masks_move_between_threads() {
    fn check<T: Send>() {}
    check::<GrammarMask>();
    fn check_sync<T: Send + Sync>() {}
    check_sync::<GrammarCompiler>();
}
