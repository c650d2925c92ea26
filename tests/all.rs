//! Outer tests: the binary as a platform, a shell and a person see it, over HTTP and the command line.
//!
//! One binary for all of them: one link, and the helpers are shared. `support/` holds the helpers,
//! `suite/` one file an area, `actions/` tiny executables named by what they do.

#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_macros,
    reason = "the powers that clippy.toml holds to one place each are those of the proxy, and this is none of it"
)]
#![allow(
    clippy::format_push_string,
    clippy::format_collect,
    reason = "what is expected is put together as it reads best"
)]
#![allow(missing_docs, reason = "tests are named by what they state")]

mod support;

#[path = "suite/canonical.rs"]
mod canonical;
#[path = "suite/check.rs"]
mod check;
#[path = "suite/check_streams.rs"]
mod check_streams;
#[path = "suite/command_line.rs"]
mod command_line;
#[path = "suite/compiler.rs"]
mod compiler;
#[path = "suite/conformance.rs"]
mod conformance;
#[path = "suite/contract.rs"]
mod contract;
#[path = "suite/docs.rs"]
mod docs;
#[path = "suite/endings.rs"]
mod endings;
#[path = "suite/examples.rs"]
mod examples;
#[path = "suite/fast_path.rs"]
mod fast_path;
#[path = "suite/freeze.rs"]
mod freeze;
#[path = "suite/go_proxy_faults.rs"]
mod go_proxy_faults;
#[path = "suite/hidden.rs"]
mod hidden;
#[path = "suite/image.rs"]
mod image;
#[path = "suite/inspect.rs"]
mod inspect;
#[path = "suite/late_handshake.rs"]
mod late_handshake;
#[path = "suite/layout.rs"]
mod layout;
#[path = "suite/leaks.rs"]
mod leaks;
#[path = "suite/lifecycle.rs"]
mod lifecycle;
#[path = "suite/original_script.rs"]
mod original_script;
#[path = "suite/pid_one.rs"]
mod pid_one;
#[path = "suite/promises.rs"]
mod promises;
#[path = "suite/random_callers.rs"]
mod random_callers;
#[path = "suite/readiness.rs"]
mod readiness;
#[path = "suite/room.rs"]
mod room;
#[path = "suite/signals.rs"]
mod signals;
#[path = "suite/stream_workers.rs"]
mod stream_workers;
#[path = "suite/streams.rs"]
mod streams;
#[path = "suite/unpack.rs"]
mod unpack;
#[path = "suite/unreadable.rs"]
mod unreadable;
#[path = "suite/workers.rs"]
mod workers;
