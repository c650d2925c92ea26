//! One stream of an action's output: what goes out, what is kept, and where its sentinels stand.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use memchr::memmem;
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;
use tokio::sync::OwnedSemaphorePermit;

use super::LogFormat;
use crate::time;

use super::json::Lines;
use super::{Bounds, DEFUSED, SENTINEL, Sentinels, Sink};

/// What is read from the action at once.
const CHUNK: usize = 64 * 1024;
/// What is kept of the end of a stream for error messages.
const TAIL_BYTES: usize = 2048;
/// What an error message quotes of it.
const TAIL_LINES: usize = 5;

/// One stream of the action's output.
#[derive(Debug)]
pub struct Stream {
    source: Option<AsyncFd<OwnedFd>>,
    sink: Sink,
    /// Makes objects of lines, where that is wanted.
    lines: Option<Lines>,
    /// Bytes on their way out, from `sent` on.
    outbox: Vec<u8>,
    sent: usize,
    company: Sharing,
    turn: Option<OwnedSemaphorePermit>,
    /// While it gathers, bytes up to here may go.
    released: usize,
    phase: Phase,
    backlog: Vec<u8>,
    backlog_limit: usize,
    dropped_bytes: u64,
    /// Bytes that may be the beginning of a sentinel, held back until that is known.
    held: usize,
    at_line_start: bool,
    tail: Vec<u8>,
    stall_limit: Duration,
    /// Our reader has not read for so long that its log is dropped until it reads again.
    stalled: bool,
    /// What was dropped since then: bytes, and sentinels, which are owed to it.
    lost_bytes: usize,
    owed_sentinels: usize,
}

/// Whether others write to the same sink.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sharing {
    /// Nobody.
    Baseline,
    /// Others do, each when it has the turn. The log of an activation is held until it is whole, or
    /// too much.
    Gathers,
    /// Others do, and there is nothing to be waited for.
    Shares,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Output goes out as it comes. So it is before the first sentinel as well.
    Open,
    /// A sentinel was the last thing written: output is kept.
    Closed,
}

impl Stream {
    pub(super) fn new(name: &'static str, sink: Sink, bounds: &Bounds) -> Self {
        Self {
            source: None,
            sink,
            lines: (bounds.format == LogFormat::Json).then(|| Lines::new(name)),
            outbox: Vec::new(),
            sent: 0,
            company: Sharing::Baseline,
            turn: None,
            released: 0,
            phase: Phase::Open,
            backlog: Vec::new(),
            backlog_limit: bounds.backlog_bytes,
            dropped_bytes: 0,
            held: 0,
            at_line_start: true,
            tail: Vec::new(),
            stall_limit: bounds.stall_limit,
            stalled: false,
            lost_bytes: 0,
            owed_sentinels: 0,
        }
    }

    /// From now on others write to the same sink.
    pub(super) fn share(&mut self) {
        self.company = Sharing::Gathers;
    }

    /// Whether lines are written as objects.
    pub(super) fn makes_objects(&self) -> bool {
        self.lines.is_some()
    }

    /// What comes from now on is this activation's, or nobody knows whose.
    pub(super) fn attribute(&mut self, label: Option<&Arc<str>>) {
        if let Some(lines) = &mut self.lines
            && lines.label.as_ref() != label
        {
            lines.label = label.cloned();
        }
    }

    /// Nothing is waited for any more: what is held back may go.
    pub(super) fn let_go(&mut self) {
        self.held = 0;
        if self.company == Sharing::Gathers {
            self.company = Sharing::Shares;
        }
    }

    /// Whether nobody has read it for so long that it was given up.
    pub(super) fn is_stalled(&self) -> bool {
        self.stalled
    }

    /// Takes what is left in the pipe, and lets go of it.
    pub(super) fn detach(&mut self) {
        self.drain();
        self.source = None;
    }

    /// Whether more waits to be written than is to be held.
    pub(super) fn is_full(&self) -> bool {
        self.outbox.len() - self.sent > self.backlog_limit.max(CHUNK) + CHUNK
    }

    /// The action's pipe.
    pub(super) fn source(&self) -> Option<&OwnedFd> {
        self.source.as_ref().map(AsyncFd::get_ref)
    }

