//! The action's output on its way to ours, and the sentinels that end an activation's log.
//!
//! stdout and stderr of the proxy are the action's log as the platform shows it to its author.
//! What the action prints passes through here, lines of any length, as it comes. After each
//! activation the sentinel stands exactly once on its own line on both streams, after all that the
//! action logged for it. What it prints between two activations is kept for the next one's log.
//!
//! # Theory of operation
//! A [`Stream`] has a source (a pipe of the action, possibly none), an outbox of bytes on their way
//! to a [`Sink`], and a backlog for what comes between activations. [`Logs::pump`] moves bytes for
//! as long as it is polled; cancelling it loses nothing, since all its state is in the stream.
//! It reads only while the outbox is empty: a reader of ours that stalls slows the action down
//! and costs no memory. Our stdout may be a pipe that we share and must not make non-blocking:
//! each write is asked not to wait, or is made only after `poll` said that it will not.
//!
//! Several processes of one action share our streams: [`Logs::share`]. Each then gathers the log of
//! its activation and writes it in one go, with its sentinel, while it has the [`Sink`]'s turn. What
//! is too much to gather is passed on in whole lines, so that lines of two activations never mix.

mod json;

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use memchr::memmem;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::{Errno, ReadWriteFlags};
use tokio::io::unix::AsyncFd;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::activation::Activation;
use crate::config::LogFormat;
use crate::patience;
use crate::process::pipe::watch_as_it_is;

use json::Lines;

/// The line that ends an activation's log on each stream.
///
/// Source: apache/openwhisk, `docs/actions-new.md`, "The action's log".
pub const SENTINEL: &str = "XXX_THE_END_OF_A_WHISK_ACTIVATION_XXX";
/// What a sentinel of the action's own becomes, so that it ends nothing.
pub const DEFUSED: &str = "XXX-THE-END-OF-A-WHISK-ACTIVATION-XXX";

/// What a pipe takes without blocking when `poll` calls it writable.
///
/// Source: pipe(7), `PIPE_BUF`.
const ATOMIC: usize = 4096;
/// What pwritev2(2) takes for "where the descriptor stands".
const CURRENT_POSITION: u64 = u64::MAX;
/// What is read from the action at once.
const CHUNK: usize = 64 * 1024;
/// What is kept of the end of a stream for error messages.
const TAIL_BYTES: usize = 2048;
/// What an error message quotes of it.
const TAIL_LINES: usize = 5;

/// Whether activations end with a sentinel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sentinels {
    /// As the platform expects.
    Write,
    /// On a terminal there is nobody to read them.
    Omit,
}

/// Where log bytes go: the proxy's stdout or stderr.
#[derive(Debug, Clone)]
pub struct Sink(Arc<SinkInner>);

#[derive(Debug)]
struct SinkInner {
    fd: OwnedFd,
    /// Registered with the runtime at the first wait only. `None` for files, which never block.
    registered: OnceLock<Option<AsyncFd<OwnedFd>>>,
    /// Whether one write can be asked not to wait. Pipes and `/dev/null` can, terminals cannot.
    takes_nowait: AtomicBool,
    /// Of several that share it, one writes at a time.
    turn: Arc<Semaphore>,
    /// Whoever had the turn last left in the middle of a line.
    broken_off: AtomicBool,
}

impl Sink {
    /// Writes to a descriptor without changing its flags.
    #[must_use]
    pub fn new(fd: OwnedFd) -> Self {
        Self(Arc::new(SinkInner {
            fd,
            registered: OnceLock::new(),
            takes_nowait: AtomicBool::new(true),
            turn: Arc::new(Semaphore::new(1)),
            broken_off: AtomicBool::new(false),
        }))
    }

