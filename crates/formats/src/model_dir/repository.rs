//! Which files of a repository on a model hub are its model.

use std::collections::BTreeSet;
use std::path::Path;

use super::companions::is_companion;
use super::{CONFIG_FILE, LINEAGE_FILE};
use crate::FormatError;
use crate::config::native::PARAMS_FILE;
use crate::weights::{
    INDEX_FILE, NATIVE_FILE, NATIVE_INDEX_FILE, SINGLE_FILE, is_pickle, is_plain_name,
};

/// The files of a repository that make up its model, by their paths: those of one layout (Hugging Face, else native, else the one
/// GGUF file) and what belongs beside them, also the lineage of a model that was made here. `wanted` names a GGUF file. Files in
/// folders belong to nothing; `place` is for messages.
///
/// # Errors
/// When there is no model, several GGUF files and none is wanted, no file of the wanted name, or only pickle files.
pub fn model_files<'a>(
    paths: impl IntoIterator<Item = &'a str>,
    wanted: Option<&str>,
    place: &Path,
) -> Result<Vec<&'a str>, FormatError> {
    // Names of files that are not whole end in `.part`.
    let is_file = |path: &&str| is_plain_name(path) && !path.ends_with(".part");
    let names: BTreeSet<&str> = paths.into_iter().filter(is_file).collect();
    let has = |name: &str| names.contains(name);
    let is_gguf = |name: &str| name.ends_with(".gguf");
    let missing =
        |name: &str| FormatError::FileMissing { dir: place.to_owned(), name: name.to_owned() };
    let is_weight: Box<dyn Fn(&str) -> bool> = if let Some(wanted) = wanted {
        if !has(wanted) || !is_gguf(wanted) {
            return Err(missing(wanted));
        }
        Box::new(move |name| name == wanted)
    } else if has(CONFIG_FILE) && has(SINGLE_FILE) {
        Box::new(|name| [CONFIG_FILE, SINGLE_FILE].contains(&name))
    } else if has(CONFIG_FILE) && has(INDEX_FILE) {
        Box::new(|name| [CONFIG_FILE, INDEX_FILE].contains(&name) || is_part(name, "model-"))
    } else if has(PARAMS_FILE) && has(NATIVE_FILE) {
        Box::new(|name| [PARAMS_FILE, NATIVE_FILE].contains(&name))
    } else if has(PARAMS_FILE) && has(NATIVE_INDEX_FILE) {
        Box::new(|name| {
            [PARAMS_FILE, NATIVE_INDEX_FILE].contains(&name) || is_part(name, "consolidated")
        })
    } else {
        match names.iter().filter(|name| is_gguf(name)).count() {
            1 => Box::new(is_gguf),
            0 => {
                let pickle = names.iter().find(|name| is_pickle(Path::new(name)));
                return Err(pickle.map_or_else(
                    || FormatError::NoModel { dir: place.to_owned() },
                    |name| FormatError::Pickle { path: place.join(name) },
                ));
            }
            n => return Err(FormatError::ManyModels { dir: place.to_owned(), n }),
        }
    };
    let belongs = |name: &str| is_weight(name) || is_companion(name) || name == LINEAGE_FILE;
    Ok(names.into_iter().filter(|name| belongs(name)).collect())
}

fn is_part(name: &str, prefix: &str) -> bool {
    name.starts_with(prefix) && name.ends_with(".safetensors")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen<'a>(names: &[&'a str], wanted: Option<&str>) -> Result<Vec<&'a str>, String> {
        let files = model_files(names.iter().copied(), wanted, Path::new("acme/tiny"));
        files.map_err(|error| error.to_string())
    }

    #[test]
    fn one_layout_is_taken_with_what_belongs_to_it() {
        let both = [
            ".gitattributes",
            "README.md",
            "config.json",
            "consolidated.safetensors",
            "generation_config.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
            "onnx/model.onnx",
            "params.json",
            "pytorch_model.bin",
            "tokenizer.model.v3",
        ];
        let expected = [
            "README.md",
            "config.json",
            "generation_config.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
            "tokenizer.model.v3",
        ];
        assert_eq!(chosen(&both, None).unwrap(), expected);
        // A configuration for another program stands beside native weights.
        let native = ["config.json", "consolidated.safetensors", "params.json", "tekken.json"];
        assert_eq!(chosen(&native, None).unwrap(), &native[1..]);
        let single = ["config.json", "model.safetensors", "model-extra.safetensors"];
        assert_eq!(chosen(&single, None).unwrap(), &single[..2]);
        // A licence may stand in the lineage alone.
        let own = ["config.json", "galerne.json", "model.safetensors"];
        assert_eq!(chosen(&own, None).unwrap(), own);
    }

    #[test]
    fn a_gguf_file_is_taken_when_it_is_the_only_one_or_named() {
        let two = ["LICENSE", "a.Q4_K_M.gguf", "a.Q8_0.gguf"];
        assert!(chosen(&two, None).unwrap_err().contains("holds 2 GGUF files"));
        assert_eq!(chosen(&two, Some("a.Q8_0.gguf")).unwrap(), ["LICENSE", "a.Q8_0.gguf"]);
        assert!(chosen(&two, Some("a.gguf")).unwrap_err().contains("a.gguf is missing"));
        assert!(chosen(&two, Some("LICENSE")).unwrap_err().contains("LICENSE is missing"));
        assert_eq!(chosen(&two[..2], None).unwrap(), &two[..2]);
    }

    #[test]
    fn a_repository_without_a_model_says_what_it_has() {
        assert!(chosen(&["README.md"], None).unwrap_err().contains("is no model"));
        let pickle = chosen(&["config.json", "pytorch_model.bin"], None).unwrap_err();
        assert!(pickle.contains("pickle"), "{pickle}");
        // Paths that would leave the folder are no files of a model.
        assert!(chosen(&["../config.json", "a/model.safetensors"], None).is_err());
        let odd = ["a.gguf", "tokenizer.model", "tokenizer.model.part", "tokenizer.model\u{1b}[2J"];
        assert_eq!(chosen(&odd, None).unwrap(), &odd[..2]);
    }
}
