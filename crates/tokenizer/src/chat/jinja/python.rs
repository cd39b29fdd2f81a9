//! What templates call: the filters, methods and functions of Jinja and Python, over texts with marks.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use minijinja::formatting::{self, FormatStyle};
use minijinja::tests::{is_in, is_iterable, is_sameas};
use minijinja::value::{Kwargs, Rest, ValueOrKwargs, from_args};
use minijinja::{AutoEscape, Environment, Error, State, Value};
use minijinja_contrib::pycompat::unknown_method_callback;

use super::checks::{
    self, BYTES_PER_STEP, Checks, Outcome, invalid, is_mappable, texts_bytes, without_names,
};
use super::marks::Marks;
use super::values;
use crate::chat::instruct::python_json;
use crate::date::strftime;

/// Steps that rendering may take. The longest published templates take some thousands, and some tens for each message;
/// 64 bytes of text count as a step, so this is about 256 MB, of which marks are four bytes each.
const FUEL: u64 = 4_000_000;
/// What all widths in a text to be formatted may come to.
const MAX_WIDTH: usize = 1_000_000;
/// The longest number in a text that is formatted, beside its width.
const NUMBER_BYTES: usize = 400;
/// The longest text that says how to write a date.
const MAX_DATE_FORMAT: usize = 1000;
/// What a byte of a text becomes at most when its letters change and are marked: a letter of two bytes becomes three of four.
const CASE_BYTES: usize = 6;
/// The same of HTML, which writes a character as six.
const HTML_BYTES: usize = 24;
/// What the engine counts for a byte of a list or a map that it writes.
const JSON_COST: usize = 16;
/// Filters that Jinja has not, or that templates have no use for and that make much from little.
const LEFT_OUT: [&str; 7] = ["batch", "chain", "groupby", "lines", "pprint", "slice", "zip"];
/// Methods that look at a text.
const LOOKING: [&str; 13] = [
    "count",
    "endswith",
    "find",
    "isalnum",
    "isalpha",
    "isascii",
    "isdigit",
    "islower",
    "isnumeric",
    "isspace",
    "isupper",
    "rfind",
    "startswith",
];

/// The environment of one rendering, which must be over by `end`.
pub(super) fn environment(marks: &Arc<Marks>, end: Instant) -> Environment<'static> {
    let checks = Arc::new(Checks { marks: Arc::clone(marks), end });
    let mut environment = Environment::new();
    environment.set_fuel(Some(FUEL));
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.add_function("raise_exception", raise);
    let shared = Arc::clone(&checks);
    environment.add_function("strftime_now", move |format: &str| date_now(&shared.marks, format));
    environment.remove_global("debug");
    let shared = Arc::clone(&checks);
    environment.set_unknown_method_callback(move |state, value, name, args| {
        call_method(state, &shared, value, name, args)
    });
    for name in LEFT_OUT {
        environment.remove_filter(name);
    }
    checks::add(&mut environment, &checks);
    add_filters(&mut environment, &checks);
    add_conversions(&mut environment, &checks);
    add_tests(&mut environment, &checks);
    environment
}

fn add_filters(environment: &mut Environment<'_>, checks: &Arc<Checks>) {
    environment.add_filter("map", map);
    environment.add_filter("sum", sum);
    environment.add_filter("attr", attr);
    environment.add_filter(
        "format",
        |state: &State<'_, '_>, text: &str, args: Rest<ValueOrKwargs>| {
            format(state, FormatStyle::Printf, text, &args.into_values())
        },
    );
    for name in ["upper", "lower", "title", "capitalize"] {
        let shared = Arc::clone(checks);
        environment.add_filter(name, move |state: &mut State<'_, '_>, text: String| {
            call_method(state, &shared, &Value::from(text), name, &[])
        });
    }
    let shared = Arc::clone(checks);
    environment.add_filter("trim", move |text: String, signs: Option<&str>| {
        Value::from(strip(&shared.marks, &text, "strip", signs))
    });
    let shared = Arc::clone(checks);
    environment.add_filter(
        "replace",
        move |state: &State<'_, '_>, text: String, old: &str, new: &str, count: Option<i64>| {
            replace(state, &shared.marks, &text, old, new, count)
        },
    );
    let shared = Arc::clone(checks);
    environment.add_filter(
        "split",
        move |state: &State<'_, '_>, text: String, separator: Option<&str>, count: Option<i64>| {
            split(state, &shared.marks, &text, separator, count)
        },
    );
}

