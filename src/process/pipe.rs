//! Pipes, and descriptors that the runtime watches.

use std::io;
use std::os::fd::OwnedFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use rustix::pipe::PipeFlags;
use tokio::io::unix::AsyncFd;

/// A pipe whose ends are closed in every child by themselves: (read end, write end).
///
/// # Errors
/// When no descriptors are left.
pub fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?)
}

/// Makes our end of a pipe non-blocking and has the runtime watch it.
///
/// # Errors
/// When it is no pipe.
pub fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    rustix::fs::fcntl_setfl(&fd, rustix::fs::fcntl_getfl(&fd)? | OFlags::NONBLOCK)?;
    watch_as_it_is(fd)
}

/// Has the runtime watch a descriptor, and leaves its flags alone.
///
/// # Errors
/// When it is a file, which is always ready.
#[expect(unsafe_code, reason = "the runtime cannot know that a type keeps its descriptor")]
pub fn watch_as_it_is(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open until it is dropped and is always the same descriptor; the
    // `AsyncFd` owns it.
    Ok(unsafe { AsyncFd::register(fd) }?)
}

/// Whether nothing stands in either of two pipes, which others can still write to. Asks the kernel once.
#[must_use]
pub fn are_empty(pipes: [&OwnedFd; 2]) -> bool {
    let mut fds = pipes.map(|pipe| PollFd::new(pipe, PollFlags::IN));
    matches!(poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })), Ok(0))
}
