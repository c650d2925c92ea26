//! From a started process to a conversation, or to the reason why there is none.
//!
//! Whichever comes first decides: a handshake on stdout or descriptor 3, an acknowledgement on
//! descriptor 3, the process waiting for its input, its end. `docs/protocol.md`, "Readiness", has
//! the rules for authors.

use std::time::Duration;

use serde_json::value::RawValue;

use crate::activation::Object;
use crate::error::{Ending, Error, ProxyError, Stage, StartError};
use crate::logs::Logs;
use crate::process::Process;
use crate::process::spawn::Pipes;
use crate::process::wait_state::{Alarm, Probe, look};
use crate::time;

use super::Protocol;
use super::conversation::Conversation;
use super::line::{Fill, LineReader, LineWriter};
use super::multiplex::{MAX_CONCURRENT, Multiplex, Promises};
use super::pipe_loop::{Channel, PipeLoop, Sends};

/// What a handshake must look like, for messages.
const HANDSHAKE: &str = r#"{"openwhisk":1}"#;
const HANDSHAKE_2: &str = r#"{"openwhisk":2}"#;
/// What an acknowledgement must look like, for messages.
const ACK: &str = r#"{"ok":true}"#;

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
    Handshake(Channel),
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

/// Whether a line is a handshake, of whatever version.
#[must_use]
pub fn is_handshake(line: &[u8]) -> bool {
    Hello::parse(line).is_some_and(|hello| hello.version.is_some())
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

/// What the evidence says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Version1 { channel: Channel, sends: Sends },
    Version2 { channel: Channel, promises: Promises },
    ActionLoop(Evidence),
}

