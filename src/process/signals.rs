//! The proxy's own signals.
//!
//! The kernel drops every signal to PID 1 for which it has no handler, except SIGKILL and SIGSTOP
//! from outside. So each signal that a person or a platform may send to a container is decided on
//! here, and means the same as PID 1, under `docker run --init` and on a laptop:
//!
//! | signal | what happens | why |
//! |---|---|---|
//! | SIGTERM | orderly end | what `docker stop`, Kubernetes and supervisors send |
//! | SIGINT | orderly end | Ctrl-C, and `docker run` in the foreground passes it on |
//! | SIGQUIT | orderly end | Ctrl-\\, and the stop signal of images that were made for other servers |
//! | SIGHUP | orderly end, unless it was ignored at the start | the terminal is gone; there is nothing to load again; `nohup` says that it is to go on |
//! | any second one of these | ends at once | whoever asks twice does not want to wait |
//! | SIGUSR1, SIGUSR2 | passed on to the group of each of the action's processes | they mean something to programs only: ours has no use for them |
//! | SIGCHLD | children are reaped (`reap.rs`) | as PID 1 every orphan is ours |
//! | SIGPIPE | ignored (the standard library's default) | a reader that left is an error of one write, not our end |
//! | SIGWINCH, SIGURG, SIGCONT | the kernel's default: nothing | the action has no terminal; being stopped and continued needs no help |
//! | SIGSTOP, SIGTSTP, SIGTTIN, SIGTTOU | the kernel's default: stops the proxy (as PID 1 SIGSTOP alone does) | job control, and a debugger's |
//! | anything else | the kernel's default: nothing as PID 1, the end otherwise | nobody sends it on purpose, and a fault of our own must end us |
//!
//! The kernel drops a signal without a handler, not one that is held back: so those that ask for an end are
//! held back from the first line of `main` on ([`HeldBack`]), until the handlers stand.
//!
//! A signal that is passed on reaches the action as if it had been sent to it: one without a handler
//! ends there, and is told and started again as after any other death.

use std::io;
use std::mem::MaybeUninit;

use rustix::process::Signal as Number;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::reap::Reaper;

/// A signal that asks for an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndSignal {
    /// SIGHUP.
    Hangup,
    /// SIGINT.
    Interrupt,
    /// SIGQUIT.
    Quit,
    /// SIGTERM.
    Terminate,
}

impl EndSignal {
    /// Its name, as a person knows it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Hangup => "SIGHUP",
            Self::Interrupt => "SIGINT",
            Self::Quit => "SIGQUIT",
            Self::Terminate => "SIGTERM",
        }
    }

    /// The status a shell gives to a command that it ended: 128 and its number.
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

/// The signals that ask for an end wait for as long as this lives, and come when it is dropped.
///
/// Source: Linux, `kernel/signal.c`, `sig_ignored`: "Blocked signals are never ignored, since the signal
/// handler may change by the time it is unblocked", also for PID 1.
#[derive(Debug)]
pub struct HeldBack {
    /// What was held back before, by whoever started us.
    before: Option<libc::sigset_t>,
}

impl HeldBack {
    /// Holds them back in this thread, the only one there is.
    #[must_use]
    #[expect(unsafe_code, reason = "no safe interface to the signal mask is among our libraries")]
    pub fn begin() -> Self {
        let mut ours = MaybeUninit::uninit();
        let mut before = MaybeUninit::uninit();
        // SAFETY: `sigemptyset` makes a set of the memory that `ours` has for one, to which `sigaddset` adds
        // signals that exist; `pthread_sigmask` reads it and writes the set of before to where there is
        // room for it. It changes this thread's mask alone.
        let before = unsafe {
            libc::sigemptyset(ours.as_mut_ptr());
            for number in [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM] {
                libc::sigaddset(ours.as_mut_ptr(), number);
            }
            let result = libc::pthread_sigmask(libc::SIG_BLOCK, ours.as_ptr(), before.as_mut_ptr());
            (result == 0).then(|| before.assume_init())
        };
        Self { before }
    }
}

impl Drop for HeldBack {
    #[expect(unsafe_code, reason = "as above")]
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            // SAFETY: the set was written by the kernel, and a null pointer asks for no copy of the mask.
            unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, before, std::ptr::null_mut()) };
        }
    }
}

/// The signals that ask for an orderly end.
#[derive(Debug)]
pub struct EndSignals {
    hangup: Option<Signal>,
    interrupt: Signal,
    quit: Signal,
    terminate: Signal,
}

impl EndSignals {
    /// Takes over the signals that ask for an end.
    ///
    /// # Errors
    /// When a handler cannot be installed.
    pub fn take() -> io::Result<Self> {
        let hangup = if hangup_is_ignored() { None } else { Some(signal(SignalKind::hangup())?) };
        Ok(Self {
            hangup,
            interrupt: signal(SignalKind::interrupt())?,
            quit: signal(SignalKind::quit())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    /// Waits for the next of them.
    pub async fn next(&mut self) -> EndSignal {
        let hangup = async {
            match &mut self.hangup {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.terminate.recv() => EndSignal::Terminate,
            _ = self.interrupt.recv() => EndSignal::Interrupt,
            _ = self.quit.recv() => EndSignal::Quit,
            _ = hangup => EndSignal::Hangup,
        }
    }
}

/// From now on passes SIGUSR1 and SIGUSR2 on to every process group that `reaper` waits for.
///
/// # Errors
/// When a handler cannot be installed.
pub fn pass_on(reaper: &Reaper) -> io::Result<()> {
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

/// Whether whoever started us has SIGHUP ignored, as `nohup` does. It has to be asked before a
/// handler is installed.
///
/// Source: proc(5), `/proc/PID/status`, a mask in hexadecimal; signal N is bit N-1.
fn hangup_is_ignored() -> bool {
    let Ok(status) = std::fs::read_to_string("/proc/self/status") else { return false };
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & 1 != 0)
}
