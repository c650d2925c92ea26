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
use crate::error::{Error, ExitReport, ProxyError, RunError, StartError, UploadError};
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

/// The exit status that tells a shell what went wrong: the action's own, where it has one. Exhaustive, so that a
/// new cause cannot be forgotten.
fn exit_status(error: &Error) -> u8 {
    let of = |exit: &ExitReport| exit.status.map_or(1, |status| u8::try_from(status.shell_code()).unwrap_or(1).max(1));
    match error {
        // No subcommand is sent a request, but `run` takes its input for one.
        Error::Request(_) => 1,
        Error::Upload(error) => match error {
            UploadError::NoSuchAction { .. } => 127,
            UploadError::Compile { .. } => 126,
            UploadError::Unusable { defects, .. } => defects.first().map_or(126, defect_exit_status),
            UploadError::ArchiveDamaged { .. }
            | UploadError::ArchiveUnsupported { .. }
            | UploadError::ArchiveWithoutExec { .. }
            | UploadError::DirectoryWithoutExec { .. }
            | UploadError::ArchiveEscapes { .. }
            | UploadError::ArchiveEntryKind { .. }
            | UploadError::ArchiveTooLarge { .. }
            | UploadError::ArchiveTooManyEntries { .. }
            | UploadError::WrongEnvironment { .. }
            | UploadError::Unwritable { .. } => 1,
        },
        Error::Start(error) => match error {
            StartError::CannotStart { .. } => 126,
            StartError::ExitedBeforeReady { exit, .. } => of(exit),
            StartError::NotReady { .. }
            | StartError::WrongFirstLine { .. }
            | StartError::BadHandshake { .. }
            | StartError::UnsupportedVersion { .. }
            | StartError::NoHandshake { .. } => 1,
        },
        Error::Run(error) => match error {
            RunError::ExitedBeforeAnswer { exit } => of(exit),
            RunError::BadAnswer { .. }
            | RunError::ChannelClosed { .. }
            | RunError::AnswerTooLong { .. }
            | RunError::TimeOut { .. }
            | RunError::Expired
            | RunError::CrashLoop { .. }
            | RunError::BadFrame { .. }
            | RunError::Overrun { .. }
            | RunError::FrameTooLong { .. }
            | RunError::CutOff { .. }
            | RunError::QueueFull { .. }
            | RunError::NotRestarted { .. } => 1,
        },
        Error::Proxy(error) => match error {
            ProxyError::BadSetting { .. } => 2,
            ProxyError::ShuttingDown | ProxyError::CannotListen { .. } | ProxyError::System { .. } => 1,
        },
    }
}

/// The exit status that a shell would have: 127 for what `env` or the loader cannot find, 126 for what the kernel
/// refuses.
fn defect_exit_status(defect: &Defect) -> u8 {
    match defect {
        Defect::NotOnPath { .. }
        | Defect::NoLibraries { .. }
        | Defect::OldProcessor { .. }
        | Defect::EnvWords { .. } => 127,
        Defect::Interpreter { defect, .. } => defect_exit_status(defect),
        Defect::Empty
        | Defect::Unrecognised { .. }
        | Defect::Source { .. }
        | Defect::Foreign(_)
        | Defect::NotTar { .. }
        | Defect::Encoded { .. }
        | Defect::ByteOrderMark
        | Defect::Archive { .. }
        | Defect::NotExecutable { .. }
        | Defect::NoExecMount { .. }
        | Defect::Unreadable { .. }
        | Defect::WrongMachine { .. }
        | Defect::OtherSystem { .. }
        | Defect::NotProgram { .. }
        | Defect::Damaged { .. }
        | Defect::NoLoader { .. }
        | Defect::BadLoader { .. }
        | Defect::NoVersions { .. }
        | Defect::BadLibrary { .. }
        | Defect::NoInterpreterNamed
        | Defect::NoInterpreter { .. }
        | Defect::CarriageReturn { .. }
        | Defect::LineTooLong { .. }
        | Defect::NestedTooDeep { .. }
        | Defect::EndsEarly
        | Defect::RelativeInterpreter { .. }
        | Defect::CarriageReturnInArgument { .. }
        | Defect::ArgumentCut { .. } => 126,
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