    /// The proxy's standard output.
    ///
    /// # Errors
    /// When no descriptor is left.
    pub fn stdout() -> io::Result<Self> {
        Ok(Self::new(rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdout(), 3)?))
    }

    /// The proxy's standard error.
    ///
    /// # Errors
    /// When no descriptor is left.
    pub fn stderr() -> io::Result<Self> {
        Ok(Self::new(rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stderr(), 3)?))
    }

    /// Writes what can be written now and says how much that was.
    fn try_write(&self, bytes: &[u8]) -> usize {
        let mut written = 0;
        while written < bytes.len() {
            let rest = &bytes[written..];
            let result = match self.write_without_waiting(rest) {
                Some(result) => result,
                None if self.is_writable() => rustix::io::write(&self.0.fd, &rest[..rest.len().min(ATOMIC)]),
                None => break,
            };
            match result {
                Ok(count) => written += count,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                // The reader is gone or the disk is full: nobody can be told, and the action's
                // work is not to be lost over its log.
                Err(_) => return bytes.len(),
            }
        }
        written
    }

    /// Writes by a call that is asked not to wait, which leaves the flags of the descriptor, and so
    /// everybody who shares it, alone. `None` where that cannot be asked, or brings nothing now.
    ///
    /// Source: pwritev2(2), `RWF_NOWAIT`; for pipes since Linux 6.4.
    fn write_without_waiting(&self, bytes: &[u8]) -> Option<rustix::io::Result<usize>> {
        if !self.0.takes_nowait.load(Ordering::Relaxed) {
            return None;
        }
        match rustix::io::pwritev2(&self.0.fd, &[IoSlice::new(bytes)], CURRENT_POSITION, ReadWriteFlags::NOWAIT) {
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::PERM) => {
                self.0.takes_nowait.store(false, Ordering::Relaxed);
                None
            }
            // A file says so when it would have to wait for its disk, which it may.
            Err(Errno::AGAIN) => None,
            result => Some(result),
        }
    }

    /// Whether a write would not block now. So it is where a write can only fail.
    fn is_writable(&self) -> bool {
        loop {
            let mut fds = [PollFd::new(&self.0.fd, PollFlags::OUT)];
            match poll(&mut fds, Some(&rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 })) {
                Ok(0) => return false,
                Err(Errno::INTR) => {}
                Ok(_) | Err(_) => return true,
            }
        }
    }

    /// Waits until something can be written.
    async fn writable(&self) {
        let registered = self.0.registered.get_or_init(|| watch_as_it_is(self.0.fd.try_clone().ok()?).ok());
        match registered {
            Some(fd) => {
                if let Ok(mut ready) = fd.writable().await {
                    // Whether it really is writable is what `poll` says next.
                    ready.clear_ready();
                }
            }
            None => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
}

/// Both streams of one action.
#[derive(Debug)]
pub struct Logs {
    /// What the action prints, where stdout is not its result channel.
    pub stdout: Stream,
    /// What it logs.
    pub stderr: Stream,
    sentinels: Sentinels,
    stall_limit: Duration,
}

impl Logs {
    /// Logs of an action that has not printed anything yet.
    #[must_use]
    pub fn new(stdout: Sink, stderr: Sink, sentinels: Sentinels, bounds: &Bounds) -> Self {
        let stream = |name, sink| Stream::new(name, sink, bounds);
        let (stdout, stderr) = (stream("stdout", stdout), stream("stderr", stderr));
        Self { stdout, stderr, sentinels, stall_limit: bounds.stall_limit }
    }

    /// From now on others write to the same sinks: an activation's log is written when it is whole.
    pub fn share(&mut self) {
        for stream in [&mut self.stdout, &mut self.stderr] {
            stream.company = Company::Gathers;
        }
    }

    /// An activation begins: what was kept for it goes out first.
    pub fn begin(&mut self) {
        self.stdout.begin();
        self.stderr.begin();
    }

    /// How the log wants to call an activation; nothing where it is not told.
    #[must_use]
    pub fn label(&self, activation: &Activation) -> Option<Arc<str>> {
        self.stderr.lines.as_ref()?;
        activation.label().map(Into::into)
    }

    /// What is printed from now on is this activation's, or nobody knows whose.
    pub fn attribute(&mut self, label: Option<&Arc<str>>) {
        for stream in [&mut self.stdout, &mut self.stderr] {
            if let Some(lines) = &mut stream.lines
                && lines.label.as_ref() != label
            {
                lines.label = label.cloned();
            }
        }
    }

    /// The text of a log frame as lines of the log on stderr.
    #[must_use]
    pub fn lines_of(&self, text: &str, label: Option<&str>) -> Vec<u8> {
        let text = text.strip_suffix('\n').unwrap_or(text);
        let mut lines = Vec::with_capacity(text.len() + 1);
        if self.stderr.lines.is_some() {
            for line in text.split('\n') {
                json::object("stderr", label, line.as_bytes(), &mut lines);
            }
        } else {
            lines.extend_from_slice(text.as_bytes());
            lines.push(b'\n');
        }
        lines
    }

    /// An activation is over: everything that the action has written by now goes out, then the
    /// sentinels. Returns when they are out, or when our reader has stalled for too long.
    pub async fn end(&mut self) {
        self.finish(self.sentinels).await;
    }

    /// As [`Logs::end`], for what is no activation.
    pub async fn end_without_sentinel(&mut self) {
        self.finish(Sentinels::Omit).await;
    }

    async fn finish(&mut self, sentinels: Sentinels) {
        // One for both streams. It begins when it is waited for.
        let mut patience = std::pin::pin!(patience::sleep(self.stall_limit));
        let mut over = false;
        for stream in [&mut self.stdout, &mut self.stderr] {
            stream.drain();
            stream.finish(sentinels);
            if stream.flush() {
                continue;
            }
            if !stream.stalled && !over {
                tokio::select! {
                    biased;
                    () = stream.flushed() => continue,
                    () = &mut patience => over = true,
                }
            }
            stream.give_up();
        }
    }

    /// Moves the action's output for as long as it is polled. Never returns.
    pub async fn pump(&mut self) {
        tokio::select! {
            () = self.stdout.pump() => {}
            () = self.stderr.pump() => {}
        }
    }

    /// Takes what the action has written by now, without waiting for more.
    pub fn drain(&mut self) {
        self.stdout.drain();
        self.stderr.drain();
    }

    /// A sentence for the action's author, on a line of its own on stderr.
    pub fn say(&mut self, sentence: &str) {
        self.stderr.say(sentence);
    }

    /// Writes out what may go without a sentinel: the last output of an action that was stopped
    /// goes nowhere when an activation's sentinel stands already.
    pub async fn pass_on(&mut self) {
        for stream in [&mut self.stdout, &mut self.stderr] {
            stream.held = 0;
            stream.company.gathers_no_more();
            let _ = patience::timeout(self.stall_limit, stream.flushed()).await;
        }
    }

    /// Takes what is left in the pipes of a process that has ended, and lets go of them.
    pub fn detach(&mut self) {
        for stream in [&mut self.stdout, &mut self.stderr] {
            stream.drain();
            stream.source = None;
        }
    }
}

/// The bounds of a log.
#[derive(Debug, Clone)]
pub struct Bounds {
    /// The most bytes kept of what an action prints between two activations, on each stream, and
    /// gathered of an activation's log where several share it.
    pub backlog_bytes: usize,
    /// How long the action and its answer wait for a reader of the log that does not read.
    pub stall_limit: Duration,
    /// How lines are written.
    pub format: LogFormat,
}

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
    company: Company,
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
enum Company {
    /// Nobody.
    Alone,
    /// Others do, each when it has the turn. The log of an activation is held until it is whole, or
    /// too much.
    Gathers,
    /// Others do, and there is nothing to be waited for.
    Shares,
}

impl Company {
    fn gathers_no_more(&mut self) {
        if *self == Self::Gathers {
            *self = Self::Shares;
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Output goes out as it comes. So it is before the first sentinel as well.
    Open,
    /// A sentinel was the last thing written: output is kept.
    Closed,
}

impl Stream {
    fn new(name: &'static str, sink: Sink, bounds: &Bounds) -> Self {
        Self {
            source: None,
            sink,
            lines: (bounds.format == LogFormat::Json).then(|| Lines::new(name)),
            outbox: Vec::new(),
            sent: 0,
            company: Company::Alone,
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
    pub fn feed_apart(&mut self, lines: &[u8]) {
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

    fn say(&mut self, sentence: &str) {
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
            Some(lines) => json::object("stderr", lines.label.as_deref(), sentence.as_bytes(), &mut line),
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

    fn begin(&mut self) {
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
    fn flush(&mut self) -> bool {
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
        if self.company != Company::Gathers || self.phase == Phase::Closed {
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
        if self.company == Company::Alone || self.turn.is_some() {
            return true;
        }
        let Ok(turn) = self.sink.0.turn.clone().try_acquire_owned() else { return false };
        self.take(turn);
        true
    }

    fn take(&mut self, turn: OwnedSemaphorePermit) {
        self.turn = Some(turn);
        if self.sink.0.broken_off.swap(false, Ordering::Relaxed) {
            self.outbox.insert(0, b'\n');
            self.released += usize::from(self.released > 0);
        }
    }

    /// Waits until a [`Stream::flush`] that left something may get further.
    async fn may_flush(&mut self) {
        if self.company != Company::Alone && self.turn.is_none() && !self.stalled {
            let turn = self.sink.0.turn.clone().acquire_owned().await.expect("the semaphore is never closed");
            self.take(turn);
        } else {
            self.sink.writable().await;
        }
    }

    async fn flushed(&mut self) {
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
    fn finish(&mut self, sentinels: Sentinels) {
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
    fn give_up(&mut self) {
        let unsent = &self.outbox[self.sent..];
        tracing::warn!(bytes = unsent.len(), "nobody reads the log; it is dropped");
        // The action's own sentinels are defused, so these are ours.
        self.owed_sentinels += memmem::find_iter(unsent, SENTINEL.as_bytes()).count();
        self.lost_bytes += unsent.len();
        if self.turn.take().is_some() && self.sent > 0 && self.outbox[self.sent - 1] != b'\n' {
            self.sink.0.broken_off.store(true, Ordering::Relaxed);
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
        let mut missed = if self.lines.is_some() {
            let mut line = vec![b'\n'];
            json::object("stderr", None, sentence.as_bytes(), &mut line);
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
    async fn pump(&mut self) {
        loop {
            if !self.flush() {
                let stalls = self.stalled || patience::timeout(self.stall_limit, self.may_flush()).await.is_none();
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
                let Ok(mut ready) = source.readable().await else {
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

impl AsFd for Sink {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::pipe::{pipe, watch};
    use proptest::prelude::*;
    use std::io::Read;

    /// What an action does, as the log sees it.
    #[derive(Debug, Clone)]
    enum Step {
        Begin,
        Print(Vec<u8>),
        End,
    }

    /// Takes an action's stdout through some steps and returns what our stdout got.
    fn check(steps: &[Step], backlog_bytes: usize) -> String {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (read, write) = pipe().unwrap();
        // Read at the same time, as a log collector does.
        let collector = std::thread::spawn(move || {
            let mut text = Vec::new();
            std::fs::File::from(read).read_to_end(&mut text).unwrap();
            text
        });
        runtime.block_on(async {
            let (source, action) = pipe().unwrap();
            rustix::fs::fcntl_setfl(&action, rustix::fs::OFlags::NONBLOCK).unwrap();
            let bounds = Bounds { backlog_bytes, stall_limit: Duration::from_secs(10), format: LogFormat::Text };
            let null = std::fs::OpenOptions::new().write(true).open("/dev/null").unwrap();
            let mut logs = Logs::new(Sink::new(write), Sink::new(null.into()), Sentinels::Write, &bounds);
            logs.stdout.attach(watch(source).unwrap(), b"");
            for step in steps {
                match step {
                    Step::Begin => logs.begin(),
                    Step::End => logs.end().await,
                    Step::Print(bytes) => {
                        let mut rest = &bytes[..];
                        while !rest.is_empty() {
                            // What the pipe holds, which is little where a user has many of them (pipe(7),
                            // `pipe-user-pages-soft`): nobody would be there to read the rest.
                            match rustix::io::write(&action, &rest[..rest.len().min(32 * 1024)]) {
                                Ok(written) => rest = &rest[written..],
                                Err(error) => assert_eq!(error, Errno::AGAIN),
                            }
                            pump_until(&mut logs, 0).await;
                        }
                    }
                }
            }
            logs.pass_on().await;
        });
        drop(runtime);
        String::from_utf8(collector.join().unwrap()).unwrap()
    }

    /// Lets the log be moved until no more than so much of it stands in the action's pipe.
    async fn pump_until(logs: &mut Logs, left_bytes: u64) {
        let unread = |logs: &Logs| {
            let source = logs.stdout.source.as_ref().unwrap();
            rustix::io::ioctl_fionread(source.get_ref()).unwrap()
        };
        while unread(logs) > left_bytes {
            let _ = tokio::time::timeout(Duration::from_millis(1), logs.pump()).await;
        }
    }

    fn print(text: impl AsRef<[u8]>) -> Step {
        Step::Print(text.as_ref().to_vec())
    }

    #[test]
    fn an_activation_ends_with_its_sentinel_on_a_line_of_its_own() {
        let steps = [Step::Begin, print("a\n"), Step::End, Step::Begin, print("b"), Step::End, Step::Begin, Step::End];
        assert_eq!(check(&steps, 100), format!("a\n{SENTINEL}\nb\n{SENTINEL}\n{SENTINEL}\n"));
    }

    #[test]
    fn output_between_activations_belongs_to_the_next() {
        let steps = [Step::Begin, Step::End, print("late\n"), Step::Begin, print("b\n"), Step::End];
        assert_eq!(check(&steps, 100), format!("{SENTINEL}\nlate\nb\n{SENTINEL}\n"));
    }

    #[test]
    fn output_before_the_first_activation_is_not_held_back() {
        assert_eq!(check(&[print("starting\n")], 0), "starting\n");
    }

    #[test]
    fn a_backlog_is_bounded_and_says_what_it_dropped() {
        // What is dropped from stdout is told on stderr's stream of the same kind; here it is one.
        let steps = [Step::Begin, Step::End, print("0123456789"), Step::Begin, Step::End];
        assert_eq!(
            check(&steps, 4),
            format!(
                "{SENTINEL}\n0123\npipeloop: 6 more bytes that the action printed between activations were dropped (PIPELOOP_LOG_BACKLOG)\n{SENTINEL}\n"
            )
        );
    }

    #[test]
    fn a_sentinel_of_the_actions_own_is_defused_however_it_arrives() {
        for cut in 0..=SENTINEL.len() {
            let (head, tail) = SENTINEL.split_at(cut);
            let steps = [Step::Begin, print(head), print(tail), print("\n"), Step::End];
            assert_eq!(check(&steps, 100), format!("{DEFUSED}\n{SENTINEL}\n"), "cut at {cut}");
        }
        // What only begins like one is let go at the end of the activation.
        let steps = [Step::Begin, print("XXX_THE_END"), Step::End];
        assert_eq!(check(&steps, 100), format!("XXX_THE_END\n{SENTINEL}\n"));
    }

    #[test]
    fn a_line_of_any_length_passes_whole() {
        let long = "x".repeat(5_000_000);
        let steps = [Step::Begin, print(&long), Step::End];
        assert_eq!(check(&steps, 100), format!("{long}\n{SENTINEL}\n"));
    }

    #[test]
    fn a_log_that_nobody_reads_delays_an_answer_for_a_bounded_time_only() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (_unread, write) = pipe().unwrap();
            let (source, action) = pipe().unwrap();
            let bounds = Bounds { backlog_bytes: 0, stall_limit: Duration::from_millis(50), format: LogFormat::Text };
            let sink = Sink::new(write);
            let mut logs = Logs::new(sink.clone(), sink, Sentinels::Write, &bounds);
            logs.stdout.attach(watch(source).unwrap(), b"");
            for _ in 0..4 {
                rustix::io::write(&action, &vec![b'x'; 32 * 1024]).unwrap();
                // The last one is left standing, since the sink is full.
                pump_until(&mut logs, 32 * 1024).await;
            }
            tokio::time::timeout(Duration::from_secs(10), logs.end()).await.expect("it gives the log up");
        });
    }

    #[test]
    fn a_reader_that_comes_back_is_told_and_gets_its_sentinels() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (read, write) = pipe().unwrap();
        let null = std::fs::OpenOptions::new().write(true).open("/dev/null").unwrap();
        let text = runtime.block_on(async {
            let bounds = Bounds { backlog_bytes: 0, stall_limit: Duration::from_millis(20), format: LogFormat::Text };
            let mut logs = Logs::new(Sink::new(write), Sink::new(null.into()), Sentinels::Write, &bounds);
            for _ in 0..3 {
                logs.begin();
                // More than the pipe holds.
                logs.stdout.feed(&vec![b'x'; 100_000]);
                logs.end().await;
            }
            let mut read = std::fs::File::from(read);
            let mut text = vec![0; 64 * 1024];
            read.read_exact(&mut text).unwrap();
            logs.begin();
            logs.stdout.feed(b"seen\n");
            logs.end().await;
            drop(logs);
            read.read_to_end(&mut text).unwrap();
            String::from_utf8(text).unwrap()
        });
        assert_eq!(text.matches(SENTINEL).count(), 4, "{}", &text[64 * 1024..]);
        assert!(text.contains("bytes of the log were dropped here"), "{}", &text[64 * 1024..]);
        assert!(text.ends_with(&format!("{SENTINEL}\nseen\n{SENTINEL}\n")), "{}", &text[64 * 1024..]);
    }

    #[test]
    fn the_tail_is_the_last_lines_on_one() {
        let (_read, write) = pipe().unwrap();
        let bounds = Bounds { backlog_bytes: 0, stall_limit: Duration::ZERO, format: LogFormat::Text };
        let mut stream = Stream::new("stdout", Sink::new(write), &bounds);
        stream.feed("first\n".repeat(2000).as_bytes());
        stream.feed(b"Traceback\n\n  here  \nImportError: no module\n");
        assert_eq!(stream.tail(), "first | first | Traceback |   here | ImportError: no module");
        stream.forget_tail();
        assert_eq!(stream.tail(), "");
    }

    #[test]
    fn who_writes_keeps_the_turn_until_its_log_is_out() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (read, write) = pipe().unwrap();
        let capacity = rustix::pipe::fcntl_setpipe_size(&write, 4096).unwrap();
        let null = std::fs::OpenOptions::new().write(true).open("/dev/null").unwrap();
        let (stdout, stderr) = (Sink::new(write), Sink::new(null.into()));
        let logs = || {
            let bounds =
                Bounds { backlog_bytes: 100_000, stall_limit: Duration::from_secs(10), format: LogFormat::Text };
            let mut logs = Logs::new(stdout.clone(), stderr.clone(), Sentinels::Write, &bounds);
            logs.share();
            logs
        };
        let (mut large, mut small) = (logs(), logs());
        let mut text = Vec::new();
        runtime.block_on(async {
            large.stdout.feed_line("x".repeat(2 * capacity).as_bytes());
            small.stdout.feed_line(b"small");
            let mut ends = [Box::pin(large.end()), Box::pin(small.end())];
            let mut over = [false; 2];
            while over.contains(&false) {
                for (end, over) in ends.iter_mut().zip(&mut over).filter(|(_, over)| !**over) {
                    *over = tokio::time::timeout(Duration::from_millis(1), end).await.is_ok();
                    // There is room, and the other one is asked first whether it has something to write.
                    let mut piece = vec![0; capacity];
                    if rustix::io::ioctl_fionread(&read).unwrap() > 0 {
                        let count = rustix::io::read(&read, &mut piece).unwrap();
                        text.extend_from_slice(&piece[..count]);
                    }
                }
            }
            let left = usize::try_from(rustix::io::ioctl_fionread(&read).unwrap()).unwrap();
            let mut piece = vec![0; left];
            if left > 0 {
                let count = rustix::io::read(&read, &mut piece).unwrap();
                text.extend_from_slice(&piece[..count]);
            }
        });
        let expected = format!("{}\n{SENTINEL}\nsmall\n{SENTINEL}\n", "x".repeat(2 * capacity));
        assert!(text == expected.as_bytes(), "{}", String::from_utf8_lossy(&text).replace(&"x".repeat(1_000), "…"));
    }

    /// Several activations at once, each with its lines, over one sink that is read now and then.
    fn share(activations: Vec<Vec<Vec<String>>>, backlog_bytes: usize) -> String {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (read, write) = pipe().unwrap();
        // So that writes stop in the middle of a line.
        rustix::pipe::fcntl_setpipe_size(&write, 4096).unwrap();
        let collector = std::thread::spawn(move || {
            let (mut file, mut text, mut piece) = (std::fs::File::from(read), Vec::new(), [0; 1000]);
            loop {
                match file.read(&mut piece).unwrap() {
                    0 => return text,
                    count => text.extend_from_slice(&piece[..count]),
                }
            }
        });
        let null = std::fs::OpenOptions::new().write(true).open("/dev/null").unwrap();
        let (stdout, stderr) = (Sink::new(write), Sink::new(null.into()));
        runtime.block_on(async {
            let workers: Vec<_> = activations
                .into_iter()
                .map(|activations| {
                    let bounds =
                        Bounds { backlog_bytes, stall_limit: Duration::from_secs(10), format: LogFormat::Text };
                    let mut logs = Logs::new(stdout.clone(), stderr.clone(), Sentinels::Write, &bounds);
                    logs.share();
                    tokio::spawn(async move {
                        for lines in activations {
                            logs.begin();
                            for line in lines {
                                // In two pieces, between which others come to write.
                                let (head, tail) = line.split_at(line.len() / 2);
                                logs.stdout.feed(head.as_bytes());
                                let _ = tokio::time::timeout(Duration::ZERO, logs.pump()).await;
                                logs.stdout.feed_line(tail.as_bytes());
                                let _ = tokio::time::timeout(Duration::ZERO, logs.pump()).await;
                            }
                            logs.end().await;
                        }
                        logs.pass_on().await;
                    })
                })
                .collect();
            for worker in workers {
                worker.await.unwrap();
            }
        });
        drop((runtime, stdout));
        String::from_utf8(collector.join().unwrap()).unwrap()
    }

    proptest! {
        /// However many share a sink, lines stay whole and in order, and what is gathered stays together.
        #[test]
        fn activations_that_share_a_sink_do_not_mix(
            lengths in prop::collection::vec(prop::collection::vec(prop::collection::vec(0_usize..3_000, 0..8), 0..4), 1..5),
            backlog_bytes in prop::sample::select(vec![5_000, 1_000_000]),
        ) {
            let line = |worker: usize, activation: usize, number: usize, length: usize| {
                format!("{worker} {activation} {number} {}", "x".repeat(length))
            };
            let mut expected = Vec::new();
            for (worker, activations) in lengths.iter().enumerate() {
                for (activation, lengths) in activations.iter().enumerate() {
                    let lines = lengths.iter().enumerate();
                    expected.push(lines.map(|(number, length)| line(worker, activation, number, *length)).collect::<Vec<_>>());
                }
            }
            let mut all = expected.iter();
            let activations =
                lengths.iter().map(|activations| all.by_ref().take(activations.len()).cloned().collect()).collect();
            let text = share(activations, backlog_bytes);
            prop_assert_eq!(text.lines().filter(|line| *line == SENTINEL).count(), expected.len());
            let logs = |text: &str| -> Vec<String> { text.lines().filter(|line| *line != SENTINEL).map(str::to_owned).collect() };
            let mut seen: std::collections::BTreeMap<String, Vec<String>> = std::collections::BTreeMap::new();
            for line in logs(&text) {
                let whose = line.splitn(3, ' ').take(2).collect::<Vec<_>>().join(" ");
                seen.entry(whose).or_default().push(line);
            }
            let with_lines: Vec<_> = expected.iter().filter(|lines| !lines.is_empty()).collect();
            prop_assert_eq!(seen.values().collect::<Vec<_>>(), with_lines);
            if backlog_bytes > 100_000 {
                for log in text.split(&format!("{SENTINEL}\n")) {
                    let log = logs(log);
                    prop_assert!(log.is_empty() || expected.contains(&log), "an activation's log stands together");
                }
            }
        }

        /// Whatever is printed in whatever pieces: each activation has one sentinel, nothing of its
        /// output is lost, and nothing else looks like a sentinel.
        #[test]
        fn logs_are_whole_and_sentinels_are_counted(
            activations in prop::collection::vec(
                prop::collection::vec(prop_oneof![
                    "[a\n]{0,5}",
                    Just(SENTINEL.to_owned()),
                    (0..SENTINEL.len()).prop_map(|cut| SENTINEL[..cut].to_owned()),
                    (0..SENTINEL.len()).prop_map(|cut| SENTINEL[cut..].to_owned()),
                ], 0..5), 1..5),
        ) {
            let mut steps = Vec::new();
            for pieces in &activations {
                steps.push(Step::Begin);
                steps.extend(pieces.iter().map(print));
                steps.push(Step::End);
            }
            let text = check(&steps, 0);
            prop_assert_eq!(text.matches(SENTINEL).count(), activations.len());
            let logs: Vec<&str> = text.split_inclusive(&format!("{SENTINEL}\n")).collect();
            prop_assert_eq!(logs.len(), activations.len());
            for (log, pieces) in logs.iter().zip(&activations) {
                let log = log.strip_suffix(&format!("{SENTINEL}\n")).unwrap();
                let mut expected = pieces.concat();
                while expected.contains(SENTINEL) {
                    expected = expected.replacen(SENTINEL, DEFUSED, 1);
                }
                if !expected.is_empty() && !expected.ends_with('\n') {
                    expected.push('\n');
                }
                prop_assert_eq!(log, expected);
            }
        }
    }
}
