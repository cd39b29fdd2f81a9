//! The real server on a free port of this machine, with a tiny random model.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails there")]

mod client;
mod fixture;

mod adapters;
mod api;
mod choices;
mod lifecycle;
mod limits;
mod loading;
mod page;
