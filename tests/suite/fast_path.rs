//! The fast path: callers must not notice which requests take it (`src/server/fast_path.rs`).

use serde_json::json;

use crate::support::{Caller, Proxy, Response, eventually, processes};

/// Version 1: answers with its input, twice or with a number on demand.
const ECHO: &str = r#"#!/bin/sh
echo '{"openwhisk":1}'
while read -r line; do
    case $line in
    *twice*) printf '%s\n%s\n' "$line" "$line" ;;
    *number*) echo 5 ;;
    *) printf '%s\n' "$line" ;;
    esac
done
"#;

/// Version 1: logs that an activation has begun, waits for a file, and answers with its input.
const WAITS: &str = r#"#!/bin/sh
echo '{"openwhisk":1}'
while read -r line; do
    echo begun >&2
    until [ -e go ]; do sleep 0.01; done
    printf '%s\n' "$line"
done
"#;

/// A header that changes no answer, and keeps a request off the fast path.
const OFF_FAST_PATH: &str = "Accept: application/json;q=0.9\r\n";

fn request(head: &str, headers: &str, body: &str) -> String {
    format!("{head}\r\nHost: test\r\n{headers}Content-Length: {}\r\n\r\n{body}", body.len())
}

fn run(headers: &str, body: &str) -> String {
    request("POST /run HTTP/1.1", headers, body)
}

/// The parts of an answer that must be the same on both paths.
fn comparable(mut response: Response) -> (u16, Vec<(String, String)>, String) {
    let date = response.header("date").map(str::to_owned).expect("a date");
    assert!(date.ends_with(" GMT") && date.len() == "Tue, 24 Nov 2026 15:38:20 GMT".len(), "{date}");
    response.headers.retain(|(name, _)| name != "date");
    response.headers.sort();
    let body = response.text();
    (response.status, response.headers, body)
}

