//! End to end: the release binary in containers of a real Docker Engine, as PID 1 and not.
//!
//! `e2e/run` starts the engine and these tests. Callers enter a container's network, which has only a loopback
//! interface. Tests that need no engine are in `tests/`.

#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_macros,
    reason = "clippy.toml holds the powers of the proxy to one place each, and this is not the proxy"
)]
#![allow(
    clippy::format_push_string,
    clippy::format_collect,
    reason = "expected texts are built in the way that reads best"
)]
#![allow(missing_docs, reason = "the name of a test states what holds")]

mod contract;
mod docs;
mod engine;
mod floods;
mod freeze;
mod images;
mod limits;
mod signals;
mod streams;
