//! Version 2 of the protocol: frames, streams, several activations in flight, cancel, pause, stop, and actions that
//! break the protocol.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{
    BAD_ANSWER, Caller, Logs, Proxy, SENTINEL, action_path, eventually, now_ms, pipeloop_in, processes,
};

const EVENTS: &str = "text/event-stream";
const LINES: &str = "application/x-ndjson";

/// The smallest program of version 2, as documented.
const SMALLEST: &str = r#"#!/bin/bash
echo '{"openwhisk":2}'
while read -r line; do
  echo '{"chunk":"one "}'; echo '{"chunk":"two"}'
  echo '{"result":{"parts":2}}'
done
"#;

/// A proxy that serves `streams.py`, and the file in which the action reports the messages it received.
pub(crate) struct Streams {
    pub(crate) proxy: Proxy,
    report: PathBuf,
}

impl Streams {
    /// Starts the action with these members in its handshake.
    #[track_caller]
    pub(crate) fn new(handshake: &Value, args: &[&str]) -> Self {
        Self::with(handshake, args, &[])
    }

    #[track_caller]
    pub(crate) fn with(handshake: &Value, args: &[&str], env: &[(&str, &str)]) -> Self {
        let proxy = Proxy::start(args, &[]);
        let report = proxy.directory().join("report");
        let mut variables = json!({"HANDSHAKE": handshake.to_string(), "REPORT": report});
        for (name, value) in env {
            variables[name] = json!(value);
        }
        proxy.init_action("streams.py", &variables);
        Self { proxy, report }
    }

    /// Sends an activation of these steps without waiting for its answer.
    pub(crate) fn send(&self, accept: &str, steps: &Value) -> Caller {
        let mut caller = self.proxy.caller();
        caller.send_run(accept, &json!({ "do": steps }));
        caller
    }

    /// Runs these steps and checks the one body of the answer.
    #[track_caller]
    fn check(&self, steps: &Value, status: u16, body: &Value) {
        let response = self.proxy.run(&json!({ "do": steps }));
        response.check(status, body);
    }

    #[track_caller]
    fn check_error(&self, steps: &Value, texts: &[&str]) {
        self.proxy.run(&json!({ "do": steps })).check_error(502, texts);
    }

    pub(crate) fn report(&self) -> String {
        std::fs::read_to_string(&self.report).unwrap_or_default()
    }

    #[track_caller]
    pub(crate) fn wait_for_report(&self, text: &str) {
        eventually(&format!("the action reports {text}"), || self.report().contains(text).then_some(()));
    }

    /// Creates the file an activation waits for.
    pub(crate) fn release(&self, name: &str) {
        std::fs::write(self.proxy.directory().join(format!("{name}.go")), "").expect("the directory is writable");
    }

    /// The step that waits until this name is released.
    pub(crate) fn wait(&self, name: &str) -> Value {
        json!(["wait", self.proxy.directory().join(format!("{name}.go"))])
    }

    /// The only process of the action.
    #[track_caller]
    pub(crate) fn process(&self) -> i32 {
        let actions = self.proxy.actions();
        assert_eq!(actions.len(), 1, "{actions:?}");
        actions[0]
    }
}

/// The whole body of a stream.
#[track_caller]
fn stream(caller: &mut Caller, media_type: &str) -> String {
    let head = caller.receive_head().expect("an answer");
    assert_eq!((head.status, head.header("content-type")), (200, Some(media_type)), "{head:?}");
    assert_eq!((head.header("content-length"), head.header("transfer-encoding")), (None, Some("chunked")), "{head:?}");
    caller.receive_chunks(usize::MAX)
}

// Answers and streams.

#[test]
fn the_smallest_program_runs_as_documented() {
    let proxy = Proxy::plain();
    proxy.init(SMALLEST).check(200, &json!({"ok": true}));
    for _ in 0..3 {
        proxy.run(&json!({})).check(200, &json!({"parts": 2}));
    }
    let mut caller = proxy.caller();
    for _ in 0..2 {
        // On one connection: the end of a stream does not close it.
        caller.send_run(EVENTS, &json!({}));
        let expected = "data: \"one \"\n\ndata: \"two\"\n\nevent: result\ndata: {\"parts\":2}\n\n";
        assert_eq!(stream(&mut caller, EVENTS), expected);
        caller.send_run(LINES, &json!({}));
        let expected = "{\"chunk\":\"one \"}\n{\"chunk\":\"two\"}\n{\"result\":{\"parts\":2}}\n";
        assert_eq!(stream(&mut caller, LINES), expected);
    }
    let logs = proxy.check_streams(7);
    assert_eq!((&*logs.stdout, &*logs.stderr), ("", ""));
}

#[test]
fn each_ending_has_its_body_and_its_last_event() {
    let streams = Streams::new(&json!({"concurrency": 4}), &[]);
    for (steps, body, events) in [
        (json!([["result", [1]]]), json!([1]), "event: result\ndata: [1]\n\n"),
        (
            json!([["chunk", "a"], ["chunk", "b"], ["end"]]),
            json!({"body": "ab"}),
            "data: \"a\"\n\ndata: \"b\"\n\nevent: result\ndata: null\n\n",
        ),
        (
            json!([["chunk", "a"], ["chunk", 1], ["end"]]),
            json!({"chunks": ["a", 1]}),
            "data: \"a\"\n\ndata: 1\n\nevent: result\ndata: null\n\n",
        ),
        (json!([["end"]]), json!({"body": ""}), "event: result\ndata: null\n\n"),
        (
            json!([["chunk", 1], ["error", {"why": 7}]]),
            json!({"error": {"why": 7}}),
            "data: 1\n\nevent: error\ndata: {\"error\":{\"why\": 7}}\n\n",
        ),
        (json!([["error", "no"]]), json!({"error": "no"}), "event: error\ndata: {\"error\":\"no\"}\n\n"),
    ] {
        streams.check(&steps, 200, &body);
        assert_eq!(stream(&mut streams.send(EVENTS, &steps), EVENTS), events);
    }
    streams.proxy.check_streams(12);
}

#[test]
fn frames_on_descriptor_3_leave_stdout_to_the_log() {
    let streams = Streams::with(&json!({"concurrency": 2}), &[], &[("FD", "3")]);
    let code = "#!/bin/bash\necho '{\"openwhisk\":2}' >&3\nwhile read -r line; do echo a log; echo '{\"result\":{}}' >&3; done\n";
    streams.check(&json!([["result", {}]]), 200, &json!({}));
    let proxy = Proxy::plain();
    proxy.init(code).check(200, &json!({"ok": true}));
    proxy.run(&json!({})).check(200, &json!({}));
    assert_eq!(proxy.check_streams(1).stdout, "a log\n");
}

