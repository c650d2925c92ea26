//! Callers that end their sending half after the request, as `nc -N` and some proxies do: they wait for the answer.
//! Callers that have left look the same at first, and are noticed all the same.

use std::io::Read;

use serde_json::{Value, json};

use crate::streams::Streams;
use crate::support::{Caller, Proxy, Response, eventually};

/// A header that changes no answer, and keeps a request off the fast path.
const OFF_FAST_PATH: &str = "Accept: application/json;q=0.9\r\n";

/// Reports in its log that it has begun, and answers when the file `go` exists.
const WAITS: &str = "echo begun >&2; until [ -e \"$GO\" ]; do sleep 0.01; done";

/// An action that waits, in each protocol.
fn waiting_actions() -> [(&'static str, String); 4] {
    let answer = r#"{"answered":true}"#;
    [
        ("0", format!("#!/bin/bash\n{WAITS}\necho '{answer}'\n")),
        (
            "1",
            format!("#!/bin/bash\necho '{{\"openwhisk\":1}}'\nwhile read -r line; do {WAITS}; echo '{answer}'; done\n"),
        ),
        (
            "2",
            format!(
                "#!/bin/bash\necho '{{\"openwhisk\":2}}'\nwhile read -r line; do\ncase $line in *stop*) exit;; esac\n\
                 {WAITS}\necho '{{\"result\":{answer}}}'\ndone\n"
            ),
        ),
        ("actionloop", format!("#!/bin/bash\nwhile read -r line; do {WAITS}; echo '{answer}' >&3; done\n")),
    ]
}

#[track_caller]
fn serving(protocol: &str, code: &str) -> Proxy {
    let proxy = Proxy::with_protocol(protocol);
    let go = proxy.directory().join("go");
    proxy.init_value(&json!({"code": code, "env": {"GO": go}})).check(200, &json!({"ok": true}));
    proxy
}

fn release(proxy: &Proxy) {
    std::fs::write(proxy.directory().join("go"), "").expect("the directory is writable");
}

fn run(version: &str, headers: &str, body: &str) -> String {
    format!("POST /run HTTP/{version}\r\nHost: test\r\n{headers}Content-Length: {}\r\n\r\n{body}", body.len())
}

/// Sends bytes and then the end of the stream.
#[track_caller]
fn send_and_finish(proxy: &Proxy, bytes: &str) -> Caller {
    let mut caller = proxy.caller();
    caller.send(bytes.as_bytes()).expect("the request is sent");
    caller.finish_sending().expect("the connection is open");
    caller
}

/// Waits until the proxy has seen every earlier event.
#[track_caller]
fn settle(proxy: &Proxy) {
    proxy.caller().call("GET", "/", b"").check_error(404, &[]);
}

/// Receives the last answer of a connection, which then ends.
#[track_caller]
fn last(caller: &mut Caller) -> Response {
    let response = caller.receive().expect("an answer");
    let mut rest = Vec::new();
    caller.stream().expect("a descriptor").read_to_end(&mut rest).expect("the connection ends");
    assert_eq!((caller.unread(), &*rest), (&b""[..], &b""[..]));
    response
}

#[test]
fn a_caller_that_ends_its_sending_half_gets_its_answer_in_every_protocol() {
    for (protocol, code) in waiting_actions() {
        for (version, headers) in [("1.1", ""), ("1.1", OFF_FAST_PATH), ("1.1", "Connection: close\r\n"), ("1.0", "")] {
            let proxy = serving(protocol, &code);
            let mut caller = send_and_finish(&proxy, &run(version, headers, r#"{"value":{}}"#));
            proxy.wait_for("the activation runs", |logs| logs.stderr.contains("begun\n"));
            settle(&proxy);
            release(&proxy);
            let answer = last(&mut caller);
            assert_eq!(answer.status, 200, "protocol {protocol}, HTTP/{version} {headers}: {}", answer.text());
            answer.check(200, &json!({"answered": true}));
            proxy.run(&json!({})).check(200, &json!({"answered": true}));
            proxy.check_streams(2);
        }
    }
}

#[test]
fn an_error_reaches_a_caller_that_ended_its_sending_half() {
    let code = "#!/bin/bash\necho '{\"openwhisk\":1}'\nread -r line\necho begun >&2\nuntil [ -e \"$GO\" ]; do sleep 0.01; done\nexit 3\n";
    for headers in ["", OFF_FAST_PATH] {
        let proxy = serving("1", code);
        let mut caller = send_and_finish(&proxy, &run("1.1", headers, r#"{"value":{}}"#));
        proxy.wait_for("the activation runs", |logs| logs.stderr.contains("begun\n"));
        settle(&proxy);
        release(&proxy);
        last(&mut caller).check_error(502, &["status 3"]);
    }
}

#[test]
fn a_caller_that_ended_its_sending_half_keeps_its_place_in_the_queue() {
    let [_, (protocol, code), ..] = waiting_actions();
    let proxy = serving(protocol, &code);
    let mut working = send_and_finish(&proxy, &run("1.1", "", r#"{"value":{}}"#));
    proxy.wait_for("the first activation runs", |logs| logs.stderr.contains("begun\n"));
    let bodies = ["", OFF_FAST_PATH].map(|headers| run("1.1", headers, r#"{"value":{}}"#));
    let mut waiting = bodies.map(|bytes| send_and_finish(&proxy, &bytes));
    let leaver = send_and_finish(&proxy, &run("1.1", OFF_FAST_PATH, r#"{"value":{}}"#));
    settle(&proxy);
    drop(leaver);
    settle(&proxy);
    release(&proxy);
    last(&mut working).check(200, &json!({"answered": true}));
    for caller in &mut waiting {
        last(caller).check(200, &json!({"answered": true}));
    }
    proxy.check_streams(3);
}

#[test]
fn pipelined_requests_before_the_end_of_sending_are_all_answered() {
    let [_, (protocol, code), ..] = waiting_actions();
    for second in ["", OFF_FAST_PATH] {
        for first in ["", OFF_FAST_PATH] {
            let proxy = serving(protocol, &code);
            let body = r#"{"value":{}}"#;
            let mut caller = send_and_finish(&proxy, &[run("1.1", first, body), run("1.1", second, body)].concat());
            proxy.wait_for("the activation runs", |logs| logs.stderr.contains("begun\n"));
            settle(&proxy);
            release(&proxy);
            caller.receive().expect("the first answer").check(200, &json!({"answered": true}));
            last(&mut caller).check(200, &json!({"answered": true}));
        }
    }
}

#[test]
fn init_answers_a_caller_that_ended_its_sending_half() {
    let proxy = Proxy::with_protocol("1");
    let go = proxy.directory().join("go");
    let code = format!("#!/bin/bash\n{WAITS}\necho '{{\"openwhisk\":1}}'\nwhile read -r line; do echo '{{}}'; done\n");
    let body = json!({"value": {"code": code, "env": {"GO": go}}}).to_string();
    let request = run("1.1", "", &body).replacen("/run", "/init", 1);
    let mut caller = send_and_finish(&proxy, &request);
    eventually("the action starts", || (!proxy.actions().is_empty()).then_some(()));
    settle(&proxy);
    release(&proxy);
    last(&mut caller).check(200, &json!({"ok": true}));
}

/// Steps of an action that writes a chunk, waits and writes another.
fn chunks(streams: &Streams) -> Value {
    json!([
        ["stderr", "begun"],
        streams.wait("first"),
        ["chunk", 1],
        streams.wait("second"),
        ["chunk", 2],
        ["result", {}]
    ])
}

#[test]
fn a_caller_that_ends_its_sending_half_gets_its_whole_stream() {
    for (version, accept, expected) in [
        ("1.1", "text/event-stream", "data: 1\n\ndata: 2\n\nevent: result\ndata: {}\n\n"),
        ("1.1", "application/x-ndjson", "{\"chunk\":1}\n{\"chunk\":2}\n{\"result\":{}}\n"),
        ("1.0", "application/x-ndjson", "{\"chunk\":1}\n{\"chunk\":2}\n{\"result\":{}}\n"),
    ] {
        for ends_in_stream in [false, true] {
            let streams = Streams::new(&json!({"cancel": true}), &[]);
            let body = json!({"value": {"do": chunks(&streams)}}).to_string();
            let mut caller = streams.proxy.caller();
            caller.send(run(version, &format!("Accept: {accept}\r\n"), &body).as_bytes()).expect("it is sent");
            if !ends_in_stream {
                caller.finish_sending().expect("the connection is open");
            }
            streams.proxy.wait_for("the activation has begun", |logs| logs.stderr.contains("begun"));
            settle(&streams.proxy);
            streams.release("first");
            let head = caller.receive_head().expect("a head");
            assert_eq!(head.status, 200);
            let first = &expected[..expected.find('2').expect("a second chunk") - "data: ".len()];
            let first = if accept.contains("json") { "{\"chunk\":1}\n" } else { first };
            let is_chunked = version == "1.1";
            let mut text = String::new();
            if is_chunked {
                text = caller.receive_chunks(first.len());
            } else {
                while caller.unread().len() < first.len() {
                    caller.read_more().expect("a chunk");
                }
            }
            if ends_in_stream {
                caller.finish_sending().expect("the connection is open");
            }
            settle(&streams.proxy);
            streams.release("second");
            if is_chunked {
                text += &caller.receive_chunks(usize::MAX);
            } else {
                while caller.read_more().is_ok() {}
                text = String::from_utf8_lossy(caller.unread()).into_owned();
            }
            assert_eq!(text, expected, "HTTP/{version} {accept}, in the stream: {ends_in_stream}");
            assert!(!streams.report().contains("cancel"), "{}", streams.report());
        }
    }
}

/// The action writes nothing more that could be answered with a reset.
#[test]
fn a_caller_that_leaves_a_silent_stream_is_noticed() {
    let streams = Streams::new(&json!({"cancel": true}), &[]);
    for accept in ["text/event-stream", "application/x-ndjson"] {
        let cancels = || streams.report().matches("cancel").count();
        let before = cancels();
        let mut caller = streams.send(accept, &json!([["chunk", "one"], ["wait_cancel"], ["end"]]));
        caller.receive_head().expect("a head");
        caller.receive_chunks(3);
        drop(caller);
        eventually("the action gets a cancel", || (cancels() > before).then_some(()));
    }
}

/// Its kernel resets the connection, because it has not read the early bytes of the answer.
#[test]
fn a_caller_that_leaves_after_it_ended_its_sending_half_is_noticed() {
    let streams = Streams::new(&json!({"cancel": true}), &[]);
    for (nth, accept) in (1..).zip(["*/*", "text/event-stream"]) {
        let cancels = || streams.report().matches("cancel").count();
        let before = cancels();
        let mut caller = streams.send(accept, &json!([["stderr", "begun"], ["wait_cancel"], ["end"]]));
        caller.finish_sending().expect("the connection is open");
        streams.proxy.wait_for("it has begun", |logs| logs.stderr.matches("begun").count() == nth);
        settle(&streams.proxy);
        assert_eq!(cancels(), before, "it waits for its answer");
        drop(caller);
        eventually("the action gets a cancel", || (cancels() > before).then_some(()));
    }
}
