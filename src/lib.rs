//! pipeloop runs any Unix executable as a serverless action.
//!
//! On one side it answers a platform over HTTP, on the other it speaks a line protocol with the
//! executable that is simple enough to be implemented without libraries.
//!
//! # The map
//! An activation takes this road, and imports point along it only:
//!
//! - [`cli`]: one file a command
//! - [`front`]: the callers: the OpenWhisk contract, over [`server`], which speaks HTTP and knows no action
//! - [`action`]: one action's life: its start, its queue, its end; [`mod@check`] tries one out
//! - [`artifact`]: what was uploaded, on its way to an executable; [`protocol`]: how the proxy talks to it
//! - [`logs`]: the action's output on its way to the proxy's own
//! - [`process`]: the child: spawn, wait, stop
//!
//! Beside the road: [`activation`] and [`error`] are what travels on it, [`config`] holds the settings, [`time`]
//! limits that a freeze does not run out, [`memory_budget`] the bound for all that callers make the proxy hold,
//! [`text`] words for messages.

#![cfg_attr(
    test,
    allow(
        clippy::disallowed_methods,
        clippy::disallowed_macros,
        reason = "clippy.toml is about the proxy, not its inner tests"
    )
)]

pub mod action;
pub mod activation;
pub mod artifact;
pub mod check;
pub mod cli;
pub mod config;
pub mod error;
pub mod front;
pub mod logs;
pub mod memory_budget;
pub mod process;
pub mod protocol;
pub mod server;
pub mod text;
pub mod time;
