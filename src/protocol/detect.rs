//! Waits until a started process is ready, and finds out which protocol it speaks.
//!
//! The first evidence decides: a handshake on stdout or descriptor 3, an acknowledgement on
//! descriptor 3, the process waiting for its input, or its exit. `docs/protocol.md`, "Readiness", has
//! the rules for authors.
//!
//! Waiting for input is weak evidence, since some runtimes wait before any of the author's code runs. With `auto` the
//! conversation that begins on it stays undecided until the first answer: a handshake may still replace it
//! (`PipeLoop::leave_undecided`).

use std::time::Duration;

use bytes::Bytes;

use crate::error::{Awaited, Error, ExitReport, HandshakeFault, NearHandshake, ProxyError, Stage, StartError, Version};
use crate::logs::Logs;
use crate::process::Process;
use crate::process::spawn::{Pipes, ResultChannel};
use crate::process::wait_state::{ProbeTimer, WaitState, probe};
use crate::time::{self, Countdown};

use super::Protocol;
use super::conversation::Conversation;
use super::handshake::{
    ACK, Announced, Handshake, is_handshake, misplaced_acknowledgement, misplaced_handshake, nearly_handshake,
    required_handshake, wrong_first_line,
};
use super::line::{Fill, LineReader, LineWriter};
use super::link::Link;
use super::pipe_loop::{Payload, PipeLoop};

/// The pause before the first probe of what the process waits for.
const FIRST_PAUSE: Duration = Duration::from_micros(250);
/// The longest pause between two probes.
const MAX_PAUSE: Duration = Duration::from_millis(20);
/// The pause before the probe that confirms that the process waits for its input: two probes in a row
/// must find that. The runtime's timers are ten times as coarse, and would delay a cold start.
const CONFIRM_PAUSE: Duration = Duration::from_micros(100);
/// How long output that was held back may take to come once the input has ended.
const HELD_BACK_GRACE: Duration = Duration::from_millis(500);
/// The longest line that may be a handshake.
const MAX_HANDSHAKE: usize = 64 * 1024;

/// What counts as evidence, and the time limits.
#[derive(Debug, Clone)]
pub struct Rules {
    /// The configured protocol; not [`Protocol::SingleShot`], which keeps no process.
    pub protocol: Protocol,
    /// What a process speaks that waits for its input and has announced nothing.
    pub unannounced: Unannounced,
    /// Whether to wait for the actionloop dialect's acknowledgement: `OW_WAIT_FOR_ACK`.
    pub wait_for_ack: bool,
    /// How long the action may take to become ready.
    pub init_timeout: Duration,
    /// After which time a living process counts as ready where `/proc` does not show what it waits for.
    pub start_grace: Duration,
    /// Whether an earlier process of the action has announced its protocol after it was seen waiting for its input.
    /// Waiting is no evidence then.
    pub announces: bool,
}

/// What a process speaks that announces nothing, with `auto`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unannounced {
    /// The actionloop dialect: an upload.
    ActionLoop,
    /// It is a filter: a command line.
    Filter,
}

/// A process that is ready.
#[derive(Debug)]
pub struct Ready {
    /// The conversation with it.
    pub conversation: Conversation,
    /// Why it counts as ready.
    pub evidence: Evidence,
}

/// Why a process counts as ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Evidence {
    /// It sent a handshake on this channel.
    Handshake(ResultChannel),
    /// It sent the actionloop dialect's acknowledgement on descriptor 3.
    Acknowledgement,
    /// It waits for its input.
    WaitsForInput,
    /// It lived through the start grace, where `/proc` does not show what it waits for.
    Grace,
}

/// Waits until a process is ready.
///
/// # Errors
/// [`StartError::ExitedBeforeReady`], [`StartError::NotReady`], [`StartError::NoHandshake`],
/// [`StartError::WrongFirstLine`], [`StartError::NearlyHandshake`], [`StartError::UnsupportedVersion`]. The process is
/// not stopped.
pub async fn detect(process: &Process, pipes: Pipes, rules: &Rules, logs: &mut Logs) -> Result<Ready, Error> {
    logs.stderr.attach(pipes.stderr, b"");
    let mut detection = Detection {
        process,
        stdin: Some(LineWriter::new(pipes.stdin)),
        stdout: LineReader::new(pipes.stdout),
        results: LineReader::new(pipes.results.expect("detection is for processes with descriptor 3")),
        rules,
        waiting_for_input: false,
        first_line: None,
        near: None,
    };
    let verdict = time::timeout(rules.init_timeout, detection.verdict(logs)).await;
    let verdict = match verdict {
        Some(verdict) => verdict?,
        None => return Err(detection.timed_out(logs).await),
    };
    Ok(detection.conversation(verdict, logs))
}

