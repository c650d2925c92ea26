//! The command line: one file a command, all of them on the same [`crate::action`].
//!
//! Exit statuses follow the shell: 0 for success, 1 for an action that failed or a result that
//! is an error, 2 for a command line that cannot be used, 126 and 127 for an action that cannot be
//! executed or found, 128 and the signal's number for one that a signal ended.

mod check;
mod completion;
mod conformance;
mod explain;
mod output;
mod run;
mod serve;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use crate::artifact::inspect::Defect;
use crate::error::{Ending, Error, ProxyError, RunError, StartError, UploadError};
use crate::process::Reaper;
use crate::process::signals::{BlockedSignals, TerminationSignals, forward_to_actions};

/// Runs any Unix executable as a serverless action.
///
/// An action is any executable that reads a line of JSON and answers with one: an ELF binary, a
/// script, or a zip or tar.gz with `exec` at its root. It needs no library.
#[derive(Debug, Parser)]
#[command(version, propagate_version = true, max_term_width = 100)]
#[command(
    after_help = "Try `pipeloop run examples/bash/hello.sh -p name=Mike`; docs/protocol.md says what an action is."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve an action over HTTP: POST /init and POST /run
    Serve(serve::Serve),
    /// Run one activation, or several, and print the results
    Run(run::Run),
    /// Check an action without a platform: inspect it, start it, call it, end it
    Check(check::Check),
    /// Play the protocol's cases against any proxy with /init and /run
    Conformance(conformance::Conformance),
    /// Explain error codes
    Explain(explain::Explain),
    /// Print a script that completes this command line in a shell
    Completion(completion::Completion),
}

/// Runs the command line of this process.
#[must_use]
pub fn main() -> ExitCode {
    // Before anything else: as PID 1 we would not even be told of them.
    let held_back = BlockedSignals::block();
    crate::process::spawn::close_inherited_on_exec();
    let command = Cli::parse().command;
    // What may wait for a person's input can be interrupted until it has handlers.
    let held_back = matches!(command, Command::Serve(_)).then_some(held_back);
    let result = match command {
        Command::Serve(serve) => serve.execute(held_back),
        Command::Run(run) => run.execute(),
        Command::Check(check) => check.execute(),
        Command::Conformance(conformance) => conformance.execute(),
        Command::Explain(explain) => explain.execute(),
        Command::Completion(completion) => {
            completion.execute(Cli::command());
            Ok(0)
        }
    };
    let status = result.unwrap_or_else(|error| {
        output::error(&error);
        exit_status(&error)
    });
    ExitCode::from(status)
}

/// The exit status that tells a shell what went wrong.
fn exit_status(error: &Error) -> u8 {
    let of = |ending: &Ending| ending.status.map_or(1, |status| u8::try_from(status.shell_code()).unwrap_or(1).max(1));
    match error {
        Error::Upload(UploadError::NoSuchAction { .. }) => 127,
        Error::Start(StartError::CannotStart { .. }) | Error::Upload(UploadError::Compile { .. }) => 126,
        Error::Upload(UploadError::Unfit { defects, .. }) => defects.first().map_or(126, Defect::exit_status),
        Error::Start(StartError::EndedAtStart { ending, .. }) | Error::Run(RunError::Died { ending }) => of(ending),
        Error::Proxy(ProxyError::BadSetting { .. }) => 2,
        _ => 1,
    }
}

/// What whoever starts actions takes over first: the signals that ask for an end, and the waiting for
/// processes. Signals that are meant for the action go to it from now on.
fn take_over() -> Result<(TerminationSignals, Reaper), Error> {
    let system = |doing| move |reason| Error::Proxy(ProxyError::System { doing, reason });
    let signals = TerminationSignals::install().map_err(system("take over signals"))?;
    let reaper = Reaper::start().map_err(system("take over SIGCHLD"))?;
    forward_to_actions(&reaper).map_err(system("take over signals"))?;
    Ok((signals, reaper))
}

/// A runtime on this thread alone: waking an idle core costs more than the work of an activation.
fn runtime() -> Result<tokio::runtime::Runtime, Error> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|reason| Error::Proxy(ProxyError::System { doing: "start the runtime", reason }))
}
