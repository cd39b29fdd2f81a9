//! `galerne bench`: measured speed, with what the machine could do at most beside it.

use std::sync::Arc;

use anyhow::Context as _;
use bench::{
    BenchReport, BenchResult, Machine, Shape, TRAIN_STEP_BATCH, TRAIN_STEP_SHAPE, decode, median,
    prefill, random_decoder, train_step, train_step_peer,
};
use clap::ValueEnum;
use model::{Decoder, KvCache, ModelConfig};
use tensor::{DType, Device, Passes};
use train::plan::TrainingMemory;

use crate::context::{Context, Form};
use crate::failure::Failure;
use crate::machine;
use crate::open_model::{LoadArgs, OpenModel};
use crate::table::table;

/// Prompt lengths of `prefill`, tokens.
const PROMPT_LENS: [usize; 2] = [512, 2048];
/// Contexts of `decode`, tokens.
const CONTEXTS: [usize; 3] = [0, 2048, 8192];
/// Room that a measured decode takes after its context.
const DECODE_ROOM: usize = 128;
/// Measured training steps.
const N_STEPS: usize = 5;

/// Arguments of `galerne bench`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// What is measured
    #[arg(value_enum, value_name = "WHAT")]
    what: What,
    /// Model to measure: a name in the home, or a path (with a slash or a dot)
    #[arg(long, value_name = "NAME|PATH", conflicts_with = "shape")]
    model: Option<String>,
    #[command(flatten)]
    load: LoadArgs,
    /// Shape with random weights [default: 15.7m]
    #[arg(long, value_name = "SHAPE", value_parser = ["15.7m", "1b", "7b"])]
    shape: Option<String>,
    /// Number type of the random weights of a shape [default: bf16]
    #[arg(long, value_name = "TYPE", value_parser = ["bf16"], conflicts_with = "model")]
    weights: Option<String>,
    /// Measure the peer of benches/peers alternately with ours (train only)
    #[arg(long)]
    peer: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum What {
    /// Reading a prompt
    Prefill,
    /// Writing an answer, one user
    Decode,
    /// A training step of 16 rows of 512 tokens
    Train,
}

/// Runs the command.
///
/// # Errors
/// When the model or the peer cannot be used.
pub(crate) fn run(args: Args, context: &Context) -> anyhow::Result<()> {
    check(&args)?;
    let device = context.device()?;
    context.say("measuring the machine");
    let machine = Machine::measure(context.compute()?);
    let results = match args.what {
        What::Train => vec![train(&args, &machine, &device, context)?],
        What::Prefill | What::Decode => inference(&args, &machine, &device, context)?,
    };
    let report = BenchReport { machine, results };
    match context.form() {
        Form::Json => context.print_json(&report),
        Form::Text => context.print(&as_text(&report)),
    }
}

fn check(args: &Args) -> Result<(), Failure> {
    let problem = match args.what {
        What::Train if args.model.is_some() => "bench train measures shapes: give --shape",
        What::Prefill | What::Decode if args.peer => "--peer is measured by `bench train` only",
        _ if args.load.quantize.is_some() && args.model.is_none() => {
            "--quantize is for models: give --model"
        }
        _ if args.load.adapter.is_some() && args.model.is_none() => {
            "--adapter is for models: give --model"
        }
        _ => return Ok(()),
    };
    Err(Failure::usage(problem))
}

fn shape_of(args: &Args) -> anyhow::Result<(Shape, ModelConfig)> {
    let shape = match &args.shape {
        Some(name) => Shape::named(name).with_context(|| format!("there is no shape `{name}`"))?,
        None => TRAIN_STEP_SHAPE,
    };
    Ok((shape, shape.config()?))
}