/// A process on its way to being ready.
struct Detection<'a> {
    process: &'a Process,
    /// None once the input has ended.
    stdin: Option<LineWriter>,
    stdout: LineReader,
    results: LineReader,
    rules: &'a Rules,
    /// Whether the last probe found it waiting for its input.
    waiting_for_input: bool,
    /// The first line on stdout that is no handshake, for the message.
    first_line: Option<String>,
    /// The first line that was meant as a handshake, but is none.
    near: Option<NearHandshake>,
}

impl Detection<'_> {
    /// Waits for the first evidence.
    async fn verdict(&mut self, logs: &mut Logs) -> Result<Verdict, Error> {
        let mut pause = FIRST_PAUSE;
        let timer =
            ProbeTimer::new().map_err(|reason| Error::Proxy(ProxyError::System { doing: "set a timer", reason }))?;
        timer.set(pause);
        let mut grace = Countdown::new(self.rules.start_grace);
        loop {
            let wakeup = tokio::select! {
                biased;
                _ = self.stdout.fill() => Wakeup::Bytes,
                _ = self.results.fill() => Wakeup::Bytes,
                _ = self.process.exited() => Wakeup::Exit,
                () = timer.expired() => Wakeup::Probe,
                never = logs.pump() => match never {},
            };
            if let Wakeup::Exit = wakeup {
                // The bytes that it wrote before are in the pipes.
                self.read_all();
            }
            if let Some(verdict) = self.read_lines(logs)? {
                // A handshake of a process that has exited does not make it ready.
                if self.process.exit().is_none() {
                    return Ok(verdict);
                }
            }
            // A process that floods its log at the start waits for the reader of the log.
            logs.wait_for_space().await;
            match wakeup {
                Wakeup::Bytes => {
                    if self.results.has_ended() && self.stdout.has_ended() {
                        return Err(self.closed(logs).await);
                    }
                }
                Wakeup::Exit => return Err(self.ended(Stage::BeforeReady, logs)),
                Wakeup::Probe => {
                    grace.count(pause);
                    // The pause grows with the age of the process, so that detection takes at most half as
                    // long again as the start.
                    pause = (pause * 3 / 2).min(MAX_PAUSE);
                    let state = self.probe();
                    let waited = std::mem::replace(&mut self.waiting_for_input, state == WaitState::WaitsOnStdin);
                    let is_ready = match state {
                        WaitState::WaitsOnStdin => true,
                        WaitState::Busy => false,
                        WaitState::Unknown => grace.is_over(),
                    };
                    timer.set(pause);
                    if is_ready && self.accepts_waiting() {
                        // It may have written a line right before it began to wait.
                        self.read_all();
                        if let Some(verdict) = self.read_lines(logs)? {
                            return Ok(verdict);
                        }
                        self.refuse_near_handshake()?;
                        let evidence = if self.waiting_for_input { Evidence::WaitsForInput } else { Evidence::Grace };
                        if !self.assumes_filter() {
                            return Ok(Verdict::ActionLoop(evidence));
                        }
                        self.refuse_prompt()?;
                        return Ok(Verdict::Filter(evidence));
                    }
                    if waited && self.waiting_for_input {
                        // It has printed what it wanted to print, and waits for the proxy.
                        self.read_all();
                        if let Some(verdict) = self.read_lines(logs)? {
                            return Ok(verdict);
                        }
                        self.refuse_unfinished_line()?;
                    }
                }
            }
        }
    }

    /// Probes what the process waits for, twice where that decides.
    #[expect(clippy::disallowed_methods, reason = "a timer would sleep ten times as long as this")]
    fn probe(&self) -> WaitState {
        let Some(stdin) = &self.stdin else { return WaitState::Busy };
        let probe = || probe(self.process.pid, stdin.pipe());
        match probe() {
            WaitState::WaitsOnStdin if self.accepts_waiting() => {
                std::thread::sleep(CONFIRM_PAUSE);
                probe()
            }
            other => other,
        }
    }

    /// Reads what is in the pipes.
    fn read_all(&mut self) {
        while let Ok(Fill::Some) = self.stdout.try_fill() {}
        while let Ok(Fill::Some) = self.results.try_fill() {}
    }

    /// Whether waiting for input counts as evidence.
    fn accepts_waiting(&self) -> bool {
        match self.rules.protocol {
            Protocol::Auto if self.rules.announces => false,
            Protocol::Auto | Protocol::ActionLoop => !self.rules.wait_for_ack,
            Protocol::Filter => true,
            Protocol::PipeLoop | Protocol::Streams | Protocol::SingleShot => false,
        }
    }

    /// Whether a process that waits for its input and has announced nothing is a filter.
    fn assumes_filter(&self) -> bool {
        match self.rules.protocol {
            Protocol::Filter => true,
            Protocol::Auto => self.rules.unannounced == Unannounced::Filter,
            Protocol::SingleShot | Protocol::PipeLoop | Protocol::Streams | Protocol::ActionLoop => false,
        }
    }

    /// The verdict of the lines that have arrived, if one decides.
    fn read_lines(&mut self, logs: &mut Logs) -> Result<Option<Verdict>, Error> {
        let protocol = self.rules.protocol;
        while let Some(line) = self.results.next_line() {
            match Handshake::parse(&line) {
                Some(handshake) if self.accepts_handshake() && handshake.version.is_some() => {
                    return announced(&handshake, ResultChannel::Descriptor3, protocol).map(Some);
                }
                Some(handshake) if self.accepts_acknowledgement() && handshake.acknowledges() => {
                    return Ok(Some(Verdict::ActionLoop(Evidence::Acknowledgement)));
                }
                _ if self.awaits_acknowledgement() => {
                    return Err(match nearly_handshake(&line) {
                        Some(near) if protocol == Protocol::Auto => Error::Start(StartError::NearlyHandshake { near }),
                        _ => wrong_first_line(ACK, &line, ResultChannel::Descriptor3),
                    });
                }
                _ => {
                    self.note_near_handshake(&line);
                    logs.say(&format!(
                        "pipeloop: dropped a line on descriptor 3 that is no handshake: {}",
                        crate::text::excerpt(&line)
                    ));
                }
            }
        }
        if self.results.pending_len() > MAX_HANDSHAKE {
            let bytes = self.results.take_rest();
            if self.awaits_acknowledgement() {
                return Err(wrong_first_line(ACK, &bytes, ResultChannel::Descriptor3));
            }
            logs.say(&format!(
                "pipeloop: dropped bytes on descriptor 3 that are no handshake: {}",
                crate::text::excerpt(&bytes)
            ));
        }
        if protocol == Protocol::ActionLoop {
            // Standard output is a log here, whatever it holds.
            let rest = self.stdout.take_rest();
            self.note_first_line(&rest);
            logs.stdout.append(&rest);
            return Ok(None);
        }
        while let Some(line) = self.stdout.next_line() {
            match Handshake::parse(&line) {
                Some(handshake) if self.accepts_handshake() && handshake.version.is_some() => {
                    return announced(&handshake, ResultChannel::Stdout, protocol).map(Some);
                }
                _ => {
                    if let Some(expected) = required_handshake(protocol) {
                        return Err(wrong_first_line(expected, &line, ResultChannel::Stdout));
                    }
                    self.note_first_line(&line);
                    self.note_near_handshake(&line);
                    logs.stdout.append_line(&line);
                }
            }
        }
        if self.stdout.pending_len() > MAX_HANDSHAKE {
            let bytes = self.stdout.take_rest();
            if let Some(expected) = required_handshake(protocol) {
                return Err(wrong_first_line(expected, &bytes, ResultChannel::Stdout));
            }
            logs.stdout.append(&bytes);
        }
        Ok(None)
    }

    fn accepts_handshake(&self) -> bool {
        matches!(self.rules.protocol, Protocol::PipeLoop | Protocol::Streams | Protocol::Auto)
    }

    fn accepts_acknowledgement(&self) -> bool {
        matches!(self.rules.protocol, Protocol::ActionLoop | Protocol::Auto)
    }

    /// Whether the first line on descriptor 3 has to be an acknowledgement, or a handshake with `auto`.
    fn awaits_acknowledgement(&self) -> bool {
        self.rules.wait_for_ack && matches!(self.rules.protocol, Protocol::Auto | Protocol::ActionLoop)
    }

    fn note_near_handshake(&mut self, line: &[u8]) {
        if self.near.is_none() {
            self.near = nearly_handshake(line);
        }
    }

    /// A line without its end that was meant as a handshake or acknowledgement.
    fn unfinished_line(&self) -> Option<NearHandshake> {
        let unfinished = |line| misplaced_handshake(line, HandshakeFault::NoNewline);
        match self.rules.protocol {
            Protocol::ActionLoop if !self.rules.wait_for_ack => None,
            Protocol::Filter => None,
            Protocol::ActionLoop => misplaced_acknowledgement(self.results.partial(), HandshakeFault::NoNewline),
            Protocol::Auto if self.rules.wait_for_ack => {
                misplaced_acknowledgement(self.results.partial(), HandshakeFault::NoNewline)
                    .or_else(|| unfinished(self.results.partial()))
                    .or_else(|| unfinished(self.stdout.partial()))
            }
            _ => unfinished(self.stdout.partial()).or_else(|| unfinished(self.results.partial())),
        }
    }

    /// Refuses a process that waits for its input after a line that was meant as a handshake.
    fn refuse_near_handshake(&mut self) -> Result<(), Error> {
        if let Some(near) = self.near.take()
            && self.rules.protocol == Protocol::Auto
        {
            return Err(Error::Start(StartError::NearlyHandshake { near }));
        }
        self.refuse_unfinished_line()
    }

    fn refuse_unfinished_line(&self) -> Result<(), Error> {
        match self.unfinished_line() {
            Some(near) => Err(Error::Start(StartError::NearlyHandshake { near })),
            None if self.awaits_acknowledgement() && !self.results.partial().is_empty() => {
                Err(wrong_first_line(ACK, self.results.partial(), ResultChannel::Descriptor3))
            }
            None => Ok(()),
        }
    }

    /// Refuses a filter that has begun a line before it got one: its answer would stand behind that.
    fn refuse_prompt(&self) -> Result<(), Error> {
        match self.stdout.partial() {
            [] => Ok(()),
            prompt => Err(Error::Start(StartError::Prompt { prompt: String::from_utf8_lossy(prompt).into_owned() })),
        }
    }

    /// Keeps the first line on stdout, for the message.
    fn note_first_line(&mut self, printed: &[u8]) {
        let line = printed.trim_ascii_start().split(|byte| *byte == b'\n').next().unwrap_or_default();
        if self.first_line.is_none() && !line.is_empty() {
            self.first_line = Some(String::from_utf8_lossy(line.trim_ascii_end()).into_owned());
        }
    }

    /// Hands the pipes over to a conversation.
    fn conversation(self, verdict: Verdict, logs: &mut Logs) -> Ready {
        let (evidence, channel) = match verdict {
            Verdict::Handshake { channel, .. } => (Evidence::Handshake(channel), channel),
            Verdict::ActionLoop(evidence) => (evidence, ResultChannel::Descriptor3),
            Verdict::Filter(evidence) => (evidence, ResultChannel::Stdout),
        };
        // Waiting is the weakest evidence: some runtimes read their input before any of the author's code runs.
        let is_undecided = self.rules.protocol == Protocol::Auto
            && matches!(verdict, Verdict::ActionLoop(Evidence::WaitsForInput | Evidence::Grace) | Verdict::Filter(_));
        let results = match channel {
            // Closes descriptor 3: a later write to it fails in the process.
            ResultChannel::Stdout => self.stdout,
            ResultChannel::Descriptor3 => {
                let (stdout, read) = self.stdout.into_parts();
                if is_undecided {
                    logs.stdout.attach_watched(stdout, &read, is_handshake);
                } else {
                    logs.stdout.attach(stdout, &read);
                }
                self.results
            }
        };
        let stdin = self.stdin.expect("a process that is ready has its input");
        let link = Link::new(stdin, results, channel);
        let conversation = match verdict {
            Verdict::Handshake { announced, .. } => Conversation::announced(link, announced),
            Verdict::ActionLoop(_) | Verdict::Filter(_) => {
                let mut pipe_loop = match verdict {
                    Verdict::Filter(_) => PipeLoop::of_filter(link),
                    _ => PipeLoop::new(link, Payload::Activation),
                };
                if is_undecided {
                    pipe_loop.leave_undecided();
                }
                Conversation::PipeLoop(pipe_loop)
            }
        };
        Ready { conversation, evidence }
    }

    /// The error for a process that has exited, or closed its channels.
    fn ended(&mut self, stage: Stage, logs: &mut Logs) -> Error {
        let near = self.near.take().or_else(|| self.unfinished_line());
        // An unfinished line on stdout is a log line too.
        let rest = self.stdout.take_rest();
        logs.stdout.append(&rest);
        logs.detach();
        self.note_first_line(&rest);
        let stage = match (stage, near, self.first_line.take()) {
            (Stage::BeforeReady, Some(near), _) => Stage::AfterNearHandshake(near),
            (Stage::BeforeReady, None, _) if self.awaits_acknowledgement() => {
                if !self.results.partial().is_empty() {
                    return wrong_first_line(ACK, self.results.partial(), ResultChannel::Descriptor3);
                }
                Stage::BeforeAcknowledgement
            }
            (Stage::BeforeReady, None, Some(line)) => Stage::AfterLine { line },
            (stage, ..) => stage,
        };
        Error::Start(StartError::ExitedBeforeReady { exit: exit_report(self.process, logs), stage })
    }

    /// The error for a process that closed both channels: it is about to exit, or has become a daemon.
    async fn closed(&mut self, logs: &mut Logs) -> Error {
        let _ = time::timeout(self.rules.start_grace, self.process.exited()).await;
        let stage = if self.process.exit().is_some() { Stage::BeforeReady } else { Stage::ChannelClosed };
        self.ended(stage, logs)
    }

    /// Ends the input of a process that waits for it. A handshake that comes then was not flushed.
    async fn held_back(&mut self, logs: &mut Logs) -> Option<NearHandshake> {
        self.stdin = None;
        let Self { stdout, results, .. } = self;
        let line = async {
            loop {
                for reader in [&mut *stdout, &mut *results] {
                    let line = reader.next_line().or_else(|| {
                        reader.has_ended().then(|| reader.take_rest().into()).filter(|rest: &Bytes| !rest.is_empty())
                    });
                    if let Some(near) = line.and_then(|line| misplaced_handshake(&line, HandshakeFault::NotFlushed)) {
                        return Some(near);
                    }
                }
                if stdout.has_ended() && results.has_ended() {
                    return None;
                }
                tokio::select! {
                    _ = stdout.fill() => {}
                    _ = results.fill() => {}
                    never = logs.pump() => match never {},
                }
            }
        };
        time::timeout(HELD_BACK_GRACE, line).await.flatten()
    }

    /// The error for a process that was not ready in time.
    async fn timed_out(mut self, logs: &mut Logs) -> Error {
        if let Some(near) = self.near.take().or_else(|| self.unfinished_line()) {
            return Error::Start(StartError::NearlyHandshake { near });
        }
        if self.rules.protocol != Protocol::ActionLoop {
            let on_stderr = logs.stderr.kept().lines().find_map(|line| {
                is_handshake(line.as_bytes()).then(|| misplaced_handshake(line.as_bytes(), HandshakeFault::OnStderr))?
            });
            if let Some(near) = on_stderr {
                return Error::Start(StartError::NearlyHandshake { near });
            }
            if self.waiting_for_input
                && let Some(near) = self.held_back(logs).await
            {
                return Error::Start(StartError::NearlyHandshake { near });
            }
        }
        let limit = self.rules.init_timeout;
        match self.rules.protocol {
            Protocol::PipeLoop if self.waiting_for_input => {
                Error::Start(StartError::NoHandshake { version: Version::V1 })
            }
            Protocol::Streams if self.waiting_for_input => {
                Error::Start(StartError::NoHandshake { version: Version::V2 })
            }
            protocol => Error::Start(StartError::NotReady {
                limit,
                awaited: match protocol {
                    Protocol::PipeLoop => Awaited::Handshake(Version::V1),
                    Protocol::Streams => Awaited::Handshake(Version::V2),
                    Protocol::Auto if self.rules.wait_for_ack => Awaited::HandshakeOrAcknowledgement,
                    Protocol::Auto if self.rules.announces => Awaited::HandshakeAgain,
                    Protocol::ActionLoop if self.rules.wait_for_ack => Awaited::Acknowledgement,
                    Protocol::Filter => Awaited::Input,
                    _ => Awaited::HandshakeOrInput,
                },
                tail: logs.stderr.tail(),
            }),
        }
    }
}

/// What the evidence says about the process's protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// The process announced its protocol.
    Handshake { channel: ResultChannel, announced: Announced },
    /// It speaks the actionloop dialect.
    ActionLoop(Evidence),
    /// It is a filter.
    Filter(Evidence),
}

/// The verdict of a handshake.
fn announced(handshake: &Handshake<'_>, channel: ResultChannel, protocol: Protocol) -> Result<Verdict, Error> {
    Ok(Verdict::Handshake { channel, announced: handshake.announced(channel, protocol)? })
}

/// Why detection goes on.
enum Wakeup {
    /// A channel has bytes or has ended.
    Bytes,
    /// The process has exited.
    Exit,
    /// It is time to probe what the process waits for.
    Probe,
}

/// How a process ended, for a message: its exit as far as it is known.
#[must_use]
pub fn exit_report(process: &Process, logs: &Logs) -> ExitReport {
    let exit = process.exit();
    ExitReport {
        status: exit.map(|exit| exit.status),
        lifetime: exit.map_or_else(|| process.started.elapsed(), |exit| exit.at - process.started),
        stderr_tail: logs.stderr.tail().into(),
        stderr: logs.stderr.kept().into(),
        oom_kills: process.oom_kills(),
    }
}
