//! Scheduler, cache and sampler: token ids in, token ids out.
