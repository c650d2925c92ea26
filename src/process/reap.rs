//! The one place that waits for processes.
//!
//! As PID 1 the proxy must reap orphans, and a global `waitpid(-1)` steals the children of any other
//! waiter, so there is no other. On SIGCHLD the reaper collects every child that the proxy started
//! and, as PID 1, every orphan as well. It stores an exit as a fact: callers may ask for it before it
//! happens, after, and twice.

#![expect(clippy::disallowed_methods, reason = "the one place that waits for processes")]

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, kill_process_group};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// How a process ended. Displayed as a verb: `exited with status 3`, `was killed by signal 9 (SIGKILL)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitStatus {
    /// The process ended by itself, with this status.
    Exited(i32),
    /// A signal ended the process.
    Signalled(i32),
}

/// A process's exit: when it was seen, and how it ended.
#[derive(Debug, Clone, Copy)]
pub struct Exit {
    /// The moment it was reaped.
    pub at: Instant,
    /// How it ended.
    pub status: ExitStatus,
}

/// Waits for every registered process.
#[derive(Debug, Clone)]
pub struct Reaper {
    children: Arc<Mutex<HashMap<i32, watch::Sender<Option<Exit>>>>>,
    orphans: Orphans,
}

/// Whether to reap processes that the proxy did not start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Orphans {
    /// The proxy is PID 1, so every orphan becomes its child.
    Reap,
    /// Orphans belong to another process. Waiting for any child would steal the children of other
    /// threads, in tests.
    Leave,
}

impl Reaper {
    /// Starts the reaper of this process as a task on the current runtime.
    ///
    /// # Errors
    /// When the SIGCHLD handler cannot be installed.
    pub fn start() -> io::Result<Self> {
        let mut child_signals = signal(SignalKind::child())?;
        let orphans = if std::process::id() == 1 { Orphans::Reap } else { Orphans::Leave };
        let reaper = Self { children: Arc::default(), orphans };
        let task = reaper.clone();
        tokio::spawn(async move {
            while child_signals.recv().await.is_some() {
                task.reap();
            }
        });
        Ok(reaper)
    }

    /// Registers a child. Must be called right after the spawn, before any other task can run.
    pub(super) fn register(&self, pid: Pid) -> watch::Receiver<Option<Exit>> {
        let (sender, receiver) = watch::channel(None);
        self.children.lock().expect("no holder panics").insert(pid.as_raw_nonzero().get(), sender);
        receiver
    }

    /// Sends a signal to the process group of every child that has not been reaped. The lock keeps
    /// [`Self::reap`] out, so no group id can have been reused.
    pub(super) fn signal_groups(&self, signal: Signal) {
        for pid in self.children.lock().expect("no holder panics").keys() {
            let pid = Pid::from_raw(*pid).expect("a pid of a child is positive");
            let _ = kill_process_group(pid, signal);
        }
    }

    /// Collects all exits. Pending SIGCHLDs merge, so one signal may announce many exits.
    pub(super) fn reap(&self) {
        let mut children = self.children.lock().expect("no holder panics");
        if self.orphans == Orphans::Reap {
            while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
                if let Some(child) = children.remove(&pid.as_raw_nonzero().get()) {
                    child.send_replace(Some(Exit::now(status)));
                }
            }
        } else {
            children.retain(|pid, child| {
                let pid = Pid::from_raw(*pid).expect("a pid of a child is positive");
                match rustix::process::waitpid(Some(pid), WaitOptions::NOHANG) {
                    Ok(None) | Err(rustix::io::Errno::INTR) => true,
                    Ok(Some((_, status))) => {
                        child.send_replace(Some(Exit::now(status)));
                        false
                    }
                    // Another thread has waited for it. Dropping the sender shows the receivers that
                    // the status is lost.
                    Err(_) => false,
                }
            });
        }
    }
}

impl Exit {
    fn now(status: WaitStatus) -> Self {
        let status = match status.terminating_signal() {
            Some(number) => ExitStatus::Signalled(number),
            None => ExitStatus::Exited(status.exit_status().unwrap_or(-1)),
        };
        Self { at: Instant::now(), status }
    }
}

impl ExitStatus {
    /// The status that a shell reports: the exit status, or 128 plus the signal.
    #[must_use]
    pub fn shell_code(self) -> i32 {
        match self {
            Self::Exited(code) => code,
            Self::Signalled(number) => 128 + number,
        }
    }
}

impl fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Exited(code) => write!(f, "exited with status {code}"),
            Self::Signalled(number) => match signal_name(number) {
                Some(name) => write!(f, "was killed by signal {number} ({name})"),
                None => write!(f, "was killed by signal {number}"),
            },
        }
    }
}

/// The names of the signals that end a process.
///
/// Source: signal(7), the column for x86 and ARM.
fn signal_name(number: i32) -> Option<&'static str> {
    Some(match number {
        1 => "SIGHUP",
        2 => "SIGINT",
        3 => "SIGQUIT",
        4 => "SIGILL",
        5 => "SIGTRAP",
        6 => "SIGABRT",
        7 => "SIGBUS",
        8 => "SIGFPE",
        9 => "SIGKILL",
        10 => "SIGUSR1",
        11 => "SIGSEGV",
        12 => "SIGUSR2",
        13 => "SIGPIPE",
        14 => "SIGALRM",
        15 => "SIGTERM",
        24 => "SIGXCPU",
        25 => "SIGXFSZ",
        31 => "SIGSYS",
        _ => return None,
    })
}
