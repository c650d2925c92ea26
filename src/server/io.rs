//! The stream under hyper: what happens on it, and when its caller has stalled.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::Version;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Sleep;

use crate::time::Countdown;

use super::half_close::{HalfClose, Upcoming};

/// What a connection is doing. Only the connection's own task uses it; the atomics are there because hyper's
/// types must be `Send`.
#[derive(Debug, Default)]
pub(super) struct ConnectionState {
    /// A request is being answered.
    in_request: AtomicBool,
    /// The head of a streamed answer has been sent, and its body is not complete.
    in_stream: AtomicBool,
    /// The request came in HTTP/1.1, so a stream is sent in chunks.
    in_chunks: AtomicBool,
    /// A part of a request's head has arrived, but not all of it.
    in_head: AtomicBool,
    /// The caller does not read what the proxy sends.
    write_blocked: AtomicBool,
    /// The last answer keeps the connection open.
    keep_alive: AtomicBool,
    /// hyper is giving the stream back, which stays open.
    giving_back: AtomicBool,
    /// Counts reads and writes.
    io_count: AtomicU64,
}

impl ConnectionState {
    pub(super) fn begin_request(&self, version: Version) {
        self.in_request.store(true, Ordering::Relaxed);
        self.in_stream.store(false, Ordering::Relaxed);
        self.in_chunks.store(version == Version::HTTP_11, Ordering::Relaxed);
        self.in_head.store(false, Ordering::Relaxed);
    }

    /// The request's answer is a stream. Its head is the next thing to be sent.
    pub(super) fn begin_stream(&self) {
        self.in_stream.store(true, Ordering::Relaxed);
    }

    pub(super) fn end_request(&self) {
        self.in_request.store(false, Ordering::Relaxed);
    }

    pub(super) fn set_keep_alive(&self, keep_alive: bool) {
        self.keep_alive.store(keep_alive, Ordering::Relaxed);
    }

    pub(super) fn set_giving_back(&self, giving_back: bool) {
        self.giving_back.store(giving_back, Ordering::Relaxed);
    }

    /// Whether every request that arrived has been answered, every answer is written, and the connection stays
    /// open.
    pub(super) fn is_idle_and_kept(&self) -> bool {
        self.keep_alive.load(Ordering::Relaxed) && !self.in_request.load(Ordering::Relaxed) && !self.waits_for_caller()
    }

    /// What is sent next if everything written so far has been sent. `None` if no request is being answered.
    fn upcoming(&self) -> Option<Upcoming> {
        let is = |flag: &AtomicBool| flag.load(Ordering::Relaxed);
        is(&self.in_request).then(|| match (is(&self.in_stream), is(&self.in_chunks)) {
            (false, _) => Upcoming::StatusLine,
            (true, true) => Upcoming::ChunkSize,
            (true, false) => Upcoming::Data,
        })
    }

    fn count_read(&self, bytes: usize) {
        if bytes > 0 {
            self.io_count.fetch_add(1, Ordering::Relaxed);
            if !self.in_request.load(Ordering::Relaxed) {
                self.in_head.store(true, Ordering::Relaxed);
            }
        }
    }

