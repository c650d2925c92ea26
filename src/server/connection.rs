//! One connection, from its first byte to its end: on the fast path, and over hyper.

use std::convert::Infallible;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use hyper::body::Incoming;
use hyper::header::{CONNECTION, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Version};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::watch;

use super::body::discard;
use super::fast_path::{self, FastPathEnd};
use super::io::{ConnectionState, Io, StallTimer};
use super::refusal::{self, nonconforming, unmet_expectation, unreadable};
use super::reply::Payload;
use super::shutdown::wait_to_close_idle;
use super::{Front, MAX_HEADER_BYTES, Stop};

/// How often hyper gives a connection back to the fast path, unless [`FAST_STREAK`] starts the count again.
/// A connection that keeps sending other requests, for instance large ones, then stays with hyper.
const MAX_RETURNS: u32 = 2;
/// After so many fast requests in a row, the next other request is an exception.
const FAST_STREAK: u32 = 16;

/// How long hyper serves a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ServeUntil {
    /// Until the connection is idle. Then hyper gives the stream back.
    Idle,
    /// Until the connection is closed.
    Closed,
}

/// What hyper leaves when it is done with a connection.
enum Returned {
    /// The open stream.
    Stream,
    /// Nothing: the connection has ended.
    Nothing,
}

/// Serves one connection to its end.
pub(super) async fn serve<F: Front>(
    mut stream: TcpStream,
    front: Arc<F>,
    caller_timeout: Duration,
    stop: watch::Receiver<Stop>,
) {
    let mut rounds_over_hyper = 0;
    let mut unread = Bytes::new();
    loop {
        if unread.is_empty() {
            let ended = fast_path::serve(&mut stream, &*front, caller_timeout, &stop).await;
            let FastPathEnd::OtherRequest { read, answered } = ended else { return };
            unread = read;
            if answered >= FAST_STREAK {
                rounds_over_hyper = 0;
            }
        }
        rounds_over_hyper += 1;
        let until = if rounds_over_hyper <= MAX_RETURNS { ServeUntil::Idle } else { ServeUntil::Closed };
        // Boxed, because most connections need it only for their init.
        let over_hyper = Box::pin(serve_over_hyper(stream, unread, &*front, caller_timeout, &stop, until));
        let Some(returned) = over_hyper.await else { return };
        (stream, unread) = returned;
    }
}

/// Serves any requests, the first of which begins with the bytes in `unread`.
///
/// Returns the stream and the bytes that hyper has read but not used, if hyper gives the connection back.
/// Returns `None` if the connection has ended.
async fn serve_over_hyper<F: Front>(
    stream: TcpStream,
    unread: Bytes,
    front: &F,
    caller_timeout: Duration,
    stop: &watch::Receiver<Stop>,
    until: ServeUntil,
) -> Option<(TcpStream, Bytes)> {
    let state = Arc::new(ConnectionState::default());
    let io = TokioIo::new(Io::new(stream, unread, state.clone()));
    // Borrows what outlives the connection, so that a request clones nothing.
    let service = service_fn(|request: Request<Incoming>| async {
        state.begin_request(request.version());
        let asks_to_keep = request.version() == Version::HTTP_11
            && request
                .headers()
                .get(CONNECTION)
                .is_none_or(|value| value.as_bytes().eq_ignore_ascii_case(b"keep-alive"));
        let unmet = unmet_expectation(&request);
        let nonconforming = nonconforming(&request);
        let refused = unmet.is_some() || nonconforming.is_some();
        let mut reply = match (&unmet, &nonconforming) {
            (None, None) => front.answer(request).await,
            // A caller with an unmet expectation may never send its body, so the proxy does not wait for it.
            (Some(error), _) => front.refuse(error),
            (None, Some(error)) => {
                discard(request.into_body(), caller_timeout).await;
                front.refuse(error)
            }
        };
        let closes = refused || *stop.borrow() >= Stop::Accepting;
        if closes {
            reply.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        state.set_keep_alive(asks_to_keep && !closes);
        match reply.body_mut() {
            Payload::Whole(_) => state.end_request(),
            Payload::Stream(body) => {
                state.begin_stream();
                body.hold_request(state.clone());
            }
        }
        Ok::<_, Infallible>(reply)
    });
    let mut connection = hyper::server::conn::http1::Builder::new()
        .max_header_size(MAX_HEADER_BYTES)
        // `Io` notices callers that leave.
        .half_close(true)
        .serve_connection(io, service);
    let mut stall_timer = StallTimer::new(caller_timeout);
    let mut close_idle = pin!(wait_to_close_idle(stop.clone()));
    let mut closes = false;
    let result = std::future::poll_fn(|context| {
        let mut polled = Pin::new(&mut connection).poll(context);
        if polled.is_pending() && until == ServeUntil::Idle && state.is_idle_and_kept() {
            state.set_giving_back(true);
            Pin::new(&mut connection).graceful_shutdown();
            polled = Pin::new(&mut connection).poll(context);
            state.set_giving_back(false);
            return polled.map(|result| Some(result.map(|()| Returned::Stream)));
        }
        // Only after hyper has read what has arrived: it closes at once a connection that looks idle to it.
        if polled.is_pending() && !closes && close_idle.as_mut().poll(context).is_ready() {
            closes = true;
            Pin::new(&mut connection).graceful_shutdown();
            polled = Pin::new(&mut connection).poll(context);
        }
        match polled {
            Poll::Ready(result) => Poll::Ready(Some(result.map(|()| Returned::Nothing))),
            // Only after hyper has done what it can: a request that arrived whole never starts the timer.
            Poll::Pending => stall_timer.poll(&state, context).map(|()| None),
        }
    })
    .await;
    match result {
        Some(Ok(Returned::Nothing)) => {}
        Some(Ok(Returned::Stream)) => {
            let parts = connection.into_parts();
            let (stream, unread) = parts.io.into_inner().into_parts();
            let unread = if unread.is_empty() { parts.read_buf } else { [parts.read_buf, unread].concat().into() };
            return Some((stream, unread));
        }
        Some(Err(error)) => {
            tracing::debug!(%error, "connection ended");
            if let Some(error) = unreadable(&error) {
                let (stream, _) = connection.into_parts().io.into_inner().into_parts();
                // Boxed, because few connections need it.
                Box::pin(refusal::send(stream, front.refuse(&error), caller_timeout)).await;
            }
        }
        None => tracing::debug!("the caller stalled; connection closed"),
    }
    None
}
