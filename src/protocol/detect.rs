//! From a started process to a conversation, or to the reason why there is none.
//!
//! Whichever comes first decides: a handshake on stdout or descriptor 3, an acknowledgement on
//! descriptor 3, the process waiting for its input, its end. `docs/protocol.md`, "Readiness", has
//! the rules for authors.

use std::time::Duration;

use crate::error::{Ending, Error, ProxyError, Stage, StartError};
use crate::logs::Logs;
use crate::process::Process;
use crate::process::spawn::{Pipes, ResultChannel};
use crate::process::wait_state::{ProbeTimer, WaitState, probe};
use crate::time::{self, Countdown};

use super::Protocol;
use super::conversation::Conversation;
use super::handshake::{ACK, Hello, Verdict, demanded, wrong_first_line};
use super::line::{Fill, LineReader, LineWriter};
use super::link::Link;
use super::multiplex::Multiplex;
use super::pipe_loop::{PipeLoop, Sends};

/// The first look at what a process waits for, and the longest pause between two looks.
const FIRST_LOOK: Duration = Duration::from_micros(250);
const MAX_PAUSE: Duration = Duration::from_millis(20);
/// A process is taken to wait for its input when it is seen so twice in a row, the second time so
/// much later. The runtime's timers are ten times as coarse, and a cold start would wait for them.
const SECOND_LOOK: Duration = Duration::from_micros(100);
/// The longest first line that is looked at; a longer one is no handshake.
const MAX_HANDSHAKE: usize = 64 * 1024;

/// What decides, and for how long.
#[derive(Debug, Clone)]
pub struct Rules {
    /// The protocol that was asked for; not [`Protocol::SingleShot`], which has no start.
    pub protocol: Protocol,
    /// Whether the dialect's acknowledgement is awaited: `OW_WAIT_FOR_ACK`.
    pub wait_for_ack: bool,
    /// How long the action may take to be ready.
    pub init_timeout: Duration,
    /// How long to wait for a sign of life where `/proc` cannot tell.
    pub start_grace: Duration,
}

/// A process that is ready.
#[derive(Debug)]
pub struct Ready {
    /// The conversation with it.
    pub conversation: Conversation,
    /// What told that it is ready, and which protocol it speaks.
    pub evidence: Evidence,
}

/// What told that a process is ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Evidence {
    /// Its handshake.
    Handshake(ResultChannel),
    /// The dialect's acknowledgement on descriptor 3.
    Acknowledgement,
    /// It was seen to wait for its input.
    WaitsForInput,
    /// It lived through the grace where nobody can see what it waits for.
    Grace,
}

/// Waits until a process is ready.
///
/// # Errors
/// [`StartError::EndedAtStart`], [`StartError::NotReady`], [`StartError::NoHandshake`],
/// [`StartError::WrongFirstLine`], [`StartError::UnsupportedVersion`]. The process is not stopped.
pub async fn detect(process: &Process, pipes: Pipes, rules: &Rules, logs: &mut Logs) -> Result<Ready, Error> {
    logs.stderr.attach(pipes.stderr, b"");
    let mut start = Start {
        process,
        stdin: LineWriter::new(pipes.stdin),
        stdout: LineReader::new(pipes.stdout),
        results: LineReader::new(pipes.results.expect("detection is for processes with descriptor 3")),
        rules,
        waiting_for_input: false,
        other_line: None,
    };
    let verdict = time::timeout(rules.init_timeout, start.verdict(logs)).await;
    let verdict = match verdict {
        Some(verdict) => verdict?,
        None => return Err(start.too_late(logs)),
    };
    Ok(start.conversation(verdict, logs))
}

struct Start<'a> {
    process: &'a Process,
    stdin: LineWriter,
    stdout: LineReader,
    results: LineReader,
    rules: &'a Rules,
    waiting_for_input: bool,
    /// The first line on stdout, when it was no handshake.
    other_line: Option<String>,
}