impl Start<'_> {
    async fn verdict(&mut self, logs: &mut Logs) -> Result<Verdict, Error> {
        let mut pause = FIRST_LOOK;
        let alarm = Alarm::new().map_err(|reason| Error::Proxy(ProxyError::System { doing: "set a timer", reason }))?;
        alarm.set(pause);
        // Counted, not taken from the clock, which goes on while all of us are frozen.
        let mut watched = Duration::ZERO;
        loop {
            let event = tokio::select! {
                biased;
                _ = self.stdout.fill() => Event::Bytes,
                _ = self.results.fill() => Event::Bytes,
                _ = self.process.exited() => Event::End,
                () = alarm.rings() => Event::Probe,
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
                    watched += pause;
                    // In proportion to its age, so that none waits half as long again as it takes.
                    pause = (pause * 3 / 2).min(MAX_PAUSE);
                    let seen = self.look();
                    self.waiting_for_input = seen == Probe::WaitsForInput;
                    let is_up = match seen {
                        Probe::WaitsForInput => true,
                        Probe::Busy => false,
                        Probe::Unknown => watched >= self.rules.start_grace,
                    };
                    alarm.set(pause);
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
    fn look(&self) -> Probe {
        let look = || look(self.process.pid, self.stdin.pipe());
        match look() {
            Probe::WaitsForInput if self.may_decide_by_waiting() => {
                std::thread::sleep(SECOND_LOOK);
                look()
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
                    return hello.verdict(Channel::Descriptor3, protocol).map(Some);
                }
                Some(hello) if demanded(protocol).is_none() && hello.acknowledges() => {
                    return Ok(Some(Verdict::ActionLoop(Evidence::Acknowledgement)));
                }
                _ if protocol == Protocol::ActionLoop && self.rules.wait_for_ack => {
                    return Err(wrong_first_line(ACK, &line, "descriptor 3"));
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
                Some(hello) if hello.version.is_some() => return hello.verdict(Channel::Stdout, protocol).map(Some),
                _ => {
                    if let Some(handshake) = demanded(protocol) {
                        return Err(wrong_first_line(handshake, &line, "stdout"));
                    }
                    self.note(&line);
                    logs.stdout.feed_line(&line);
                }
            }
        }
        if self.stdout.pending_len() > MAX_HANDSHAKE {
            let bytes = self.stdout.take_rest();
            if let Some(handshake) = demanded(protocol) {
                return Err(wrong_first_line(handshake, &bytes, "stdout"));
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
            Verdict::ActionLoop(evidence) => (evidence, Channel::Descriptor3),
        };
        let results = match channel {
            // Nobody reads descriptor 3 any more: a write to it is an error over there.
            Channel::Stdout => self.stdout,
            Channel::Descriptor3 => {
                let (stdout, read) = self.stdout.into_parts();
                logs.stdout.attach(stdout, &read);
                self.results
            }
        };
        let stdin = self.stdin;
        let pipe_loop = |stdin, results, sends| Conversation::PipeLoop(PipeLoop::new(stdin, results, sends, channel));
        let conversation = match verdict {
            Verdict::Version1 { sends, .. } => pipe_loop(stdin, results, sends),
            Verdict::ActionLoop(_) => pipe_loop(stdin, results, Sends::Activation),
            Verdict::Version2 { promises, .. } => {
                Conversation::Multiplex(Multiplex::new(stdin, results, channel, promises))
            }
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
            Protocol::PipeLoop if self.waiting_for_input => Error::Start(StartError::NoHandshake { protocol: "1" }),
            Protocol::Streams if self.waiting_for_input => Error::Start(StartError::NoHandshake { protocol: "2" }),
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

/// The handshake without which a protocol that was asked for by name does not begin.
fn demanded(protocol: Protocol) -> Option<&'static str> {
    match protocol {
        Protocol::PipeLoop => Some(HANDSHAKE),
        Protocol::Streams => Some(HANDSHAKE_2),
        Protocol::SingleShot | Protocol::ActionLoop | Protocol::Auto => None,
    }
}

fn wrong_first_line(expected: &'static str, line: &[u8], channel: &'static str) -> Error {
    Error::Start(StartError::WrongFirstLine { expected, line: String::from_utf8_lossy(line).into_owned(), channel })
}

/// A handshake or acknowledgement. Members that are not known are ignored, so that it can grow; of
/// those that are, `null` is as if it were left out.
struct Hello<'a> {
    line: &'a [u8],
    /// The version of the protocol.
    version: Option<&'a RawValue>,
    /// Whether whole activations are wanted in place of bare arguments.
    context: Option<&'a RawValue>,
    /// What version 2 promises.
    concurrency: Option<&'a RawValue>,
    cancel: Option<&'a RawValue>,
    pause: Option<&'a RawValue>,
    stop: Option<&'a RawValue>,
    /// The dialect's acknowledgement.
    ok: Option<&'a RawValue>,
}

impl<'a> Hello<'a> {
    /// `None` for a line that is neither handshake nor acknowledgement.
    fn parse(line: &'a [u8]) -> Option<Self> {
        // A log line is passed over without being parsed.
        if !line.starts_with(b"{") {
            return None;
        }
        let mut hello = Self {
            line,
            version: None,
            context: None,
            concurrency: None,
            cancel: None,
            pause: None,
            stop: None,
            ok: None,
        };
        for (name, raw) in Object::parse("handshake", line).ok()?.members {
            let known = match &*name {
                "openwhisk" => &mut hello.version,
                "context" => &mut hello.context,
                "concurrency" => &mut hello.concurrency,
                "cancel" => &mut hello.cancel,
                "pause" => &mut hello.pause,
                "stop" => &mut hello.stop,
                "ok" => &mut hello.ok,
                _ => continue,
            };
            *known = Some(raw).filter(|raw| raw.get() != "null");
        }
        (hello.version.is_some() || hello.ok.is_some()).then_some(hello)
    }

    fn acknowledges(&self) -> bool {
        self.ok.is_some_and(|ok| ok.get() == "true")
    }

    /// What it says, if `protocol`, which was asked for, lets it say that.
    fn verdict(&self, channel: Channel, protocol: Protocol) -> Result<Verdict, Error> {
        let version = self.version.map_or("", RawValue::get);
        match (version, demanded(protocol)) {
            ("1", Some(handshake @ HANDSHAKE_2)) | ("2", Some(handshake @ HANDSHAKE)) => {
                Err(wrong_first_line(handshake, self.line, channel.name()))
            }
            ("1", _) => {
                let sends = if self.flag("context", self.context)? { Sends::Activation } else { Sends::Arguments };
                Ok(Verdict::Version1 { channel, sends })
            }
            ("2", _) => Ok(Verdict::Version2 { channel, promises: self.promises()? }),
            _ if version.trim_start_matches('-').bytes().all(|byte| byte.is_ascii_digit()) => {
                Err(Error::Start(StartError::UnsupportedVersion { version: crate::text::excerpt(version.as_bytes()) }))
            }
            _ => Err(self.bad("openwhisk", "a version, which is a whole number", version)),
        }
    }

    fn promises(&self) -> Result<Promises, Error> {
        let concurrency = match self.concurrency {
            None => 1,
            Some(raw) => raw
                .get()
                .parse()
                .ok()
                .filter(|count| (1..=MAX_CONCURRENT).contains(count))
                .ok_or_else(|| self.bad("concurrency", "a whole number from 1 to 1024", raw.get()))?,
        };
        Ok(Promises {
            concurrency,
            cancel: self.flag("cancel", self.cancel)?,
            pause: self.flag("pause", self.pause)?,
            stop: self.flag("stop", self.stop)?,
        })
    }

    fn flag(&self, member: &'static str, raw: Option<&RawValue>) -> Result<bool, Error> {
        match raw.map_or("false", RawValue::get) {
            "true" => Ok(true),
            "false" => Ok(false),
            other => Err(self.bad(member, "`true` or `false`", other)),
        }
    }

    fn bad(&self, member: &'static str, expected: &'static str, found: &str) -> Error {
        let line = String::from_utf8_lossy(self.line).into_owned();
        Error::Start(StartError::BadHandshake { member, expected, found: crate::text::excerpt(found.as_bytes()), line })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_2_promises_what_can_be_kept() {
        let promises =
            |line: &str| match Hello::parse(line.as_bytes()).unwrap().verdict(Channel::Stdout, Protocol::Auto) {
                Ok(Verdict::Version2 { promises, .. }) => Ok(promises),
                Ok(other) => panic!("{other:?}"),
                Err(error) => Err((error.code(), error.to_string())),
            };
        let none = Promises { concurrency: 1, cancel: false, pause: false, stop: false };
        assert_eq!(promises(r#"{"openwhisk":2}"#), Ok(none));
        assert_eq!(promises(r#"{"openwhisk":2,"concurrency":null,"more":[]}"#), Ok(none));
        assert_eq!(
            promises(r#"{"openwhisk":2,"concurrency":1024,"cancel":true,"pause":true,"stop":true}"#),
            Ok(Promises { concurrency: 1024, cancel: true, pause: true, stop: true })
        );
        for nonsense in
            ["0", "1025", "-1", "1.5", "1e3", "1e9", "99999999999999999999", r#""many""#, "true", "[]", "{}"]
        {
            let (code, sentence) = promises(&format!(r#"{{"openwhisk":2,"concurrency":{nonsense}}}"#)).unwrap_err();
            assert_eq!(code, "PL056");
            let expected = format!(
                "`concurrency` of the action's handshake must be a whole number from 1 to 1024, got `{nonsense}`"
            );
            assert!(sentence.starts_with(&expected), "{sentence}");
        }
        for member in ["cancel", "pause", "stop"] {
            for nonsense in ["1", r#""true""#, "{}"] {
                let (code, sentence) = promises(&format!(r#"{{"openwhisk":2,"{member}":{nonsense}}}"#)).unwrap_err();
                assert!(code == "PL056" && sentence.starts_with(&format!("`{member}` ")), "{sentence}");
            }
        }
    }

    #[test]
    fn a_protocol_by_name_wants_its_own_handshake() {
        let code = |version: u8, protocol: Protocol| {
            let line = format!(r#"{{"openwhisk":{version}}}"#);
            Hello::parse(line.as_bytes())
                .unwrap()
                .verdict(Channel::Stdout, protocol)
                .map_err(|error| error.code())
                .err()
        };
        assert_eq!(code(2, Protocol::PipeLoop), Some("PL053"));
        assert_eq!(code(1, Protocol::Streams), Some("PL053"));
        assert_eq!(code(9, Protocol::Streams), Some("PL054"));
        assert_eq!((code(1, Protocol::PipeLoop), code(2, Protocol::Streams)), (None, None));
    }

    #[test]
    fn handshakes_may_grow() {
        let verdict =
            |line: &str| Hello::parse(line.as_bytes()).map(|hello| hello.verdict(Channel::Stdout, Protocol::Auto));
        let arguments = Verdict::Version1 { channel: Channel::Stdout, sends: Sends::Arguments };
        let activation = Verdict::Version1 { channel: Channel::Stdout, sends: Sends::Activation };
        assert_eq!(verdict(r#"{"openwhisk":1}"#).unwrap().unwrap(), arguments);
        assert_eq!(verdict(r#"{ "openwhisk" : 1 , "name":"x"}"#).unwrap().unwrap(), arguments);
        assert_eq!(verdict(r#"{"openwhisk":1,"context":true}"#).unwrap().unwrap(), activation);
        assert_eq!(verdict(r#"{"openwhisk":9}"#).unwrap().unwrap_err().code(), "PL054");
        assert_eq!(verdict(r#"{"openwhisk":1,"context":null}"#).unwrap().unwrap(), arguments);
        for wrong in [
            r#"{"openwhisk":"1"}"#,
            r#"{"openwhisk":1.5}"#,
            r#"{"openwhisk":[1]}"#,
            r#"{"openwhisk":true}"#,
            r#"{"openwhisk":1,"context":"yes"}"#,
            r#"{"openwhisk":1,"context":1}"#,
        ] {
            let error = verdict(wrong).unwrap().unwrap_err();
            assert_eq!(error.code(), "PL056", "{wrong}");
            assert!(error.to_string().ends_with(&format!(": `{wrong}`")), "{error}");
        }
        // Members of a version that is not known here may be of any type.
        assert_eq!(verdict(r#"{"openwhisk":9,"context":"yes"}"#).unwrap().unwrap_err().code(), "PL054");
        assert!(verdict(r#"{"hello":"world"}"#).is_none());
        assert!(verdict(r#"{"context":"yes"}"#).is_none());
        assert!(verdict(r#"{"openwhisk":null}"#).is_none());
        assert!(verdict(r#"{"openwhisk":1"#).is_none());
        assert!(verdict("ready").is_none());
        assert!(verdict("{}").is_none());
    }
}
