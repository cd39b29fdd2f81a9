//! Normalisers, pre-tokenisers, post-processors and decoders of `tokenizer.json`: each of the known forms, and nothing
//! else.

use super::{expect, unsupported};
use crate::error::Error;
use crate::split::{OWN_SPLIT, SPACE_SIGN, Split};
use crate::text::FirstSpace;
use crate::tokenizer::Prefix;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

/// Longest part that is read, in bytes of the file: in memory it takes many times that. The longest of published files, a table
/// of a normaliser, has some 300 KiB.
const MAX_PART_BYTES: usize = 1 << 20;

/// Reads a part whose form is looked at later.
pub(super) fn read<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Value, D::Error> {
    let part = <&RawValue>::deserialize(deserializer)?.get();
    let n_bytes = part.len();
    if n_bytes > MAX_PART_BYTES {
        let problem = format!("a part has {n_bytes} bytes, expected at most {MAX_PART_BYTES}");
        return Err(D::Error::custom(problem));
    }
    serde_json::from_str(part).map_err(D::Error::custom)
}

/// The members of a part whose `type` is this.
fn of_type<'a>(value: &'a Value, name: &str) -> Option<&'a Map<String, Value>> {
    let object = value.as_object()?;
    (object.get("type")? == name).then_some(object)
}

/// The list inside a `Sequence`, or the value itself as the only element.
fn sequence<'a>(value: &'a Value, list: &str) -> Option<Vec<&'a Value>> {
    match of_type(value, "Sequence") {
        Some(object) if object.len() == 2 => Some(object.get(list)?.as_array()?.iter().collect()),
        Some(_) => None,
        None => Some(vec![value]),
    }
}

/// Whether a part is a `ByteLevel` with flags and nothing else. What they mean depends on where it stands.
fn byte_level(value: &Value) -> Option<ByteLevel> {
    let object = of_type(value, "ByteLevel")?;
    let flag = |name: &str| match object.get(name) {
        None => Some(true),
        Some(value) => value.as_bool(),
    };
    let known = ["type", "add_prefix_space", "trim_offsets", "use_regex"];
    let found = ByteLevel { adds_space: flag("add_prefix_space")?, splits: flag("use_regex")? };
    flag("trim_offsets")?;
    object.keys().all(|key| known.contains(&key.as_str())).then_some(found)
}

struct ByteLevel {
    adds_space: bool,
    splits: bool,
}

/// The split of a byte-level pre-tokeniser: a `Split` on a known pattern before a `ByteLevel` that only spells bytes, or
/// a `ByteLevel` that splits as GPT-2.
pub(super) fn byte_level_split(value: &Value) -> Result<Split, Error> {
    let refused = |expected: String| unsupported("pre_tokenizer", value, expected);
    let form =
        || "ByteLevel without prefix space, or Split and ByteLevel without regex".to_string();
    let (last, before) = match sequence(value, "pretokenizers").as_deref() {
        Some([last]) => (*last, None),
        Some([split, last]) => (*last, Some(*split)),
        _ => return Err(refused(form())),
    };
    let spelling = byte_level(last).filter(|found| !found.adds_space);
    match (spelling, before) {
        (Some(ByteLevel { splits: true, .. }), None) => Ok(Split::Gpt2),
        (Some(ByteLevel { splits: false, .. }), Some(split)) => {
            let pattern = split_pattern(split).ok_or_else(|| refused(form()))?;
            Split::of_pattern(pattern).ok_or_else(|| {
                let known = [OWN_SPLIT, Split::Cased];
                let known = known.map(|split| split.pattern().unwrap_or_default());
                refused(format!("a known pattern, such as {} or {}", known[0], known[1]))
            })
        }
        _ => Err(refused(form())),
    }
}

/// The pattern of a `Split` that keeps what it matches, one by one. All known patterns match all text, so that nothing
/// lies between the matches, whatever would become of it.
fn split_pattern(value: &Value) -> Option<&str> {
    let object = of_type(value, "Split")?;
    let pattern = object.get("pattern")?.as_object()?;
    let behavior = object.get("behavior")?.as_str()?;
    let invert = object.get("invert")?.as_bool()?;
    let is_kept = matches!((behavior, invert), ("Isolated", _) | ("Removed", true));
    let is_known = is_kept && object.len() == 4 && pattern.len() == 1;
    pattern.get("Regex")?.as_str().filter(|_| is_known)
}

pub(super) fn check_byte_level_decoder(value: &Value) -> Result<(), Error> {
    match byte_level(value) {
        Some(_) => Ok(()),
        None => Err(unsupported("decoder", value, "ByteLevel".to_string())),
    }
}

