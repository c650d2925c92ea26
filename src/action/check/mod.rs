//! Whether an action keeps the promises of its protocol: what `pipeloop check` does.
//!
//! Opens, inspects, starts and calls an action with the code that serves it, and looks closer where
//! that code only has to go on: at what came beside an answer, at what comes when the input ends, at
//! what is left then. Knows how each check came out, in words; prints nothing.
//!
//! # Theory of operation
//! [`Examination::run`] goes through the checks in their order and settles each exactly once. An
//! activation that fails is looked into until one check is to blame for it; the others go on with a
//! new process, or say that they were not reached.

mod arguments;
mod ear;
mod finding;
mod report;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::activation::{Activation, Answer};
use crate::config::ActionSettings;
use crate::error::{BadAnswer, Error};
use crate::logs::{self, Logs, Sentinels};
use crate::process::reap::Exit;
use crate::process::spawn::ResultChannel;
use crate::process::stop::KillOnDrop;
use crate::process::survivors::{self, Survivor};
use crate::process::{ExitStatus, Launch, Process, Reaper, stop};
use crate::protocol::conversation::Conversation;
use crate::protocol::detect::{self, Evidence, detect};
use crate::protocol::line::Fill;
use crate::protocol::pipe_loop::{Channel, NoAnswer};
use crate::protocol::{Protocol, answer, single_shot};
use crate::text::{excerpt, millis};

use super::artifact::{Artifact, Sources};
use super::compile::compile;
use super::inspect::{Inspection, World, inspect};
use super::worker::{gone, spawn, unusable, wait_for_end};
use super::{DEFAULT_MAIN, unpack};

pub use finding::Finding;
pub use report::{Check, Fault, Name, Report, Verdict};

