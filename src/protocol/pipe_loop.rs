//! Version 1 of the protocol, the pipe loop, its actionloop dialect, and filters, which know no protocol.
//!
//! One line in, one line out, one activation at a time. Knows lines and their bounds; knows no HTTP
//! and no pid. A process that dies shows as end-of-file or as its exit; the caller then reports why.

use bytes::Bytes;

use crate::activation::{Activation, Answer};
use crate::error::{BadAnswer, Error, Silence};
use crate::logs::Logs;
use crate::process::Process;
use crate::process::spawn::ResultChannel;
use crate::text::excerpt;

use super::Protocol;
use super::answer;
use super::conversation::Conversation;
use super::handshake::{self, Handshake};
use super::line::{Fill, LineReader};
use super::link::{Link, MAX_STRAYS, Transfer};
use super::silence::{Looks, TakesLong};

/// What the process gets for each activation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Payload {
    /// Only the arguments: version 1.
    Arguments,
    /// The whole activation: the actionloop dialect, and version 1 with `"context":true`.
    Activation,
}

/// The conversation with a process that is ready.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own about the conversation")]
pub struct PipeLoop {
    link: Link,
    payload: Payload,
    /// Whether the process knows no protocol.
    is_filter: bool,
    /// Whether the process was sent an activation.
    was_sent_one: bool,
    /// Whether to refuse activations after a stray.
    reports_strays: bool,
    /// Whether the process may still announce its protocol: it counts as ready on weaker evidence, and has not
    /// answered yet.
    undecided: bool,
    /// A handshake on descriptor 3 that came since.
    announcement: Option<Bytes>,
    takes_long: TakesLong,
}

/// Why [`PipeLoop::idle`] returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IdleEnd {
    /// The result channel has ended.
    ChannelEnded,
    /// The process has announced its protocol. The conversation must be [switched](Conversation::switch) to it.
    Announced,
}

/// Why there is no answer. After any of these but [`NoAnswer::Bad`] the process must be stopped.
#[derive(Debug)]
pub enum NoAnswer {
    /// The answer is unusable. The conversation goes on.
    Bad(BadAnswer),
    /// The process has exited or closed its result channel.
    Gone {
        /// The beginning of a line without its end.
        partial: Vec<u8>,
        /// Whether it is certain that the process read no byte of the activation, so that another process
        /// may get it.
        untouched: bool,
    },
    /// The answer is over the limit.
    TooLong,
    /// The process waits for the next activation, and cannot answer this one any more.
    Silent(Silence),
    /// The process has written an extra line since its first activation, so it was not sent this one.
    /// Only after [`PipeLoop::report_strays`].
    Strayed,
    /// The process has announced its protocol, so the activation must be sent in the form of that one.
    Announced {
        /// Whether the process may have read the activation in its present form; it must be stopped then. Otherwise
        /// the conversation is to be [switched](Conversation::switch).
        was_read: bool,
    },
}

/// How many stray bytes are collected before they are dropped.
const MAX_STRAY_BYTES: usize = 1024 * 1024;

impl PipeLoop {
    /// Begins a conversation over this link.
    #[must_use]
    pub fn new(link: Link, payload: Payload) -> Self {
        Self {
            link,
            payload,
            is_filter: false,
            was_sent_one: false,
            reports_strays: false,
            undecided: false,
            announcement: None,
            takes_long: TakesLong::default(),
        }
    }

    /// From now on gives up an activation that can never be answered, once this says that it takes long.
    pub fn give_up_silent(&mut self, takes_long: TakesLong) {
        self.takes_long = takes_long;
    }

    /// Begins a conversation with a program that turns a line into a line, and knows no protocol.
    #[must_use]
    pub fn of_filter(link: Link) -> Self {
        Self { is_filter: true, ..Self::new(link, Payload::Arguments) }
    }

    /// Until the first answer a handshake on descriptor 3, or one that the log of stdout was watched for, decides
    /// which protocol the process speaks.
    pub(super) fn leave_undecided(&mut self) {
        self.undecided = true;
    }

    /// Whether the process has announced its protocol.
    fn has_announced(&self, logs: &Logs) -> bool {
        self.undecided && (self.announcement.is_some() || logs.stdout.has_caught())
    }

    /// Begins the conversation that the process has announced.
    ///
    /// # Errors
    /// As for a handshake during the start.
    pub(super) fn switch(mut self, logs: &mut Logs) -> Result<Conversation, Error> {
        let line = if let Some(line) = self.announcement.take() {
            line
        } else {
            let Some((line, source, rest)) = logs.stdout.release() else { return Ok(Conversation::PipeLoop(self)) };
            self.link.move_results(LineReader::resume(source, rest), ResultChannel::Stdout);
            line.into()
        };
        logs.stdout.unwatch();
        let Some(handshake) = Handshake::parse(&line) else { return Ok(Conversation::PipeLoop(self)) };
        let announced = handshake.announced(self.link.channel(), Protocol::Auto)?;
        Ok(Conversation::announced(self.link, announced))
    }

