//! What a recipe names: token shards, conversations, validation text.

use std::io::ErrorKind;
use std::path::Path;

use data::packing::{ConversationRows, PretrainingRows, TrainingSample};
use data::shard::Shard;
use formats::digest::sha256_of_file;
use formats::json_lines::JsonLines;
use formats::model_dir::ModelDir;
use tokenizer::{ChatTemplate, Conversation, Ending, Tokenizer};

use crate::error::TrainError;
use crate::recipe::{Recipe, Start};
use crate::rows::Rows;

/// Makes every path of the recipe absolute, so that a run can be resumed from anywhere.
pub(super) fn make_paths_absolute(recipe: &mut Recipe) -> Result<(), TrainError> {
    let data = &mut recipe.data;
    let start = match &mut recipe.start {
        Start::Model(dir) | Start::Run(dir) => Some(dir),
        Start::Random(_) => None,
    };
    let lists = [&mut data.shards, &mut data.conversations, &mut data.documents];
    let validation = recipe.validation.as_mut().map(|validation| &mut validation.shard);
    let paths = lists.into_iter().flatten().chain(start).chain(validation);
    for path in paths.chain([&mut data.tokenizer]) {
        *path = path.canonicalize().map_err(TrainError::io("find", path))?;
        if path.to_str().is_none() {
            // `run.toml` holds text.
            let source = std::io::Error::new(ErrorKind::InvalidFilename, "its path is not UTF-8");
            return Err(TrainError::io("use", path)(source));
        }
    }
    Ok(())
}

pub(super) fn read_rows(recipe: &Recipe, tokenizer: &Tokenizer) -> Result<Rows, TrainError> {
    let (data, seq_len) = (&recipe.data, recipe.batch.seq_len);
    if !data.shards.is_empty() {
        let sets = data.shards.iter().map(|dir| Ok(open_shard(dir, tokenizer)?.documents));
        let sets = sets.collect::<Result<Vec<_>, TrainError>>()?;
        return Ok(Rows::Pretraining(PretrainingRows::new(sets, seq_len, recipe.seed)?));
    }
    let mut samples = Vec::new();
    let template = template_of(recipe, tokenizer)?;
    for path in &data.conversations {
        read_conversations(path, tokenizer, &template, &mut samples)?;
    }
    for dir in &data.documents {
        let documents = open_shard(dir, tokenizer)?.documents;
        for document_idx in 0..documents.n_documents() {
            let token_ids = documents.document(document_idx);
            samples.extend(TrainingSample::from_document(&token_ids, seq_len));
        }
    }
    let rows = ConversationRows::new(samples, seq_len, recipe.seed)?;
    let (too_long, untrained) = (rows.n_too_long(), rows.n_untrained());
    if too_long + untrained > 0 {
        tracing::warn!(too_long, untrained, seq_len, "samples were left out");
    }
    Ok(Rows::Conversations(rows))
}

/// The template that conversations of a run are rendered with: that of the tokenizer's folder, else our own.
///
/// # Errors
/// When the folder's template cannot be used.
pub fn template_of(recipe: &Recipe, tokenizer: &Tokenizer) -> Result<ChatTemplate, TrainError> {
    Ok(ChatTemplate::open(&recipe.data.tokenizer, tokenizer)?.unwrap_or_default())
}

fn open_shard(dir: &Path, tokenizer: &Tokenizer) -> Result<Shard, TrainError> {
    let shard = Shard::open(dir)?;
    if shard.manifest.vocab_size != tokenizer.vocab_size() {
        let (data, model) = (shard.manifest.vocab_size, tokenizer.vocab_size());
        return Err(TrainError::Vocabulary { data, model });
    }
    if shard.manifest.tokenizer_digest != tokenizer.digest() {
        return Err(TrainError::Setting {
            key: "data.tokenizer",
            got: format!("another tokenizer than the one that made {}", dir.display()),
            expected: format!("digest {}", shard.manifest.tokenizer_digest),
        });
    }
    Ok(shard)
}

