//! Version 2 with several workers: which process an activation goes to, and how the others fare when one of them
//! crashes, is replaced or is stopped.

use std::fs;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::streams::Streams;
use crate::support::{Caller, Logs, Proxy, eventually, now_ms, processes};

/// Two workers whose processes send this handshake.
#[track_caller]
fn two_workers(handshake: &Value, args: &[&str]) -> Streams {
    Streams::new(handshake, &[&["--workers", "2"], args].concat())
}

/// Begins an activation that waits until its name is released and then runs these steps. With several workers the log
/// is held back, so the activation reports its beginning in the file.
#[track_caller]
fn begin_and(streams: &Streams, name: &str, steps: &[Value]) -> Caller {
    let all = [&[json!(["report", format!("{name} has begun")]), streams.wait(name)], steps].concat();
    let caller = streams.send("*/*", &json!(all));
    streams.wait_for_report(&format!("{name} has begun"));
    caller
}

/// The same for an activation that answers with the pid of its process.
#[track_caller]
fn begin(streams: &Streams, name: &str) -> Caller {
    begin_and(streams, name, &[json!(["pid"])])
}

/// Releases an activation that has begun, and returns the process that answers.
#[track_caller]
fn end(streams: &Streams, name: &str, mut caller: Caller) -> i32 {
    streams.release(name);
    pid(&mut caller)
}

