//! One stream of an action's output: its outbox, its backlog and its sentinels.
//!
//! Knows bytes, lines and sentinels; knows no activation beyond a label for its lines.

use std::convert::Infallible;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use memchr::memmem;
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;
use tokio::sync::OwnedSemaphorePermit;

use super::LogFormat;
use crate::process::pipe;
use crate::time;

use super::json::Lines;
use super::watch::Watch;
use super::{Bounds, DEFUSED, SENTINEL, Sentinels, Sink};

/// The most bytes of one read from the action.
const CHUNK: usize = 64 * 1024;
/// The most bytes that a terminal holds, generously: 64 KiB in each of two queues of the kernel.
const TERMINAL_HOLDS: usize = 256 * 1024;
/// How many bytes of a stream's end are kept for error messages.
const TAIL_BYTES: usize = 2048;
/// How many of its last lines an error message quotes.
const TAIL_LINES: usize = 5;

/// One stream of the action's output.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own about the stream")]
pub struct Stream {
    source: Option<AsyncFd<OwnedFd>>,
    /// Whether the source is a terminal, which passes its output on in parts.
    from_terminal: bool,
    /// Looks for a line that is no log line, in what comes from the source.
    watch: Option<Watch>,
    sink: Sink,
    /// Encodes lines as JSON objects, in that format.
    lines: Option<Lines>,
    /// Bytes on their way to the sink. The first `sent` of them have been written.
    outbox: Vec<u8>,
    sent: usize,
    sharing: Sharing,
    write_permit: Option<OwnedSemaphorePermit>,
    /// How many bytes of the outbox a gathering stream may write before the log is whole.
    released: usize,
    phase: Phase,
    backlog: Vec<u8>,
    backlog_limit: usize,
    dropped_bytes: u64,
    /// How many bytes at the end of the outbox wait, since they may be the start of a sentinel.
    withheld: usize,
    at_line_start: bool,
    /// The last words: the end of what was printed since [`Stream::forget_tail`].
    tail: Vec<u8>,
    keeps_tail: bool,
    stall_limit: Duration,
    /// The log reader has stalled for so long that its log is dropped until it reads again.
    stalled: bool,
    /// What was dropped since then. The reader gets the sentinels later.
    lost_bytes: usize,
    owed_sentinels: usize,
}

/// Whether other streams write to the same sink.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sharing {
    /// This stream alone writes to it.
    Exclusive,
    /// Each of several streams writes while it has the permit. An activation's log waits in the outbox
    /// until it is whole, or too large.
    Gathering,
    /// Each of several streams writes while it has the permit. Nothing is gathered any more.
    Direct,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Output goes out as it comes. This is also the state before the first sentinel.
    Open,
    /// The last line written is a sentinel. Output is kept in the backlog.
    Closed,
}

impl Stream {
    pub(super) fn new(name: &'static str, sink: Sink, bounds: &Bounds) -> Self {
        Self {
            source: None,
            from_terminal: false,
            watch: None,
            sink,
            lines: (bounds.format == LogFormat::Json).then(|| Lines::new(name)),
            outbox: Vec::new(),
            sent: 0,
            sharing: Sharing::Exclusive,
            write_permit: None,
            released: 0,
            phase: Phase::Open,
            backlog: Vec::new(),
            backlog_limit: bounds.backlog_bytes,
            dropped_bytes: 0,
            withheld: 0,
            at_line_start: true,
            tail: Vec::new(),
            keeps_tail: true,
            stall_limit: bounds.stall_limit,
            stalled: false,
            lost_bytes: 0,
            owed_sentinels: 0,
        }
    }

    /// Other streams write to the same sink from now on.
    pub(super) fn share(&mut self) {
        self.sharing = Sharing::Gathering;
    }

    /// Whether lines are written as JSON objects.
    pub(super) fn is_json(&self) -> bool {
        self.lines.is_some()
    }

    /// Lines from now on belong to this activation, or to an unknown one.
    pub(super) fn set_label(&mut self, label: Option<&Arc<str>>) {
        if let Some(lines) = &mut self.lines
            && lines.label.as_ref() != label
        {
            lines.label = label.cloned();
        }
    }

    /// Lets everything in the outbox go. No sentinel or whole log is waited for any more.
    pub(super) fn release_all(&mut self) {
        self.withheld = 0;
        if self.sharing == Sharing::Gathering {
            self.sharing = Sharing::Direct;
        }
    }

