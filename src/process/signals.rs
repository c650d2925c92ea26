//! The proxy's own signals.
//!
//! | signal | what happens | why |
//! |---|---|---|
//! | SIGTERM, SIGINT | orderly end; a second one ends at once | what `docker stop`, a supervisor and Ctrl-C send |
//! | SIGCHLD | children are reaped (`reap.rs`) | as PID 1 every orphan is ours |
//! | SIGPIPE | ignored (the standard library's default) | a reader that left is an error of one write, not our end |
//! | anything else | the kernel's default | |

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// The signals that ask for an orderly end.
#[derive(Debug)]
pub struct EndSignals {
    terminate: Signal,
    interrupt: Signal,
}

impl EndSignals {
    /// Takes over SIGTERM and SIGINT.
    ///
    /// # Errors
    /// When a handler cannot be installed.
    pub fn take() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Waits for the next of them and says its name.
    pub async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