fn add_conversions(environment: &mut Environment<'_>, checks: &Arc<Checks>) {
    let shared = Arc::clone(checks);
    environment.add_filter(
        "tojson",
        move |state: &State<'_, '_>, value: &Value, options: Kwargs| {
            to_json(state, &shared.marks, value, &options)
        },
    );
    for name in ["escape", "e"] {
        let shared = Arc::clone(checks);
        environment.add_filter(name, move |state: &mut State<'_, '_>, value: &Value| {
            escape(state, &shared, value)
        });
    }
    let shared = Arc::clone(checks);
    environment.add_filter(
        "int",
        move |state: &State<'_, '_>,
              value: Value,
              default: Option<Value>,
              base: Option<u32>,
              options: Kwargs| {
            minijinja::filters::int(state, &shared.show(&value), default, base, options)
        },
    );
    let shared = Arc::clone(checks);
    environment.add_filter(
        "float",
        move |state: &State<'_, '_>, value: Value, default: Option<Value>, options: Kwargs| {
            minijinja::filters::float(state, &shared.show(&value), default, options)
        },
    );
}

fn add_tests(environment: &mut Environment<'_>, checks: &Arc<Checks>) {
    type Compare = fn(&Value, &Value) -> bool;
    let comparisons: [(&[&'static str], Compare); 6] = [
        (&["eq", "equalto", "=="], |a, b| a == b),
        (&["ne", "!="], |a, b| a != b),
        (&["lt", "lessthan", "<"], |a, b| a < b),
        (&["le", "<="], |a, b| a <= b),
        (&["gt", "greaterthan", ">"], |a, b| a > b),
        (&["ge", ">="], |a, b| a >= b),
    ];
    for (names, compare) in comparisons {
        for &name in names {
            let shared = Arc::clone(checks);
            environment.add_test(name, move |state: &State<'_, '_>, a: Value, b: Value| {
                let [a, b] = shared.both(state, [a, b])?;
                Ok::<_, Error>(compare(&a, &b))
            });
        }
    }
    let shared = Arc::clone(checks);
    environment.add_test("in", move |state: &State<'_, '_>, value: Value, container: Value| {
        let [value, container] = shared.both(state, [value, container])?;
        is_in(state, &value, &container)
    });
    let shared = Arc::clone(checks);
    environment.add_test("sameas", move |state: &State<'_, '_>, a: &Value, b: &Value| {
        shared.pay_for(state, &[a.clone(), b.clone()])?;
        Ok::<_, Error>(is_sameas(&shared.show(a), &shared.show(b)))
    });
    // The engine's counts the characters of a text.
    environment
        .add_test("iterable", |value: &Value| value.as_str().is_some() || is_iterable(value));
    for (name, method) in [
        ("startingwith", "startswith"),
        ("endingwith", "endswith"),
        ("lower", "islower"),
        ("upper", "isupper"),
    ] {
        let shared = Arc::clone(checks);
        environment.add_test(
            name,
            move |state: &mut State<'_, '_>, text: Value, args: Rest<Value>| {
                shared.pay_for(state, std::slice::from_ref(&text))?;
                let found = call_method(state, &shared, &text, method, &args);
                Ok::<_, Error>(found.is_ok_and(|found| found.is_true()))
            },
        );
    }
}

fn call_method(
    state: &mut State<'_, '_>,
    checks: &Checks,
    value: &Value,
    name: &str,
    args: &[Value],
) -> Outcome {
    checks.pay_for(state, args)?;
    let made = match value.as_str() {
        Some(text) => text_method(state, checks, text, name, args)?,
        // Maps are asked by texts that the template wrote.
        None => {
            let key = args.iter().take(1).map(|key| checks.show(key));
            let args: Vec<Value> = key.chain(args.iter().skip(1).cloned()).collect();
            unknown_method_callback(state, value, name, &args)?
        }
    };
    values::bounded(state, made)
}

fn text_method(
    state: &mut State<'_, '_>,
    checks: &Checks,
    text: &str,
    name: &str,
    args: &[Value],
) -> Outcome {
    let marks = &checks.marks;
    match name {
        "replace" => {
            let (old, new, count): (&str, &str, Option<i64>) = from_args(args)?;
            replace(state, marks, text, old, new, count)
        }
        "split" => {
            let (separator, count): (Option<&str>, Option<i64>) = from_args(args)?;
            split(state, marks, text, separator, count)
        }
        "upper" | "lower" | "title" | "capitalize" => {
            checks.pay(state, CASE_BYTES * text.len())?;
            let shown = Value::from(&*marks.show(text));
            let changed = unknown_method_callback(state, &shown, name, args)?;
            Ok(Value::from(marks.recased(text, |_| changed.to_string())))
        }
        "strip" | "lstrip" | "rstrip" => {
            let (signs,): (Option<&str>,) = from_args(args)?;
            Ok(Value::from(strip(marks, text, name, signs)))
        }
        "splitlines" => {
            let n_lines = text.bytes().filter(|&byte| byte == b'\n').count();
            state.consume_fuel(n_lines as u64)?;
            unknown_method_callback(state, &Value::from(text), name, args)
        }
        // The engine pays for a separator at each of its places.
        "join" => {
            let (values,): (&Value,) = from_args(args)?;
            state.apply_filter("join", &[values.clone(), Value::from(text)])
        }
        "format" => format(state, FormatStyle::StrFormat, text, args),
        _ if LOOKING.contains(&name) => {
            let args: Vec<Value> = args.iter().map(|arg| checks.show_items(arg)).collect();
            unknown_method_callback(state, &Value::from(&*marks.show(text)), name, &args)
        }
        _ => unknown_method_callback(state, &Value::from(text), name, args),
    }
}

/// The text without the signs, or the white space, at both ends or at one.
fn strip<'a>(marks: &Marks, text: &'a str, name: &str, signs: Option<&str>) -> &'a str {
    let signs: Option<HashSet<char>> = signs.map(|signs| marks.show(signs).chars().collect());
    let is_sign = |c: char| match &signs {
        Some(signs) => signs.contains(&marks.shown_as(c)),
        None => c.is_whitespace(),
    };
    match name {
        "lstrip" => text.trim_start_matches(is_sign),
        "rstrip" => text.trim_end_matches(is_sign),
        _ => text.trim_matches(is_sign),
    }
}

