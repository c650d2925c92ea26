//! The checks of answers: one activation after another, with arguments of all kinds.

use std::time::Duration;

use serde_json::Value;

use crate::error::{BadAnswer, Error, RunError};
use crate::protocol::Protocol;
use crate::text::{excerpt, millis};

use super::arguments::{Arguments, IN_A_ROW, Seen, mark_in, unicode_in};
use super::finding::Finding;
use super::report::{Check, Fault, Name, Verdict};
use super::{Answered, CheckRun, Failure, streams};

impl CheckRun<'_> {
    /// The first activation shows how it answers at all. Whether others can be had.
    pub(super) async fn first(&mut self) -> bool {
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
            Failure::NoHandshake { .. } => Name::Protocol,
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
        self.fail(blamed, &trouble);
        false
    }

    /// The same again, from the same process.
    pub(super) async fn second(&mut self) {
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
    pub(super) async fn variations(&mut self) {
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
            Err(Failure::Error(Error::Run(RunError::BadAnswer {
                problem: problem @ BadAnswer::NotJson { .. },
                ..
            }))) => {
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

    pub(super) async fn vary(&mut self, name: Name, arguments: &Value, seen: &str) {
        match self.activate(name, arguments).await {
            Ok(answered) => self.settle(Check::passed(name, seen).took(answered.took)),
            Err(trouble) => self.fail(name, &trouble),
        }
    }

    /// Several activations, each with its own answer.
    pub(super) async fn in_a_row(&mut self) {
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
                    self.alone.failures += usize::from(streams::is_failure(&answer));
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
        self.alone.took = Some(each);
        let own = if echoes == IN_A_ROW { "each got its own answer" } else { "all answered" };
        let seen = format!("{own}; the slowest in {}", precise(longest));
        self.settle(Check::passed(Name::Sequence, seen).took(each));
    }

    /// Whether anything came on the result channel beside the answers.
    pub(super) fn judge_channel(&mut self) {
        if self.is_settled(Name::Channel) {
            return;
        }
        let channel = self.channel;
        let check = match self.strays.first() {
            None => Check::passed(Name::Channel, format!("nothing but answers on {channel}")),
            Some(line) => {
                let line = line.clone();
                self.failure(Name::Channel, Finding::Stray { channel, line })
            }
        };
        self.settle(check);
    }
}

/// An answer for a line of the report.
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
