//! pipeloop runs any Unix executable as a serverless action.
//!
//! On one side it answers a platform over HTTP, on the other it speaks a line protocol with the
//! executable that is simple enough to be implemented without libraries.
//!
//! # The map of the house
//! An activation takes this road, and imports point that way only:
//!
//! - [`front`]: who calls us: HTTP, the OpenWhisk contract
//! - [`action`]: one action's life: what was uploaded, its start, its queue, its end
//! - [`protocol`]: how we talk to the executable
//! - [`process`]: the child: spawn, wait, stop
//!
//! Beside the road: [`activation`] and [`error`] are what travels on it, [`logs`] is the action's
//! output on its way to ours, [`config`] the settings, [`patience`] limits of time, [`courtesy`] when to give way,
//! [`text`] words for messages, [`catalogue`] the
//! documentation of errors. [`cli`] has one file a command.

pub mod action;
pub mod activation;
pub mod catalogue;
pub mod cli;
pub mod config;
pub mod courtesy;
pub mod diagnosis;
pub mod error;
pub mod front;
pub mod logs;
pub mod patience;
pub mod process;
pub mod protocol;
pub mod room;
pub mod text;
