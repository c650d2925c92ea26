//! Whether an action keeps the promises of its protocol: the work of `pipeloop check`.
//!
//! Opens, inspects, starts and calls an action with the code that serves it. It also looks where that code does
//! not have to: at output beside an answer, at output that comes only when the input ends, and at processes
//! that outlive the action. Describes how each check came out; prints nothing.
//!
//! # Theory of operation
//! [`CheckRun::run`] goes through the checks in their order and settles each exactly once. When an activation
//! fails, a diagnosis finds the one check that it counts against; the other checks go on with a new process, or
//! say that they were not reached.
//!
//! - `inspection`, `answers`, `promises`, `concurrency`, `endings`: the checks, in their order; `promises` and
//!   `concurrency` are for version 2
//! - `activate`: one activation, and the diagnosis of one that fails; `frames`: the same in version 2, over a
//!   `transcript`
//! - `process`: the start and the end of a process; `arguments`: the input; `log_capture`: the log
//! - `settle`, `report`, `finding`: how the checks came out, in words

mod activate;
mod answers;
mod arguments;
mod concurrency;
mod endings;
mod finding;
mod frames;
mod inspection;
mod log_capture;
mod process;
mod promises;
mod report;
mod settle;
mod transcript;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::Value;

use crate::activation::Answer;
use crate::artifact::{Artifact, LocalAction};
use crate::config::ActionSettings;
use crate::error::{BadAnswer, Error, ProxyError, RunError, StartError, UploadError};
use crate::logs::{self, Logs, Sentinels};
use crate::process::orphans;
use crate::process::spawn::ResultChannel;
use crate::process::{Launch, Reaper, StdoutKind, stop};
use crate::protocol::Protocol;
use crate::protocol::detect::Unannounced;
use crate::text::millis;

pub use finding::{Finding, FrameFault, HeldUntil, Output, Promise};
pub use report::{Check, Evidence, Fault, Name, Report, Verdict};

use answers::shown;
use arguments::Arguments;
use endings::kill_all;
use log_capture::LogCapture;
use process::Running;
use promises::Baseline;
use settle::Failure;

/// The action to check, and how to check it.
#[derive(Debug)]
pub struct Plan {
    /// The action.
    pub action: LocalAction,
    /// Its settings, as for an action that is served.
    pub settings: ActionSettings,
    /// The environment that every action gets.
    pub environment: Vec<(OsString, OsString)>,
    /// Whether init waits for the dialect's acknowledgement.
    pub wait_for_ack: bool,
    /// The compiler for source code, if there is one.
    pub compiler: Option<PathBuf>,
    /// The execution environment that uploads must be built for, if there is one.
    pub execution_env: Option<OsString>,
    /// Arguments that suit the action: an object or array.
    pub arguments: Option<Value>,
    /// Time limit of one activation.
    pub activation_timeout: Duration,
    /// The root of an unpacked image to inspect against, in place of this machine.
    pub image_root: Option<PathBuf>,
    /// Why the action is only inspected, if it is not to be started.
    pub not_started: Option<NotStarted>,
}

/// Why an action is only inspected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotStarted {
    /// `--no-start`.
    AsAsked,
    /// `--image-root`: the action needs the libraries and interpreters of the image.
    AgainstImage,
}

impl NotStarted {
    /// The reason in the report.
    fn reason(self) -> &'static str {
        match self {
            Self::AsAsked => "not started (`--no-start`)",
            Self::AgainstImage => "not started: inspected against an image (`--image-root`)",
        }
    }
}