/// A negative count is all, as in Python.
fn limit(count: Option<i64>) -> usize {
    count.and_then(|count| usize::try_from(count).ok()).unwrap_or(usize::MAX)
}

fn replace(
    state: &State<'_, '_>,
    marks: &Marks,
    text: &str,
    old: &str,
    new: &str,
    count: Option<i64>,
) -> Outcome {
    let mut replaced = String::new();
    let mut done = 0;
    marks.find(text, old, limit(count), |place| {
        state.consume_fuel(1 + (new.len() / 64) as u64)?;
        replaced.push_str(&text[done..place.start]);
        replaced.push_str(new);
        done = place.end;
        Ok::<_, Error>(())
    })?;
    replaced.push_str(&text[done..]);
    Ok(Value::from(replaced))
}

fn split(
    state: &State<'_, '_>,
    marks: &Marks,
    text: &str,
    separator: Option<&str>,
    count: Option<i64>,
) -> Outcome {
    let Some(separator) = separator else {
        state.consume_fuel(text.split_whitespace().count() as u64)?;
        return minijinja::filters::split(&Value::from(text), None, count);
    };
    if separator.is_empty() {
        return Err(invalid("empty separator"));
    }
    let mut parts = Vec::new();
    let mut done = 0;
    marks.find(text, separator, limit(count), |place| {
        state.consume_fuel(1)?;
        parts.push(Value::from(&text[done..place.start]));
        done = place.end;
        Ok::<_, Error>(())
    })?;
    parts.push(Value::from(&text[done..]));
    Ok(Value::from(parts))
}

