//! Lines over pipes.
//!
//! A message is one line, ended by LF or CR LF; empty lines are ignored. Knows bytes, not JSON.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use anstream::adapter::strip_bytes;
use bytes::Bytes;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;

use crate::process::Process;
use crate::process::pipe;
use crate::process::wait_state::{WaitState, probe};

/// The size of the first read. A small answer fits, and an idle proxy stays small.
const FIRST_READ: usize = 8 * 1024;
/// The size of a read once a message turns out to be large: as much as an enlarged pipe holds.
const LARGE_READ: usize = 1024 * 1024;
/// A line up to this size is copied out of the buffer, which is then reused. A longer line takes the
/// buffer along, because copying it would cost more than a new buffer.
const COPY_BELOW: usize = 16 * 1024;
/// The size of an enlarged pipe. A pipe holds 64 KiB by default, so that a mebibyte takes sixteen
/// wake-ups. An unprivileged process may ask for this much.
///
/// Source: pipe(7), `/proc/sys/fs/pipe-max-size`.
const LARGE_PIPE: usize = 1024 * 1024;
/// The first byte of an escape sequence.
const ESCAPE: u8 = 0x1b;
/// A message longer than this is worth enlarging its pipe for.
const ENLARGE_PIPE_FROM: usize = 64 * 1024;

/// The reading end of a pipe, line by line.
#[derive(Debug)]
pub struct LineReader {
    fd: AsyncFd<OwnedFd>,
    /// Bytes `..start` are taken; `start..scanned` hold no newline.
    buffer: Vec<u8>,
    start: usize,
    scanned: usize,
    ended: bool,
    enlarged: bool,
    /// A terminal passes its output on in parts, and its end is an error.
    is_terminal: bool,
    empty_lines: u64,
}

/// What one attempt to read found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fill {
    /// Bytes.
    Some,
    /// Nothing for now.
    WouldBlock,
    /// The other side has closed the pipe; no more bytes will come.
    End,
}

/// The bytes that have arrived and were not taken as lines.
#[derive(Debug)]
pub struct Pending<'a> {
    pipe: &'a OwnedFd,
    is_terminal: bool,
    /// How many bytes were read from the pipe already.
    buffered: usize,
}

impl Pending<'_> {
    /// How many bytes there are in the pipe and in the buffer. Asks the kernel.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.buffered.saturating_add(pipe::unread(self.pipe, self.is_terminal))
    }
}

/// As [`LineReader::before_last_line`], of any text.
#[must_use]
pub fn before_last_line(text: &[u8]) -> usize {
    let before = text.len().checked_sub(1).and_then(|last| memchr::memrchr(b'\n', &text[..last]));
    before.map_or(0, |newline| newline + 1)
}

impl LineReader {
    /// Reads lines from a non-blocking pipe.
    #[must_use]
    pub fn new(fd: AsyncFd<OwnedFd>) -> Self {
        let is_terminal = pipe::is_terminal(fd.get_ref());
        Self {
            fd,
            buffer: Vec::new(),
            start: 0,
            scanned: 0,
            ended: false,
            enlarged: false,
            is_terminal,
            empty_lines: 0,
        }
    }

    /// Whether it reads what a process writes to a terminal.
    #[must_use]
    pub fn is_terminal(&self) -> bool {
        self.is_terminal
    }

    /// Goes on where another reader of the pipe has stopped. `read` is what it took and did not use.
    #[must_use]
    pub fn resume(fd: AsyncFd<OwnedFd>, read: Vec<u8>) -> Self {
        Self { buffer: read, ..Self::new(fd) }
    }

    /// Whether end-of-file has been read.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// Takes the next whole line, without its end. Skips empty lines. A line from a terminal comes without escape
    /// sequences: many programs colour what they write to one, and JSON holds no raw escape character.
    pub fn next_line(&mut self) -> Option<Bytes> {
        loop {
            let newline = self.scan()?;
            let line = self.start..newline;
            self.start = newline + 1;
            self.scanned = self.start;
            let length = self.buffer[line.clone()].trim_ascii_end().len();
            if length == 0 {
                self.empty_lines += 1;
                self.reuse();
                continue;
            }
            let line = line.start..line.start + length;
            if self.is_terminal && memchr::memchr(ESCAPE, &self.buffer[line.clone()]).is_some() {
                let plain = strip_bytes(&self.buffer[line]).into_vec();
                self.reuse();
                return Some(plain.trim_ascii().to_vec().into());
            }
            if line.start == 0 && length > COPY_BELOW && self.start == self.buffer.len() {
                let mut taken = std::mem::take(&mut self.buffer);
                (self.start, self.scanned) = (0, 0);
                taken.truncate(length);
                return Some(taken.into());
            }
            let copied = Bytes::copy_from_slice(&self.buffer[line]);
            self.reuse();
            return Some(copied);
        }
    }

