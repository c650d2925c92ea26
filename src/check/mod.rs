//! Whether an action keeps the promises of its protocol: what `pipeloop check` does.
//!
//! Opens, inspects, starts and calls an action with the code that serves it, and looks closer where
//! that code only has to go on: at what came beside an answer, at what comes when the input ends, at
//! what is left then. Knows how each check came out, in words; prints nothing.
//!
//! # Theory of operation
//! [`CheckRun::run`] goes through the checks in their order and settles each exactly once. An
//! activation that fails is looked into until one check is to blame for it; the others go on with a
//! new process, or say that they were not reached.
//!
//! - `answers`, `streams`, `endings`: the checks, in their order; `streams` has those of version 2
//! - `activate`: one activation, and a closer look at one that fails; `dialogue`: several, in frames
//! - `arguments`, `log_capture`: what is sent, and what is heard of the log
//! - `report`, `finding`: how the checks came out, in words

mod activate;
mod answers;
mod arguments;
mod dialogue;
mod endings;
mod finding;
mod log_capture;
mod report;
mod streams;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::Value;

use crate::activation::Answer;
use crate::config::{ActionSettings, Inspect};
use crate::error::{BadAnswer, Error, ProxyError, RunError, StartError, UploadError};
use crate::logs::{self, Logs, Sentinels};
use crate::process::orphans;
use crate::process::spawn::ResultChannel;
use crate::process::stop::KillOnDrop;
use crate::process::{Launch, Process, Reaper, stop};
use crate::protocol::Protocol;
use crate::protocol::conversation::Conversation;
use crate::protocol::detect::{self, Evidence, detect};
use crate::text::{excerpt, millis};

use crate::action::DEFAULT_MAIN;
use crate::action::worker::spawn;
use crate::artifact::compile::compile;
use crate::artifact::inspect::{Inspection, TargetSystem, inspect};
use crate::artifact::unpack;
use crate::artifact::{Artifact, Sources};

pub use finding::{Finding, FrameFault, Promise};
pub use report::{Check, Fault, Name, Report, Verdict};

use answers::shown;
use arguments::Arguments;
use endings::end_all;
use log_capture::LogCapture;
use streams::Baseline;

/// What is to be checked, and how.
#[derive(Debug)]
pub struct Plan {
    /// The executable, folder or archive.
    pub action: PathBuf,
    /// As for an action that is served.
    pub settings: ActionSettings,
    /// What the action's environment begins with.
    pub environment: Vec<(OsString, OsString)>,
    /// Whether the dialect's acknowledgement is awaited.
    pub wait_for_ack: bool,
    /// What makes an executable of source code, if there is anything.
    pub compiler: Option<PathBuf>,
    /// The execution environment that uploads have to be built for, if there is one.
    pub execution_env: Option<OsString>,
    /// Arguments that suit the action: an object or array.
    pub arguments: Option<Value>,
    /// The longest for one activation.
    pub patience: Duration,
    /// The root of an unpacked image to inspect against, in place of this machine.
    pub image_root: Option<PathBuf>,
    /// Why it is only inspected and not started, when that is so.
    pub stays_down: Option<&'static str>,
}

/// What there is to tell while an action is checked.
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
    tell: Box<dyn FnMut(Progress<'_>) + 'a>,
    /// Settled before its turn.
    early: Vec<Check>,
    report: Report,
    artifact: Option<Artifact>,
    launch: Launch,
    running: Option<Running>,
    /// Lines beside answers, of all processes.
    strays: Vec<Vec<u8>>,
    /// Frames of version 2 that are nobody's, of all processes.
    misfits: Vec<(FrameFault, Bytes)>,
    /// Where answers come from.
    channel: ResultChannel,
    /// Every number that the process of version 2 that runs was sent.
    given: BTreeSet<u64>,
    /// How activations went that were alone in flight.
    alone: Baseline,
    /// A process answers once only, so that each activation gets a new one.
    one_each: bool,
    /// A process of version 0 that lived on after its answer.
    lingered: bool,
}

/// A process that is ready.
struct Running {
    guard: KillOnDrop,
    conversation: Conversation,
}

/// An activation that was answered.
struct Answered {
    answer: Answer,
    took: Duration,
}

/// Why an activation was not answered as it should be.
enum Failure {
    Error(Error),
    Finding(Finding),
    /// It answers on stdout and has not said so.
    NoHandshake {
        line: Vec<u8>,
    },
    /// Chunks came, and no end in time.
    Endless {
        after: Duration,
        chunks: usize,
    },
    /// Nothing came in time.
    Silence {
        after: Duration,
        meanwhile: &'static str,
    },
}

/// Where programs are in an image.
///
/// Source: moby, `DefaultPathEnv`.
const IMAGE_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

