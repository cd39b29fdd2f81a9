//! What templates call: the filters, methods and functions of Jinja and Python, over texts with marks.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use minijinja::formatting::{self, FormatStyle};
use minijinja::value::{Kwargs, Rest, ValueOrKwargs, from_args};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat::unknown_method_callback;

use super::guard::{BOUNDED, DATA, SHOWN};
use super::marks::Marks;
use super::values;
use crate::chat::instruct::python_json;
use crate::date::strftime;

/// Steps that rendering may take. The longest published templates take some thousands, and some tens for each message;
/// 64 bytes of text count as a step, so this is about 256 MB, of which marks are four bytes each.
const FUEL: u64 = 4_000_000;
/// What all widths in a text to be formatted may come to.
const MAX_WIDTH: usize = 1_000_000;
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

type Outcome = Result<Value, Error>;

/// The environment of one rendering, which must be over by `end`.
pub(super) fn environment(marks: &Arc<Marks>, end: Instant) -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_fuel(Some(FUEL));
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.add_function("raise_exception", raise);
    let shared = Arc::clone(marks);
    environment.add_function("strftime_now", move |format: String| date_now(&shared.show(&format)));
    environment.remove_global("debug");
    let shared = Arc::clone(marks);
    environment.set_unknown_method_callback(move |state, value, name, args| {
        call_method(state, &shared, value, name, args)
    });
    for name in LEFT_OUT {
        environment.remove_filter(name);
    }
    add_checks(&mut environment, marks, end);
    add_filters(&mut environment, marks);
    add_tests(&mut environment, marks);
    environment
}

fn add_checks(environment: &mut Environment<'_>, marks: &Arc<Marks>, end: Instant) {
    environment.add_filter(BOUNDED, move |state: &State<'_, '_>, value: Value| {
        if Instant::now() > end {
            return Err(invalid("rendering takes too long"));
        }
        values::bounded(state, value)
    });
    environment.add_filter(DATA, |state: &State<'_, '_>, value: Value| values::data(state, value));
    let shared = Arc::clone(marks);
    environment.add_filter(SHOWN, move |state: &State<'_, '_>, value: Value| {
        if value.as_object().is_none() {
            return Ok(show(&shared, &value));
        }
        // Comparing walks a list as this does.
        let value = values::bounded(state, value)?;
        Ok(show_items(&shared, value))
    });
}

fn add_filters(environment: &mut Environment<'_>, marks: &Arc<Marks>) {
    environment.add_filter("tojson", to_json);
    environment.add_filter("map", map);
    for name in ["upper", "lower", "title", "capitalize"] {
        let shared = Arc::clone(marks);
        environment.add_filter(name, move |state: &mut State<'_, '_>, text: String| {
            call_method(state, &shared, &Value::from(text), name, &[])
        });
    }
    let shared = Arc::clone(marks);
    environment.add_filter(
        "trim",
        move |state: &mut State<'_, '_>, text: String, signs: Option<String>| {
            let signs: Vec<Value> = signs.into_iter().map(Value::from).collect();
            call_method(state, &shared, &Value::from(text), "strip", &signs)
        },
    );
    let shared = Arc::clone(marks);
    environment.add_filter(
        "replace",
        move |state: &State<'_, '_>, text: String, old: String, new: String, count: Option<i64>| {
            replace(state, &shared, &text, &old, &new, count)
        },
    );
    let shared = Arc::clone(marks);
    environment.add_filter(
        "split",
        move |state: &State<'_, '_>,
              text: String,
              separator: Option<String>,
              count: Option<i64>| {
            split(state, &shared, &text, separator.as_deref(), count)
        },
    );
    environment.add_filter("format", |text: String, args: Rest<ValueOrKwargs>| {
        let text = with_small_widths(&text)?;
        formatting::format(FormatStyle::Printf, text, &args.into_values())
    });
    for name in ["escape", "e"] {
        let shared = Arc::clone(marks);
        environment.add_filter(name, move |state: &mut State<'_, '_>, value: Value| {
            let escaped = minijinja::filters::escape(state, &show(&shared, &value))?;
            let is_marked = value.as_str().is_some_and(|text| shared.may_mark(text));
            Ok::<_, Error>(if is_marked {
                Value::from(shared.mark(&escaped.to_string()))
            } else {
                escaped
            })
        });
    }
    let shared = Arc::clone(marks);
    environment.add_filter(
        "int",
        move |state: &State<'_, '_>,
              value: Value,
              default: Option<Value>,
              base: Option<u32>,
              options: Kwargs| {
            minijinja::filters::int(state, &show(&shared, &value), default, base, options)
        },
    );
    let shared = Arc::clone(marks);
    environment.add_filter(
        "float",
        move |state: &State<'_, '_>, value: Value, default: Option<Value>, options: Kwargs| {
            minijinja::filters::float(state, &show(&shared, &value), default, options)
        },
    );
}

