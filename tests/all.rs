//! Outer tests: the binary as a platform, a shell and a person see it, over HTTP and the command line.
//!
//! All of them are one binary, which links once and shares its helpers. `support/` holds the helpers, `suite/` one
//! file for each area, and `actions/` tiny executables named by what they do.

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
#[path = "suite/error_privacy.rs"]
mod error_privacy;
#[path = "suite/examples.rs"]
mod examples;
#[path = "suite/exits.rs"]
mod exits;
#[path = "suite/fast_path.rs"]
mod fast_path;
#[path = "suite/filter.rs"]
mod filter;
#[path = "suite/freeze.rs"]
mod freeze;
#[path = "suite/go_proxy_faults.rs"]
mod go_proxy_faults;
#[path = "suite/half_close.rs"]
mod half_close;
#[path = "suite/hidden_proc.rs"]
mod hidden_proc;
#[path = "suite/image_action.rs"]
mod image_action;
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
#[path = "suite/memory_budget.rs"]
mod memory_budget;
#[path = "suite/new_action.rs"]
mod new_action;
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
#[path = "suite/shell.rs"]
mod shell;
#[path = "suite/signals.rs"]
mod signals;
#[path = "suite/silence.rs"]
mod silence;
#[path = "suite/stream_workers.rs"]
mod stream_workers;
#[path = "suite/streams.rs"]
mod streams;
#[path = "suite/unpack.rs"]
mod unpack;
#[path = "suite/unreadable_requests.rs"]
mod unreadable_requests;
#[path = "suite/workers.rs"]
mod workers;
