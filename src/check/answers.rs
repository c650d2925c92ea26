//! The checks of answers: one activation after another, with many kinds of arguments.

use std::time::Duration;

use serde_json::Value;

use crate::error::{BadAnswer, Error, RunError, StartError};
use crate::protocol::Protocol;
use crate::text::{excerpt, millis};

use super::arguments::{Arguments, Echo, SEQUENCE_LENGTH, mark_echo, unicode_echo};
use super::finding::Finding;
use super::report::{Check, Fault, Name, Verdict};
use super::settle::Failure;
use super::{Answered, CheckRun, concurrency};

impl CheckRun<'_> {
    /// The first activation shows how the action answers. Returns whether to send others.
    pub(super) async fn first_activation(&mut self) -> bool {
        let arguments = self.arguments.base();
        let answered = self.activate(Name::Answers, &arguments).await;
        // The first activation may show another protocol than the start.
        let (protocol, evidence) =
            self.report.protocol.zip(self.report.evidence).expect("a process that is ready has shown its protocol");
        let spoken = self.describe_protocol(protocol, evidence);
        let failure = match answered {
            Ok(Answered { answer, took }) => {
                self.settle(Check::passed(Name::Protocol, spoken));
                self.settle(Check::passed(Name::Answers, shown(&answer)).took(took));
                self.settle(Check::passed(Name::Flushed, "its answer comes before its input ends"));
                self.settle(Check::passed(Name::Framing, "an object or array on a line of its own"));
                return true;
            }
            Err(failure) => failure,
        };
        let blamed = match &failure {
            Failure::NoHandshake { .. } | Failure::Error(Error::Start(StartError::NearlyHandshake { .. })) => {
                Name::Protocol
            }
            Failure::Finding(Finding::NotFlushed { .. }) => Name::Flushed,
            Failure::Finding(Finding::Stray { .. }) => Name::Channel,
            Failure::Finding(Finding::Frame { .. }) => Name::Ids,
            Failure::Error(Error::Run(RunError::BadFrame { .. })) => Name::Framing,
            Failure::Error(Error::Run(RunError::BadAnswer { problem, .. })) if *problem != BadAnswer::Nothing => {
                Name::Framing
            }
            _ => Name::Answers,
        };
        if blamed != Name::Protocol {
            self.settle(Check::passed(Name::Protocol, spoken));
        }
        if matches!(blamed, Name::Flushed | Name::Framing | Name::Channel | Name::Ids) {
            self.settle(Check::passed(Name::Answers, "something comes back"));
        }
        if matches!(blamed, Name::Framing | Name::Channel | Name::Ids) {
            self.settle(Check::passed(Name::Flushed, "it comes before its input ends"));
        }
        if blamed == Name::Ids {
            self.settle(Check::passed(Name::Framing, "a frame on a line of its own"));
        }
        self.fail(blamed, &failure);
        false
    }

    /// The same arguments again, for the same process.
    pub(super) async fn second_activation(&mut self) {
        let pid = self.pid();
        let arguments = self.arguments.base();
        let check = match self.activate(Name::Reused, &arguments).await {
            Ok(answered) if self.pid() == pid => {
                Check::passed(Name::Reused, "the same process answers again").took(answered.took)
            }
            Ok(answered) => {
                // The process exited by itself before the second activation reached it.
                self.one_activation_each = true;
                let fault = Fault {
                    code: "PL061",
                    reason: "it exits after an answer, and is started again for each activation".into(),
                    hint: Some(
                        "read until the input ends; for a program that handles one activation, use `--protocol 0`"
                            .into(),
                    ),
                };
                Check::warning(Name::Reused, fault).took(answered.took)
            }
            Err(failure) => {
                self.one_activation_each = true;
                return self.fail(Name::Reused, &failure);
            }
        };
        self.settle(check);
    }

    /// Many kinds of arguments, an activation each.
    pub(super) async fn check_argument_kinds(&mut self) {
        let arguments = self.arguments.unicode();
        match self.activate(Name::Unicode, &arguments).await {
            Ok(Answered { answer, took }) => {
                let check = match unicode_echo(&answer) {
                    Echo::Intact => Check::passed(Name::Unicode, "comes back unchanged"),
                    Echo::Absent => Check::passed(Name::Unicode, "answered; the answer does not contain it"),
                    Echo::Mangled(how) => {
                        let reason = format!("{how}: {}", excerpt(&answer));
                        self.failure(Name::Unicode, Finding::Unicode { reason })
                    }
                };
                self.settle(check.took(took));
            }
            Err(Failure::Error(Error::Run(RunError::BadAnswer {
                problem: problem @ BadAnswer::NotJson { .. },
                ..
            }))) => {
                let check = self.failure(Name::Unicode, Finding::Unicode { reason: problem.to_string() });
                self.settle(check);
            }
            Err(failure) => self.fail(Name::Unicode, &failure),
        }
        let quotes = self.arguments.quotes();
        self.check_arguments(Name::Quotes, &quotes, "answered, with quotes and backslashes in a text").await;
        let nested = self.arguments.nested();
        self.check_arguments(Name::Nested, &nested, "answered, with every type, 20 levels deep").await;
        self.check_arguments(Name::Empty, &Arguments::empty(), "answered").await;
        self.check_arguments(Name::Unknown, &Arguments::unknown(), "answered").await;
        let large = self.arguments.large();
        self.check_arguments(Name::Large, &large, "answered").await;
    }

    pub(super) async fn check_arguments(&mut self, name: Name, arguments: &Value, seen: &str) {
        match self.activate(name, arguments).await {
            Ok(answered) => self.settle(Check::passed(name, seen).took(answered.took)),
            Err(failure) => self.fail(name, &failure),
        }
    }

    /// Several activations in sequence, each with its own answer.
    pub(super) async fn check_sequence(&mut self) {
        if self.one_activation_each && self.plan.settings.protocol != Protocol::SingleShot {
            return self.settle(Check::new(Name::Sequence, Verdict::NotReached, "the process answers only once"));
        }
        let (mut total, mut longest, mut echoes) = (Duration::ZERO, Duration::ZERO, 0);
        for number in 0..SEQUENCE_LENGTH {
            let arguments = self.arguments.numbered(number);
            match self.activate(Name::Sequence, &arguments).await {
                Ok(Answered { answer, took }) => {
                    total += took;
                    longest = longest.max(took);
                    self.baseline.failures += usize::from(concurrency::is_failure(&answer));
                    match mark_echo(&answer, number) {
                        Echo::Intact => echoes += 1,
                        Echo::Absent => {}
                        Echo::Mangled(how) => {
                            let fault = Fault {
                                code: "PL095",
                                reason: format!("the answer to activation {} is not its own: {how}", number + 1),
                                hint: Some("answer each line with exactly one line, before you read the next".into()),
                            };
                            let check = self.failure(Name::Sequence, fault);
                            return self.settle(check);
                        }
                    }
                }
                Err(failure) => return self.fail(Name::Sequence, &failure),
            }
        }
        let each = total / u32::try_from(SEQUENCE_LENGTH).expect("ten is small");
        self.baseline.took = Some(each);
        let own = if echoes == SEQUENCE_LENGTH { "each got its own answer" } else { "all answered" };
        let seen = format!("{own}; the slowest in {}", precise(longest));
        self.settle(Check::passed(Name::Sequence, seen).took(each));
    }

    /// Whether anything but answers came on the result channel.
    pub(super) fn judge_channel(&mut self) {
        if self.is_settled(Name::Channel) {
            return;
        }
        let channel = self.channel;
        let check = match self.strays.first() {
            None => Check::passed(Name::Channel, format!("nothing but answers on {}", channel.name())),
            Some(line) => {
                let line = line.clone();
                self.failure(Name::Channel, Finding::Stray { channel, line })
            }
        };
        self.settle(check);
    }
}

/// An answer, shortened for a line of the report.
pub(super) fn shown(answer: &[u8]) -> String {
    const MAX_CHARS: usize = 60;
    let text = String::from_utf8_lossy(answer);
    match text.char_indices().nth(MAX_CHARS) {
        Some((cut, _)) => format!("{}… ({} bytes)", &text[..cut], answer.len()),
        None => text.into_owned(),
    }
}

/// A duration that may be far below a millisecond.
pub(super) fn precise(duration: Duration) -> String {
    if duration < Duration::from_millis(1) { format!("{} µs", duration.as_micros()) } else { millis(duration) }
}
