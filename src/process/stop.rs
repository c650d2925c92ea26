//! Ends a process and everything in its group.

#![expect(clippy::disallowed_methods, reason = "signals to a process group are what stopping is")]

use std::time::Duration;

use rustix::process::{Signal, kill_process_group};

use crate::time;

use super::spawn::Process;

/// A process that must not outlive what is done with it, also when that is left in the middle.
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
        self.0.as_ref().expect("it is taken by `release` alone, which ends the guard")
    }

    /// The process is in good hands.
    #[must_use]
    pub fn release(mut self) -> Process {
        self.0.take().expect("it is taken here alone")
    }
}

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        if let Some(process) = &self.0 {
            kill_group(process);
        }
    }
}

/// How long the kernel may take to bury what was killed.
const BURIAL: Duration = Duration::from_secs(5);

/// Stops a process whose standard input has been closed already: waits, then SIGTERM to the
/// group, then SIGKILL to the group. Each of the two waits lasts at most half the grace.
///
/// Whatever else is left in the group is killed in any case: a grandchild that outlives the
/// action would hold its pipes and memory.
pub async fn stop(process: &Process, grace: Duration) {
    let step = grace / 2;
    if time::timeout(step, process.exited()).await.is_none() {
        terminate_group(process);
        let _ = time::timeout(step, process.exited()).await;
    }
    kill(process).await;
}

/// Asks the whole group to end: SIGTERM.
pub fn terminate_group(process: &Process) {
    let _ = kill_process_group(process.pid, Signal::TERM);
}

/// Kills the whole group at once and waits for its leader's end.
pub async fn kill(process: &Process) {
    kill_group(process);
    let _ = tokio::time::timeout(BURIAL, process.exited()).await;
}

/// Kills the whole group and does not wait.
///
/// As long as one member lives the group's id is not given to anybody else; once there is none,
/// the call says ESRCH, which is what was wanted. After the leader is reaped its pid could become
/// a new leader's only if the kernel went once round all pids in between.
pub fn kill_group(process: &Process) {
    let _ = kill_process_group(process.pid, Signal::KILL);
}