    /// How much stands in the action's pipe.
    #[cfg(test)]
    pub(super) fn unread(&self) -> u64 {
        let source = self.source.as_ref().expect("it has a pipe");
        rustix::io::ioctl_fionread(source.get_ref()).expect("it is a pipe")
    }

    /// Takes a pipe of the action as source, and what somebody else has read of it already.
    pub fn attach(&mut self, source: AsyncFd<OwnedFd>, read: &[u8]) {
        self.source = Some(source);
        self.feed(read);
    }

    /// Adds output of the action.
    pub fn feed(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        self.remember(bytes);
        match &mut self.lines {
            None => self.pass(bytes),
            Some(lines) => {
                let lines = lines.feed(bytes);
                self.pass(&lines);
            }
        }
    }

    /// Adds whole lines in the log's own format, on lines of their own.
    pub(super) fn feed_apart(&mut self, lines: &[u8]) {
        if !self.is_at_line_start() {
            self.pass(b"\n");
        }
        self.pass(lines);
    }

    /// Passes on what is in the log's own format.
    fn pass(&mut self, bytes: &[u8]) {
        match self.phase {
            Phase::Open => self.put(bytes),
            Phase::Closed => {
                let room = self.backlog_limit.saturating_sub(self.backlog.len());
                let mut kept = bytes.len().min(room);
                if self.lines.is_some() {
                    // Half an object is none.
                    kept = memchr::memrchr(b'\n', &bytes[..kept]).map_or(0, |newline| newline + 1);
                }
                self.backlog.extend_from_slice(&bytes[..kept]);
                self.dropped_bytes += (bytes.len() - kept) as u64;
            }
        }
    }

    /// Adds a line of the action's output, without its end.
    pub fn feed_line(&mut self, line: &[u8]) {
        self.feed(line);
        self.feed(b"\n");
    }

    /// The last lines of the stream, on one line, for an error message. Possibly empty.
    #[must_use]
    pub fn tail(&self) -> String {
        let text = String::from_utf8_lossy(&self.tail);
        let lines: Vec<_> = text.lines().map(str::trim_end).filter(|line| !line.trim().is_empty()).collect();
        lines[lines.len().saturating_sub(TAIL_LINES)..].join(" | ")
    }

    /// All that is kept of what passed last, as it is.
    #[must_use]
    pub fn kept(&self) -> String {
        String::from_utf8_lossy(&self.tail).into_owned()
    }

    /// Forgets the tail: a new process begins.
    pub fn forget_tail(&mut self) {
        self.tail.clear();
    }

    pub(super) fn say(&mut self, sentence: &str) {
        let sentence = sentence.replace('\n', " ");
        let mut line = Vec::with_capacity(sentence.len() + 2);
        if !self.is_at_line_start() {
            line.push(b'\n');
        }
        match &self.lines {
            None => {
                line.extend_from_slice(sentence.as_bytes());
                line.push(b'\n');
            }
            Some(lines) => lines.sentence(lines.label.as_deref(), &sentence, &mut line),
        }
        match self.phase {
            Phase::Open => self.put(&line),
            Phase::Closed if self.backlog.len() + line.len() <= self.backlog_limit => {
                self.backlog.extend_from_slice(&line);
            }
            Phase::Closed => self.dropped_bytes += line.len() as u64,
        }
    }

    fn is_at_line_start(&self) -> bool {
        match self.phase {
            Phase::Open => self.at_line_start,
            Phase::Closed => self.backlog.last().is_none_or(|byte| *byte == b'\n'),
        }
    }

    fn remember(&mut self, bytes: &[u8]) {
        if bytes.len() >= TAIL_BYTES {
            self.tail.clear();
            self.tail.extend_from_slice(&bytes[bytes.len() - TAIL_BYTES..]);
            return;
        }
        let excess = (self.tail.len() + bytes.len()).saturating_sub(TAIL_BYTES);
        self.tail.drain(..excess);
        self.tail.extend_from_slice(bytes);
    }