    /// How many empty lines were skipped so far.
    #[must_use]
    pub fn empty_lines(&self) -> u64 {
        self.empty_lines
    }

    /// The pipe or terminal itself.
    #[must_use]
    pub fn source(&self) -> &OwnedFd {
        self.fd.get_ref()
    }

    /// The bytes after the last whole line: the beginning of a line or, at the end, a line without LF.
    #[must_use]
    pub fn partial(&self) -> &[u8] {
        self.buffer[self.start..].trim_ascii_end()
    }

    /// All bytes that were read and not taken.
    #[must_use]
    pub fn pending(&self) -> &[u8] {
        &self.buffer[self.start..]
    }

    /// How many pending bytes are before the last line, for a reader that needs only that one. The last line
    /// may still grow; a newline that is the very last byte belongs to it.
    #[must_use]
    pub fn before_last_line(&self) -> usize {
        before_last_line(self.pending())
    }

    /// How many bytes have arrived by now: pending ones, and those in the pipe. Asks the kernel.
    #[must_use]
    pub fn arrived(&self) -> usize {
        let Self { is_terminal, .. } = *self;
        Pending { pipe: self.fd.get_ref(), is_terminal, buffered: self.pending_len() }.bytes()
    }

    /// Takes the first `count` pending bytes.
    pub fn skip(&mut self, count: usize) {
        self.start += count;
        self.scanned = self.scanned.max(self.start);
        self.reuse();
    }

    /// Takes all pending bytes.
    pub fn take_rest(&mut self) -> Vec<u8> {
        let rest = self.buffer.split_off(self.start);
        self.buffer.clear();
        (self.start, self.scanned) = (0, 0);
        rest
    }

    /// Reads once, without waiting.
    ///
    /// # Errors
    /// The kernel's error, never `WouldBlock`.
    pub fn try_fill(&mut self) -> io::Result<Fill> {
        self.try_fill_after(|_| {})
    }

