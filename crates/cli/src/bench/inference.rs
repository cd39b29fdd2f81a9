//! `galerne bench prefill`, `decode` and `batch`.

use std::path::{Path, PathBuf};

use bench::{
    BATCH_PROMPT, BenchResult, Machine, Peer, PeerFigure, PeerInference, RANDOM_MODEL_VERSION,
    RandomWeights, ReferenceLogits, Roofline, Scored, Subject, batched_decode, decode, median,
    prefill, write_random_model, writing_profile,
};
use eval::figures::bytes;
use formats::model_dir::ModelDir;
use model::{CacheKind, Decoder, KvBlocks};
use tensor::{DType, Device, Passes};

use super::{Args, What};
use crate::context::Context;
use crate::failure::Failure;
use crate::machine;
use crate::open_model::{OpenModel, config_of, open_dir};

/// Prompt lengths of `prefill`, tokens.
const PROMPT_LENS: [usize; 2] = [512, 2048];
/// Contexts of `decode`, tokens.
const CONTEXTS: [usize; 3] = [0, 2048, 8192];
/// Users of `batch`.
const USERS: [usize; 4] = [1, 4, 8, 16];
/// Users of `batch` on a GPU.
const GPU_USERS: [usize; 6] = [1, 4, 16, 32, 64, 256];
/// Room that a measured decode takes after its context.
const DECODE_ROOM: usize = 128;

/// One figure for each prompt length, context or number of users that the context has room for.
///
/// # Errors
/// When the model or the peer cannot be used.
pub(super) fn measure(
    args: &Args,
    machine: &Machine,
    context: &Context,
) -> anyhow::Result<Vec<BenchResult>> {
    let device = &context.device()?;
    if let (Device::Cuda { .. }, None, None) = (device, &args.model, args.peer()) {
        // Weights made on the GPU: a file of them would take longer to write and read than all measurements.
        if args.weights.is_some_and(|weights| weights != RandomWeights::Bf16) || args.divergence {
            let problem = "shapes on a GPU have weights of bf16 that are made there: leave out --weights and --divergence, or give --model";
            return Err(Failure::usage(problem).into());
        }
        let (shape, config) = args.shape()?;
        let decoder = Decoder::random(device, &config, DType::Bf16, Passes::Forward, 1);
        let subject = Subject { decoder: &decoder, adapter: None, cache_kind: args.cache.kind() };
        let name = shape.name;
        let run = Run { args, machine, context, device, name, subject, reference: None };
        return run.measure_all(None);
    }
    let value = model_value(args, context)?;
    let (name, dir) = open_dir(&value, context)?;
    let peer = match args.peer() {
        Some(peer) => Some((peer, gguf_file(peer, &dir)?)),
        None => None,
    };
    let reference = reference(args, &name, &dir, context)?;
    let OpenModel { name, decoder, adapter, .. } = OpenModel::open(&value, &args.load, context)?;
    let subject = Subject { decoder: &decoder, adapter, cache_kind: args.cache.kind() };
    let run = Run { args, machine, context, device, name: &name, subject, reference };
    run.measure_all(peer.as_ref())
}

/// The `--model` value that is measured: for a shape the file of its random weights, which is made where it is not there.
///
/// # Errors
/// When there is no such shape, its rows are not whole blocks, or the file cannot be written.
pub(super) fn model_value(args: &Args, context: &Context) -> anyhow::Result<String> {
    if let Some(value) = &args.model {
        return Ok(value.clone());
    }
    let (shape, config) = args.shape()?;
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

/// The GGUF file of a model, which the peer reads too.
fn gguf_file(peer: Peer, dir: &ModelDir) -> Result<PathBuf, Failure> {
    let gguf = dir.weights().gguf().and_then(|_| dir.weights().paths().next());
    let not_gguf = || Failure::usage(format!("--peer: {} reads GGUF files only", peer.name()));
    gguf.map(Path::to_owned).ok_or_else(not_gguf)
}

/// The logits that others are compared with, where that is asked for; `None`, with a word why, where the memory is too small.
fn reference(
    args: &Args,
    name: &str,
    dir: &ModelDir,
    context: &Context,
) -> anyhow::Result<Option<ReferenceLogits>> {
    if args.peer().is_none() && !args.divergence {
        return Ok(None);
    }
    let config = config_of(name, dir)?;
    let device = context.device()?;
    let needed_bytes = ReferenceLogits::bytes_for(&device, &config, dir.weights())?;
    if let Err(error) = machine::check_memory(&device, "the reference in f32", needed_bytes) {
        context.say(&format!("no divergence: {error}"));
        return Ok(None);
    }
    context.say("computing the reference in f32");
    Ok(Some(ReferenceLogits::compute(&device, &config, dir.weights())?))
}

/// What all figures of a run share.
struct Run<'a> {
    args: &'a Args,
    machine: &'a Machine,
    context: &'a Context,
    device: &'a Device,
    name: &'a str,
    subject: Subject<'a>,
    reference: Option<ReferenceLogits>,
}