    /// Whether the log reader has stalled for so long that the log is dropped.
    pub(super) fn is_stalled(&self) -> bool {
        self.stalled
    }

    /// Reads what is left in the pipe, and closes it.
    pub(super) fn detach(&mut self) {
        self.drain();
        self.source = None;
        self.unwatch();
    }

    /// Whether the outbox holds more than it should.
    pub(super) fn is_full(&self) -> bool {
        self.outbox.len() - self.sent > self.backlog_limit.max(CHUNK) + CHUNK
    }

    /// The pipe of the action, if one is attached.
    pub(super) fn source(&self) -> Option<&OwnedFd> {
        self.source.as_ref().map(AsyncFd::get_ref)
    }

    /// How many bytes are in the action's pipe.
    #[cfg(test)]
    pub(super) fn unread(&self) -> u64 {
        let source = self.source.as_ref().expect("it has a pipe");
        rustix::io::ioctl_fionread(source.get_ref()).expect("it is a pipe")
    }

    /// Takes a pipe of the action as source. `read` is what another reader took from it before.
    pub fn attach(&mut self, source: AsyncFd<OwnedFd>, read: &[u8]) {
        self.unwatch();
        self.from_terminal = pipe::is_terminal(source.get_ref());
        self.source = Some(source);
        self.append(read);
    }

    /// As [`Stream::attach`], but keeps the first whole line that is `wanted`, and everything after it, out of
    /// the log. Until that line comes, the beginning of a line that could become one waits for its end.
    pub fn attach_watched(&mut self, source: AsyncFd<OwnedFd>, read: &[u8], wanted: fn(&[u8]) -> bool) {
        self.unwatch();
        self.from_terminal = pipe::is_terminal(source.get_ref());
        self.source = Some(source);
        self.watch = Some(Watch::new(wanted));
        self.append(read);
    }

    /// Whether the wanted line has come.
    #[must_use]
    pub fn has_caught(&self) -> bool {
        self.watch.as_ref().is_some_and(Watch::has_caught)
    }

    /// Takes the wanted line, the pipe, and what was read from it after that line. None if it has not come, or if
    /// the pipe has ended.
    pub fn release(&mut self) -> Option<(Vec<u8>, AsyncFd<OwnedFd>, Vec<u8>)> {
        if !self.has_caught() {
            return None;
        }
        let source = self.source.take()?;
        let (line, rest) = self.watch.take()?.into_caught()?;
        Some((line, source, rest))
    }

    /// Drops the wanted line and everything after it, if it has come.
    pub fn drop_caught(&mut self) {
        if self.has_caught() {
            (self.watch, self.source) = (None, None);
        }
    }

    /// From now on everything is log, also what was kept out of it.
    pub fn unwatch(&mut self) {
        if let Some(watch) = self.watch.take() {
            self.log(&watch.into_bytes());
        }
    }

    /// Adds output of the action.
    pub fn append(&mut self, bytes: &[u8]) {
        match &mut self.watch {
            None => self.log(bytes),
            Some(watch) => {
                let passed = watch.pass(bytes);
                self.log(&passed);
            }
        }
    }

    /// Adds bytes that belong to the log.
    fn log(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        self.keep_tail(bytes);
        match &mut self.lines {
            None => self.route(bytes),
            Some(lines) => {
                let lines = lines.append(bytes);
                self.route(&lines);
            }
        }
    }

    /// Adds whole lines that are in the log's format already.
    pub(super) fn append_lines(&mut self, lines: &[u8]) {
        if !self.is_at_line_start() {
            self.route(b"\n");
        }
        self.route(lines);
    }

    /// Sends bytes in the log's format to the outbox or to the backlog.
    fn route(&mut self, bytes: &[u8]) {
        match self.phase {
            Phase::Open => self.enqueue(bytes),
            Phase::Closed => {
                let space = self.backlog_limit.saturating_sub(self.backlog.len());
                let mut kept = bytes.len().min(space);
                if self.lines.is_some() {
                    // Half an object is not JSON.
                    kept = memchr::memrchr(b'\n', &bytes[..kept]).map_or(0, |newline| newline + 1);
                }
                self.backlog.extend_from_slice(&bytes[..kept]);
                self.dropped_bytes += (bytes.len() - kept) as u64;
            }
        }
    }

    /// Adds a line of the action's output. `line` comes without its newline.
    pub fn append_line(&mut self, line: &[u8]) {
        self.append(line);
        self.append(b"\n");
    }

