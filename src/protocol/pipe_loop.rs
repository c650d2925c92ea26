//! Version 1 of the protocol, the pipe loop, and its actionloop dialect.
//!
//! One line in, one line out, one activation at a time. Knows lines and their bounds; knows no
//! HTTP and no pid: an early death arrives as end-of-file or as the process's exit, and whoever
//! asked then tells why.

use bytes::Bytes;

use crate::activation::{Activation, Answer};
use crate::error::BadAnswer;
use crate::logs::Logs;
use crate::process::Process;
use crate::process::adaptive_yield::AdaptiveYield;
use crate::text::excerpt;

use super::answer;
use super::line::{Fill, LineReader, LineWriter, Pending};

/// What the process wants to read for each activation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sends {
    /// The arguments themselves: version 1.
    Arguments,
    /// The whole activation: the dialect, and version 1 with `"context":true`.
    Activation,
}

/// Where results come from, for messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Channel {
    /// Standard output.
    Stdout,
    /// Descriptor 3.
    Descriptor3,
}

impl Channel {
    /// Its name, for messages.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Descriptor3 => "descriptor 3",
        }
    }
}

/// The conversation with a process that is ready.
#[derive(Debug)]
pub struct PipeLoop {
    stdin: LineWriter,
    results: LineReader,
    sends: Sends,
    channel: Channel,
    kept: Kept,
    /// It has been sent an activation.
    asked: bool,
    /// It has written a line too many since: it may do so again, at a moment at which that cannot be
    /// told from an answer.
    strayed: bool,
    reports_strays: bool,
    courtesy: AdaptiveYield,
}

/// Why there is no answer. After any of these but [`NoAnswer::Bad`] the process must be stopped.
#[derive(Debug)]
pub enum NoAnswer {
    /// There is an answer, and it is unusable. The conversation goes on.
    Bad(BadAnswer),
    /// The process is gone, or its result channel is. `answer` is what it had written of a line.
    Gone {
        /// Bytes of a line that was never ended.
        partial: Vec<u8>,
        /// Whether it is certain that the process never read a byte of the activation, so that
        /// another process may be given it.
        untouched: bool,
    },
    /// The answer is over the bound.
    TooLong,
    /// The process has written a line too many since its first activation, and was not sent this one.
    /// Only after [`PipeLoop::report_strays`].
    Strayed,
}

impl PipeLoop {
    /// A conversation over these pipes.
    #[must_use]
    pub fn new(stdin: LineWriter, results: LineReader, sends: Sends, channel: Channel) -> Self {
        Self {
            stdin,
            results,
            sends,
            channel,
            kept: Kept::default(),
            asked: false,
            strayed: false,
            reports_strays: false,
            courtesy: AdaptiveYield::UNTRIED,
        }
    }

    /// Keeps the first strays from now on, beside telling them in the log.
    pub fn keep_strays(&mut self) {
        self.kept.begin();
    }

    /// Takes the strays that were kept.
    pub fn take_strays(&mut self) -> Vec<Vec<u8>> {
        self.kept.take()
    }

    /// Sends nothing more from now on once the process has written a line too many.
    pub fn report_strays(&mut self) {
        self.reports_strays = true;
    }

    /// Whether the process has read everything and waits for more; `None` where nobody can tell.
    #[must_use]
    pub fn waits_for_input(&self, process: &Process) -> Option<bool> {
        self.stdin.is_waited_for(process)
    }

    /// Where results come from.
    #[must_use]
    pub fn channel(&self) -> Channel {
        self.channel
    }

