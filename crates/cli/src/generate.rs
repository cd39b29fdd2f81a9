//! `galerne generate`: one completion.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::builder::NonEmptyStringValueParser;
use engine::Sampling;
use formats::{TensorData, TensorDtype, TensorSource, write_safetensors};
use model::Workspace;
use serde_json::json;
use tensor::Device;
use tokenizer::TextStream;

use crate::answer::{Ended, Question, answer};
use crate::context::{Context, Form};
use crate::engine_args::EngineArgs;
use crate::failure::Failure;
use crate::format::{FormatArgs, mask_of};
use crate::open_model::{LoadArgs, OpenModel};
use crate::os::StopSignals;

/// Arguments of `galerne generate`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Model: a name in the home, or a path (with a slash or a dot)
    #[arg(long, value_name = "NAME|PATH")]
    model: String,
    #[command(flatten)]
    load: LoadArgs,
    #[command(flatten)]
    prompt: Prompt,
    /// Text after a gap that the model is to fill, the prompt being the text before it; for models made for this
    #[arg(long, value_name = "TEXT", requires = "prompt")]
    suffix: Option<String>,
    /// Most new tokens
    #[arg(long, value_name = "N", default_value_t = 256)]
    max_tokens: usize,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    format: FormatArgs,
    #[command(flatten)]
    engine: EngineArgs,
    /// Text that ends the answer and is not shown; may be given several times
    #[arg(long, value_name = "TEXT", value_parser = NonEmptyStringValueParser::new())]
    stop: Vec<String>,
    /// Also write the prompt's logits to this file: tensor `logits`, f32, [tokens, vocab_size]
    #[arg(long, value_name = "FILE.safetensors")]
    logits: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct Prompt {
    /// Text to continue; the beginning-of-text token is put before it
    #[arg(long, value_name = "TEXT")]
    prompt: Option<String>,
    /// Token ids to continue, used as given, such as 1,5,9
    #[arg(long, value_name = "IDS", value_delimiter = ',')]
    token_ids: Option<Vec<u32>>,
}

/// How tokens are drawn.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct SamplingArgs {
    /// Divides the logits; 0 takes the likeliest token [default: the model's, else 0]
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true)]
    temperature: Option<f32>,
    /// Draw from this many likeliest tokens [default: all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    top_k: Option<u32>,
    /// Draw from the likeliest tokens whose probabilities reach this sum, 0 to 1 [default: the model's, else 1]
    #[arg(long, value_name = "SHARE", allow_negative_numbers = true)]
    top_p: Option<f32>,
    /// Draw from tokens at least so likely as this part of the likeliest, 0 to 1
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, allow_negative_numbers = true)]
    min_p: f32,
    /// Divides the logits of tokens that were there before, or multiplies those below 0; 1 changes none
    #[arg(long, value_name = "NUMBER", default_value_t = 1.0, allow_negative_numbers = true)]
    repetition_penalty: f32,
    /// Taken from the logits of tokens of the answer
    #[arg(long, value_name = "NUMBER", default_value_t = 0.0, allow_negative_numbers = true)]
    presence_penalty: f32,
    /// Taken from the logit of a token for each time it is in the answer
    #[arg(long, value_name = "NUMBER", default_value_t = 0.0, allow_negative_numbers = true)]
    frequency_penalty: f32,
    /// Start of the random numbers; the same seed gives the same answer
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
}

impl SamplingArgs {
    /// Refuses values without a meaning before a model is loaded.
    pub(crate) fn check(self) -> Result<(), Failure> {
        self.resolve(None, None).check().map_err(Failure::usage)
    }

    /// What was asked for, else what the model's files say, else the likeliest token.
    pub(crate) fn resolve_for(self, model: &OpenModel) -> Sampling {
        let (temperature, top_p) = model.sampling_defaults();
        self.resolve(temperature, top_p)
    }

    fn resolve(self, temperature: Option<f32>, top_p: Option<f32>) -> Sampling {
        Sampling {
            temperature: self.temperature.or(temperature).unwrap_or(0.0),
            top_k: self.top_k,
            top_p: self.top_p.or(top_p).unwrap_or(1.0),
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            seed: self.seed,
            ..Sampling::PLAIN
        }
    }
}

