//! Masters and moments in a checkpoint, under the names of Hugging Face files.

use formats::checkpoint::{Checkpoint, CheckpointWriter, MODEL_FILE, OPTIMIZER_FILE};
use formats::{FormatError, TensorData, TensorDtype, TensorSource, WeightFiles, WeightName};
use model::{ModelConfig, Parameters};

use crate::error::TrainError;
use crate::trainer::Trainer;

/// Prefixes of the two moments of AdamW in `optimizer.safetensors`.
const MOMENTS: [&str; 2] = ["m.", "v."];

pub(super) fn write_tensors(
    writer: &mut CheckpointWriter,
    trainer: &Trainer,
) -> Result<(), FormatError> {
    writer.tensors(MODEL_FILE, sources(&trainer.parameters(), ""))?;
    let (m, v) = (trainer.optimizer.m.in_memory(), trainer.optimizer.v.in_memory());
    let moments = sources(&m, MOMENTS[0]).chain(sources(&v, MOMENTS[1]));
    writer.tensors(OPTIMIZER_FILE, moments)
}

fn sources<'a>(
    parameters: &'a Parameters,
    prefix: &'a str,
) -> impl Iterator<Item = TensorSource<'a>> {
    let config = parameters.config();
    WeightName::all(config).into_iter().map(move |name| TensorSource {
        name: format!("{prefix}{}", name.hf_name()),
        dtype: TensorDtype::F32,
        shape: name.shape(config),
        data: TensorData::F32(parameters.weight(name)),
    })
}

/// The moments of AdamW and the count of its steps; the weights are the trainer's from the beginning.
pub(super) fn read_moments(
    checkpoint: &Checkpoint,
    trainer: &mut Trainer,
) -> Result<(), TrainError> {
    let config = trainer.config().clone();
    let files = checkpoint.optimizer()?;
    let optimizer = &mut trainer.optimizer;
    for (prefix, moments) in MOMENTS.into_iter().zip([&mut optimizer.m, &mut optimizer.v]) {
        if moments.iter().all(|(_, tensor)| tensor.is_in_memory()) {
            read(checkpoint, &config, &files, prefix, moments)?;
            continue;
        }
        // Into the memory that is there: a GPU may have no room for the moments twice.
        let mut copy = Parameters::zeroed(&config);
        read(checkpoint, &config, &files, prefix, &mut copy)?;
        let tensors = moments.iter_mut().zip(copy.iter());
        tensors.for_each(|(there, (_, here))| there.write_f32(here.f32()));
    }
    trainer.optimizer.n_steps = checkpoint.step();
    Ok(())
}

fn read(
    checkpoint: &Checkpoint,
    config: &ModelConfig,
    files: &WeightFiles,
    prefix: &str,
    out: &mut Parameters,
) -> Result<(), TrainError> {
    for name in WeightName::all(config) {
        let view = files.get(&format!("{prefix}{}", name.hf_name()))?;
        let expected = name.shape(config);
        if view.shape != expected {
            return Err(TrainError::Checkpoint {
                path: checkpoint.dir().to_owned(),
                field: "shape of a tensor",
                got: format!("{:?} of {prefix}{}", view.shape, name.hf_name()),
                expected: format!("{expected:?}"),
            });
        }
        view.read_f32(out.weight_mut(name));
    }
    Ok(())
}