    /// The name of the result channel, for messages.
    #[must_use]
    pub fn channel_name(&self) -> &'static str {
        self.channel.name()
    }

    /// The protocol as it is called in `PIPELOOP_PROTOCOL`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match (self.sends, self.channel) {
            (Sends::Activation, Channel::Descriptor3) => "actionloop",
            _ => "1",
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
        // Whatever came since the last answer answers nothing. This is as late as it can be looked
        // for: from here on a line is the answer.
        self.drop_strays(logs);
        if self.strayed && self.reports_strays {
            return Err(NoAnswer::Strayed);
        }
        let line = match self.sends {
            Sends::Arguments => activation.arguments_line(),
            Sends::Activation => activation.whole_line(),
        };
        let mut exchange = Exchange {
            stdin: &mut self.stdin,
            results: &mut self.results,
            line,
            written: 0,
            limit_bytes,
            reading: Reading::default(),
            courtesy: &mut self.courtesy,
            strays: Vec::new(),
        };
        let answer = tokio::select! {
            biased;
            answer = exchange.answer(process) => answer,
            () = logs.pump() => unreachable!("a pump never ends"),
        };
        for stray in std::mem::take(&mut exchange.strays) {
            self.say_stray(logs, &stray);
        }
        self.asked = true;
        self.strayed |= matches!(answer, Err(NoAnswer::Bad(BadAnswer::TwoLines { .. })));
        answer
    }

    /// Watches the conversation while no activation is open: drops what answers nothing. Returns
    /// when the result channel has ended.
    pub async fn idle(&mut self, logs: &mut Logs) {
        loop {
            tokio::select! {
                fill = self.results.fill() => {
                    if !matches!(fill, Ok(Fill::Some)) {
                        return;
                    }
                }
                () = logs.pump() => unreachable!("a pump never ends"),
            }
            self.drop_strays(logs);
        }
    }

    /// Logs and drops whole and partial lines on the result channel.
    fn drop_strays(&mut self, logs: &mut Logs) {
        while matches!(self.results.try_fill(), Ok(Fill::Some)) {
            // A flood of strays is not to fill memory.
            if self.results.pending_len() > MAX_STRAY_BYTES {
                break;
            }
        }
        while let Some(line) = self.results.next_line() {
            self.say_stray(logs, &line);
        }
        let partial = self.results.take_rest();
        if !partial.trim_ascii().is_empty() {
            self.say_stray(logs, &partial);
        }
    }

    fn say_stray(&mut self, logs: &mut Logs, line: &[u8]) {
        self.strayed |= self.asked;
        logs.say(&format!("pipeloop: dropped a line that answers no activation: {}", excerpt(line)));
        self.kept.add(line);
    }

    /// Lets go of the process: closing its input asks it to end.
    #[must_use]
    pub fn into_results(self) -> LineReader {
        self.results
    }
}

/// Strays, for somebody who wants to know more of them than the log says.
#[derive(Debug, Default)]
pub(super) struct Kept(Option<Vec<Vec<u8>>>);

impl Kept {
    /// From now on somebody wants to.
    pub(super) fn begin(&mut self) {
        self.0 = Some(Vec::new());
    }

    /// Keeps a line, unless there are enough.
    pub(super) fn add(&mut self, line: &[u8]) {
        if let Some(kept) = &mut self.0
            && kept.len() < MAX_STRAYS_TOLD
        {
            kept.push(line.to_vec());
        }
    }

    /// Takes what was kept, and goes on.
    pub(super) fn take(&mut self) -> Vec<Vec<u8>> {
        self.0.as_mut().map(std::mem::take).unwrap_or_default()
    }
}

/// How many stray lines of one activation are told one by one.
const MAX_STRAYS_TOLD: usize = 10;
/// What is collected of stray bytes before they are dropped.
const MAX_STRAY_BYTES: usize = 1024 * 1024;

/// What is known of how far the action has read.
#[derive(Debug, Default)]
pub(super) struct Reading {
    /// It has read some of the activation.
    begun: bool,
    /// What had come, from the first byte not taken on, while it had not: none of it is the answer.
    pub(super) stray_bytes: usize,
}

impl Reading {
    /// Looks before the result channel is read: between the read and a later look the action could
    /// read its activation, and a stray would pass for the answer.
    pub(super) fn look(&mut self, stdin: &LineWriter, written: usize, pending: &Pending<'_>) {
        self.begun = self.begun || !is_unread(stdin, written);
        if !self.begun {
            let stray_bytes = pending.bytes();
            // What stood in the pipe while the activation was unread, and not what may have come
            // between two looks.
            if is_unread(stdin, written) {
                self.stray_bytes = stray_bytes;
            }
        }
    }
}