impl<'a> CheckRun<'a> {
    /// Prepares the check of an action. `tell` hears of each check as it comes out.
    ///
    /// # Errors
    /// What the operating system refuses.
    pub fn new(plan: Plan, reaper: Reaper, tell: impl FnMut(Progress<'_>) + 'a) -> Result<Self, Error> {
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
        };
        Ok(Self {
            arguments: Arguments::new(plan.arguments.clone()),
            logs: Logs::new(stdout, stderr, Sentinels::Omit, &bounds),
            plan,
            reaper,
            log_capture,
            tell: Box::new(tell),
            early: Vec::new(),
            report: Report::default(),
            artifact: None,
            launch,
            running: None,
            strays: Vec::new(),
            misfits: Vec::new(),
            channel: ResultChannel::Descriptor3,
            given: BTreeSet::new(),
            alone: Baseline::default(),
            one_each: false,
            lingered: false,
        })
    }

    /// Goes through all checks. Leaving early leaves a process that [`CheckRun::stop`] ends.
    pub async fn run(&mut self) {
        if self.look().await {
            if self.plan.settings.protocol == Protocol::SingleShot {
                self.call_once_each().await;
            } else {
                self.call().await;
            }
        }
        self.settle_rest(Verdict::NotReached, "");
    }

    /// Ends what was started and removes what was made.
    pub async fn stop(&mut self) {
        if let Some(Running { guard, conversation }) = self.running.take() {
            let _results = conversation.into_results();
            let stopped = async {
                tokio::select! {
                    () = stop::stop(guard.process(), self.plan.settings.stop_grace.0) => {}
                    () = self.logs.pump() => unreachable!("a pump never ends"),
                }
            };
            self.log_capture.during(stopped).await;
        }
        // What was left in the middle has been killed, and is seen to its end here.
        end_all(orphans::orphans()).await;
        if let Some(artifact) = self.artifact.take() {
            artifact.remove();
        }
    }

    /// What was found.
    #[must_use]
    pub fn into_report(self) -> Report {
        self.report
    }

    /// Opens and inspects it. Whether it is to be started.
    async fn look(&mut self) -> bool {
        let artifact = match self.open().await {
            Ok(artifact) => artifact,
            Err(error) => {
                let faults = match &error {
                    Error::Upload(UploadError::Unusable { defects, .. }) => defects.iter().map(Fault::from).collect(),
                    error => vec![Fault::from(error)],
                };
                self.settle(Check { faults, ..Check::new(Name::Recognised, Verdict::Failed, "") });
                self.report.refused = Some(error);
                return false;
            }
        };
        self.launch.program.clone_from(&artifact.executable);
        self.launch.directory.clone_from(&artifact.directory);
        let target = match &self.plan.image_root {
            None => TargetSystem::of(&self.launch),
            // What an image sets is not in its file system; this is what nearly every one does.
            Some(root) => TargetSystem::new(root, &artifact.directory, &[("PATH".into(), IMAGE_PATH.into())]),
        };
        let inspection = inspect(&artifact.executable, &target);
        let fatal: Vec<_> = match self.plan.stays_down {
            // It was asked not to decide by it. What it found is a warning.
            None if self.plan.settings.inspect == Inspect::Off => Vec::new(),
            // The kernel will tell of what is for another machine.
            None => inspection.fatal().cloned().collect(),
            Some(_) => inspection.fatal_by_itself().cloned().collect(),
        };
        let Inspection { what, defects, .. } = inspection;
        self.artifact = Some(artifact);
        self.settle(Check::passed(Name::Recognised, what));
        let verdict = match (fatal.is_empty(), defects.is_empty()) {
            (false, _) => Verdict::Failed,
            (true, false) => Verdict::Warning,
            (true, true) => Verdict::Passed,
        };
        let place = if self.plan.image_root.is_some() { "in that image" } else { "here" };
        let seen = if defects.is_empty() { format!("nothing that it needs is missing {place}") } else { String::new() };
        let faults = defects.iter().map(Fault::from).collect();
        self.settle(Check { faults, ..Check::new(Name::Executable, verdict, seen) });
        if let Some(reason) = self.plan.stays_down {
            self.settle_rest(Verdict::NotApplicable, reason);
        }
        if !fatal.is_empty() {
            self.report.refused =
                Some(Error::Upload(UploadError::Unusable { path: Some(self.launch.program.clone()), defects: fatal }));
            return false;
        }
        self.plan.stays_down.is_none()
    }

