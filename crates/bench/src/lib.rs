//! Measured work for bench, doctor and plan.
