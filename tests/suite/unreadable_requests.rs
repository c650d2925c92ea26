//! Unreadable requests get an answer in the same form as all others.

use serde_json::json;

use crate::support::{Proxy, Response, WAIT_LIMIT};

/// Answers with its input.
const ECHO: &str =
    "#!/bin/bash\necho '{\"openwhisk\":1}'\nwhile IFS= read -r line; do printf '%s\\n' \"$line\"; done\n";

fn proxy() -> Proxy {
    let proxy = Proxy::plain();
    proxy.init(ECHO).check(200, &json!({"ok": true}));
    proxy
}

/// Sends these bytes on a new connection and reads the answer. The connection must close after it.
#[track_caller]
fn send(proxy: &Proxy, bytes: &[u8]) -> Response {
    let mut caller = proxy.caller();
    // The proxy must read every byte: many clients read no answer after a failed send.
    caller.send(bytes).expect("the proxy reads a refused request to its end");
    let response = caller.receive().expect("an answer");
    response.check_shape();
    assert_eq!(response.header("connection"), Some("close"));
    assert!(caller.is_closed_within(WAIT_LIMIT), "the proxy closes the connection after a refusal");
    response
}

/// Checks the answer to these bytes, and that the next request works as usual.
#[track_caller]
fn check(bytes: &[u8], status: u16, texts: &[&str]) {
    let proxy = proxy();
    send(&proxy, bytes).check_error(status, texts);
    proxy.run(&json!({"n": 1})).check(200, &json!({"n": 1}));
    proxy.check_streams(1);
}

#[test]
fn a_malformed_request_line_is_refused() {
    check(b"hello\r\n\r\n", 400, &["the request is not valid HTTP/1.1: invalid", "without TLS"]);
    check(b"POST /run\r\n\r\n", 400, &["the request is not valid HTTP/1.1"]);
    check(b"POST /run HTTP/3.0\r\n\r\n", 400, &["the request is not valid HTTP/1.1: invalid HTTP version"]);
    // A TLS client hello.
    check(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n", 400, &["not valid HTTP/1.1: invalid HTTP method"]);
}

#[test]
fn a_malformed_header_is_refused() {
    check(b"POST /run HTTP/1.1\r\nno header\r\n\r\n", 400, &["not valid HTTP/1.1: invalid HTTP header"]);
    check(
        b"POST /run HTTP/1.1\r\nContent-Length: many\r\n\r\n{}",
        400,
        &["not valid HTTP/1.1: invalid content-length"],
    );
    check(b"POST /run HTTP/1.1\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}", 400, &["content-length"]);
    check(b"POST /run HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n", 400, &["transfer-encoding"]);
}

/// The caller gets the answer although the proxy parses only the beginning of the head.
#[test]
fn a_head_over_the_limit_is_refused() {
    let mut head = b"POST /run HTTP/1.1\r\n".to_vec();
    // More than the socket buffers hold.
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
fn an_unknown_expectation_is_refused() {
    let request = b"POST /run HTTP/1.1\r\nExpect: 200-ok\r\nContent-Length: 100\r\n\r\n";
    check(request, 417, &["the request expects `200-ok`, which the proxy does not support", "100-continue"]);
}

#[test]
fn a_request_before_an_unreadable_one_is_answered() {
    let proxy = proxy();
    let mut caller = proxy.caller();
    let run = b"POST /run HTTP/1.1\r\nContent-Length: 11\r\n\r\n{\"value\":1}";
    // In one write: the second arrives before the first is answered.
    caller.send(&[run, &b"nonsense\r\n\r\n"[..]].concat()).expect("both are sent");
    let first = caller.receive().expect("an answer");
    first.check_shape();
    assert_eq!(first.status, 404, "{}", first.text());
    let second = caller.receive().expect("an answer");
    second.check_shape();
    second.check_error(400, &["not valid HTTP/1.1"]);
    assert!(caller.is_closed_within(WAIT_LIMIT));
}

#[test]
fn a_caller_that_leaves_within_the_head_gets_no_answer() {
    let proxy = proxy();
    let mut caller = proxy.caller();
    caller.send(b"POST /run HTT").expect("half a line is sent");
    caller.finish_sending().expect("the connection is open");
    assert!(caller.is_closed_within(WAIT_LIMIT));
}
