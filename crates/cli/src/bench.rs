//! `galerne bench`: measured speed, with what the machine could do at most beside it.

mod growth;
mod inference;
mod throughput;
mod tokenization;
mod training;

use std::num::NonZeroUsize;
use std::path::PathBuf;

use anyhow::Context as _;
use bench::{
    BENCH_VOCAB_SIZE, BenchReport, BenchResult, Machine, Peer, RandomWeights, Shape,
    TRAIN_STEP_SHAPE,
};
use clap::ValueEnum;
use cuda::KernelTime;
use model::{CacheKind, ModelConfig};
use tensor::Device;

use crate::context::{Context, Form};
use crate::doctor;
use crate::engine_args::CacheArgs;
use crate::failure::Failure;
use crate::open_model::LoadArgs;
use crate::table::table;

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
    #[command(flatten)]
    cache: CacheArgs,
    /// Shape with random weights [default: 15.7m]
    #[arg(long, value_name = "SHAPE", value_parser = ["15.7m", "124m", "1b", "7b", "8b"])]
    shape: Option<String>,
    /// Random weights of a shape: q4km, q8 or bf16, a GGUF file that is made once in the home's cache [default: bf16]
    #[arg(long, value_name = "TYPE", value_parser = parse_weights, conflicts_with = "model")]
    weights: Option<RandomWeights>,
    /// Folder of .txt files, folders inside it included (tokenizer)
    #[arg(long, value_name = "DIR")]
    text: Option<PathBuf>,
    /// Entries of the vocabulary (tokenizer) [default: 32768]
    #[arg(long, value_name = "N", requires = "text")]
    vocab_size: Option<NonZeroUsize>,
    /// Measure a peer alternately with ours: llama.cpp, openvino or pytorch on the same GGUF file [default: llama.cpp]; pytorch
    /// (train); gigatoken (tokenizer)
    #[arg(long, value_name = "NAME", num_args = 0..=1, require_equals = true, default_missing_value = DEFAULT_PEER, value_parser = parse_peer)]
    peer: Option<WantedPeer>,
    /// What is measured, in place of the defaults: lengths of prompts (prefill), contexts (decode) or numbers of users (batch)
    #[arg(long, value_name = "N,N...", value_delimiter = ',', value_parser = parse_size)]
    at: Vec<usize>,
    /// Rounds of ours and the peer; figures are medians
    #[arg(long, value_name = "N", default_value = "3", requires = "peer", value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Compare the logits with those of the file's numbers in f32; with --peer they always are, and the peer's too
    #[arg(long)]
    divergence: bool,
    /// Say on stderr what a GPU spends its time on (train, and decode and batch of a shape)
    #[arg(long)]
    profile: bool,
    /// Train a LoRA adapter of this rank, of all matrices, beside the model that stays as it is (train)
    #[arg(long, value_name = "N")]
    lora_rank: Option<NonZeroUsize>,
    /// Document whose figures and plots are rewritten (growth)
    #[arg(long, value_name = "FILE.md")]
    document: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum What {
    /// Reading a prompt
    Prefill,
    /// Writing an answer, one user
    Decode,
    /// Writing answers to several users at once
    Batch,
    /// Many requests through the engine, and how soon their first tokens come (a shape)
    Throughput,
    /// A training step: of 16 rows of 512 tokens, on a GPU of as many as keep it busy
    Train,
    /// Training a tokenizer, and encoding on one thread, in megabytes of --text a second
    Tokenizer,
    /// How costs grow: reading and writing with the length, writing with the users, a training step with width and depth
    Growth,
}

impl What {
    fn is_inference(self) -> bool {
        matches!(self, Self::Prefill | Self::Decode | Self::Batch)
    }

    /// Whether a peer does this.
    fn is_done_by(self, peer: Peer) -> bool {
        match self {
            Self::Prefill | Self::Decode | Self::Batch => peer.infers(),
            Self::Train => peer == Peer::PyTorch,
            Self::Tokenizer => peer == Peer::Gigatoken,
            Self::Growth | Self::Throughput => false,
        }
    }

