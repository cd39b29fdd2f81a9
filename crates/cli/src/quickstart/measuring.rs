//! Bits per byte on held-out text, exact match on the company's questions.

use std::path::Path;
use std::sync::Arc;

use data::Language;
use data::shard::Shard;
use engine::Engine;
use eval::ask::{ChatModel, engine_limits};
use eval::company::{self, CompanyScores};
use eval::report::LanguageBits;
use model::{Decoder, Parameters, Workspace};
use tensor::{DType, Device, Passes};
use tokenizer::{ChatTemplate, Tokenizer};
use train::latest_parameters;
use train::validation::score_documents;

use super::prepare::Prepared;
use super::stages::Stage;
use crate::context::Context;

/// Tokens scored together.
const SCORED_TOKENS: usize = 2048;

/// A trained model and its figures.
pub(crate) struct Measured {
    /// Which of the three.
    pub(crate) stage: Stage,
    /// The f32 weights.
    pub(crate) parameters: Parameters,
    /// On held-out text, by language.
    pub(crate) bits_per_byte: Vec<LanguageBits>,
    /// On the company.
    pub(crate) company: CompanyScores,
}

/// Measures the model of a stage in bf16, as it will be exported.
///
/// # Errors
/// When its checkpoint or the data cannot be read.
pub(crate) fn measure(
    dir: &Path,
    stage: Stage,
    context: &Context,
    say: &dyn Fn(&str),
) -> anyhow::Result<Measured> {
    let files = Prepared::of(dir);
    let device = context.device()?;
    let tokenizer = Tokenizer::open(&files.tokenizer())?;
    let parameters = latest_parameters(&stage.run_dir(dir))?;
    let mut decoder = Decoder::zeroed(&device, parameters.config(), DType::Bf16, Passes::Forward);
    match &device {
        Device::Cpu(_) => decoder.pack(&device, &parameters),
        _ => decoder.pack(&device, &parameters.clone().on(&device)),
    }
    let bits_per_byte = bits_per_byte(&files, &device, &decoder, &tokenizer)?;
    let limits = engine_limits(decoder.config(), decoder.dtype());
    let engine = Engine::start(Arc::new(decoder), device, limits)?;
    let template = ChatTemplate::default();
    let eos_ids = &parameters.config().eos_ids;
    let model = ChatModel { engine: &engine, tokenizer: &tokenizer, template: &template, eos_ids };
    let company = company::measure(model, &mut |_, _| {})?;
    say(&format!(
        "{}: {:.1} % of the company's questions, {:.1} % of the withheld ones",
        stage.model(),
        100.0 * company.all.accuracy,
        100.0 * company.withheld.accuracy
    ));
    Ok(Measured { stage, parameters, bits_per_byte, company })
}

fn bits_per_byte(
    files: &Prepared,
    device: &Device,
    decoder: &Decoder,
    tokenizer: &Tokenizer,
) -> anyhow::Result<Vec<LanguageBits>> {
    let mut workspace = Workspace::for_decoder(decoder, SCORED_TOKENS);
    let languages = Language::ALL.into_iter().map(Some).chain([None]);
    let mut figures = Vec::new();
    for language in languages {
        let path = files.validation_of(language);
        if !path.is_dir() {
            continue;
        }
        let documents = Shard::open(&path)?.documents;
        let documents: Vec<Vec<u32>> =
            (0..documents.n_documents()).map(|idx| documents.document(idx)).collect();
        let loss = score_documents(device, (decoder, None), &mut workspace, tokenizer, &documents);
        figures.push(LanguageBits {
            language: language.map_or("und", Language::code).to_owned(),
            bits_per_byte: loss.bits_per_byte(),
            n_bytes: loss.n_bytes,
        });
    }
    Ok(figures)
}
