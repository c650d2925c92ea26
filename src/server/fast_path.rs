//! The fast path: answers small `POST` requests that arrive whole in one read, without hyper.
//!
//! Most requests from a platform are like this. Measured without the fast path, the median of a warm
//! activation gets 11 to 14 % worse. The path stays as long as that is more than 5 %.
//!
//! A request is parsed before anything else happens. When in doubt, the whole request goes to hyper, and the
//! rest of the connection with it. So the fast path knows one form of a request, and its answer must be the
//! one that hyper would give: `tests/suite/fast_path.rs` compares them. httparse does the parsing, as it does
//! in hyper.

use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use std::{io, str};

use bytes::Bytes;
use httparse::Status;
use rustix::io::Errno;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::process::adaptive_yield::AdaptiveYield;
use crate::time;

use super::half_close::{HalfClose, Upcoming};
use super::reply::write_head;
use super::shutdown::wait_to_close_idle;
use super::{Front, Stop};

/// The maximum size of one read, and so of a fast request.
const MAX_REQUEST_BYTES: usize = 8 * 1024;
/// The maximum number of headers of a fast request.
const MAX_HEADERS: usize = 32;
/// An answer up to this size is copied behind its head, so that one write sends both.
const MAX_COPIED_BYTES: usize = 16 * 1024;

/// Why the fast path stopped.
pub(super) enum FastPathEnd {
    /// The connection has ended.
    Closed,
    /// A request arrived that is not for the fast path.
    OtherRequest {
        /// The bytes of it that have been read.
        read: Bytes,
        /// How many requests the fast path answered before it.
        answered: u32,
    },
}

/// Answers requests as long as they fit the fast path.
pub(super) async fn serve<F: Front>(
    stream: &mut TcpStream,
    front: &F,
    caller_timeout: Duration,
    stop: &watch::Receiver<Stop>,
) -> FastPathEnd {
    let mut buffer = ReadBuffer::new();
    let mut out = Vec::new();
    let mut date = Date::default();
    let mut close_idle = pin!(wait_to_close_idle(stop.clone()));
    let mut adaptive_yield = AdaptiveYield::UNTRIED;
    let mut answered = 0;
    let mut half_close = HalfClose::default();
    loop {
        let yielded = answered > 0 && adaptive_yield.yield_if_due();
        let read = if yielded { buffer.fill_now(stream) } else { Ok(None) };
        if yielded {
            adaptive_yield.record(matches!(read, Ok(Some(_))));
        }
        let read = match read {
            Ok(Some(count)) => Ok(count),
            Ok(None) => {
                std::future::poll_fn(|context| match buffer.poll_fill(stream, context) {
                    Poll::Pending => close_idle.as_mut().poll(context).map(|()| Ok(0)),
                    read @ Poll::Ready(_) => read,
                })
                .await
            }
            Err(error) => Err(error),
        };
        if !matches!(read, Ok(1..)) {
            return FastPathEnd::Closed;
        }
        let request = Request::parse(buffer.as_slice());
        let Some(request) = request.filter(|request| front.takes_fast_path(request.path, request.body.len())) else {
            return FastPathEnd::OtherRequest { read: buffer.into_bytes(), answered };
        };
        let mut body = Vec::with_capacity(request.body.len() + 1);
        body.extend_from_slice(request.body);
        buffer.length = 0;
        let mut answer = pin!(front.answer_fast(body));
        let mut sends_no_more = false;
        let outcome = std::future::poll_fn(|context| {
            if let Poll::Ready(outcome) = answer.as_mut().poll(context) {
                return Poll::Ready(Some(outcome));
            }
            // A caller that leaves wants no answer. What it sends meanwhile waits in the buffer.
            while !sends_no_more && !buffer.is_full() {
                match ready!(buffer.poll_fill(stream, context)) {
                    Ok(1..) => {}
                    Ok(0) => sends_no_more = true,
                    Err(_) => return Poll::Ready(None),
                }
            }
            if !sends_no_more {
                return Poll::Pending;
            }
            half_close.poll_left(stream, Upcoming::StatusLine, context).map(|()| None)
        });
        let Some(outcome) = outcome.await else { return FastPathEnd::Closed };
        let closes = *stop.borrow() >= Stop::Accepting;
        out.clear();
        let body = match outcome {
            Ok(body) => {
                out.extend_from_slice(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n");
                body
            }
            Err(error) => write_head(front.refuse(&error), &mut out),
        };
        if closes {
            out.extend_from_slice(b"connection: close\r\n");
        }
        out.extend_from_slice(b"content-length: ");
        out.extend_from_slice(itoa::Buffer::new().format(body.len()).as_bytes());
        out.extend_from_slice(b"\r\ndate: ");
        out.extend_from_slice(date.at(SystemTime::now()));
        out.extend_from_slice(b"\r\n\r\n");
        let unsent = half_close.take_sent_early(out.len());
        let sent = if body.len() <= MAX_COPIED_BYTES {
            out.extend_from_slice(&body);
            send(stream, &out[unsent..], caller_timeout).await
        } else {
            send(stream, &out[unsent..], caller_timeout).await && send(stream, &body, caller_timeout).await
        };
        if !sent || closes {
            return FastPathEnd::Closed;
        }
        answered = answered.saturating_add(1);
        if buffer.length > 0 {
            return FastPathEnd::OtherRequest { read: buffer.into_bytes(), answered };
        }
    }
}

/// A request that fits the fast path.
struct Request<'a> {
    path: &'a str,
    body: &'a [u8],
}

