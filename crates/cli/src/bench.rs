//! `galerne bench`: measured speed, with what the machine could do at most beside it.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use bench::{
    BATCH_PROMPT, BenchReport, BenchResult, Machine, RANDOM_MODEL_VERSION, RandomWeights, Roofline,
    Shape, TRAIN_STEP_BATCH, TRAIN_STEP_SHAPE, batched_decode, decode, llama_cpp_peer, median,
    prefill, train_step, train_step_peer, write_random_model,
};
use clap::ValueEnum;
use eval::figures::bytes;
use model::{Decoder, KvBlocks, ModelConfig};
use tensor::{DType, Device};
use train::plan::TrainingMemory;

use crate::context::{Context, Form};
use crate::failure::Failure;
use crate::machine;
use crate::open_model::{LoadArgs, OpenModel, open_dir};
use crate::table::table;

/// Prompt lengths of `prefill`, tokens.
const PROMPT_LENS: [usize; 2] = [512, 2048];
/// Contexts of `decode`, tokens.
const CONTEXTS: [usize; 3] = [0, 2048, 8192];
/// Users of `batch`.
const USERS: [usize; 4] = [1, 4, 8, 16];
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
    /// Random weights of a shape: q4km, q8 or bf16, a GGUF file that is made once in the home's cache [default: bf16]
    #[arg(long, value_name = "TYPE", value_parser = parse_weights, conflicts_with = "model")]
    weights: Option<RandomWeights>,
    /// Measure the peer alternately with ours: PyTorch (train), or llama.cpp on the same GGUF file
    #[arg(long)]
    peer: bool,
    /// Rounds of ours and the peer; figures are medians
    #[arg(long, value_name = "N", default_value = "3", requires = "peer", value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum What {
    /// Reading a prompt
    Prefill,
    /// Writing an answer, one user
    Decode,
    /// Writing answers to several users at once
    Batch,
    /// A training step of 16 rows of 512 tokens
    Train,
}

