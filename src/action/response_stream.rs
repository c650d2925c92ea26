//! The pieces of one answer on their way from a worker to a caller, bounded in bytes.
//!
//! The worker never waits here: it asks how much is held, and decides itself whether to read on
//! (`worker/concurrent.rs`). The caller takes piece after piece; the last one says how it ended.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;

use crate::activation::Answer;
use crate::error::{Error, ProxyError};

/// A piece of an answer.
#[derive(Debug)]
pub enum StreamItem {
    /// A part of it, any JSON.
    Chunk(Bytes),
    /// The last piece: a result.
    Result(Answer),
    /// The last piece: the action says that it failed, by any JSON.
    Failed(Bytes),
    /// The last piece: there is nothing besides the chunks.
    End,
    /// The last piece: there is no answer, or no more of it.
    Broken(Error),
}

impl StreamItem {
    /// Whether nothing comes after it.
    #[must_use]
    pub fn is_last(&self) -> bool {
        !matches!(self, Self::Chunk(_))
    }
}

/// The end of a caller. Dropping it says that nobody waits any more.
#[derive(Debug)]
pub struct ResponseStream(Arc<Mutex<Inner>>);

/// The end of a worker. Dropping it without a last piece says that the proxy is shutting down.
#[derive(Debug)]
pub(super) struct StreamSender(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    queue: VecDeque<StreamItem>,
    held_bytes: usize,
    reader: Option<Waker>,
    writer: Option<Waker>,
    reader_left: bool,
    writer_left: bool,
}

/// What a piece costs beside its bytes, so that empty ones are not free.
const PIECE_BYTES: usize = 64;

fn lock(inner: &Mutex<Inner>) -> MutexGuard<'_, Inner> {
    inner.lock().expect("no holder of the pieces panics")
}

/// Both ends.
pub(super) fn pieces() -> (StreamSender, ResponseStream) {
    let inner = Arc::new(Mutex::new(Inner::default()));
    (StreamSender(inner.clone()), ResponseStream(inner))
}

impl ResponseStream {
    /// The next piece. Nothing comes after the last one.
    pub async fn next(&mut self) -> StreamItem {
        std::future::poll_fn(|context| self.poll_next(context)).await
    }

    /// As [`ResponseStream::next`].
    pub fn poll_next(&mut self, context: &Context<'_>) -> Poll<StreamItem> {
        let mut inner = lock(&self.0);
        let Some(piece) = inner.queue.pop_front() else {
            if inner.writer_left {
                return Poll::Ready(StreamItem::Broken(Error::Proxy(ProxyError::ShuttingDown)));
            }
            inner.reader = Some(context.waker().clone());
            return Poll::Pending;
        };
        if let StreamItem::Chunk(chunk) = &piece {
            inner.held_bytes -= chunk.len() + PIECE_BYTES;
        }
        let writer = inner.writer.take();
        drop(inner);
        if let Some(writer) = writer {
            writer.wake();
        }
        Poll::Ready(piece)
    }
}

impl Drop for ResponseStream {
    fn drop(&mut self) {
        let mut inner = lock(&self.0);
        inner.reader_left = true;
        let writer = inner.writer.take();
        drop(inner);
        if let Some(writer) = writer {
            writer.wake();
        }
    }
}

impl StreamSender {
    /// Adds a piece, and says how many bytes are held now.
    pub(super) fn push(&self, piece: StreamItem) -> usize {
        let mut inner = lock(&self.0);
        if let StreamItem::Chunk(chunk) = &piece {
            inner.held_bytes += chunk.len() + PIECE_BYTES;
        }
        inner.queue.push_back(piece);
        let held_bytes = inner.held_bytes;
        let reader = inner.reader.take();
        drop(inner);
        if let Some(reader) = reader {
            reader.wake();
        }
        held_bytes
    }

    /// How many bytes are held.
    pub(super) fn held_bytes(&self) -> usize {
        lock(&self.0).held_bytes
    }

    /// Whether nobody waits any more.
    pub(super) fn is_closed(&self) -> bool {
        lock(&self.0).reader_left
    }

    /// Ready when nobody waits any more, or, for one who asks for that, when no more than so many bytes
    /// are held.
    pub(super) fn poll_change(&self, held_bytes: Option<usize>, context: &Context<'_>) -> Poll<()> {
        let mut inner = lock(&self.0);
        if inner.reader_left || held_bytes.is_some_and(|bytes| inner.held_bytes <= bytes) {
            return Poll::Ready(());
        }
        if !inner.writer.as_ref().is_some_and(|waker| waker.will_wake(context.waker())) {
            inner.writer = Some(context.waker().clone());
        }
        Poll::Pending
    }
}

impl Drop for StreamSender {
    fn drop(&mut self) {
        let mut inner = lock(&self.0);
        inner.writer_left = true;
        let reader = inner.reader.take();
        drop(inner);
        if let Some(reader) = reader {
            reader.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_counted_while_they_are_held() {
        let (feed, mut pieces) = pieces();
        let context = Context::from_waker(Waker::noop());
        assert!(pieces.poll_next(&context).is_pending());
        assert_eq!(feed.push(StreamItem::Chunk("12345".into())), 5 + PIECE_BYTES);
        assert_eq!(feed.push(StreamItem::Chunk("".into())), 5 + 2 * PIECE_BYTES);
        assert_eq!(feed.push(StreamItem::End), 5 + 2 * PIECE_BYTES);
        assert!(feed.poll_change(Some(PIECE_BYTES), &context).is_pending());
        assert!(matches!(pieces.poll_next(&context), Poll::Ready(StreamItem::Chunk(chunk)) if chunk == "12345"));
        assert!(feed.poll_change(Some(PIECE_BYTES), &context).is_ready());
        assert!(matches!(pieces.poll_next(&context), Poll::Ready(StreamItem::Chunk(_))));
        assert_eq!(feed.held_bytes(), 0);
        assert!(matches!(pieces.poll_next(&context), Poll::Ready(StreamItem::End)));
    }

    #[test]
    fn each_end_learns_that_the_other_has_left() {
        let context = Context::from_waker(Waker::noop());
        let (feed, mut caller) = pieces();
        drop(feed);
        assert!(matches!(
            caller.poll_next(&context),
            Poll::Ready(StreamItem::Broken(Error::Proxy(ProxyError::ShuttingDown)))
        ));
        let (feed, caller) = pieces();
        assert!(!feed.is_closed() && feed.poll_change(None, &context).is_pending());
        drop(caller);
        assert!(feed.is_closed() && feed.poll_change(None, &context).is_ready());
    }
}
