//! The formats of streamed answers: server-sent events and lines of JSON, for callers that ask for them with
//! `Accept`.
//!
//! JSON stays as it arrived. In both formats the last event says how the answer ended, as `result` or as
//! `error`. A body that ends without it was cut off.

use bytes::Bytes;
use hyper::header::{ACCEPT, HeaderMap};

/// How the events of a streamed answer are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamFormat {
    /// `text/event-stream`.
    ///
    /// Source: the HTML standard, "Server-sent events".
    ServerSentEvents,
    /// `application/x-ndjson`.
    JsonLines,
}

/// An event of a streamed answer, with its JSON.
#[derive(Debug)]
pub enum StreamEvent {
    /// A part of the answer.
    Chunk(Bytes),
    /// The last event: the result.
    Result(Bytes),
    /// The last event: why there is no result.
    Error(Bytes),
}

impl StreamFormat {
    /// The format that `Accept` prefers, or `None` if it prefers one whole body. Of equal preferences the
    /// first one counts. Wildcards and a missing `Accept` ask for one body.
    #[must_use]
    pub fn from_accept(headers: &HeaderMap) -> Option<Self> {
        let mut best = (0.0, None);
        let ranges = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
        for range in ranges.flat_map(|value| value.split(',')) {
            let mut parts = range.split(';').map(str::trim);
            let media_type = parts.next().unwrap_or_default();
            let is = |name: &str| media_type.eq_ignore_ascii_case(name);
            let format = if is("text/event-stream") {
                Some(Self::ServerSentEvents)
            } else if is("application/x-ndjson") || is("application/ndjson") {
                Some(Self::JsonLines)
            } else if is("application/json") || is("application/*") || is("*/*") {
                None
            } else {
                continue;
            };
            let quality = parts.find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")));
            let quality = quality.map_or(1.0, |quality| quality.parse().unwrap_or(0.0));
            if quality > best.0 {
                best = (quality, format);
            }
        }
        best.1
    }

    /// The value of `Content-Type`.
    #[must_use]
    pub fn media_type(self) -> &'static str {
        match self {
            Self::ServerSentEvents => "text/event-stream",
            Self::JsonLines => "application/x-ndjson",
        }
    }

    /// Encodes one event.
    #[must_use]
    pub fn encode(self, event: &StreamEvent) -> Bytes {
        let (name, json) = match event {
            StreamEvent::Chunk(json) => ("chunk", json),
            StreamEvent::Result(json) => ("result", json),
            StreamEvent::Error(json) => ("error", json),
        };
        let mut text = Vec::with_capacity(json.len() + 40);
        match self {
            Self::JsonLines => {
                write_object(&mut text, name, json);
                text.push(b'\n');
            }
            Self::ServerSentEvents => {
                if name != "chunk" {
                    text.extend_from_slice(b"event: ");
                    text.extend_from_slice(name.as_bytes());
                    text.push(b'\n');
                }
                text.extend_from_slice(b"data: ");
                match event {
                    // As the body of a whole answer that failed.
                    StreamEvent::Error(_) => write_object(&mut text, name, json),
                    StreamEvent::Chunk(_) | StreamEvent::Result(_) => text.extend_from_slice(json),
                }
                // A lone CR ends a line of an event. In JSON it stands between tokens only.
                for byte in &mut text {
                    if *byte == b'\r' {
                        *byte = b' ';
                    }
                }
                text.extend_from_slice(b"\n\n");
            }
        }
        text.into()
    }
}

/// Writes an object with one member.
fn write_object(text: &mut Vec<u8>, name: &str, json: &[u8]) {
    text.extend_from_slice(b"{\"");
    text.extend_from_slice(name.as_bytes());
    text.extend_from_slice(b"\":");
    text.extend_from_slice(json);
    text.push(b'}');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accept_selects_the_format() {
        let selected = |accept: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for value in accept {
                headers.append(ACCEPT, hyper::header::HeaderValue::from_static(value));
            }
            StreamFormat::from_accept(&headers)
        };
        let (events, lines) = (Some(StreamFormat::ServerSentEvents), Some(StreamFormat::JsonLines));
        for whole in [&[][..], &["*/*"], &["application/json"], &["text/html"], &["text/event-stream;q=0"], &[""]] {
            assert_eq!(selected(whole), None, "{whole:?}");
        }
        assert_eq!(selected(&["text/event-stream"]), events);
        assert_eq!(selected(&["Text/Event-Stream; charset=utf-8"]), events);
        assert_eq!(selected(&["application/x-ndjson"]), lines);
        assert_eq!(selected(&["application/ndjson, */*"]), lines);
        assert_eq!(selected(&["application/json, text/event-stream"]), None);
        assert_eq!(selected(&["application/json;q=0.5, text/event-stream"]), events);
        assert_eq!(selected(&["*/*; q=0.1", "application/x-ndjson; q=0.3", "text/event-stream; q=0.2"]), lines);
    }

    #[test]
    fn json_is_encoded_as_it_arrived() {
        let check = |event: &StreamEvent, expected: [&str; 2]| {
            let encoded = [StreamFormat::ServerSentEvents, StreamFormat::JsonLines]
                .map(|format| String::from_utf8(format.encode(event).to_vec()).unwrap());
            assert_eq!(encoded, expected);
        };
        check(
            &StreamEvent::Chunk("{\"a\":1.00,\r\"b\":\"\\u00e9\\r\\n\"}".into()),
            ["data: {\"a\":1.00, \"b\":\"\\u00e9\\r\\n\"}\n\n", "{\"chunk\":{\"a\":1.00,\r\"b\":\"\\u00e9\\r\\n\"}}\n"],
        );
        check(&StreamEvent::Result("[1]".into()), ["event: result\ndata: [1]\n\n", "{\"result\":[1]}\n"]);
        check(
            &StreamEvent::Error("{\"code\":7}".into()),
            ["event: error\ndata: {\"error\":{\"code\":7}}\n\n", "{\"error\":{\"code\":7}}\n"],
        );
    }
}