    fn default_peer(self) -> Peer {
        match self {
            Self::Prefill | Self::Decode | Self::Batch | Self::Growth | Self::Throughput => {
                Peer::LlamaCpp
            }
            Self::Train => Peer::PyTorch,
            Self::Tokenizer => Peer::Gigatoken,
        }
    }
}

/// The largest length or context that can be asked for, and the most users.
const MAX_SIZE: usize = 1 << 20;
const MAX_USERS: usize = 1024;

/// What `--peer` alone stands for.
const DEFAULT_PEER: &str = "default";

/// The value of `--peer`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WantedPeer {
    Default,
    Named(Peer),
}

fn parse_peer(text: &str) -> Result<WantedPeer, String> {
    if text == DEFAULT_PEER {
        return Ok(WantedPeer::Default);
    }
    let names = Peer::ALL.map(Peer::name).join(", ");
    Peer::named(text).map(WantedPeer::Named).ok_or_else(|| format!("expected one of {names}"))
}

fn parse_weights(text: &str) -> Result<RandomWeights, String> {
    let names = RandomWeights::ALL.map(RandomWeights::name).join(", ");
    RandomWeights::named(text).ok_or_else(|| format!("expected one of {names}"))
}

/// Of `--at`.
fn parse_size(text: &str) -> Result<usize, String> {
    let size = text.parse().ok().filter(|size| *size <= MAX_SIZE);
    size.ok_or_else(|| format!("expected a number up to {MAX_SIZE}"))
}

impl Args {
    fn n_rounds(&self) -> u32 {
        if self.peer.is_some() { self.rounds } else { 1 }
    }

    /// The peer that is measured beside ours.
    fn peer(&self) -> Option<Peer> {
        self.peer.map(|wanted| match wanted {
            WantedPeer::Default => self.what.default_peer(),
            WantedPeer::Named(peer) => peer,
        })
    }

    fn shape(&self) -> anyhow::Result<(Shape, ModelConfig)> {
        let shape = match &self.shape {
            Some(name) => {
                Shape::named(name).with_context(|| format!("there is no shape `{name}`"))?
            }
            None => TRAIN_STEP_SHAPE,
        };
        Ok((shape, shape.config()?))
    }

    fn vocab_size(&self) -> usize {
        self.vocab_size.map_or(BENCH_VOCAB_SIZE, NonZeroUsize::get)
    }
}

/// Runs the command.
///
/// # Errors
/// When the model, the text or the peer cannot be used.
pub(crate) fn run(args: Args, context: &Context) -> anyhow::Result<()> {
    check_sizes(&args)?;
    check(&args)?;
    if let Some(peer) = args.peer() {
        peer.check_installed()?;
    }
    context.say("measuring the machine");
    let mut machine = Machine::measure(context.compute()?);
    let device = context.device()?;
    if let Device::Cuda { gpu, .. } = &device {
        machine.gpu = Some(doctor::measured(gpu)?);
    }
    if args.profile && matches!(device, Device::Cpu(_)) {
        return Err(Failure::usage("--profile is for a GPU: leave it out").into());
    }
    let results = match args.what {
        What::Growth => return growth::measure(&args, machine, context),
        What::Train => vec![training::measure(&args, &machine, context)?],
        What::Prefill | What::Decode | What::Batch => inference::measure(&args, &machine, context)?,
        What::Throughput => throughput::measure(&args, &device, context)?,
        What::Tokenizer => tokenization::measure(&args, context)?,
    };
    let report = BenchReport { machine, results };
    match context.form() {
        Form::Json => context.print_json(&report),
        Form::Text => context.print(&as_text(&report)),
    }
}

/// Checks `--at`.
fn check_sizes(args: &Args) -> Result<(), Failure> {
    let problem = match args.what {
        _ if args.at.is_empty() => return Ok(()),
        What::Prefill if args.at.contains(&0) => "--at: expected prompts of at least 1 token",
        What::Batch if !args.at.iter().all(|n| (1..=MAX_USERS).contains(n)) => {
            "--at: expected 1 to 1024 users"
        }
        what if !what.is_inference() => "--at is for prefill, decode and batch: leave it out",
        _ => return Ok(()),
    };
    Err(Failure::usage(problem))
}

