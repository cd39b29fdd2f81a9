//! What a run will take, shown to people and compared with what this machine has.

use std::path::Path;

use eval::figures::{bytes, short};
use formats::free_disk_bytes;
use train::plan::RunPlan;

use crate::context::Context;
use crate::machine;
use crate::table::table;

/// Names and values for people.
pub(crate) fn rows(plan: &RunPlan) -> Vec<(&'static str, String)> {
    let memory = &plan.memory;
    vec![
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
        ("model on disk", bytes(plan.model_bytes)),
    ]
}

/// Shows the plan, and refuses when the disk or the memory is too small.
///
/// # Errors
/// As [`check_fits`].
pub(crate) fn announce(plan: &RunPlan, run_dir: &Path, context: &Context) -> anyhow::Result<()> {
    let free_bytes = free_disk_bytes(machine::existing_ancestor(run_dir))?;
    let mut rows = rows(plan);
    rows.push(("free disk", bytes(free_bytes)));
    if let Some(memory) = machine::memory() {
        rows.push(("memory available", bytes(memory.available_bytes)));
    }
    context.say(&format!("plan of {}\n{}", run_dir.display(), table(&rows)));
    check_fits(plan, run_dir)
}

/// Refuses when the disk or the memory is too small.
///
/// # Errors
/// As [`machine::check_disk`] and [`machine::check_memory`].
pub(crate) fn check_fits(plan: &RunPlan, run_dir: &Path) -> anyhow::Result<()> {
    let needed_bytes = plan.needed_disk_bytes(run_dir)?;
    machine::check_disk("the run (checkpoints and the model)", run_dir, needed_bytes)?;
    Ok(machine::check_memory("the run", plan.memory.total_bytes())?)
}
