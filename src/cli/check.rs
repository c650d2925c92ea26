//! `pipeloop check ACTION`: whether an action keeps its promises, as a report.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde::Serialize;
use serde_json::Value;

use crate::check::{Check as Outcome, CheckRun, Fault, Name, Plan, Progress, Report, Verdict};
use crate::config::{ActionSettings, Compatibility, Time, container_environment};
use crate::error::{Error, ProxyError};

use super::output;
use super::run::{Parameters, read_json};

/// Check an action without a platform: inspect it, start it, call it, end it.
///
/// The report goes to stdout, a line a check: ✓ passed, ! warning, ✗ failed, – does not apply. Below
/// a failed check stand the reason and the cure. What speaks version 2 is also held to what its
/// handshake promises.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  pipeloop check hello.py
  pipeloop check action.zip -p city=Berlin      arguments that suit the action
  pipeloop check stream.py -p ms=200            give it something to wait for: more shows of what is promised
  pipeloop check action.zip --image-root rootfs against an unpacked image, nothing is started
  pipeloop check hello.sh --json --strict       for a build server

Exit status: 0 all is well, 1 a check failed (with --strict: or warned), 2 a wrong command line,
126 the action cannot be executed, 127 it or a library of it is not found. docs/check.md says what each check means.")]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
pub(super) struct Check {
    /// Executable, folder with `exec`, zip or tar.gz; with a compiler also source code, a file or a folder.
    action: PathBuf,

    #[command(flatten)]
    parameters: Parameters,

    /// Only inspect it, start nothing.
    #[arg(long)]
    no_start: bool,

    /// Inspect it against this root file system, an unpacked image, in place of this machine's.
    /// Nothing is started.
    #[arg(long, value_name = "DIR")]
    image_root: Option<PathBuf>,

    /// Longest time for one activation of the check.
    #[arg(long, default_value = "10s", value_name = "TIME", value_parser = crate::config::some_time)]
    timeout: Time,

    /// Let warnings count as failures.
    #[arg(long)]
    strict: bool,

    /// Show on stderr what the action logs, as it comes.
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
        if let Some(root) = &image_root
            && !root.is_dir()
        {
            let reason = format!("`{}` is no folder", root.display());
            return Err(Error::Proxy(ProxyError::BadSetting { setting: "--image-root", reason }));
        }
        let (mut signals, reaper) = super::take_over()?;
        let compatibility = Compatibility::from_environment()?;
        let stays_down = match (&image_root, no_start) {
            (Some(_), _) => Some("not started: it was inspected against an image (`--image-root`)"),
            (None, true) => Some("not started (`--no-start`)"),
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
            patience: timeout.0,
            image_root,
            stays_down,
        };
        let mut printer = output::Checklist::new(json);
        let begun = std::time::Instant::now();
        let mut unwritten = None;
        let mut examination = CheckRun::new(plan, reaper, |progress| match progress {
            Progress::Settled(check) => {
                if let Err(reason) = printer.line(check) {
                    unwritten.get_or_insert(reason);
                }
            }
            Progress::Logged(bytes) if logs => output::log(bytes),
            Progress::Logged(_) => {}
        })?;
        let signal = tokio::select! {
            () = examination.run() => None,
            signal = signals.next() => Some(signal),
        };
        if let Some(signal) = signal {
            output::note(&format!("pipeloop: {}, stopping the action", signal.name()));
        }
        let hurried = tokio::select! {
            () = examination.stop() => false,
            // What runs is killed by leaving its orderly end.
            _ = signals.next() => true,
        };
        if hurried {
            examination.stop().await;
        }
        let report = examination.into_report();
        if let Some(signal) = signal {
            return Ok(signal.shell_code());
        }
        let status = exit_status(&report, strict);
        let written = if json {
            let document = Document::new(&action, &report, status, begun.elapsed());
            output::result(&serde_json::to_vec(&document).expect("a report is plain data"))
        } else {
            printer.summary(&report, begun.elapsed())
        };
        match unwritten.map_or(written, Err) {
            Ok(()) => Ok(status),
            Err(reason) => Err(Error::Proxy(ProxyError::System { doing: "write the report", reason })),
        }
    }
}

/// Arguments that suit the action: what `-p` and `--input` say, if they say anything.
fn arguments(parameters: Parameters) -> Result<Option<Value>, Error> {
    if parameters.is_empty() {
        return Ok(None);
    }
    let text = parameters.arguments()?;
    read_json(&text).map(Some)
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
    protocol: Option<&'static str>,
    protocol_told_by: Option<&'static str>,
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
    cure: Option<&'a str>,
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
    fn new(action: &std::path::Path, report: &'a Report, exit_status: u8, total: Duration) -> Self {
        let activation = |(name, took): &(Name, Duration)| ActivationDocument { check: name.id(), ms: ms(*took) };
        Self {
            action: action.to_string_lossy().into_owned(),
            pipeloop: env!("CARGO_PKG_VERSION"),
            protocol: report.protocol,
            protocol_told_by: report.told_by,
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
            |fault: &'a Fault| FaultDocument { code: fault.code, reason: &fault.reason, cure: fault.cure.as_deref() };
        Self {
            name: check.name.id(),
            status: match check.verdict {
                Verdict::Passed => "passed",
                Verdict::Warning => "warning",
                Verdict::Failed => "failed",
                Verdict::NotApplicable => "not_applicable",
                Verdict::NotReached => "not_reached",
            },
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
