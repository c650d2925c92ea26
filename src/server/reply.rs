//! Replies: whole ones with a `Content-Length`, and streamed ones.

use std::convert::Infallible;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::{Body, Frame, SizeHint};
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::{Response, StatusCode};

use super::io::ConnectionState;

/// A front's reply.
pub type Reply = Response<Payload>;

/// The body of a reply.
#[derive(Debug)]
pub enum Payload {
    /// A whole body, which has a `Content-Length`.
    Whole(Full<Bytes>),
    /// A body that is sent while it is being made.
    Stream(StreamBody),
}

/// A body that arrives chunk by chunk.
#[derive(Debug)]
pub struct StreamBody {
    source: Box<dyn ChunkSource>,
    /// The connection, whose request lasts as long as this body.
    connection: Option<Arc<ConnectionState>>,
}

impl StreamBody {
    /// Lets the connection's request last until this body is dropped.
    pub(super) fn hold_request(&mut self, connection: Arc<ConnectionState>) {
        self.connection = Some(connection);
    }
}

/// Yields the chunks of a streamed body. It is dropped when the connection takes no more of them.
pub trait ChunkSource: Send + Sync + fmt::Debug {
    /// The next chunk, or `None` after the last one.
    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Bytes>>;
}

impl Body for Payload {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.get_mut() {
            Self::Whole(body) => Pin::new(body).poll_frame(context),
            Self::Stream(body) => body.source.poll_next(context).map(|chunk| chunk.map(|chunk| Ok(Frame::data(chunk)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(body) => body.is_end_stream(),
            Self::Stream(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(body) => body.size_hint(),
            Self::Stream(_) => SizeHint::default(),
        }
    }
}

impl Drop for StreamBody {
    fn drop(&mut self) {
        if let Some(connection) = &self.connection {
            connection.end_request();
        }
    }
}

/// A reply in JSON. hyper adds `Content-Length`, because the body's length is known.
#[must_use]
pub fn json(status: StatusCode, body: Bytes) -> Reply {
    let mut reply = Response::new(Payload::Whole(Full::new(body)));
    *reply.status_mut() = status;
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    reply
}

/// A reply that is sent while it is being made. It has no `Content-Length`.
#[must_use]
pub fn stream(media_type: &'static str, source: Box<dyn ChunkSource>) -> Reply {
    let mut reply = Response::new(Payload::Stream(StreamBody { source, connection: None }));
    let headers = reply.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    // Proxies on the way must not hold chunks back either.
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    reply
}

/// Writes the status line and the headers of a whole reply, and returns its body.
pub(super) fn write_head(reply: Reply, bytes: &mut Vec<u8>) -> Bytes {
    let (head, body) = reply.into_parts();
    bytes.extend_from_slice(format!("HTTP/1.1 {}\r\n", head.status).as_bytes());
    for (name, value) in &head.headers {
        bytes.extend_from_slice(name.as_str().as_bytes());
        bytes.extend_from_slice(b": ");
        bytes.extend_from_slice(value.as_bytes());
        bytes.extend_from_slice(b"\r\n");
    }
    match body {
        Payload::Whole(body) => body.into_inner().unwrap_or_default(),
        Payload::Stream(_) => unreachable!("an error is never streamed"),
    }
}
