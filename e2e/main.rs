//! End to end: the release binary in containers of a real Docker Engine, as PID 1 and not.
//!
//! `e2e/run` starts the engine and this. Callers enter a container's network, which has nothing but
//! its loopback. What can be seen without an engine is tested in `tests/`.

#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_macros,
    reason = "the powers that clippy.toml holds to one place each are those of the proxy, and this is none of it"
)]
#![allow(missing_docs, reason = "tests are named by what they state")]

#[path = "../tests/support/mod.rs"]
#[allow(dead_code, unused_imports, reason = "these tests need a part of it")]
mod support;

mod contract;
mod docs;
mod engine;
mod floods;
mod freeze;
mod images;
mod limits;
mod signals;
mod streams;