    fn count_write<T>(&self, result: &Poll<io::Result<T>>) {
        self.write_blocked.store(result.is_pending(), Ordering::Relaxed);
        if result.is_ready() {
            self.io_count.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn waits_for_caller(&self) -> bool {
        self.in_head.load(Ordering::Relaxed) || self.write_blocked.load(Ordering::Relaxed)
    }
}

/// Fires when a caller stalls in the middle of a head or of an answer.
pub(super) struct StallTimer {
    caller_timeout: Duration,
    /// Armed only while the proxy waits for the caller. Most connections never need one.
    timer: Option<Pin<Box<Sleep>>>,
    countdown: Countdown,
    io_count_seen: u64,
}

impl StallTimer {
    pub(super) fn new(caller_timeout: Duration) -> Self {
        Self { caller_timeout, timer: None, countdown: Countdown::new(caller_timeout), io_count_seen: 0 }
    }

    /// Ready when the caller has stalled for the whole timeout.
    pub(super) fn poll(&mut self, state: &ConnectionState, context: &mut Context<'_>) -> Poll<()> {
        if !state.waits_for_caller() {
            self.timer = None;
            return Poll::Pending;
        }
        let io_count = state.io_count.load(Ordering::Relaxed);
        if self.timer.is_none() || io_count != self.io_count_seen {
            self.io_count_seen = io_count;
            self.countdown = Countdown::new(self.caller_timeout);
            self.timer = Some(Box::pin(tokio::time::sleep(self.countdown.part())));
        }
        while let Some(timer) = &mut self.timer {
            if timer.as_mut().poll(context).is_pending() {
                return Poll::Pending;
            }
            if self.countdown.count(self.countdown.part()) {
                return Poll::Ready(());
            }
            timer.set(tokio::time::sleep(self.countdown.part()));
        }
        Poll::Pending
    }
}

/// A connection's stream, which reports to a [`ConnectionState`] and withholds hyper's own answers.
///
/// hyper itself answers a request that it cannot read, with a bare 400 or 431. That answer has no body. The
/// caller loses it while it is still sending, because hyper closes the socket over unread bytes. An HTTP/2
/// preface gets no answer at all. So this stream drops hyper's answer, keeps the socket open, and
/// [`refusal`](super::refusal) sends a better one.
pub(super) struct Io {
    stream: TcpStream,
    /// Bytes that were read before hyper got the stream.
    unread: Bytes,
    state: Arc<ConnectionState>,
    /// hyper's own answer was withheld: the stream is still needed.
    withheld: bool,
    half_close: HalfClose,
}

impl Io {
    pub(super) fn new(stream: TcpStream, unread: Bytes, state: Arc<ConnectionState>) -> Self {
        Self { stream, unread, state, withheld: false, half_close: HalfClose::default() }
    }

    /// The stream, and the bytes that hyper has not taken.
    pub(super) fn into_parts(self) -> (TcpStream, Bytes) {
        (self.stream, self.unread)
    }

    /// Whether to drop a write, because it is hyper's own answer. Every answer of a front has a body, which
    /// arrives together with its head.
    fn withholds(&mut self, bytes: &[u8]) -> bool {
        if bytes.ends_with(b"\r\n\r\n") && memchr::memmem::find(bytes, b"\r\ncontent-length: 0\r\n").is_some() {
            self.withheld = true;
        }
        self.withheld
    }
}

impl AsyncRead for Io {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.unread.is_empty() {
            let count = self.unread.len().min(buffer.remaining());
            buffer.put_slice(&self.unread.split_to(count));
            self.state.count_read(count);
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(context, buffer);
        self.state.count_read(buffer.filled().len() - before);
        result
    }
}

impl AsyncWrite for Io {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.withholds(bytes) {
            return Poll::Ready(Ok(bytes.len()));
        }
        let sent_early = self.half_close.take_sent_early(bytes.len());
        if sent_early > 0 {
            return Poll::Ready(Ok(sent_early));
        }
        let result = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.state.count_write(&result);
        result
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let [bytes] = slices
            && self.withholds(bytes)
        {
            return Poll::Ready(Ok(bytes.len()));
        }
        let sent_early = self.half_close.take_sent_early(slices.first().map_or(0, |slice| slice.len()));
        if sent_early > 0 {
            return Poll::Ready(Ok(sent_early));
        }
        let result = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.state.count_write(&result);
        result
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_flush(context))?;
        // hyper flushes after each step, and reads nothing between a request and its answer.
        let this = &mut *self;
        if this.unread.is_empty()
            && let Some(upcoming) = this.state.upcoming()
            && this.half_close.poll_left(&this.stream, upcoming, context).is_ready()
        {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.withheld || self.state.giving_back.load(Ordering::Relaxed) {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
