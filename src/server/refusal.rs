//! Refusals of requests that no front gets to see: hyper cannot read them, they expect more than it offers, or the
//! standard asks for a refusal.

use std::io;
use std::pin::Pin;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::{EXPECT, HOST, TRANSFER_ENCODING};
use hyper::{Request, Version};
use tokio::io::AsyncWrite;
use tokio::net::TcpStream;

use crate::error::{Error, RequestError};
use crate::time;

use super::body::MAX_DISCARDED_BYTES;
use super::reply::{Reply, write_head};
use super::{MAX_HEADER_BYTES, MAX_HEADERS};

/// The reason that hyper could not read a request, or `None` if the connection broke.
pub(super) fn unreadable(error: &hyper::Error) -> Option<Error> {
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

/// The error for an expectation other than `100-continue`, the only one that hyper meets.
pub(super) fn unmet_expectation(request: &Request<Incoming>) -> Option<Error> {
    let expectation = request.headers().get(EXPECT)?.as_bytes();
    let known = expectation.eq_ignore_ascii_case(b"100-continue");
    (!known).then(|| {
        Error::Request(RequestError::UnmetExpectation {
            expectation: String::from_utf8_lossy(expectation).into_owned(),
        })
    })
}

/// The error for a request that hyper accepts although the standard asks for a refusal: without `Host`, with two
/// of them, or with a transfer coding besides `chunked`, which hyper leaves in the body.
///
/// Source: RFC 9112, 3.2 and 6.1.
pub(super) fn nonconforming(request: &Request<Incoming>) -> Option<Error> {
    let hosts = request.headers().get_all(HOST).iter().count();
    if hosts > 1 || (hosts == 0 && request.version() == Version::HTTP_11) {
        return Some(Error::Request(RequestError::NotOneHost { count: hosts }));
    }
    let values =
        request.headers().get_all(TRANSFER_ENCODING).iter().map(|value| String::from_utf8_lossy(value.as_bytes()));
    let coding = values.collect::<Vec<_>>().join(", ");
    let known = coding.is_empty() || coding.trim().eq_ignore_ascii_case("chunked");
    (!known).then_some(Error::Request(RequestError::TransferCoding { coding }))
}

/// Sends a reply on a stream that hyper has given up, and closes the stream so that the reply arrives: if
/// the proxy closed it over unread bytes, the caller's kernel would drop the reply.
pub(super) async fn send(mut stream: TcpStream, reply: Reply, caller_timeout: Duration) {
    let mut bytes = Vec::new();
    let body = write_head(reply, &mut bytes);
    bytes.extend_from_slice(format!("content-length: {}\r\nconnection: close\r\n\r\n", body.len()).as_bytes());
    bytes.extend_from_slice(&body);
    let sent = async {
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
    // A caller that does not read the reply in time loses nothing else.
    let _ = time::timeout(caller_timeout, sent).await;
}