    /// The process has answered in the protocol that was assumed.
    fn decide(&mut self, logs: &mut Logs) {
        if std::mem::take(&mut self.undecided) {
            logs.stdout.unwatch();
        }
    }

    /// Both pipe ends.
    pub(super) fn link(&self) -> &Link {
        &self.link
    }

    /// As [`PipeLoop::link`].
    pub(super) fn link_mut(&mut self) -> &mut Link {
        &mut self.link
    }

    /// Gives up the conversation and keeps the link.
    pub(super) fn into_link(self) -> Link {
        self.link
    }

    /// From now on refuses to send an activation once the process has written an extra line.
    pub fn report_strays(&mut self) {
        self.reports_strays = true;
    }

    /// The protocol that the process speaks: version 1, the actionloop dialect, or filter.
    #[must_use]
    pub fn protocol(&self) -> Protocol {
        match (self.payload, self.link.channel()) {
            _ if self.is_filter => Protocol::Filter,
            (Payload::Activation, ResultChannel::Descriptor3) => Protocol::ActionLoop,
            _ => Protocol::PipeLoop,
        }
    }

    /// Sends one activation and waits for its answer. There is no time limit here.
    ///
    /// Must not be cancelled unless the process is stopped then: the answer of an abandoned
    /// activation would become the next one's.
    ///
    /// # Errors
    /// [`NoAnswer`].
    pub async fn interact(
        &mut self,
        activation: &mut Activation,
        limit_bytes: u64,
        process: &Process,
        logs: &mut Logs,
    ) -> Result<Answer, NoAnswer> {
        // A line that came since the last answer answers nothing. This is the last moment to look for
        // one: from here on a line is the answer.
        self.drop_strays(logs);
        if self.undecided {
            logs.drain();
            if self.has_announced(logs) {
                return Err(NoAnswer::Announced { was_read: false });
            }
        }
        if self.link.has_strayed() && self.reports_strays {
            return Err(NoAnswer::Strayed);
        }
        let line = match self.payload {
            Payload::Arguments => activation.arguments_line(),
            Payload::Activation => activation.whole_line(),
        };
        if self.undecided && mentions_handshake(line) {
            // The process may print or return what it was sent, and that announces nothing.
            self.undecided = false;
            logs.stdout.unwatch();
        }
        self.link.begin_activation();
        let looks = Looks::new(&self.takes_long, &self.link);
        let mut exchange = Exchange {
            link: &mut self.link,
            looks,
            unwritten: line,
            limit_bytes,
            strays: Vec::new(),
            undecided: self.undecided,
            announcement: None,
        };
        let answer = tokio::select! {
            biased;
            answer = exchange.answer(process) => answer,
            () = logs.pump_until_caught() => Err(NoAnswer::Announced { was_read: true }),
        };
        let strays = std::mem::take(&mut exchange.strays);
        self.announcement = exchange.announcement.take();
        if self.undecided {
            if let Err(NoAnswer::Gone { .. }) = answer {
                logs.drain();
            }
            if self.has_announced(logs) {
                let was_read = !self.link.take_back();
                self.link.end_activation();
                if was_read {
                    // The process may have answered to what it did not understand.
                    logs.stdout.drop_caught();
                }
                return Err(NoAnswer::Announced { was_read });
            }
        }
        self.decide(logs);
        self.link.end_activation();
        for stray in strays {
            self.log_stray(logs, &stray);
        }
        self.was_sent_one = true;
        if let Err(NoAnswer::Bad(BadAnswer::TwoLines { .. })) = answer {
            self.link.distrust();
        }
        answer
    }

    /// Watches the conversation while no activation is open, and drops lines that answer nothing. Returns
    /// when the result channel has ended, or when the process has announced its protocol.
    pub async fn idle(&mut self, logs: &mut Logs) -> IdleEnd {
        loop {
            if self.has_announced(logs) {
                return IdleEnd::Announced;
            }
            tokio::select! {
                transfer = self.link.transfer(&[], true) => {
                    if transfer == Transfer::Gone {
                        return IdleEnd::ChannelEnded;
                    }
                }
                () = logs.pump_until_caught() => continue,
            }
            self.drop_strays(logs);
        }
    }

