//! What an action prints while it is checked: kept for the report, and told as it comes.

use std::os::fd::OwnedFd;

use rustix::io::Errno;
use tokio::io::unix::AsyncFd;

use crate::error::{Error, ProxyError};
use crate::logs::Sink;
use crate::process::pipe::{pipe, watch};

/// Listens to both streams of an action.
#[derive(Debug)]
pub(super) struct LogCapture {
    pub(super) stdout: Stream,
    pub(super) stderr: Stream,
}

/// One stream: what was heard of it since it was last forgotten.
#[derive(Debug)]
pub(super) struct Stream {
    pipe: AsyncFd<OwnedFd>,
    heard: Vec<u8>,
    /// How much of it has been told already.
    told: usize,
}

/// The most that is kept of a stream. What is beyond the last so many bytes is forgotten.
const MAX_KEPT: usize = 64 * 1024;
/// The last lines that a report shows.
const TAIL_LINES: usize = 10;

impl LogCapture {
    /// An log_capture, and the sinks that it listens to.
    pub(super) fn new() -> Result<(Self, Sink, Sink), Error> {
        let system = |reason| Error::Proxy(ProxyError::System { doing: "make a pipe for the action's log", reason });
        let (out, stdout) = pipe().map_err(system)?;
        let (err, stderr) = pipe().map_err(system)?;
        let stream = |pipe| Ok::<_, Error>(Stream { pipe: watch(pipe).map_err(system)?, heard: Vec::new(), told: 0 });
        let log_capture = Self { stdout: stream(out)?, stderr: stream(err)? };
        Ok((log_capture, Sink::new(stdout), Sink::new(stderr)))
    }

    /// Does something and listens meanwhile: the action's output must not come to a stop.
    pub(super) async fn during<T>(&mut self, work: impl Future<Output = T>) -> T {
        tokio::select! {
            biased;
            done = work => {
                self.stdout.read();
                self.stderr.read();
                done
            }
            () = self.stdout.listen() => unreachable!("a stream is heard for ever"),
            () = self.stderr.listen() => unreachable!("a stream is heard for ever"),
        }
    }

    /// What was heard and has not been told yet.
    pub(super) fn progress(&mut self) -> Vec<u8> {
        let mut progress = self.stdout.progress();
        progress.extend(self.stderr.progress());
        progress
    }

    /// Forgets what was heard.
    pub(super) fn forget(&mut self) {
        for stream in [&mut self.stdout, &mut self.stderr] {
            let untold = stream.heard.split_off(stream.told);
            stream.heard = untold;
            stream.told = 0;
        }
    }
}

impl Stream {
    /// The last lines that were heard.
    pub(super) fn tail(&self) -> Vec<String> {
        let lines: Vec<_> = self.lines().filter(|line| !line.trim_ascii().is_empty()).collect();
        lines[lines.len().saturating_sub(TAIL_LINES)..]
            .iter()
            .map(|line| String::from_utf8_lossy(line.trim_ascii_end()).into_owned())
            .collect()
    }

    /// Every line that is kept.
    pub(super) fn lines(&self) -> impl Iterator<Item = &[u8]> {
        self.heard.split(|byte| *byte == b'\n')
    }

    fn progress(&mut self) -> Vec<u8> {
        let progress = self.heard[self.told..].to_vec();
        self.told = self.heard.len();
        progress
    }

    /// Listens for as long as it is polled.
    async fn listen(&mut self) {
        loop {
            let Ok(mut ready) = self.pipe.readable().await else { return std::future::pending().await };
            ready.clear_ready();
            self.read();
        }
    }

    /// Reads what there is now.
    fn read(&mut self) {
        loop {
            self.heard.reserve(MAX_KEPT);
            match rustix::io::read(self.pipe.get_ref(), rustix::buffer::spare_capacity(&mut self.heard)) {
                Ok(0) => return,
                Ok(_) => {
                    let excess = self.heard.len().saturating_sub(MAX_KEPT);
                    if excess > MAX_KEPT {
                        self.heard.drain(..excess);
                        self.told = self.told.saturating_sub(excess);
                    }
                }
                Err(Errno::INTR) => {}
                Err(_) => return,
            }
        }
    }
}
