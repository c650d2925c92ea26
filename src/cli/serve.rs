//! `pipeloop serve [ACTION]`.

use std::ffi::OsStr;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use tokio::sync::watch;

use crate::action::{Action, ActionConfig, InitFailures};
use crate::config::{
    ActionSettings, Compatibility, ServerSettings, Workers, comes_from_variable, container_environment,
};
use crate::error::{Error, ProxyError};
use crate::front::openwhisk::OpenWhisk;
use crate::logs::{SENTINEL, Sentinels, Sink};
use crate::memory_budget::MemoryBudget;
use crate::process::signals::BlockedSignals;
use crate::server::{self, Limits, Stop};

use super::action::ActionArgument;
use super::output;

/// Serve an action over HTTP, with POST /init and POST /run.
///
/// With ACTION, that action is initialised before the proxy listens. Without it, the platform posts the code to
/// /init. Each setting has a flag and an environment variable; the flag wins.
#[derive(Debug, Args)]
pub(super) struct Serve {
    #[command(flatten)]
    action: ActionArgument,

    #[command(flatten)]
    server: ServerSettings,

    #[command(flatten)]
    settings: ActionSettings,
}

/// How long finished answers may take to reach their callers at the end.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

impl Serve {
    /// `blocked_signals`: signals that have no handler yet.
    pub(super) fn execute(self, blocked_signals: Option<BlockedSignals>) -> Result<u8, Error> {
        // Before anything can panic.
        install_panic_hook();
        output::start_proxy_log(self.server.log);
        let runtime = super::runtime()?;
        let status = runtime.block_on(self.serve(blocked_signals));
        // Without waiting for a thread that still unpacks an archive.
        runtime.shutdown_background();
        status
    }

    async fn serve(self, blocked_signals: Option<BlockedSignals>) -> Result<u8, Error> {
        let system = |doing| move |reason| Error::Proxy(ProxyError::System { doing, reason });
        let (mut signals, reaper) = super::take_over()?;
        drop(blocked_signals);
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
                init_failures: if log_init_error { InitFailures::Log } else { InitFailures::Return },
                workers,
                queue: self.server.queue,
                memory_budget: MemoryBudget::new(self.server.max_memory.0),
                settings: self.settings,
            },
            reaper,
        );

        // The proxy listens last: the platform takes a connection that it can make for a proxy that is ready.
        if let Some(local) = self.action.given() {
            tokio::select! {
                opened = action.open(&local) => opened?,
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
                    setting: if comes_from_variable("--port-file", OsStr::new("PIPELOOP_PORT_FILE")) {
                        "PIPELOOP_PORT_FILE"
                    } else {
                        "--port-file"
                    },
                    reason: format!("cannot write `{}`: {reason}", path.display()),
                })
            })?;
        }
        if self.server.port == 0 || output::stderr_is_terminal() {
            output::note(&format!("pipeloop: listening on port {}", address.port()));
        }
        tracing::info!(%address, "listening");

        let front = Arc::new(OpenWhisk {
            action: action.clone(),
            max_init_body: self.server.max_init_body.0,
            max_body: self.server.max_body.0,
            caller_timeout: self.server.caller_timeout.0,
            log_init_error,
            failure_delay: self.server.failure_delay.0,
        });
        let limits = Limits { caller_timeout: self.server.caller_timeout.0, connections: self.server.max_connections };
        let (stop, stopped) = watch::channel(Stop::No);
        let server = tokio::spawn(server::serve(listener, front, limits, stopped));

        let signal = signals.next().await;
        tracing::info!(signal = signal.name(), "draining; a second signal stops at once");
        stop.send_replace(Stop::Accepting);
        let mut drained = std::pin::pin!(async {
            action.stop(self.server.drain_grace.0).await;
            stop.send_replace(Stop::Connections);
            let _ = tokio::time::timeout(LAST_ANSWERS, server).await;
        });
        tokio::select! {
            () = &mut drained => {}
            signal = signals.next() => {
                tracing::warn!(signal = signal.name(), "stopping at once");
                action.kill();
                drained.await;
            }
        }
        Ok(0)
    }
}

/// Completes the log when the proxy itself fails: the end of PID 1 is the end of the container.
///
/// Aborts the process, so that a build that would unwind ends in the same way.
fn install_panic_hook() {
    std::panic::set_hook(Box::new(|panic| {
        let fault = format!("pipeloop: internal error, please report it: {panic}\n{SENTINEL}\n");
        output::write_unless_stalled(rustix::stdio::stderr(), &fault);
        // The last line may be open. If it is not, an empty line does no harm.
        output::write_unless_stalled(rustix::stdio::stdout(), &format!("\n{SENTINEL}\n"));
        std::process::abort();
    }));
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    use super::*;

    /// Set in the process that the test starts to provoke the fault.
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
        // SIGABRT, from abort(3).
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
