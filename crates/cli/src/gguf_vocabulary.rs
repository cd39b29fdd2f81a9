//! Vocabularies between GGUF files and tokenizers, which do not know one another.

use anyhow::Context as _;
use formats::convert::NamedFile;
use formats::gguf::{GgufEncoding, GgufTokenKind, GgufVocabulary};
use formats::model_dir::ModelDir;
use tokenizer::{ChatTemplate, Encoding, ListedKind, Tokenizer, VocabularyListing};
use tracing::warn;

/// The tokenizer of a GGUF file's vocabulary.
///
/// # Errors
/// When its rules are not known, or its entries contradict one another.
pub(crate) fn tokenizer(vocabulary: &GgufVocabulary) -> anyhow::Result<Tokenizer> {
    let kind = |kind| match kind {
        GgufTokenKind::Normal => ListedKind::Normal,
        GgufTokenKind::Unknown => ListedKind::Unknown,
        GgufTokenKind::Control | GgufTokenKind::Unused => ListedKind::Control,
        GgufTokenKind::UserDefined => ListedKind::UserDefined,
        GgufTokenKind::Byte => ListedKind::Byte,
    };
    let kinds = vocabulary.kinds.iter().copied().map(kind);
    let encoding = match &vocabulary.encoding {
        GgufEncoding::Pieces { scores, adds_space } => {
            Encoding::Pieces { scores: scores.clone(), adds_space: *adds_space }
        }
        GgufEncoding::Bytes { merges, split } => {
            Encoding::Bytes { merges: merges.clone(), split: split.clone().unwrap_or_default() }
        }
    };
    Ok(Tokenizer::from_listing(&VocabularyListing {
        tokens: vocabulary.tokens.iter().cloned().zip(kinds).collect(),
        encoding,
        bos_id: vocabulary.bos_id,
        eos_id: vocabulary.eos_id,
        adds_bos: vocabulary.adds_bos,
    })?)
}

/// The vocabulary that a GGUF file of this model gets: that of its tokenizer's files, else that of its own GGUF file. A model
/// whose tokenizer such a file cannot hold is written without.
///
/// # Errors
/// When the tokenizer's files cannot be read, or a link leads out of the model's folder.
pub(crate) fn of_model(name: &str, model: &ModelDir) -> anyhow::Result<Option<GgufVocabulary>> {
    if !Tokenizer::is_in(model.dir())? {
        return Ok(model.vocabulary()?);
    }
    let failed = || format!("cannot read the tokenizer of {}", model.dir().display());
    // Refuses files that a link brings from elsewhere: the template would be copied as it is.
    model.files().with_context(failed)?;
    let tokenizer = Tokenizer::open(model.dir()).with_context(failed)?;
    let listing = match tokenizer.listing() {
        Ok(listing) => listing,
        Err(error) => {
            warn!(model = name, %error, "the file gets no vocabulary: it takes token ids only");
            return Ok(None);
        }
    };
    Ok(Some(of_listing(listing, ChatTemplate::source_in(model.dir()).with_context(failed)?)))
}

/// The files of a tokenizer, and of a template, that only a model's GGUF file holds: for a directory made of it.
///
/// # Errors
/// When the files beside the weights cannot be looked at, or the vocabulary cannot be read.
pub(crate) fn as_files(name: &str, model: &ModelDir) -> anyhow::Result<Vec<NamedFile>> {
    if Tokenizer::is_in(model.dir())? {
        return Ok(Vec::new());
    }
    let Some(vocabulary) = model.vocabulary()? else { return Ok(Vec::new()) };
    let tokenizer = match tokenizer(&vocabulary) {
        Ok(tokenizer) => tokenizer,
        Err(error) => {
            warn!(model = name, %error, "the directory gets no tokenizer");
            return Ok(Vec::new());
        }
    };
    let mut files = tokenizer.files();
    if let Some(template) = vocabulary.chat_template {
        files.push(("chat_template.jinja".to_owned(), template.into_bytes()));
    }
    Ok(files)
}

fn of_listing(listing: VocabularyListing, chat_template: Option<String>) -> GgufVocabulary {
    let kind = |kind| match kind {
        ListedKind::Normal => GgufTokenKind::Normal,
        ListedKind::Unknown => GgufTokenKind::Unknown,
        ListedKind::Control => GgufTokenKind::Control,
        ListedKind::UserDefined => GgufTokenKind::UserDefined,
        ListedKind::Byte => GgufTokenKind::Byte,
    };
    let kinds = listing.tokens.iter().map(|(_, listed)| kind(*listed)).collect();
    let encoding = match listing.encoding {
        Encoding::Pieces { scores, adds_space } => GgufEncoding::Pieces { scores, adds_space },
        Encoding::Bytes { merges, split } => GgufEncoding::Bytes { merges, split: Some(split) },
    };
    GgufVocabulary {
        tokens: listing.tokens.into_iter().map(|(text, _)| text).collect(),
        kinds,
        encoding,
        bos_id: listing.bos_id,
        eos_id: listing.eos_id,
        adds_bos: listing.adds_bos,
        chat_template,
    }
}
