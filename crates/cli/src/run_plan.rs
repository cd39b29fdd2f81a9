//! What a run will take, shown to people and compared with what this machine has.

use std::path::Path;

use eval::figures::{bytes, short};
use formats::free_disk_bytes;
use tensor::Device;
use train::Run;
use train::plan::RunPlan;

use crate::context::Context;
use crate::machine;
use crate::table::table;

/// Names and values for people.
pub(crate) fn rows(plan: &RunPlan) -> Vec<(&'static str, String)> {
    let (memory, is_adapter) = (&plan.memory, plan.adapter.is_some());
    let mut rows = vec![
        ("parameters", short(plan.config.n_parameters() as f64)),
        ("tokens", short(plan.n_tokens as f64)),
        ("operations", format!("{:.2e} FLOP", plan.flops)),
        ("memory", bytes(memory.total_bytes())),
        ("  f32 masters", bytes(memory.masters_bytes)),
        ("  optimizer moments", bytes(memory.optimizer_bytes)),
        ("  gradients", bytes(memory.gradients_bytes)),
        ("  packed weights", bytes(memory.packed_bytes)),
        ("  activations", bytes(memory.activations_bytes)),
        ("  backward pass", bytes(memory.backward_bytes)),
        ("  data", bytes(memory.data_bytes)),
        ("checkpoint on disk", bytes(memory.checkpoint_bytes())),
        (if is_adapter { "adapter on disk" } else { "model on disk" }, bytes(plan.model_bytes)),
    ];
    if is_adapter {
        rows.insert(1, ("trained parameters", short(plan.n_trained_parameters() as f64)));
    }
    if memory.working_bytes > 0 {
        let after = rows.iter().position(|(name, _)| *name == "  data").unwrap_or(rows.len());
        rows.insert(after, ("  working memory", bytes(memory.working_bytes)));
    }
    rows
}

/// What the device has left, for people.
pub(crate) fn device_rows(device: &Device) -> Vec<(&'static str, String)> {
    let available =
        machine::available_bytes(device).map(|n_bytes| ("memory available", bytes(n_bytes)));
    let gpu = match device {
        Device::Cuda { gpu, .. } => Some(("computed on", gpu.description().name.clone())),
        _ => None,
    };
    gpu.into_iter().chain(available).collect()
}

/// Shows the plan of a run on the device, and refuses when the disk or the memory is too small.
///
/// # Errors
/// As [`check_fits`].
pub(crate) fn announce(plan: &RunPlan, run_dir: &Path, context: &Context) -> anyhow::Result<()> {
    let free_bytes = free_disk_bytes(machine::existing_ancestor(run_dir))?;
    let mut rows = rows(plan);
    rows.push(("free disk", bytes(free_bytes)));
    let device = context.device()?;
    rows.extend(device_rows(&device));
    context.say(&format!("plan of {}\n{}", run_dir.display(), table(&rows)));
    check_fits(plan, run_dir, &device)
}

/// Refuses when the disk or the memory is too small.
///
/// # Errors
/// As [`machine::check_disk`] and [`machine::check_memory`].
pub(crate) fn check_fits(plan: &RunPlan, run_dir: &Path, device: &Device) -> anyhow::Result<()> {
    let needed_bytes = plan.needed_disk_bytes(run_dir)?;
    machine::check_disk("the run (checkpoints and the model)", run_dir, needed_bytes)?;
    let (what, memory) = ("the run", &plan.memory);
    if let Device::Cuda { .. } = device {
        machine::check_host_memory("the run beside the GPU", memory.host_bytes_beside_gpu())?;
        return Ok(machine::check_memory(device, what, memory.device_bytes())?);
    }
    Ok(machine::check_memory(device, what, memory.total_bytes())?)
}

/// Opens a run, which takes its memory.
///
/// # Errors
/// As [`machine::take_memory`], and those of the run.
pub(crate) fn open_run(
    plan: &RunPlan,
    device: &Device,
    open: impl FnOnce() -> anyhow::Result<Run>,
) -> anyhow::Result<Run> {
    // On the processors the plan was compared with the machine already.
    let needed_bytes = match device {
        Device::Cuda { .. } => plan.memory.device_bytes(),
        _ => 0,
    };
    machine::take_memory(device, "the run", needed_bytes, open)?
}