    /// Takes it from the file system, and compiles what has to be compiled.
    async fn open(&mut self) -> Result<Artifact, Error> {
        let Plan { action, settings, compiler, environment, .. } = &self.plan;
        let bounds = unpack::Bounds { bytes: settings.max_unpacked.0, entries: settings.max_entries, halt: None };
        let artifact = Artifact::open(action, &settings.workdir, &bounds, Sources::with(compiler.as_deref()))?;
        let compiling = compile(
            &artifact,
            compiler.as_deref(),
            settings.main.as_deref().unwrap_or(DEFAULT_MAIN),
            environment,
            settings.init_timeout.0,
            &self.reaper,
            &mut self.logs,
        );
        self.log_capture.during(compiling).await?;
        artifact.check_environment(self.plan.execution_env.as_deref())?;
        Ok(artifact)
    }

    /// The checks of a process that is kept.
    async fn call(&mut self) {
        if !self.introduce().await {
            return;
        }
        if self.first().await {
            self.second().await;
            self.variations().await;
            self.in_a_row().await;
            self.keeps_its_promises().await;
            self.judge_channel();
        }
        self.ends_when_it_is_told().await;
        self.ends_at_end_of_input().await;
        self.ends_on_sigterm().await;
    }

    /// Starts it for the first time. Whether it is ready.
    async fn introduce(&mut self) -> bool {
        let begun = Instant::now();
        let evidence = match self.start().await {
            Ok(evidence) => evidence,
            Err(error) => {
                let name = match error {
                    Error::Start(
                        StartError::NoHandshake { .. }
                        | StartError::WrongFirstLine { .. }
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
        let took = begun.elapsed();
        self.report.init = Some(took);
        let running = self.running.as_ref().expect("it was started");
        self.channel = running.conversation.channel();
        self.report.protocol = Some(running.conversation.protocol().name());
        self.report.told_by = Some(match evidence {
            Evidence::Handshake(_) => "handshake",
            Evidence::Acknowledgement => "acknowledgement",
            Evidence::WaitsForInput => "waiting",
            Evidence::Grace => "grace",
        });
        self.settle(Check::passed(Name::Starts, "ready").took(took));
        self.note_promises();
        true
    }

    /// Which protocol it speaks and how that was told, for a reader.
    fn protocol_in_words(&self) -> String {
        let told = match self.report.told_by {
            Some("handshake") => format!("told by its handshake on {}", self.channel),
            Some("acknowledgement") => "told by its acknowledgement on descriptor 3".into(),
            Some("grace") => format!(
                "taken for that, since it said nothing for {} (`PIPELOOP_START_GRACE`)",
                millis(self.plan.settings.start_grace.0)
            ),
            _ => "told by waiting for input without a handshake".into(),
        };
        format!("{}, {told}", self.report.protocol.unwrap_or("unknown"))
    }

    /// The checks of version 0, which has a process for each activation.
    async fn call_once_each(&mut self) {
        self.one_each = true;
        (self.report.protocol, self.report.told_by) = (Some("0"), Some("setting"));
        let apart = |name, why: &str| Check::new(name, Verdict::NotApplicable, why);
        self.settle(apart(Name::Starts, "a process is started for each activation"));
        self.settle(Check::passed(Name::Protocol, "0, as it was asked for"));
        self.settle(apart(Name::Flushed, "the end of a process flushes"));
        self.settle(apart(Name::Stays, "a process is started for each activation"));
        self.settle(apart(Name::Channel, "what is printed before the last line is log"));
        self.settle(apart(Name::Terminate, "a process ends with its answer"));
        for name in Name::OF_VERSION_2 {
            self.settle(apart(name, "not in version 0"));
        }
        let arguments = self.arguments.plain();
        match self.activate(Name::Answers, &arguments).await {
            Ok(Answered { answer, took }) => {
                self.settle(Check::passed(Name::Answers, shown(&answer)).took(took));
                self.settle(Check::passed(Name::Framing, "an object or array on the last line"));
            }
            Err(trouble) => {
                let bad = matches!(&trouble, Failure::Error(Error::Run(RunError::BadAnswer { problem, .. })) if *problem != BadAnswer::Nothing);
                return self.fail(if bad { Name::Framing } else { Name::Answers }, &trouble);
            }
        }
        self.variations().await;
        self.in_a_row().await;
        let check = if self.lingered {
            self.failure(Name::EndOfFile, self.end_of_file(None))
        } else {
            Check::passed(Name::EndOfFile, "it ended each time")
        };
        self.settle(check);
        self.judge_orphans().await;
        if !self.is_settled(Name::Descendants) {
            self.settle(Check::passed(Name::Descendants, "no process lives on after it"));
        }
    }

    /// Starts a process if none runs that is alive.
    async fn ensure_running(&mut self) -> Result<(), Failure> {
        if let Some(running) = self.running.take_if(|running| running.guard.process().exit().is_some()) {
            self.bury(running.guard.process()).await;
        }
        if self.running.is_none() {
            self.start().await.map_err(Failure::Error)?;
        }
        Ok(())
    }

    /// Starts a process and waits until it is ready.
    async fn start(&mut self) -> Result<Evidence, Error> {
        let settings = &self.plan.settings;
        let rules = detect::Rules {
            protocol: settings.protocol,
            wait_for_ack: self.plan.wait_for_ack,
            init_timeout: settings.init_timeout.0,
            start_grace: settings.start_grace.0,
        };
        let (guard, pipes) = spawn(&self.launch, ResultChannel::Descriptor3, &self.reaper, &mut self.logs)?;
        self.given.clear();
        let detected = self.log_capture.during(detect(guard.process(), pipes, &rules, &mut self.logs)).await;
        match detected {
            Ok(detect::Ready { mut conversation, evidence }) => {
                conversation.keep_strays();
                self.running = Some(Running { guard, conversation });
                Ok(evidence)
            }
            Err(error) => {
                self.bury(guard.process()).await;
                Err(error)
            }
        }
    }

    /// Kills what is left of a process and takes its last words.
    async fn bury(&mut self, process: &Process) {
        self.log_capture.during(stop::kill_and_reap(process)).await;
        self.logs.detach();
        self.hear().await;
    }

    /// Hears what the action has logged by now.
    async fn hear(&mut self) {
        self.log_capture.during(self.logs.end_without_sentinel()).await;
        let progress = self.log_capture.progress();
        if !progress.is_empty() {
            (self.tell)(Progress::Logged(&progress));
        }
    }

    /// A setting of the action may be shorter than the patience of the check.
    fn patience(&self) -> Duration {
        self.plan.patience.min(self.plan.settings.run_timeout.0)
    }

    fn pid(&self) -> Option<rustix::process::Pid> {
        self.running.as_ref().map(|running| running.guard.process().pid)
    }

    fn fail(&mut self, name: Name, trouble: &Failure) {
        let fault = match trouble {
            Failure::Error(error) => Fault::from(error),
            Failure::Finding(finding) => Fault::from(finding.clone()),
            Failure::NoHandshake { line } => Fault {
                code: "PL055",
                reason: format!(
                    "it answers on stdout and has not sent a handshake, so its answers are taken for logs: {}",
                    excerpt(line)
                ),
                cure: Some(
                    "print `{\"openwhisk\":1}` on stdout first and flush it; or answer on descriptor 3".into(),
                ),
            },
            Failure::Endless { after, chunks } => Fault {
                code: "PL064",
                reason: format!("no end came within {}, and {chunks} chunks did", millis(*after)),
                cure: Some("end each activation with `result`, `error` or `end`; a stream that takes longer has more time with `--timeout`, and arguments that make it short come with `-p` or `--input`".into()),
            },
            Failure::Silence { after, meanwhile } => Fault {
                code: "PL064",
                reason: format!("no answer came within {}; {meanwhile}", millis(*after)),
                cure: Some("make it faster, or give it more time with `--timeout`; arguments that suit it come with `-p` or `--input`".into()),
            },
        };
        let elsewhere = match trouble {
            Failure::Finding(Finding::Stray { .. }) => Some(Name::Channel),
            Failure::Finding(Finding::Frame { fault, .. }) if !matches!(fault, FrameFault::Foreign { .. }) => {
                Some(Name::Ids)
            }
            _ => None,
        };
        if let Some(blamed) = elsewhere
            && blamed != name
        {
            // It is no fault of this activation's, and may come with any.
            if !self.is_settled(blamed) {
                let check = self.failure(blamed, fault);
                self.settle(check);
            }
            return self.settle(Check::new(name, Verdict::NotReached, ""));
        }
        let check = self.failure(name, fault);
        self.settle(check);
    }

    /// A check that failed, with the end of the log.
    fn failure(&self, name: Name, fault: impl Into<Fault>) -> Check {
        Check { log: self.log_capture.stderr.tail(), ..Check::failed(name, fault) }
    }

    fn is_settled(&self, name: Name) -> bool {
        self.report.checks.iter().chain(&self.early).any(|check| check.name == name)
    }

    /// Notes how a check came out, and tells it once all before it have been told.
    fn settle(&mut self, check: Check) {
        debug_assert!(!self.is_settled(check.name), "{check:?} was settled before");
        self.early.push(check);
        while let Some(next) = Name::ALL.get(self.report.checks.len())
            && let Some(at) = self.early.iter().position(|check| check.name == *next)
        {
            let check = self.early.swap_remove(at);
            (self.tell)(Progress::Settled(&check));
            self.report.checks.push(check);
        }
    }

    /// Settles every check that has not come out yet.
    fn settle_rest(&mut self, verdict: Verdict, seen: &str) {
        for name in Name::ALL {
            if !self.is_settled(name) {
                self.settle(Check::new(name, verdict, seen));
            }
        }
    }
}
