//! Prints the speed of each training step of the bar's shape: `cargo run --release -p bench --example train_step`.
#![expect(clippy::print_stdout, reason = "an example prints")]

use bench::{BAR_BATCH, TRAIN_STEP, train_step};
use kernels::Compute;
use tensor::Device;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let family = std::env::args().nth(1);
    let compute = match family {
        Some(family) => Compute::forced(family.parse()?, 2)?,
        None => Compute::detect()?,
    };
    println!("{}", compute.family());
    let config = TRAIN_STEP.config()?;
    for speed in train_step(&Device::Cpu(compute), &config, BAR_BATCH, 5)? {
        println!(
            "{speed:.0} tokens/s, {:.0} GFLOP/s",
            speed * config.train_flops_per_token(512) / 1e9
        );
    }
    Ok(())
}
