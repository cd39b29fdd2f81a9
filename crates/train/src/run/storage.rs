//! Masters and moments in a checkpoint: of a model under the names of Hugging Face files, of an adapter under those of PEFT.

use std::borrow::Cow;

use formats::adapter::{LowRankPair, peft_names};
use formats::checkpoint::{ADAPTER_FILE, Checkpoint, CheckpointWriter, MODEL_FILE, OPTIMIZER_FILE};
use formats::{FormatError, TensorData, TensorDtype, TensorSource, WeightFiles, WeightName};
use model::{AdapterParameters, Parameters};

use crate::error::TrainError;
use crate::trained::Trained;
use crate::trainer::Trainer;

/// Prefixes of the two moments of AdamW in `optimizer.safetensors`.
const MOMENTS: [&str; 2] = ["m.", "v."];

pub(super) fn write_tensors(
    writer: &mut CheckpointWriter,
    trainer: &Trainer,
) -> Result<(), FormatError> {
    let masters = trainer.trained();
    let file = match &*masters {
        Trained::Model(_) => MODEL_FILE,
        Trained::Adapter(_) => ADAPTER_FILE,
    };
    writer.tensors(file, named(&masters, "").iter().map(Named::source))?;
    let (m, v) = (trainer.optimizer.m.in_memory(), trainer.optimizer.v.in_memory());
    let moments = [named(&m, MOMENTS[0]), named(&v, MOMENTS[1])];
    writer.tensors(OPTIMIZER_FILE, moments.iter().flatten().map(Named::source))
}

/// The factors of an adapter as files hold them, for [`formats::adapter::write_adapter`] among others.
pub(crate) fn named_factors<'a>(factors: &AdapterParameters, prefix: &str) -> Vec<Named<'a>> {
    let of_matrix = |name: WeightName| {
        let LowRankPair { a, b, rank, .. } = factors.pair(name);
        let [a_name, b_name] = peft_names(name).map(|name| format!("{prefix}{name}"));
        let (a_shape, b_shape) = (vec![rank, a.len() / rank], vec![b.len() / rank, rank]);
        [
            Named { name: a_name, shape: a_shape, values: Cow::Owned(a) },
            Named { name: b_name, shape: b_shape, values: Cow::Owned(b) },
        ]
    };
    factors.names().flat_map(of_matrix).collect()
}

fn named<'a>(trained: &'a Trained, prefix: &str) -> Vec<Named<'a>> {
    let parameters = match trained {
        Trained::Model(parameters) => parameters,
        Trained::Adapter(factors) => return named_factors(factors, prefix),
    };
    let config = parameters.config();
    let of_weight = |name: WeightName| Named {
        name: format!("{prefix}{}", name.hf_name()),
        shape: name.shape(config),
        values: Cow::Borrowed(parameters.weight(name)),
    };
    WeightName::all(config).into_iter().map(of_weight).collect()
}

/// A tensor of f32 as a file holds it.
pub(crate) struct Named<'a> {
    name: String,
    shape: Vec<usize>,
    values: Cow<'a, [f32]>,
}

impl Named<'_> {
    pub(crate) fn source(&self) -> TensorSource<'_> {
        TensorSource {
            name: self.name.clone(),
            dtype: TensorDtype::F32,
            shape: self.shape.clone(),
            data: TensorData::F32(&self.values),
        }
    }
}

/// The factors of an adapter in a checkpoint, into those of the adapter that the recipe asks for.
pub(super) fn read_factors(
    checkpoint: &Checkpoint,
    factors: &mut AdapterParameters,
) -> Result<(), TrainError> {
    read_into_factors(checkpoint, &checkpoint.adapter()?, "", factors)
}

/// The moments of AdamW and the count of its steps; the weights are the trainer's from the beginning.
pub(super) fn read_moments(
    checkpoint: &Checkpoint,
    trainer: &mut Trainer,
) -> Result<(), TrainError> {
    let files = checkpoint.optimizer()?;
    let optimizer = &mut trainer.optimizer;
    for (prefix, moments) in MOMENTS.into_iter().zip([&mut optimizer.m, &mut optimizer.v]) {
        if moments.iter().all(|(_, tensor)| tensor.is_in_memory()) {
            read(checkpoint, &files, prefix, moments)?;
            continue;
        }
        // Into the memory that is there: a GPU may have no room for the moments twice.
        let mut copy = moments.zeroed_in_memory();
        read(checkpoint, &files, prefix, &mut copy)?;
        let tensors = moments.iter_mut().zip(copy.iter());
        tensors.for_each(|(there, (_, here))| there.write_f32(here.f32()));
    }
    trainer.optimizer.n_steps = checkpoint.step();
    Ok(())
}

fn read(
    checkpoint: &Checkpoint,
    files: &WeightFiles,
    prefix: &str,
    out: &mut Trained,
) -> Result<(), TrainError> {
    match out {
        Trained::Model(parameters) => read_into_model(checkpoint, files, prefix, parameters),
        Trained::Adapter(factors) => read_into_factors(checkpoint, files, prefix, factors),
    }
}

fn read_into_model(
    checkpoint: &Checkpoint,
    files: &WeightFiles,
    prefix: &str,
    out: &mut Parameters,
) -> Result<(), TrainError> {
    let config = out.config().clone();
    for name in WeightName::all(&config) {
        let tensor = format!("{prefix}{}", name.hf_name());
        read_tensor(checkpoint, files, &tensor, &name.shape(&config), out.weight_mut(name))?;
    }
    Ok(())
}

fn read_into_factors(
    checkpoint: &Checkpoint,
    files: &WeightFiles,
    prefix: &str,
    out: &mut AdapterParameters,
) -> Result<(), TrainError> {
    let names: Vec<WeightName> = out.names().collect();
    for name in names {
        let mut pair = out.pair(name);
        let rank = pair.rank;
        let [a, b] = peft_names(name).map(|name| format!("{prefix}{name}"));
        let (n_in, n_out) = (pair.a.len() / rank, pair.b.len() / rank);
        read_tensor(checkpoint, files, &a, &[rank, n_in], &mut pair.a)?;
        read_tensor(checkpoint, files, &b, &[n_out, rank], &mut pair.b)?;
        out.set_pair(name, &pair);
    }
    Ok(())
}

fn read_tensor(
    checkpoint: &Checkpoint,
    files: &WeightFiles,
    tensor: &str,
    expected: &[usize],
    out: &mut [f32],
) -> Result<(), TrainError> {
    let view = files.get(tensor)?;
    if view.shape != expected {
        return Err(TrainError::Checkpoint {
            path: checkpoint.dir().to_owned(),
            field: "shape of a tensor",
            got: format!("{:?} of {tensor}", view.shape),
            expected: format!("{expected:?}"),
        });
    }
    view.read_f32(out);
    Ok(())
}
