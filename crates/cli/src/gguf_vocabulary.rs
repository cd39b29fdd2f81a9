//! Vocabularies between GGUF files and tokenizers, which do not know one another.

use anyhow::Context as _;
use formats::gguf::{GgufTokenKind, GgufVocabulary};
use formats::model_dir::ModelDir;
use tokenizer::{ChatTemplate, Encoding, ListedKind, Tokenizer, VocabularyListing};
use tracing::warn;

const PIECES: &str = "llama";
const BYTES: &str = "gpt2";

/// The tokenizer of a GGUF file's vocabulary.
///
/// # Errors
/// When it is of a kind that is not known.
pub(crate) fn tokenizer(vocabulary: &GgufVocabulary) -> anyhow::Result<Tokenizer> {
    let kind = |kind| match kind {
        GgufTokenKind::Normal => ListedKind::Normal,
        GgufTokenKind::Unknown => ListedKind::Unknown,
        GgufTokenKind::Control | GgufTokenKind::Unused => ListedKind::Control,
        GgufTokenKind::UserDefined => ListedKind::UserDefined,
        GgufTokenKind::Byte => ListedKind::Byte,
    };
    let kinds = vocabulary.kinds.iter().copied().map(kind);
    let encoding = match vocabulary.model.as_str() {
        PIECES => Encoding::Pieces {
            scores: vocabulary.scores.clone(),
            adds_space: vocabulary.adds_space.unwrap_or(true),
        },
        BYTES => Encoding::Bytes {
            merges: vocabulary.merges.clone(),
            split: vocabulary.split.clone().unwrap_or_default(),
        },
        other => anyhow::bail!(
            "tokenizer.ggml.model is {:?}, expected {PIECES} or {BYTES}",
            other.chars().take(80).collect::<String>()
        ),
    };
    // What llama.cpp takes for granted where the file says nothing.
    let adds_bos = match (&encoding, vocabulary.adds_bos) {
        (_, Some(adds_bos)) => adds_bos,
        (Encoding::Pieces { .. }, None) => true,
        (Encoding::Bytes { split, .. }, None) => {
            split.starts_with("llama") || ["tekken", "pixtral"].contains(&split.as_str())
        }
    };
    Ok(Tokenizer::from_listing(&VocabularyListing {
        tokens: vocabulary.tokens.iter().cloned().zip(kinds).collect(),
        encoding,
        bos_id: vocabulary.bos_id,
        eos_id: vocabulary.eos_id,
        adds_bos,
    })?)
}

/// The vocabulary that a GGUF file of this model gets: that of its tokenizer's files, else that of its own GGUF file. A model
/// whose tokenizer such a file cannot hold is written without.
///
/// # Errors
/// When the tokenizer's files cannot be read.
pub(crate) fn of_model(name: &str, model: &ModelDir) -> anyhow::Result<Option<GgufVocabulary>> {
    if !Tokenizer::is_in(model.dir()) {
        return Ok(model.vocabulary()?);
    }
    let failed = || format!("cannot read the tokenizer of {}", model.dir().display());
    let tokenizer = Tokenizer::open(model.dir()).with_context(failed)?;
    let listing = match tokenizer.listing() {
        Ok(listing) => listing,
        Err(error) => {
            warn!(model = name, %error, "the file gets no vocabulary: it takes token ids only");
            return Ok(None);
        }
    };
    Ok(Some(GgufVocabulary {
        chat_template: ChatTemplate::source_in(model.dir()).with_context(failed)?,
        ..of_listing(listing)
    }))
}

fn of_listing(listing: VocabularyListing) -> GgufVocabulary {
    let kind = |kind| match kind {
        ListedKind::Normal => GgufTokenKind::Normal,
        ListedKind::Unknown => GgufTokenKind::Unknown,
        ListedKind::Control => GgufTokenKind::Control,
        ListedKind::UserDefined => GgufTokenKind::UserDefined,
        ListedKind::Byte => GgufTokenKind::Byte,
    };
    let kinds = listing.tokens.iter().map(|(_, listed)| kind(*listed)).collect();
    let mut vocabulary = GgufVocabulary {
        tokens: listing.tokens.into_iter().map(|(text, _)| text).collect(),
        kinds,
        bos_id: listing.bos_id,
        eos_id: listing.eos_id,
        adds_bos: Some(listing.adds_bos),
        ..GgufVocabulary::default()
    };
    match listing.encoding {
        Encoding::Pieces { scores, adds_space } => {
            vocabulary.model = PIECES.to_owned();
            vocabulary.split = Some("default".to_owned());
            vocabulary.scores = scores;
            vocabulary.adds_space = Some(adds_space);
        }
        Encoding::Bytes { merges, split } => {
            vocabulary.model = BYTES.to_owned();
            vocabulary.split = Some(split);
            vocabulary.merges = merges;
        }
    }
    vocabulary
}
