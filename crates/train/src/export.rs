//! A trained model as a Hugging Face directory, with model card and lineage, and a trained adapter as one of PEFT.

use std::path::Path;

use formats::adapter::{Adapter, AdapterNotes};
use formats::durable::write_bytes_atomically;
use formats::model_dir::{GenerationConfig, Lineage, ModelDir, ModelDirWriter};
use formats::{DecoderConfig, TensorData, TensorSource, WeightDtype, WeightName};
use model::{AdapterParameters, Parameters};
use tokenizer::{ChatTemplate, Tokenizer};

use crate::error::TrainError;
use crate::run::{Named, named_factors};

/// What an export says about the model beside its weights.
#[derive(Clone, Debug)]
pub struct ModelNotes {
    /// Name of the model, the title of its card.
    pub name: String,
    /// What it is and what it was made for, a paragraph.
    pub summary: String,
    /// Sections of the card, title and Markdown text, in order.
    pub sections: Vec<(String, String)>,
    /// Where it comes from.
    pub lineage: Lineage,
    /// Sampling temperature that suits it, if any does in particular.
    pub temperature: Option<f64>,
    /// The template of its conversations; `None` of a model that saw none.
    pub template: Option<ChatTemplate>,
}

/// Writes a model directory: `config.json`, weights in `dtype`, tokenizer, generation settings, lineage and card. It appears
/// whole or not at all.
///
/// # Errors
/// When the directory exists or cannot be written.
pub fn write_model(
    dir: &Path,
    parameters: &Parameters,
    dtype: WeightDtype,
    tokenizer: &Tokenizer,
    notes: &ModelNotes,
) -> Result<ModelDir, TrainError> {
    let config = DecoderConfig { dtype, ..(**parameters.config()).clone() };
    let writer = ModelDirWriter::begin(dir)?;
    writer.config(&config)?;
    let sources = WeightName::all(&config).into_iter().map(|name| TensorSource {
        name: name.hf_name(),
        dtype: dtype.into(),
        shape: name.shape(&config),
        data: TensorData::F32(parameters.weight(name)),
    });
    writer.weights(sources)?;
    let files = tokenizer.files();
    for (name, contents) in &files {
        writer.file(name, |out| out.write_all(contents))?;
    }
    // A foreign tokenizer's files say nothing of our template.
    let template = notes.template.as_ref().and_then(ChatTemplate::file);
    if let Some((name, text)) = template.filter(|(name, _)| !files.iter().any(|(n, _)| n == name)) {
        writer.file(name, |out| out.write_all(text.as_bytes()))?;
    }
    let eos_ids = config.eos_ids.clone();
    let generation = GenerationConfig {
        bos_id: config.bos_id,
        eos_ids,
        temperature: notes.temperature,
        top_p: None,
    };
    writer.generation_config(&generation)?;
    writer.lineage(&notes.lineage)?;
    writer.model_card(&model_card(&config, notes))?;
    Ok(writer.commit()?)
}

/// Writes an adapter as a PEFT directory, with its lineage. It appears whole or not at all. `base_model` is where PEFT finds the
/// model.
///
/// # Errors
/// When the directory exists or cannot be written.
pub fn write_adapter(
    dir: &Path,
    factors: &AdapterParameters,
    base_model: &Path,
    lineage: Lineage,
) -> Result<Adapter, TrainError> {
    let settings = factors.settings();
    let notes = AdapterNotes {
        rank: settings.rank,
        alpha: settings.alpha,
        base_model: base_model.display().to_string(),
        lineage,
    };
    let (matrices, tensors) = (factors.names().collect::<Vec<_>>(), named_factors(factors, ""));
    let tensors = tensors.iter().map(Named::source);
    Ok(formats::adapter::write_adapter(dir, factors.config(), &notes, &matrices, tensors)?)
}

/// Writes the files of a tokenizer into a folder, which is made when missing. Each appears whole or not at all, and
/// the tokenizer's own file last.
///
/// # Errors
/// When the folder cannot be made or a file not be written.
pub fn write_tokenizer(dir: &Path, tokenizer: &Tokenizer) -> Result<(), TrainError> {
    std::fs::create_dir_all(dir).map_err(TrainError::io("create", dir))?;
    for (name, contents) in tokenizer.files() {
        write_bytes_atomically(&dir.join(name), &contents)?;
    }
    Ok(())
}

fn model_card(config: &DecoderConfig, notes: &ModelNotes) -> String {
    let licence = notes.lineage.licence.as_deref().unwrap_or("not stated");
    let mut card = format!(
        "# {}\n\n{}\n\n| | |\n|---|---|\n| Parameters | {} |\n| Architecture | Mistral: {} layers, {} wide, \
         {} query and {} KV heads of {}, feed-forward {} |\n| Vocabulary | {} |\n| Context | {} tokens |\n\
         | Weights | {:?} safetensors |\n| Licence | {licence} |\n",
        notes.name,
        notes.summary,
        config.n_parameters(),
        config.n_layers,
        config.hidden_dim,
        config.n_heads,
        config.n_kv_heads,
        config.head_dim,
        config.ffn_dim,
        config.vocab_size,
        config.context_len,
        config.dtype,
    );
    for (title, text) in &notes.sections {
        card.push_str(&format!("\n## {title}\n\n{text}\n"));
    }
    card
}
