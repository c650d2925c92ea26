//! Where the log goes, without ever waiting in a system call.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::FileType;
use rustix::io::{Errno, ReadWriteFlags};
use tokio::io::unix::AsyncFd;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::process::pipe::watch_as_it_is;

/// What a pipe takes without blocking when `poll` calls it writable.
///
/// Source: pipe(7), `PIPE_BUF`.
const ATOMIC: usize = 4096;
/// What pwritev2(2) takes for "where the descriptor stands".
const CURRENT_POSITION: u64 = u64::MAX;
/// The device of `/dev/null`, which may lie in any folder: its major and minor number.
///
/// Source: the kernel's `Documentation/admin-guide/devices.txt`.
const NULL: (u32, u32) = (1, 3);

/// Where log bytes go: the proxy's stdout or stderr.
#[derive(Debug, Clone)]
pub struct Sink(Arc<SinkInner>);

#[derive(Debug)]
struct SinkInner {
    fd: OwnedFd,
    /// Registered with the runtime at the first wait only. `None` for files, which never block.
    registered: OnceLock<Option<AsyncFd<OwnedFd>>>,
    /// A file, or `/dev/null`: a write waits for nobody.
    never_waits: bool,
    /// Whether one write can be asked not to wait. Pipes can, terminals cannot.
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
        let never_waits = rustix::fs::fstat(&fd).is_ok_and(|status| {
            let kind = FileType::from_raw_mode(status.st_mode);
            let device = || (rustix::fs::major(status.st_rdev), rustix::fs::minor(status.st_rdev));
            kind == FileType::RegularFile || (kind == FileType::CharacterDevice && device() == NULL)
        });
        Self(Arc::new(SinkInner {
            fd,
            never_waits,
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

    /// The turn to write, if nobody has it.
    pub(super) fn try_turn(&self) -> Option<OwnedSemaphorePermit> {
        self.0.turn.clone().try_acquire_owned().ok()
    }

    /// Waits for the turn to write.
    pub(super) async fn turn(&self) -> OwnedSemaphorePermit {
        self.0.turn.clone().acquire_owned().await.expect("the semaphore is never closed")
    }

    /// Whoever has the turn leaves in the middle of a line.
    pub(super) fn break_off(&self) {
        self.0.broken_off.store(true, Ordering::Relaxed);
    }

    /// Whether whoever had the turn before left so. To be asked once.
    pub(super) fn was_broken_off(&self) -> bool {
        self.0.broken_off.swap(false, Ordering::Relaxed)
    }

    /// Writes what can be written now and says how much that was.
    pub(super) fn try_write(&self, bytes: &[u8]) -> usize {
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

    /// Writes by a call that does not wait, or is asked not to, which leaves the flags of the descriptor, and so
    /// everybody who shares it, alone. `None` where that cannot be asked, or brings nothing now.
    ///
    /// Source: pwritev2(2), `RWF_NOWAIT`; for pipes since Linux 6.4.
    fn write_without_waiting(&self, bytes: &[u8]) -> Option<rustix::io::Result<usize>> {
        if self.0.never_waits {
            return Some(rustix::io::write(&self.0.fd, bytes));
        }
        if !self.0.takes_nowait.load(Ordering::Relaxed) {
            return None;
        }
        match rustix::io::pwritev2(&self.0.fd, &[IoSlice::new(bytes)], CURRENT_POSITION, ReadWriteFlags::NOWAIT) {
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::PERM) => {
                self.0.takes_nowait.store(false, Ordering::Relaxed);
                None
            }
            Err(Errno::AGAIN) => None,
            result => Some(result),
        }
    }

    /// Whether a write would not block now. So it is where a write can only fail.
    pub(super) fn is_writable(&self) -> bool {
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
    pub(super) async fn writable(&self) {
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

impl AsFd for Sink {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.fd.as_fd()
    }
}
