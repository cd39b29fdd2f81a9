//! `galerne doctor`: what this machine offers.

use bench::Machine;
use eval::figures::bytes;
use formats::free_disk_bytes;
use kernels::{Family, detect_features};
use serde_json::json;

use crate::context::{Context, Form};
use crate::machine;
use crate::table::table;

/// Arguments of `galerne doctor`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

/// Runs the command.
///
/// # Errors
/// When this machine cannot run the kernel family that was asked for.
pub(crate) fn run(Args {}: Args, context: &Context) -> anyhow::Result<()> {
    let machine = Machine::measure(context.compute()?);
    let roofline = machine.roofline;
    let features = detect_features();
    let families = Family::ALL.into_iter().filter(|family| family.runs_on(features));
    let families: Vec<&str> = families.map(Family::name).collect();
    let memory = machine::memory();
    let free_disk = free_disk_bytes(machine::existing_ancestor(context.home())).ok();
    let huge_pages = machine::huge_pages();
    let version = env!("CARGO_PKG_VERSION");
    match context.form() {
        Form::Json => context.print_json(&json!({
            "version": version,
            "build_features": [],
            "machine": machine,
            "kernel_families": families,
            "memory_total_bytes": memory.map(|memory| memory.total_bytes),
            "memory_available_bytes": memory.map(|memory| memory.available_bytes),
            "huge_pages": huge_pages,
            "home": context.home().display().to_string(),
            "home_free_bytes": free_disk,
            "gpu": null,
        })),
        Form::Text => {
            let unknown = || "unknown".to_owned();
            let gigabytes = |speed: f64| format!("{:.1} GB/s", speed / 1e9);
            let gigaflops = |speed: f64| format!("{:.0} GFLOP/s", speed / 1e9);
            let of_memory = |memory: machine::Memory| {
                format!(
                    "{} of {} available",
                    bytes(memory.available_bytes),
                    bytes(memory.total_bytes)
                )
            };
            context.print(&table(&[
                ("galerne", version.to_owned()),
                ("build features", "none".to_owned()),
                ("processor", machine.cpu.clone()),
                ("instruction sets", machine.features.join(" ")),
                ("kernel family", format!("{} of {}", machine.kernel_family, families.join(" "))),
                ("threads", machine.n_threads.to_string()),
                ("memory", memory.map_or_else(unknown, of_memory)),
                ("huge pages", huge_pages.unwrap_or_else(unknown)),
                ("home", context.home().display().to_string()),
                ("free disk", free_disk.map_or_else(unknown, bytes)),
                ("memory read, one thread", gigabytes(roofline.read_bytes_per_s_one_thread)),
                ("memory read, all threads", gigabytes(roofline.read_bytes_per_s)),
                ("bf16 products", gigaflops(roofline.bf16_flops)),
                ("f32 products", gigaflops(roofline.f32_flops)),
                ("8-bit products", gigaflops(roofline.int8_ops)),
                ("GPU", "not supported yet".to_owned()),
            ]))
        }
    }
}
