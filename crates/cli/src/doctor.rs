//! `galerne doctor`: what this machine offers.

use anyhow::Context as _;
use bench::{GpuMachine, Machine};
use cuda::conformance::Size;
use cuda::{Gpu, out_of_memory_as_error};
use eval::figures::bytes;
use formats::free_disk_bytes;
use kernels::{Family, detect_features};
use serde_json::json;

use crate::context::{Context, Form};
use crate::machine;
use crate::table::table;

/// Arguments of `galerne doctor`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Compare every operation of the GPU with that of the processors
    #[arg(long)]
    conformance: bool,
    /// Compare only operations whose names hold this text
    #[arg(long, value_name = "TEXT", requires = "conformance")]
    only: Option<String>,
}

/// Runs the command.
///
/// # Errors
/// When this machine cannot run the kernel family that was asked for, or the GPU computes something else than the
/// processors.
pub(crate) fn run(args: Args, context: &Context) -> anyhow::Result<()> {
    if args.conformance {
        return conformance(args.only.as_deref().unwrap_or_default(), context);
    }
    let machine = Machine::measure(context.compute()?);
    let gpu = context.gpu_unless_cpu().and_then(|gpu| measured(&gpu));
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
            "gpu": gpu.as_ref().ok(),
            "gpu_missing": gpu.as_ref().err().map(|error| format!("{error:#}")),
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
                ("packed blocks", gigaflops(roofline.packed_ops)),
                ("GPU", gpu.map_or_else(|error| format!("{error:#}"), |gpu| gpu_text(&gpu))),
            ]))
        }
    }
}

/// The limits of a GPU.
///
/// # Errors
/// When other programs do not leave it the memory for that.
pub(crate) fn measured(gpu: &Gpu) -> anyhow::Result<GpuMachine> {
    let measured = out_of_memory_as_error(|| GpuMachine::measure(gpu));
    measured.with_context(|| format!("cannot measure {}", gpu.description().name))
}

fn gpu_text(gpu: &GpuMachine) -> String {
    let GpuMachine { name, driver, blas_version, .. } = gpu;
    let (memory, flops, copies) =
        (bytes(gpu.memory_bytes as u64), gpu.bf16_flops / 1e12, gpu.copy_bytes_per_s / 1e12);
    format!(
        "{name}, {memory}, CUDA {driver}, cuBLASLt {blas_version}, bf16 products {flops:.0} TFLOP/s, copies {copies:.2} TB/s"
    )
}

/// Each operation on the GPU and on the processors.
fn conformance(only: &str, context: &Context) -> anyhow::Result<()> {
    let gpu = context.open_gpu()?;
    let mut n_failed = 0;
    let cases = cuda::conformance::cases();
    for case in cases.iter().filter(|case| case.name.contains(only)) {
        let deviation = (case.run)(&gpu, Size::Large);
        let verdict = if deviation.is_within() { "as on the processors" } else { "DIFFERS" };
        n_failed += usize::from(!deviation.is_within());
        let (name, value, limit) = (case.name, deviation.value, deviation.limit);
        match context.form() {
            Form::Text => {
                context.print(&format!("{name:36} {value:8.1e} of {limit:.1e}  {verdict}\n"))?;
            }
            Form::Json => context.print_json(&json!({
                "operation": name,
                "deviation": value,
                "limit": limit,
                "is_within": deviation.is_within(),
            }))?,
        }
    }
    anyhow::ensure!(n_failed == 0, "{n_failed} operations of the GPU differ from the processors'");
    Ok(())
}
