//! The proxy's own signals.
//!
//! The kernel drops every signal to PID 1 for which it has no handler, except SIGKILL and SIGSTOP
//! from outside. So this module decides on each signal that a person or a platform may send to a
//! container; a signal means the same as PID 1, under `docker run --init` and on a laptop:
//!
//! | signal | what happens | why |
//! |---|---|---|
//! | SIGTERM | orderly shutdown | what `docker stop`, Kubernetes and supervisors send |
//! | SIGINT | orderly shutdown | Ctrl-C, and `docker run` in the foreground passes it on |
//! | SIGQUIT | orderly shutdown | Ctrl-\\, and the stop signal of images that were made for other servers |
//! | SIGHUP | orderly shutdown, unless it was ignored at the start | the terminal is gone; there is no configuration to reload; `nohup` asks the proxy to go on |
//! | a second one of these | ends at once | a user who asks twice does not want to wait |
//! | SIGUSR1, SIGUSR2 | forwarded to the group of each of the action's processes | they mean something to programs only; the proxy has no use for them |
//! | SIGCHLD | children are reaped (`reap.rs`) | as PID 1 the proxy is the parent of every orphan |
//! | SIGPIPE | ignored (the standard library's default) | a reader that has left fails one write; it does not end the proxy |
//! | SIGWINCH, SIGURG, SIGCONT | the kernel's default: nothing | the action has no terminal; stopping and continuing need no help |
//! | SIGSTOP, SIGTSTP, SIGTTIN, SIGTTOU | the kernel's default: stops the proxy (as PID 1 SIGSTOP alone does) | job control and debuggers |
//! | anything else | the kernel's default: nothing as PID 1, the end otherwise | no one sends it on purpose, and a fault of the proxy must end it |
//!
//! The kernel drops a signal without a handler, but not a blocked one. So the proxy blocks the
//! termination signals from the first line of `main` until their handlers are installed
//! ([`BlockedSignals`]).
//!
//! The action gets a forwarded signal as if it had been sent to the action itself: one without a handler
//! ends the action, and the proxy reports the exit and starts the action again, as after any other crash.

use std::io;
use std::mem::MaybeUninit;

use rustix::process::Signal as Number;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::reap::Reaper;

/// A signal that asks the proxy to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TerminationSignal {
    /// SIGHUP.
    Hangup,
    /// SIGINT.
    Interrupt,
    /// SIGQUIT.
    Quit,
    /// SIGTERM.
    Terminate,
}

impl TerminationSignal {
    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Hangup => "SIGHUP",
            Self::Interrupt => "SIGINT",
            Self::Quit => "SIGQUIT",
            Self::Terminate => "SIGTERM",
        }
    }

    /// The status that a shell reports for a command that this signal ended: 128 plus the number.
    #[must_use]
    pub fn shell_code(self) -> u8 {
        match self {
            Self::Hangup => 129,
            Self::Interrupt => 130,
            Self::Quit => 131,
            Self::Terminate => 143,
        }
    }
}

/// Blocks the termination signals while it lives. Dropping it delivers those that are pending.
///
/// Source: Linux, `kernel/signal.c`, `sig_ignored`: "Blocked signals are never ignored, since the signal
/// handler may change by the time it is unblocked", also for PID 1.
#[derive(Debug)]
pub struct BlockedSignals {
    /// The signal mask that the proxy was started with.
    before: Option<libc::sigset_t>,
}

impl BlockedSignals {
    /// Blocks them in this thread, which must be the only one.
    #[must_use]
    #[expect(unsafe_code, reason = "no dependency has a safe interface to the signal mask")]
    pub fn block() -> Self {
        let mut blocked = MaybeUninit::uninit();
        let mut before = MaybeUninit::uninit();
        // SAFETY: `sigemptyset` initializes the memory of `blocked`, to which `sigaddset` adds signals
        // that exist; `pthread_sigmask` reads that set, writes the old one to `before`, which has room
        // for a set, and changes the mask of this thread only.
        let before = unsafe {
            libc::sigemptyset(blocked.as_mut_ptr());
            for number in [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM] {
                libc::sigaddset(blocked.as_mut_ptr(), number);
            }
            let result = libc::pthread_sigmask(libc::SIG_BLOCK, blocked.as_ptr(), before.as_mut_ptr());
            (result == 0).then(|| before.assume_init())
        };
        Self { before }
    }
}

impl Drop for BlockedSignals {
    #[expect(unsafe_code, reason = "as above")]
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            // SAFETY: the set was written by the kernel, and a null pointer asks for no copy of the mask.
            unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, before, std::ptr::null_mut()) };
        }
    }
}

/// The handlers of the termination signals.
#[derive(Debug)]
pub struct TerminationSignals {
    hangup: Option<Signal>,
    interrupt: Signal,
    quit: Signal,
    terminate: Signal,
}

impl TerminationSignals {
    /// Installs the handlers.
    ///
    /// # Errors
    /// When a handler cannot be installed.
    pub fn install() -> io::Result<Self> {
        let hangup = if hangup_is_ignored() { None } else { Some(signal(SignalKind::hangup())?) };
        Ok(Self {
            hangup,
            interrupt: signal(SignalKind::interrupt())?,
            quit: signal(SignalKind::quit())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    /// Waits for the next signal.
    pub async fn next(&mut self) -> TerminationSignal {
        let hangup = async {
            match &mut self.hangup {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.terminate.recv() => TerminationSignal::Terminate,
            _ = self.interrupt.recv() => TerminationSignal::Interrupt,
            _ = self.quit.recv() => TerminationSignal::Quit,
            _ = hangup => TerminationSignal::Hangup,
        }
    }
}

/// Forwards SIGUSR1 and SIGUSR2 from now on to every process group that `reaper` waits for.
///
/// # Errors
/// When a handler cannot be installed.
pub fn forward_to_actions(reaper: &Reaper) -> io::Result<()> {
    for (kind, number) in [(SignalKind::user_defined1(), Number::USR1), (SignalKind::user_defined2(), Number::USR2)] {
        let mut received = signal(kind)?;
        let reaper = reaper.clone();
        tokio::spawn(async move {
            while received.recv().await.is_some() {
                reaper.signal_groups(number);
            }
        });
    }
    Ok(())
}

/// Whether the parent set SIGHUP to be ignored, as `nohup` does. Must be asked before a handler is
/// installed.
///
/// Source: proc(5), `/proc/PID/status`, a mask in hexadecimal; signal N is bit N-1.
fn hangup_is_ignored() -> bool {
    let Ok(status) = std::fs::read_to_string("/proc/self/status") else { return false };
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & 1 != 0)
}
