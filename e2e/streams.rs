//! Version 2 in containers: streams from an otherwise empty image, callers that leave, logs that name their
//! activation, and `docker stop` and `docker pause` during a stream.

use std::thread::sleep;

use serde_json::{Value, json};
use testkit::http::Caller;
use testkit::output::{Logs, SENTINEL};
use testkit::wait::eventually;

use crate::engine::{Container, pause};
use crate::images;

const EVENTS: &str = "text/event-stream";
const LINES: &str = "application/x-ndjson";

#[track_caller]
fn serving(options: &[&str]) -> Container {
    let container = Container::serving(images::scratch(), options, &[]);
    container.init(images::streamer_code()).check(200, &json!({"ok": true}));
    container
}

/// Asks for a stream with this activation id, and returns once its head has arrived, with which the first item comes.
#[track_caller]
fn begin(container: &Container, accept: &str, name: &str, ticks: i64) -> Caller {
    let mut caller = container.caller();
    let body = json!({"value": {"ticks": ticks}, "activation_id": name}).to_string();
    let head =
        format!("POST /run HTTP/1.1\r\nHost: test\r\nAccept: {accept}\r\nContent-Length: {}\r\n\r\n", body.len());
    caller.send((head + &body).as_bytes()).expect("the request is sent");
    let head = caller.receive_head().expect("an answer");
    assert_eq!((head.status, head.header("content-type")), (200, Some(accept)), "{head:?}");
    caller
}

/// The events of this many ticks.
fn events(ticks: i64) -> String {
    (0..ticks).map(|tick| format!("data: {tick}\n\n")).collect()
}

/// Checks that the ticks of a stream are in order from the first on, and that it ends with this event.
#[track_caller]
fn check_ticks(text: &str, last: &str) {
    let (ticks, end) = text.split_once("event: ").unwrap_or_else(|| panic!("no last event: {text}"));
    let count = ticks.matches("data: ").count();
    assert_eq!(ticks, events(i64::try_from(count).expect("the count is small")));
    assert!(end.starts_with(last) && end.ends_with("\n\n"), "{end}");
}

#[test]
fn a_stream_works_in_an_otherwise_empty_image() {
    for options in [&[][..], &["--init"], &["--read-only", "--tmpfs", "/work:exec", "--workdir", "/work"]] {
        let container = serving(options);
        let mut caller = begin(&container, EVENTS, "test", 3);
        let expected = events(3) + "event: result\ndata: {\"ticks\":3}\n\n";
        assert_eq!(caller.receive_chunks(usize::MAX), expected);
        let mut caller = begin(&container, LINES, "test", 2);
        let expected = "{\"chunk\":0}\n{\"chunk\":1}\n{\"result\":{\"ticks\":2}}\n";
        assert_eq!(caller.receive_chunks(usize::MAX), expected);
        container.run(&json!({"ticks": 2})).check(200, &json!({"ticks": 2}));
        container.check_logs(&format!("{SENTINEL}\n").repeat(3), &format!("begun\n{SENTINEL}\n").repeat(3));
        container.docker(&["stop"]);
        assert_eq!(container.wait(), "0");
    }
}

/// The log of an activation, as objects.
fn objects(log: &str) -> Vec<Value> {
    log.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

#[test]
fn a_caller_that_leaves_cancels_its_own_stream_and_the_log_names_it() {
    let container = serving(&["--env", "PIPELOOP_LOG_FORMAT=json"]);
    let mut stays = begin(&container, EVENTS, "stays", -1);
    // A stream without an end, so its first event arrives before its end.
    let mut leaves = begin(&container, EVENTS, "leaves", -1);
    assert_eq!(leaves.receive_chunks(1), "data: 0\n\n");
    drop(leaves);
    let sentinels = |logs: &Logs| logs.stderr.lines().filter(|line| *line == SENTINEL).count();
    let logs =
        eventually("the activation's log has ended", || Some(container.logs()).filter(|logs| sentinels(logs) == 1));
    let activations = Logs::activations(&logs.stderr);
    let lines: Vec<_> =
        objects(activations[0]).iter().map(|line| (line["activation"].clone(), line["line"].clone())).collect();
    assert_eq!(lines, [("leaves".into(), "begun".into()), ("leaves".into(), "cancelled".into())]);
    // The other stream continues.
    let text = stays.receive_chunks(events(100).len());
    assert!(text.starts_with(&events(100)) && !text.contains("event"), "{text}");
    drop(stays);
    let logs =
        eventually("the activation's log has ended", || Some(container.logs()).filter(|logs| sentinels(logs) == 2));
    for line in objects(Logs::activations(&logs.stderr)[1]) {
        assert_eq!((&line["activation"], &line["stream"]), (&json!("stays"), &json!("stderr")));
        let time = line["time"].as_str().expect("a time");
        assert!(time.starts_with("20") && time.ends_with('Z'), "{time}");
    }
    container.check_sentinels(2);
}

#[test]
fn a_stopping_container_lets_a_stream_finish() {
    let container = serving(&[]);
    let mut caller = begin(&container, EVENTS, "test", 50);
    container.docker(&["stop"]);
    assert_eq!(container.wait(), "0");
    let text = caller.receive_chunks(usize::MAX);
    check_ticks(&text, "result\ndata: {\"ticks\":50}");
    container.check_sentinels(1);
}

#[test]
fn a_stopping_container_ends_a_long_stream_with_an_error() {
    for init in [&[][..], &["--init"]] {
        let container = serving(init);
        let mut callers = [begin(&container, EVENTS, "test", -1), begin(&container, EVENTS, "test", -1)];
        container.docker(&["stop"]);
        assert_eq!(container.wait(), "0");
        for caller in &mut callers {
            let text = caller.receive_chunks(usize::MAX);
            check_ticks(&text, "error\ndata: {\"error\":\"the proxy shut down");
            assert!(text.contains("PIPELOOP_DRAIN_GRACE"), "{text}");
        }
        container.check_sentinels(2);
    }
}

#[test]
fn a_freeze_during_streams_does_not_fail_them() {
    let short =
        ["PIPELOOP_CALLER_TIMEOUT=2s", "PIPELOOP_LOG_STALL=2s", "PIPELOOP_STOP_GRACE=2s", "PIPELOOP_RUN_TIMEOUT=8s"];
    let options: Vec<_> = short.iter().flat_map(|setting| ["--env", setting]).collect();
    let container = serving(&options);
    let process = container.actions();
    let mut callers = [begin(&container, EVENTS, "a", 50), begin(&container, EVENTS, "b", 50)];
    container.docker(&["pause"]);
    sleep(pause());
    container.docker(&["unpause"]);
    for caller in &mut callers {
        check_ticks(&caller.receive_chunks(usize::MAX), "result\ndata: {\"ticks\":50}");
    }
    container.run(&json!({"ticks": 1})).check(200, &json!({"ticks": 1}));
    assert_eq!(container.actions(), process);
    container.check_sentinels(3);
}
