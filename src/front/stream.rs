//! Streamed answers: turns the action's [`ResponseStream`] into the events of a [`StreamFormat`].

use std::task::{Context, Poll, ready};

use bytes::Bytes;

use crate::action::response_stream::{ResponseStream, StreamItem};
use crate::server::{ChunkSource, Reply, StreamEvent, StreamFormat, stream};

/// A streamed reply, whose first item has arrived.
pub(super) fn streamed(format: StreamFormat, (first, rest): (StreamItem, ResponseStream)) -> Reply {
    stream(format.media_type(), Box::new(EncodedStream { format, first: Some(first), rest, ended: false }))
}

/// Encodes items as the connection takes them.
#[derive(Debug)]
struct EncodedStream {
    format: StreamFormat,
    first: Option<StreamItem>,
    rest: ResponseStream,
    ended: bool,
}

impl ChunkSource for EncodedStream {
    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let item = match self.first.take() {
            Some(item) => item,
            None => ready!(self.rest.poll_next(context)),
        };
        self.ended = item.is_last();
        Poll::Ready(Some(self.format.encode(&event(item))))
    }
}

fn event(item: StreamItem) -> StreamEvent {
    match item {
        StreamItem::Chunk(json) => StreamEvent::Chunk(json),
        StreamItem::Result(json) => StreamEvent::Result(json),
        StreamItem::End => StreamEvent::Result(Bytes::from_static(b"null")),
        StreamItem::Failed(json) => StreamEvent::Error(json),
        StreamItem::Broken(error) => StreamEvent::Error(serde_json::json!(error.for_caller()).to_string().into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Error, ProxyError};

    #[test]
    fn each_item_becomes_an_event() {
        let check = |item: fn() -> StreamItem, expected: [&str; 2]| {
            let encoded = [StreamFormat::ServerSentEvents, StreamFormat::JsonLines]
                .map(|format| String::from_utf8(format.encode(&event(item())).to_vec()).unwrap());
            assert_eq!(encoded, expected);
        };
        check(|| StreamItem::Chunk("1".into()), ["data: 1\n\n", "{\"chunk\":1}\n"]);
        check(|| StreamItem::Result("[1]".into()), ["event: result\ndata: [1]\n\n", "{\"result\":[1]}\n"]);
        check(|| StreamItem::End, ["event: result\ndata: null\n\n", "{\"result\":null}\n"]);
        check(
            || StreamItem::Failed("{\"code\":7}".into()),
            ["event: error\ndata: {\"error\":{\"code\":7}}\n\n", "{\"error\":{\"code\":7}}\n"],
        );
        check(
            || StreamItem::Broken(Error::Proxy(ProxyError::ShuttingDown)),
            [
                "event: error\ndata: {\"error\":\"the proxy is shutting down\"}\n\n",
                "{\"error\":\"the proxy is shutting down\"}\n",
            ],
        );
    }
}
