//! What a rendering may use, and the filters that `guard.rs` puts into the program to see to it.
//!
//! The engine takes fuel for its steps, for the text that a filter or a method works on, and for what they return. What it
//! does not see is paid here: the arguments, and how often a filter over a list goes through them.

use std::sync::Arc;
use std::time::Instant;

use minijinja::value::{Rest, ValueOrKwargs};
use minijinja::{Environment, Error, ErrorKind, State, Value, escape_formatter};

use super::guard::{BOUNDED, FILTER, MEMBER, SHOWN, TIMELY};
use super::marks::Marks;
use super::values;

/// Text that is worth one step of the engine.
pub(super) const BYTES_PER_STEP: usize = 64;
/// Filters that go through their arguments for each item; so none of them is an argument of `map`.
const OVER_ITEMS: [&str; 11] = [
    "join",
    "map",
    "max",
    "min",
    "reject",
    "rejectattr",
    "select",
    "selectattr",
    "sort",
    "sum",
    "unique",
];

pub(super) type Outcome = Result<Value, Error>;

/// The marks and the end of one rendering.
pub(super) struct Checks {
    pub(super) marks: Arc<Marks>,
    pub(super) end: Instant,
}

impl Checks {
    /// Fails once the time is over, and takes fuel for so much text.
    ///
    /// # Errors
    /// Where time or fuel has run out.
    pub(super) fn pay(&self, state: &State<'_, '_>, n_bytes: usize) -> Result<(), Error> {
        if Instant::now() > self.end {
            return Err(invalid("rendering takes too long"));
        }
        state.consume_fuel((n_bytes / BYTES_PER_STEP) as u64)
    }

    /// As [`Checks::pay`], for the texts among arguments.
    ///
    /// # Errors
    /// As [`Checks::pay`].
    pub(super) fn pay_for(&self, state: &State<'_, '_>, args: &[Value]) -> Result<(), Error> {
        self.pay(state, texts_bytes(args))
    }

    /// A text as people read it; other values as they are.
    pub(super) fn show(&self, value: &Value) -> Value {
        match value.as_str() {
            Some(text) if self.marks.may_mark(text) => Value::from(&*self.marks.show(text)),
            _ => value.clone(),
        }
    }

    /// A list with its texts as people read them; other values as [`Checks::show`] does.
    pub(super) fn show_items(&self, value: &Value) -> Value {
        let is_marked = |item: &Value| item.as_str().is_some_and(|text| self.marks.may_mark(text));
        match value.downcast_object_ref::<Vec<Value>>() {
            Some(items) if items.iter().any(is_marked) => {
                items.iter().map(|item| self.show(item)).collect()
            }
            _ => self.show(value),
        }
    }

    /// As [`Checks::show_items`], for comparing, which walks a value as the check of its bounds does.
    fn shown(&self, state: &State<'_, '_>, value: Value) -> Outcome {
        self.pay(state, 0)?;
        Ok(self.show_items(&values::bounded(state, value)?))
    }

    /// Two values to be compared, which are paid for.
    ///
    /// # Errors
    /// As [`Checks::pay`] and [`values::bounded`].
    pub(super) fn both(
        &self,
        state: &State<'_, '_>,
        pair: [Value; 2],
    ) -> Result<[Value; 2], Error> {
        self.pay_for(state, &pair)?;
        let [a, b] = pair;
        Ok([self.shown(state, a)?, self.shown(state, b)?])
    }

    fn filter(&self, state: &mut State<'_, '_>, args: Rest<ValueOrKwargs>) -> Outcome {
        let mut args = args.into_values();
        let name = args.remove(1);
        let name = name.as_str().expect("the name stands behind the value");
        if !minijinja::tests::is_filter(state, name) {
            let problem = format!("filter {name} is unknown");
            return Err(Error::new(ErrorKind::UnknownFilter, problem));
        }
        let mut times = 1;
        if OVER_ITEMS.contains(&name) {
            check_name(&args)?;
            times = args[0].len().unwrap_or(0);
        }
        self.pay(state, texts_bytes(&args[1..]).saturating_mul(times))?;
        let result = state.apply_filter(name, &args)?;
        values::bounded(state, result)
    }
}

/// Puts the checks into an environment.
pub(super) fn add(environment: &mut Environment<'_>, checks: &Arc<Checks>) {
    let shared = Arc::clone(checks);
    environment.add_filter(FILTER, move |state: &mut State<'_, '_>, args: Rest<ValueOrKwargs>| {
        shared.filter(state, args)
    });
    let shared = Arc::clone(checks);
    environment.add_filter(TIMELY, move |state: &State<'_, '_>, value: Value| {
        shared.pay(state, 0).map(|()| value)
    });
    let shared = Arc::clone(checks);
    environment.add_filter(BOUNDED, move |state: &State<'_, '_>, value: Value| {
        shared.pay(state, 0)?;
        values::bounded(state, value)
    });
    let shared = Arc::clone(checks);
    environment.add_filter(
        MEMBER,
        move |state: &State<'_, '_>, value: Value, namespace: Value, name: &str| {
            shared.pay(state, 0)?;
            values::member(state, value, &namespace, name)
        },
    );
    let shared = Arc::clone(checks);
    environment
        .add_filter(SHOWN, move |state: &State<'_, '_>, value: Value| shared.shown(state, value));
    // A `call` block writes what a function returns, unseen by the other checks.
    environment.set_formatter(|out, state, value| {
        let value = values::bounded(state, value.clone())?;
        escape_formatter(out, state, &value)
    });
}

/// What a filter looks for in each item is the name of an attribute or of a test, no list.
fn check_name(args: &[Value]) -> Result<(), Error> {
    let attribute =
        args.last().filter(|arg| arg.is_kwargs()).map(|named| named.get_attr("attribute"));
    let attribute = attribute.transpose()?;
    let position = args.get(1).filter(|arg| !arg.is_kwargs());
    if attribute.iter().chain(position).any(|name| name.as_object().is_some()) {
        return Err(invalid("an attribute has a text or a number for its name"));
    }
    Ok(())
}

/// Arguments of a call, by position and by name.
pub(super) fn without_names(args: &[Value]) -> impl Iterator<Item = Value> {
    args.iter().flat_map(|arg| {
        let named = arg.as_object().filter(|_| arg.is_kwargs());
        let pairs = named.map(|named| named.try_iter_pairs().into_iter().flatten());
        match pairs {
            Some(pairs) => pairs.map(|(_, value)| value).collect(),
            None => vec![arg.clone()],
        }
    })
}

/// How long the texts among arguments of a call are.
pub(super) fn texts_bytes(args: &[Value]) -> usize {
    without_names(args).map(|arg| arg.as_str().map_or(0, str::len)).sum()
}

/// Whether `map` may call a filter.
pub(super) fn is_mappable(name: &str) -> bool {
    !name.ends_with('!') && !OVER_ITEMS.contains(&name)
}

pub(super) fn invalid(problem: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, problem.into())
}