/// The progress of a check run.
#[derive(Debug)]
pub enum Progress<'a> {
    /// A check has come out.
    Settled(&'a Check),
    /// The action has logged something.
    Logged(&'a [u8]),
}

/// An action that is being checked.
pub struct CheckRun<'a> {
    plan: Plan,
    arguments: Arguments,
    reaper: Reaper,
    logs: Logs,
    log_capture: LogCapture,
    report_progress: Box<dyn FnMut(Progress<'_>) + 'a>,
    /// Settled before its turn.
    settled_early: Vec<Check>,
    report: Report,
    artifact: Option<Artifact>,
    launch: Launch,
    running: Option<Running>,
    /// Lines beside answers, of all processes.
    strays: Vec<Vec<u8>>,
    /// Frames of version 2 that belong to no activation in flight, of all processes.
    unexpected: Vec<(FrameFault, Bytes)>,
    /// The channel of the answers.
    channel: ResultChannel,
    /// Every id that the current process of version 2 was sent.
    sent_ids: BTreeSet<u64>,
    /// What activations do while no other is in flight.
    baseline: Baseline,
    /// A process answers only once, so each activation gets a new one.
    one_activation_each: bool,
    /// A process of version 0 lived on after its answer.
    lingered: bool,
    /// A process has announced its protocol after it counted as ready.
    announces: bool,
    /// What a process speaks that announces nothing.
    unannounced: Unannounced,
}

/// The answer of an activation.
struct Answered {
    answer: Answer,
    took: Duration,
}

impl<'a> CheckRun<'a> {
    /// Prepares the check of an action. `report_progress` gets each check as it comes out.
    ///
    /// # Errors
    /// [`ProxyError::System`] if the operating system refuses a call.
    pub fn new(plan: Plan, reaper: Reaper, report_progress: impl FnMut(Progress<'_>) + 'a) -> Result<Self, Error> {
        orphans::adopt_orphans()
            .map_err(|reason| Error::Proxy(ProxyError::System { doing: "adopt orphans", reason }))?;
        let (log_capture, stdout, stderr) = LogCapture::new()?;
        let settings = &plan.settings;
        let bounds = logs::Bounds {
            backlog_bytes: settings.log_backlog.bytes(),
            stall_limit: settings.log_stall.0,
            format: logs::LogFormat::Text,
        };
        let launch = Launch {
            program: PathBuf::new(),
            arguments: Vec::new(),
            environment: plan.environment.clone(),
            directory: PathBuf::new(),
            stdout: StdoutKind::Pipe,
        };
        Ok(Self {
            arguments: Arguments::new(plan.arguments.clone()),
            logs: Logs::new(stdout, stderr, Sentinels::Omit, &bounds),
            plan,
            reaper,
            log_capture,
            report_progress: Box::new(report_progress),
            settled_early: Vec::new(),
            report: Report::default(),
            artifact: None,
            launch,
            running: None,
            strays: Vec::new(),
            unexpected: Vec::new(),
            channel: ResultChannel::Descriptor3,
            sent_ids: BTreeSet::new(),
            baseline: Baseline::default(),
            one_activation_each: false,
            lingered: false,
            announces: false,
            unannounced: Unannounced::ActionLoop,
        })
    }

    /// Runs all checks. A run that is dropped early leaves a process behind; [`CheckRun::stop`] stops it.
    pub async fn run(&mut self) {
        if self.open_and_inspect().await {
            if self.plan.settings.protocol == Protocol::SingleShot {
                self.check_single_shot().await;
            } else {
                self.check_kept_process().await;
            }
        }
        self.settle_rest(Verdict::NotReached, "");
    }

    /// Stops the processes of the action and removes its temporary files.
    pub async fn stop(&mut self) {
        if let Some(Running { guard, conversation }) = self.running.take() {
            let _results = conversation.into_results();
            let stopped = async {
                tokio::select! {
                    () = stop::stop(guard.process(), self.plan.settings.stop_grace.0) => {}
                    never = self.logs.pump() => match never {},
                }
            };
            self.log_capture.during(stopped).await;
        }
        // A process that was abandoned has been killed; its orphans remain.
        kill_all(orphans::orphans()).await;
        if let Some(artifact) = self.artifact.take() {
            artifact.remove();
        }
    }

    /// The report of all checks.
    #[must_use]
    pub fn into_report(self) -> Report {
        self.report
    }

    /// The checks of a process that answers one activation after another.
    async fn check_kept_process(&mut self) {
        if !self.start_first().await {
            return;
        }
        let may_answer = self.first_activation().await;
        if self.is_undecided() {
            self.skip_unpromised();
        }
        if may_answer {
            self.second_activation().await;
            self.check_argument_kinds().await;
            self.check_sequence().await;
            self.check_promises().await;
            self.judge_channel();
        }
        self.check_stop().await;
        self.check_end_of_input().await;
        self.check_sigterm().await;
    }

    /// Starts the action for the first time. Returns whether it is ready.
    async fn start_first(&mut self) -> bool {
        let started = Instant::now();
        let evidence = match self.start().await {
            Ok(evidence) => evidence,
            Err(error) => {
                let name = match error {
                    Error::Start(
                        StartError::NoHandshake { .. }
                        | StartError::WrongFirstLine { .. }
                        | StartError::NearlyHandshake { .. }
                        | StartError::UnsupportedVersion { .. },
                    ) => {
                        self.settle(Check::passed(Name::Starts, "runs"));
                        Name::Protocol
                    }
                    _ => Name::Starts,
                };
                self.settle(Check::failed(name, &error));
                self.report.refused =
                    Some(error).filter(|error| matches!(error, Error::Upload(UploadError::Unusable { .. })));
                return false;
            }
        };
        let took = started.elapsed();
        self.report.init = Some(took);
        let running = self.running.as_ref().expect("it was started");
        self.channel = running.conversation.channel();
        self.report.protocol = Some(running.conversation.protocol());
        self.report.evidence = Some(evidence.into());
        self.settle(Check::passed(Name::Starts, "ready").took(took));
        // Until the first answer a handshake may still come, with promises.
        if !self.is_undecided() {
            self.skip_unpromised();
        }
        true
    }

    /// Whether the protocol is only assumed.
    fn is_undecided(&self) -> bool {
        matches!(self.report.evidence, Some(Evidence::WaitsForInput | Evidence::Grace))
            && self.plan.settings.protocol == Protocol::Auto
    }

    /// Notes the protocol that a process announced after it counted as ready.
    fn note_announced(&mut self) {
        let Some(running) = &self.running else { return };
        self.channel = running.conversation.channel();
        self.report.protocol = Some(running.conversation.protocol());
        self.report.evidence = Some(Evidence::Handshake);
        self.skip_unpromised();
    }

    /// The protocol, and how it was recognised, for the report.
    fn describe_protocol(&self, protocol: Protocol, evidence: Evidence) -> String {
        let how = match evidence {
            Evidence::Handshake => format!("recognised by its handshake on {}", self.channel.name()),
            Evidence::Acknowledgement => "recognised by its acknowledgement on descriptor 3".into(),
            Evidence::WaitsForInput => "recognised by waiting for input without a handshake".into(),
            Evidence::Grace => format!(
                "assumed, because it wrote nothing for {} (`PIPELOOP_START_GRACE`)",
                millis(self.plan.settings.start_grace.0)
            ),
            Evidence::Setting => "as set by `--protocol` or `PIPELOOP_PROTOCOL`".into(),
        };
        format!("{protocol}, {how}")
    }

    /// The checks of version 0, which has a process for each activation.
    async fn check_single_shot(&mut self) {
        self.one_activation_each = true;
        let (protocol, evidence) = (Protocol::SingleShot, Evidence::Setting);
        (self.report.protocol, self.report.evidence) = (Some(protocol), Some(evidence));
        let spoken = self.describe_protocol(protocol, evidence);
        let apart = |name, why: &str| Check::new(name, Verdict::NotApplicable, why);
        self.settle(apart(Name::Starts, "a process is started for each activation"));
        self.settle(Check::passed(Name::Protocol, spoken));
        self.settle(apart(Name::Flushed, "the end of a process flushes"));
        self.settle(apart(Name::Reused, "a process is started for each activation"));
        self.settle(apart(Name::Channel, "every line before the last is log"));
        self.settle(apart(Name::Sigterm, "a process ends with its answer"));
        for name in Name::OF_VERSION_2 {
            self.settle(apart(name, "not in version 0"));
        }
        let arguments = self.arguments.base();
        match self.activate(Name::Answers, &arguments).await {
            Ok(Answered { answer, took }) => {
                self.settle(Check::passed(Name::Answers, shown(&answer)).took(took));
                self.settle(Check::passed(Name::Framing, "an object or array on the last line"));
            }
            Err(failure) => {
                let bad = matches!(&failure, Failure::Error(Error::Run(RunError::BadAnswer { problem, .. })) if *problem != BadAnswer::Nothing);
                return self.fail(if bad { Name::Framing } else { Name::Answers }, &failure);
            }
        }
        self.check_argument_kinds().await;
        self.check_sequence().await;
        let check = if self.lingered {
            self.failure(Name::EndOfFile, self.end_of_file(None))
        } else {
            Check::passed(Name::EndOfFile, "it exited each time")
        };
        self.settle(check);
        self.judge_orphans().await;
        if !self.is_settled(Name::Orphans) {
            self.settle(Check::passed(Name::Orphans, "no process outlives it"));
        }
    }
}
