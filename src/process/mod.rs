//! The child process: starting it, probing it, stopping it and reaping it.
//!
//! Knows pids, pipes and signals; knows no protocol and no JSON. The only directory with `unsafe`.
//!
//! # Theory of operation
//! [`lookup`] finds a program. [`spawn`] makes the pipes, starts the executable as the leader of its own process group and closes
//! the proxy's copies of the child's pipe ends, so that end-of-file means what it says. [`reap`] alone
//! waits for processes, and keeps each exit status as a fact that may be asked for twice.
//! [`terminal`] opens a pseudo-terminal in place of a pipe. [`wait_state`] sees what a process waits for,
//! [`standstill`] that it can do nothing else; [`stop`] ends the whole group, and [`orphans`] finds
//! the processes that are left after that. [`memory`] reads the memory limit and counts
//! out-of-memory kills; [`allocator`] keeps the proxy's own memory small.

pub mod adaptive_yield;
pub mod allocator;
pub mod lookup;
pub mod memory;
pub mod orphans;
pub mod pipe;
pub mod reap;
pub mod signals;
pub mod spawn;
pub mod standstill;
pub mod stop;
pub mod terminal;
pub mod wait_state;

pub use reap::{ExitStatus, Reaper};
pub use spawn::{Launch, Pipes, Process, StdoutKind, start};
