//! Optimiser, schedule, checkpoints, pre-training and fine-tuning runs.
