//! The output of an action while it is checked: kept for the report, and reported as it comes.

use std::os::fd::OwnedFd;

use rustix::io::Errno;
use tokio::io::unix::AsyncFd;

use crate::error::{Error, ProxyError};
use crate::logs::Sink;
use crate::process::pipe::{pipe, watch};

/// Captures both streams of an action.
#[derive(Debug)]
pub(super) struct LogCapture {
    pub(super) stdout: Stream,
    pub(super) stderr: Stream,
}

/// One stream, and what was captured of it since it was last cleared.
#[derive(Debug)]
pub(super) struct Stream {
    pipe: AsyncFd<OwnedFd>,
    captured: Vec<u8>,
    /// How many of the captured bytes have been reported already.
    reported: usize,
}

/// The most that is kept of a stream: its last bytes.
const MAX_KEPT: usize = 64 * 1024;
/// How many of the last lines a report shows.
const TAIL_LINES: usize = 10;

impl LogCapture {
    /// A capture, and the sinks whose output it captures.
    pub(super) fn new() -> Result<(Self, Sink, Sink), Error> {
        let system = |reason| Error::Proxy(ProxyError::System { doing: "make a pipe for the action's log", reason });
        let (out, stdout) = pipe().map_err(system)?;
        let (err, stderr) = pipe().map_err(system)?;
        let stream =
            |pipe| Ok::<_, Error>(Stream { pipe: watch(pipe).map_err(system)?, captured: Vec::new(), reported: 0 });
        let log_capture = Self { stdout: stream(out)?, stderr: stream(err)? };
        Ok((log_capture, Sink::new(stdout), Sink::new(stderr)))
    }

    /// Does something and captures meanwhile, because a full pipe would stop the action.
    pub(super) async fn during<T>(&mut self, work: impl Future<Output = T>) -> T {
        tokio::select! {
            biased;
            done = work => {
                self.stdout.read();
                self.stderr.read();
                done
            }
            () = self.stdout.read_forever() => unreachable!("a stream is read forever"),
            () = self.stderr.read_forever() => unreachable!("a stream is read forever"),
        }
    }

    /// Takes the output that has not been reported yet.
    pub(super) fn progress(&mut self) -> Vec<u8> {
        let mut progress = self.stdout.progress();
        progress.extend(self.stderr.progress());
        progress
    }

    /// Drops the output that has been reported.
    pub(super) fn clear(&mut self) {
        for stream in [&mut self.stdout, &mut self.stderr] {
            let unreported = stream.captured.split_off(stream.reported);
            stream.captured = unreported;
            stream.reported = 0;
        }
    }
}

impl Stream {
    /// The last lines of the output.
    pub(super) fn tail(&self) -> Vec<String> {
        let lines: Vec<_> = self.lines().filter(|line| !line.trim_ascii().is_empty()).collect();
        lines[lines.len().saturating_sub(TAIL_LINES)..]
            .iter()
            .map(|line| String::from_utf8_lossy(line.trim_ascii_end()).into_owned())
            .collect()
    }

    /// Every kept line.
    pub(super) fn lines(&self) -> impl Iterator<Item = &[u8]> {
        self.captured.split(|byte| *byte == b'\n')
    }

    fn progress(&mut self) -> Vec<u8> {
        let progress = self.captured[self.reported..].to_vec();
        self.reported = self.captured.len();
        progress
    }

    /// Reads for as long as it is polled.
    async fn read_forever(&mut self) {
        loop {
            let Ok(mut ready) = self.pipe.readable().await else { return std::future::pending().await };
            ready.clear_ready();
            self.read();
        }
    }

    /// Reads the bytes that are in the pipe now.
    fn read(&mut self) {
        loop {
            self.captured.reserve(MAX_KEPT);
            match rustix::io::read(self.pipe.get_ref(), rustix::buffer::spare_capacity(&mut self.captured)) {
                Ok(0) => return,
                Ok(_) => {
                    let excess = self.captured.len().saturating_sub(MAX_KEPT);
                    if excess > MAX_KEPT {
                        self.captured.drain(..excess);
                        self.reported = self.reported.saturating_sub(excess);
                    }
                }
                Err(Errno::INTR) => {}
                Err(_) => return,
            }
        }
    }
}
