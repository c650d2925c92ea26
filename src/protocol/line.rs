//! Lines over pipes: framing and bounds, without waiting longer than there is nothing.
//!
//! A message is one line ended by LF or CR LF; empty lines are ignored. Knows bytes, not JSON.

use std::io;
use std::os::fd::OwnedFd;

use bytes::Bytes;
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;

use crate::process::Process;
use crate::process::wait_state::{Probe, look};

/// What is read at once at first. A small answer fits, and an idle proxy stays small.
const FIRST_READ: usize = 8 * 1024;
/// What is read at once when a message turns out to be large: what a grown pipe holds.
const LARGE_READ: usize = 1024 * 1024;
/// A line up to this is copied out of the buffer, which is then used again; a longer one takes the
/// buffer along, since copying it would cost more than a new one.
const COPY_BELOW: usize = 16 * 1024;
/// A pipe holds 64 KiB unless told otherwise, which makes sixteen wake-ups of a mebibyte. An
/// unprivileged process may ask for this much.
///
/// Source: pipe(7), `/proc/sys/fs/pipe-max-size`.
const LARGE_PIPE: usize = 1024 * 1024;
/// A message longer than this is worth growing its pipe for.
const GROW_PIPE_FROM: usize = 64 * 1024;

/// The reading end of a pipe, line by line.
#[derive(Debug)]
pub struct LineReader {
    fd: AsyncFd<OwnedFd>,
    /// Bytes `..start` are taken, `start..scanned` hold no newline.
    buffer: Vec<u8>,
    start: usize,
    scanned: usize,
    ended: bool,
    grown: bool,
}

/// What one attempt to read brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fill {
    /// Bytes.
    Some,
    /// Nothing now.
    WouldBlock,
    /// The other side is gone, and with it every byte that will ever come.
    End,
}

/// What has come and was not taken as a line.
#[derive(Debug)]
pub struct Pending<'a> {
    pipe: &'a OwnedFd,
    /// Bytes that were read from the pipe already.
    taken: usize,
}

impl Pending<'_> {
    /// How many bytes there are, in the pipe and read from it. Asks the kernel.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let unread = rustix::io::ioctl_fionread(self.pipe).unwrap_or(0);
        self.taken + usize::try_from(unread).unwrap_or(usize::MAX)
    }
}

impl LineReader {
    /// Reads lines from a non-blocking pipe.
    #[must_use]
    pub fn new(fd: AsyncFd<OwnedFd>) -> Self {
        Self { fd, buffer: Vec::new(), start: 0, scanned: 0, ended: false, grown: false }
    }

