//! `pipeloop serve [ACTION]`.

use std::io::IsTerminal;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use rustix::event::{PollFd, PollFlags};
use tokio::sync::watch;

use crate::action::{Action, ActionConfig, InitFailures};
use crate::config::{ActionSettings, Compatibility, ServerSettings, Workers, container_environment};
use crate::error::{Error, ProxyError};
use crate::front::openwhisk::OpenWhisk;
use crate::logs::{SENTINEL, Sentinels, Sink};
use crate::memory_budget::MemoryBudget;
use crate::process::signals::BlockedSignals;
use crate::server::{self, Limits, Stop};

use super::output;

/// Serve an action over HTTP: POST /init and POST /run.
///
/// With ACTION it serves that one, initialised already; without, the platform posts the code to
/// /init. Every flag can be set by the variable beside it.
#[derive(Debug, Args)]
pub(super) struct Serve {
    /// Executable, folder with `exec`, zip or tar.gz to serve; with a compiler also source code, a file or a
    /// folder.
    action: Option<PathBuf>,

    #[command(flatten)]
    server: ServerSettings,

    #[command(flatten)]
    settings: ActionSettings,
}

/// How long answers that are ready may take to reach their callers at the end.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

impl Serve {
    /// `held_back`: signals that nobody handles yet.
    pub(super) fn execute(self, held_back: Option<BlockedSignals>) -> Result<u8, Error> {
        // As soon as there is something to stop, and before.
        install_panic_hook();
        tracing_subscriber::fmt()
            .with_max_level(self.server.log)
            .with_writer(std::io::stderr)
            .with_ansi(std::io::stderr().is_terminal())
            .init();
        let runtime = super::runtime()?;
        let status = runtime.block_on(self.serve(held_back));
        // A thread that still unpacks an archive is not waited for.
        runtime.shutdown_background();
        status
    }

    async fn serve(self, held_back: Option<BlockedSignals>) -> Result<u8, Error> {
        let system = |doing| move |reason| Error::Proxy(ProxyError::System { doing, reason });
        let (mut signals, reaper) = super::take_over()?;
        drop(held_back);
        let compatibility = Compatibility::from_environment()?;
        let log_init_error = compatibility.log_init_error;
        let workers = Workers::of(self.server.workers, &compatibility).count();
        let action = Action::new(
            ActionConfig {
                environment: container_environment(&compatibility),
                wait_for_ack: compatibility.wait_for_ack.is_some(),
                compiler: self.settings.compiler.clone().or(compatibility.compiler),
                execution_env: compatibility.execution_env,
                stdout: Sink::stdout().map_err(system("use stdout"))?,
                stderr: Sink::stderr().map_err(system("use stderr"))?,
                sentinels: Sentinels::Write,
                init_failures: if log_init_error { InitFailures::Log } else { InitFailures::Tell },
                workers,
                queue: self.server.queue,
                room: MemoryBudget::new(self.server.max_memory.0),
                settings: self.settings,
            },
            reaper,
        );

        // The platform takes a connection that it can make for a proxy that can serve.
        if let Some(path) = &self.action {
            tokio::select! {
                opened = action.open(path) => opened?,
                _ = signals.next() => {
                    action.stop(Duration::ZERO).await;
                    return Ok(0);
                }
            }
        }
        let listener = server::listen(self.server.host, self.server.port)?;
        let address = listener.local_addr().map_err(system("learn the port"))?;
        if let Some(path) = &self.server.port_file {
            std::fs::write(path, format!("{}\n", address.port())).map_err(|reason| {
                Error::Proxy(ProxyError::BadSetting {
                    setting: "--port-file",
                    reason: format!("cannot write `{}`: {reason}", path.display()),
                })
            })?;
        }
        if self.server.port == 0 || std::io::stderr().is_terminal() {
            output::note(&format!("pipeloop: listening on port {}", address.port()));
        }
        tracing::info!(%address, "listening");

        let front = Arc::new(OpenWhisk {
            action: action.clone(),
            max_init_body: self.server.max_init_body.0,
            max_body: self.server.max_body.0,
            patience: self.server.caller_timeout.0,
            log_init_error,
        });
        let limits = Limits { caller_timeout: self.server.caller_timeout.0, connections: self.server.max_connections };
        let (stop, stopped) = watch::channel(Stop::No);
        let server = tokio::spawn(server::serve(listener, front, limits, stopped));

        let signal = signals.next().await;
        tracing::info!(signal = signal.name(), "ending in order; a second signal ends at once");
        stop.send_replace(Stop::Accepting);
        let mut orderly = std::pin::pin!(async {
            action.stop(self.server.drain_grace.0).await;
            stop.send_replace(Stop::Connections);
            let _ = tokio::time::timeout(LAST_ANSWERS, server).await;
        });
        tokio::select! {
            () = &mut orderly => {}
            signal = signals.next() => {
                tracing::warn!(signal = signal.name(), "ending at once");
                action.kill();
                orderly.await;
            }
        }
        Ok(0)
    }
}

