//! Loading weights. Packing those of a large model takes seconds, so they are packed once, into the home.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use anyhow::Context as _;
use eval::figures::bytes;
use formats::FormatError;
use formats::model_dir::ModelDir;
use formats::packed_copy::{OpenCopy, PackedCopy};
use kernels::Buffer;
use model::{Decoder, ModelConfig, PackedBytes, PackedPlan, Quantisation, compute_dtype};
use tensor::Device;
use tracing::warn;

use crate::context::{Context, one_line};
use crate::machine;

/// Packed weights of fewer bytes are not kept: packing them takes a moment.
pub(crate) const KEPT_BYTES: usize = 256 << 20;

/// Bytes that a thread reads at a time.
const READ_BYTES: usize = 8 << 20;

/// The weights of a model, and how they are wanted.
pub(crate) struct WeightsOfModel<'a> {
    /// For messages.
    pub(crate) name: &'a str,
    /// The shape.
    pub(crate) config: &'a ModelConfig,
    /// The files.
    pub(crate) dir: &'a ModelDir,
    /// What plain numbers are quantised to.
    pub(crate) quantisation: Option<Quantisation>,
    /// Has the home.
    pub(crate) context: &'a Context,
}

impl WeightsOfModel<'_> {
    /// Loads them; from `kept_bytes` of packed weights on out of a copy in the home, which is made where it is not there.
    ///
    /// # Errors
    /// When a weight cannot be used.
    pub(crate) fn load(&self, kept_bytes: usize) -> anyhow::Result<Decoder> {
        let Self { config, quantisation, .. } = *self;
        let (device, weights) = (self.context.device()?, self.dir.weights());
        let dtype = compute_dtype(config.dtype);
        if let Device::Cuda { .. } = device {
            return Ok(Decoder::load(&device, config, dtype, weights, quantisation)?);
        }
        let plan = PackedPlan::new(config, dtype, weights, quantisation)?;
        if plan.n_bytes() > 0
            && plan.n_bytes() >= kept_bytes
            && let Some(bytes) = self.packed(&plan)?
        {
            let bytes: PackedBytes = Arc::new(bytes);
            return Ok(Decoder::load_packed(&device, config, weights, &plan, &bytes)?);
        }
        Ok(Decoder::load(&device, config, dtype, weights, quantisation)?)
    }

    /// The kept copy, on huge pages; `None`, with a word why, where it cannot be kept or read.
    fn packed(&self, plan: &PackedPlan) -> anyhow::Result<Option<Buffer<u8>>> {
        match self.kept(plan) {
            Err(error) if error.downcast_ref::<FormatError>().is_some_and(|e| !e.is_io()) => {
                Err(error)
            }
            Err(reason) => {
                let (model, reason) = (self.name, format!("{reason:#}"));
                warn!(model, reason, "no packed copy: the weights are packed into memory");
                Ok(None)
            }
            Ok(bytes) => Ok(Some(bytes)),
        }
    }

    /// Reads the copy, which is made where it is not there.
    fn kept(&self, plan: &PackedPlan) -> anyhow::Result<Buffer<u8>> {
        let (weights, n_bytes) = (self.dir.weights(), plan.n_bytes());
        let copies = self.context.packed_dir();
        let made_of = [&*PackedPlan::version(), &*plan.description(self.config)];
        let copy = PackedCopy::new(&copies, weights, made_of, n_bytes)?;
        self.tidy(copy.remove_dead());
        if let Some(found) = copy.open()? {
            return self.read(&found, n_bytes);
        }
        // First, for they may be what fills the disk.
        self.tidy(copy.remove_older());
        machine::check_disk("the packed copy of a model", copy.path(), n_bytes as u64)?;
        self.write(&copy, plan)?;
        let written = copy.open()?.context("the packed copy is gone")?;
        self.read(&written, n_bytes)
    }

    /// What is of no use any more and cannot be removed is no reason to stop.
    fn tidy(&self, outcome: Result<(), FormatError>) {
        if let Err(error) = outcome {
            warn!(model = self.name, %error, "what is left of an older packed copy stays");
        }
    }

    /// Reads a copy on all threads. Mapped, it would lie in pages of 4 KiB, from which memory is read more slowly.
    fn read(&self, copy: &OpenCopy, n_bytes: usize) -> anyhow::Result<Buffer<u8>> {
        let mut bytes = Buffer::zeroed(n_bytes);
        let failure = Mutex::new(None);
        let device = self.context.device()?;
        device.compute().pool().run_chunks(&mut bytes, READ_BYTES, |chunk_idx, chunk, _| {
            if let Err(error) = copy.read_at(chunk_idx * READ_BYTES, chunk) {
                *failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
            }
        });
        match failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(error) => Err(error.into()),
            None => Ok(bytes),
        }
    }

    fn write(&self, copy: &PackedCopy, plan: &PackedPlan) -> anyhow::Result<()> {
        let (device, start) = (self.context.device()?, Instant::now());
        self.context.say(&format!(
            "packing {} once: {}",
            one_line(self.name),
            bytes(plan.n_bytes() as u64)
        ));
        copy.write(|out| {
            let sink = |packed: &[u8]| out.write_all(packed);
            plan.write(&device, self.config, self.dir.weights(), sink)
        })?;
        let seconds = start.elapsed().as_secs_f64();
        self.context.say(&format!("packed in {seconds:.1} s, kept as {}", copy.path().display()));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use model::Workspace;
    use testkit::golden::workspace_root;
    use testkit::test_dir::TestDir;

    use super::*;
    use crate::args::{CommonArgs, DeviceChoice};

    fn golden() -> (ModelDir, ModelConfig) {
        let path = workspace_root().join("golden/architectures/quantised_a/gguf");
        let dir = ModelDir::open(&path).unwrap();
        let config = ModelConfig::new(dir.config().clone()).unwrap();
        (dir, config)
    }

    fn weights<'a>(
        dir: &'a ModelDir,
        config: &'a ModelConfig,
        context: &'a Context,
    ) -> WeightsOfModel<'a> {
        WeightsOfModel { name: "a", config, dir, quantisation: None, context }
    }

    #[test]
    fn packed_weights_are_kept_once_and_compute_as_those_in_memory() {
        let scratch = TestDir::new("packed-weights");
        let home = Some(scratch.path().join("home"));
        let context =
            Context::new(&CommonArgs { home, device: DeviceChoice::Cpu, ..CommonArgs::default() })
                .unwrap();
        let (dir, config) = golden();
        let weights = weights(&dir, &config, &context);
        let logits = |kept_bytes| {
            let decoder = weights.load(kept_bytes).unwrap();
            let mut workspace = Workspace::for_decoder(&decoder, 3);
            let device = context.device().unwrap();
            decoder.logits(&device, &[1, 5, 9], &[0, 3], &mut workspace)
        };
        let expected = logits(usize::MAX);
        assert!(!context.packed_dir().exists());
        assert_eq!(logits(0), expected);
        let kept = || {
            let entries = fs::read_dir(context.packed_dir()).unwrap();
            entries.map(|entry| entry.unwrap().path()).collect::<Vec<_>>()
        };
        let [path] = kept().try_into().unwrap();
        // What is read is the copy: other bytes, other logits.
        let mut bytes = fs::read(&path).unwrap();
        assert_eq!(logits(0), expected);
        let n = bytes.len();
        bytes[n / 2..].fill(0x11);
        fs::write(&path, &bytes).unwrap();
        assert_ne!(logits(0), expected);
        // One that was cut is made again.
        fs::write(&path, &bytes[1..]).unwrap();
        assert_eq!(logits(0), expected);
        assert_eq!(kept(), [path]);
    }

    #[test]
    fn a_home_that_cannot_be_written_only_costs_time() {
        let (dir, config) = golden();
        // The folder of caches is a file; that of packed copies is; the copy's own name is taken by a folder.
        for in_the_way in ["cache", "cache/packed", "copy"] {
            let scratch = TestDir::new("packed-weights-none");
            let home = Some(scratch.path().to_owned());
            let context = Context::new(&CommonArgs {
                home,
                device: DeviceChoice::Cpu,
                ..CommonArgs::default()
            })
            .unwrap();
            let weights = weights(&dir, &config, &context);
            let in_memory = weights.load(usize::MAX).unwrap();
            let taken = if in_the_way == "copy" {
                let _ = weights.load(0).unwrap();
                let copy = fs::read_dir(context.packed_dir()).unwrap().next().unwrap().unwrap();
                fs::remove_file(copy.path()).unwrap();
                fs::create_dir_all(copy.path().join("inner")).unwrap();
                copy.path()
            } else {
                let path = scratch.join(in_the_way);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(&path, "a file where the folder should be").unwrap();
                path
            };
            assert_eq!(weights.load(0).unwrap().n_bytes(), in_memory.n_bytes());
            assert!(taken.exists(), "{in_the_way} is as it was");
            if in_the_way == "copy" {
                assert_eq!(fs::read_dir(context.packed_dir()).unwrap().count(), 1);
            }
        }
    }
}
