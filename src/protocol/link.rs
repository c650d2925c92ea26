//! A link: both pipe ends of a conversation with a kept process.
//!
//! The pipe loop and the multiplexer share it. It moves bytes in both directions and returns lines; it
//! knows no JSON, and has no time limits.
//!
//! # Theory of operation
//! Bytes on the result channel that were there before the process had read any of an activation cannot
//! answer it: they are *stray*. So while an activation is open, the link asks the kernel before each read
//! whether all bytes that were written since are still unread. As long as they are, it marks what the
//! result channel holds as stray. It asks before the read, because between a read and a later question
//! the process could read its activation, and a stray would pass for the answer.

use std::io;

use bytes::Bytes;

use crate::process::Process;
use crate::process::adaptive_yield::AdaptiveYield;
use crate::process::spawn::ResultChannel;
use crate::process::standstill::standstill;

use super::line::{Fill, LineReader, LineWriter, Pending};

/// How many stray lines are kept, and how many of one activation are logged, one by one.
pub(super) const MAX_STRAYS: usize = 10;

/// Both pipe ends of a conversation: the input of the process, and its result channel.
#[derive(Debug)]
pub struct Link {
    writer: LineWriter,
    reader: LineReader,
    channel: ResultChannel,
    intake: Intake,
    adaptive_yield: AdaptiveYield,
    strayed: bool,
    kept_strays: Option<Vec<Vec<u8>>>,
}

/// What [`Link::transfer`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transfer {
    /// It read bytes, or found that there are none after all.
    Read,
    /// It wrote this many bytes.
    Wrote(usize),
    /// The result channel has ended, or the process reads no more.
    Gone,
}

/// A line of the result channel.
#[derive(Debug)]
pub(super) struct Received {
    /// The line without its end.
    pub(super) line: Bytes,
    /// Whether it had begun before the process had read any of the activation.
    pub(super) is_stray: bool,
}

impl Link {
    /// Links the proxy to a process over these pipe ends.
    #[must_use]
    pub fn new(writer: LineWriter, reader: LineReader, channel: ResultChannel) -> Self {
        Self {
            writer,
            reader,
            channel,
            intake: Intake::default(),
            adaptive_yield: AdaptiveYield::UNTRIED,
            strayed: false,
            kept_strays: None,
        }
    }

    /// Where results come from.
    #[must_use]
    pub fn channel(&self) -> ResultChannel {
        self.channel
    }

    /// Whether the process has read everything and waits for more; `None` where `/proc` does not show it.
    #[must_use]
    pub fn waits_for_input(&self, process: &Process) -> Option<bool> {
        self.writer.is_waited_for(process)
    }

    /// Closes the input of the process, which asks it to end, and returns its result channel.
    #[must_use]
    pub fn into_results(self) -> LineReader {
        self.reader
    }

    /// From now on keeps the first strays, which are logged in any case.
    pub fn keep_strays(&mut self) {
        self.kept_strays = Some(Vec::new());
    }

    /// Takes the strays that were kept.
    pub fn take_strays(&mut self) -> Vec<Vec<u8>> {
        self.kept_strays.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Records a line that answers no activation. `distrust` marks the process as one that
    /// [has strayed](Self::has_strayed).
    pub(super) fn record_stray(&mut self, line: &[u8], distrust: bool) {
        self.strayed |= distrust;
        if let Some(kept) = &mut self.kept_strays
            && kept.len() < MAX_STRAYS
        {
            kept.push(line.to_vec());
        }
    }

    /// Marks the process as one that [has strayed](Self::has_strayed).
    pub(super) fn distrust(&mut self) {
        self.strayed = true;
    }

    /// Whether the process has written a line that answers no activation. It may do so again, at a moment
    /// at which such a line passes for an answer.
    #[must_use]
    pub(super) fn has_strayed(&self) -> bool {
        self.strayed
    }

    /// Begins to separate strays from the answer of an activation. Must be called right before the activation is
    /// written, and only if no other is in flight.
    pub(super) fn begin_activation(&mut self) {
        self.intake = Intake { state: IntakeState::Unread, ..Intake::default() };
    }

    /// The activation has its answer, or never gets one.
    pub(super) fn end_activation(&mut self) {
        self.intake = Intake::default();
    }

    /// Whether it is certain that the process has read no byte since [`Link::begin_activation`].
    pub(super) fn is_untouched(&self) -> bool {
        self.intake.written == 0 || self.intake.is_unread(&self.writer)
    }

    /// Takes back what was written since [`Link::begin_activation`]. Returns whether the process has read none of it.
    /// Otherwise it must be stopped.
    pub(super) fn take_back(&self) -> bool {
        self.intake.written == 0 || self.writer.take_back(self.intake.written)
    }

    /// From now on results come from this pipe.
    pub(super) fn move_results(&mut self, reader: LineReader, channel: ResultChannel) {
        (self.reader, self.channel) = (reader, channel);
    }

    /// How many written bytes the process has not read, if the kernel says so.
    pub(super) fn unread(&self) -> Option<u64> {
        self.writer.unread()
    }

    /// Writes as much as fits now. 0 means that nothing does.
    ///
    /// # Errors
    /// As [`LineWriter::try_write`].
    pub(super) fn try_write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.writer.try_write(bytes)?;
        self.intake.written += written as u64;
        Ok(written)
    }