/// Formats texts and numbers. Each may stand in the text again and again, so that is paid before.
fn format(state: &State<'_, '_>, style: FormatStyle, text: &str, args: &[Value]) -> Outcome {
    let numbers = text.split(|c: char| !c.is_ascii_digit()).filter(|digits| !digits.is_empty());
    let widths = numbers.map(|digits| digits.parse().unwrap_or(usize::MAX));
    if widths.fold(0_usize, usize::saturating_add) > MAX_WIDTH {
        return Err(invalid(format!("widths of more than {MAX_WIDTH} in a text to be formatted")));
    }
    if without_names(args).any(|arg| arg.as_object().is_some()) {
        return Err(invalid("only texts and numbers can be formatted"));
    }
    let n_fields = text.matches(['{', '%']).count();
    let n_bytes = n_fields.saturating_mul(texts_bytes(args) + NUMBER_BYTES);
    state.consume_fuel((n_bytes / BYTES_PER_STEP) as u64)?;
    formatting::format(style, text, args).map(Value::from)
}

/// The engine's filter calls others by name: not the checks, and none that goes over items in turn.
fn map(
    state: &mut State<'_, '_>,
    value: Value,
    args: Rest<ValueOrKwargs>,
) -> Result<Vec<Value>, Error> {
    if args.first().and_then(|name| name.as_str()).is_some_and(|name| !is_mappable(name)) {
        return Err(invalid("this filter cannot be mapped"));
    }
    minijinja::filters::map(state, value, args)
}

/// A list for a key would be walked for each item of a `map`.
fn attr(value: &Value, key: &Value) -> Outcome {
    if key.as_object().is_some() {
        return Err(invalid("an attribute has a text or a number for its name"));
    }
    value.get_item(key)
}

/// Of numbers: a start that is a text or a list would be copied for each item.
fn sum(state: &State<'_, '_>, numbers: Value, attribute: Option<&str>, options: Kwargs) -> Outcome {
    if options.has("start") {
        return Err(invalid("sum takes no start here"));
    }
    minijinja::filters::sum(state, numbers, attribute, None, options)
}

fn escape(state: &mut State<'_, '_>, checks: &Checks, value: &Value) -> Outcome {
    if value.as_object().is_some() {
        return Err(invalid("only texts and numbers can be escaped"));
    }
    let shown = checks.show(value);
    checks.pay(state, HTML_BYTES * shown.as_str().map_or(0, str::len))?;
    let escaped = minijinja::filters::escape(state, &shown)?;
    let is_marked = value.as_str().is_some_and(|text| checks.marks.may_mark(text));
    Ok(if is_marked { checks.marks.mark(&escaped.to_string()).into() } else { escaped })
}

/// JSON as Python writes it, which is what `transformers` gives templates.
fn to_json(state: &State<'_, '_>, marks: &Marks, value: &Value, options: &Kwargs) -> Outcome {
    options.assert_all_used().map_err(|_| invalid("tojson takes no options here"))?;
    let json = serde_json::to_string(value).map_err(|error| invalid(error.to_string()))?;
    state.consume_fuel((json.len() * JSON_COST / BYTES_PER_STEP) as u64)?;
    let parsed = python_json::parse(&marks.show_in_json(&json));
    let text = parsed.ok_or_else(|| invalid("too many levels for tojson"))?.dump();
    Ok(Value::from(if marks.may_mark(&json) { marks.mark(&text) } else { text }))
}

/// What templates call on conversations that they do not know.
fn raise(message: String) -> Outcome {
    Err(invalid(message))
}

fn date_now(marks: &Marks, format: &str) -> Result<String, Error> {
    if format.len() > MAX_DATE_FORMAT {
        return Err(invalid(format!("strftime_now takes at most {MAX_DATE_FORMAT} bytes")));
    }
    let text = strftime(SystemTime::now(), &marks.show(format))
        .map_err(|field| invalid(format!("strftime_now: the field {field} is not supported")))?;
    Ok(if marks.may_mark(format) { marks.mark(&text) } else { text })
}