use arguments::{Arguments, IN_A_ROW, Seen, mark_in, unicode_in};
use ear::Ear;

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
pub enum News<'a> {
    /// A check has come out.
    Settled(&'a Check),
    /// The action has logged something.
    Logged(&'a [u8]),
}

/// An action that is being checked.
pub struct Examination<'a> {
    plan: Plan,
    arguments: Arguments,
    reaper: Reaper,
    logs: Logs,
    ear: Ear,
    tell: Box<dyn FnMut(News<'_>) + 'a>,
    /// Settled before its turn.
    early: Vec<Check>,
    report: Report,
    artifact: Option<Artifact>,
    launch: Launch,
    running: Option<Running>,
    /// Lines beside answers, of all processes.
    strays: Vec<Vec<u8>>,
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
enum Trouble {
    Error(Error),
    Finding(Finding),
    /// It answers on stdout and has not said so.
    NoHandshake {
        line: Vec<u8>,
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
/// How long the rest of an answer, or the answer behind a line that is none, is waited for.
const SECOND_THOUGHTS: Duration = Duration::from_millis(200);
/// How long what an action started may take to end after it.
const AFTERMATH: Duration = Duration::from_millis(500);
const AFTERMATH_STEP: Duration = Duration::from_millis(10);

impl<'a> Examination<'a> {
    /// Prepares the check of an action. `tell` hears of each check as it comes out.
    ///
    /// # Errors
    /// What the operating system refuses.
    pub fn new(plan: Plan, reaper: Reaper, tell: impl FnMut(News<'_>) + 'a) -> Result<Self, Error> {
        survivors::adopt_orphans().map_err(|reason| Error::System { doing: "adopt orphans", reason })?;
        let (ear, stdout, stderr) = Ear::new()?;
        let settings = &plan.settings;
        let bounds = logs::Bounds {
            backlog_bytes: settings.log_backlog.bytes(),
            stall_limit: settings.log_stall.0,
            format: crate::config::LogFormat::Text,
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
            ear,
            tell: Box::new(tell),
            early: Vec::new(),
            report: Report::default(),
            artifact: None,
            launch,
            running: None,
            strays: Vec::new(),
            one_each: false,
            lingered: false,
        })
    }

    /// Goes through all checks. Leaving early leaves a process that [`Examination::stop`] ends.
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
            self.ear.during(stopped).await;
        }
        // What was left in the middle has been killed, and is seen to its end here.
        end_all(survivors::survivors()).await;
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
                    Error::Unfit { defects, .. } => defects.iter().map(Fault::from).collect(),
                    error => vec![Fault::from(error)],
                };
                self.settle(Check { faults, ..Check::new(Name::Recognised, Verdict::Failed, "") });
                self.report.refused = Some(error);
                return false;
            }
        };
        self.launch.program.clone_from(&artifact.executable);
        self.launch.directory.clone_from(&artifact.directory);
        let world = match &self.plan.image_root {
            None => World::of(&self.launch),
            // What an image sets is not in its file system; this is what nearly every one does.
            Some(root) => World::new(root, &artifact.directory, &[("PATH".into(), IMAGE_PATH.into())]),
        };
        let inspection = inspect(&artifact.executable, &world);
        let fatal: Vec<_> = match self.plan.stays_down {
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
            self.report.refused = Some(Error::Unfit { path: Some(self.launch.program.clone()), defects: fatal });
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
        self.ear.during(compiling).await?;
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
            self.judge_channel();
        }
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
                    Error::NoHandshake { .. } | Error::WrongFirstLine { .. } | Error::UnsupportedVersion { .. } => {
                        self.settle(Check::passed(Name::Starts, "runs"));
                        Name::Protocol
                    }
                    _ => Name::Starts,
                };
                self.settle(Check::failed(name, &error));
                self.report.refused = Some(error).filter(|error| matches!(error, Error::Unfit { .. }));
                return false;
            }
        };
        let took = begun.elapsed();
        self.report.init = Some(took);
        let running = self.running.as_ref().expect("it was started");
        self.report.protocol = Some(running.conversation.name());
        self.report.told_by = Some(match evidence {
            Evidence::Handshake(_) => "handshake",
            Evidence::Acknowledgement => "acknowledgement",
            Evidence::WaitsForInput => "waiting",
            Evidence::Grace => "grace",
        });
        self.settle(Check::passed(Name::Starts, "ready").took(took));
        true
    }

    /// Which protocol it speaks and how that was told, for a reader.
    fn protocol_in_words(&self) -> String {
        let channel = self.running.as_ref().map_or("stdout", |running| running.conversation.channel_name());
        let told = match self.report.told_by {
            Some("handshake") => format!("told by its handshake on {channel}"),
            Some("acknowledgement") => "told by its acknowledgement on descriptor 3".into(),
            Some("grace") => "taken for that, since it said nothing".into(),
            _ => "told by waiting for input without a handshake".into(),
        };
        format!("{}, {told}", self.report.protocol.unwrap_or("unknown"))
    }

    /// The first activation shows how it answers at all. Whether others can be had.
    async fn first(&mut self) -> bool {
        let spoken = self.protocol_in_words();
        let arguments = self.arguments.plain();
        let trouble = match self.activate(Name::Answers, &arguments).await {
            Ok(Answered { answer, took }) => {
                self.settle(Check::passed(Name::Protocol, spoken));
                self.settle(Check::passed(Name::Answers, shown(&answer)).took(took));
                self.settle(Check::passed(Name::Flushed, "its answer comes before its input ends"));
                self.settle(Check::passed(Name::Framing, "an object or array on a line of its own"));
                return true;
            }
            Err(trouble) => trouble,
        };
        let blamed = match &trouble {
            Trouble::NoHandshake { .. } => Name::Protocol,
            Trouble::Finding(Finding::NotFlushed { .. }) => Name::Flushed,
            Trouble::Finding(Finding::Stray { .. }) => Name::Channel,
            Trouble::Error(Error::BadAnswer { problem, .. }) if *problem != BadAnswer::Nothing => Name::Framing,
            _ => Name::Answers,
        };
        if blamed != Name::Protocol {
            self.settle(Check::passed(Name::Protocol, spoken));
        }
        if matches!(blamed, Name::Flushed | Name::Framing | Name::Channel) {
            self.settle(Check::passed(Name::Answers, "something comes back"));
        }
        if matches!(blamed, Name::Framing | Name::Channel) {
            self.settle(Check::passed(Name::Flushed, "it comes before its input ends"));
        }
        self.fail(blamed, &trouble);
        false
    }

    /// The same again, from the same process.
    async fn second(&mut self) {
        let pid = self.pid();
        let arguments = self.arguments.plain();
        let check = match self.activate(Name::Stays, &arguments).await {
            Ok(answered) if self.pid() == pid => {
                Check::passed(Name::Stays, "the same process answers again").took(answered.took)
            }
            Ok(answered) => {
                // The process had ended by itself before the second activation reached it.
                self.one_each = true;
                let fault = Fault {
                    code: "PL061",
                    reason: "it ends after an answer, and is started anew for each activation".into(),
                    cure: Some(
                        "go on reading until the input ends; for a program that handles one activation, `--protocol 0`"
                            .into(),
                    ),
                };
                Check::warning(Name::Stays, fault).took(answered.took)
            }
            Err(trouble) => {
                self.one_each = true;
                return self.fail(Name::Stays, &trouble);
            }
        };
        self.settle(check);
    }

    /// Arguments of all kinds, an activation each.
    async fn variations(&mut self) {
        let arguments = self.arguments.unicode();
        match self.activate(Name::Unicode, &arguments).await {
            Ok(Answered { answer, took }) => {
                let check = match unicode_in(&answer) {
                    Seen::Intact => Check::passed(Name::Unicode, "comes back as it was sent"),
                    Seen::Nothing => Check::passed(Name::Unicode, "answered; nothing of it stands in the answer"),
                    Seen::Mangled(how) => {
                        let reason = format!("{how}: {}", excerpt(&answer));
                        self.failure(Name::Unicode, Finding::Unicode { reason })
                    }
                };
                self.settle(check.took(took));
            }
            Err(Trouble::Error(Error::BadAnswer { problem: problem @ BadAnswer::NotJson { .. }, .. })) => {
                let check = self.failure(Name::Unicode, Finding::Unicode { reason: problem.to_string() });
                self.settle(check);
            }
            Err(trouble) => self.fail(Name::Unicode, &trouble),
        }
        let quotes = self.arguments.quotes();
        self.vary(Name::Quotes, &quotes, "answered, with quotes and backslashes in a text").await;
        let nested = self.arguments.nested();
        self.vary(Name::Nested, &nested, "answered, with every type, 20 deep").await;
        self.vary(Name::Empty, &Arguments::empty(), "answered").await;
        self.vary(Name::Unknown, &Arguments::unknown(), "answered").await;
        let large = self.arguments.large();
        self.vary(Name::Large, &large, "answered").await;
    }

    async fn vary(&mut self, name: Name, arguments: &Value, seen: &str) {
        match self.activate(name, arguments).await {
            Ok(answered) => self.settle(Check::passed(name, seen).took(answered.took)),
            Err(trouble) => self.fail(name, &trouble),
        }
    }

    /// Several activations, each with its own answer.
    async fn in_a_row(&mut self) {
        if self.one_each && self.plan.settings.protocol != Protocol::SingleShot {
            return self.settle(Check::new(Name::Sequence, Verdict::NotReached, "its process answers only once"));
        }
        let (mut total, mut longest, mut echoes) = (Duration::ZERO, Duration::ZERO, 0);
        for number in 0..IN_A_ROW {
            let arguments = self.arguments.numbered(number);
            match self.activate(Name::Sequence, &arguments).await {
                Ok(Answered { answer, took }) => {
                    total += took;
                    longest = longest.max(took);
                    match mark_in(&answer, number) {
                        Seen::Intact => echoes += 1,
                        Seen::Nothing => {}
                        Seen::Mangled(how) => {
                            let fault = Fault {
                                code: "PL095",
                                reason: format!("the answer to activation {} is not its own: {how}", number + 1),
                                cure: Some("answer each line before the next is read, with exactly one line".into()),
                            };
                            let check = self.failure(Name::Sequence, fault);
                            return self.settle(check);
                        }
                    }
                }
                Err(trouble) => return self.fail(Name::Sequence, &trouble),
            }
        }
        let each = total / u32::try_from(IN_A_ROW).expect("ten is small");
        let own = if echoes == IN_A_ROW { "each got its own answer" } else { "all answered" };
        let seen = format!("{own}; the slowest in {}", precise(longest));
        self.settle(Check::passed(Name::Sequence, seen).took(each));
    }

    /// Whether anything came on the result channel beside the answers.
    fn judge_channel(&mut self) {
        if self.is_settled(Name::Channel) {
            return;
        }
        let channel = self.channel();
        let check = match self.strays.first() {
            None => Check::passed(Name::Channel, format!("nothing but answers on {channel}")),
            Some(line) => {
                let line = line.clone();
                self.failure(Name::Channel, Finding::Stray { channel, line })
            }
        };
        self.settle(check);
    }

    async fn ends_at_end_of_input(&mut self) {
        if let Err(trouble) = self.ensure_running().await {
            return self.fail(Name::EndOfFile, &trouble);
        }
        let Running { guard, conversation } = self.running.take().expect("it runs");
        // Its result channel stays open, so that a last flush is no error.
        let _results = conversation.into_results();
        let (ended, took) = self.wait_for_exit(guard.process()).await;
        let check = match ended.map(|exit| exit.status) {
            Some(ExitStatus::Exited(0)) => Check::passed(Name::EndOfFile, "ended with status 0").took(took),
            Some(status) => Check::warning(Name::EndOfFile, self.end_of_file(Some(status))),
            None => self.failure(Name::EndOfFile, self.end_of_file(None)),
        };
        self.settle(check);
        if ended.is_some() {
            self.judge_survivors().await;
        }
        self.bury(guard.process()).await;
    }

    async fn ends_on_sigterm(&mut self) {
        if let Err(trouble) = self.ensure_running().await {
            return self.fail(Name::Terminate, &trouble);
        }
        let Running { guard, conversation: _conversation } = self.running.take().expect("it runs");
        stop::terminate_group(guard.process());
        let (ended, took) = self.wait_for_exit(guard.process()).await;
        let check = if ended.is_some() {
            Check::passed(Name::Terminate, "ended, with its input still open").took(took)
        } else {
            let within = self.plan.settings.stop_grace.0 / 2;
            self.failure(Name::Terminate, Finding::Terminate { within })
        };
        self.settle(check);
        if ended.is_some() {
            self.judge_survivors().await;
            if !self.is_settled(Name::Descendants) {
                self.settle(Check::passed(Name::Descendants, "no process lives on after it"));
            }
        }
        self.bury(guard.process()).await;
    }

    fn end_of_file(&self, ended: Option<ExitStatus>) -> Finding {
        Finding::EndOfFile { ended, within: self.plan.settings.stop_grace.0 / 2 }
    }

    /// Waits for the end of a process, for as long as one that is stopped has.
    async fn wait_for_exit(&mut self, process: &Process) -> (Option<Exit>, Duration) {
        let begun = Instant::now();
        let within = self.plan.settings.stop_grace.0 / 2;
        let exit = async {
            tokio::select! {
                exit = tokio::time::timeout(within, process.exited()) => exit.ok().flatten(),
                () = self.logs.pump() => unreachable!("a pump never ends"),
            }
        };
        (self.ear.during(exit).await, begun.elapsed())
    }

    /// Looks for processes that outlive an action that has ended, and ends them.
    async fn judge_survivors(&mut self) {
        let begun = Instant::now();
        let mut left = survivors::survivors();
        while !left.is_empty() && begun.elapsed() < AFTERMATH {
            tokio::time::sleep(AFTERMATH_STEP).await;
            left = survivors::survivors();
        }
        if left.is_empty() {
            return;
        }
        if !self.is_settled(Name::Descendants) {
            let check = self.failure(Name::Descendants, Finding::LeftBehind { survivors: left.clone() });
            self.settle(check);
        }
        end_all(left).await;
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
        let arguments = self.arguments.plain();
        match self.activate(Name::Answers, &arguments).await {
            Ok(Answered { answer, took }) => {
                self.settle(Check::passed(Name::Answers, shown(&answer)).took(took));
                self.settle(Check::passed(Name::Framing, "an object or array on the last line"));
            }
            Err(trouble) => {
                let bad = matches!(&trouble, Trouble::Error(Error::BadAnswer { problem, .. }) if *problem != BadAnswer::Nothing);
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
        self.judge_survivors().await;
        if !self.is_settled(Name::Descendants) {
            self.settle(Check::passed(Name::Descendants, "no process lives on after it"));
        }
    }

    /// One activation, answered as it should be, or the reason why not.
    async fn activate(&mut self, name: Name, arguments: &Value) -> Result<Answered, Trouble> {
        self.ear.forget();
        let text = arguments.to_string();
        let activation = Activation::of_arguments(text.as_bytes()).map_err(Trouble::Error)?;
        let answered = if self.plan.settings.protocol == Protocol::SingleShot {
            self.activate_single_shot(activation).await
        } else {
            self.activate_pipe_loop(activation).await
        };
        self.hear().await;
        if let Ok(Answered { took, .. }) = &answered {
            self.report.activations.push((name, *took));
        }
        answered
    }

    async fn activate_pipe_loop(&mut self, mut activation: Activation) -> Result<Answered, Trouble> {
        if self.one_each
            && let Some(running) = self.running.take()
        {
            self.bury(running.guard.process()).await;
        }
        // As the server does: a process that ended before an activation could reach it takes nothing
        // with it.
        for fresh in [false, true] {
            self.ensure_running().await?;
            let Running { guard, mut conversation } = self.running.take().expect("it runs");
            let (limit_bytes, patience) = (self.plan.settings.max_result.0, self.patience());
            let begun = Instant::now();
            let interaction = conversation.interact(&mut activation, limit_bytes, guard.process(), &mut self.logs);
            let outcome = self.ear.during(tokio::time::timeout(patience, interaction)).await;
            let took = begun.elapsed();
            match outcome {
                Ok(Ok(answer)) => {
                    self.strays.append(&mut conversation.take_strays());
                    self.running = Some(Running { guard, conversation });
                    return Ok(Answered { answer, took });
                }
                Ok(Err(NoAnswer::Bad(problem))) => {
                    return Err(self.look_beside(problem, Running { guard, conversation }).await);
                }
                Ok(Err(NoAnswer::Strayed)) => unreachable!("strays are kept here, and not reported"),
                Ok(Err(NoAnswer::TooLong)) => {
                    self.bury(guard.process()).await;
                    return Err(Trouble::Error(Error::AnswerTooLong { limit_bytes }));
                }
                Ok(Err(NoAnswer::Gone { untouched: true, .. })) if !fresh && wait_for_end(guard.process()).await => {
                    self.bury(guard.process()).await;
                }
                Ok(Err(NoAnswer::Gone { partial, .. })) => {
                    let channel = conversation.channel_name();
                    let why = gone(guard.process(), partial, channel, &mut self.logs);
                    return Err(Trouble::Error(self.ear.during(why).await));
                }
                Err(_) => return Err(self.look_behind(took, Running { guard, conversation }).await),
            }
        }
        unreachable!("a fresh process that is gone is told")
    }

    async fn activate_single_shot(&mut self, activation: Activation) -> Result<Answered, Trouble> {
        let launch = single_shot::launch(&self.launch, &activation);
        let (guard, pipes) =
            spawn(&launch, ResultChannel::Stdout, &self.reaper, &mut self.logs).map_err(Trouble::Error)?;
        let process = guard.process();
        let (limit_bytes, patience) = (self.plan.settings.max_result.0, self.patience());
        let begun = Instant::now();
        let interaction = single_shot::interact(process, pipes, &activation, limit_bytes, &mut self.logs);
        let outcome = self.ear.during(tokio::time::timeout(patience, interaction)).await;
        let took = begun.elapsed();
        let answered = match outcome {
            Ok(Ok(answer)) => {
                let (ended, _) = self.wait_for_exit(process).await;
                self.lingered |= ended.is_none();
                Ok(Answered { answer, took })
            }
            Ok(Err(single_shot::NoAnswer::TooLong)) => Err(Trouble::Error(Error::AnswerTooLong { limit_bytes })),
            Ok(Err(single_shot::NoAnswer::Bad(problem))) => {
                Err(Trouble::Error(unusable(process, problem, &mut self.logs).await))
            }
            Err(_) => Err(Trouble::Silence { after: took, meanwhile: "its process had not ended by then" }),
        };
        self.bury(process).await;
        answered
    }

    /// An answer is unusable: what comes beside it tells whether it is one at all.
    async fn look_beside(&mut self, problem: BadAnswer, mut running: Running) -> Trouble {
        let channel = running.conversation.channel_name();
        let more = async {
            let _ = tokio::time::timeout(SECOND_THOUGHTS, running.conversation.idle(&mut self.logs)).await;
        };
        self.ear.during(more).await;
        let mut lines = match &problem {
            BadAnswer::NotJson { line, .. } => vec![line.clone().into_bytes()],
            BadAnswer::TwoLines { first, second } => vec![first.clone().into_bytes(), second.clone().into_bytes()],
            _ => Vec::new(),
        };
        lines.append(&mut running.conversation.take_strays());
        self.running = Some(running);
        let broken_up = lines.first().is_some_and(|line| is_cut_off(line));
        let is_answer = |line: &Vec<u8>| answer::check(line.clone().into()).is_ok();
        match lines.iter().find(|line| !is_answer(line)) {
            // Something of the two is an answer, and something is not even the beginning of one.
            Some(line) if !broken_up && lines.iter().any(is_answer) => {
                Trouble::Finding(Finding::Stray { channel, line: line.clone() })
            }
            _ => Trouble::Error(Error::BadAnswer { problem, ending: None }),
        }
    }

    /// Nothing came in time: what comes when the input ends tells whether it was held back.
    async fn look_behind(&mut self, after: Duration, running: Running) -> Trouble {
        let Running { guard, conversation } = running;
        let process = guard.process();
        if conversation.waits_for_input(process) == Some(false) {
            self.bury(process).await;
            return Trouble::Silence { after, meanwhile: "it was still at work then" };
        }
        let programs = survivors::programs(process.pid);
        let on_descriptor_3 = conversation.channel() == Channel::Descriptor3;
        self.hear().await;
        let is_answer = |line: &&[u8]| answer::check(line.trim_ascii().to_vec().into()).is_ok();
        let on_stdout = self.ear.stdout.lines().find(is_answer).map(<[u8]>::to_vec);

        let mut results = conversation.into_results();
        let within = self.plan.settings.stop_grace.0 / 2;
        let held_back = async {
            let held_back = async {
                loop {
                    if let Some(line) = results.next_line() {
                        return Some(line.to_vec());
                    }
                    if !matches!(results.fill().await, Ok(Fill::Some)) {
                        return Some(results.take_rest()).filter(|rest| !rest.is_empty());
                    }
                }
            };
            tokio::select! {
                line = tokio::time::timeout(within, held_back) => line.ok().flatten(),
                () = self.logs.pump() => unreachable!("a pump never ends"),
            }
        };
        let held_back = self.ear.during(held_back).await;
        if on_descriptor_3 {
            // The end of its result channel comes before that of its stdout.
            self.wait_for_exit(process).await;
        }
        self.bury(process).await;

        let cure = || finding::flush_cure(&programs, &self.launch.program);
        if let Some(line) = held_back {
            return Trouble::Finding(Finding::NotFlushed { what: "answer", line, cure: cure() });
        }
        if on_descriptor_3 {
            if let Some(line) = on_stdout {
                return Trouble::NoHandshake { line };
            }
            if let Some(line) = self.ear.stdout.lines().find(|line| detect::is_handshake(line)) {
                return Trouble::Finding(Finding::NotFlushed { what: "handshake", line: line.to_vec(), cure: cure() });
            }
            if let Some(line) = self.ear.stdout.lines().find(is_answer) {
                return Trouble::NoHandshake { line: line.to_vec() };
            }
        }
        Trouble::Silence { after, meanwhile: "nothing came when its input ended either" }
    }

    /// Starts a process if none runs that is alive.
    async fn ensure_running(&mut self) -> Result<(), Trouble> {
        if let Some(running) = self.running.take_if(|running| running.guard.process().exit().is_some()) {
            self.bury(running.guard.process()).await;
        }
        if self.running.is_none() {
            self.start().await.map_err(Trouble::Error)?;
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
        let detected = self.ear.during(detect(guard.process(), pipes, &rules, &mut self.logs)).await;
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
        self.ear.during(stop::kill(process)).await;
        self.logs.detach();
        self.hear().await;
    }

    /// Hears what the action has logged by now.
    async fn hear(&mut self) {
        self.ear.during(self.logs.end_without_sentinel()).await;
        let news = self.ear.news();
        if !news.is_empty() {
            (self.tell)(News::Logged(&news));
        }
    }

    /// A setting of the action may be shorter than the patience of the check.
    fn patience(&self) -> Duration {
        self.plan.patience.min(self.plan.settings.run_timeout.0)
    }

    fn pid(&self) -> Option<rustix::process::Pid> {
        self.running.as_ref().map(|running| running.guard.process().pid)
    }

    fn channel(&self) -> &'static str {
        if self.report.protocol == Some("1") && self.running.is_none() {
            return "stdout";
        }
        self.running.as_ref().map_or("descriptor 3", |running| running.conversation.channel_name())
    }

    fn fail(&mut self, name: Name, trouble: &Trouble) {
        let fault = match trouble {
            Trouble::Error(error) => Fault::from(error),
            Trouble::Finding(finding) => Fault::from(finding.clone()),
            Trouble::NoHandshake { line } => Fault {
                code: "PL055",
                reason: format!(
                    "it answers on stdout and has not sent a handshake, so its answers are taken for logs: {}",
                    excerpt(line)
                ),
                cure: Some(
                    "print `{\"openwhisk\":1}` on stdout first and flush it; or answer on descriptor 3".into(),
                ),
            },
            Trouble::Silence { after, meanwhile } => Fault {
                code: "PL064",
                reason: format!("no answer came within {}; {meanwhile}", millis(*after)),
                cure: Some("make it faster, or give it more time with `--timeout`; arguments that suit it come with `-p` or `--input`".into()),
            },
        };
        if let (Trouble::Finding(Finding::Stray { .. }), true) = (trouble, name != Name::Channel) {
            // It is no fault of this activation's, and may come with any.
            if !self.is_settled(Name::Channel) {
                let check = self.failure(Name::Channel, fault);
                self.settle(check);
            }
            return self.settle(Check::new(name, Verdict::NotReached, ""));
        }
        let check = self.failure(name, fault);
        self.settle(check);
    }

    /// A check that failed, with the end of the log.
    fn failure(&self, name: Name, fault: impl Into<Fault>) -> Check {
        Check { log: self.ear.stderr.tail(), ..Check::failed(name, fault) }
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
            (self.tell)(News::Settled(&check));
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

/// Whether a line is the beginning of an object or array that goes on elsewhere.
fn is_cut_off(line: &[u8]) -> bool {
    let begins = matches!(line.trim_ascii_start().first(), Some(b'{' | b'['));
    begins && serde_json::from_slice::<serde::de::IgnoredAny>(line).is_err_and(|error| error.is_eof())
}

/// Kills processes, and those that are orphans then.
async fn end_all(mut left: Vec<Survivor>) {
    let begun = Instant::now();
    while !left.is_empty() && begun.elapsed() < AFTERMATH {
        survivors::kill(&left);
        tokio::time::sleep(AFTERMATH_STEP).await;
        left = survivors::survivors();
    }
}

/// An answer for a line of the report.
fn shown(answer: &[u8]) -> String {
    const MOST_CHARS: usize = 60;
    let text = String::from_utf8_lossy(answer);
    match text.char_indices().nth(MOST_CHARS) {
        Some((cut, _)) => format!("{}… ({} bytes)", &text[..cut], answer.len()),
        None => text.into_owned(),
    }
}

/// A duration that may be far below a millisecond.
fn precise(duration: Duration) -> String {
    if duration < Duration::from_millis(1) { format!("{} µs", duration.as_micros()) } else { millis(duration) }
}
