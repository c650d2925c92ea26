//! The child: how it is started, looked at, stopped and buried.
//!
//! Knows pids, pipes and signals; knows no protocol and no JSON. The one folder with `unsafe`.
//!
//! # Theory of operation
//! [`spawn`] makes the pipes, starts the executable as leader of its own process group and closes
//! the child's ends on our side, so that end-of-file tells the truth. [`reap`] alone waits for
//! processes and keeps each exit status as a fact that may be asked for twice. [`wait_state`] looks at
//! what a process waits for; [`stop`] ends the whole group, and [`orphans`] are what is left then.
//! [`memory`] and [`allocator`] are about memory: the kernel's kills for want of it, and our own share.

pub mod adaptive_yield;
pub mod allocator;
pub mod memory;
pub mod orphans;
pub mod pipe;
pub mod reap;
pub mod signals;
pub mod spawn;
pub mod stop;
pub mod wait_state;

pub use reap::{ExitStatus, Reaper};
pub use spawn::{Launch, Pipes, Process, start};
