//! Bounds on the values of a template.
//!
//! The engine writes, compares, hashes and drops values by recursion, and computes lists on demand that may be without
//! end. So whatever a template makes is walked once: it is data, of bounded depth and size, and lists are lists.

use minijinja::value::{DynObject, ObjectRepr, Tuple};
use minijinja::{Error, ErrorKind, State, Value};

/// Lists and maps within one another.
const MAX_DEPTH: usize = 64;
/// Of a value with all that it holds, each part counted wherever it stands.
const MAX_BYTES: usize = 16 << 20;
/// What a part counts beside its text.
const PART_BYTES: usize = 32;
/// Parts that are walked for one step of fuel.
const PARTS_PER_STEP: usize = 32;

/// Objects of the engine that hold nothing which the template chose, but for what a loop goes over.
const HARMLESS: [&str; 3] = ["::BoxedFunction", "::Loop", "::Macro"];

/// A value that may be kept: data, or a namespace of it, is bounded in all; loops, macros and functions are as they are.
///
/// # Errors
/// When it is larger, deeper, or holds what is not data.
pub(super) fn bounded(state: &State<'_, '_>, value: Value) -> Result<Value, Error> {
    let Some(object) = value.as_object() else { return Ok(value) };
    let is = |name: &str| object.type_name().ends_with(name);
    if HARMLESS.into_iter().any(is) {
        return Ok(value);
    }
    let mut walk = Walk::new();
    let settled = if is("::Namespace") {
        walk.settle_members(object, None)?;
        None
    } else {
        walk.settle(&value, 0)?
    };
    walk.pay(state)?;
    Ok(settled.unwrap_or(value))
}

/// What a namespace gets under a name: data, that with all that the namespace holds beside it is bounded.
///
/// # Errors
/// As [`bounded`].
pub(super) fn member(
    state: &State<'_, '_>,
    value: Value,
    namespace: &Value,
    name: &str,
) -> Result<Value, Error> {
    if value.as_object().is_none() && value.as_str().is_none() {
        return Ok(value);
    }
    let mut walk = Walk::new();
    let settled = walk.settle(&value, 0)?;
    if let Some(namespace) = namespace.as_object() {
        walk.settle_members(namespace, Some(name))?;
    }
    walk.pay(state)?;
    Ok(settled.unwrap_or(value))
}

/// Whether a list, or a map that is no part of the engine.
fn is_data(object: &DynObject) -> bool {
    match object.repr() {
        ObjectRepr::Seq | ObjectRepr::Iterable => true,
        ObjectRepr::Map => is_plain_map(object) || object.type_name().ends_with("::MergeDict"),
        _ => false,
    }
}

/// The type of maps that is not nameable from here.
fn is_plain_map(object: &DynObject) -> bool {
    object.type_name().starts_with("indexmap::")
}

struct Walk {
    n_parts: usize,
    n_bytes: usize,
}

impl Walk {
    fn new() -> Walk {
        Walk { n_parts: 0, n_bytes: 0 }
    }

    fn pay(&self, state: &State<'_, '_>) -> Result<(), Error> {
        state.consume_fuel((self.n_parts / PARTS_PER_STEP) as u64)
    }

    /// Goes through a namespace, whose members are settled since they were given to it.
    fn settle_members(&mut self, namespace: &DynObject, but: Option<&str>) -> Result<(), Error> {
        let members = namespace.try_iter_pairs().into_iter().flatten();
        for (name, value) in members.filter(|(name, _)| but.is_none() || name.as_str() != but) {
            self.settle(&name, 0)?;
            self.settle(&value, 0)?;
        }
        Ok(())
    }

    /// What stands for the value; `None` if it may stay.
    fn settle(&mut self, value: &Value, depth: usize) -> Result<Option<Value>, Error> {
        self.n_parts += 1;
        self.n_bytes += PART_BYTES + value.as_str().map_or(0, str::len);
        if self.n_bytes > MAX_BYTES {
            return Err(refused(format!("a value has more than {MAX_BYTES} bytes")));
        }
        let Some(object) = value.as_object() else { return Ok(None) };
        if depth == MAX_DEPTH {
            let problem = format!("more than {MAX_DEPTH} lists or maps stand within one another");
            return Err(refused(problem));
        }
        if !is_data(object) {
            let problem =
                "only texts, numbers, lists and maps can stand in lists, maps and namespaces";
            return Err(refused(problem.to_string()));
        }
        match object.repr() {
            ObjectRepr::Map => self.settle_map(object, depth + 1),
            _ => self.settle_list(value, depth + 1),
        }
    }

    fn settle_list(&mut self, value: &Value, depth: usize) -> Result<Option<Value>, Error> {
        let mut stays = value.is_tuple() || value.downcast_object_ref::<Vec<Value>>().is_some();
        let mut items = Vec::new();
        for item in value.try_iter()?.checked() {
            let item = item?;
            let settled = self.settle(&item, depth)?;
            stays &= settled.is_none();
            items.push(settled.unwrap_or(item));
        }
        Ok(match stays {
            true => None,
            false if value.is_tuple() => Some(Value::from(Tuple::new(items))),
            false => Some(Value::from(items)),
        })
    }

    fn settle_map(&mut self, object: &DynObject, depth: usize) -> Result<Option<Value>, Error> {
        let mut stays = is_plain_map(object);
        let mut pairs = Vec::new();
        for (key, value) in object.try_iter_pairs().into_iter().flatten() {
            let (new_key, new_value) = (self.settle(&key, depth)?, self.settle(&value, depth)?);
            stays &= new_key.is_none() && new_value.is_none();
            pairs.push((new_key.unwrap_or(key), new_value.unwrap_or(value)));
        }
        Ok(if stays { None } else { Some(Value::from_pairs(pairs)) })
    }
}

fn refused(problem: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, problem)
}
