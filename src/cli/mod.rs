//! The command line: one file per command, all of them on the same [`crate::action`].
//!
//! Exit statuses follow the shell: 0 for success, 1 for an action that failed or a result that
//! is an error, 2 for a command line that cannot be used, 126 and 127 for an action that cannot be
//! executed or found, 128 plus the number of a signal for an action that the signal ended.

mod action;
mod check;
mod choice;
mod completion;
mod conformance;
mod explain;
mod new;
mod output;
mod run;
mod serve;

use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::artifact::inspect::Defect;
use crate::config;
use crate::error::{Error, ExitReport, ProxyError, RequestError, RunError, StartError, UploadError};
use crate::process::Reaper;
use crate::process::signals::{BlockedSignals, TerminationSignals, forward_to_actions};

use action::ActionArgument;

/// Runs any Unix executable as a serverless action.
///
/// An action reads a line of JSON and answers with a line of JSON. It can be a binary, a script, or a zip or tar.gz
/// with `exec` at its root, and it needs no library.
#[derive(Debug, Parser)]
#[command(version, propagate_version = true, max_term_width = 100)]
#[command(after_help = "Try `pipeloop run examples/bash/hello.sh -p name=Mike`. docs/protocol.md describes actions.")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve an action over HTTP, with POST /init and POST /run
    Serve(serve::Serve),
    /// Run one or more activations and print their results
    Run(run::Run),
    /// Write the example of a language as the beginning of an action
    New(new::New),
    /// Check an action before a deployment: inspect it, start it, call it and stop it
    Check(check::Check),
    /// Play the test cases of the protocol against any proxy with /init and /run
    Conformance(conformance::Conformance),
    /// Explain error codes
    Explain(explain::Explain),
    /// Print a completion script for a shell
    Completion(completion::Completion),
}

/// Runs the command line of this process.
#[must_use]
pub fn main() -> ExitCode {
    // Before anything else: the kernel drops signals without a handler if this process is PID 1.
    let blocked_signals = BlockedSignals::block();
    crate::process::spawn::close_inherited_on_exec();
    let command = parse();
    // The other commands may wait for input on a terminal, and can be interrupted until they have handlers.
    let blocked_signals = matches!(command, Command::Serve(_)).then_some(blocked_signals);
    let result = match command {
        Command::Serve(serve) => serve.execute(blocked_signals),
        Command::Run(run) => run.execute(),
        Command::New(new) => new.execute(),
        Command::Check(check) => check.execute(),
        Command::Conformance(conformance) => conformance.execute(),
        Command::Explain(explain) => explain.execute(),
        Command::Completion(completion) => completion.execute(cli()),
    };
    let status = result.unwrap_or_else(|error| {
        output::error(&error);
        exit_status(&error)
    });
    ExitCode::from(status)
}

/// The command line, with what cannot be said where it is declared.
fn cli() -> clap::Command {
    let mut cli = Cli::command();
    for (name, required) in [("serve", false), ("run", true), ("check", true)] {
        let action = if required { "ACTION" } else { "[ACTION]" };
        let usage =
            format!("pipeloop {name} [OPTIONS] {action}\n       pipeloop {name} [OPTIONS] -- COMMAND [ARGUMENT]...");
        cli = cli.mut_subcommand(name, |command| {
            let command = command.override_usage(usage);
            if required { ActionArgument::require(command) } else { command }
        });
    }
    cli
}

/// Parses the command line and the environment. Ends the process if they are wrong, or ask for help.
fn parse() -> Command {
    let mut cli = cli();
    let service_url = config::service_url();
    if service_url.is_some() {
        cli = cli.mut_subcommand("serve", |serve| serve.mut_arg("port", |port| port.env(None)));
    }
    let matches = cli.try_get_matches_from_mut(std::env::args_os());
    let matches = matches.unwrap_or_else(|error| name_variable(error, &mut cli).exit());
    if let (Some(url), Some(serve)) = (service_url, matches.subcommand_matches("serve"))
        && serve.value_source("port") == Some(ValueSource::DefaultValue)
    {
        output::note(&format!(
            "pipeloop: `PIPELOOP_PORT={url}` is skipped: Kubernetes sets it for a Service named `pipeloop`; \
             `--port` sets the port"
        ));
    }
    Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.format(&mut cli).exit()).command
}