#[track_caller]
fn pid(caller: &mut Caller) -> i32 {
    let response = caller.receive().expect("an answer");
    assert_eq!(response.status, 200, "{}", response.text());
    response.json()["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok()).expect("a pid")
}

// Slots.

#[test]
fn the_first_process_is_filled_before_another_is_started() {
    let streams = two_workers(&json!({"concurrency": 2}), &[]);
    let (a, b) = (begin(&streams, "a"), begin(&streams, "b"));
    assert_eq!(streams.proxy.actions().len(), 1);
    let (c, d) = (begin(&streams, "c"), begin(&streams, "d"));
    assert_eq!(streams.proxy.actions().len(), 2);
    // No slot is free for a fifth, which gets the first slot that becomes free.
    let mut fifth = streams.send("*/*", &json!([["report", "the fifth has begun"], ["pid"]]));
    assert!(fifth.is_silent_for(Duration::from_millis(50)) && !streams.report().contains("fifth"));
    let second = end(&streams, "d", d);
    assert_eq!(pid(&mut fifth), second);
    let first = end(&streams, "a", a);
    assert_ne!(first, second);
    assert_eq!((end(&streams, "b", b), end(&streams, "c", c)), (first, second));
    assert_eq!(streams.proxy.actions().len(), 2);
    streams.proxy.check_streams(5);
}

#[test]
fn a_burst_that_fits_into_one_process_starts_no_other() {
    let streams = two_workers(&json!({"concurrency": 64}), &[]);
    let process = streams.process();
    for _ in 0..5 {
        let mut callers: Vec<_> = (0..64).map(|_| streams.proxy.caller()).collect();
        for caller in &mut callers {
            caller.send_run("*/*", &json!({"do": [["pid"]]}));
        }
        for caller in &mut callers {
            assert_eq!(pid(caller), process);
        }
    }
    assert_eq!(streams.proxy.actions(), [process]);
    streams.proxy.check_streams(5 * 64);
}

#[test]
fn a_caller_that_leaves_frees_its_slot_in_its_own_process() {
    let streams = two_workers(&json!({"concurrency": 2, "cancel": true}), &[]);
    let (a, b, c) = (begin(&streams, "a"), begin(&streams, "b"), begin(&streams, "c"));
    let leaver =
        streams.send("*/*", &json!([["report", "d has begun"], ["wait_cancel"], ["report", "d is over"], ["end"]]));
    streams.wait_for_report("d has begun");
    let mut next = streams.send("*/*", &json!([["pid"]]));
    assert!(next.is_silent_for(Duration::from_millis(50)));
    drop(leaver);
    let freed = pid(&mut next);
    assert!(streams.report().contains("d is over"), "{}", streams.report());
    assert_eq!(streams.report().matches("cancel").count(), 1, "{}", streams.report());
    let (a, b, c) = (end(&streams, "a", a), end(&streams, "b", b), end(&streams, "c", c));
    assert!(freed == c && a == b && a != c, "{freed} {a} {b} {c}");
    streams.proxy.check_streams(5);
}

#[test]
fn activations_queue_once_all_slots_of_all_processes_are_taken() {
    let streams = two_workers(&json!({"concurrency": 2}), &["--queue", "1"]);
    let callers = ["a", "b", "c", "d"].map(|name| (name, begin(&streams, name)));
    let mut waiting = streams.send("*/*", &json!([["pid"]]));
    assert!(waiting.is_silent_for(Duration::from_millis(50)));
    streams.proxy.run(&json!({})).check_error(429, &["PIPELOOP_QUEUE", ": 1"]);
    for (name, caller) in callers {
        end(&streams, name, caller);
    }
    pid(&mut waiting);
    streams.proxy.check_streams(5);
}

// Crashes.

#[test]
fn a_crash_fails_the_activations_of_that_process_and_no_other() {
    let streams = two_workers(&json!({"concurrency": 2}), &[]);
    let mut bystander = begin(&streams, "a");
    let mut crashing = begin_and(&streams, "b", &[json!(["exit", 3])]);
    let (c, d) = (begin(&streams, "c"), begin(&streams, "d"));
    streams.release("b");
    for caller in [&mut bystander, &mut crashing] {
        caller.receive().expect("an answer").check_error(502, &["exited with status 3"]);
    }
    // Its worker has no process now, and no activation has to wait for another.
    let second = end(&streams, "c", c);
    let mut next = streams.send("*/*", &json!([["pid"]]));
    assert_eq!(pid(&mut next), second);
    assert_eq!(end(&streams, "d", d), second);
    let logs = streams.proxy.check_streams(5);
    assert_eq!(logs.stderr.matches("error[PL061]").count(), 2, "{}", logs.stderr);
}

#[test]
fn an_activation_the_dead_process_never_read_goes_to_a_live_one() {
    // Two processes start, and no more. The first reads a line byte by byte, and exits with others unread.
    let code = r#"#!/bin/bash
id() { id=${line#*:}; id=${id%%,*}; }
if mkdir "$DIRECTORY/first"; then name=first; elif mkdir "$DIRECTORY/second"; then name=second; else exit 3; fi 2>&-
echo '{"openwhisk":2,"concurrency":4}'
if [ $name = first ]; then
  read -r line; : > "$DIRECTORY/begun"
  until [ -e "$DIRECTORY/go" ]; do sleep 0.01; done
  exit 4
fi
while read -r line; do id; echo "{\"id\":$id,\"result\":{\"second\":true}}"; done
"#;
    let proxy = Proxy::start(&["--workers", "2"], &[]);
    let directory = proxy.directory();
    proxy
        .init_value(&json!({"main": "main", "code": code, "env": {"DIRECTORY": directory}}))
        .check(200, &json!({"ok": true}));
    let mut callers: Vec<_> = (0..5).map(|_| proxy.caller()).collect();
    callers[0].send_run("*/*", &json!({}));
    eventually("the first activation has begun", || directory.join("begun").exists().then_some(()));
    for caller in &mut callers[1..4] {
        caller.send_run("*/*", &json!({}));
    }
    // Their lines are in its pipe by then: it has four slots, and the answer to another request shows that they came.
    proxy.caller().call("GET", "/", b"");
    callers[4].send_run("*/*", &json!({}));
    callers[4].receive().expect("an answer").check(200, &json!({"second": true}));
    fs::write(directory.join("go"), "").expect("the directory is writable");
    callers[0].receive().expect("an answer").check_error(502, &["exited with status 4"]);
    for caller in &mut callers[1..4] {
        caller.receive().expect("an answer").check(200, &json!({"second": true}));
    }
    let logs = proxy.check_streams(5);
    assert_eq!(logs.stderr.matches("error[PL061]").count(), 1, "{}", logs.stderr);
}

#[test]
fn a_process_that_is_being_replaced_takes_no_new_activation() {
    let streams = two_workers(&json!({"concurrency": 3}), &["--stop-grace", "100ms"]);
    let first = streams.process();
    let a = begin(&streams, "a");
    let body = json!({"value": {"do": [["wait", "/nowhere"]]}, "deadline": now_ms() + 200});
    streams.proxy.run_raw(&body.to_string()).check_error(502, &["deadline"]);
    // Its third slot is used until the stop grace is over and not after that.
    let second = eventually("another process answers", || {
        let mut next = streams.send("*/*", &json!([["pid"]]));
        Some(pid(&mut next)).filter(|pid| *pid != first)
    });
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(300) {
        let mut next = streams.send("*/*", &json!([["pid"]]));
        assert_eq!(pid(&mut next), second);
    }
    assert_eq!(end(&streams, "a", a), first);
    eventually("the first process is gone", || processes::group(first).is_empty().then_some(()));
    let mut last = streams.send("*/*", &json!([["pid"]]));
    assert_eq!(pid(&mut last), second);
}

// Logs.

#[test]
fn log_frames_of_several_processes_appear_in_their_own_activations_log() {
    let streams = two_workers(&json!({"concurrency": 2}), &[]);
    let names = ["a", "b", "c", "d"];
    let callers = names.map(|name| {
        let logs = (0..20).map(|count| json!(["log", format!("{name} {count}")]));
        let steps: Vec<_> = logs.chain([json!(["pid"])]).collect();
        begin_and(&streams, name, &steps)
    });
    for name in names {
        streams.release(name);
    }
    for mut caller in callers {
        pid(&mut caller);
    }
    assert_eq!(streams.proxy.actions().len(), 2);
    let stderr = streams.proxy.logs().stderr;
    let mut activations = Logs::activations(&stderr);
    assert_eq!(activations.pop(), Some(""));
    activations.sort_unstable();
    let log = |name: &str| (0..20).map(|count| format!("{name} {count}\n")).collect::<String>();
    assert_eq!(activations, names.map(log));
    streams.proxy.check_streams(4);
}

// Shutdown.

/// Begins one activation in each of two processes.
#[track_caller]
fn one_in_each(args: &[&str]) -> (Streams, [(&'static str, Caller); 2]) {
    let streams = two_workers(&json!({"concurrency": 1, "stop": true}), args);
    let callers = ["a", "b"].map(|name| (name, begin(&streams, name)));
    assert_eq!(streams.proxy.actions().len(), 2);
    (streams, callers)
}

#[test]
fn at_shutdown_all_processes_finish_and_get_a_stop_frame() {
    let (mut streams, callers) = one_in_each(&["--drain-grace", "20s"]);
    let groups = streams.proxy.actions();
    streams.proxy.signal(Signal::TERM);
    eventually("no connection is accepted any more", || Caller::connect(streams.proxy.port()).is_err().then_some(()));
    let pids = callers.map(|(name, caller)| end(&streams, name, caller));
    assert_ne!(pids[0], pids[1]);
    assert_eq!(streams.proxy.wait().code(), Some(0));
    for text in ["{\"stop\":{\"grace_ms\":1500}}\n", "end of input\n"] {
        assert_eq!(streams.report().matches(text).count(), 2, "{}", streams.report());
    }
    streams.proxy.check_streams(2);
    processes::await_end_of_groups(&groups);
}

#[test]
fn at_shutdown_all_processes_are_cut_off_or_killed() {
    for second_signal in [false, true] {
        let grace = if second_signal { "1h" } else { "200ms" };
        let (mut streams, callers) = one_in_each(&["--drain-grace", grace, "--stop-grace", grace]);
        let groups = streams.proxy.actions();
        streams.proxy.signal(Signal::TERM);
        if second_signal {
            eventually("the shutdown has begun", || Caller::connect(streams.proxy.port()).err());
            streams.proxy.signal(Signal::TERM);
        }
        for (_, mut caller) in callers {
            caller.receive().expect("an answer").check_error(502, &["the proxy shut down"]);
        }
        assert_eq!(streams.proxy.wait().code(), Some(0));
        streams.proxy.check_streams(2);
        processes::await_end_of_groups(&groups);
    }
}
