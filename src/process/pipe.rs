//! Pipes, and registering descriptors with the async runtime.

use std::io;
use std::os::fd::OwnedFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use tokio::io::unix::AsyncFd;

/// A pipe whose ends are closed on exec: (read end, write end).
///
/// # Errors
/// When no descriptors are left.
pub fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?)
}

/// Makes the proxy's end of a pipe non-blocking and registers it with the runtime.
///
/// # Errors
/// When it is no pipe.
pub fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    rustix::fs::fcntl_setfl(&fd, rustix::fs::fcntl_getfl(&fd)? | OFlags::NONBLOCK)?;
    watch_as_it_is(fd)
}

/// Registers a descriptor with the runtime and leaves its flags alone.
///
/// # Errors
/// When it is a regular file, which is always ready.
#[expect(unsafe_code, reason = "the runtime cannot know that a type keeps its descriptor open")]
pub fn watch_as_it_is(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open until it is dropped and is always the same descriptor; the
    // `AsyncFd` owns it.
    Ok(unsafe { AsyncFd::register(fd) }?)
}

/// Whether the proxy's end of a process's output is that of a terminal.
#[must_use]
pub fn is_terminal(fd: &OwnedFd) -> bool {
    rustix::termios::isatty(fd)
}

/// Reads into the spare capacity of a vector. 0 is the end: of a pipe, or of a terminal that no process has open any
/// more.
///
/// # Errors
/// As read(2), but never `EIO`.
pub fn read(fd: &OwnedFd, buffer: &mut Vec<u8>) -> rustix::io::Result<usize> {
    match rustix::io::read(fd, rustix::buffer::spare_capacity(buffer)) {
        Err(Errno::IO) => Ok(0),
        result => result,
    }
}

/// How many bytes are to be read: at least, for a terminal, which passes its output on in parts.
#[must_use]
pub fn unread(fd: &OwnedFd, is_terminal: bool) -> usize {
    if is_terminal {
        // The kernel moves what was written to where the next call counts it.
        let _ = poll(&mut [PollFd::new(fd, PollFlags::IN)], Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
    }
    rustix::io::ioctl_fionread(fd).map_or(0, |count| usize::try_from(count).unwrap_or(usize::MAX))
}

/// Whether both pipes are empty and still have a writer. Makes one system call.
#[must_use]
pub fn are_empty(pipes: [&OwnedFd; 2]) -> bool {
    let mut fds = pipes.map(|pipe| PollFd::new(pipe, PollFlags::IN));
    matches!(poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })), Ok(0))
}
