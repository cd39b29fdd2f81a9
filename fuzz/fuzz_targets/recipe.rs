//! A recipe.

#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use train::Recipe;

fuzz_target!(|text: &str| {
    let _ = Recipe::parse(text, Path::new("run.toml"));
});
