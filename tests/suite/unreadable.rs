//! What comes over the wire and is no request: it gets the same form of answer as everything else.

use serde_json::json;

use crate::support::{Proxy, Response, WAIT_LIMIT};

/// Answers with what it gets.
const ECHO: &str =
    "#!/bin/bash\necho '{\"openwhisk\":1}'\nwhile IFS= read -r line; do printf '%s\\n' \"$line\"; done\n";

fn proxy() -> Proxy {
    let proxy = Proxy::plain();
    proxy.init(ECHO).check(200, &json!({"ok": true}));
    proxy
}

/// Sends these bytes on a new connection and reads the answer to its end, behind which the
/// connection must end.
#[track_caller]
fn send(proxy: &Proxy, bytes: &[u8]) -> Response {
    let mut caller = proxy.caller();
    // All of it: many a caller does not look for an answer when it cannot send.
    caller.send(bytes).expect("what is refused is read all the same");
    let response = caller.receive().expect("an answer");
    response.check_shape();
    assert_eq!(response.header("connection"), Some("close"));
    assert!(caller.is_closed_within(WAIT_LIMIT), "nothing comes behind a refusal");
    response
}

/// Asserts the answer to these bytes, and that the next request is answered as if nothing had been.
#[track_caller]
fn check(bytes: &[u8], status: u16, texts: &[&str]) {
    let proxy = proxy();
    send(&proxy, bytes).check_error(status, texts);
    proxy.run(&json!({"n": 1})).check(200, &json!({"n": 1}));
    proxy.check_streams(1);
}

#[test]
fn a_first_line_that_is_none_is_refused() {
    check(b"hello\r\n\r\n", 400, &["the request is not valid HTTP/1.1: invalid", "without TLS"]);
    check(b"POST /run\r\n\r\n", 400, &["the request is not valid HTTP/1.1"]);
    check(b"POST /run HTTP/3.0\r\n\r\n", 400, &["the request is not valid HTTP/1.1: invalid HTTP version"]);
    // The beginning of a TLS connection.
    check(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n", 400, &["not valid HTTP/1.1: invalid HTTP method"]);
}

#[test]
fn a_header_that_is_none_is_refused() {
    check(b"POST /run HTTP/1.1\r\nno header\r\n\r\n", 400, &["not valid HTTP/1.1: invalid HTTP header"]);
    check(
        b"POST /run HTTP/1.1\r\nContent-Length: many\r\n\r\n{}",
        400,
        &["not valid HTTP/1.1: invalid content-length"],
    );
    check(b"POST /run HTTP/1.1\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}", 400, &["content-length"]);
    check(b"POST /run HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n", 400, &["transfer-encoding"]);
}

/// The answer arrives although most of what was sent is not looked at.
#[test]
fn a_head_that_is_too_large_is_refused() {
    let mut head = b"POST /run HTTP/1.1\r\n".to_vec();
    // More than the buffers between hold.
    while head.len() < 32 * 1024 * 1024 {
        head.extend_from_slice(format!("X-{}: {}\r\n", head.len(), "x".repeat(50_000)).as_bytes());
    }
    head.extend_from_slice(b"\r\n");
    let too_large = "the head of the request is too large: at most 65536 bytes and 100 headers are accepted";
    check(&head, 431, &[too_large]);
    check(&head[..1024 * 1024], 431, &[too_large]);
    let line = format!("POST /{} HTTP/1.1\r\n\r\n", "x".repeat(100_000));
    check(line.as_bytes(), 431, &[too_large]);
    let many = format!("POST /run HTTP/1.1\r\n{}\r\n", "X: y\r\n".repeat(101));
    check(many.as_bytes(), 431, &[too_large]);
}

#[test]
fn http_2_is_refused() {
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    check(preface, 505, &["the request uses HTTP/2, which the proxy does not support", "HTTP/1.1"]);
}

#[test]
fn an_expectation_that_nobody_knows_is_refused() {
    let request = b"POST /run HTTP/1.1\r\nExpect: 200-ok\r\nContent-Length: 100\r\n\r\n";
    check(request, 417, &["the request expects `200-ok`, which the proxy does not support", "100-continue"]);
}

/// On a kept connection, behind a request that was answered.
#[test]
fn a_request_before_one_that_is_none_is_answered() {
    let proxy = proxy();
    let mut caller = proxy.caller();
    let run = b"POST /run HTTP/1.1\r\nContent-Length: 11\r\n\r\n{\"value\":1}";
    // Both in one piece: the second is there before the first is answered.
    caller.send(&[run, &b"nonsense\r\n\r\n"[..]].concat()).expect("both are sent");
    let first = caller.receive().expect("an answer");
    first.check_shape();
    assert_eq!(first.status, 404, "{}", first.text());
    let second = caller.receive().expect("an answer");
    second.check_shape();
    second.check_error(400, &["not valid HTTP/1.1"]);
    assert!(caller.is_closed_within(WAIT_LIMIT));
}

/// Nobody is told anything by a connection that only ends.
#[test]
fn a_caller_that_leaves_in_the_middle_of_a_head_gets_no_answer() {
    let proxy = proxy();
    let mut caller = proxy.caller();
    caller.send(b"POST /run HTT").expect("half a line is sent");
    caller.finish_sending().expect("the connection is open");
    assert!(caller.is_closed_within(WAIT_LIMIT));
}
