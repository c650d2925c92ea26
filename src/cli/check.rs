//! `pipeloop check ACTION`: a report on whether an action keeps the promises of its protocol.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde::Serialize;
use serde_json::Value;

use crate::artifact::LocalAction;
use crate::check::{Check as Outcome, CheckRun, Evidence, Fault, Name, NotStarted, Plan, Progress, Report, Verdict};
use crate::config::{ActionSettings, Compatibility, Time, container_environment};
use crate::error::{Error, ProxyError};

use super::action::ActionArgument;
use super::output;
use super::run::{Parameters, read_json};

/// Check an action before a deployment: inspect it, start it, call it and stop it.
///
/// The report on stdout has a line for each check: ✓ passed, ! warning, ✗ failed, – does not apply or was not
/// reached. Below a failed check it gives the reason and a hint. For an action of version 2 it also tests the
/// promises of the handshake.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  pipeloop check hello.py
  pipeloop check action.zip -p city=Berlin      arguments that suit the action
  pipeloop check stream.py -p ms=200            make it wait, so that more checks apply
  pipeloop check action.zip --image-root rootfs against an unpacked image, without a start
  pipeloop check hello.sh --json --strict       on a build server

Exit status: 0 no check failed, 1 a check failed (with --strict: or warned), 2 a wrong command line,
126 the action cannot be executed, 127 the action or a library that it needs is not found. docs/check.md
describes each check.")]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
pub(super) struct Check {
    #[command(flatten)]
    action: ActionArgument,

    #[command(flatten)]
    parameters: Parameters,

    /// Only inspect the action, and start nothing.
    #[arg(long)]
    no_start: bool,

    /// Root file system of an unpacked image to inspect the action against, in place of this machine. Nothing is
    /// started.
    #[arg(long, value_name = "DIR")]
    image_root: Option<PathBuf>,

    /// Time limit of one activation.
    #[arg(long, default_value = "10s", value_name = "TIME", value_parser = crate::config::some_time)]
    timeout: Time,

    /// Count warnings as failures.
    #[arg(long)]
    strict: bool,

    /// Print the action's log on stderr as it comes.
    #[arg(long)]
    logs: bool,

    /// Print one JSON document in place of the report.
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    settings: ActionSettings,
}

impl Check {
    pub(super) fn execute(self) -> Result<u8, Error> {
        let runtime = super::runtime()?;
        let status = runtime.block_on(self.check());
        runtime.shutdown_background();
        status
    }

    async fn check(self) -> Result<u8, Error> {
        let Self { action, parameters, no_start, image_root, timeout, strict, logs, json, settings } = self;
        let arguments = arguments(parameters)?;
        let action = action.required();
        if let Some(root) = &image_root
            && !root.is_dir()
        {
            let reason = format!("`{}` is not a directory", root.display());
            return Err(Error::Proxy(ProxyError::BadSetting { setting: "--image-root", reason }));
        }
        let (mut signals, reaper) = super::take_over()?;
        let compatibility = Compatibility::from_environment()?;
        let not_started = match (&image_root, no_start) {
            (Some(_), _) => Some(NotStarted::AgainstImage),
            (None, true) => Some(NotStarted::AsAsked),
            (None, false) => None,
        };
        let plan = Plan {
            action: action.clone(),
            compiler: settings.compiler.clone().or_else(|| compatibility.compiler.clone()),
            execution_env: compatibility.execution_env.clone(),
            environment: container_environment(&compatibility),
            wait_for_ack: compatibility.wait_for_ack.is_some(),
            settings,
            arguments,
            activation_timeout: timeout.0,
            image_root,
            not_started,
        };
        let mut printer = output::Checklist::new(json);
        let started = std::time::Instant::now();
        let mut write_error = None;
        let mut check_run = CheckRun::new(plan, reaper, |progress| match progress {
            Progress::Settled(check) => {
                if let Err(reason) = printer.line(check) {
                    write_error.get_or_insert(reason);
                }
            }
            Progress::Logged(bytes) if logs => output::log(bytes),
            Progress::Logged(_) => {}
        })?;
        let signal = tokio::select! {
            () = check_run.run() => None,
            signal = signals.next() => Some(signal),
        };
        if let Some(signal) = signal {
            output::note(&format!("pipeloop: {}, stopping the action", signal.name()));
        }
        let killed = tokio::select! {
            () = check_run.stop() => false,
            // The graceful stop is dropped, which kills the process.
            _ = signals.next() => true,
        };
        if killed {
            check_run.stop().await;
        }
        let report = check_run.into_report();
        if let Some(signal) = signal {
            return Ok(signal.shell_code());
        }
        let status = exit_status(&report, strict);
        let written = if json {
            let document = Document::new(&action, &report, status, started.elapsed());
            output::result(&serde_json::to_vec(&document).expect("a report is plain data"))
        } else {
            printer.summary(&report, started.elapsed())
        };
        match output::unless_closed(write_error.map_or(written, Err)) {
            Ok(_) => Ok(status),
            Err(reason) => Err(Error::Proxy(ProxyError::System { doing: "write the report", reason })),
        }
    }
}

