//! The real binary as a user runs it: help, errors, exit codes, files, signals.

mod answers;
mod home;
mod messages;
mod runs;
mod serving;
mod tokenizers;