fn add_tests(environment: &mut Environment<'_>, marks: &Arc<Marks>) {
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
            let shared = Arc::clone(marks);
            environment.add_test(name, move |a: Value, b: Value| {
                compare(&show(&shared, &a), &show(&shared, &b))
            });
        }
    }
    for (name, method) in [
        ("startingwith", "startswith"),
        ("endingwith", "endswith"),
        ("lower", "islower"),
        ("upper", "isupper"),
    ] {
        let shared = Arc::clone(marks);
        environment.add_test(
            name,
            move |state: &mut State<'_, '_>, text: String, args: Rest<Value>| {
                call_method(state, &shared, &Value::from(text), method, &args)
                    .is_ok_and(|found| found.is_true())
            },
        );
    }
    let shared = Arc::clone(marks);
    environment.add_test("in", move |state: &State<'_, '_>, value: Value, container: Value| {
        let container = show_items(&shared, show(&shared, &container));
        minijinja::tests::is_in(state, &show(&shared, &value), &container)
    });
}

fn invalid(problem: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, problem.into())
}

/// A text as people read it; other values as they are.
fn show(marks: &Marks, value: &Value) -> Value {
    match value.as_str() {
        Some(text) if marks.may_mark(text) => Value::from(&*marks.show(text)),
        _ => value.clone(),
    }
}

/// A list with its texts as people read them; other values as they are.
fn show_items(marks: &Marks, value: Value) -> Value {
    let is_marked = |item: &Value| item.as_str().is_some_and(|text| marks.may_mark(text));
    match value.downcast_object_ref::<Vec<Value>>() {
        Some(items) if items.iter().any(is_marked) => {
            items.iter().map(|item| show(marks, item)).collect()
        }
        _ => value,
    }
}

fn call_method(
    state: &mut State<'_, '_>,
    marks: &Marks,
    value: &Value,
    name: &str,
    args: &[Value],
) -> Outcome {
    let shown = |args: &[Value]| -> Vec<Value> {
        args.iter().map(|arg| show_items(marks, show(marks, arg))).collect()
    };
    let Some(text) = value.as_str() else {
        // Maps are asked by texts that the template wrote.
        let args: Vec<Value> = match args.split_first() {
            Some((key, rest)) => {
                [show(marks, key)].into_iter().chain(rest.iter().cloned()).collect()
            }
            None => Vec::new(),
        };
        return unknown_method_callback(state, value, name, &args);
    };
    match name {
        "replace" => {
            let (old, new, count): (&str, &str, Option<i64>) = from_args(args)?;
            replace(state, marks, text, old, new, count)
        }
        "split" => {
            let (separator, count): (Option<&str>, Option<i64>) = from_args(args)?;
            split(state, marks, text, separator, count)
        }
        "upper" | "lower" | "title" | "capitalize" if marks.may_mark(text) => {
            let changed = unknown_method_callback(state, &show(marks, value), name, args)?;
            Ok(Value::from(marks.recased(text, |_| changed.to_string())))
        }
        "strip" | "lstrip" | "rstrip" => {
            let (signs,): (Option<&str>,) = from_args(args)?;
            let signs = signs.map(|signs| format!("{signs}{}", marks.mark(&marks.show(signs))));
            let signs: Vec<Value> = signs.into_iter().map(Value::from).collect();
            unknown_method_callback(state, value, name, &signs)
        }
        "splitlines" => {
            let n_lines = text.bytes().filter(|&byte| byte == b'\n').count();
            state.consume_fuel(n_lines as u64)?;
            unknown_method_callback(state, value, name, args)
        }
        "format" => {
            with_small_widths(text)?;
            unknown_method_callback(state, value, name, args)
        }
        _ if LOOKING.contains(&name) => {
            unknown_method_callback(state, &show(marks, value), name, &shown(args))
        }
        _ => unknown_method_callback(state, value, name, args),
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

/// A text to be formatted whose widths are small; one that is an argument is not known here.
fn with_small_widths(text: &str) -> Result<&str, Error> {
    let numbers = text.split(|c: char| !c.is_ascii_digit()).filter(|digits| !digits.is_empty());
    let widths = numbers.map(|digits| digits.parse().unwrap_or(usize::MAX));
    let total = widths.fold(0_usize, usize::saturating_add);
    if total > MAX_WIDTH || text.contains('*') {
        return Err(invalid(format!("widths of more than {MAX_WIDTH} in a text to be formatted")));
    }
    Ok(text)
}

/// The engine's filter calls others by name, and so itself as often as its arguments say, and the checks.
fn map(
    state: &mut State<'_, '_>,
    value: Value,
    args: Rest<ValueOrKwargs>,
) -> Result<Vec<Value>, Error> {
    let is_hidden = |name: &str| ["map", BOUNDED, DATA, SHOWN].contains(&name);
    if args.first().and_then(|name| name.as_str()).is_some_and(is_hidden) {
        return Err(invalid("this filter cannot be mapped"));
    }
    minijinja::filters::map(state, value, args)
}

/// JSON as Python writes it, which is what `transformers` gives templates.
fn to_json(value: &Value, options: Kwargs) -> Result<String, Error> {
    options.assert_all_used().map_err(|_| invalid("tojson takes no options here"))?;
    let text = serde_json::to_string(value).map_err(|error| invalid(error.to_string()))?;
    let json = python_json::parse(&text);
    json.map(|json| json.dump()).ok_or_else(|| invalid("too many levels for tojson"))
}

/// What templates call on conversations that they do not know.
fn raise(message: String) -> Outcome {
    Err(invalid(message))
}

fn date_now(format: &str) -> Result<String, Error> {
    strftime(SystemTime::now(), format)
        .map_err(|field| invalid(format!("strftime_now: the field {field} is not supported")))
}
