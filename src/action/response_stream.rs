//! The items of one answer on their way from a worker to a caller.
//!
//! The worker never waits here. It asks how many bytes are buffered, and decides itself whether to read on
//! (`worker/concurrent`). The caller takes item after item; the last one says how the answer ended.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;

use crate::activation::Answer;
use crate::error::{Error, ProxyError};

/// A part of an answer.
#[derive(Debug)]
pub enum StreamItem {
    /// A chunk: any JSON.
    Chunk(Bytes),
    /// The last item: a result.
    Result(Answer),
    /// The last item: the action reports a failure, as any JSON.
    Failed(Bytes),
    /// The last item: the chunks are the whole answer.
    End,
    /// The last item: there is no answer, or no rest of it, for this reason.
    Broken(Error),
}

impl StreamItem {
    /// Whether no item follows it.
    #[must_use]
    pub fn is_last(&self) -> bool {
        !matches!(self, Self::Chunk(_))
    }
}

/// The caller's end. Dropping it says that the caller has left.
#[derive(Debug)]
pub struct ResponseStream(Arc<Mutex<Inner>>);

/// The worker's end. Dropping it without a last item says that the proxy is shutting down.
#[derive(Debug)]
pub(super) struct StreamSender(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    queue: VecDeque<StreamItem>,
    buffered_bytes: usize,
    reader: Option<Waker>,
    writer: Option<Waker>,
    reader_left: bool,
    writer_left: bool,
}

/// What an item counts beside its bytes, so that empty ones are not free.
const ITEM_BYTES: usize = 64;

fn lock(inner: &Mutex<Inner>) -> MutexGuard<'_, Inner> {
    inner.lock().expect("no holder of the items panics")
}

/// Both ends of a new stream.
pub(super) fn response_stream() -> (StreamSender, ResponseStream) {
    let inner = Arc::new(Mutex::new(Inner::default()));
    (StreamSender(inner.clone()), ResponseStream(inner))
}

impl ResponseStream {
    /// The next item. There is none after the last.
    pub async fn next(&mut self) -> StreamItem {
        std::future::poll_fn(|context| self.poll_next(context)).await
    }

    /// As [`ResponseStream::next`].
    pub fn poll_next(&mut self, context: &Context<'_>) -> Poll<StreamItem> {
        let mut inner = lock(&self.0);
        let Some(item) = inner.queue.pop_front() else {
            if inner.writer_left {
                return Poll::Ready(StreamItem::Broken(Error::Proxy(ProxyError::ShuttingDown)));
            }
            inner.reader = Some(context.waker().clone());
            return Poll::Pending;
        };
        if let StreamItem::Chunk(chunk) = &item {
            inner.buffered_bytes -= chunk.len() + ITEM_BYTES;
        }
        let writer = inner.writer.take();
        drop(inner);
        if let Some(writer) = writer {
            writer.wake();
        }
        Poll::Ready(item)
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
    /// Adds an item, and returns how many bytes are buffered now.
    pub(super) fn push(&self, item: StreamItem) -> usize {
        let mut inner = lock(&self.0);
        if let StreamItem::Chunk(chunk) = &item {
            inner.buffered_bytes += chunk.len() + ITEM_BYTES;
        }
        inner.queue.push_back(item);
        let buffered_bytes = inner.buffered_bytes;
        let reader = inner.reader.take();
        drop(inner);
        if let Some(reader) = reader {
            reader.wake();
        }
        buffered_bytes
    }

    /// How many bytes are buffered.
    pub(super) fn buffered_bytes(&self) -> usize {
        lock(&self.0).buffered_bytes
    }

    /// Whether the caller has left.
    pub(super) fn is_closed(&self) -> bool {
        lock(&self.0).reader_left
    }

    /// Ready when the caller has left or, with a number, when at most so many bytes are buffered.
    pub(super) fn poll_change(&self, buffered_bytes: Option<usize>, context: &Context<'_>) -> Poll<()> {
        let mut inner = lock(&self.0);
        if inner.reader_left || buffered_bytes.is_some_and(|bytes| inner.buffered_bytes <= bytes) {
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
    fn items_count_while_they_are_buffered() {
        let (sender, mut stream) = response_stream();
        let context = Context::from_waker(Waker::noop());
        assert!(stream.poll_next(&context).is_pending());
        assert_eq!(sender.push(StreamItem::Chunk("12345".into())), 5 + ITEM_BYTES);
        assert_eq!(sender.push(StreamItem::Chunk("".into())), 5 + 2 * ITEM_BYTES);
        assert_eq!(sender.push(StreamItem::End), 5 + 2 * ITEM_BYTES);
        assert!(sender.poll_change(Some(ITEM_BYTES), &context).is_pending());
        assert!(matches!(stream.poll_next(&context), Poll::Ready(StreamItem::Chunk(chunk)) if chunk == "12345"));
        assert!(sender.poll_change(Some(ITEM_BYTES), &context).is_ready());
        assert!(matches!(stream.poll_next(&context), Poll::Ready(StreamItem::Chunk(_))));
        assert_eq!(sender.buffered_bytes(), 0);
        assert!(matches!(stream.poll_next(&context), Poll::Ready(StreamItem::End)));
    }

    #[test]
    fn each_end_learns_that_the_other_has_left() {
        let context = Context::from_waker(Waker::noop());
        let (sender, mut caller) = response_stream();
        drop(sender);
        assert!(matches!(
            caller.poll_next(&context),
            Poll::Ready(StreamItem::Broken(Error::Proxy(ProxyError::ShuttingDown)))
        ));
        let (sender, caller) = response_stream();
        assert!(!sender.is_closed() && sender.poll_change(None, &context).is_pending());
        drop(caller);
        assert!(sender.is_closed() && sender.poll_change(None, &context).is_ready());
    }
}