    /// As [`LineReader::try_fill`], but calls `observe` before the read.
    ///
    /// # Errors
    /// As [`LineReader::try_fill`].
    pub fn try_fill_after(&mut self, observe: impl FnOnce(&Pending<'_>)) -> io::Result<Fill> {
        if self.ended {
            return Ok(Fill::End);
        }
        self.make_space();
        let Self { is_terminal, .. } = *self;
        observe(&Pending { pipe: self.fd.get_ref(), is_terminal, buffered: self.buffer.len() - self.start });
        match pipe::read(self.fd.get_ref(), &mut self.buffer) {
            Ok(0) => {
                self.ended = true;
                Ok(Fill::End)
            }
            Ok(_) => Ok(Fill::Some),
            Err(Errno::AGAIN) => Ok(Fill::WouldBlock),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits until there are bytes, and reads once. Cancelling it loses nothing.
    ///
    /// # Errors
    /// The kernel's error. After [`Fill::End`] it never becomes ready again.
    pub async fn fill(&mut self) -> io::Result<Fill> {
        self.fill_after(|_| {}).await
    }

    /// As [`LineReader::fill`], but calls `observe` before each read.
    ///
    /// # Errors
    /// As [`LineReader::fill`].
    pub async fn fill_after(&mut self, mut observe: impl FnMut(&Pending<'_>)) -> io::Result<Fill> {
        if self.ended {
            std::future::pending::<()>().await;
        }
        loop {
            // Before the wait, which borrows the pipe's descriptor.
            self.make_space();
            // Not `readable`: it allocates its place in the list of waiters each time.
            let mut ready = std::future::poll_fn(|context| self.fd.poll_read_ready(context)).await?;
            let Self { is_terminal, .. } = *self;
            observe(&Pending { pipe: ready.get_inner(), is_terminal, buffered: self.buffer.len() - self.start });
            match pipe::read(ready.get_inner(), &mut self.buffer) {
                Ok(0) => {
                    self.ended = true;
                    return Ok(Fill::End);
                }
                Ok(_) => {
                    // Spare capacity means that the pipe is empty. So the next wait is for a new event,
                    // without a read that would find nothing.
                    if self.buffer.len() < self.buffer.capacity() && !is_terminal {
                        ready.clear_ready();
                    }
                    return Ok(Fill::Some);
                }
                Err(Errno::AGAIN) => ready.clear_ready(),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// How many bytes were read and not taken.
    #[must_use]
    pub fn pending_len(&self) -> usize {
        self.buffer.len() - self.start
    }

    /// Returns the pipe, for a reader that needs no lines, and the pending bytes.
    #[must_use]
    pub fn into_parts(mut self) -> (AsyncFd<OwnedFd>, Vec<u8>) {
        let rest = self.take_rest();
        (self.fd, rest)
    }

    /// Finds the next newline. Scans each byte once.
    fn scan(&mut self) -> Option<usize> {
        let found = memchr::memchr(b'\n', &self.buffer[self.scanned..]).map(|at| self.scanned + at);
        if found.is_none() {
            self.scanned = self.buffer.len();
        }
        found
    }

    /// Starts again at the front of the buffer once all bytes are taken.
    fn reuse(&mut self) {
        if self.start == self.buffer.len() {
            self.buffer.clear();
            (self.start, self.scanned) = (0, 0);
        }
    }

    /// Makes space to read into: little at first, much once a message is large.
    fn make_space(&mut self) {
        if self.start > 0 && self.start >= self.buffer.len() / 2 {
            self.buffer.drain(..self.start);
            self.scanned -= self.start;
            self.start = 0;
        }
        let pending = self.buffer.len() - self.start;
        if pending >= ENLARGE_PIPE_FROM / 2 && !self.enlarged {
            self.enlarged = true;
            // Best effort: if the kernel refuses, the pipe keeps its size.
            let _ = rustix::pipe::fcntl_setpipe_size(self.fd.get_ref(), LARGE_PIPE);
        }
        let spare = self.buffer.capacity() - self.buffer.len();
        if pending < ENLARGE_PIPE_FROM / 2 {
            if spare < FIRST_READ / 2 {
                self.buffer.reserve(FIRST_READ.max(ENLARGE_PIPE_FROM.min(pending * 4)));
            }
        } else if spare < ENLARGE_PIPE_FROM {
            self.buffer.reserve(LARGE_READ.max(pending));
        }
    }
}

/// The writing end of a pipe.
#[derive(Debug)]
pub struct LineWriter {
    fd: AsyncFd<OwnedFd>,
    enlarged: bool,
}

impl LineWriter {
    /// Writes to a non-blocking pipe.
    #[must_use]
    pub fn new(fd: AsyncFd<OwnedFd>) -> Self {
        Self { fd, enlarged: false }
    }

    /// Writes as much as fits now. 0 means that nothing does.
    ///
    /// # Errors
    /// `BrokenPipe` when the reading end is closed.
    pub fn try_write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > ENLARGE_PIPE_FROM && !self.enlarged {
            self.enlarged = true;
            let _ = rustix::pipe::fcntl_setpipe_size(self.fd.get_ref(), LARGE_PIPE);
        }
        loop {
            match rustix::io::write(self.fd.get_ref(), bytes) {
                Ok(written) => return Ok(written),
                Err(Errno::AGAIN) => return Ok(0),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Waits until the pipe has space, and writes. Cancelling it loses nothing.
    ///
    /// # Errors
    /// As [`LineWriter::try_write`].
    pub async fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            let mut ready = self.fd.writable().await?;
            match rustix::io::write(ready.get_inner(), bytes) {
                Ok(written) => {
                    if written < bytes.len() {
                        ready.clear_ready();
                    }
                    return Ok(written);
                }
                Err(Errno::AGAIN) => ready.clear_ready(),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Takes back `count` written bytes, if the process has read none of them and everything before them. Returns
    /// whether it did; otherwise the process must not be sent anything any more.
    ///
    /// Opening the pipe again by its name in `/proc` yields its other end, as fifo(7) has it.
    #[must_use]
    pub fn take_back(&self, count: u64) -> bool {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let name = format!("/proc/self/fd/{}", self.fd.as_raw_fd());
        let Ok(reader) = rustix::fs::open(name, flags, Mode::empty()) else { return false };
        let (mut taken, mut chunk) = (0, vec![0; FIRST_READ]);
        while let Ok(read @ 1..) = rustix::io::read(&reader, &mut chunk) {
            taken += read as u64;
        }
        taken == count
    }

    /// How many bytes in the pipe are unread, if the kernel says so.
    #[must_use]
    pub fn unread(&self) -> Option<u64> {
        rustix::io::ioctl_fionread(self.fd.get_ref()).ok()
    }

    /// Whether a process has read everything and waits for more; `None` where `/proc` does not show it.
    #[must_use]
    pub fn is_waited_for(&self, process: &Process) -> Option<bool> {
        if self.unread()? > 0 {
            return Some(false);
        }
        match probe(process.pid, self.pipe()) {
            WaitState::WaitsOnStdin => Some(true),
            WaitState::Busy => Some(false),
            WaitState::Unknown => None,
        }
    }

    /// The pipe itself.
    #[must_use]
    pub fn pipe(&self) -> &OwnedFd {
        self.fd.get_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rustix::pipe::{PipeFlags, pipe_with};

    /// A reader, and the descriptor to write to it.
    fn reader() -> (LineReader, OwnedFd) {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).unwrap();
        (LineReader::new(crate::process::pipe::watch(read).unwrap()), write)
    }

    fn on_runtime<T>(test: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test)
    }

    async fn lines_of(parts: &[&[u8]]) -> (Vec<Bytes>, Vec<u8>) {
        let (mut reader, writer) = reader();
        let mut lines = Vec::new();
        for part in parts {
            let mut rest = *part;
            while !rest.is_empty() {
                rest = &rest[rustix::io::write(&writer, rest).unwrap_or(0)..];
                assert_eq!(reader.fill().await.unwrap(), Fill::Some);
                while let Some(line) = reader.next_line() {
                    lines.push(line);
                }
            }
        }
        drop(writer);
        assert_eq!(reader.fill().await.unwrap(), Fill::End);
        assert!(reader.next_line().is_none());
        (lines, reader.partial().to_vec())
    }

    #[test]
    fn lines_end_with_lf_or_cr_lf_and_empty_ones_are_ignored() {
        on_runtime(async {
            let (lines, rest) = lines_of(&[b"{\"a\":1}\r\n\n \r\n[", b"2]\n{\"unfinished\""]).await;
            assert_eq!(lines, ["{\"a\":1}", "[2]"]);
            assert_eq!(rest, b"{\"unfinished\"");
        });
    }

    #[test]
    fn a_large_line_arrives_whole() {
        on_runtime(async {
            let large = [b"x".repeat(3_000_000), b"\n".to_vec()].concat();
            let (lines, rest) = lines_of(&[b"before\n", &large, b"after\n"]).await;
            assert_eq!(lines.iter().map(Bytes::len).collect::<Vec<_>>(), [6, 3_000_000, 5]);
            assert!(rest.is_empty());
        });
    }

    proptest! {
        /// However a text is cut on its way, its lines are the same.
        #[test]
        fn framing_does_not_depend_on_how_bytes_arrive(
            text in "[ab \n\r]{0,200}",
            cuts in prop::collection::vec(0usize..200, 0..10),
        ) {
            let expected: Vec<Vec<u8>> = text.as_bytes().split_inclusive(|byte| *byte == b'\n')
                .filter(|line| line.ends_with(b"\n"))
                .map(|line| line.trim_ascii_end().to_vec())
                .filter(|line| !line.is_empty())
                .collect();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(text.len())).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let parts: Vec<&[u8]> = cuts.windows(2).map(|pair| &text.as_bytes()[pair[0]..pair[1]]).collect();
            let (lines, _) = on_runtime(lines_of(&parts));
            prop_assert_eq!(lines.iter().map(|line| line.to_vec()).collect::<Vec<_>>(), expected);
        }
    }
}
