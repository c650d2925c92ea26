//! What a program prints: a pipe that is read as it fills, and the log of activations in it.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::OFlags;
use rustix::io::Errno;

/// The line that ends an activation's log on each stream.
pub const SENTINEL: &str = "XXX_THE_END_OF_A_WHISK_ACTIVATION_XXX";

/// How many bytes are read from a pipe at once.
const READ_BYTES: usize = 64 * 1024;

/// The output of a program on one pipe, read as it comes.
///
/// A thread reads the pipe, and so does [`CapturedOutput::text`]. The two exclude each other, so the text holds
/// everything that was written before it was asked for.
#[derive(Debug)]
pub struct CapturedOutput(Arc<Pipe>);

#[derive(Debug)]
struct Pipe {
    end: OwnedFd,
    bytes: Mutex<Vec<u8>>,
}

/// Stops the reading of a [`CapturedOutput`] while it lives, so that the pipe fills up.
#[derive(Debug)]
pub struct Unread<'a> {
    _bytes: MutexGuard<'a, Vec<u8>>,
}

impl CapturedOutput {
    /// Reads this end of a pipe until the other end is closed.
    ///
    /// # Errors
    /// If the end cannot be made non-blocking.
    pub fn new(end: OwnedFd) -> io::Result<Self> {
        // This changes the reading end alone: the writing end has flags of its own.
        rustix::fs::fcntl_setfl(&end, OFlags::NONBLOCK)?;
        let pipe = Arc::new(Pipe { end, bytes: Mutex::default() });
        let reader = pipe.clone();
        std::thread::spawn(move || {
            loop {
                let _ = poll(&mut [PollFd::new(&reader.end, PollFlags::IN)], None);
                if reader.drain() {
                    return;
                }
            }
        });
        Ok(Self(pipe))
    }

    /// Everything that was written by now.
    pub fn text(&self) -> String {
        self.0.drain();
        String::from_utf8_lossy(&self.0.lock()).into_owned()
    }

    /// Leaves the pipe unread while the guard lives.
    #[must_use = "reading goes on when it is dropped"]
    pub fn leave_unread(&self) -> Unread<'_> {
        Unread { _bytes: self.0.lock() }
    }

    /// How many bytes are in the pipe and unread.
    ///
    /// # Errors
    /// If the kernel does not say.
    pub fn unread_bytes(&self) -> io::Result<u64> {
        Ok(rustix::io::ioctl_fionread(&self.0.end)?)
    }
}

impl Pipe {
    /// Takes the lock also after a test failed while holding it: the report of that test shows these bytes.
    fn lock(&self) -> MutexGuard<'_, Vec<u8>> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads what is in the pipe. Returns whether that was the end.
    fn drain(&self) -> bool {
        let mut bytes = self.lock();
        let mut chunk = vec![0; READ_BYTES];
        loop {
            match rustix::io::read(&self.end, &mut chunk) {
                Ok(0) => return true,
                Ok(count) => bytes.extend_from_slice(&chunk[..count]),
                Err(Errno::INTR) => {}
                Err(error) => return error != Errno::AGAIN,
            }
        }
    }
}

/// Both output streams of a proxy: the log of its activations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Logs {
    /// What stands on standard output.
    pub stdout: String,
    /// What stands on standard error.
    pub stderr: String,
}

impl Logs {
    /// The log of each activation on a stream. The last item stands behind the last sentinel and belongs to none.
    pub fn activations(stream: &str) -> Vec<&str> {
        stream.split(&format!("{SENTINEL}\n")).collect()
    }

    /// Both streams, for texts that may stand on either.
    pub fn both(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }
}

/// The beginning and the end of a text that is too long to be shown whole.
pub fn excerpt(text: &str) -> String {
    const MAX: usize = 6_000;
    if text.len() <= MAX {
        return text.to_owned();
    }
    let head: String = text.chars().take(MAX / 2).collect();
    let tail: Vec<char> = text.chars().rev().take(MAX / 2).collect();
    format!("{head}\n… ({} bytes in all) …\n{}", text.len(), tail.into_iter().rev().collect::<String>())
}