/// One activation on its way out and its answer on its way in.
struct Exchange<'a> {
    stdin: &'a mut LineWriter,
    results: &'a mut LineReader,
    line: &'a [u8],
    written: usize,
    limit_bytes: u64,
    reading: Reading,
    courtesy: &'a mut AdaptiveYield,
    /// Lines that came before the action had read anything of the activation.
    strays: Vec<Bytes>,
}

impl Exchange<'_> {
    /// Writes and reads at the same time: a process may answer while it reads, as `cat` does.
    async fn answer(&mut self, process: &Process) -> Result<Answer, NoAnswer> {
        match self.stdin.try_write(self.line) {
            Ok(written) => self.written = written,
            Err(_) => return self.last_words(),
        }
        if self.written == self.line.len()
            && let Some(answer) = self.answer_at_once()
        {
            return answer;
        }
        loop {
            let unwritten = &self.line[self.written..];
            tokio::select! {
                biased;
                fill = self.results.fill_after(|pending| self.reading.look(self.stdin, self.written, pending)) => match fill {
                    Ok(Fill::Some | Fill::WouldBlock) => {
                        if let Some(answer) = self.take() {
                            return answer;
                        }
                    }
                    Ok(Fill::End) | Err(_) => return self.last_words(),
                },
                written = self.stdin.write(unwritten), if !unwritten.is_empty() => match written {
                    Ok(written) => self.written += written,
                    // It does not read any more; it may have answered all the same.
                    Err(_) => return self.last_words(),
                },
                _ = process.exited() => return self.last_words(),
            }
        }
    }

    /// The answer of an action that only needed the processor, where it shares ours.
    fn answer_at_once(&mut self) -> Option<Result<Answer, NoAnswer>> {
        if !self.courtesy.yield_if_due() {
            return None;
        }
        let fill = self.results.try_fill_after(|pending| self.reading.look(self.stdin, self.written, pending));
        let answer = match fill {
            Ok(Fill::Some) => self.take(),
            Ok(Fill::WouldBlock) => None,
            Ok(Fill::End) | Err(_) => Some(self.last_words()),
        };
        self.courtesy.brought(answer.is_some());
        answer
    }

    /// The answer, once it is there in whole.
    fn take(&mut self) -> Option<Result<Answer, NoAnswer>> {
        let too_long = |length: usize| length as u64 > self.limit_bytes;
        let line = loop {
            let before = self.results.pending_len();
            let Some(line) = self.results.next_line() else {
                return too_long(self.results.pending_len()).then_some(Err(NoAnswer::TooLong));
            };
            if self.reading.stray_bytes == 0 {
                break line;
            }
            // It had begun while nothing of the activation had been read, so it is not the answer.
            let length = before - self.results.pending_len();
            self.reading.stray_bytes = self.reading.stray_bytes.saturating_sub(length);
            if self.strays.len() < MAX_STRAYS_TOLD {
                self.strays.push(line);
            }
        };
        if too_long(line.len()) {
            return Some(Err(NoAnswer::TooLong));
        }
        // A second line that stands there already: which of them is meant, nobody can say. A JSON
        // text that was broken into lines is the usual case.
        let second = self.results.next_line();
        let answer = match second {
            None => answer::check(line),
            Some(second) => Err(answer::two_lines(&line, &second)),
        };
        Some(answer.map_err(NoAnswer::Bad))
    }

    /// The process is gone, or has stopped reading or answering: what it wrote before that is in
    /// the pipe, and may be the answer.
    fn last_words(&mut self) -> Result<Answer, NoAnswer> {
        self.reading.begun = self.reading.begun || !is_unread(self.stdin, self.written);
        loop {
            let fill = self.results.try_fill();
            if !self.reading.begun {
                self.reading.stray_bytes = self.results.pending_len();
            }
            if let Some(answer) = self.take() {
                return answer;
            }
            if !matches!(fill, Ok(Fill::Some)) {
                break;
            }
        }
        let partial = self.results.partial().to_vec();
        let untouched = partial.is_empty() && (self.written == 0 || is_unread(self.stdin, self.written));
        Err(NoAnswer::Gone { partial, untouched })
    }
}

/// Whether it is certain that nobody has read any of so many bytes that were written. It is not when
/// something of an earlier activation stands before them.
fn is_unread(stdin: &LineWriter, written: usize) -> bool {
    written > 0 && stdin.unread() == Some(written as u64)
}
