//! Callers that send nothing more: those that wait for their answer, and those that have left.
//!
//! Both look the same at first, because both send a FIN and nothing else. `nc -N` and some proxies close only
//! their sending half after the request. A process that ends, or closes its socket, closes both halves. Only
//! the next bytes tell them apart: the kernel of a caller that has left answers them with a reset.
//!
//! So the proxy sends the first bytes of the answer early, as soon as it sees a FIN: those that are the same in
//! every answer. A caller that waits receives the rest later and cannot notice. Once a chunked body has begun,
//! the early byte is a leading zero of the next chunk's size. A body without chunks (HTTP/1.0) has no such
//! byte: there the next data of the stream shows whether its caller has left.
//!
//! Source: RFC 9293, 3.10.7.1 (a reset for a closed connection); RFC 9112, 7.1 (`chunk-size = 1*HEXDIG`, and the
//! last chunk is `1*("0")`).

use std::io;
use std::net;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{Interest, ReadBuf};
use tokio::net::TcpStream;

/// What the next bytes to the caller are, as far as that is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Upcoming {
    /// A status line.
    StatusLine,
    /// The size of a chunk.
    ChunkSize,
    /// Any bytes.
    Data,
}

/// A connection's end of requests, and whether its caller is still there after it.
#[derive(Default)]
pub(super) struct HalfClose {
    /// Ends when the connection is reset. Present after the FIN.
    reset: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    /// How many bytes of the next status line have been sent early.
    sent_early: usize,
}

impl HalfClose {
    /// Ready when the caller has left. The task is woken when that may have changed.
    ///
    /// Must be called only while a request is being answered and nothing waits to be written.
    pub(super) fn poll_left(&mut self, stream: &TcpStream, upcoming: Upcoming, context: &mut Context<'_>) -> Poll<()> {
        if self.reset.is_none() {
            let mut byte = [0];
            match ready!(stream.poll_peek(context, &mut ReadBuf::new(&mut byte))) {
                Ok(0) => {}
                // The next request. The FIN, if there is one, is behind it.
                Ok(_) => return Poll::Pending,
                Err(_) => return Poll::Ready(()),
            }
            let early = upcoming.first_bytes();
            // A full buffer holds bytes that the caller has not received yet. They do the same.
            let sent = if early.is_empty() { 0 } else { stream.try_write(early).unwrap_or(0) };
            if upcoming == Upcoming::StatusLine {
                self.sent_early = sent;
            }
            self.reset = Some(Box::pin(await_reset(stream.as_fd().try_clone_to_owned())));
        }
        self.reset.as_mut().map_or(Poll::Pending, |reset| reset.as_mut().poll(context))
    }

    /// How many of these bytes have been sent early, counted once.
    pub(super) fn take_sent_early(&mut self, bytes: usize) -> usize {
        let count = self.sent_early.min(bytes);
        self.sent_early -= count;
        count
    }
}

impl Upcoming {
    fn first_bytes(self) -> &'static [u8] {
        match self {
            // In an answer to HTTP/1.0, the next byte is another.
            Self::StatusLine => b"HTTP/1.",
            Self::ChunkSize => b"0",
            Self::Data => b"",
        }
    }
}

/// Waits until a connection is reset or broken.
///
/// Needs a descriptor of its own. After a FIN the stream itself counts as readable forever, and a connection that
/// can be written to is writable, so a reset wakes no one there.
async fn await_reset(stream: io::Result<OwnedFd>) {
    if let Ok(stream) = stream
        && let Ok(stream) = TcpStream::from_std(net::TcpStream::from(stream))
        && stream.ready(Interest::ERROR).await.is_ok()
    {
        return;
    }
    // No descriptor is left. The caller counts as present.
    std::future::pending::<()>().await;
}