/// Runs the command.
///
/// # Errors
/// When the model cannot be used or the prompt does not fit it.
pub(crate) fn run(args: Args, context: &Context) -> anyhow::Result<()> {
    if let Some(path) = args.logits.as_ref().filter(|path| path.exists()) {
        let hint = "give the name of a new file".to_owned();
        return Err(Failure::Exists { path: path.clone(), hint }.into());
    }
    args.sampling.check()?;
    args.engine.check()?;
    let grammar = args.format.read()?;
    let model = OpenModel::open(&args.model, &args.load, context)?;
    let prompt = token_ids(&args, &model)?;
    check(&prompt, &model)?;
    let device = context.device()?;
    if let Some(path) = &args.logits {
        write_logits(path, &prompt, &model, &device)?;
    }
    let new_tokens = args.max_tokens.min(model.config.context_len - prompt.len());
    let limits = model.limits_of_one(&args.engine, prompt.len() + new_tokens);
    if !args.stop.is_empty() {
        // Stop strings are looked for in the text.
        model.tokenizer()?;
    }
    let engine = model.start_engine(&args.engine, limits, context)?;
    let text = model.tokenizer.clone().map(|tokenizer| {
        let stream = TextStream::after(&tokenizer, &prompt);
        (tokenizer, stream)
    });
    let question = Question {
        prompt,
        max_tokens: args.max_tokens,
        sampling: args.sampling.resolve_for(&model),
        stop_ids: model.eos_ids.clone(),
        stop_strings: args.stop,
        adapter: model.adapter.clone(),
        mask: grammar.map(|grammar| mask_of(&grammar, &model)).transpose()?,
        text,
    };
    let form = context.form();
    // While the model was loading there was no answer to end in good order; what a packing leaves, a later load removes.
    let signals = StopSignals::take_all().context("cannot take signals")?;
    let answer = answer(&engine, question, &signals, |text| match form {
        Form::Text if !text.is_empty() => context.print(text),
        _ => Ok(()),
    })?;
    if let Ended::OnSignal(signal) = answer.ended {
        return Err(Failure::Stopped { signal, saved: None, next: None }.into());
    }
    match (form, &answer.text) {
        (Form::Json, text) => {
            let finish_reason = if answer.ended == Ended::AtLength { "length" } else { "stop" };
            context.print_json(&json!({
                "token_ids": answer.token_ids,
                "text": text,
                "finish_reason": finish_reason,
            }))
        }
        (Form::Text, Some(_)) => context.print("\n"),
        (Form::Text, None) => {
            let ids: Vec<String> = answer.token_ids.iter().map(u32::to_string).collect();
            context.print(&format!("{}\n", ids.join(",")))
        }
    }
}

fn token_ids(args: &Args, model: &OpenModel) -> anyhow::Result<Vec<u32>> {
    let Some(text) = &args.prompt.prompt else {
        return Ok(args.prompt.token_ids.clone().unwrap_or_default());
    };
    let tokenizer = model.tokenizer()?;
    match &args.suffix {
        None => Ok(tokenizer.encode_prompt(text)),
        Some(suffix) => tokenizer
            .render_fill_in_the_middle(text, suffix)
            .map(|rendered| rendered.token_ids)
            .with_context(|| format!("model `{}` was not made to fill gaps", model.name)),
    }
}

/// The engine checks the same; the logits are computed before it is asked.
fn check(prompt: &[u32], model: &OpenModel) -> Result<(), Failure> {
    let (n, context_len, vocab_size) =
        (prompt.len(), model.config.context_len, model.config.vocab_size);
    let unknown = prompt.iter().enumerate().find(|&(_, &id)| id as usize >= vocab_size);
    let problem = match unknown {
        _ if n == 0 => "the prompt has no tokens, expected at least one".to_owned(),
        _ if n >= context_len => {
            format!("the prompt has {n} tokens, expected fewer than {context_len} (context_len)")
        }
        Some((position, id)) => format!(
            "token {position} of the prompt is {id}, expected less than {vocab_size} (vocab_size)"
        ),
        None => return Ok(()),
    };
    Err(Failure::usage(problem))
}

fn write_logits(
    path: &Path,
    prompt: &[u32],
    model: &OpenModel,
    device: &Device,
) -> anyhow::Result<()> {
    let (n_tokens, vocab_size) = (prompt.len(), model.config.vocab_size);
    let mut workspace = Workspace::for_decoder(&model.decoder, n_tokens);
    let segment = [0, u32::try_from(n_tokens).context("the prompt is too long")?];
    let (decoder, adapter) = (&model.decoder, model.adapter.as_deref());
    let logits = decoder.adapted_logits(device, prompt, &segment, adapter, &mut workspace);
    let tensor = TensorSource {
        name: "logits".to_owned(),
        dtype: TensorDtype::F32,
        shape: vec![n_tokens, vocab_size],
        data: TensorData::F32(&logits),
    };
    Ok(write_safetensors(path, [tensor])?)
}