    /// Waits until bytes can be moved in one direction, and moves them. Reads only if `reads` says so, but
    /// then before it writes: a process may answer while it reads, as `cat` does. Cancelling it loses
    /// nothing.
    pub(super) async fn transfer(&mut self, unwritten: &[u8], reads: bool) -> Transfer {
        if reads && self.reader.has_ended() {
            // A read that did not wait has seen the end.
            return Transfer::Gone;
        }
        let Self { writer, reader, intake, .. } = self;
        tokio::select! {
            biased;
            fill = reader.fill_after(|pending| intake.observe(writer, pending)), if reads => match fill {
                Ok(Fill::Some | Fill::WouldBlock) => Transfer::Read,
                Ok(Fill::End) | Err(_) => Transfer::Gone,
            },
            written = writer.write(unwritten), if !unwritten.is_empty() => match written {
                Ok(written) => {
                    intake.written += written as u64;
                    Transfer::Wrote(written)
                }
                Err(_) => Transfer::Gone,
            },
            else => std::future::pending().await,
        }
    }

    /// Reads once, without waiting.
    ///
    /// # Errors
    /// As [`LineReader::try_fill`].
    pub(super) fn try_read(&mut self) -> io::Result<Fill> {
        let Self { writer, reader, intake, .. } = self;
        reader.try_fill_after(|pending| intake.observe(writer, pending))
    }

    /// Yields the CPU if that is due, so that a process on the same CPU can answer at once, and then reads
    /// once without waiting. The caller must pass on whether that was [useful](Self::record_yield).
    pub(super) fn try_read_after_yield(&mut self) -> Option<io::Result<Fill>> {
        self.adaptive_yield.yield_if_due().then(|| self.try_read())
    }

    /// Records whether [`Link::try_read_after_yield`] was useful.
    pub(super) fn record_yield(&mut self, was_useful: bool) {
        self.adaptive_yield.record(was_useful);
    }

    /// Reads once what a process has left that is gone, or neither reads nor writes any more.
    ///
    /// # Errors
    /// As [`LineReader::try_fill`].
    pub(super) fn try_read_last(&mut self) -> io::Result<Fill> {
        let is_unread = self.intake.is_still_unread(&self.writer);
        let fill = self.reader.try_fill();
        if is_unread {
            self.intake.stray_bytes = self.reader.pending_len();
        }
        fill
    }

    /// Takes the next whole line.
    pub(super) fn next_line(&mut self) -> Option<Received> {
        let before = self.reader.pending_len();
        let line = self.reader.next_line()?;
        let is_stray = self.intake.stray_bytes > 0;
        let taken = before - self.reader.pending_len();
        self.intake.stray_bytes = self.intake.stray_bytes.saturating_sub(taken);
        Some(Received { line, is_stray })
    }

    /// A number that stays the same for as long as the process can only wait for its input, and does not run; None if
    /// it may do something else.
    pub(super) fn standstill(&self, process: &Process) -> Option<u64> {
        standstill(process.pid, self.writer.pipe(), self.reader.source())
    }

