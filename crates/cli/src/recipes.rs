//! Recipes with overrides: `--set section.key=value`.

use std::path::Path;

use anyhow::Context as _;
use formats::durable::read_text;
use toml::{Table, Value};
use train::Recipe;
use train::recipe::MAX_RECIPE_BYTES;

use crate::failure::Failure;

/// Reads a recipe file and puts the overrides over it; the result is checked as a whole.
///
/// # Errors
/// When the file cannot be read, an override is malformed, or the result is no recipe.
pub(crate) fn read(path: &Path, overrides: &[String]) -> anyhow::Result<Recipe> {
    let text = read_text(path, MAX_RECIPE_BYTES)
        .with_context(|| format!("cannot read recipe {}", path.display()))?;
    if overrides.is_empty() {
        return Ok(Recipe::parse(&text, path).map_err(Failure::usage)?);
    }
    let mut table: Table =
        text.parse().map_err(|error| Failure::usage(format!("{}: {error}", path.display())))?;
    for text in overrides {
        set(&mut table, text)?;
    }
    let text = toml::to_string(&table).context("cannot write the recipe with its overrides")?;
    Recipe::parse(&text, path)
        .map_err(Failure::usage)
        .with_context(|| format!("the recipe with --set {}", overrides.join(" --set ")))
}

/// Sets one key. A value is TOML; a bare word that is none is a string.
fn set(table: &mut Table, text: &str) -> Result<(), Failure> {
    let (path, value) = text
        .split_once('=')
        .ok_or_else(|| Failure::usage(format!("--set {text}: expected section.key=value")))?;
    let (path, value) = (path.trim(), value.trim());
    let value = match format!("value = {value}").parse::<Table>() {
        Ok(mut parsed) => parsed.remove("value").unwrap_or_else(|| Value::String(value.to_owned())),
        Err(_) => Value::String(value.to_owned()),
    };
    let mut keys: Vec<&str> = path.split('.').collect();
    let last = keys.pop().unwrap_or_default();
    let mut section = table;
    for key in keys {
        let entry = section.entry(key).or_insert_with(|| Value::Table(Table::new()));
        section = entry.as_table_mut().ok_or_else(|| {
            Failure::usage(format!("--set {text}: `{key}` is a value, not a section"))
        })?;
    }
    section.insert(last.to_owned(), value);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(overrides: &[&str]) -> Result<Table, String> {
        let mut table: Table = "a = 1\n[b]\nc = 2\n".parse().unwrap();
        for text in overrides {
            set(&mut table, text).map_err(|error| error.to_string())?;
        }
        Ok(table)
    }

    #[test]
    fn overrides_are_toml_values_and_bare_words_are_strings() {
        let table = after(&["a=7", "b.c = 1e-3", "b.list=[\"x\", \"y\"]", "d.e.f=bf16"]).unwrap();
        assert_eq!(table["a"].as_integer(), Some(7));
        assert_eq!(table["b"]["c"].as_float(), Some(1e-3));
        assert_eq!(table["b"]["list"][1].as_str(), Some("y"));
        assert_eq!(table["d"]["e"]["f"].as_str(), Some("bf16"));
        assert_eq!(after(&["p=/a/b c"]).unwrap()["p"].as_str(), Some("/a/b c"));
    }

    #[test]
    fn malformed_overrides_are_refused() {
        assert!(after(&["a"]).unwrap_err().contains("expected section.key=value"));
        assert!(after(&["a.b=1"]).unwrap_err().contains("`a` is a value"));
    }
}
