//! Answers that arrive while they are made: server-sent events and lines of JSON, for whoever asks for
//! them with `Accept`.
//!
//! JSON stays as it came from the action. In both formats the last piece says how it ended, as `result`
//! or as `error`; a body that ends without it was cut off.

use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::header::{ACCEPT, HeaderMap};

use crate::action::response_stream::{ResponseStream, StreamItem};
use crate::protocol::answer::failure;

use crate::server::{Reply, Source, stream};

/// What a caller wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    /// One body: whoever does not ask for anything else.
    Whole,
    /// ResponseStream as they come.
    Stream(Format),
}

/// How pieces are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// `text/event-stream`.
    ///
    /// Source: the HTML standard, "Server-sent events".
    Events,
    /// `application/x-ndjson`.
    Lines,
}

impl Wanted {
    /// What `Accept` likes best; of what it likes equally, what it names first. Wildcards, and what is
    /// not known here, stand for one body.
    pub(super) fn by(headers: &HeaderMap) -> Self {
        let mut best = (0.0, Self::Whole);
        let ranges = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
        for range in ranges.flat_map(|value| value.split(',')) {
            let mut parts = range.split(';').map(str::trim);
            let media_type = parts.next().unwrap_or_default();
            let is = |name: &str| media_type.eq_ignore_ascii_case(name);
            let wanted = if is("text/event-stream") {
                Self::Stream(Format::Events)
            } else if is("application/x-ndjson") || is("application/ndjson") {
                Self::Stream(Format::Lines)
            } else if is("application/json") || is("application/*") || is("*/*") {
                Self::Whole
            } else {
                continue;
            };
            let quality = parts.find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")));
            let quality = quality.map_or(1.0, |quality| quality.parse().unwrap_or(0.0));
            if quality > best.0 {
                best = (quality, wanted);
            }
        }
        best.1
    }
}

impl Format {
    /// An answer whose first piece has come.
    pub(super) fn reply(self, (first, pieces): (StreamItem, ResponseStream)) -> Reply {
        let media_type = match self {
            Self::Events => "text/event-stream",
            Self::Lines => "application/x-ndjson",
        };
        stream(media_type, Box::new(Writer { format: self, first: Some(first), pieces, over: false }))
    }

    fn piece(self, piece: StreamItem) -> Bytes {
        let (name, json) = match piece {
            StreamItem::Chunk(json) => ("chunk", json),
            StreamItem::Result(json) => ("result", json),
            StreamItem::End => ("result", Bytes::from_static(b"null")),
            StreamItem::Failed(json) => ("error", json),
            StreamItem::Broken(error) => ("error", serde_json::json!(error.for_caller()).to_string().into()),
        };
        let mut text = Vec::with_capacity(json.len() + 40);
        match self {
            Self::Lines => {
                text.extend_from_slice(b"{\"");
                text.extend_from_slice(name.as_bytes());
                text.extend_from_slice(b"\":");
                text.extend_from_slice(&json);
                text.extend_from_slice(b"}\n");
            }
            Self::Events => {
                if name != "chunk" {
                    text.extend_from_slice(b"event: ");
                    text.extend_from_slice(name.as_bytes());
                    text.push(b'\n');
                }
                text.extend_from_slice(b"data: ");
                if name == "error" {
                    text.extend_from_slice(&failure(&json));
                } else {
                    text.extend_from_slice(&json);
                }
                text.extend_from_slice(b"\n\n");
                let body = text.len() - 2;
                // A lone CR ends a line of an event. In JSON it stands between tokens only.
                for byte in &mut text[..body] {
                    if *byte == b'\r' {
                        *byte = b' ';
                    }
                }
            }
        }
        text.into()
    }
}

/// Writes pieces as the connection takes them.
#[derive(Debug)]
struct Writer {
    format: Format,
    first: Option<StreamItem>,
    pieces: ResponseStream,
    over: bool,
}

impl Source for Writer {
    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if self.over {
            return Poll::Ready(None);
        }
        let piece = match self.first.take() {
            Some(piece) => piece,
            None => std::task::ready!(self.pieces.poll_next(context)),
        };
        self.over = piece.is_last();
        Poll::Ready(Some(self.format.piece(piece)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Error, ProxyError};

    #[test]
    fn accept_chooses() {
        let wanted = |accept: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for value in accept {
                headers.append(ACCEPT, hyper::header::HeaderValue::from_static(value));
            }
            Wanted::by(&headers)
        };
        let (events, lines) = (Wanted::Stream(Format::Events), Wanted::Stream(Format::Lines));
        for whole in [&[][..], &["*/*"], &["application/json"], &["text/html"], &["text/event-stream;q=0"], &[""]] {
            assert_eq!(wanted(whole), Wanted::Whole, "{whole:?}");
        }
        assert_eq!(wanted(&["text/event-stream"]), events);
        assert_eq!(wanted(&["Text/Event-Stream; charset=utf-8"]), events);
        assert_eq!(wanted(&["application/x-ndjson"]), lines);
        assert_eq!(wanted(&["application/ndjson, */*"]), lines);
        assert_eq!(wanted(&["application/json, text/event-stream"]), Wanted::Whole);
        assert_eq!(wanted(&["application/json;q=0.5, text/event-stream"]), events);
        assert_eq!(wanted(&["*/*; q=0.1", "application/x-ndjson; q=0.3", "text/event-stream; q=0.2"]), lines);
    }

    #[test]
    fn pieces_are_written_as_they_came() {
        let both = |piece: fn() -> StreamItem| {
            [Format::Events, Format::Lines].map(|format| String::from_utf8(format.piece(piece()).to_vec()).unwrap())
        };
        assert_eq!(
            both(|| StreamItem::Chunk("{\"a\":1.00,\r\"b\":\"\\u00e9\\r\\n\"}".into())),
            ["data: {\"a\":1.00, \"b\":\"\\u00e9\\r\\n\"}\n\n", "{\"chunk\":{\"a\":1.00,\r\"b\":\"\\u00e9\\r\\n\"}}\n"]
        );
        assert_eq!(both(|| StreamItem::Result("[1]".into())), ["event: result\ndata: [1]\n\n", "{\"result\":[1]}\n"]);
        assert_eq!(both(|| StreamItem::End), ["event: result\ndata: null\n\n", "{\"result\":null}\n"]);
        assert_eq!(
            both(|| StreamItem::Failed("{\"code\":7}".into())),
            ["event: error\ndata: {\"error\":{\"code\":7}}\n\n", "{\"error\":{\"code\":7}}\n"]
        );
        assert_eq!(
            both(|| StreamItem::Broken(Error::Proxy(ProxyError::ShuttingDown))),
            [
                "event: error\ndata: {\"error\":\"the proxy is shutting down\"}\n\n",
                "{\"error\":\"the proxy is shutting down\"}\n"
            ]
        );
    }
}
