//! The real server on a free port of this machine, with a tiny random model.

mod client;
mod fixture;

mod api;
mod lifecycle;
mod limits;
mod page;