/// The end of PID 1 is the end of the container: when it comes by a fault of ours, its log must be
/// complete all the same.
///
/// Aborts by itself, so that a build that would unwind ends in the same way.
fn install_panic_hook() {
    std::panic::set_hook(Box::new(|panic| {
        let fault = format!("pipeloop: internal error, please report it: {panic}\n{SENTINEL}\n");
        write_last(rustix::stdio::stderr(), &fault);
        // Nobody knows here whether the last line was ended; an empty one does no harm.
        write_last(rustix::stdio::stdout(), &format!("\n{SENTINEL}\n"));
        std::process::abort();
    }));
}

/// Writes unless the reader stalls: nothing may keep a process that is broken from ending.
fn write_last(stream: BorrowedFd<'_>, text: &str) {
    let second = rustix::event::Timespec { tv_sec: 1, tv_nsec: 0 };
    let mut fds = [PollFd::from_borrowed_fd(stream, PollFlags::OUT)];
    if rustix::event::poll(&mut fds, Some(&second)).is_ok_and(|ready| ready > 0) {
        let _ = rustix::io::write(stream, text.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    use super::*;

    /// Set for this test when it is run again, in a process of its own, to have the fault.
    const FAULTY: &str = "THIS_TEST_HAS_A_FAULT";

    #[test]
    fn a_fault_of_the_proxy_is_named_and_ends_the_log() {
        if std::env::var_os(FAULTY).is_some() {
            install_panic_hook();
            let _ = rustix::io::write(rustix::stdio::stdout(), b"half a line");
            "seven".parse::<u8>().expect("this is always a number");
        }
        let this_test = concat!(module_path!(), "::a_fault_of_the_proxy_is_named_and_ends_the_log");
        let (_, this_test) = this_test.split_once("::").expect("a path begins with the crate");
        let output = Command::new(std::env::current_exe().expect("this binary has a path"))
            .args(["--exact", this_test, "--nocapture"])
            .env(FAULTY, "1")
            .output()
            .expect("this binary can be started");
        let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        let shown = format!("{}\n--- stdout:\n{stdout}\n--- stderr:\n{stderr}", output.status);
        // SIGABRT, the end of whoever calls abort(3).
        assert_eq!(output.status.signal(), Some(6), "{shown}");
        assert!(stdout.ends_with(&format!("half a line\n{SENTINEL}\n")), "{shown}");
        assert!(stderr.ends_with(&format!("\n{SENTINEL}\n")), "{shown}");
        for (name, text) in [("stdout", &stdout), ("stderr", &stderr)] {
            assert_eq!(text.matches(SENTINEL).count(), 1, "sentinels on {name}: {shown}");
        }
        let fault = "pipeloop: internal error, please report it: panicked at src/cli/serve.rs:";
        assert!(stderr.contains(fault) && stderr.contains("this is always a number"), "{shown}");
    }
}