impl Start<'_> {
    async fn verdict(&mut self, logs: &mut Logs) -> Result<Verdict, Error> {
        let mut pause = FIRST_LOOK;
        let timer =
            ProbeTimer::new().map_err(|reason| Error::Proxy(ProxyError::System { doing: "set a timer", reason }))?;
        timer.set(pause);
        let mut grace = Countdown::new(self.rules.start_grace);
        loop {
            let event = tokio::select! {
                biased;
                _ = self.stdout.fill() => Event::Bytes,
                _ = self.results.fill() => Event::Bytes,
                _ = self.process.exited() => Event::End,
                () = timer.expired() => Event::Probe,
                () = logs.pump() => unreachable!("a pump never ends"),
            };
            if let Event::End = event {
                // What it wrote before it ended is in the pipes.
                self.read_all();
            }
            if let Some(verdict) = self.evidence(logs)? {
                // A handshake of a process that has ended is no sign of life.
                if self.process.exit().is_none() {
                    return Ok(verdict);
                }
            }
            // Whoever floods its log at the start waits for our reader.
            logs.relieve().await;
            match event {
                Event::Bytes => {
                    if self.results.has_ended() && self.stdout.has_ended() {
                        return Err(self.closed(logs).await);
                    }
                }
                Event::End => return Err(self.ended(Stage::BeforeReady, logs)),
                Event::Probe => {
                    grace.count(pause);
                    // In proportion to its age, so that none waits half as long again as it takes.
                    pause = (pause * 3 / 2).min(MAX_PAUSE);
                    let seen = self.probe();
                    self.waiting_for_input = seen == WaitState::WaitsOnStdin;
                    let is_up = match seen {
                        WaitState::WaitsOnStdin => true,
                        WaitState::Busy => false,
                        WaitState::Unknown => grace.is_over(),
                    };
                    timer.set(pause);
                    if is_up && self.may_decide_by_waiting() {
                        // It may have spoken right before it waited.
                        self.read_all();
                        let evidence = if self.waiting_for_input { Evidence::WaitsForInput } else { Evidence::Grace };
                        return Ok(self.evidence(logs)?.unwrap_or(Verdict::ActionLoop(evidence)));
                    }
                }
            }
        }
    }

    /// Looks at what the process waits for, twice where that decides.
    fn probe(&self) -> WaitState {
        let probe = || probe(self.process.pid, self.stdin.pipe());
        match probe() {
            WaitState::WaitsOnStdin if self.may_decide_by_waiting() => {
                std::thread::sleep(SECOND_LOOK);
                probe()
            }
            other => other,
        }
    }

    /// Reads what stands in the pipes by now.
    fn read_all(&mut self) {
        while let Ok(Fill::Some) = self.stdout.try_fill() {}
        while let Ok(Fill::Some) = self.results.try_fill() {}
    }

    fn may_decide_by_waiting(&self) -> bool {
        match self.rules.protocol {
            Protocol::Auto | Protocol::ActionLoop => !self.rules.wait_for_ack,
            Protocol::PipeLoop | Protocol::Streams | Protocol::SingleShot => false,
        }
    }

    /// What the lines say that are there.
    fn evidence(&mut self, logs: &mut Logs) -> Result<Option<Verdict>, Error> {
        let protocol = self.rules.protocol;
        while let Some(line) = self.results.next_line() {
            match Hello::parse(&line) {
                Some(hello) if protocol != Protocol::ActionLoop && hello.version.is_some() => {
                    return hello.verdict(ResultChannel::Descriptor3, protocol).map(Some);
                }
                Some(hello) if demanded(protocol).is_none() && hello.acknowledges() => {
                    return Ok(Some(Verdict::ActionLoop(Evidence::Acknowledgement)));
                }
                _ if protocol == Protocol::ActionLoop && self.rules.wait_for_ack => {
                    return Err(wrong_first_line(ACK, &line, ResultChannel::Descriptor3));
                }
                _ => logs.say(&format!(
                    "pipeloop: dropped a line on descriptor 3 that is no handshake: {}",
                    crate::text::excerpt(&line)
                )),
            }
        }
        if self.results.pending_len() > MAX_HANDSHAKE {
            let bytes = self.results.take_rest();
            logs.say(&format!(
                "pipeloop: dropped bytes on descriptor 3 that are no handshake: {}",
                crate::text::excerpt(&bytes)
            ));
        }
        if protocol == Protocol::ActionLoop {
            // Standard output is a log here, handshake or not.
            let rest = self.stdout.take_rest();
            self.note(&rest);
            logs.stdout.feed(&rest);
            return Ok(None);
        }
        while let Some(line) = self.stdout.next_line() {
            match Hello::parse(&line) {
                Some(hello) if hello.version.is_some() => {
                    return hello.verdict(ResultChannel::Stdout, protocol).map(Some);
                }
                _ => {
                    if let Some(handshake) = demanded(protocol) {
                        return Err(wrong_first_line(handshake, &line, ResultChannel::Stdout));
                    }
                    self.note(&line);
                    logs.stdout.feed_line(&line);
                }
            }
        }
        if self.stdout.pending_len() > MAX_HANDSHAKE {
            let bytes = self.stdout.take_rest();
            if let Some(handshake) = demanded(protocol) {
                return Err(wrong_first_line(handshake, &bytes, ResultChannel::Stdout));
            }
            logs.stdout.feed(&bytes);
        }
        Ok(None)
    }

    /// Keeps the first line that is no handshake, for the message.
    fn note(&mut self, printed: &[u8]) {
        let line = printed.trim_ascii_start().split(|byte| *byte == b'\n').next().unwrap_or_default();
        if self.other_line.is_none() && !line.is_empty() {
            self.other_line = Some(String::from_utf8_lossy(line.trim_ascii_end()).into_owned());
        }
    }

    fn conversation(self, verdict: Verdict, logs: &mut Logs) -> Ready {
        let (evidence, channel) = match verdict {
            Verdict::Version1 { channel, .. } | Verdict::Version2 { channel, .. } => {
                (Evidence::Handshake(channel), channel)
            }
            Verdict::ActionLoop(evidence) => (evidence, ResultChannel::Descriptor3),
        };
        let results = match channel {
            // Nobody reads descriptor 3 any more: a write to it is an error over there.
            ResultChannel::Stdout => self.stdout,
            ResultChannel::Descriptor3 => {
                let (stdout, read) = self.stdout.into_parts();
                logs.stdout.attach(stdout, &read);
                self.results
            }
        };
        let link = Link::new(self.stdin, results, channel);
        let conversation = match verdict {
            Verdict::Version1 { sends, .. } => Conversation::PipeLoop(PipeLoop::new(link, sends)),
            Verdict::ActionLoop(_) => Conversation::PipeLoop(PipeLoop::new(link, Sends::Activation)),
            Verdict::Version2 { promises, .. } => Conversation::Multiplex(Multiplex::new(link, promises)),
        };
        Ready { conversation, evidence }
    }

    fn ended(&mut self, stage: Stage, logs: &mut Logs) -> Error {
        // An unfinished line of stdout is a log line too.
        let rest = self.stdout.take_rest();
        logs.stdout.feed(&rest);
        logs.detach();
        self.note(&rest);
        let stage = match (stage, self.other_line.take()) {
            (Stage::BeforeReady, Some(line)) => Stage::AfterLine { line },
            (stage, _) => stage,
        };
        Error::Start(StartError::EndedAtStart { ending: ending(self.process, logs), stage })
    }

    /// Both channels are closed: it is about to end, or has made itself a daemon.
    async fn closed(&mut self, logs: &mut Logs) -> Error {
        let _ = time::timeout(self.rules.start_grace, self.process.exited()).await;
        let stage = if self.process.exit().is_some() { Stage::BeforeReady } else { Stage::ChannelClosed };
        self.ended(stage, logs)
    }

    fn too_late(&self, logs: &Logs) -> Error {
        let limit = self.rules.init_timeout;
        match self.rules.protocol {
            protocol @ (Protocol::PipeLoop | Protocol::Streams) if self.waiting_for_input => {
                Error::Start(StartError::NoHandshake { protocol: protocol.name() })
            }
            protocol => Error::Start(StartError::NotReady {
                limit,
                awaited: match protocol {
                    Protocol::PipeLoop => r#"has not sent its handshake `{"openwhisk":1}` on stdout"#,
                    Protocol::Streams => r#"has not sent its handshake `{"openwhisk":2}` on stdout"#,
                    Protocol::Auto if self.rules.wait_for_ack => {
                        "has neither sent a handshake nor acknowledged with `{\"ok\":true}` on descriptor 3"
                    }
                    Protocol::ActionLoop if self.rules.wait_for_ack => {
                        r#"has not acknowledged with `{"ok":true}` on descriptor 3"#
                    }
                    _ => "neither sent a handshake nor waits for input",
                },
                tail: logs.stderr.tail(),
            }),
        }
    }
}

enum Event {
    Bytes,
    End,
    Probe,
}

/// How a process ended, for a message: its exit as far as it is known now.
#[must_use]
pub fn ending(process: &Process, logs: &Logs) -> Ending {
    let exit = process.exit();
    Ending {
        status: exit.map(|exit| exit.status),
        lived: exit.map_or_else(|| process.started.elapsed(), |exit| exit.at - process.started),
        tail: logs.stderr.tail().into(),
        said: logs.stderr.kept().into(),
        oom_kills: process.oom_kills(),
    }
}