impl Args {
    fn n_rounds(&self) -> u32 {
        if self.peer { self.rounds } else { 1 }
    }
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
        What::Prefill | What::Decode | What::Batch => inference(&args, &machine, &device, context)?,
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
        What::Train if args.weights.is_some_and(|weights| weights != RandomWeights::Bf16) => {
            "bench train measures bf16: leave out --weights"
        }
        _ if args.peer && (args.load.quantize.is_some() || args.load.adapter.is_some()) => {
            "--peer measures the file as it is: leave out --quantize and --adapter"
        }
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
    for round in 1..=args.n_rounds() {
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

/// The `--model` value that is measured: for a shape the file of its random weights, which is made where it is not there.
fn model_value(args: &Args, context: &Context) -> anyhow::Result<String> {
    if let Some(value) = &args.model {
        return Ok(value.clone());
    }
    let (shape, config) = shape_of(args)?;
    let weights = args.weights.unwrap_or(RandomWeights::Bf16);
    let (name, kind) = (shape.name, weights.name());
    if let Some((n_in, block_len)) = weights.broken_rows(&config) {
        let problem = format!(
            "--weights {kind} of shape {name}: rows of {n_in} numbers, expected whole blocks of {block_len}"
        );
        return Err(Failure::usage(problem).into());
    }
    let dir = context.home().join(format!("cache/shapes/v{RANDOM_MODEL_VERSION}"));
    let path = dir.join(format!("{name}-{kind}.gguf"));
    if !path.exists() {
        let n_bytes = weights.n_bytes(&config);
        machine::check_disk("the model of random weights", &dir, n_bytes)?;
        context.make_dir(&dir)?;
        context.say(&format!("writing {}: {}", path.display(), bytes(n_bytes)));
        write_random_model(&path, &config, weights)?;
    }
    Ok(path.display().to_string())
}

fn parse_weights(text: &str) -> Result<RandomWeights, String> {
    let names = RandomWeights::ALL.map(RandomWeights::name).join(", ");
    RandomWeights::named(text).ok_or_else(|| format!("expected one of {names}"))
}

fn inference(
    args: &Args,
    machine: &Machine,
    device: &Device,
    context: &Context,
) -> anyhow::Result<Vec<BenchResult>> {
    let value = model_value(args, context)?;
    let peer_file = args.peer.then(|| gguf_file(&value, context)).transpose()?;
    let OpenModel { name, decoder, .. } = OpenModel::open(&value, &args.load, context)?;
    let config = decoder.config();
    let details: &[usize] = match args.what {
        What::Prefill => &PROMPT_LENS,
        What::Decode => &CONTEXTS,
        _ => &USERS,
    };
    let mut results = Vec::new();
    for &detail in details {
        let measured = Inference::new(args.what, detail);
        if measured.n_positions() > config.context_len {
            let (work, limit) = (measured.work, config.context_len);
            context.say(&format!("{work} {detail} is left out: the context has {limit}"));
            continue;
        }
        let (mut speeds, mut peer_speeds) = (Vec::new(), Vec::new());
        for round in 1..=args.n_rounds() {
            context.say(&format!("measuring {} {detail}, round {round}", measured.work));
            speeds.push(measured.speed(device, &decoder));
            if let Some(file) = &peer_file {
                context.say("measuring llama.cpp");
                let n_threads = context.n_threads();
                peer_speeds.push(llama_cpp_peer(file, measured.peer_work, detail, n_threads)?);
            }
        }
        let speed = median(&mut speeds);
        let mut result = BenchResult::new(measured.work, &name, detail.to_string(), speed);
        result.roofline_fraction = Some(speed / measured.limit(&decoder, machine));
        results.push(match peer_file {
            Some(_) => result.with_peer("llama.cpp", median(&mut peer_speeds)),
            None => result,
        });
    }
    anyhow::ensure!(!results.is_empty(), "the context of model `{name}` is too short to measure");
    Ok(results)
}

/// The GGUF file of a `--model` value, which the peer reads too.
fn gguf_file(value: &str, context: &Context) -> anyhow::Result<PathBuf> {
    let (_, dir) = open_dir(value, context)?;
    let gguf = dir.weights().gguf().map(|_| dir.weights().paths().next().map(Path::to_owned));
    let not_gguf = || Failure::usage("--peer: llama.cpp reads GGUF files only");
    Ok(gguf.flatten().ok_or_else(not_gguf)?)
}

/// One figure of reading or writing.
struct Inference {
    /// In the result.
    work: &'static str,
    /// In the peer's script.
    peer_work: &'static str,
    what: What,
    detail: usize,
}

impl Inference {
    fn new(what: What, detail: usize) -> Self {
        let (work, peer_work) = match what {
            What::Prefill => ("prefill", "prefill"),
            What::Decode => ("decode", "decode"),
            _ => ("batched_decode", "batch"),
        };
        Self { work, peer_work, what, detail }
    }

    /// Positions that a sequence needs.
    fn n_positions(&self) -> usize {
        match self.what {
            What::Prefill => self.detail,
            What::Decode => self.detail + DECODE_ROOM,
            _ => BATCH_PROMPT + DECODE_ROOM,
        }
    }

    /// Tokens per second.
    fn speed(&self, device: &Device, decoder: &Decoder) -> f64 {
        match self.what {
            What::Prefill => prefill(device, decoder, self.detail),
            What::Decode => decode(device, decoder, self.detail),
            _ => batched_decode(device, decoder, self.detail),
        }
    }

    /// Most tokens per second that the machine allows: reading takes operations; writing reads the weights once for all users, and
    /// each user's cache.
    fn limit(&self, decoder: &Decoder, machine: &Machine) -> f64 {
        let config = decoder.config();
        let (n_users, context_len) = match self.what {
            What::Prefill => {
                let flops = config.forward_flops_per_token(self.detail);
                let Roofline { int8_ops, bf16_flops, .. } = machine.roofline;
                return if decoder.has_packed_blocks() { int8_ops } else { bf16_flops } / flops;
            }
            What::Decode => (1, self.detail),
            _ => (self.detail, BATCH_PROMPT),
        };
        let cache = KvBlocks::bytes_for(config, decoder.dtype(), context_len, 1);
        let bytes = decoder.n_bytes() + n_users * cache;
        n_users as f64 * machine.roofline.read_bytes_per_s / bytes as f64
    }
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
