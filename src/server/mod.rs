//! HTTP for the fronts: connections, bodies, replies and shutdown. Knows no action and no path.
//!
//! hyper speaks the protocol. This module adds what a platform needs besides: limits, a shutdown that
//! loses no request, and an answer with a body for every request, even an unreadable one.
//!
//! # Theory of operation
//! - `accept`: listens, accepts, and starts one task for each connection.
//! - `connection`: serves one connection. `fast_path` answers small requests; all others go to hyper.
//! - `io`: the stream that hyper reads and writes, and the timer that closes a stalled connection.
//! - `body`: reads request bodies within their limits.
//! - `reply`, `sse`: replies, and the formats of streamed ones.
//! - `refusal`: answers requests that no front can see, because hyper cannot read them.
//! - `shutdown`: the stages of the server's end.
//!
//! There is no idle timeout: the platform keeps connections open for minutes and freezes the container
//! meanwhile. A timeout starts with a request's first byte, and it counts only the time the proxy was
//! running ([`crate::time`]).

use std::time::Duration;

use bytes::Bytes;
use hyper::Request;
use hyper::body::Incoming;

use crate::error::Error;

mod accept;
mod body;
mod connection;
mod fast_path;
mod io;
mod refusal;
mod reply;
mod shutdown;
mod sse;

pub use accept::{listen, serve};
pub use body::{BodyBound, discard, read_body};
pub use reply::{ChunkSource, Payload, Reply, StreamBody, json, stream};
pub use shutdown::Stop;
pub use sse::{StreamEvent, StreamFormat};

/// A front: decides what each request does. One value serves every connection.
pub trait Front: Send + Sync + 'static {
    /// Answers one request.
    fn answer(&self, request: Request<Incoming>) -> impl Future<Output = Reply> + Send;

    /// Whether [`Front::answer_fast`] answers a `POST` to this path with a body of this length.
    fn takes_fast_path(&self, path: &str, length: usize) -> bool;

    /// Answers a `POST` of which only the body matters: with JSON, or with an error for
    /// [`Front::refuse`]. The body's buffer has a spare byte at its end.
    fn answer_fast(&self, body: Vec<u8>) -> impl Future<Output = Result<Bytes, Error>> + Send;

    /// Answers a request that failed before the front saw it.
    fn refuse(&self, error: &Error) -> Reply;
}

/// The limits of all connections.
#[derive(Debug, Clone)]
pub struct Limits {
    /// How long a caller may stall in the middle of a request or an answer.
    pub caller_timeout: Duration,
    /// The maximum number of open connections.
    pub connections: u32,
}

/// The maximum size of a request's head.
const MAX_HEADER_BYTES: usize = 64 * 1024;
/// The maximum number of headers. hyper's own table holds as many without an allocation.
const MAX_HEADERS: usize = 100;