impl<'a> Request<'a> {
    /// Parses bytes that are exactly one request, if the request fits the fast path.
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        let mut headers = [const { std::mem::MaybeUninit::uninit() }; MAX_HEADERS];
        let mut request = httparse::Request::new(&mut []);
        let Ok(Status::Complete(head)) = request.parse_with_uninit_headers(bytes, &mut headers) else { return None };
        let (mut length, mut hosts) = (None, 0);
        for header in &*request.headers {
            let (name, value) = (header.name, header.value);
            let is = |other: &str| name.eq_ignore_ascii_case(other);
            let fits = if is("content-length") {
                length.replace(parse_length(value)?).is_none()
            } else if is("host") {
                hosts += 1;
                hosts == 1
            } else if is("accept") {
                matches!(value, b"*/*" | b"application/json")
            } else if is("connection") {
                value.eq_ignore_ascii_case(b"keep-alive")
            } else {
                // Other headers change neither the framing of the body nor how the proxy answers.
                !(is("transfer-encoding") || is("expect") || is("upgrade"))
            };
            if !fits {
                return None;
            }
        }
        let fits = request.method == Some("POST")
            && request.version == Some(1)
            && hosts == 1
            && length == Some(bytes.len() - head);
        fits.then(|| Self { path: request.path.unwrap_or_default(), body: &bytes[head..] })
    }
}

fn parse_length(digits: &[u8]) -> Option<usize> {
    let is_short_decimal = digits.len() <= 5 && digits.iter().all(u8::is_ascii_digit);
    is_short_decimal.then(|| str::from_utf8(digits).ok()?.parse().ok()).flatten()
}

/// The `Date` header of answers, formatted once a second.
#[derive(Default)]
struct Date {
    second: u64,
    text: String,
}

impl Date {
    fn at(&mut self, now: SystemTime) -> &[u8] {
        let second = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        if second != self.second || self.text.is_empty() {
            *self = Self { second, text: httpdate::fmt_http_date(now) };
        }
        self.text.as_bytes()
    }
}

/// Bytes that have been read and not used.
struct ReadBuffer {
    bytes: Box<[u8; MAX_REQUEST_BYTES]>,
    length: usize,
}

impl ReadBuffer {
    fn new() -> Self {
        Self { bytes: Box::new([0; MAX_REQUEST_BYTES]), length: 0 }
    }

    /// Reads once, as much as fits.
    fn poll_fill(&mut self, stream: &mut TcpStream, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut buffer = ReadBuf::new(&mut self.bytes[self.length..]);
        ready!(Pin::new(stream).poll_read(context, &mut buffer))?;
        let count = buffer.filled().len();
        self.length += count;
        Poll::Ready(Ok(count))
    }

