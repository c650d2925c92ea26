//! Where the log goes. No write here blocks in a system call.

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

/// How much a pipe takes without blocking when `poll` says that it is writable.
///
/// Source: pipe(7), `PIPE_BUF`.
const ATOMIC: usize = 4096;
/// The offset by which pwritev2(2) writes at the file position.
const CURRENT_POSITION: u64 = u64::MAX;
/// The major and minor number of `/dev/null`, which may have any path.
///
/// Source: the kernel's `Documentation/admin-guide/devices.txt`.
const NULL: (u32, u32) = (1, 3);

/// Where log bytes go: the proxy's stdout or stderr.
#[derive(Debug, Clone)]
pub struct Sink(Arc<SinkInner>);

#[derive(Debug)]
struct SinkInner {
    fd: OwnedFd,
    /// Registered with the runtime at the first wait. `None` for files, which never block.
    registered: OnceLock<Option<AsyncFd<OwnedFd>>>,
    /// A file or `/dev/null`: no write blocks.
    never_blocks: bool,
    /// Whether a single write can be asked not to block. Pipes can, terminals cannot.
    supports_nowait: AtomicBool,
    /// One of the streams that share it writes at a time.
    write_permit: Arc<Semaphore>,
    /// The last holder of the permit left in the middle of a line.
    torn_line: AtomicBool,
}

impl Sink {
    /// A sink that writes to this descriptor and leaves its flags alone.
    #[must_use]
    pub fn new(fd: OwnedFd) -> Self {
        let never_blocks = rustix::fs::fstat(&fd).is_ok_and(|status| {
            let kind = FileType::from_raw_mode(status.st_mode);
            let device = || (rustix::fs::major(status.st_rdev), rustix::fs::minor(status.st_rdev));
            kind == FileType::RegularFile || (kind == FileType::CharacterDevice && device() == NULL)
        });
        Self(Arc::new(SinkInner {
            fd,
            never_blocks,
            registered: OnceLock::new(),
            supports_nowait: AtomicBool::new(true),
            write_permit: Arc::new(Semaphore::new(1)),
            torn_line: AtomicBool::new(false),
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

    /// Takes the write permit if it is free.
    pub(super) fn try_write_permit(&self) -> Option<OwnedSemaphorePermit> {
        self.0.write_permit.clone().try_acquire_owned().ok()
    }

    /// Waits for the write permit.
    pub(super) async fn write_permit(&self) -> OwnedSemaphorePermit {
        self.0.write_permit.clone().acquire_owned().await.expect("the semaphore is never closed")
    }

    /// The holder of the permit leaves in the middle of a line.
    pub(super) fn leave_torn_line(&self) {
        self.0.torn_line.store(true, Ordering::Relaxed);
    }

    /// Whether the previous holder left in the middle of a line. Resets the mark.
    pub(super) fn take_torn_line(&self) -> bool {
        self.0.torn_line.swap(false, Ordering::Relaxed)
    }

    /// Writes as much as possible without blocking, and returns how much that was.
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
                // The log reader has gone or the disk is full. The log is lost; the action's answer
                // must not be.
                Err(_) => return bytes.len(),
            }
        }
        written
    }

    /// Writes by a call that never blocks here, or that is asked not to. The descriptor's flags stay as they
    /// are, since other processes share them. `None` where such a call is unsupported or would block.
    ///
    /// Source: pwritev2(2), `RWF_NOWAIT`; for pipes since Linux 6.4.
    fn write_without_waiting(&self, bytes: &[u8]) -> Option<rustix::io::Result<usize>> {
        if self.0.never_blocks {
            return Some(rustix::io::write(&self.0.fd, bytes));
        }
        if !self.0.supports_nowait.load(Ordering::Relaxed) {
            return None;
        }
        match rustix::io::pwritev2(&self.0.fd, &[IoSlice::new(bytes)], CURRENT_POSITION, ReadWriteFlags::NOWAIT) {
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::PERM) => {
                self.0.supports_nowait.store(false, Ordering::Relaxed);
                None
            }
            Err(Errno::AGAIN) => None,
            result => Some(result),
        }
    }

    /// Whether a write would return at once, possibly with an error.
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

    /// Waits until the descriptor may be writable.
    pub(super) async fn writable(&self) {
        let registered = self.0.registered.get_or_init(|| watch_as_it_is(self.0.fd.try_clone().ok()?).ok());
        match registered {
            Some(fd) => {
                if let Ok(mut ready) = fd.writable().await {
                    // The next `poll` says whether it really is writable.
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
