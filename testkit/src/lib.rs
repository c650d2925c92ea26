//! Starts a proxy and calls it over HTTP, from outside: it shares nothing with that proxy.
//!
//! The tests, the benchmarks, the conformance runner and the container tests use this one crate. The conformance
//! runner is part of the released binary, so this crate needs little beyond the standard library.
//!
//! - [`http`] is the caller, [`stream`] reads streamed answers;
//! - [`proxy`] starts and stops the proxy, [`output`] captures what it prints;
//! - [`command`] runs other programs to their end, [`processes`] reads `/proc`, [`wait`] waits for a condition.

#![allow(clippy::must_use_candidate, reason = "checks return themselves, to be chained or not")]

pub mod command;
pub mod http;
pub mod output;
pub mod processes;
pub mod proxy;
pub mod stream;
pub mod wait;