    /// Reads once if bytes have arrived, without asking the runtime whether they have.
    fn fill_now(&mut self, stream: &TcpStream) -> io::Result<Option<usize>> {
        match rustix::io::read(stream, &mut self.bytes[self.length..]) {
            Ok(count) => {
                self.length += count;
                Ok(Some(count))
            }
            Err(Errno::AGAIN | Errno::INTR) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn is_full(&self) -> bool {
        self.length == MAX_REQUEST_BYTES
    }

    fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    fn into_bytes(self) -> Bytes {
        Bytes::copy_from_slice(self.as_slice())
    }
}

/// Sends all bytes. Returns `false` if the connection breaks or the caller stalls for the whole timeout.
async fn send(stream: &mut TcpStream, mut bytes: &[u8], caller_timeout: Duration) -> bool {
    while !bytes.is_empty() {
        let write = std::future::poll_fn(|context| Pin::new(&mut *stream).poll_write(context, bytes));
        let Some(Ok(count @ 1..)) = time::timeout(caller_timeout, write).await else { return false };
        bytes = &bytes[count..];
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HEAD: &str = "POST /run HTTP/1.1\r\nHost: x\r\n";

    fn fits(bytes: &[u8]) -> bool {
        Request::parse(bytes).is_some()
    }

    #[test]
    fn a_post_with_its_whole_body_fits_whatever_its_other_headers() {
        for headers in [
            "Content-Length: 2\r\n",
            "content-length:2\r\nContent-Type: text/plain\r\nTraceparent: 00-1\r\nX-Any:\r\n",
            "User-Agent: any\r\nACCEPT: */*\r\nAccept-Encoding: gzip\r\nContent-Length: 2 \r\nConnection: Keep-Alive\r\n",
            "Accept: application/json\r\nContent-Length: 00002\r\n",
        ] {
            let bytes = format!("{HEAD}{headers}\r\n{{}}");
            let request = Request::parse(bytes.as_bytes()).unwrap_or_else(|| panic!("{headers}"));
            assert_eq!((request.path, request.body), ("/run", &b"{}"[..]));
        }
        let empty =
            Request::parse(b"POST /any?q HTTP/1.1\r\nhost:\r\nContent-Length: 0\r\n\r\n").expect("a fast request");
        assert_eq!((empty.path, empty.body), ("/any?q", &b""[..]));
    }

    #[test]
    fn any_other_request_goes_to_hyper() {
        for headers in [
            "",
            "Content-Length: 2\r\nContent-Length: 2\r\n",
            "Content-Length: 3\r\n",
            "Content-Length: 1\r\n",
            "Content-Length: +2\r\n",
            "Content-Length: 0x2\r\n",
            "Content-Length: 2, 2\r\n",
            "Content-Length: 000002\r\n",
            "Content-Length: \r\n",
            "Transfer-Encoding: chunked\r\n",
            "Content-Length: 2\r\nTransfer-Encoding: identity\r\n",
            "Content-Length: 2\r\nExpect: 100-continue\r\n",
            "Content-Length: 2\r\nUpgrade: h2c\r\n",
            "Content-Length: 2\r\nConnection: close\r\n",
            "Content-Length: 2\r\nConnection: keep-alive, Upgrade\r\n",
            "Content-Length: 2\r\nAccept: text/event-stream\r\n",
            "Content-Length: 2\r\nAccept: */*\r\nAccept: application/x-ndjson\r\n",
            "Content-Length: 2\r\n folded: 1\r\n",
            "Content-Length : 2\r\n",
            "Content-Length: 2\r\nhost: x\r\n",
        ] {
            assert!(!fits(format!("{HEAD}{headers}\r\n{{}}").as_bytes()), "{headers}");
        }
        for head in ["GET /run HTTP/1.1", "PUT /run HTTP/1.1", "post /run HTTP/1.1", "POST /run HTTP/1.0", "POST /run"]
        {
            assert!(!fits(format!("{head}\r\nHost: x\r\nContent-Length: 2\r\n\r\n{{}}").as_bytes()), "{head}");
        }
        assert!(!fits(b"POST /run HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}"), "no host");
    }

    #[test]
    fn the_date_is_formatted_once_a_second() {
        let mut date = Date::default();
        let mut check =
            |ms, expected: &str| assert_eq!(date.at(UNIX_EPOCH + Duration::from_millis(ms)), expected.as_bytes());
        check(0, "Thu, 01 Jan 1970 00:00:00 GMT");
        check(951_782_400_000, "Tue, 29 Feb 2000 00:00:00 GMT");
        check(951_782_400_999, "Tue, 29 Feb 2000 00:00:00 GMT");
        check(951_782_401_000, "Tue, 29 Feb 2000 00:00:01 GMT");
    }

    proptest! {
        /// A request fits when it has arrived whole, and not with bytes missing or left over.
        #[test]
        fn a_request_fits_only_whole_and_alone(
            names in prop::collection::vec("[A-Za-z-]{1,12}", 0..8),
            body in prop::collection::vec(any::<u8>(), 0..200),
            trailing in prop::collection::vec(any::<u8>(), 1..20),
        ) {
            let others = names.join(": 1\r\nX-");
            let mut bytes = format!("{HEAD}X-{others}: 1\r\nContent-Length: {}\r\n\r\n", body.len()).into_bytes();
            bytes.extend_from_slice(&body);
            prop_assert_eq!(Request::parse(&bytes).map(|request| request.body.to_vec()), Some(body));
            for cut in 0..bytes.len() {
                prop_assert!(!fits(&bytes[..cut]), "cut at {}", cut);
            }
            bytes.extend_from_slice(&trailing);
            prop_assert!(!fits(&bytes));
        }
    }
}