    pub(super) fn begin(&mut self) {
        if self.phase == Phase::Open {
            return;
        }
        self.phase = Phase::Open;
        self.at_line_start = true;
        if !self.backlog.is_empty() {
            let backlog = std::mem::take(&mut self.backlog);
            self.put(&backlog);
        }
        let dropped = std::mem::take(&mut self.dropped_bytes);
        if dropped > 0 {
            self.say(&format!(
                "pipeloop: {dropped} more bytes that the action printed between activations were dropped (PIPELOOP_LOG_BACKLOG)"
            ));
        }
    }

    /// Puts bytes into the outbox, with every sentinel of the action's own defused. A sentinel may
    /// be cut in two by how its bytes arrive: the end of the outbox that could be the beginning of
    /// one is held back.
    fn put(&mut self, bytes: &[u8]) {
        let Some(last) = bytes.last() else { return };
        self.at_line_start = *last == b'\n';
        let from = self.outbox.len() - self.held;
        self.outbox.extend_from_slice(bytes);
        let mut search = from;
        while let Some(at) = memmem::find(&self.outbox[search..], SENTINEL.as_bytes()) {
            let at = search + at;
            self.outbox[at..at + SENTINEL.len()].copy_from_slice(DEFUSED.as_bytes());
            // The end of one may be the beginning of the next.
            search = at + 1;
        }
        self.held = partial_sentinel(&self.outbox[search..]);
    }

    /// Writes what can be written now. Whether everything is out that may go.
    pub(super) fn flush(&mut self) -> bool {
        if self.stalled && self.sink.is_writable() {
            self.resume();
        }
        let mut end = self.due();
        if self.sent < end && !self.stalled && self.has_turn() {
            // Taking the turn may have added a byte.
            end = self.due();
            self.sent += self.sink.try_write(&self.outbox[self.sent..end]);
        }
        if self.sent < end {
            return false;
        }
        self.outbox.drain(..end);
        self.sent = 0;
        self.released = 0;
        self.turn = None;
        if self.outbox.capacity() > 2 * CHUNK && self.outbox.len() < CHUNK {
            self.outbox.shrink_to(CHUNK);
        }
        true
    }

    /// How much of the outbox may go.
    fn due(&mut self) -> usize {
        let ready = self.outbox.len() - self.held;
        if self.company != Sharing::Gathers || self.phase == Phase::Closed {
            return ready;
        }
        if self.outbox.len() > self.backlog_limit {
            if let Some(newline) = memchr::memrchr(b'\n', &self.outbox[self.released..ready]) {
                self.released += newline + 1;
            } else if self.released == 0 {
                // Nobody can be made to wait for the end of this line.
                self.outbox.insert(ready, b'\n');
                self.released = ready + 1;
                self.at_line_start = self.held == 0;
            }
        }
        self.released
    }

    /// Whether it may write to the sink now.
    fn has_turn(&mut self) -> bool {
        if self.company == Sharing::Baseline || self.turn.is_some() {
            return true;
        }
        let Some(turn) = self.sink.try_turn() else { return false };
        self.take(turn);
        true
    }

    fn take(&mut self, turn: OwnedSemaphorePermit) {
        self.turn = Some(turn);
        if self.sink.was_broken_off() {
            self.outbox.insert(0, b'\n');
            self.released += usize::from(self.released > 0);
        }
    }

    /// Waits until a [`Stream::flush`] that left something may get further.
    async fn may_flush(&mut self) {
        if self.company != Sharing::Baseline && self.turn.is_none() && !self.stalled {
            let turn = self.sink.turn().await;
            self.take(turn);
        } else {
            self.sink.writable().await;
        }
    }

    pub(super) async fn flushed(&mut self) {
        while !self.flush() {
            self.may_flush().await;
        }
    }

    /// Takes what stands in the pipe at this moment and no more: an action that goes on printing
    /// does not keep its activation open.
    pub fn drain(&mut self) {
        let Some(source) = &self.source else { return };
        let mut waiting = rustix::io::ioctl_fionread(source.get_ref()).unwrap_or(0);
        while waiting > 0 {
            let mut chunk = Vec::with_capacity(usize::try_from(waiting).unwrap_or(CHUNK).min(CHUNK));
            let Some(source) = &self.source else { return };
            match rustix::io::read(source.get_ref(), rustix::buffer::spare_capacity(&mut chunk)) {
                Ok(0) => self.source = None,
                Ok(count) => waiting = waiting.saturating_sub(count as u64),
                Err(Errno::INTR) => continue,
                Err(_) => return,
            }
            self.feed(&chunk);
        }
    }

