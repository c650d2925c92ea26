//! Ends a process and everything in its process group.

#![expect(clippy::disallowed_methods, reason = "signals to a process group are what stopping is")]

use std::time::Duration;

use rustix::process::{Signal, kill_process_group};

use crate::time;

use super::spawn::Process;

/// Kills its process's group when dropped, so that the process cannot outlive a task that is cancelled.
#[derive(Debug)]
pub struct KillOnDrop(Option<Process>);

impl KillOnDrop {
    /// Guards a process.
    #[must_use]
    pub fn new(process: Process) -> Self {
        Self(Some(process))
    }

    /// The process.
    #[must_use]
    pub fn process(&self) -> &Process {
        self.0.as_ref().expect("only `release` takes it, which ends the guard")
    }

    /// Ends the guard: the caller takes care of the process from now on.
    #[must_use]
    pub fn release(mut self) -> Process {
        self.0.take().expect("only this method takes it")
    }
}

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        if let Some(process) = &self.0 {
            kill_group(process);
        }
    }
}

/// How long the exit of a killed process may take to arrive.
const REAP_TIMEOUT: Duration = Duration::from_secs(5);

/// Stops a process whose standard input has been closed already: waits, then sends SIGTERM to the
/// group, then SIGKILL. Each of the two waits lasts at most half the grace period.
///
/// The rest of the group is killed in any case: a grandchild that outlives the action would hold
/// its pipes and its memory.
pub async fn stop(process: &Process, grace: Duration) {
    let step = grace / 2;
    if time::timeout(step, process.exited()).await.is_none() {
        terminate_group(process);
        let _ = time::timeout(step, process.exited()).await;
    }
    kill_and_reap(process).await;
}

/// Asks the whole group to end: SIGTERM.
pub fn terminate_group(process: &Process) {
    let _ = kill_process_group(process.pid, Signal::TERM);
}

/// Kills the whole group at once and waits until its leader is reaped.
pub async fn kill_and_reap(process: &Process) {
    kill_group(process);
    let _ = tokio::time::timeout(REAP_TIMEOUT, process.exited()).await;
}

/// Kills the whole group and does not wait.
///
/// While one member lives, the kernel gives the group's id to no other process. Once no member is
/// left, the call fails with ESRCH, and there is nothing left to kill. After the leader is reaped,
/// its pid could become a new leader's only if the kernel went through all pids in between.
pub fn kill_group(process: &Process) {
    let _ = kill_process_group(process.pid, Signal::KILL);
}