    /// The last lines of the stream, joined into one line for an error message; possibly empty.
    #[must_use]
    pub fn tail(&self) -> String {
        let text = String::from_utf8_lossy(&self.tail);
        let lines: Vec<_> = text.lines().map(str::trim_end).filter(|line| !line.trim().is_empty()).collect();
        lines[lines.len().saturating_sub(TAIL_LINES)..].join(" | ")
    }

    /// The stream's last bytes, as the action printed them.
    #[must_use]
    pub fn kept(&self) -> String {
        String::from_utf8_lossy(&self.tail).into_owned()
    }

    /// Forgets the tail, since a new process or an activation begins: an error must not quote what another
    /// activation logged.
    pub fn forget_tail(&mut self) {
        self.tail.clear();
        self.keeps_tail = true;
    }

    /// Keeps no tail until [`Stream::forget_tail`], since it would belong to several activations.
    pub(super) fn keep_no_tail(&mut self) {
        self.tail.clear();
        self.keeps_tail = false;
    }

    pub(super) fn keeps_tail(&self) -> bool {
        self.keeps_tail
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
            Phase::Open => self.enqueue(&line),
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

    fn keep_tail(&mut self, bytes: &[u8]) {
        if !self.keeps_tail {
            return;
        }
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
            self.enqueue(&backlog);
        }
        let dropped = std::mem::take(&mut self.dropped_bytes);
        if dropped > 0 {
            self.say(&format!(
                "pipeloop: {dropped} more bytes that the action printed between activations were dropped (PIPELOOP_LOG_BACKLOG)"
            ));
        }
    }

    /// Adds bytes to the outbox, and defuses every sentinel in them. A sentinel may arrive in two parts, so
    /// an end of the outbox that could be the start of one is withheld.
    fn enqueue(&mut self, bytes: &[u8]) {
        let Some(last) = bytes.last() else { return };
        self.at_line_start = *last == b'\n';
        let from = self.outbox.len() - self.withheld;
        self.outbox.extend_from_slice(bytes);
        let mut search = from;
        while let Some(at) = memmem::find(&self.outbox[search..], SENTINEL.as_bytes()) {
            let at = search + at;
            self.outbox[at..at + SENTINEL.len()].copy_from_slice(DEFUSED.as_bytes());
            // The end of one sentinel may be the start of the next.
            search = at + 1;
        }
        self.withheld = partial_sentinel(&self.outbox[search..]);
    }

    /// Writes as much as possible without blocking. Returns whether everything that may go is out.
    pub(super) fn flush(&mut self) -> bool {
        if self.stalled && self.sink.is_writable() {
            self.recover();
        }
        let mut end = self.sendable();
        if self.sent < end && !self.stalled && self.has_write_permit() {
            // Taking the permit may have added a byte.
            end = self.sendable();
            self.sent += self.sink.try_write(&self.outbox[self.sent..end]);
        }
        if self.sent < end {
            return false;
        }
        self.outbox.drain(..end);
        self.sent = 0;
        self.released = 0;
        self.write_permit = None;
        if self.outbox.capacity() > 2 * CHUNK && self.outbox.len() < CHUNK {
            self.outbox.shrink_to(CHUNK);
        }
        true
    }

    /// How many bytes of the outbox may go.
    fn sendable(&mut self) -> usize {
        let ready = self.outbox.len() - self.withheld;
        if self.sharing != Sharing::Gathering || self.phase == Phase::Closed {
            return ready;
        }
        if self.outbox.len() > self.backlog_limit {
            if let Some(newline) = memchr::memrchr(b'\n', &self.outbox[self.released..ready]) {
                self.released += newline + 1;
            } else if self.released == 0 {
                // The end of this line may never come, and other streams wait for the sink.
                self.outbox.insert(ready, b'\n');
                self.released = ready + 1;
                self.at_line_start = self.withheld == 0;
            }
        }
        self.released
    }

    /// Whether it may write to the sink now. Takes the permit if that is free.
    fn has_write_permit(&mut self) -> bool {
        if self.sharing == Sharing::Exclusive || self.write_permit.is_some() {
            return true;
        }
        let Some(permit) = self.sink.try_write_permit() else { return false };
        self.start_writing(permit);
        true
    }

    fn start_writing(&mut self, permit: OwnedSemaphorePermit) {
        self.write_permit = Some(permit);
        if self.sink.take_torn_line() {
            self.outbox.insert(0, b'\n');
            self.released += usize::from(self.released > 0);
        }
    }