/// Adds to an error about the value of a setting the variable that the value comes from.
fn name_variable(mut error: clap::Error, cli: &mut clap::Command) -> clap::Error {
    // Settings have names only then.
    cli.build();
    let settings = cli.get_subcommands().flat_map(clap::Command::get_arguments);
    let from_variables = settings.filter_map(|setting| {
        let (variable, flag) = (setting.get_env()?, format!("--{}", setting.get_long()?));
        config::comes_from_variable(&flag, variable).then(|| (setting.to_string(), variable.to_owned()))
    });
    let mut from_variables = from_variables.collect::<Vec<_>>().into_iter();
    match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(refused)) => {
            if let Some((setting, variable)) = from_variables.find(|(setting, _)| setting == refused) {
                let name = format!("{} ({setting})", variable.display());
                error.insert(ContextKind::InvalidArg, ContextValue::String(name));
            }
        }
        _ if error.kind() == ErrorKind::InvalidUtf8 => {
            if let Some((setting, variable)) = from_variables.find(|(_, variable)| config::is_not_text(variable)) {
                let message = format!("the value of '{} ({setting})' is not UTF-8", variable.display());
                return cli.error(ErrorKind::InvalidUtf8, message);
            }
        }
        _ => {}
    }
    error
}

/// The exit status of an error, for a shell: the action's own, if it has one. Exhaustive, so that a new cause cannot be
/// forgotten.
fn exit_status(error: &Error) -> u8 {
    let of = |exit: &ExitReport| exit.status.map_or(1, |status| u8::try_from(status.shell_code()).unwrap_or(1).max(1));
    match error {
        // No command receives requests, but `run` treats its input as one.
        Error::Request(error) => match error {
            RequestError::NotHttp { .. }
            | RequestError::NotOneHost { .. }
            | RequestError::HeadTooLarge { .. }
            | RequestError::Http2
            | RequestError::UnmetExpectation { .. }
            | RequestError::TransferCoding { .. }
            | RequestError::NotJson { .. }
            | RequestError::NotAnObject { .. }
            | RequestError::EmptyBody { .. }
            | RequestError::BodyTooLarge { .. }
            | RequestError::BrokenBody { .. }
            | RequestError::BodyStalled { .. }
            | RequestError::BadMember { .. }
            | RequestError::NoCode
            | RequestError::BadArguments
            | RequestError::AlreadyInitialised
            | RequestError::InitUnderWay
            | RequestError::NotInitialised
            | RequestError::BadBase64 { .. }
            | RequestError::BadVariable { .. }
            | RequestError::UnknownProtocol { .. }
            | RequestError::MemoryFull { .. } => 1,
        },
        Error::Upload(error) => match error {
            UploadError::NoSuchAction { .. } | UploadError::NoSuchCommand { not_executable: None, .. } => 127,
            UploadError::NoSuchCommand { .. } | UploadError::Compile { .. } => 126,
            UploadError::Unusable { defects, .. } => defects.first().map_or(126, defect_exit_status),
            UploadError::ArchiveDamaged { .. }
            | UploadError::ArchiveUnsupported { .. }
            | UploadError::ArchiveWithoutExec { .. }
            | UploadError::DirectoryWithoutExec { .. }
            | UploadError::ArchiveEscapes { .. }
            | UploadError::ArchiveDriveLetter { .. }
            | UploadError::ArchiveEntryKind { .. }
            | UploadError::ArchiveTooLarge { .. }
            | UploadError::ArchiveTooManyEntries { .. }
            | UploadError::WrongEnvironment { .. }
            | UploadError::Unwritable { .. } => 1,
        },
        Error::Start(error) => match error {
            StartError::CannotStart { .. } | StartError::TooLarge(_) => 126,
            StartError::ExitedBeforeReady { exit, .. } => of(exit),
            StartError::NotReady { .. }
            | StartError::WrongFirstLine { .. }
            | StartError::NearlyHandshake { .. }
            | StartError::BadHandshake { .. }
            | StartError::UnsupportedVersion { .. }
            | StartError::Prompt { .. }
            | StartError::NoHandshake { .. } => 1,
        },
        Error::Run(error) => match error {
            RunError::ExitedBeforeAnswer { exit } => of(exit),
            RunError::BadAnswer { .. }
            | RunError::ChannelClosed { .. }
            | RunError::AnswerTooLong { .. }
            | RunError::TimeOut { .. }
            | RunError::NeverAnswered { .. }
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

/// Takes over signals and the waiting for processes, before an action is started. From then on the proxy stops on
/// SIGTERM and its like, and passes other signals on to the action.
fn take_over() -> Result<(TerminationSignals, Reaper), Error> {
    let system = |doing| move |reason| Error::Proxy(ProxyError::System { doing, reason });
    let signals = TerminationSignals::install().map_err(system("take over signals"))?;
    let reaper = Reaper::start().map_err(system("take over SIGCHLD"))?;
    forward_to_actions(&reaper).map_err(system("take over signals"))?;
    Ok((signals, reaper))
}

/// A runtime on this thread only: waking an idle core costs more than the work of an activation.
fn runtime() -> Result<tokio::runtime::Runtime, Error> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|reason| Error::Proxy(ProxyError::System { doing: "start the runtime", reason }))
}