    /// Whether end-of-file has been read.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// Takes the next line that is there in whole, without its end; empty ones are passed over.
    pub fn next_line(&mut self) -> Option<Bytes> {
        loop {
            let newline = self.scan()?;
            let line = self.start..newline;
            self.start = newline + 1;
            self.scanned = self.start;
            let length = self.buffer[line.clone()].trim_ascii_end().len();
            if length == 0 {
                self.reuse();
                continue;
            }
            let line = line.start..line.start + length;
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

    /// The bytes behind the last whole line: the beginning of one, or, at the end, one without LF.
    #[must_use]
    pub fn partial(&self) -> &[u8] {
        self.buffer[self.start..].trim_ascii_end()
    }

    /// Everything that was read and not taken yet.
    #[must_use]
    pub fn pending(&self) -> &[u8] {
        &self.buffer[self.start..]
    }

    /// How much of it stands before the last line, for a reader to whom only that one matters: the last line
    /// may still grow, and a newline that is the last byte of all is a part of it.
    #[must_use]
    pub fn before_last_line(&self) -> usize {
        let pending = self.pending();
        let before = pending.len().checked_sub(1).and_then(|last| memchr::memrchr(b'\n', &pending[..last]));
        before.map_or(0, |newline| newline + 1)
    }

    /// Takes so many bytes of it.
    pub fn skip(&mut self, count: usize) {
        self.start += count;
        self.scanned = self.scanned.max(self.start);
        self.reuse();
    }

    /// Takes everything that was read and not taken yet.
    pub fn take_rest(&mut self) -> Vec<u8> {
        let rest = self.buffer.split_off(self.start);
        self.buffer.clear();
        (self.start, self.scanned) = (0, 0);
        rest
    }

    /// Reads once, without waiting.
    ///
    /// # Errors
    /// What the kernel says, never `WouldBlock`.
    pub fn try_fill(&mut self) -> io::Result<Fill> {
        self.try_fill_after(|_| {})
    }

    /// As [`LineReader::try_fill`], and looks at the pipe first.
    ///
    /// # Errors
    /// As [`LineReader::try_fill`].
    pub fn try_fill_after(&mut self, look: impl FnOnce(&Pending<'_>)) -> io::Result<Fill> {
        if self.ended {
            return Ok(Fill::End);
        }
        self.buffer_room();
        look(&Pending { pipe: self.fd.get_ref(), taken: self.buffer.len() - self.start });
        match read_spare(self.fd.get_ref(), &mut self.buffer) {
            Ok(0) => {
                self.ended = true;
                Ok(Fill::End)
            }
            Ok(_) => Ok(Fill::Some),
            Err(Errno::AGAIN) => Ok(Fill::WouldBlock),
            Err(error) => Err(error.into()),
        }
    }

    /// Reads once, waiting until there is something. Cancelling it loses nothing.
    ///
    /// # Errors
    /// What the kernel says. After [`Fill::End`] it never becomes ready again.
    pub async fn fill(&mut self) -> io::Result<Fill> {
        self.fill_after(|_| {}).await
    }

    /// As [`LineReader::fill`], and looks at the pipe first, when there seems to be something in it.
    ///
    /// # Errors
    /// As [`LineReader::fill`].
    pub async fn fill_after(&mut self, mut look: impl FnMut(&Pending<'_>)) -> io::Result<Fill> {
        if self.ended {
            std::future::pending::<()>().await;
        }
        loop {
            // First, since it looks at the pipe's descriptor, which the wait borrows.
            self.buffer_room();
            // Not `readable`: its place in the list of all who wait would be made anew each time.
            let mut ready = std::future::poll_fn(|context| self.fd.poll_read_ready(context)).await?;
            look(&Pending { pipe: ready.get_inner(), taken: self.buffer.len() - self.start });
            match read_spare(ready.get_inner(), &mut self.buffer) {
                Ok(0) => {
                    self.ended = true;
                    return Ok(Fill::End);
                }
                Ok(_) => {
                    // MemoryBudget left means that the pipe is empty: the next wait is for a new event,
                    // without a read in between that only says so.
                    if self.buffer.len() < self.buffer.capacity() {
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

    /// How long the line that has begun is by now, in bytes.
    #[must_use]
    pub fn pending_len(&self) -> usize {
        self.buffer.len() - self.start
    }

    /// Gives the pipe back, for a reader that does not want lines, and what was read and not taken.
    #[must_use]
    pub fn into_parts(mut self) -> (AsyncFd<OwnedFd>, Vec<u8>) {
        let rest = self.take_rest();
        (self.fd, rest)
    }

    /// Finds the next newline, looking at each byte once.
    fn scan(&mut self) -> Option<usize> {
        let found = memchr::memchr(b'\n', &self.buffer[self.scanned..]).map(|at| self.scanned + at);
        if found.is_none() {
            self.scanned = self.buffer.len();
        }
        found
    }

    /// Starts over at the front once everything has been taken.
    fn reuse(&mut self) {
        if self.start == self.buffer.len() {
            self.buffer.clear();
            (self.start, self.scanned) = (0, 0);
        }
    }

    /// Makes room to read into: little at first, much once a message is large.
    fn buffer_room(&mut self) {
        if self.start > 0 && self.start >= self.buffer.len() / 2 {
            self.buffer.drain(..self.start);
            self.scanned -= self.start;
            self.start = 0;
        }
        let pending = self.buffer.len() - self.start;
        if pending >= GROW_PIPE_FROM / 2 && !self.grown {
            self.grown = true;
            // Best effort: a refusal leaves the pipe as it is.
            let _ = rustix::pipe::fcntl_setpipe_size(self.fd.get_ref(), LARGE_PIPE);
        }
        let spare = self.buffer.capacity() - self.buffer.len();
        if pending < GROW_PIPE_FROM / 2 {
            if spare < FIRST_READ / 2 {
                self.buffer.reserve(FIRST_READ.max(GROW_PIPE_FROM.min(pending * 4)));
            }
        } else if spare < GROW_PIPE_FROM {
            self.buffer.reserve(LARGE_READ.max(pending));
        }
    }
}

/// Reads into what a vector has allocated and not used.
fn read_spare(fd: &OwnedFd, buffer: &mut Vec<u8>) -> rustix::io::Result<usize> {
    rustix::io::read(fd, rustix::buffer::spare_capacity(buffer))
}

/// The writing end of a pipe.
#[derive(Debug)]
pub struct LineWriter {
    fd: AsyncFd<OwnedFd>,
    grown: bool,
}

impl LineWriter {
    /// Writes to a non-blocking pipe.
    #[must_use]
    pub fn new(fd: AsyncFd<OwnedFd>) -> Self {
        Self { fd, grown: false }
    }

    /// Writes as much as fits now. 0 means that nothing does.
    ///
    /// # Errors
    /// `BrokenPipe` when nobody will ever read.
    pub fn try_write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > GROW_PIPE_FROM && !self.grown {
            self.grown = true;
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

    /// Waits until something fits, and writes. Cancelling it loses nothing.
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

    /// How many bytes stand in the pipe that nobody has read, if the kernel tells.
    #[must_use]
    pub fn unread(&self) -> Option<u64> {
        rustix::io::ioctl_fionread(self.fd.get_ref()).ok()
    }

    /// Whether a process has read everything and waits for more; `None` where nobody can tell.
    #[must_use]
    pub fn is_waited_for(&self, process: &Process) -> Option<bool> {
        if self.unread()? > 0 {
            return Some(false);
        }
        match look(process.pid, self.pipe()) {
            Probe::WaitsForInput => Some(true),
            Probe::Busy => Some(false),
            Probe::Unknown => None,
        }
    }

    /// The pipe itself, to be looked at.
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

    /// A reader and the descriptor that feeds it.
    fn reader() -> (LineReader, OwnedFd) {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).unwrap();
        (LineReader::new(crate::process::pipe::watch(read).unwrap()), write)
    }

    fn on_runtime<T>(test: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test)
    }

    async fn lines_of(pieces: &[&[u8]]) -> (Vec<Bytes>, Vec<u8>) {
        let (mut reader, writer) = reader();
        let mut lines = Vec::new();
        for piece in pieces {
            let mut rest = *piece;
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
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|pair| &text.as_bytes()[pair[0]..pair[1]]).collect();
            let (lines, _) = on_runtime(lines_of(&pieces));
            prop_assert_eq!(lines.iter().map(|line| line.to_vec()).collect::<Vec<_>>(), expected);
        }
    }
}