fn check(args: &Args) -> Result<(), Failure> {
    let (what, is_inference) = (args.what, args.what.is_inference());
    let problem = match args.peer() {
        Some(_) if what == What::Growth => "bench growth has no peer: leave out --peer",
        _ if what == What::Throughput && (args.model.is_some() || args.weights.is_some()) => {
            "bench throughput measures shapes of bf16: give --shape"
        }
        Some(peer) if !what.is_done_by(peer) => {
            let names = Peer::ALL.into_iter().filter(|&peer| what.is_done_by(peer));
            let names: Vec<&str> = names.map(Peer::name).collect();
            return Err(Failure::usage(format!(
                "--peer={} does not do this: expected {}",
                peer.name(),
                names.join(", ")
            )));
        }
        _ if what == What::Tokenizer && args.text.is_none() => {
            "bench tokenizer measures text: give --text DIR"
        }
        _ if what != What::Tokenizer && args.text.is_some() => {
            "--text is for bench tokenizer: leave it out"
        }
        _ if what != What::Growth && args.document.is_some() => {
            "--document is for bench growth: leave it out"
        }
        _ if what != What::Train && args.lora_rank.is_some() => {
            "--lora-rank is for bench train: leave it out"
        }
        Some(_) if args.lora_rank.is_some() => "--peer trains models: leave out --lora-rank",
        _ if what == What::Train && args.model.is_some() => {
            "bench train measures shapes: give --shape"
        }
        Some(_)
            if what == What::Train
                && args.shape.as_deref().is_some_and(|name| name != TRAIN_STEP_SHAPE.name) =>
        {
            "--peer trains the shape 15.7m: leave out --shape"
        }
        _ if what == What::Train && args.weights.is_some_and(|of| of != RandomWeights::Bf16) => {
            "bench train measures bf16: leave out --weights"
        }
        _ if what == What::Tokenizer
            && (args.model.is_some() || args.shape.is_some() || args.weights.is_some()) =>
        {
            "bench tokenizer has no model: leave out --model, --shape and --weights"
        }
        _ if args.cache.kind() != CacheKind::Operands && !is_inference => {
            "--kv-cache-dtype is for prefill, decode and batch: leave it out"
        }
        _ if args.divergence && !is_inference => "--divergence is for prefill, decode and batch",
        Some(_) if args.load.quantize.is_some() || args.load.adapter.is_some() => {
            "--peer measures the file as it is: leave out --quantize and --adapter"
        }
        _ if args.load.adapter.is_some() && what == What::Growth => {
            "bench growth measures models alone: leave out --adapter"
        }
        _ if args.load.adapter.is_some() && args.divergence => {
            "--divergence compares with the file alone: leave out --adapter"
        }
        _ if args.profile && !matches!(what, What::Train | What::Decode | What::Batch) => {
            "--profile is for train, decode and batch: leave it out"
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

/// What a GPU spent its time on, kernels of less than half a percent in one line.
fn say_profile(profile: &[KernelTime], context: &Context) {
    let total: f64 = profile.iter().map(|kernel| kernel.seconds).sum();
    context.say(&format!("{:.2} ms on the GPU", total * 1e3));
    let (shown, small): (Vec<_>, Vec<_>) =
        profile.iter().partition(|kernel| kernel.seconds >= 0.005 * total);
    for KernelTime { name, n_calls, seconds } in shown {
        let (ms, share) = (seconds * 1e3, 100.0 * seconds / total);
        context.say(&format!("{ms:10.3} ms {share:5.1} % {n_calls:6} x {name}"));
    }
    let ms = small.iter().map(|kernel| kernel.seconds).sum::<f64>() * 1e3;
    context.say(&format!("{ms:10.3} ms of others"));
}

fn as_text(report: &BenchReport) -> String {
    let machine = &report.machine;
    let mut text =
        format!("{}, {} threads, {}\n", machine.cpu, machine.n_threads, machine.kernel_family);
    if let Some(gpu) = &machine.gpu {
        let (flops, copies) = (gpu.bf16_flops / 1e12, gpu.copy_bytes_per_s / 1e12);
        text +=
            &format!("{}: bf16 products {flops:.0} TFLOP/s, copies {copies:.2} TB/s\n", gpu.name);
    }
    let name = |result: &BenchResult| format!("{} {} {}", result.work, result.model, result.detail);
    let lines: Vec<(String, String)> =
        report.results.iter().map(|result| (name(result), value_text(result))).collect();
    let rows: Vec<_> = lines.iter().map(|(name, value)| (name.as_str(), value.clone())).collect();
    text += &table(&rows);
    text
}

fn value_text(result: &BenchResult) -> String {
    let mut text = format!("{:.1} {}", result.value, result.unit);
    if let Some(fraction) = result.roofline_fraction {
        text += &format!("  {:.0} % of the limit", 100.0 * fraction);
    }
    if let (Some(peer), Some(peer_value), Some(ratio)) =
        (&result.peer, result.peer_value, result.ratio)
    {
        text += &format!("  {peer} {peer_value:.1}, ratio {ratio:.2}");
    }
    if let Some(divergence) = result.divergence {
        text += &format!("  divergence {divergence:.3e} nats");
    }
    if let Some(divergence) = result.peer_divergence {
        text += &format!(", of the peer {divergence:.3e}");
    }
    text
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::args::{Cli, Command};

    fn parsed(arguments: &[&str]) -> Args {
        let arguments = ["galerne", "bench"].iter().chain(arguments);
        match Cli::try_parse_from(arguments).unwrap().command {
            Command::Bench(args) => args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_peer_is_the_one_named_or_that_of_the_work() {
        let peer = |arguments: &[&str]| parsed(arguments).peer();
        assert_eq!(peer(&["decode"]), None);
        // The fixed form, and the flag before what is measured.
        assert_eq!(peer(&["decode", "--peer", "--json"]), Some(Peer::LlamaCpp));
        assert_eq!(peer(&["--peer", "train"]), Some(Peer::PyTorch));
        assert_eq!(peer(&["tokenizer", "--text", "t", "--peer"]), Some(Peer::Gigatoken));
        assert_eq!(peer(&["prefill", "--peer=openvino"]), Some(Peer::OpenVino));
        assert!(check(&parsed(&["batch", "--peer=pytorch"])).is_ok());
        for (arguments, expected) in [
            (&["train", "--peer=llama.cpp"][..], "expected pytorch"),
            (&["decode", "--peer=gigatoken"], "expected llama.cpp, openvino, pytorch"),
            (&["tokenizer"], "give --text DIR"),
            (&["decode", "--text", "t"], "--text is for bench tokenizer"),
            (&["growth", "--peer"], "bench growth has no peer"),
            (&["decode", "--document", "d.md"], "--document is for bench growth"),
            (&["train", "--divergence"], "--divergence is for prefill"),
            (&["decode", "--lora-rank", "4"], "--lora-rank is for bench train"),
            (&["train", "--lora-rank", "4", "--peer"], "leave out --lora-rank"),
            (&["growth", "--kv-cache-dtype", "int8"], "--kv-cache-dtype is for prefill"),
            (&["growth", "--model", "m", "--adapter", "a"], "leave out --adapter"),
            (&["train", "--shape", "1b", "--peer"], "--peer trains the shape 15.7m"),
            (&["tokenizer", "--text", "t", "--weights", "q8"], "leave out --model, --shape and"),
            (
                &["tokenizer", "--text", "t", "--shape", "1b"],
                "leave out --model, --shape and --weights",
            ),
        ] {
            let error = check(&parsed(arguments)).unwrap_err().to_string();
            assert!(error.contains(expected), "{arguments:?}: {error}");
        }
    }

    #[test]
    fn missing_parts_are_left_out_of_the_text() {
        let mut result = BenchResult::new("decode", "m", "0".to_owned(), 25.04);
        assert_eq!(value_text(&result), "25.0 tokens/s");
        result.roofline_fraction = Some(0.9);
        (result.divergence, result.peer_divergence) = (Some(1.5e-4), Some(0.0025));
        let expected =
            "25.0 tokens/s  90 % of the limit  divergence 1.500e-4 nats, of the peer 2.500e-3";
        assert_eq!(value_text(&result), expected);
    }
}