/// Arguments that suit the action, from `-p` and `--input`, if either is set.
fn arguments(parameters: Parameters) -> Result<Option<Value>, Error> {
    if parameters.is_empty() {
        return Ok(None);
    }
    let (text, name) = parameters.arguments()?;
    read_json(&text, &name).map(Some)
}

fn exit_status(report: &Report, strict: bool) -> u8 {
    if let Some(error) = &report.refused {
        return super::exit_status(error);
    }
    let fails = report.count(Verdict::Failed) > 0 || (strict && report.count(Verdict::Warning) > 0);
    u8::from(fails)
}

/// The report for machines. Members may be added; none changes its meaning.
#[derive(Serialize)]
struct Document<'a> {
    action: String,
    pipeloop: &'static str,
    protocol: Option<String>,
    protocol_evidence: Option<&'static str>,
    init_ms: Option<f64>,
    total_ms: f64,
    activations: Vec<ActivationDocument>,
    checks: Vec<CheckDocument<'a>>,
    summary: Summary,
    exit_status: u8,
}

#[derive(Serialize)]
struct ActivationDocument {
    check: &'static str,
    ms: f64,
}

#[derive(Serialize)]
struct CheckDocument<'a> {
    name: &'static str,
    status: &'static str,
    seen: &'a str,
    faults: Vec<FaultDocument<'a>>,
    ms: Option<f64>,
    log: &'a [String],
}

#[derive(Serialize)]
struct FaultDocument<'a> {
    code: &'static str,
    reason: &'a str,
    hint: Option<&'a str>,
}

#[derive(Serialize)]
struct Summary {
    passed: usize,
    warnings: usize,
    failed: usize,
    not_applicable: usize,
    not_reached: usize,
}

impl<'a> Document<'a> {
    fn new(action: &LocalAction, report: &'a Report, exit_status: u8, total: Duration) -> Self {
        let activation = |(name, took): &(Name, Duration)| ActivationDocument { check: name.id(), ms: ms(*took) };
        Self {
            action: action.to_string(),
            pipeloop: env!("CARGO_PKG_VERSION"),
            protocol: report.protocol.map(|protocol| protocol.to_string()),
            protocol_evidence: report.evidence.map(Evidence::id),
            init_ms: report.init.map(ms),
            total_ms: ms(total),
            activations: report.activations.iter().map(activation).collect(),
            checks: report.checks.iter().map(CheckDocument::new).collect(),
            summary: Summary {
                passed: report.count(Verdict::Passed),
                warnings: report.count(Verdict::Warning),
                failed: report.count(Verdict::Failed),
                not_applicable: report.count(Verdict::NotApplicable),
                not_reached: report.count(Verdict::NotReached),
            },
            exit_status,
        }
    }
}

impl<'a> CheckDocument<'a> {
    fn new(check: &'a Outcome) -> Self {
        let fault =
            |fault: &'a Fault| FaultDocument { code: fault.code, reason: &fault.reason, hint: fault.hint.as_deref() };
        Self {
            name: check.name.id(),
            status: check.verdict.id(),
            seen: &check.seen,
            faults: check.faults.iter().map(fault).collect(),
            ms: check.took.map(ms),
            log: &check.log,
        }
    }
}

/// Milliseconds, to the microsecond.
fn ms(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1e3
}
