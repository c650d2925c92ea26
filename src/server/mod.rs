//! HTTP: accepting, connections, bodies and their bounds.
//!
//! hyper speaks the protocol; what is here is what a platform needs besides. A kept connection may
//! be silent for as long as it likes between requests: the platform keeps connections for minutes
//! and freezes the container meanwhile. Patience begins with a request's first byte, and it is
//! counted in pieces, so that time which passed while we were frozen does not count.

mod fast_path;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::header::{CACHE_CONTROL, CONNECTION, CONTENT_TYPE, EXPECT, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode, Version};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::Sleep;

use crate::error::{Error, ProxyError, RequestError, RequestKind};
use crate::memory_budget::{MemoryBudget, Reservation};
use crate::process::allocator;
use crate::time::{self, Countdown};

use fast_path::After;

/// What a front answers with.
pub type Reply = Response<Payload>;

/// The body of an answer.
#[derive(Debug)]
pub enum Payload {
    /// All of it, so that there is a Content-Length.
    Whole(Full<Bytes>),
    /// What comes as it comes.
    Stream(Streamed),
}

/// A body that comes piece by piece.
#[derive(Debug)]
pub struct Streamed {
    source: Box<dyn Source>,
    /// The request lasts as long as its answer.
    progress: Option<Arc<Progress>>,
}

/// Where the pieces of a body come from. Dropped when nobody takes them any more.
pub trait Source: Send + Sync + fmt::Debug {
    /// The next piece; nothing behind the last one.
    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Bytes>>;
}

