//! The real binary as a user runs it: help, errors, exit codes, files, signals.
#![expect(clippy::unwrap_used, reason = "the helpers of tests panic as tests do")]

mod adapters;
mod answers;
mod home;
mod messages;
mod models;
mod pulls;
mod runs;
mod serving;
mod tokenizers;
