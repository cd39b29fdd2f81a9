//! Random numbers, names of answers, and the time.

use std::time::{SystemTime, UNIX_EPOCH};

/// A number from the system's source.
pub(crate) fn random_u64() -> u64 {
    getrandom::u64().expect("the system has a source of random numbers")
}

/// A name no other answer has, such as `chatcmpl-0f3a...`.
pub(crate) fn answer_id(prefix: &str) -> String {
    format!("{prefix}-{:016x}{:016x}", random_u64(), random_u64())
}

/// Seconds since 1970; 0 if the clock is before that.
pub(crate) fn unix_time() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs())
}
