//! The galerne binary.

fn main() {}