/// How spaces are treated by a tokeniser of SentencePiece's kind: either the normaliser or the pre-tokeniser replaces
/// them and puts one before the text. Without a split words end where merges must.
pub(super) fn spaces(
    normalizer: &Value,
    pre_tokenizer: &Value,
) -> Result<(Option<Split>, Prefix), Error> {
    if normalizer.is_null() {
        return metaspace(pre_tokenizer).ok_or_else(|| {
            let expected = "Metaspace with the replacement U+2581, or a normalizer that does it";
            unsupported("pre_tokenizer", pre_tokenizer, expected.to_string())
        });
    }
    let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": SPACE_SIGN});
    let prepend = json!({"type": "Prepend", "prepend": SPACE_SIGN});
    let prefix = match sequence(normalizer, "normalizers").as_deref() {
        Some([one]) if **one == replace => Prefix::Never,
        Some([first, second]) if **first == prepend && **second == replace => Prefix::Segments,
        _ => {
            let expected = json!({"type": "Sequence", "normalizers": [prepend, replace]});
            return Err(unsupported("normalizer", normalizer, expected.to_string()));
        }
    };
    expect("pre_tokenizer", pre_tokenizer, &Value::Null)?;
    Ok((None, prefix))
}

fn metaspace(value: &Value) -> Option<(Option<Split>, Prefix)> {
    let object = of_type(value, "Metaspace")?;
    let known = ["type", "replacement", "prepend_scheme", "split", "add_prefix_space"];
    if !object.keys().all(|key| known.contains(&key.as_str())) {
        return None;
    }
    if object.get("replacement")? != SPACE_SIGN {
        return None;
    }
    let scheme = object.get("prepend_scheme").map_or(Some("always"), Value::as_str)?;
    let prefix = match scheme {
        "always" => Prefix::SegmentsWithoutSpace,
        "first" => Prefix::FirstWithoutSpace,
        "never" => Prefix::Never,
        _ => return None,
    };
    if let Some(adds_space) = object.get("add_prefix_space")
        && adds_space != &json!(prefix != Prefix::Never)
    {
        return None;
    }
    let cut = match object.get("split").map_or(Some(true), Value::as_bool)? {
        true => Some(Split::Spaced),
        false => None,
    };
    Some((cut, prefix))
}

/// What the decoder of a tokeniser of SentencePiece's kind does with the first space.
pub(super) fn piece_decoder(value: &Value) -> Result<FirstSpace, Error> {
    let replace = json!({"type": "Replace", "pattern": {"String": SPACE_SIGN}, "content": " "});
    let known = [replace, json!({"type": "ByteFallback"}), json!({"type": "Fuse"})];
    let strip = json!({"type": "Strip", "content": " ", "start": 1, "stop": 0});
    let found = sequence(value, "decoders").unwrap_or_default();
    let begins = found.len() >= known.len() && known.iter().zip(&found).all(|(a, b)| a == *b);
    match found.get(known.len()..) {
        Some([]) if begins => Ok(FirstSpace::Kept),
        Some([last]) if begins && **last == strip => Ok(FirstSpace::Dropped),
        _ => {
            let [replace, fallback, fuse] = known;
            let all = json!({"type": "Sequence", "decoders": [replace, fallback, fuse, strip]});
            Err(unsupported("decoder", value, all.to_string()))
        }
    }
}

/// What a post-processor puts before a text.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Before {
    /// There is no post-processor.
    Unsaid,
    Nothing,
    Token {
        name: String,
        id: u32,
    },
}

/// What stands before a text.
pub(super) fn before_text(value: &Value) -> Result<Before, Error> {
    if value.is_null() {
        return Ok(Before::Unsaid);
    }
    let refused = || {
        let expected = "TemplateProcessing with at most one token before the text".to_string();
        unsupported("post_processor", value, expected)
    };
    let mut before = Before::Nothing;
    let mut n_templates = 0;
    for part in sequence(value, "processors").ok_or_else(refused)? {
        if byte_level(part).is_none() {
            before = before_in_template(part).ok_or_else(refused)?;
            n_templates += 1;
        }
    }
    if n_templates > 1 { Err(refused()) } else { Ok(before) }
}

/// `TemplateProcessing` for one text: nothing or one token, then the text. The template for pairs of texts does not
/// concern language models.
fn before_in_template(value: &Value) -> Option<Before> {
    let object = of_type(value, "TemplateProcessing")?;
    let single = object.get("single")?.as_array()?;
    let text = json!({"Sequence": {"id": "A", "type_id": 0}});
    match single.as_slice() {
        [one] if *one == text => Some(Before::Nothing),
        [first, second] if *second == text => {
            let special = first.as_object().filter(|object| object.len() == 1)?;
            let name = special.get("SpecialToken")?.get("id")?.as_str()?;
            let ids = object.get("special_tokens")?.get(name)?.get("ids")?.as_array()?;
            let [id] = ids.as_slice() else { return None };
            Some(Before::Token { name: name.to_string(), id: u32::try_from(id.as_u64()?).ok()? })
        }
        _ => None,
    }
}
