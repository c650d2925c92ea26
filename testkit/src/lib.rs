//! Starts a proxy and calls it over HTTP, from outside: it shares nothing with the proxy it looks at.
//!
//! The tests, the benchmarks, the conformance runner and the container tests use this one crate.

pub mod command;