/// Sends a request in both forms, each on a connection of its own and followed by another one. Compares the answers.
#[track_caller]
fn check_same(proxy: &Proxy, fast: &str, over_hyper: &str) {
    let answers = [fast, over_hyper].map(|bytes| {
        let mut caller = proxy.caller();
        caller.send(bytes.as_bytes()).expect("the request is sent");
        let answer = comparable(caller.receive().unwrap_or_else(|error| panic!("{error}: {bytes}")));
        // The connection is kept.
        caller.send(run("", r#"{"value":{"after":1}}"#).as_bytes()).expect("the request is sent");
        let after = comparable(caller.receive().unwrap_or_else(|error| panic!("{error}: after {bytes}")));
        (answer, after)
    });
    assert_eq!(answers[0], answers[1], "{fast}");
}

#[test]
fn the_fast_path_gives_the_same_answers_as_hyper() {
    let proxy = Proxy::start::<&str>(&[], &[("PIPELOOP_MAX_BODY", "2kb")]);
    let check = |body: &str| check_same(&proxy, &run("", body), &run(OFF_FAST_PATH, body));
    check(r#"{"value":{"before":"init"}}"#);
    proxy.init(ECHO).check(200, &json!({"ok": true}));
    let large = "x".repeat(1900);
    let too_large = "x".repeat(2100);
    for body in [
        r#"{"value":{"a":1.00,"a":"\u00e9"},"activation_id":"1"}"#,
        "{\n\"value\" : {\r\n\"a\": 1 } }\n",
        r#"{"value":[1,2]}"#,
        r#"{"value":null}"#,
        "{}",
        &format!(r#"{{"value":{{"text":"{large}"}}}}"#),
        &format!(r#"{{"value":{{"text":"{too_large}"}}}}"#),
        r#"{"value":5}"#,
        r#"{"value":{}"#,
        "[]",
        "no JSON",
        "",
        r#"{"value":{"twice":1}}"#,
        r#"{"value":{"number":1}}"#,
    ] {
        check(body);
    }
    // One sentinel for each of 14 bodies in both forms, and one for each request that followed.
    proxy.check_streams(14 * 2 * 2);
}

#[test]
fn the_usual_headers_of_clients_change_no_answer() {
    let proxy = Proxy::with_protocol("1");
    proxy.init(ECHO).check(200, &json!({"ok": true}));
    let body = r#"{"value":{"a":1}}"#;
    for headers in [
        "User-Agent: curl/8\r\nAccept: */*\r\nContent-Type: application/json\r\n",
        "accept-encoding: gzip,deflate\r\nACCEPT: application/json\r\nconnection: Keep-Alive\r\ntraceparent: 00-0\r\n",
    ] {
        check_same(&proxy, &run(headers, body), &run(&format!("{OFF_FAST_PATH}{headers}"), body));
    }
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let proxy = Proxy::with_protocol("1");
    proxy.init(ECHO).check(200, &json!({"ok": true}));
    let body = |n: usize| format!(r#"{{"value":{{"n":{n}}}}}"#);
    let requests: Vec<_> = (0..6).map(|n| run(if n % 2 == 0 { "" } else { OFF_FAST_PATH }, &body(n))).collect();
    let all = requests.concat();
    // Sent in two parts, cut at every seventh byte.
    for cut in (0..all.len()).step_by(7) {
        let mut caller = proxy.caller();
        let (first, rest) = all.split_at(cut);
        caller.send(first.as_bytes()).expect("the request is sent");
        let whole = requests.iter().scan(0, |end, request| {
            *end += request.len();
            Some(*end)
        });
        let whole = whole.filter(|end| *end <= cut).count();
        // Whole requests are answered before the rest arrives.
        for n in 0..whole {
            caller.receive().expect("an answer").check(200, &json!({ "n": n }));
        }
        caller.send(rest.as_bytes()).expect("the request is sent");
        for n in whole..6 {
            caller.receive().expect("an answer").check(200, &json!({ "n": n }));
        }
    }
}

#[test]
fn a_connection_may_alternate_between_fast_and_other_requests() {
    let proxy = Proxy::with_protocol("1");
    let mut caller = proxy.caller();
    caller
        .call("POST", "/init", json!({"value": {"code": ECHO}}).to_string().as_bytes())
        .check(200, &json!({"ok": true}));
    let large = "x".repeat(20_000);
    for n in 0..40 {
        let (headers, text) = [("", ""), (OFF_FAST_PATH, ""), ("", &*large), ("", "")][n % 4];
        let value = json!({"n": n, "text": text});
        caller.send(run(headers, &json!({ "value": value }).to_string()).as_bytes()).expect("the request is sent");
        caller.receive().expect("an answer").check(200, &value);
    }
    caller.call("GET", "/run", b"").check_error(405, &["POST"]);
    caller.send(run("Connection: close\r\n", "{}").as_bytes()).expect("the request is sent");
    caller.receive().expect("an answer").check(200, &json!({}));
    assert!(caller.is_closed_within(crate::support::WAIT_LIMIT));
}

#[test]
fn a_request_sent_during_an_activation_waits_its_turn() {
    let proxy = Proxy::with_protocol("1");
    proxy.init(WAITS).check(200, &json!({"ok": true}));
    let mut caller = proxy.caller();
    caller.send(run("", r#"{"value":{"n":1}}"#).as_bytes()).expect("the request is sent");
    proxy.wait_for("the activation to begin", |logs| logs.stderr.contains("begun"));
    // More than one read holds. The last request is incomplete.
    let next = run("", &format!(r#"{{"value":{{"n":2,"text":"{}"}}}}"#, "x".repeat(5000)));
    caller.send([&next, &next, &next[..next.len() - 1]].concat().as_bytes()).expect("the request is sent");
    std::fs::write(working_directory(&proxy).join("go"), "").expect("the directory can be written");
    for n in [1, 2, 2] {
        assert_eq!(caller.receive().expect("an answer").json()["n"], n);
    }
    caller.send(b"}").expect("the request is sent");
    assert_eq!(caller.receive().expect("an answer").json()["n"], 2);
}

#[test]
fn the_last_answer_before_shutdown_closes_the_connection() {
    let answers = ["", OFF_FAST_PATH].map(|headers| {
        let mut proxy = Proxy::with_protocol("1");
        proxy.init(WAITS).check(200, &json!({"ok": true}));
        let go = working_directory(&proxy).join("go");
        let mut caller = proxy.caller();
        caller.send(run(headers, r#"{"value":{"n":1}}"#).as_bytes()).expect("the request is sent");
        proxy.wait_for("the activation to begin", |logs| logs.stderr.contains("begun"));
        proxy.signal(rustix::process::Signal::TERM);
        eventually("the proxy to stop accepting", || Caller::connect(proxy.port()).err());
        std::fs::write(go, "").expect("the directory can be written");
        let answer = comparable(caller.receive().expect("an answer"));
        assert!(caller.is_closed_within(crate::support::WAIT_LIMIT));
        assert!(proxy.wait().success());
        answer
    });
    assert_eq!(answers[0], answers[1]);
    assert!(answers[0].1.contains(&("connection".into(), "close".into())), "{answers:?}");
}

fn working_directory(proxy: &Proxy) -> std::path::PathBuf {
    eventually("the action to run", || {
        let action = *proxy.actions().first()?;
        std::fs::read_link(format!("/proc/{action}/cwd")).ok()
    })
}

#[test]
fn a_caller_that_stops_reading_is_disconnected() {
    let proxy = Proxy::start::<&str>(&[], &[("PIPELOOP_CALLER_TIMEOUT", "300ms")]);
    let large = "#!/bin/sh\necho '{\"openwhisk\":1}'\nwhile read -r line; do printf '{\"text\":\"'; head -c 8000000 /dev/zero | tr '\\0' x; echo '\"}'; done\n";
    proxy.init(large).check(200, &json!({"ok": true}));
    let mut slow = Caller::connect_narrow(proxy.port()).expect("a connection");
    slow.send(run("", "{}").as_bytes()).expect("the request is sent");
    // It reads the head, and then nothing for longer than the timeout.
    let head = slow.receive_head().expect("the head of an answer");
    assert_eq!(head.status, 200);
    let descriptors = || processes::resource_usage(proxy.pid()).descriptors;
    let before = descriptors();
    eventually("the connection to be closed", || (descriptors() < before).then_some(()));
    proxy.caller().call("POST", "/run", b"{}").check_shape();
}
