//! Plain requests, which are nearly all there are: a small `POST` that stands whole in what was read
//! at once. They are answered here, without the machinery that every other request needs.
//!
//! What is plain is decided before anything is done, and whatever is not, to the least doubt, is
//! hyper's, from its first byte and with the rest of its connection. So this knows one form of a
//! request, and gives the answer that hyper would: `tests/suite/plain.rs` compares them. Parsing is
//! httparse's, as it is there.

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

use super::{Front, Stop, end_of, head_and_body};

/// What is read at once, and so the largest request that is plain.
const MAX_BYTES: usize = 8 * 1024;
/// A plain request has no more headers than this.
const MAX_HEADERS: usize = 32;
/// An answer up to this is copied behind its head.
const COPY_BELOW: usize = 16 * 1024;

/// How serving plain requests ended.
pub(super) enum After {
    /// With the connection.
    Ended,
    /// With a request that is not plain, of which these bytes have been read, behind so many that were.
    Other(Bytes, u32),
}

/// Answers requests for as long as they are plain.
pub(super) async fn serve<F: Front>(
    stream: &mut TcpStream,
    front: &F,
    limit: Duration,
    stop: &watch::Receiver<Stop>,
) -> After {
    let mut unread = Unread::new();
    let mut out = Vec::new();
    let mut date = Date::default();
    let mut closing = pin!(end_of(stop.clone()));
    let mut courtesy = AdaptiveYield::UNTRIED;
    let mut answered_before = 0;
    loop {
        let at_once = answered_before > 0 && courtesy.yield_if_due();
        let read = if at_once { unread.fill_now(stream) } else { Ok(None) };
        if at_once {
            courtesy.record(matches!(read, Ok(Some(_))));
        }
        let read = match read {
            Ok(Some(count)) => Ok(count),
            Ok(None) => {
                std::future::poll_fn(|context| match unread.poll_fill(stream, context) {
                    Poll::Pending => closing.as_mut().poll(context).map(|()| Ok(0)),
                    read @ Poll::Ready(_) => read,
                })
                .await
            }
            Err(error) => Err(error),
        };
        if !matches!(read, Ok(1..)) {
            return After::Ended;
        }
        let Some(request) = Request::of(unread.as_slice()) else {
            return After::Other(unread.into_bytes(), answered_before);
        };
        if !front.is_plain(request.path, request.body.len()) {
            return After::Other(unread.into_bytes(), answered_before);
        }
        let mut body = Vec::with_capacity(request.body.len() + 1);
        body.extend_from_slice(request.body);
        unread.length = 0;
        let mut answer = pin!(front.answer_plain(body));
        let answered = std::future::poll_fn(|context| {
            if let Poll::Ready(answered) = answer.as_mut().poll(context) {
                return Poll::Ready(Some(answered));
            }
            // A caller that leaves wants no answer. What it sends meanwhile is looked at behind it.
            while !unread.is_full() {
                if !matches!(ready!(unread.poll_fill(stream, context)), Ok(1..)) {
                    return Poll::Ready(None);
                }
            }
            Poll::Pending
        });
        let Some(answered) = answered.await else { return After::Ended };
        let closes = *stop.borrow() >= Stop::Accepting;
        out.clear();
        let body = match answered {
            Ok(body) => {
                out.extend_from_slice(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n");
                body
            }
            Err(error) => head_and_body(front.refuse(&error), &mut out),
        };
        if closes {
            out.extend_from_slice(b"connection: close\r\n");
        }
        out.extend_from_slice(b"content-length: ");
        out.extend_from_slice(itoa::Buffer::new().format(body.len()).as_bytes());
        out.extend_from_slice(b"\r\ndate: ");
        out.extend_from_slice(date.at(SystemTime::now()));
        out.extend_from_slice(b"\r\n\r\n");
        let sent = if body.len() <= COPY_BELOW {
            out.extend_from_slice(&body);
            send(stream, &out, limit).await
        } else {
            send(stream, &out, limit).await && send(stream, &body, limit).await
        };
        if !sent || closes {
            return After::Ended;
        }
        answered_before = answered_before.saturating_add(1);
        if unread.length > 0 {
            return After::Other(unread.into_bytes(), answered_before);
        }
    }
}

/// A plain request.
struct Request<'a> {
    path: &'a str,
    body: &'a [u8],
}

impl<'a> Request<'a> {
    /// The request that these bytes are, no more and no less, if it is plain.
    fn of(bytes: &'a [u8]) -> Option<Self> {
        let mut headers = [const { std::mem::MaybeUninit::uninit() }; MAX_HEADERS];
        let mut request = httparse::Request::new(&mut []);
        let Ok(Status::Complete(head)) = request.parse_with_uninit_headers(bytes, &mut headers) else { return None };
        let mut length = None;
        for header in &*request.headers {
            let (name, value) = (header.name, header.value);
            let is = |other: &str| name.eq_ignore_ascii_case(other);
            let says_nothing_else = if is("content-length") {
                length.replace(decimal(value)?).is_none()
            } else if is("accept") {
                matches!(value, b"*/*" | b"application/json")
            } else if is("connection") {
                value.eq_ignore_ascii_case(b"keep-alive")
            } else {
                // Any other says nothing of how a body comes, or of what is to be done with it.
                !(is("transfer-encoding") || is("expect") || is("upgrade"))
            };
            if !says_nothing_else {
                return None;
            }
        }
        let plain = request.method == Some("POST") && request.version == Some(1) && length == Some(bytes.len() - head);
        plain.then(|| Self { path: request.path.unwrap_or_default(), body: &bytes[head..] })
    }
}