    /// Logs and drops whole and partial lines on the result channel.
    fn drop_strays(&mut self, logs: &mut Logs) {
        while matches!(self.link.try_read(), Ok(Fill::Some)) {
            // A flood of strays must not fill memory.
            if self.link.pending().len() > MAX_STRAY_BYTES {
                break;
            }
        }
        while let Some(received) = self.link.next_line() {
            if self.undecided && handshake::is_handshake(&received.line) {
                self.announcement = Some(received.line);
                // What comes after it belongs to the conversation that it begins.
                return;
            }
            self.log_stray(logs, &received.line);
        }
        if let Some(partial) = self.link.take_partial() {
            self.log_stray(logs, &partial);
        }
    }

    fn log_stray(&mut self, logs: &mut Logs, line: &[u8]) {
        logs.say(&format!("pipeloop: dropped a line that answers no activation: {}", excerpt(line)));
        self.link.record_stray(line, self.was_sent_one);
    }
}

/// One activation on its way to the process, and its answer on its way back.
struct Exchange<'a> {
    link: &'a mut Link,
    unwritten: &'a [u8],
    limit_bytes: u64,
    /// The first lines that came before the process had read any of the activation.
    strays: Vec<Bytes>,
    /// Whether a handshake is none of the lines that answer.
    undecided: bool,
    announcement: Option<Bytes>,
    looks: Looks<'a>,
}

/// Whether a line that a process prints may be a handshake only because it was sent one.
fn mentions_handshake(activation: &[u8]) -> bool {
    memchr::memmem::find(activation, b"openwhisk\"").is_some()
}

impl Exchange<'_> {
    /// Writes and reads at the same time: a process may answer while it reads, as `cat` does.
    async fn answer(&mut self, process: &Process) -> Result<Answer, NoAnswer> {
        match self.link.try_write(self.unwritten) {
            Ok(written) => self.unwritten = &self.unwritten[written..],
            Err(_) => return self.drain_after_exit(),
        }
        if self.unwritten.is_empty()
            && let Some(answer) = self.answer_at_once()
        {
            return answer;
        }
        loop {
            tokio::select! {
                biased;
                transfer = self.link.transfer(self.unwritten, true) => match transfer {
                    Transfer::Read => {
                        if let Some(answer) = self.take_answer() {
                            return answer;
                        }
                    }
                    Transfer::Wrote(written) => self.unwritten = &self.unwritten[written..],
                    // A process that reads no more may have answered all the same.
                    Transfer::Gone => return self.drain_after_exit(),
                },
                _ = process.exited() => return self.drain_after_exit(),
                () = self.looks.due(), if self.unwritten.is_empty() => {
                    if let Some(silence) = self.looks.look(self.link, process) {
                        return Err(NoAnswer::Silent(silence));
                    }
                }
            }
        }
    }

    /// The answer of an action that only needed the CPU, where it shares the proxy's.
    fn answer_at_once(&mut self) -> Option<Result<Answer, NoAnswer>> {
        let answer = match self.link.try_read_after_yield()? {
            Ok(Fill::Some) => self.take_answer(),
            Ok(Fill::WouldBlock) => None,
            Ok(Fill::End) | Err(_) => Some(self.drain_after_exit()),
        };
        self.link.record_yield(answer.is_some());
        answer
    }

    /// Takes the answer, once the whole of it is there.
    fn take_answer(&mut self) -> Option<Result<Answer, NoAnswer>> {
        let too_long = |length: usize| length as u64 > self.limit_bytes;
        let line = loop {
            let Some(received) = self.link.next_line() else {
                return too_long(self.link.pending().len()).then_some(Err(NoAnswer::TooLong));
            };
            if self.undecided && handshake::is_handshake(&received.line) {
                self.announcement = Some(received.line);
                return Some(Err(NoAnswer::Announced { was_read: true }));
            }
            if !received.is_stray {
                break received.line;
            }
            if self.strays.len() < MAX_STRAYS {
                self.strays.push(received.line);
            }
        };
        if too_long(line.len()) {
            return Some(Err(NoAnswer::TooLong));
        }
        // A second line that is there already makes it unknowable which of them is the answer. The usual
        // case is a JSON text that was broken into lines.
        let answer = match self.link.next_line() {
            None => answer::check(line),
            Some(second) => Err(answer::two_lines(&line, &second.line)),
        };
        Some(answer.map_err(NoAnswer::Bad))
    }

    /// Takes what a process wrote before it exited, or stopped reading or writing: that may be the answer.
    fn drain_after_exit(&mut self) -> Result<Answer, NoAnswer> {
        loop {
            let fill = self.link.try_read_last();
            if let Some(answer) = self.take_answer() {
                return answer;
            }
            if !matches!(fill, Ok(Fill::Some)) {
                break;
            }
        }
        let partial = self.link.partial().to_vec();
        let untouched = partial.is_empty() && self.link.is_untouched();
        Err(NoAnswer::Gone { partial, untouched })
    }
}