impl Body for Payload {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::convert::Infallible>>> {
        match self.get_mut() {
            Self::Whole(body) => Pin::new(body).poll_frame(context),
            Self::Stream(body) => body.source.poll_next(context).map(|piece| piece.map(|piece| Ok(Frame::data(piece)))),
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

impl Drop for Streamed {
    fn drop(&mut self) {
        if let Some(progress) = &self.progress {
            progress.request_ended();
        }
    }
}

/// A front: what is done with a request. One value serves every connection.
pub trait Front: Send + Sync + 'static {
    /// Answers one request.
    fn answer(&self, request: Request<Incoming>) -> impl Future<Output = Reply> + Send;

    /// Whether a `POST` to this path with a body of this length is answered by [`Front::answer_plain`].
    fn is_plain(&self, path: &str, length: usize) -> bool;

    /// Answers a `POST` of which the body is all that matters: with JSON, or with an error that is
    /// [refused](Front::refuse). There is a byte of room behind the body.
    fn answer_plain(&self, body: Vec<u8>) -> impl Future<Output = Result<Bytes, Error>> + Send;

    /// Answers what is no request that could be looked at.
    fn refuse(&self, error: &Error) -> Reply;
}

/// How connections are treated.
#[derive(Debug, Clone)]
pub struct Limits {
    /// The longest silence in the middle of a request or an answer.
    pub caller_timeout: Duration,
    /// The most connections at once.
    pub connections: u32,
}

/// A header block that is larger is refused.
const MAX_HEADER_BYTES: usize = 64 * 1024;
/// How often a connection comes back from hyper without [`MANY`] plain requests in between: one that brings
/// others again and again, large ones for instance, is left to it.
const MAX_RETURNS: u32 = 2;
/// So many plain requests in a row make others an exception.
const MANY: u32 = 16;
/// As many headers fit into hyper's own table, which needs no allocation.
const MAX_HEADERS: usize = 100;
/// How long accepting pauses when the kernel says that there are no descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Time enough for the runtime to ask the kernel what has arrived.
const A_TURN: Duration = Duration::from_millis(2);
/// How long freed memory is kept for whoever needs as much again.
const UNTIDY_FOR: Duration = Duration::from_secs(1);
/// How much of a refused body is read to its end, so that the caller gets to read the answer.
const MAX_DISCARDED_BYTES: u64 = 1024 * 1024 * 1024;

/// Listens on one address, or on all there are.
///
/// # Errors
/// [`ProxyError::CannotListen`].
pub fn listen(host: Option<std::net::IpAddr>, port: u16) -> Result<TcpListener, Error> {
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
    let bind = |ip: IpAddr| -> io::Result<TcpListener> {
        let address = SocketAddr::new(ip, port);
        let socket = if ip.is_ipv4() { tokio::net::TcpSocket::new_v4() } else { tokio::net::TcpSocket::new_v6() }?;
        // Restarted at once, it finds its port again.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(1024)
    };
    let bound = match host {
        Some(ip) => bind(ip),
        // The unspecified IPv6 address takes IPv4 as well, where there is IPv6 at all.
        None => match bind(Ipv6Addr::UNSPECIFIED.into()) {
            Err(error) if error.kind() != io::ErrorKind::AddrInUse => bind(Ipv4Addr::UNSPECIFIED.into()),
            other => other,
        },
    };
    bound.map_err(|reason| {
        let host = host.map_or_else(|| "*".to_owned(), |ip| ip.to_string());
        Error::Proxy(ProxyError::CannotListen { address: format!("{host}:{port}"), reason })
    })
}

/// How far the end of the server has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stop {
    /// It has not begun.
    No,
    /// Nothing is accepted any more. Connections that exist are answered, and end with that.
    Accepting,
    /// Connections end as soon as they have nothing in flight.
    Connections,
}

/// Accepts and serves connections until all of them have ended, which [`Stop`] asks for.
pub async fn serve<F: Front>(listener: TcpListener, front: Arc<F>, limits: Limits, mut stop: watch::Receiver<Stop>) {
    let places = Arc::new(Semaphore::new(limits.connections as usize));
    let acquire = || async { places.clone().acquire_owned().await.expect("the semaphore is never closed") };
    let stopped = stop.clone();
    let housekeeping = Arc::new(Notify::new());
    let keeper = tokio::spawn(keep_tidy(housekeeping.clone()));
    let begin = |stream: TcpStream, place: OwnedSemaphorePermit| {
        // An answer is one write; waiting to fill a packet would only delay it.
        let _ = stream.set_nodelay(true);
        let connection = connection(stream, front.clone(), limits.caller_timeout, stopped.clone());
        let housekeeping = housekeeping.clone();
        tokio::spawn(async move {
            // Large buffers are freed within, or before the answer that is sent within.
            let mut connection = pin!(connection);
            std::future::poll_fn(|context| {
                let polled = connection.as_mut().poll(context);
                if allocator::has_freed_large_blocks() {
                    housekeeping.notify_one();
                }
                polled
            })
            .await;
            drop(place);
        });
    };
    loop {
        let (accepted, place) = tokio::select! {
            _ = stop.wait_for(|stop| *stop >= Stop::Accepting) => break,
            accepted = async {
                let place = acquire().await;
                (listener.accept().await, place)
            } => accepted,
        };
        match accepted {
            Ok((stream, _)) => begin(stream, place),
            Err(error) => {
                // A caller that left before it was accepted, or no descriptor left: both pass.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    // Whoever is connected already, as far as the kernel is concerned, is told as well: an end
    // without an answer would not be tried again elsewhere.
    if let Ok(listener) = listener.into_std() {
        while let Ok((stream, _)) = listener.accept() {
            let Ok(place) = places.clone().try_acquire_owned() else { break };
            if stream.set_nonblocking(true).is_ok()
                && let Ok(stream) = TcpStream::from_std(stream)
            {
                begin(stream, place);
            }
        }
    }
    // From now on a caller is refused by the kernel, and the platform goes elsewhere.
    for _ in 0..limits.connections {
        acquire().await.forget();
    }
    keeper.abort();
}

/// Gives memory back, a moment after there is some: a caller that goes on finds its buffers again.
async fn keep_tidy(wanted: Arc<Notify>) {
    loop {
        wanted.notified().await;
        tokio::time::sleep(UNTIDY_FOR).await;
        allocator::trim();
    }
}

/// Serves one connection to its end.
async fn connection<F: Front>(mut stream: TcpStream, front: Arc<F>, patience: Duration, stop: watch::Receiver<Stop>) {
    let mut others = 0;
    let mut unread = Bytes::new();
    loop {
        if unread.is_empty() {
            let ended = fast_path::serve(&mut stream, &*front, patience, &stop).await;
            let After::Other(bytes, answered) = ended else { return };
            unread = bytes;
            if answered >= MANY {
                others = 0;
            }
        }
        others += 1;
        // Apart, since most connections come to need it once, for their init.
        let other =
            Box::pin(any_requests(stream, unread, front.clone(), patience, stop.clone(), others <= MAX_RETURNS));
        let Some(back) = other.await else { return };
        (stream, unread) = back;
    }
}

/// Serves requests of any kind, of the first of which so much has been read. Gives the stream back when every
/// one that came whole has been answered, with what was read of another one, if it is to return; else the
/// connection ends here.
async fn any_requests<F: Front>(
    stream: TcpStream,
    unread: Bytes,
    front: Arc<F>,
    patience: Duration,
    stop: watch::Receiver<Stop>,
    returns: bool,
) -> Option<(TcpStream, Bytes)> {
    let progress = Arc::new(Progress::default());
    let io = TokioIo::new(Io { stream, unread, progress: progress.clone(), withheld: false });
    let stopping = stop.clone();
    let service = service_fn(|request: Request<Incoming>| {
        let front = front.clone();
        let progress = progress.clone();
        let stopping = stopping.clone();
        async move {
            progress.request_began();
            let stays = request.version() == Version::HTTP_11
                && request
                    .headers()
                    .get(CONNECTION)
                    .is_none_or(|value| value.as_bytes().eq_ignore_ascii_case(b"keep-alive"));
            let unmet = unmet_expectation(&request);
            let mut reply = match &unmet {
                None => front.answer(request).await,
                Some(error) => front.refuse(error),
            };
            // A body that waits for its expectation to be met is not waited for.
            let closes = unmet.is_some() || *stopping.borrow() >= Stop::Accepting;
            if closes {
                reply.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            progress.stays.store(stays && !closes, Ordering::Relaxed);
            match reply.body_mut() {
                Payload::Whole(_) => progress.request_ended(),
                Payload::Stream(body) => body.progress = Some(progress),
            }
            Ok::<_, std::convert::Infallible>(reply)
        }
    });
    let mut connection =
        hyper::server::conn::http1::Builder::new().max_header_size(MAX_HEADER_BYTES).serve_connection(io, service);
    let mut watch = Watch::new(patience);
    let mut closing = pin!(end_of(stop));
    let mut closes = false;
    let result = std::future::poll_fn(|context| {
        let mut polled = Pin::new(&mut connection).poll(context);
        if polled.is_pending() && returns && progress.is_done() {
            progress.lets_go.store(true, Ordering::Relaxed);
            Pin::new(&mut connection).graceful_shutdown();
            polled = Pin::new(&mut connection).poll(context);
            progress.lets_go.store(false, Ordering::Relaxed);
            return polled.map(|result| Some(result.map(|()| true)));
        }
        // Only when hyper has read what there is: it closes a connection at once on which it knows of nothing.
        if polled.is_pending() && !closes && closing.as_mut().poll(context).is_ready() {
            closes = true;
            Pin::new(&mut connection).graceful_shutdown();
            polled = Pin::new(&mut connection).poll(context);
        }
        match polled {
            Poll::Ready(result) => Poll::Ready(Some(result.map(|()| false))),
            // Looked at after hyper has done what it can: a request that came whole is never timed.
            Poll::Pending => watch.poll(&progress, context).map(|()| None),
        }
    })
    .await;
    match result {
        Some(Ok(false)) => {}
        Some(Ok(true)) => {
            let parts = connection.into_parts();
            let Io { stream, unread, .. } = parts.io.into_inner();
            let unread = if unread.is_empty() { parts.read_buf } else { [parts.read_buf, unread].concat().into() };
            return Some((stream, unread));
        }
        Some(Err(error)) => {
            tracing::debug!(%error, "connection ended");
            if let Some(error) = unreadable(&error) {
                let stream = connection.into_parts().io.into_inner().stream;
                // Apart, since nearly no connection comes to need it.
                Box::pin(refuse(stream, front.refuse(&error), patience)).await;
            }
        }
        None => tracing::debug!("the caller stalled; connection closed"),
    }
    None
}

/// Waits until a connection that has nothing in flight is to end.
pub(super) async fn end_of(mut stop: watch::Receiver<Stop>) {
    let _ = stop.wait_for(|stop| *stop == Stop::Connections).await;
    // A request that is with the kernel is in flight, too.
    tokio::time::sleep(A_TURN).await;
}

/// What is wrong with a request that hyper could not read; nothing for a connection that broke.
fn unreadable(error: &hyper::Error) -> Option<Error> {
    if error.is_parse_version_h2() {
        return Some(Error::Request(RequestError::Http2));
    }
    if error.is_parse_too_large() {
        return Some(Error::Request(RequestError::HeadTooLarge {
            limit_bytes: MAX_HEADER_BYTES,
            limit_headers: MAX_HEADERS,
        }));
    }
    let reason = || error.to_string().replace(" parsed", "");
    error.is_parse().then(|| Error::Request(RequestError::NotHttp { reason: reason() }))
}

/// hyper meets `100-continue` by itself, and knows no other.
fn unmet_expectation(request: &Request<Incoming>) -> Option<Error> {
    let expectation = request.headers().get(EXPECT)?.as_bytes();
    let known = expectation.eq_ignore_ascii_case(b"100-continue");
    (!known).then(|| {
        Error::Request(RequestError::UnmetExpectation {
            expectation: String::from_utf8_lossy(expectation).into_owned(),
        })
    })
}

/// Answers on a connection of which hyper has let go, and ends it in a way that the answer arrives:
/// closing it over unread bytes would make the kernel of the caller throw the answer away.
async fn refuse(mut stream: TcpStream, reply: Reply, limit: Duration) {
    let mut bytes = Vec::new();
    let body = head_and_body(reply, &mut bytes);
    bytes.extend_from_slice(format!("content-length: {}\r\nconnection: close\r\n\r\n", body.len()).as_bytes());
    bytes.extend_from_slice(&body);
    let farewell = async {
        let mut unwritten = &bytes[..];
        while !unwritten.is_empty() {
            let count = std::future::poll_fn(|context| Pin::new(&mut stream).poll_write(context, unwritten)).await?;
            unwritten = &unwritten[count..];
        }
        std::future::poll_fn(|context| Pin::new(&mut stream).poll_shutdown(context)).await?;
        let (mut dropped, mut chunk) = (0, vec![0; 16 * 1024]);
        while dropped < MAX_DISCARDED_BYTES {
            stream.readable().await?;
            match stream.try_read(&mut chunk) {
                Ok(0) => break,
                Ok(count) => dropped += count as u64,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        io::Result::Ok(())
    };
    // Whoever does not take it has lost nothing else.
    let _ = time::timeout(limit, farewell).await;
}

/// Writes the status and the headers of an answer that is there in whole, and gives its body.
pub(super) fn head_and_body(reply: Reply, bytes: &mut Vec<u8>) -> Bytes {
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
        Payload::Stream(_) => unreachable!("an error comes whole"),
    }
}

/// What the watch over a connection needs to know. All of it lives in one task; the atomics are
/// for the compiler.
#[derive(Debug, Default)]
struct Progress {
    /// A request is being answered.
    in_request: AtomicBool,
    /// Some of a request has come, and not yet its whole head.
    in_head: AtomicBool,
    /// The caller does not take what it is sent.
    write_blocked: AtomicBool,
    /// A request has been answered whose connection is kept.
    stays: AtomicBool,
    /// hyper lets go of the stream, which stays open.
    lets_go: AtomicBool,
    /// Counts everything that was read or written.
    moves: AtomicU64,
}

impl Progress {
    fn request_began(&self) {
        self.in_request.store(true, Ordering::Relaxed);
        self.in_head.store(false, Ordering::Relaxed);
    }

    fn request_ended(&self) {
        self.in_request.store(false, Ordering::Relaxed);
    }

    /// Whether everything that came has been answered, every answer been written, and the connection is kept.
    fn is_done(&self) -> bool {
        self.stays.load(Ordering::Relaxed) && !self.in_request.load(Ordering::Relaxed) && !self.waits_for_caller()
    }

    fn read(&self, count: usize) {
        if count > 0 {
            self.moves.fetch_add(1, Ordering::Relaxed);
            if !self.in_request.load(Ordering::Relaxed) {
                self.in_head.store(true, Ordering::Relaxed);
            }
        }
    }

    fn wrote<T>(&self, result: &Poll<io::Result<T>>) {
        self.write_blocked.store(result.is_pending(), Ordering::Relaxed);
        if result.is_ready() {
            self.moves.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn waits_for_caller(&self) -> bool {
        self.in_head.load(Ordering::Relaxed) || self.write_blocked.load(Ordering::Relaxed)
    }
}

/// Ends a connection whose caller stalls in the middle of something.
struct Watch {
    patience: Duration,
    /// Armed only while something is waited for; most connections never need one.
    timer: Option<Pin<Box<Sleep>>>,
    countdown: Countdown,
    moves_seen: u64,
}

impl Watch {
    fn new(patience: Duration) -> Self {
        Self { patience, timer: None, countdown: Countdown::new(patience), moves_seen: 0 }
    }

    /// Ready when patience is over.
    fn poll(&mut self, progress: &Progress, context: &mut Context<'_>) -> Poll<()> {
        if !progress.waits_for_caller() {
            self.timer = None;
            return Poll::Pending;
        }
        let moves = progress.moves.load(Ordering::Relaxed);
        if self.timer.is_none() || moves != self.moves_seen {
            self.moves_seen = moves;
            self.countdown = Countdown::new(self.patience);
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

/// A connection's stream with its progress noted, and without the answers that hyper gives by itself
/// to what it cannot read: they have no body, and [`refuse`] has a better one.
struct Io {
    stream: TcpStream,
    /// What was read before.
    unread: Bytes,
    progress: Arc<Progress>,
    /// Such an answer was withheld: the stream is still needed.
    withheld: bool,
}

impl Io {
    /// Whether a write is such an answer. All of ours have a body, and it comes with its head.
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
            self.progress.read(count);
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(context, buffer);
        self.progress.read(buffer.filled().len() - before);
        result
    }
}

impl AsyncWrite for Io {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.withholds(bytes) {
            return Poll::Ready(Ok(bytes.len()));
        }
        let result = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.progress.wrote(&result);
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
        let result = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.progress.wrote(&result);
        result
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.withheld || self.progress.lets_go.load(Ordering::Relaxed) {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// The bound of a body, and what its error names.
#[derive(Debug, Clone, Copy)]
pub struct BodyBound<'a> {
    /// What the body belongs to.
    pub request: RequestKind,
    /// The most bytes.
    pub limit_bytes: u64,
    /// The setting that holds the bound.
    pub setting: &'static str,
    /// The longest silence between two pieces.
    pub patience: Duration,
    /// What all bodies share.
    pub room: &'a MemoryBudget,
}

/// Collects a body into one buffer, with a byte of room behind it, and what it takes of the room that all
/// bodies share.
///
/// # Errors
/// [`RequestError::BodyTooLarge`], [`RequestError::MemoryFull`], [`RequestError::BodyStalled`], and [`RequestError::BrokenBody`] when the connection
/// breaks or its framing is wrong. In any case the body has been read to its end, as far as that
/// can be asked, so that the caller gets to read the answer.
pub async fn read_body(mut body: Incoming, bound: &BodyBound<'_>) -> Result<(Vec<u8>, Reservation), Error> {
    let too_large = || {
        Error::Request(RequestError::BodyTooLarge {
            request: bound.request,
            limit_bytes: bound.limit_bytes,
            setting: bound.setting,
        })
    };
    let announced = body.size_hint().exact().unwrap_or(0);
    let admitted = if announced > bound.limit_bytes { Err(too_large()) } else { bound.room.admit(announced) };
    if let Err(error) = admitted {
        discard(body, bound.patience).await;
        return Err(error);
    }
    let mut held = bound.room.hold();
    // Announcing is cheap: what is set aside at once is bounded.
    let room = announced.min(MAX_RESERVED_BYTES);
    let mut bytes = Vec::with_capacity(usize::try_from(room).unwrap_or(0) + 1);
    while let Some(frame) = next_frame(&mut body, bound.request, bound.patience).await? {
        let length = bytes.len() + frame.len();
        let grown = if length as u64 > bound.limit_bytes { Err(too_large()) } else { held.grow_to(length) };
        if let Err(error) = grown {
            drop(bytes);
            discard(body, bound.patience).await;
            return Err(error);
        }
        bytes.extend_from_slice(&frame);
    }
    Ok((bytes, held))
}

/// What is set aside for a body that was only announced.
const MAX_RESERVED_BYTES: u64 = 2 * 1024 * 1024;

/// Reads a body to its end and forgets it, within reason.
pub async fn discard(mut body: Incoming, patience: Duration) {
    let mut total = 0;
    // An error ends the reading and is not reported, so its kind of request does not matter.
    while let Ok(Some(frame)) = next_frame(&mut body, RequestKind::Run, patience).await {
        total += frame.len() as u64;
        if total > MAX_DISCARDED_BYTES {
            return;
        }
    }
}

async fn next_frame(body: &mut Incoming, request: RequestKind, limit: Duration) -> Result<Option<Bytes>, Error> {
    loop {
        let frame = time::timeout(limit, body.frame())
            .await
            .ok_or(Error::Request(RequestError::BodyStalled { waited: limit }))?;
        match frame {
            None => return Ok(None),
            Some(Err(error)) => {
                return Err(Error::Request(RequestError::BrokenBody { request, reason: error.to_string() }));
            }
            // Trailers are nothing to us.
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    return Ok(Some(data));
                }
            }
        }
    }
}

/// An answer in JSON. hyper adds Content-Length, since the body's length is known.
#[must_use]
pub fn json(status: StatusCode, body: Bytes) -> Reply {
    let mut reply = Response::new(Payload::Whole(Full::new(body)));
    *reply.status_mut() = status;
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    reply
}

/// An answer that comes as it comes. It has no Content-Length.
#[must_use]
pub fn stream(media_type: &'static str, source: Box<dyn Source>) -> Reply {
    let mut reply = Response::new(Payload::Stream(Streamed { source, progress: None }));
    let headers = reply.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    // Nor is it kept back by what stands in between.
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    reply
}
