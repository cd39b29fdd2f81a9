//! Prints the speed of each step of the training that PyTorch is compared on: `cargo run --release -p bench --example train_step
//! [FAMILY] [THREADS]`.
#![expect(clippy::print_stdout, reason = "an example prints")]

use bench::{TRAIN_STEP_BATCH, TRAIN_STEP_SHAPE, train_step};
use kernels::Compute;
use tensor::Device;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let family = std::env::args().nth(1);
    let n_threads = std::env::args().nth(2).map_or(Ok(2), |n| n.parse())?;
    let compute = match family {
        Some(family) => Compute::forced(family.parse()?, n_threads)?,
        None => Compute::detect()?,
    };
    println!("{}", compute.family());
    let config = TRAIN_STEP_SHAPE.config()?;
    for speed in train_step(&Device::Cpu(compute), &config, None, TRAIN_STEP_BATCH, 5)? {
        println!(
            "{speed:.0} tokens/s, {:.0} GFLOP/s",
            speed * config.train_flops_per_token(512) / 1e9
        );
    }
    Ok(())
}
