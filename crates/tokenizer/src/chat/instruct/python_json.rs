//! JSON as Python's `json` module reads and writes it: members in their order, a space after comma and colon, letters as
//! they are. Models were trained on this form.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt::Write;

/// A JSON value; numbers as they are written.
#[derive(Clone, PartialEq, Debug)]
pub enum Json {
    /// `null`, `true`, `false`, `NaN`, `Infinity`, `-Infinity`.
    Word(&'static str),
    /// A number, in the form that Python writes.
    Number(String),
    /// A text.
    Text(String),
    /// Values.
    Array(Vec<Json>),
    /// Members; of equal names the last value stays, at the place of the first.
    Object(Vec<(String, Json)>),
}

/// Arrays and objects within one another.
const MAX_DEPTH: usize = 128;

/// Reads a text; `None` when it is not JSON.
pub fn parse(text: &str) -> Option<Json> {
    let mut parser = Parser { bytes: text.as_bytes(), text, at: 0 };
    parser.skip_space();
    let value = parser.value(0)?;
    parser.skip_space();
    (parser.at == text.len()).then_some(value)
}

struct Parser<'a> {
    bytes: &'a [u8],
    text: &'a str,
    at: usize,
}

impl Parser<'_> {
    fn skip_space(&mut self) {
        while matches!(self.bytes.get(self.at), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn take(&mut self, word: &str) -> Option<()> {
        self.text[self.at..].starts_with(word).then(|| self.at += word.len())
    }

    fn value(&mut self, depth: usize) -> Option<Json> {
        if depth > MAX_DEPTH {
            return None;
        }
        match *self.bytes.get(self.at)? {
            b'"' => self.string().map(Json::Text),
            b'[' => self.array(depth),
            b'{' => self.object(depth),
            _ => {
                for word in ["null", "true", "false", "NaN", "Infinity", "-Infinity"] {
                    if self.take(word).is_some() {
                        return Some(Json::Word(word));
                    }
                }
                self.number()
            }
        }
    }

    fn array(&mut self, depth: usize) -> Option<Json> {
        self.at += 1;
        self.skip_space();
        let mut values = Vec::new();
        if self.take("]").is_some() {
            return Some(Json::Array(values));
        }
        loop {
            self.skip_space();
            values.push(self.value(depth + 1)?);
            self.skip_space();
            if self.take("]").is_some() {
                return Some(Json::Array(values));
            }
            self.take(",")?;
        }
    }

    fn object(&mut self, depth: usize) -> Option<Json> {
        self.at += 1;
        self.skip_space();
        let mut members: Vec<(String, Json)> = Vec::new();
        let mut place_of: HashMap<String, usize> = HashMap::new();
        if self.take("}").is_some() {
            return Some(Json::Object(members));
        }
        loop {
            self.skip_space();
            if self.bytes.get(self.at) != Some(&b'"') {
                return None;
            }
            let name = self.string()?;
            self.skip_space();
            self.take(":")?;
            self.skip_space();
            let value = self.value(depth + 1)?;
            match place_of.entry(name) {
                Entry::Occupied(place) => members[*place.get()].1 = value,
                Entry::Vacant(place) => {
                    members.push((place.key().clone(), value));
                    place.insert(members.len() - 1);
                }
            }
            self.skip_space();
            if self.take("}").is_some() {
                return Some(Json::Object(members));
            }
            self.take(",")?;
        }
    }

    fn number(&mut self) -> Option<Json> {
        let start = self.at;
        let _sign = self.take("-");
        match self.bytes.get(self.at)? {
            b'0' => self.at += 1,
            b'1'..=b'9' => self.digits(),
            _ => return None,
        }
        let int_end = self.at;
        if self.bytes.get(self.at) == Some(&b'.')
            && matches!(self.bytes.get(self.at + 1), Some(b'0'..=b'9'))
        {
            self.at += 1;
            self.digits();
        }
        if matches!(self.bytes.get(self.at), Some(b'e' | b'E')) {
            let has_sign = matches!(self.bytes.get(self.at + 1), Some(b'+' | b'-'));
            let first = self.at + 1 + usize::from(has_sign);
            if matches!(self.bytes.get(first), Some(b'0'..=b'9')) {
                self.at = first;
                self.digits();
            }
        }
        let written = &self.text[start..self.at];
        if self.at == int_end {
            // Python has no negative zero among whole numbers.
            return Some(Json::Number(if written == "-0" { "0" } else { written }.to_owned()));
        }
        Some(Json::Number(python_float(written.parse().ok()?)))
    }

    fn digits(&mut self) {
        while matches!(self.bytes.get(self.at), Some(b'0'..=b'9')) {
            self.at += 1;
        }
    }

    fn string(&mut self) -> Option<String> {
        self.at += 1;
        let mut out = String::new();
        loop {
            let start = self.at;
            while !matches!(self.bytes.get(self.at)?, b'"' | b'\\' | 0..=0x1f) {
                self.at += 1;
            }
            out.push_str(&self.text[start..self.at]);
            self.at += 1;
            match self.bytes[self.at - 1] {
                b'"' => return Some(out),
                b'\\' => self.escape(&mut out)?,
                // Control characters must be escaped.
                _ => return None,
            }
        }
    }

    fn escape(&mut self, out: &mut String) -> Option<()> {
        let escaped = *self.bytes.get(self.at)?;
        self.at += 1;
        out.push(match escaped {
            b'"' => '"',
            b'\\' => '\\',
            b'/' => '/',
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => self.unicode()?,
            _ => return None,
        });
        Some(())
    }

    /// Half of a surrogate pair is no character: such a text is not taken for JSON.
    fn unicode(&mut self) -> Option<char> {
        let first = self.four_digits()?;
        if !(0xd800..0xe000).contains(&first) {
            return char::from_u32(first);
        }
        self.take("\\u")?;
        let second = self.four_digits()?;
        if !(0xd800..0xdc00).contains(&first) || !(0xdc00..0xe000).contains(&second) {
            return None;
        }
        char::from_u32(0x1_0000 + ((first - 0xd800) << 10) + (second - 0xdc00))
    }

    fn four_digits(&mut self) -> Option<u32> {
        let digits = self.text.get(self.at..self.at + 4)?;
        if !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        self.at += 4;
        u32::from_str_radix(digits, 16).ok()
    }
}

/// A float as Python's `repr` writes it: the shortest digits that read back, with an exponent below 1e-4 and from 1e16 on.
fn python_float(number: f64) -> String {
    if number.is_infinite() {
        return if number > 0.0 { "Infinity" } else { "-Infinity" }.to_owned();
    }
    let scientific = format!("{number:e}");
    let (digits, exponent) = scientific.split_once('e').expect("the form has an exponent");
    let exponent: i32 = exponent.parse().expect("the exponent is a number");
    if number == 0.0 || (-4..16).contains(&exponent) {
        let plain = number.to_string();
        return if plain.contains('.') { plain } else { plain + ".0" };
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}

impl Json {
    /// Writes the value as `json.dumps(value, ensure_ascii=False)` does.
    pub fn dump(&self) -> String {
        let mut out = String::new();
        self.dump_into(&mut out);
        out
    }

    fn dump_into(&self, out: &mut String) {
        match self {
            Json::Word(word) => out.push_str(word),
            Json::Number(number) => out.push_str(number),
            Json::Text(text) => dump_text(text, out),
            Json::Array(values) => {
                out.push('[');
                for (i, value) in values.iter().enumerate() {
                    out.push_str(if i > 0 { ", " } else { "" });
                    value.dump_into(out);
                }
                out.push(']');
            }
            Json::Object(members) => {
                out.push('{');
                for (i, (name, value)) in members.iter().enumerate() {
                    out.push_str(if i > 0 { ", " } else { "" });
                    dump_text(name, out);
                    out.push_str(": ");
                    value.dump_into(out);
                }
                out.push('}');
            }
        }
    }
}

fn dump_text(text: &str, out: &mut String) {
    out.push('"');
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\0'..='\u{1f}' => {
                write!(out, "\\u{:04x}", u32::from(character)).expect("a string takes all text");
            }
            other => out.push(other),
        }
    }
    out.push('"');
}