    /// Ends the log of an activation in the outbox.
    pub(super) fn finish(&mut self, sentinels: Sentinels) {
        // An activation that never began, such as a failed init, has a log of its own too.
        self.begin();
        if let Some(lines) = &mut self.lines {
            let mut last = Vec::new();
            lines.finish(&mut last);
            lines.label = None;
            self.put(&last);
        }
        self.held = 0;
        if sentinels == Sentinels::Omit {
            return;
        }
        if !self.at_line_start {
            self.outbox.push(b'\n');
        }
        self.outbox.extend_from_slice(SENTINEL.as_bytes());
        self.outbox.push(b'\n');
        self.at_line_start = true;
        self.phase = Phase::Closed;
    }

    /// Our reader does not read: its log is given up, rather than the action and its answer.
    pub(super) fn give_up(&mut self) {
        let unsent = &self.outbox[self.sent..];
        tracing::warn!(bytes = unsent.len(), "nobody reads the log; it is dropped");
        // The action's own sentinels are defused, so these are ours.
        self.owed_sentinels += memmem::find_iter(unsent, SENTINEL.as_bytes()).count();
        self.lost_bytes += unsent.len();
        if self.turn.take().is_some() && self.sent > 0 && self.outbox[self.sent - 1] != b'\n' {
            self.sink.break_off();
        }
        self.outbox.clear();
        self.sent = 0;
        self.released = 0;
        self.held = 0;
        self.stalled = true;
    }

    /// Our reader reads again: it is told what it missed, and gets the sentinels that it counts.
    fn resume(&mut self) {
        let sentence = format!(
            "pipeloop: {} bytes of the log were dropped here, since nobody read it (PIPELOOP_LOG_STALL)",
            std::mem::take(&mut self.lost_bytes)
        );
        let mut missed = if let Some(lines) = &self.lines {
            let mut line = vec![b'\n'];
            lines.sentence(None, &sentence, &mut line);
            String::from_utf8(line).expect("JSON is UTF-8")
        } else {
            format!("\n{sentence}\n")
        };
        for _ in 0..std::mem::take(&mut self.owed_sentinels) {
            missed.push_str(SENTINEL);
            missed.push('\n');
        }
        // Nothing of the outbox has been sent since it was given up.
        self.released += missed.len();
        self.outbox.splice(0..0, missed.into_bytes());
        self.stalled = false;
    }

    /// Moves output from the source to the sink, and reads only when the outbox is empty.
    pub(super) async fn pump(&mut self) {
        loop {
            if !self.flush() {
                let stalls = self.stalled || time::timeout(self.stall_limit, self.may_flush()).await.is_none();
                if stalls {
                    self.give_up();
                }
                continue;
            }
            let Some(source) = &self.source else {
                // Nothing will come; the other stream goes on.
                std::future::pending::<()>().await;
                unreachable!("pending never ends");
            };
            let mut chunk = Vec::new();
            let count = {
                let Ok(mut ready) = std::future::poll_fn(|context| source.poll_read_ready(context)).await else {
                    self.source = None;
                    continue;
                };
                chunk.reserve_exact(CHUNK);
                let result = rustix::io::read(ready.get_inner(), rustix::buffer::spare_capacity(&mut chunk));
                match result {
                    Ok(count) => {
                        if count < CHUNK {
                            ready.clear_ready();
                        }
                        Some(count)
                    }
                    Err(Errno::AGAIN) => {
                        ready.clear_ready();
                        None
                    }
                    Err(Errno::INTR) => None,
                    Err(_) => Some(0),
                }
            };
            match count {
                None => {}
                Some(0) => self.source = None,
                Some(_) => self.feed(&chunk),
            }
        }
    }
}

/// How many bytes at the end of `bytes` could be the beginning of a sentinel.
fn partial_sentinel(bytes: &[u8]) -> usize {
    let sentinel = SENTINEL.as_bytes();
    let longest = bytes.len().min(sentinel.len() - 1);
    (1..=longest).rev().find(|length| bytes.ends_with(&sentinel[..*length])).unwrap_or(0)
}