fn train(
    args: &Args,
    machine: &Machine,
    device: &Device,
    context: &Context,
) -> anyhow::Result<BenchResult> {
    let (shape, config) = shape_of(args)?;
    let (rows, seq_len) = (TRAIN_STEP_BATCH.rows_per_micro_batch, TRAIN_STEP_BATCH.seq_len);
    let memory = TrainingMemory::of(&config, DType::Bf16, rows, seq_len, 0);
    machine::check_memory("the training step", memory.total_bytes())?;
    let mut speeds = Vec::new();
    let mut peer_speeds = Vec::new();
    // Alternately, so that a busy moment of the machine hits both.
    for round in 1..=if args.peer { 3 } else { 1 } {
        context.say(&format!("measuring the training step, round {round}"));
        speeds.extend(train_step(device, &config, TRAIN_STEP_BATCH, N_STEPS)?);
        if args.peer {
            context.say("measuring PyTorch");
            peer_speeds.push(train_step_peer(context.n_threads())?);
        }
    }
    let speed = median(&mut speeds);
    let tokens = (TRAIN_STEP_BATCH.rows_per_step * TRAIN_STEP_BATCH.seq_len).to_string();
    let mut result = BenchResult::new("train_step", shape.name, tokens, speed);
    let flops = speed * config.train_flops_per_token(TRAIN_STEP_BATCH.seq_len);
    result.roofline_fraction = Some(flops / machine.roofline.bf16_flops);
    Ok(if args.peer { result.with_peer("pytorch", median(&mut peer_speeds)) } else { result })
}

/// The model to measure and its name.
fn decoder(
    args: &Args,
    device: &Device,
    context: &Context,
) -> anyhow::Result<(String, Arc<Decoder>)> {
    if let Some(value) = &args.model {
        let model = OpenModel::open(value, &args.load, context)?;
        return Ok((model.name, model.decoder));
    }
    let (shape, config) = shape_of(args)?;
    let what = format!("a model of shape {}", shape.name);
    // Packed weights, and the random numbers that they are packed from.
    let packed = Decoder::bytes_for(&config, DType::Bf16, Passes::Forward) as u64;
    machine::check_memory(&what, packed + 4 * config.n_parameters())?;
    Ok((shape.name.to_owned(), Arc::new(random_decoder(device, &config))))
}

fn inference(
    args: &Args,
    machine: &Machine,
    device: &Device,
    context: &Context,
) -> anyhow::Result<Vec<BenchResult>> {
    let (name, decoder) = decoder(args, device, context)?;
    let config = decoder.config();
    let (work, lens, room): (_, &[usize], _) = match args.what {
        What::Prefill => ("prefill", &PROMPT_LENS, 0),
        _ => ("decode", &CONTEXTS, DECODE_ROOM),
    };
    let mut results = Vec::new();
    for &len in lens {
        if len + room > config.context_len {
            context
                .say(&format!("{work} {len} is left out: the context has {}", config.context_len));
            continue;
        }
        context.say(&format!("measuring {work} {len}"));
        let (speed, limit) = if work == "prefill" {
            // Reading takes the forward third of a training step's operations.
            let flops = config.train_flops_per_token(len) / 3.0;
            (prefill(device, &decoder, len), machine.roofline.bf16_flops / flops)
        } else {
            let bytes =
                decoder.packed_bytes() + KvCache::bytes_for(config, decoder.dtype(), len, 1);
            (decode(device, &decoder, len), machine.roofline.read_bytes_per_s / bytes as f64)
        };
        let mut result = BenchResult::new(work, &name, len.to_string(), speed);
        result.roofline_fraction = Some(speed / limit);
        results.push(result);
    }
    anyhow::ensure!(!results.is_empty(), "the context of model `{name}` is too short to measure");
    Ok(results)
}

fn as_text(report: &BenchReport) -> String {
    let machine = &report.machine;
    let mut text =
        format!("{}, {} threads, {}\n", machine.cpu, machine.n_threads, machine.kernel_family);
    let lines: Vec<(String, String)> = report
        .results
        .iter()
        .map(|result| {
            let mut value = format!("{:.1} {}", result.value, result.unit);
            if let Some(fraction) = result.roofline_fraction {
                value += &format!("  {:.0} % of the limit", 100.0 * fraction);
            }
            if let (Some(peer), Some(peer_value), Some(ratio)) =
                (&result.peer, result.peer_value, result.ratio)
            {
                value += &format!("  {peer} {peer_value:.1}, ratio {ratio:.2}");
            }
            (format!("{} {} {}", result.work, result.model, result.detail), value)
        })
        .collect();
    let rows: Vec<_> = lines.iter().map(|(name, value)| (name.as_str(), value.clone())).collect();
    text += &table(&rows);
    text
}