fn decimal(digits: &[u8]) -> Option<usize> {
    let plain = digits.len() <= 5 && digits.iter().all(u8::is_ascii_digit);
    plain.then(|| str::from_utf8(digits).ok()?.parse().ok()).flatten()
}

/// The `Date` of an answer, made once a second.
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

/// What has been read of a connection and not been looked at.
struct Unread {
    bytes: Box<[u8; MAX_BYTES]>,
    length: usize,
}

impl Unread {
    fn new() -> Self {
        Self { bytes: Box::new([0; MAX_BYTES]), length: 0 }
    }

    /// Reads once what fits.
    fn poll_fill(&mut self, stream: &mut TcpStream, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut buffer = ReadBuf::new(&mut self.bytes[self.length..]);
        ready!(Pin::new(stream).poll_read(context, &mut buffer))?;
        let count = buffer.filled().len();
        self.length += count;
        Poll::Ready(Ok(count))
    }

    /// Reads once what there is, if anything, without asking the runtime whether there is.
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
        self.length == MAX_BYTES
    }

    fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    fn into_bytes(self) -> Bytes {
        Bytes::copy_from_slice(self.as_slice())
    }
}

/// Whether everything was taken, with no silence longer than the limit.
async fn send(stream: &mut TcpStream, mut bytes: &[u8], limit: Duration) -> bool {
    while !bytes.is_empty() {
        let write = std::future::poll_fn(|context| Pin::new(&mut *stream).poll_write(context, bytes));
        let Some(Ok(count @ 1..)) = time::timeout(limit, write).await else { return false };
        bytes = &bytes[count..];
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HEAD: &str = "POST /run HTTP/1.1\r\nHost: x\r\n";

    fn is_plain(bytes: &[u8]) -> bool {
        Request::of(bytes).is_some()
    }

    #[test]
    fn a_post_with_its_whole_body_is_plain_whatever_its_other_headers() {
        for headers in [
            "Content-Length: 2\r\n",
            "content-length:2\r\nContent-Type: text/plain\r\nTraceparent: 00-1\r\nX-Any:\r\n",
            "User-Agent: any\r\nACCEPT: */*\r\nAccept-Encoding: gzip\r\nContent-Length: 2 \r\nConnection: Keep-Alive\r\n",
            "Accept: application/json\r\nContent-Length: 00002\r\n",
        ] {
            let bytes = format!("{HEAD}{headers}\r\n{{}}");
            let request = Request::of(bytes.as_bytes()).unwrap_or_else(|| panic!("{headers}"));
            assert_eq!((request.path, request.body), ("/run", &b"{}"[..]));
        }
        let empty = Request::of(b"POST /any?q HTTP/1.1\r\nContent-Length: 0\r\n\r\n").expect("a plain request");
        assert_eq!((empty.path, empty.body), ("/any?q", &b""[..]));
    }

    #[test]
    fn what_says_anything_else_is_not() {
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
        ] {
            assert!(!is_plain(format!("{HEAD}{headers}\r\n{{}}").as_bytes()), "{headers}");
        }
        for head in ["GET /run HTTP/1.1", "PUT /run HTTP/1.1", "post /run HTTP/1.1", "POST /run HTTP/1.0", "POST /run"]
        {
            assert!(!is_plain(format!("{head}\r\nContent-Length: 2\r\n\r\n{{}}").as_bytes()), "{head}");
        }
    }

    #[test]
    fn a_date_is_that_of_its_second() {
        let mut date = Date::default();
        let mut check =
            |ms, expected: &str| assert_eq!(date.at(UNIX_EPOCH + Duration::from_millis(ms)), expected.as_bytes());
        check(0, "Thu, 01 Jan 1970 00:00:00 GMT");
        check(951_782_400_000, "Tue, 29 Feb 2000 00:00:00 GMT");
        check(951_782_400_999, "Tue, 29 Feb 2000 00:00:00 GMT");
        check(951_782_401_000, "Tue, 29 Feb 2000 00:00:01 GMT");
    }

    proptest! {
        /// A request is plain when it has come whole, and not before or with more behind it.
        #[test]
        fn it_is_whole_and_alone(
            names in prop::collection::vec("[A-Za-z-]{1,12}", 0..8),
            body in prop::collection::vec(any::<u8>(), 0..200),
            behind in prop::collection::vec(any::<u8>(), 1..20),
        ) {
            let others = names.join(": 1\r\nX-");
            let mut bytes = format!("{HEAD}X-{others}: 1\r\nContent-Length: {}\r\n\r\n", body.len()).into_bytes();
            bytes.extend_from_slice(&body);
            prop_assert_eq!(Request::of(&bytes).map(|request| request.body.to_vec()), Some(body));
            for cut in 0..bytes.len() {
                prop_assert!(!is_plain(&bytes[..cut]), "cut at {}", cut);
            }
            bytes.extend_from_slice(&behind);
            prop_assert!(!is_plain(&bytes));
        }
    }
}