#[test]
fn json_passes_byte_for_byte_in_both_directions() {
    let proxy = Proxy::start(&["--protocol", "2"], &[]);
    let code = r#"#!/bin/bash
echo '{"openwhisk":2}'
while read -r line; do printf '{"result": {"got":"%s","n":1.00,"n":1e5} }\n' "$(printf %s "$line" | base64 -w0)"; done
"#;
    proxy.init(code).check(200, &json!({"ok": true}));
    let response =
        proxy.run_raw("{\"a\":\"\\u00e9\",\n\"value\":{\"b\":1.00,\"b\":\"\\u00e9\"},\"deadline\":\"9999999999999\"}");
    let text = response.text();
    assert!(text.ends_with(r#","n":1.00,"n":1e5}"#), "{text}");
    let got = response.json()["got"].as_str().expect("text").to_owned();
    let got = base64_simd::STANDARD.decode_to_vec(got).expect("base64");
    assert_eq!(
        String::from_utf8(got).expect("text"),
        r#"{"run":1,"value":{"b":1.00,"b":"\u00e9"},"context":{"a":"\u00e9","deadline":"9999999999999"},"deadline_ms":9999999999999}"#
    );
}

#[test]
fn versions_0_and_1_stream_one_result() {
    let echo = "while IFS= read -r line; do printf '%s\\n' \"$line\"";
    for (protocol, code) in [
        ("0", "#!/bin/bash\ncat\n".to_owned()),
        ("1", format!("#!/bin/bash\necho '{{\"openwhisk\":1}}'\n{echo}; done\n")),
    ] {
        let proxy = Proxy::with_protocol(protocol);
        proxy.init(&code).check(200, &json!({"ok": true}));
        let mut caller = proxy.caller();
        caller.send_run(EVENTS, &json!({"a": 1}));
        assert_eq!(stream(&mut caller, EVENTS), "event: result\ndata: {\"a\":1}\n\n");
        caller.send_run(LINES, &json!({"a": 1}));
        assert_eq!(stream(&mut caller, LINES), "{\"result\":{\"a\":1}}\n");
        proxy.check_streams(2);
    }
}

#[test]
fn a_chunk_arrives_before_the_next_one_is_written() {
    let streams = Streams::new(&json!({}), &[]);
    let mut caller =
        streams.send(EVENTS, &json!([["chunk", 1], streams.wait("a"), ["chunk", 2], streams.wait("b"), ["end"]]));
    assert_eq!(caller.receive_head().expect("a head").status, 200);
    assert_eq!(caller.receive_chunks(1), "data: 1\n\n");
    streams.release("a");
    assert_eq!(caller.receive_chunks(1), "data: 2\n\n");
    streams.release("b");
    assert_eq!(caller.receive_chunks(usize::MAX), "event: result\ndata: null\n\n");
}

#[test]
fn an_error_is_a_status_before_the_first_chunk_and_an_event_after_it() {
    let streams = Streams::new(&json!({}), &[]);
    let mut caller = streams.send(EVENTS, &json!([["exit", 7]]));
    let response = caller.receive().expect("an answer with a length");
    response.check_shape();
    response.check_error(502, &["exited with status 7", "before it answered"]);
    let mut caller = streams.send(EVENTS, &json!([["chunk", 1], ["stderr", "last words"], ["exit", 7]]));
    let text = stream(&mut caller, EVENTS);
    assert!(text.starts_with("data: 1\n\nevent: error\ndata: {\"error\":\"the action exited with status 7"), "{text}");
    assert!(text.contains("last words") && text.ends_with("}\n\n"), "{text}");
    let mut caller = streams.send(LINES, &json!([["chunk", 1], ["exit", 7]]));
    let text = stream(&mut caller, LINES);
    assert!(text.starts_with("{\"chunk\":1}\n{\"error\":\"the action exited with status 7"), "{text}");
    streams.proxy.check_streams(3);
}

#[test]
fn one_body_is_bounded_and_a_stream_is_not() {
    let streams = Streams::new(&json!({"concurrency": 2, "cancel": true}), &["--max-result", "1KiB"]);
    streams.check_error(&json!([["flood", 100, 1000], ["end"]]), &["at most 1024 bytes"]);
    streams.wait_for_report("cancel");
    streams.wait_for_report("flooded");
    // A stream has no limit.
    let mut caller = streams.send(LINES, &json!([["flood", 100, 100], ["end"]]));
    assert_eq!(stream(&mut caller, LINES).lines().count(), 101);
}

// Concurrent activations.

#[test]
fn activations_run_concurrently_and_end_in_any_order() {
    let streams = Streams::new(&json!({"concurrency": 3}), &[]);
    let mut callers: Vec<_> = ["c", "b", "a"]
        .map(|name| {
            (name, streams.send("*/*", &json!([["stderr", name], streams.wait(name), ["result", {"name": name}]])))
        })
        .into();
    for name in ["a", "b", "c"] {
        eventually("the activation has begun", || {
            streams.proxy.logs().stderr.contains(&format!("{name}\n")).then_some(())
        });
    }
    // No slot is free for a fourth.
    let mut fourth = streams.send("*/*", &json!([["result", {"name": "d"}]]));
    assert!(fourth.is_silent_for(Duration::from_millis(50)));
    while let Some((name, mut caller)) = callers.pop() {
        streams.release(name);
        caller.receive().expect("an answer").check(200, &json!({"name": name}));
        if name == "a" {
            fourth.receive().expect("an answer").check(200, &json!({"name": "d"}));
        }
    }
    assert_eq!(streams.proxy.actions().len(), 1);
    streams.proxy.check_streams(4);
}

#[test]
fn a_sleeping_activation_delays_no_other() {
    let streams = Streams::new(&json!({"concurrency": 64}), &[]);
    let mut slow = streams.send("*/*", &json!([streams.wait("go"), ["result", {}]]));
    let mut others = streams.proxy.caller();
    for n in 0..50 {
        others.send_run("*/*", &json!({"do": [["result", {"n": n}]]}));
        others.receive().expect("an answer").check(200, &json!({ "n": n }));
    }
    streams.release("go");
    slow.receive().expect("an answer").check(200, &json!({}));
}

#[test]
fn activations_queue_once_all_slots_are_taken() {
    let streams = Streams::new(&json!({"concurrency": 2}), &["--queue", "1"]);
    let steps = json!([["stderr", "begun"], streams.wait("go"), ["result", {}]]);
    let mut callers: Vec<_> = (0..2).map(|_| streams.send("*/*", &steps)).collect();
    streams.proxy.wait_for("both activations have begun", |logs| logs.stderr.matches("begun").count() == 2);
    callers.push(streams.send("*/*", &steps));
    // The third waits, and the queue has no space for a fourth.
    eventually("the fourth is refused", || {
        let mut fourth = streams.send("*/*", &steps);
        if fourth.is_silent_for(Duration::from_millis(100)) {
            // It arrived before the third.
            callers.push(fourth);
            return None;
        }
        fourth.receive().expect("an answer").check_error(429, &[]);
        Some(())
    });
    streams.release("go");
    for mut caller in callers {
        assert!(matches!(caller.receive().expect("an answer").status, 200 | 429));
    }
}

#[test]
fn a_crash_fails_every_activation_in_flight_and_no_other() {
    let streams = Streams::new(&json!({"concurrency": 3}), &[]);
    let mut bystander = streams.send("*/*", &json!([["stderr", "begun"], ["wait", "/nowhere"]]));
    streams.proxy.wait_for("the activation has begun", |logs| logs.stderr.contains("begun"));
    let mut crashing = streams.send("*/*", &json!([["exit", 3]]));
    for caller in [&mut bystander, &mut crashing] {
        caller.receive().expect("an answer").check_error(502, &["exited with status 3"]);
    }
    streams.check(&json!([["result", {"alive": true}]]), 200, &json!({"alive": true}));
    let logs = streams.proxy.check_streams(3);
    assert_eq!(logs.stderr.matches("error[PL061]").count(), 2, "{}", logs.stderr);
}

#[test]
fn an_activation_the_dead_process_never_read_goes_to_its_successor() {
    // Bash reads one line at a time, byte by byte, and exits in the first activation with others unread.
    let code = r#"#!/bin/bash
echo '{"openwhisk":2,"concurrency":4}'
[ -e "$MARK" ] && while read -r line; do id=${line#*:}; echo "{\"id\":${id%%,*},\"result\":{\"second\":true}}"; done
read -r line; echo begun >&2
until [ -e "$GO" ]; do sleep 0.01; done
touch "$MARK"; exit 4
"#;
    let proxy = Proxy::plain();
    let (mark, go) = (proxy.directory().join("mark"), proxy.directory().join("go"));
    proxy
        .init_value(&json!({"main": "main", "code": code, "env": {"MARK": mark, "GO": go}}))
        .check(200, &json!({"ok": true}));
    let mut callers: Vec<_> = (0..4).map(|_| proxy.caller()).collect();
    callers[0].send_run("*/*", &json!({}));
    proxy.wait_for("the first activation has begun", |logs| logs.stderr.contains("begun"));
    for caller in &mut callers[1..] {
        caller.send_run("*/*", &json!({}));
    }
    // Their lines are in its pipe by then: it has four slots, and the answer to another request shows that they came.
    proxy.caller().call("GET", "/", b"");
    std::fs::write(go, "").expect("the directory is writable");
    callers[0].receive().expect("an answer").check_error(502, &["exited with status 4"]);
    for caller in &mut callers[1..] {
        caller.receive().expect("an answer").check(200, &json!({"second": true}));
    }
    proxy.check_streams(4);
}

// Callers that leave, deadlines and timeouts.

#[test]
fn a_caller_that_leaves_cancels_and_frees_its_slot() {
    let streams = Streams::new(&json!({"concurrency": 1, "cancel": true}), &[]);
    for accept in ["*/*", EVENTS] {
        let before = streams.report().matches("cancel").count();
        let caller =
            streams.send(accept, &json!([["stderr", "begun"], ["wait_cancel"], ["log", "cleaned up"], ["end"]]));
        let count = streams.proxy.logs().stderr.matches("begun").count();
        streams
            .proxy
            .wait_for("the activation has begun", |logs| logs.stderr.matches("begun").count() > count.min(before));
        drop(caller);
        eventually("the action gets a cancel", || (streams.report().matches("cancel").count() > before).then_some(()));
        streams.check(&json!([["result", {}]]), 200, &json!({}));
    }
    let logs = streams.proxy.check_streams(4);
    assert_eq!(logs.stderr.matches("cleaned up").count(), 2);
    assert!(streams.report().contains("{\"cancel\":1}"), "{}", streams.report());
}

#[test]
fn a_caller_that_leaves_a_stream_cancels_it() {
    let streams = Streams::new(&json!({"concurrency": 2, "cancel": true, "pause": true}), &[]);
    let mut caller = streams.send(EVENTS, &json!([["flood", 1000, 1_000_000_000], ["end"]]));
    caller.receive_head().expect("a head");
    caller.receive_chunks(100_000);
    drop(caller);
    streams.wait_for_report("flooded");
    let process = streams.process();
    streams.check(&json!([["result", {}]]), 200, &json!({}));
    assert_eq!(streams.process(), process);
}

#[test]
fn an_abandoned_activation_runs_to_its_end_without_the_cancel_promise() {
    let streams = Streams::new(&json!({}), &[]);
    let caller = streams.send(
        EVENTS,
        &json!([["stderr", "begun"], streams.wait("go"), ["chunk", "lost"], ["stderr", "done"], ["end"]]),
    );
    streams.proxy.wait_for("the activation has begun", |logs| logs.stderr.contains("begun"));
    let process = streams.process();
    drop(caller);
    let mut next = streams.send("*/*", &json!([["result", {"next": true}]]));
    assert!(next.is_silent_for(Duration::from_millis(50)));
    streams.release("go");
    next.receive().expect("an answer").check(200, &json!({"next": true}));
    assert_eq!((streams.process(), streams.report().contains("cancel")), (process, false));
    let logs = streams.proxy.logs();
    assert_eq!(Logs::activations(&logs.stderr), ["begun\ndone\n", "", ""]);
}

#[test]
fn a_deadline_ends_only_its_own_activation() {
    let streams = Streams::new(&json!({"concurrency": 2, "cancel": true}), &["--stop-grace", "10s"]);
    let mut other = streams.send("*/*", &json!([["stderr", "begun"], streams.wait("go"), ["result", {"other": true}]]));
    streams.proxy.wait_for("the activation has begun", |logs| logs.stderr.contains("begun"));
    let process = streams.process();
    let body = json!({"value": {"do": [["wait_cancel"], ["end"]]}, "deadline": now_ms() + 300});
    streams.proxy.run_raw(&body.to_string()).check_error(502, &["deadline"]);
    streams.wait_for_report("{\"cancel\":2}");
    streams.release("go");
    other.receive().expect("an answer").check(200, &json!({"other": true}));
    assert_eq!(streams.process(), process);
    streams.proxy.check_streams(2);
}

#[test]
fn a_process_that_ignores_a_deadline_is_replaced() {
    let streams =
        Streams::new(&json!({"concurrency": 2, "cancel": true}), &["--stop-grace", "100ms", "--run-timeout", "30s"]);
    let mut other = streams.send("*/*", &json!([["stderr", "begun"], streams.wait("go"), ["result", {"other": true}]]));
    streams.proxy.wait_for("the activation has begun", |logs| logs.stderr.contains("begun"));
    let process = streams.process();
    let body = json!({"value": {"do": [["wait", "/nowhere"]]}, "deadline": now_ms() + 200});
    streams.proxy.run_raw(&body.to_string()).check_error(502, &["deadline"]);
    // It takes no new activation, and the one in flight may finish.
    let mut next = streams.send("*/*", &json!([["result", {"next": true}]]));
    assert!(next.is_silent_for(Duration::from_millis(300)));
    streams.release("go");
    other.receive().expect("an answer").check(200, &json!({"other": true}));
    next.receive().expect("an answer").check(200, &json!({"next": true}));
    assert_ne!(streams.process(), process);
    streams.proxy.check_streams(3);
}

#[test]
fn a_process_that_ignores_a_cancel_is_replaced() {
    let streams = Streams::new(&json!({"concurrency": 1, "cancel": true}), &["--stop-grace", "100ms"]);
    let process = streams.process();
    let leaver = streams.send("*/*", &json!([["report", "begun"], ["wait", "/nowhere"]]));
    streams.wait_for_report("begun");
    drop(leaver);
    streams.wait_for_report("{\"cancel\":1}");
    streams.check(&json!([["result", {"next": true}]]), 200, &json!({"next": true}));
    assert_ne!(streams.process(), process);
    streams.proxy.check_streams(2);
}

#[test]
fn the_run_timeout_of_the_only_activation_stops_the_process() {
    let streams = Streams::new(&json!({}), &["--run-timeout", "3s"]);
    let process = streams.process();
    streams.check_error(&json!([["wait", "/nowhere"]]), &["run timeout"]);
    streams.check(&json!([["result", {}]]), 200, &json!({}));
    assert_ne!(streams.process(), process);
    assert!(processes::group(process).is_empty());
    streams.proxy.check_streams(2);
}

// Slow callers.

/// Resident memory of a process in KiB.
fn resident_kib(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the process is alive");
    let line = status.lines().find(|line| line.starts_with("VmRSS")).expect("it has memory");
    line.split_whitespace().nth(1).and_then(|count| count.parse().ok()).expect("a number")
}

/// Starts an endless stream whose caller reads its beginning and then nothing.
fn slow_caller(streams: &Streams) -> Caller {
    let mut caller = streams.send(EVENTS, &json!([["flood", 10_000, 1_000_000_000], ["end"]]));
    caller.receive_head().expect("a head");
    caller.receive_chunks(50_000);
    caller
}

#[test]
fn a_slow_caller_slows_the_only_activation_in_bounded_memory() {
    let streams = Streams::new(&json!({}), &["--stream-buffer", "256KiB"]);
    let mut caller = slow_caller(&streams);
    // The sockets' buffers fill, then the proxy's, then the pipe: the action blocks in the middle of a write.
    let process = streams.process();
    let mut before = None;
    let mut probes = 0;
    eventually("the action is blocked", || {
        let written = processes::written_bytes(process);
        // More than once: it may only be waiting for the CPU.
        probes = if before == Some(written) { probes + 1 } else { 0 };
        before = Some(written);
        std::thread::sleep(Duration::from_millis(50));
        (probes >= 10).then_some(())
    });
    assert!(resident_kib(streams.proxy.pid()) < 40_000, "{} KiB", resident_kib(streams.proxy.pid()));
    // It continues once the caller reads again.
    assert!(caller.receive_chunks(20_000_000).len() >= 20_000_000);
    assert!(processes::written_bytes(process) > before.expect("it was probed"));
}

#[test]
fn a_slow_caller_pauses_its_own_activation_and_no_other() {
    let streams = Streams::new(&json!({"concurrency": 4, "cancel": true, "pause": true}), &["--stream-buffer", "4MiB"]);
    let mut caller = slow_caller(&streams);
    streams.wait_for_report("{\"pause\":1}");
    let begun = Instant::now();
    for n in 0..100 {
        streams.check(&json!([["chunk", n], ["result", {"n": n}]]), 200, &json!({"n": n}));
    }
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    assert!(resident_kib(streams.proxy.pid()) < 40_000, "{} KiB", resident_kib(streams.proxy.pid()));
    // It continues once the caller reads again, and no chunk is lost.
    let more = caller.receive_chunks(20_000_000);
    assert!(more.len() >= 20_000_000 && !more.contains("event"), "{}", &more[more.len() - 300..]);
    streams.wait_for_report("{\"resume\":1}");
    drop(caller);
    streams.wait_for_report("flooded");
}

#[test]
fn a_slow_caller_loses_only_its_own_stream_without_the_pause_promise() {
    let streams = Streams::new(&json!({"concurrency": 4, "cancel": true}), &["--stream-buffer", "256KiB"]);
    let mut caller = slow_caller(&streams);
    streams.wait_for_report("{\"cancel\":1}");
    streams.check(&json!([["result", {"other": true}]]), 200, &json!({"other": true}));
    let rest = caller.receive_chunks(usize::MAX);
    assert!(
        rest.contains("event: error\ndata: {\"error\":\"the caller reads more slowly"),
        "{}",
        &rest[rest.len() - 300..]
    );
    assert!(streams.proxy.logs().stderr.contains("error[PL101]"));
}

/// Numbered chunks of a kilobyte, half a megabyte a second, forever.
fn dripping() -> Value {
    json!([["drip", 1000, 1_000_000_000, 2], ["end"]])
}

/// A caller that reads ten kibibytes a second and checks what it reads.
struct SlowCaller {
    caller: Caller,
    began: Instant,
    read: usize,
    next: usize,
}

impl SlowCaller {
    const BYTES_PER_SECOND: usize = 10 * 1024;

    fn begin(streams: &Streams) -> Self {
        let mut caller = Caller::connect_narrow(streams.proxy.port()).expect("the proxy accepts a connection");
        caller.send_run(LINES, &json!({ "do": dripping() }));
        assert_eq!(caller.receive_head().expect("a head").status, 200);
        Self { caller, began: Instant::now(), read: 0, next: 0 }
    }

    /// Reads at its own rate until something has happened, and at least for this long.
    fn read_until(&mut self, what: &str, min_time: Duration, mut happened: impl FnMut() -> bool) {
        let begun = Instant::now();
        while begun.elapsed() < min_time || !happened() {
            assert!(begun.elapsed() < Duration::from_mins(1), "it never happened: {what}");
            let chunk = self.caller.receive_chunk().expect("the stream goes on").expect("the stream goes on");
            self.check(&chunk);
            let due = Duration::from_secs_f64(self.read as f64 / Self::BYTES_PER_SECOND as f64);
            std::thread::sleep(due.saturating_sub(self.began.elapsed()));
        }
    }

    /// No chunk is lost or out of order. A chunk of HTTP holds one chunk of the action.
    fn check(&mut self, chunk: &[u8]) {
        let text = std::str::from_utf8(chunk).expect("it is text");
        assert!(text.starts_with(&format!("{{\"chunk\":\"{} ", self.next)), "chunk {}: {text}", self.next);
        self.read += chunk.len();
        self.next += 1;
    }
}

/// Serves other callers of the same action while one is slow, until `stop` is set: a stream that is read as fast as it
/// comes, and one activation after another. Returns the bytes of the stream and the number of answers.
fn served_meanwhile(streams: &Streams, stop: &std::sync::atomic::AtomicBool) -> (usize, usize) {
    let stopped = || stop.load(std::sync::atomic::Ordering::Relaxed);
    std::thread::scope(|scope| {
        let stream = scope.spawn(|| {
            let mut caller = streams.send(LINES, &dripping());
            caller.receive_head().expect("a head");
            let mut bytes = 0;
            while !stopped() {
                bytes += caller.receive_chunk().expect("the stream goes on").expect("the stream goes on").len();
            }
            bytes
        });
        let mut answers = 0;
        while !stopped() {
            streams.check(&json!([["result", {"n": answers}]]), 200, &json!({"n": answers}));
            answers += 1;
        }
        (stream.join().expect("the stream is served"), answers)
    })
}

/// Runs a slow caller among fast ones, and checks that the fast ones are served and that the proxy's peak memory is
/// bounded.
#[track_caller]
fn check_slow_among_fast(streams: &Streams, slowly: impl FnOnce(&mut SlowCaller)) {
    streams.check(&json!([["result", {}]]), 200, &json!({}));
    let before = processes::resource_usage(streams.proxy.pid());
    let stop = std::sync::atomic::AtomicBool::new(false);
    // The slow caller comes first, so that it is in the first process.
    let mut slow = SlowCaller::begin(streams);
    let (bytes, answers, time) = std::thread::scope(|scope| {
        let others = scope.spawn(|| served_meanwhile(streams, &stop));
        // The others have to stop even if it panics.
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| slowly(&mut slow)));
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        let (bytes, answers) = others.join().expect("the others are served");
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        (bytes, answers, slow.began.elapsed())
    });
    let after = processes::resource_usage(streams.proxy.pid());
    assert!(after.peak_kib < before.peak_kib + 6 * 1024, "{before:?} {after:?}");
    // At least ten times as fast as the slow one.
    let min_bytes = 10 * SlowCaller::BYTES_PER_SECOND as u64 * time.as_secs();
    assert!(bytes as u64 > min_bytes && answers > 20, "{bytes} bytes and {answers} answers in {time:?}");
}

#[test]
fn a_caller_that_reads_10_kib_a_second_pauses_its_own_stream_repeatedly() {
    let handshake = json!({"concurrency": 4, "cancel": true, "pause": true});
    let streams = Streams::new(&handshake, &["--stream-buffer", "256KiB"]);
    let count = |what: &str| streams.report().matches(what).count();
    check_slow_among_fast(&streams, |slow| {
        slow.read_until("the action pauses, resumes, and pauses", Duration::from_secs(4), || {
            count("{\"pause\":") >= 2 && count("{\"resume\":") >= 1
        });
    });
    assert!(!streams.proxy.logs().stderr.contains("error["), "{}", streams.proxy.logs().stderr);
    assert_eq!(streams.proxy.actions().len(), 1);
}

#[test]
fn a_caller_that_reads_10_kib_a_second_gets_the_reason_its_stream_ends() {
    let streams = Streams::new(&json!({"concurrency": 4, "cancel": true}), &["--stream-buffer", "256KiB"]);
    let process = streams.process();
    check_slow_among_fast(&streams, |slow| {
        let reported = || streams.proxy.logs().stderr.contains("error[PL101]");
        slow.read_until("the caller is too far behind", Duration::from_secs(4), reported);
        // It gets the buffered rest of its stream in order, and then the reason.
        let last = loop {
            let chunk = slow.caller.receive_chunk().expect("the body goes on").expect("a reason comes last");
            if !chunk.starts_with(b"{\"chunk\"") {
                break String::from_utf8(chunk).expect("it is text");
            }
            slow.check(&chunk);
        };
        assert!(last.starts_with("{\"error\":\"the caller reads more slowly"), "{last}");
        assert_eq!(slow.caller.receive_chunk().expect("the body ends in order"), None);
    });
    assert_eq!(streams.proxy.actions(), [process]);
}

#[test]
fn a_caller_that_reads_10_kib_a_second_slows_only_its_own_process() {
    let streams = Streams::new(&json!({}), &["--stream-buffer", "256KiB", "--workers", "3"]);
    let process = streams.process();
    check_slow_among_fast(&streams, |slow| {
        let mut probed = Instant::now();
        let mut before = processes::written_bytes(process);
        // Once every buffer between them is full, the process writes no faster than the caller reads.
        slow.read_until("the process writes as slowly as the caller reads", Duration::from_secs(4), || {
            if probed.elapsed() > Duration::from_secs(2) {
                let now = processes::written_bytes(process);
                let writes = now - before;
                let blocked = before > 256 * 1024 && writes < 10 * SlowCaller::BYTES_PER_SECOND as u64;
                (probed, before) = (Instant::now(), now);
                return blocked;
            }
            false
        });
    });
}

// Shutdown.

#[test]
fn the_stop_frame_is_sent_only_to_a_process_that_promises_it() {
    for (stop, expected) in [(true, "{\"stop\":{\"grace_ms\":1500}}\nend of input\n"), (false, "end of input\n")] {
        let mut streams = Streams::new(&json!({"concurrency": 2, "stop": stop}), &[]);
        streams.check(&json!([["result", {}]]), 200, &json!({}));
        streams.proxy.stop();
        assert_eq!(streams.report(), expected);
    }
}

#[test]
fn at_shutdown_activations_in_flight_may_finish() {
    let mut streams = Streams::new(&json!({"concurrency": 2, "stop": true}), &[]);
    let mut caller = streams.send(EVENTS, &json!([["chunk", 1], streams.wait("go"), ["result", {}]]));
    caller.receive_head().expect("a head");
    streams.proxy.signal(rustix::process::Signal::TERM);
    eventually("no connection is accepted any more", || Caller::connect(streams.proxy.port()).is_err().then_some(()));
    streams.release("go");
    assert_eq!(caller.receive_chunks(usize::MAX), "data: 1\n\nevent: result\ndata: {}\n\n");
    assert_eq!(streams.proxy.wait().code(), Some(0));
    streams.proxy.check_streams(1);
}

#[test]
fn at_shutdown_a_stream_that_takes_too_long_ends_with_an_error() {
    let mut streams = Streams::new(&json!({"concurrency": 2}), &["--drain-grace", "100ms"]);
    let mut caller = streams.send(EVENTS, &json!([["chunk", 1], ["wait", "/nowhere"]]));
    caller.receive_head().expect("a head");
    streams.proxy.signal(rustix::process::Signal::TERM);
    let text = caller.receive_chunks(usize::MAX);
    assert!(text.starts_with("data: 1\n\nevent: error\ndata: {\"error\":\"the proxy shut down"), "{text}");
    assert_eq!(streams.proxy.wait().code(), Some(0));
    streams.proxy.check_streams(1);
}

#[test]
fn at_shutdown_a_crash_fails_every_activation_in_flight() {
    let mut streams = Streams::new(&json!({"concurrency": 2}), &["--drain-grace", "1h"]);
    let mut stream = streams.send(EVENTS, &json!([["chunk", 1], ["wait", "/nowhere"]]));
    stream.receive_head().expect("a head");
    let mut whole = streams.send("*/*", &json!([["report", "begun"], streams.wait("go"), ["exit", 3]]));
    streams.wait_for_report("begun");
    streams.proxy.signal(rustix::process::Signal::TERM);
    eventually("no connection is accepted any more", || Caller::connect(streams.proxy.port()).is_err().then_some(()));
    streams.release("go");
    whole.receive().expect("an answer").check_error(502, &["exited with status 3"]);
    let text = stream.receive_chunks(usize::MAX);
    assert!(text.contains("event: error\ndata: {\"error\":\"the action exited with status 3"), "{text}");
    assert_eq!(streams.proxy.wait().code(), Some(0));
    streams.proxy.check_streams(2);
}

#[test]
fn at_shutdown_a_caller_that_leaves_still_cancels() {
    let mut streams = Streams::new(&json!({"concurrency": 2, "cancel": true}), &["--drain-grace", "1h"]);
    let leaver =
        streams.send(EVENTS, &json!([["report", "begun"], ["wait_cancel"], ["report", "cleaned up"], ["end"]]));
    streams.wait_for_report("begun");
    streams.proxy.signal(rustix::process::Signal::TERM);
    eventually("no connection is accepted any more", || Caller::connect(streams.proxy.port()).is_err().then_some(()));
    assert!(!streams.report().contains("cancel"), "{}", streams.report());
    drop(leaver);
    assert_eq!(streams.proxy.wait().code(), Some(0));
    assert!(streams.report().contains("cleaned up"), "{}", streams.report());
    streams.proxy.check_streams(1);
}

#[test]
fn a_freeze_during_streams_does_not_count() {
    let limits = ["--run-timeout", "2s", "--caller-timeout", "1s", "--stop-grace", "1s"];
    let streams = Streams::new(&json!({"concurrency": 2}), &limits);
    let process = streams.process();
    let steps = json!([["chunk", 1], streams.wait("go"), ["chunk", 2], ["end"]]);
    let mut callers = [streams.send(EVENTS, &steps), streams.send(EVENTS, &steps)];
    for caller in &mut callers {
        caller.receive_head().expect("a head");
        assert_eq!(caller.receive_chunks(1), "data: 1\n\n");
    }
    streams.proxy.freeze(Duration::from_secs(3));
    streams.release("go");
    for caller in &mut callers {
        assert_eq!(caller.receive_chunks(usize::MAX), "data: 2\n\nevent: result\ndata: null\n\n");
    }
    assert_eq!(streams.process(), process);
    streams.proxy.check_streams(2);
}

// Bad input.

#[test]
fn frames_of_no_activation_in_flight_are_dropped_and_logged() {
    let streams = Streams::new(&json!({"concurrency": 4}), &[]);
    let process = streams.process();
    for (line, expected) in [
        ("ready", "since it is not JSON (expected value at column 1): `ready`"),
        ("[1]", "since it is an array, not an object: `[1]`"),
        (r#"{"result":{}}"#, r#"for it has no `id`: `{"result":{}}`"#),
        (r#"{"id":99,"result":{}}"#, "for its `id` was never given"),
        (r#"{"id":0,"result":{}}"#, "for its `id` was never given"),
        (r#"{"id":"1","result":{}}"#, "for its `id` was never given"),
        (r#"{"id":-1,"end":true}"#, "for its `id` was never given"),
    ] {
        streams.check(&json!([["raw", line], ["result", {"own": true}]]), 200, &json!({"own": true}));
        let logs = streams.proxy.logs().stderr;
        assert!(logs.contains(expected), "{expected:?} is missing in: {logs}");
    }
    assert_eq!(streams.process(), process);
    streams.proxy.check_streams(7);
}

#[test]
fn frames_after_an_activations_end_reach_no_other() {
    for more in [
        r#"{"id":ID,"result":{"second":true}}"#,
        r#"{"id":ID,"chunk":1}"#,
        r#"{"id":ID,"end":true}"#,
        r#"{"id":ID,"error":1}"#,
    ] {
        let streams = Streams::new(&json!({"concurrency": 4}), &[]);
        let mut other =
            streams.send("*/*", &json!([["stderr", "begun"], streams.wait("go"), ["result", {"other": true}]]));
        streams.proxy.wait_for("the activation has begun", |logs| logs.stderr.contains("begun"));
        let steps = json!([["result", {"own": true}], ["raw", more], ["report", "written"]]);
        streams.check(&steps, 200, &json!({"own": true}));
        streams.wait_for_report("written");
        streams.release("go");
        other.receive().expect("an answer").check(200, &json!({"other": true}));
        streams.proxy.wait_for("the drop is logged", |logs| logs.stderr.contains("for 2 has ended: `{\"id\":2,"));
    }
}

#[test]
fn a_malformed_frame_fails_its_own_activation() {
    let streams = Streams::new(&json!({"concurrency": 4, "cancel": true}), &[]);
    let process = streams.process();
    let mut other = streams.send("*/*", &json!([["stderr", "begun"], streams.wait("go"), ["result", {"other": true}]]));
    streams.proxy.wait_for("the activation has begun", |logs| logs.stderr.contains("begun"));
    for (line, texts) in [
        (r#"{"id":ID,"chnk":1}"#, "a frame with none of `chunk`, `result`, `error`, `end`, `log`"),
        (r#"{"id":ID,"chunk":1,"end":true}"#, "a frame with both `chunk` and `end`"),
        (r#"{"id":ID,"end":1}"#, "a frame whose `end` is a number, not `true`"),
    ] {
        streams.check_error(&json!([["raw", line], ["wait_cancel"], ["end"]]), &[texts]);
    }
    streams.check_error(&json!([["result", 5]]), &[BAD_ANSWER]);
    streams.check_error(&json!([["result", null]]), &[BAD_ANSWER]);
    streams.release("go");
    other.receive().expect("an answer").check(200, &json!({"other": true}));
    assert_eq!(streams.process(), process);
    let logs = streams.proxy.check_streams(6);
    assert_eq!(logs.stderr.matches("error[PL100]").count(), 3, "{}", logs.stderr);
    assert_eq!(logs.stderr.matches("error[PL060]").count(), 2, "{}", logs.stderr);
}

#[test]
fn with_concurrency_1_a_malformed_frame_fails_the_activation_and_replaces_the_process() {
    for line in ["ready", "{", "[1]", r#"{"id":1,"more":1}"#] {
        let streams = Streams::with(&json!({}), &[], &[("IDS", "no")]);
        let process = streams.process();
        streams.check_error(&json!([["raw", line], ["result", {}]]), &["the action wrote a frame"]);
        streams.check(&json!([["result", {"next": true}]]), 200, &json!({"next": true}));
        assert_ne!(streams.process(), process, "{line}");
        streams.proxy.check_streams(2);
    }
}

#[test]
fn without_ids_a_second_result_never_answers_the_next_activation() {
    for (stray, same) in [("restart", false), ("ignore", true)] {
        let streams = Streams::with(&json!({}), &["--stray", stray], &[("IDS", "no")]);
        let process = streams.process();
        streams.check(
            &json!([["result", {"n": 1}], streams.wait("go"), ["result", {"n": "stray"}], ["report", "written"]]),
            200,
            &json!({"n": 1}),
        );
        streams.release("go");
        // Before the next activation is sent: after that, it could not be distinguished from an answer.
        streams.wait_for_report("written");
        for n in 2..5 {
            streams.check(&json!([["result", {"n": n}]]), 200, &json!({"n": n}));
        }
        assert_eq!(streams.process() == process, same);
        let logs = streams.proxy.check_streams(4);
        assert!(logs.stderr.contains("dropped a line that answers no activation"), "{}", logs.stderr);
    }
}

#[test]
fn without_ids_two_results_at_once_are_an_error() {
    // In one write, so that both are in the pipe when the proxy reads the first: bash's own `printf` writes twice.
    let code = "#!/bin/bash\necho '{\"openwhisk\":2}'\n\
                while read -r line; do env printf '{%s\"result\":{\"n\":1}}\\n{\"result\":{\"n\":2}}\\n' \"$ID\"; done\n";
    for (id, error) in [("", true), ("\"id\":1,", false)] {
        let proxy = Proxy::plain();
        proxy.init_value(&json!({"main": "main", "code": code, "env": {"ID": id}})).check(200, &json!({"ok": true}));
        for _ in 0..2 {
            let response = proxy.run(&json!({}));
            if error {
                response.check_error(502, &[BAD_ANSWER]);
            } else {
                // Its id says which activation it answers. The process is still replaced.
                response.check(200, &json!({"n": 1}));
            }
        }
        let logs = proxy.check_streams(2).stderr;
        assert_eq!(logs.contains("answer spans more than one line: `{\"result\":{\"n\":1}}` and `"), error, "{logs}");
        assert!(logs.contains("restarts the action because it wrote an extra line"), "{logs}");
    }
}

#[test]
fn without_ids_a_line_begun_too_early_never_answers_the_next_activation() {
    // Its second process answers as the first did.
    let code = r#"#!/bin/bash
echo '{"openwhisk":2}'
read -r line; echo '{"result":{"n":1}}'; printf '{"result":'; : > "$MARK"
while read -r line; do echo '"x"}'; echo '{"result":{"n":2}}'; done
"#;
    let proxy = Proxy::plain();
    let mark = proxy.directory().join("mark");
    proxy.init_value(&json!({"main": "main", "code": code, "env": {"MARK": mark}})).check(200, &json!({"ok": true}));
    let process = proxy.actions();
    for _ in 0..2 {
        proxy.run(&json!({})).check(200, &json!({"n": 1}));
        eventually("the beginning of a line is written", || mark.exists().then_some(()));
    }
    assert_ne!(proxy.actions(), process);
    let logs = proxy.check_streams(2);
    assert!(logs.stderr.contains("and is not ended: `{\"result\":`"), "{}", logs.stderr);
}

/// A process that reads one activation and then writes this frame forever, as fast as it can; `$id` is the id of the
/// activation.
#[track_caller]
fn flooding(args: &[&str], concurrency: usize, frame: &str) -> (Proxy, i32) {
    let code = format!(
        "#!/bin/bash\necho '{{\"openwhisk\":2,\"concurrency\":{concurrency}}}'\nread -r line; id=${{line#*:}}; \
         id=${{id%%,*}}\nexec yes \"{}\"\n",
        frame.replace('"', "\\\"")
    );
    let proxy = Proxy::start(args, &[]);
    proxy.init(&code).check(200, &json!({"ok": true}));
    let actions = proxy.actions();
    (proxy, actions[0])
}

#[test]
fn a_flood_of_frames_blocks_no_other_caller() {
    let pad = "x".repeat(200);
    for frame in [
        format!("{{\"id\":$id,\"chunk\":\"{pad}\"}}"),
        format!("{{\"id\":$id,\"log\":\"{pad}\"}}"),
        format!("{{\"id\":99,\"chunk\":\"{pad}\"}}"),
        pad.clone(),
    ] {
        let (mut proxy, process) = flooding(&["--drain-grace", "100ms"], 4, &frame);
        // Its caller leaves at once, and the action does not promise `cancel`: no caller gets what it writes.
        let mut caller = proxy.caller();
        caller.send_run(EVENTS, &json!({}));
        eventually("the action floods", || (processes::written_bytes(process) > 1_000_000).then_some(()));
        drop(caller);
        let begun = Instant::now();
        for _ in 0..20 {
            proxy.caller().call("GET", "/", b"");
        }
        proxy.stop();
        assert!(begun.elapsed() < Duration::from_secs(10), "{frame}: {:?}", begun.elapsed());
    }
}

#[test]
fn an_unread_log_slows_frames_down_in_bounded_memory() {
    let pad = "x".repeat(200);
    for frame in [format!("{{\"id\":$id,\"log\":\"{pad}\"}}"), format!("{{\"id\":99,\"log\":\"{pad}\"}}")] {
        for concurrency in [1, 4] {
            let (proxy, process) = flooding(&["--log-stall", "1h", "--log-backlog", "64KiB"], concurrency, &frame);
            let mut caller = proxy.caller();
            proxy.while_output_is_unread(|| {
                caller.send_run("*/*", &json!({}));
                let mut before = 0;
                eventually("the action is blocked", || {
                    let written = processes::written_bytes(process);
                    let blocked = before == written && written > 100_000;
                    before = written;
                    std::thread::sleep(Duration::from_millis(50));
                    blocked.then_some(())
                });
            });
            let usage = processes::resource_usage(proxy.pid());
            assert!(usage.peak_kib < 40_000, "{concurrency}: {frame}: {usage:?}");
            // It continues once its log is read.
            let before = processes::written_bytes(process);
            eventually("the action continues", || (processes::written_bytes(process) > before).then_some(()));
        }
    }
}

#[test]
fn a_body_of_tiny_chunks_takes_only_the_memory_of_its_bytes() {
    let (proxy, _) = flooding(&["--max-result", "512KiB"], 4, r#"{"id":$id,"chunk":1}"#);
    let before = processes::resource_usage(proxy.pid());
    let mut caller = proxy.caller();
    // A quarter of a million frames.
    caller.set_timeout(Some(Duration::from_mins(1))).expect("a limit above zero");
    caller.send_run("*/*", &json!({}));
    caller.receive().expect("an answer").check_error(502, &["at most 524288 bytes"]);
    let after = processes::resource_usage(proxy.pid());
    assert!(after.peak_kib < before.peak_kib + 6 * 1024, "{before:?} {after:?}");
}

#[test]
fn a_result_over_the_limit_is_refused() {
    let code = r#"#!/usr/bin/env python3
import json, os, sys
print(json.dumps({"openwhisk": 2, "concurrency": int(os.environ["CONCURRENCY"])}), flush=True)
for line in sys.stdin:
    run = json.loads(line)
    size = run["value"]["size"]
    if size: print(json.dumps({"id": run["run"], "result": {"x": "x" * size}}), flush=True)
    else: print("begun", file=sys.stderr, flush=True)
"#;
    for (concurrency, texts) in
        [("1", "the action's answer is too long"), ("2", "a frame of more than 10240 bytes while 2 activations")]
    {
        let proxy = Proxy::start(&["--max-result", "10KiB"], &[]);
        proxy
            .init_value(&json!({"main": "main", "code": code, "env": {"CONCURRENCY": concurrency}}))
            .check(200, &json!({"ok": true}));
        let mut other = proxy.caller();
        if concurrency == "2" {
            other.send_run("*/*", &json!({"size": 0}));
            proxy.wait_for("the activation has begun", |logs| logs.stderr.contains("begun"));
        }
        proxy.run(&json!({"size": 20_000})).check_error(502, &[texts]);
        if concurrency == "2" {
            other.receive().expect("an answer").check_error(502, &[texts]);
        }
        let response = proxy.run(&json!({"size": 9_000}));
        assert_eq!(response.status, 200, "{}", response.text());
        proxy.check_streams(if concurrency == "2" { 3 } else { 2 });
    }
}

#[test]
fn a_result_just_over_the_limit_fails_only_its_own_activation() {
    let streams = Streams::new(&json!({"concurrency": 2, "cancel": true}), &["--max-result", "100"]);
    let process = streams.process();
    let line = format!(r#"{{"id":ID,"result":{{"x":"{}"}}}}"#, "x".repeat(200));
    streams.check_error(&json!([["raw", line], ["wait_cancel"], ["end"]]), &["whose `result` has more than 100 bytes"]);
    streams.check(&json!([["result", {}]]), 200, &json!({}));
    assert_eq!(streams.process(), process);
}

#[test]
fn a_handshake_with_an_invalid_promise_is_refused() {
    let proxy = Proxy::plain();
    for (member, invalid) in [
        ("concurrency", "0"),
        ("concurrency", "\"many\""),
        ("concurrency", "1e9"),
        ("cancel", "1"),
        ("stop", "\"yes\""),
        ("pause", "[]"),
    ] {
        let code = format!("#!/bin/bash\necho '{{\"openwhisk\":2,\"{member}\":{invalid}}}'\ncat\n");
        proxy.init(&code).check_error(502, &[&format!("`{member}` of the action's handshake must be"), invalid]);
    }
    let named = Proxy::start(&["--protocol", "2", "--init-timeout", "500ms"], &[]);
    named.init("#!/bin/bash\necho '{\"openwhisk\":1}'\ncat\n").check_error(502, &["expected `{\"openwhisk\":2}`"]);
    named.init("#!/bin/bash\ncat\n").check_error(502, &["has not sent the handshake of protocol 2"]);
    let named = Proxy::with_protocol("1");
    named.init(SMALLEST).check_error(502, &["expected `{\"openwhisk\":1}`"]);
}

#[test]
fn a_closed_result_channel_is_reported() {
    let proxy = Proxy::plain();
    let code = "#!/bin/bash\necho '{\"openwhisk\":2,\"concurrency\":2}'\nread -r line; exec >&-; sleep 60\n";
    proxy.init(code).check(200, &json!({"ok": true}));
    proxy.run(&json!({})).check_error(502, &["closed stdout before it answered"]);
    proxy.check_streams(1);
}

// Logs.

#[test]
fn log_frames_appear_in_their_own_activations_log() {
    let streams = Streams::new(&json!({"concurrency": 2}), &[]);
    let mut a = streams.send("*/*", &json!([["log", "a 1"], streams.wait("a"), ["log", "a 2\na 3"], ["result", {}]]));
    let mut b = streams
        .send("*/*", &json!([["log", "b 1"], ["stderr", "begun"], streams.wait("b"), ["log", "b 2"], ["result", {}]]));
    streams.proxy.wait_for("both activations have begun", |logs| logs.stderr.contains("begun"));
    streams.release("b");
    b.receive().expect("an answer").check(200, &json!({}));
    streams.release("a");
    a.receive().expect("an answer").check(200, &json!({}));
    let logs = streams.proxy.logs();
    // Output on stderr belongs to the activation that ends next.
    assert_eq!(Logs::activations(&logs.stderr), ["begun\nb 1\nb 2\n", "a 1\na 2\na 3\n", ""]);
    streams.proxy.check_streams(2);
}

/// The lines of a JSON log, with `"end"` for each sentinel.
fn log_lines(stderr: &str) -> Vec<Value> {
    let line = |line: &str| {
        if line == SENTINEL {
            json!("end")
        } else {
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line:?}"))
        }
    };
    stderr.lines().map(line).collect()
}

#[test]
fn json_log_lines_have_time_stream_and_activation() {
    let streams = Streams::new(&json!({"concurrency": 2}), &["--log-format", "json"]);
    let mut first = streams.proxy.caller();
    let run = |id: &str, steps: Value| json!({"value": {"do": steps}, "activation_id": id}).to_string();
    first.send_request(
        "POST",
        "/run",
        run("one", json!([["stderr", "alone"], ["log", "framed \"1\""], streams.wait("go"), ["result", {}]]))
            .as_bytes(),
    );
    streams.proxy.wait_for("the activation has begun", |logs| logs.stderr.contains("alone"));
    streams
        .proxy
        .run_raw(&run("two", json!([["log", "framed 2"], ["stderr", "whose?"], ["result", {}]])))
        .check(200, &json!({}));
    streams.release("go");
    first.receive().expect("an answer").check(200, &json!({}));
    let logs = streams.proxy.logs();
    let lines = log_lines(&logs.stderr);
    let fields: Vec<_> = lines
        .iter()
        .map(|line| if line == "end" { line.clone() } else { json!([line["activation"], line["line"]]) })
        .collect();
    assert_eq!(
        Value::from(fields),
        json!([["one", "alone"], [null, "whose?"], ["two", "framed 2"], "end", ["one", "framed \"1\""], "end"])
    );
    for line in lines.iter().filter(|line| *line != "end") {
        assert_eq!(line["stream"], "stderr");
        let time = line["time"].as_str().expect("a time");
        assert!(time.len() == 24 && time.starts_with("20") && time.ends_with('Z') && &time[10..11] == "T", "{time}");
    }
}

#[test]
fn json_logs_work_with_every_protocol() {
    for (protocol, code) in [
        ("0", "#!/bin/bash\necho out; echo err >&2; printf half >&2; echo '{}'\n"),
        (
            "1",
            "#!/bin/bash\necho '{\"openwhisk\":1}'\nwhile read -r line; do echo err >&2; printf half >&2; echo '{}'; done\n",
        ),
        (
            "actionloop",
            "#!/bin/bash\nwhile read -r line; do echo out; echo err >&2; printf half >&2; echo '{}' >&3; done\n",
        ),
    ] {
        let proxy = Proxy::start(&["--protocol", protocol, "--log-format", "json"], &[]);
        proxy.init(code).check(200, &json!({"ok": true}));
        proxy.run(&json!({})).check(200, &json!({}));
        let logs = proxy.logs();
        let texts = |text: &str| -> Vec<_> {
            log_lines(text)
                .iter()
                .map(|line| {
                    if line == "end" { line.clone() } else { json!([line["stream"], line["activation"], line["line"]]) }
                })
                .collect()
        };
        assert_eq!(
            Value::from(texts(&logs.stderr)),
            json!([["stderr", "test", "err"], ["stderr", "test", "half"], "end"]),
            "{protocol}"
        );
        let out = if protocol == "1" { json!(["end"]) } else { json!([["stdout", "test", "out"], "end"]) };
        assert_eq!(Value::from(texts(&logs.stdout)), out, "{protocol}");
    }
}

// The command line.

#[test]
fn run_prints_one_body_or_a_stream() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let action = directory.path().join("exec");
    std::fs::write(&action, SMALLEST).expect("the directory is writable");
    std::fs::set_permissions(&action, std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .expect("the file is writable");
    let run = |args: &[&str]| pipeloop_in(directory.path(), args, &[], "");
    let ended = run(&["run", "exec"]);
    ended.check(0);
    assert_eq!(ended.stdout, "{\"parts\":2}\n");
    let ended = run(&["run", "exec", "--stream"]);
    ended.check(0);
    assert_eq!(ended.stdout, "\"one \"\n\"two\"\n{\"parts\":2}\n");
    let ended = run_streams(directory.path(), &json!([["chunk", 1], ["error", "no"]]));
    ended.check(1);
    assert_eq!(ended.stdout, "1\n{\"error\":\"no\"}\n");
    let ended = run_streams(directory.path(), &json!([["chunk", 1], ["exit", 7]]));
    assert_eq!(ended.stdout, "1\n");
    assert!(ended.stderr.contains("error[PL061]"), "{}", ended.stderr);
    let ended = run_streams(directory.path(), &json!([["chunk", 1], ["end"]]));
    ended.check(0);
    assert_eq!(ended.stdout, "1\n");
}

fn run_streams(directory: &Path, steps: &Value) -> testkit::command::Ended {
    let action = action_path("streams.py");
    let parameter = format!("do={steps}");
    pipeloop_in(directory, &["run", action.to_str().expect("text"), "--stream", "-p", &parameter], &[], "")
}

#[test]
fn check_recognises_version_2() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let code = "#!/usr/bin/env python3\nimport json, sys\nprint('{\"openwhisk\":2}', flush=True)\nfor line in sys.stdin:\n    print(json.dumps({\"result\": json.loads(line)[\"value\"]}), flush=True)\n";
    let action = directory.path().join("exec");
    std::fs::write(&action, code).expect("the directory is writable");
    std::fs::set_permissions(&action, std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .expect("the file is writable");
    let ended = pipeloop_in(directory.path(), &["check", "exec"], &[], "");
    ended.check(0);
    assert!(ended.stdout.contains("2, recognised by its handshake on stdout"), "{}", ended.stdout);
}