fn read_conversations(
    path: &Path,
    tokenizer: &Tokenizer,
    template: &ChatTemplate,
    samples: &mut Vec<TrainingSample>,
) -> Result<(), TrainError> {
    for (line_idx, line) in JsonLines::open(path)?.enumerate() {
        let at_line = |reason: String| TrainError::Conversation {
            path: path.to_owned(),
            line: line_idx + 1,
            reason,
        };
        let conversation: Conversation = serde_json::from_slice(line?.bytes.trim_ascii())
            .map_err(|error| at_line(error.to_string()))?;
        let rendered = template
            .render(tokenizer, &conversation, Ending::Complete)
            .map_err(|error| at_line(error.to_string()))?;
        samples.push(TrainingSample { token_ids: rendered.token_ids, trained: rendered.trained });
    }
    Ok(())
}

pub(super) fn read_validation(
    recipe: &Recipe,
    tokenizer: &Tokenizer,
) -> Result<Vec<Vec<u32>>, TrainError> {
    let Some(validation) = &recipe.validation else { return Ok(Vec::new()) };
    let documents = open_shard(&validation.shard, tokenizer)?.documents;
    let documents: Vec<Vec<u32>> =
        (0..documents.n_documents()).map(|idx| documents.document(idx)).collect();
    let is_text = |id: &u32| !tokenizer.is_control(*id);
    if !documents.iter().any(|document| document.iter().skip(1).any(is_text)) {
        return Err(TrainError::Setting {
            key: "validation.shard",
            got: format!("{} without text", validation.shard.display()),
            expected: "documents of two tokens or more".to_owned(),
        });
    }
    Ok(documents)
}

/// Something that the rows are made of.
#[derive(Debug)]
pub(super) struct Source {
    /// A path, or what else it is.
    pub(super) name: String,
    /// Of what is in it.
    pub(super) digest: String,
}

/// Everything that the rows are made of, and the model where it is not trained itself.
pub(super) fn sources(recipe: &Recipe, tokenizer: &Tokenizer) -> Result<Vec<Source>, TrainError> {
    let data = &recipe.data;
    let source = |path: &Path, digest| Source { name: path.display().to_string(), digest };
    let mut sources = vec![source(&data.tokenizer, tokenizer.digest())];
    for shard in data.shards.iter().chain(&data.documents) {
        let manifest = Shard::open(shard)?.manifest;
        let digest = format!("{} {}", manifest.tokens_sha256, manifest.offsets_sha256);
        sources.push(source(shard, digest));
    }
    for path in &data.conversations {
        sources.push(source(path, sha256_of_file(path)?.0));
    }
    if let Some(digest) = template_digest(recipe, tokenizer)? {
        sources.push(Source { name: "the template of the conversations".to_owned(), digest });
    }
    if let (Some(_), Start::Model(dir)) = (&recipe.adapter, &recipe.start) {
        sources.push(source(dir, weights_digest(dir)?));
    }
    Ok(sources)
}

/// Of the weights of the model beside which an adapter is trained: beside others it would be another adapter.
fn weights_digest(dir: &Path) -> Result<String, TrainError> {
    let model = ModelDir::open(dir)?;
    let digests = model.weights().paths().map(|path| Ok(sha256_of_file(path)?.0));
    Ok(digests.collect::<Result<Vec<_>, TrainError>>()?.join(" "))
}

/// How conversations are rendered, where there are any: names of files and files beside the tokenizer's own decide it, which
/// its digest does not cover. Format 1 of `state.json` did not have it.
pub(super) fn template_digest(
    recipe: &Recipe,
    tokenizer: &Tokenizer,
) -> Result<Option<String>, TrainError> {
    if recipe.data.conversations.is_empty() {
        return Ok(None);
    }
    let name = match template_of(recipe, tokenizer)? {
        ChatTemplate::Galerne => "galerne",
        ChatTemplate::Instruct(version) => version.name(),
        // What has no loss mask cannot be trained on.
        _ => "another",
    };
    let (bos_id, eos_id) = (tokenizer.bos_id(), tokenizer.eos_id());
    Ok(Some(format!("template {name}, bos {bos_id}, eos {eos_id}")))
}