    /// How many empty lines the process has written.
    pub(super) fn empty_lines(&self) -> u64 {
        self.reader.empty_lines()
    }

    /// Everything that was read and not taken as a line.
    pub(super) fn pending(&self) -> &[u8] {
        self.reader.pending()
    }

    /// The beginning of a line whose end has not come.
    pub(super) fn partial(&self) -> &[u8] {
        self.reader.partial()
    }

    /// Takes the beginning of a line, unless it is blank.
    pub(super) fn take_partial(&mut self) -> Option<Vec<u8>> {
        let partial = self.reader.take_rest();
        (!partial.trim_ascii().is_empty()).then_some(partial)
    }
}

/// How far the process has read the open activation.
#[derive(Debug, Default)]
struct Intake {
    state: IntakeState,
    /// Bytes written since the activation began.
    written: u64,
    /// How much of what was read and not taken was there while the activation was unread.
    stray_bytes: usize,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum IntakeState {
    /// No activation is open, or several are.
    #[default]
    Untracked,
    /// The process has read nothing of it.
    Unread,
    /// The process has read some of it, or may have.
    Begun,
}

impl Intake {
    /// Marks what the result channel holds as stray if the process has read nothing of the activation.
    fn observe(&mut self, writer: &LineWriter, pending: &Pending<'_>) {
        if !self.is_still_unread(writer) {
            return;
        }
        let stray_bytes = pending.bytes();
        // Bytes that came between the first question and this one may be the answer.
        if self.is_unread(writer) {
            self.stray_bytes = stray_bytes;
        }
    }

    /// Whether an activation is open of which the process has read nothing. Once it has, the kernel is not
    /// asked again.
    fn is_still_unread(&mut self, writer: &LineWriter) -> bool {
        if self.state == IntakeState::Unread && !self.is_unread(writer) {
            self.state = IntakeState::Begun;
        }
        self.state == IntakeState::Unread
    }

    /// Whether it is certain that the process has read none of the bytes written. It is not when bytes of
    /// an earlier activation are before them in the pipe.
    fn is_unread(&self, writer: &LineWriter) -> bool {
        self.written > 0 && writer.unread() == Some(self.written)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::pipe::{pipe, watch};
    use std::os::fd::OwnedFd;

    /// Runs a test with a link, the process's end of its input, and its end of its result channel.
    fn with_link<T>(test: impl AsyncFnOnce(Link, OwnedFd, OwnedFd) -> T) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (stdin, results) = (pipe().unwrap(), pipe().unwrap());
            let (writer, reader) =
                (LineWriter::new(watch(stdin.1).unwrap()), LineReader::new(watch(results.0).unwrap()));
            test(Link::new(writer, reader, ResultChannel::Stdout), stdin.0, results.1).await
        })
    }

    #[test]
    fn only_bytes_from_before_the_activation_was_read_are_stray() {
        with_link(async |mut link, stdin, results| {
            link.begin_activation();
            assert_eq!(link.try_write(b"{}\n").unwrap(), 3);
            assert!(link.is_untouched());
            rustix::io::write(&results, b"early\nearly, ").unwrap();
            assert_eq!(link.try_read().unwrap(), Fill::Some);
            // The process reads one byte of the activation.
            rustix::io::read(&stdin, &mut [0; 1]).unwrap();
            assert!(!link.is_untouched());
            rustix::io::write(&results, b"ends late\nanswer\n").unwrap();
            assert_eq!(link.transfer(&[], true).await, Transfer::Read);
            let lines: Vec<_> = std::iter::from_fn(|| link.next_line()).map(|it| (it.line, it.is_stray)).collect();
            let expected = [("early", true), ("early, ends late", true), ("answer", false)];
            assert_eq!(lines, expected.map(|(line, is_stray)| (Bytes::from(line), is_stray)));
        });
    }

    #[test]
    fn an_end_that_was_seen_already_is_reported_again() {
        with_link(async |mut link, _stdin, results| {
            drop(results);
            assert_eq!(link.try_read().unwrap(), Fill::End);
            let transfer = tokio::time::timeout(std::time::Duration::from_secs(10), link.transfer(&[], true)).await;
            assert_eq!(transfer.expect("it does not wait"), Transfer::Gone);
        });
    }
}