impl Run<'_> {
    /// One figure for each detail that the context has room for.
    fn measure_all(&self, peer: Option<&(Peer, PathBuf)>) -> anyhow::Result<Vec<BenchResult>> {
        let Self { args, context, device, .. } = *self;
        let details: &[usize] = match (args.what, device) {
            _ if !args.at.is_empty() => &args.at,
            (What::Prefill, _) => &PROMPT_LENS,
            (What::Decode, _) => &CONTEXTS,
            (_, Device::Cuda { .. }) => &GPU_USERS,
            _ => &USERS,
        };
        let limit = self.subject.decoder.config().context_len;
        let mut results = Vec::new();
        for &detail in details {
            let measured = Inference::new(args.what, detail);
            if measured.n_positions() > limit {
                let work = measured.work;
                context.say(&format!("{work} {detail} is left out: the context has {limit}"));
                continue;
            }
            if args.profile && args.what != What::Prefill {
                let (n_users, context_len) = measured.users_and_context();
                let profile = writing_profile(device, &self.subject, context_len, n_users);
                super::say_profile(&profile, context);
            }
            results.push(self.measure(&measured, peer)?);
        }
        let name = self.name;
        anyhow::ensure!(
            !results.is_empty(),
            "the context of model `{name}` is too short to measure"
        );
        Ok(results)
    }

    /// One figure: ours and the peer's alternately, and how far each is from the reference.
    fn measure(
        &self,
        measured: &Inference,
        peer: Option<&(Peer, PathBuf)>,
    ) -> anyhow::Result<BenchResult> {
        let Self { machine, context, device, ref subject, .. } = *self;
        let (mut speeds, mut figures, mut peer_logits) = (Vec::new(), Vec::new(), None);
        for round in 1..=self.args.n_rounds() {
            let (work, detail) = (measured.work, measured.detail);
            context.say(&format!("measuring {work} {detail}, round {round}"));
            let speed = measured.speed(device, subject);
            speeds.push(speed);
            if let Some((peer, file)) = peer {
                context.say(&format!("{speed:.1} tokens/s; measuring {}", peer.name()));
                let (figure, logits) = self.peer_figure(measured, *peer, file, round == 1)?;
                context.say(&format!("{:.1} tokens/s", figure.value));
                figures.push(figure);
                peer_logits = logits.or(peer_logits);
            }
        }
        let (speed, detail) = (median(&mut speeds), measured.detail.to_string());
        let name = match subject.cache_kind {
            CacheKind::Operands => self.name.to_owned(),
            CacheKind::Int8 => format!("{} with an int8 cache", self.name),
        };
        let mut result = BenchResult::new(measured.work, &name, detail, speed);
        result.roofline_fraction = Some(speed / measured.limit(subject, machine));
        if let Some(reference) = &self.reference {
            let scored = measured.scored();
            result.divergence = Some(reference.divergence_of_subject(device, subject, scored));
            result.peer_divergence = peer_logits.map(|logits| reference.divergence_of(&logits));
        }
        Ok(match peer {
            Some((peer, _)) => result.with_peer(*peer, &figures),
            None => result,
        })
    }

    /// The peer's figure, and its logits in the first round, where there is something to compare them with.
    fn peer_figure(
        &self,
        measured: &Inference,
        peer: Peer,
        model: &Path,
        is_first: bool,
    ) -> anyhow::Result<(PeerFigure, Option<Vec<f32>>)> {
        let (work, detail) = (measured.peer_work, measured.detail);
        let inference = PeerInference { model, work, detail, n_threads: self.context.n_threads() };
        Ok(match &self.reference {
            Some(reference) if is_first => {
                let (figure, logits) = inference.run_with_logits(peer, reference.shape())?;
                (figure, Some(logits))
            }
            _ => (inference.run(peer)?, None),
        })
    }
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
    fn speed(&self, device: &Device, subject: &Subject<'_>) -> f64 {
        match self.what {
            What::Prefill => prefill(device, subject, self.detail),
            What::Decode => decode(device, subject, self.detail),
            _ => batched_decode(device, subject, self.detail),
        }
    }

    /// Who writes, and after how many tokens.
    fn users_and_context(&self) -> (usize, usize) {
        match self.what {
            What::Decode => (1, self.detail),
            _ => (self.detail, BATCH_PROMPT),
        }
    }

    /// How logits are computed that are compared.
    fn scored(&self) -> Scored {
        match self.what {
            What::Prefill => Scored::Reading,
            What::Decode => Scored::Writing { n_users: 1 },
            _ => Scored::Writing { n_users: self.detail },
        }
    }

    /// Most tokens per second that the machine allows: reading takes operations; writing reads the weights once for all users, and
    /// each user's cache.
    fn limit(&self, subject: &Subject<'_>, machine: &Machine) -> f64 {
        let decoder = subject.decoder;
        let config = decoder.config();
        if self.what == What::Prefill {
            let flops = config.forward_flops_per_token(self.detail);
            let Roofline { packed_ops, bf16_flops, .. } = machine.roofline;
            let limit = match &machine.gpu {
                Some(gpu) => gpu.bf16_flops,
                None if decoder.has_packed_blocks() => packed_ops,
                None => bf16_flops,
            };
            return limit / flops;
        }
        let (n_users, context_len) = self.users_and_context();
        let cache =
            KvBlocks::bytes_for(config, decoder.dtype(), subject.cache_kind, context_len, 1);
        let changes = subject.adapter.as_ref().map_or(0, |adapter| adapter.n_bytes());
        let bytes = decoder.n_bytes_of_step() + changes + n_users * cache;
        let read = machine.roofline.read_bytes_per_s;
        let read = machine.gpu.as_ref().map_or(read, |gpu| gpu.copy_bytes_per_s);
        n_users as f64 * read / bytes as f64
    }
}