    /// Waits until another [`Stream::flush`] may write more.
    async fn wait_to_flush(&mut self) {
        if self.sharing != Sharing::Exclusive && self.write_permit.is_none() && !self.stalled {
            let permit = self.sink.write_permit().await;
            self.start_writing(permit);
        } else {
            self.sink.writable().await;
        }
    }

    pub(super) async fn flushed(&mut self) {
        while !self.flush() {
            self.wait_to_flush().await;
        }
    }

    /// Reads what is in the pipe at this moment and no more, so that an action that goes on printing
    /// cannot keep its activation open.
    pub fn drain(&mut self) {
        let Some(source) = &self.source else { return };
        // A terminal does not say how much it holds.
        let mut waiting =
            if self.from_terminal { TERMINAL_HOLDS } else { pipe::unread(source.get_ref(), self.from_terminal) };
        while waiting > 0 {
            let mut chunk = Vec::with_capacity(waiting.min(CHUNK));
            let Some(source) = &self.source else { return };
            match pipe::read(source.get_ref(), &mut chunk) {
                Ok(0) => self.source = None,
                Ok(count) => waiting = waiting.saturating_sub(count),
                Err(Errno::INTR) => continue,
                Err(_) => return,
            }
            self.append(&chunk);
        }
    }

    /// Adds the end of an activation's log to the outbox.
    pub(super) fn finish(&mut self, sentinels: Sentinels) {
        if let Some(watch) = &mut self.watch {
            let passed = watch.pass_partial();
            self.log(&passed);
        }
        // Kept output goes out before a sentinel, also outside of any activation.
        self.begin();
        if let Some(lines) = &mut self.lines {
            let mut last = Vec::new();
            lines.finish(&mut last);
            lines.label = None;
            self.enqueue(&last);
        }
        self.withheld = 0;
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

    /// Drops the outbox, since the log reader has stalled. The action and its answer go on.
    pub(super) fn drop_unsent(&mut self) {
        let unsent = &self.outbox[self.sent..];
        tracing::warn!(bytes = unsent.len(), "the log reader has stalled; the log is dropped");
        // Sentinels that the action printed are defused, so each of these ends an activation.
        self.owed_sentinels += memmem::find_iter(unsent, SENTINEL.as_bytes()).count();
        self.lost_bytes += unsent.len();
        if self.write_permit.take().is_some() && self.sent > 0 && self.outbox[self.sent - 1] != b'\n' {
            self.sink.leave_torn_line();
        }
        self.outbox.clear();
        self.sent = 0;
        self.released = 0;
        self.withheld = 0;
        self.stalled = true;
    }

    /// The log reader reads again. It gets a notice and every missed sentinel.
    fn recover(&mut self) {
        let sentence = format!(
            "pipeloop: {} bytes of the log were dropped here, since the log reader had stalled (PIPELOOP_LOG_STALL)",
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
        // No byte of the outbox has been sent since then.
        self.released += missed.len();
        self.outbox.splice(0..0, missed.into_bytes());
        self.stalled = false;
    }

    /// Moves output from the source to the sink. Reads only while the outbox is empty.
    pub(super) async fn pump(&mut self) -> Infallible {
        loop {
            self.pump_until_caught().await;
            self.unwatch();
        }
    }

    /// As [`Stream::pump`], but returns once the wanted line has come.
    pub(super) async fn pump_until_caught(&mut self) {
        while !self.has_caught() {
            if !self.flush() {
                let stalled = self.stalled || time::timeout(self.stall_limit, self.wait_to_flush()).await.is_none();
                if stalled {
                    self.drop_unsent();
                }
                continue;
            }
            let Some(source) = &self.source else {
                // Nothing more comes here; the other stream goes on.
                return std::future::pending().await;
            };
            let mut chunk = Vec::new();
            let count = {
                let Ok(mut ready) = std::future::poll_fn(|context| source.poll_read_ready(context)).await else {
                    self.source = None;
                    continue;
                };
                chunk.reserve_exact(CHUNK);
                let result = pipe::read(ready.get_inner(), &mut chunk);
                match result {
                    Ok(count) => {
                        if count < CHUNK && !self.from_terminal {
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
                Some(_) => self.append(&chunk),
            }
        }
    }
}

/// How many bytes at the end of `bytes` could be the start of a sentinel.
fn partial_sentinel(bytes: &[u8]) -> usize {
    let sentinel = SENTINEL.as_bytes();
    let longest = bytes.len().min(sentinel.len() - 1);
    (1..=longest).rev().find(|length| bytes.ends_with(&sentinel[..*length])).unwrap_or(0)
}
