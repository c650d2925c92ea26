//! Version 2 with several workers: which process an activation comes to, and what becomes of the others when
//! one of them dies, is condemned or stopped.

use std::fs;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::streams::Streams;
use crate::support::{Caller, Logs, Proxy, eventually, now_ms, processes};

/// Two workers, whose processes take so many at once.
#[track_caller]
fn two(handshake: &Value, args: &[&str]) -> Streams {
    Streams::new(handshake, &[&["--workers", "2"], args].concat())
}

/// Begins an activation that waits for its name and then does this. The log of several workers is held back, so
/// it tells its beginning elsewhere.
#[track_caller]
fn begin_and(streams: &Streams, name: &str, steps: &[Value]) -> Caller {
    let all = [&[json!(["tell", format!("{name} has begun")]), streams.wait(name)], steps].concat();
    let caller = streams.send("*/*", &json!(all));
    streams.hears(&format!("{name} has begun"));
    caller
}

/// The same with one that answers which process it is in.
#[track_caller]
fn begin(streams: &Streams, name: &str) -> Caller {
    begin_and(streams, name, &[json!(["pid"])])
}

/// Lets one that has begun go on, and gives the process that answers.
#[track_caller]
fn end(streams: &Streams, name: &str, mut caller: Caller) -> i32 {
    streams.make(name);
    pid(&mut caller)
}

#[track_caller]
fn pid(caller: &mut Caller) -> i32 {
    let response = caller.receive().expect("an answer");
    assert_eq!(response.status, 200, "{}", response.text());
    response.json()["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok()).expect("a pid")
}

// Places.

#[test]
fn the_first_process_is_filled_before_another_is_started() {
    let streams = two(&json!({"concurrency": 2}), &[]);
    let (a, b) = (begin(&streams, "a"), begin(&streams, "b"));
    assert_eq!(streams.proxy.actions().len(), 1);
    let (c, d) = (begin(&streams, "c"), begin(&streams, "d"));
    assert_eq!(streams.proxy.actions().len(), 2);
    // There is no place for a fifth, until one is free: and then it is that one's.
    let mut fifth = streams.send("*/*", &json!([["tell", "the fifth has begun"], ["pid"]]));
    assert!(fifth.is_silent_for(Duration::from_millis(50)) && !streams.told().contains("fifth"));
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
    let streams = two(&json!({"concurrency": 64}), &[]);
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
fn a_caller_that_leaves_frees_its_place_where_it_was() {
    let streams = two(&json!({"concurrency": 2, "cancel": true}), &[]);
    let (a, b, c) = (begin(&streams, "a"), begin(&streams, "b"), begin(&streams, "c"));
    let leaver =
        streams.send("*/*", &json!([["tell", "d has begun"], ["wait_cancel"], ["tell", "d is over"], ["end"]]));
    streams.hears("d has begun");
    let mut next = streams.send("*/*", &json!([["pid"]]));
    assert!(next.is_silent_for(Duration::from_millis(50)));
    drop(leaver);
    let freed = pid(&mut next);
    assert!(streams.told().contains("d is over"), "{}", streams.told());
    assert_eq!(streams.told().matches("cancel").count(), 1, "{}", streams.told());
    let (a, b, c) = (end(&streams, "a", a), end(&streams, "b", b), end(&streams, "c", c));
    assert!(freed == c && a == b && a != c, "{freed} {a} {b} {c}");
    streams.proxy.check_streams(5);
}

#[test]
fn the_queue_begins_behind_all_places() {
    let streams = two(&json!({"concurrency": 2}), &["--queue", "1"]);
    let callers = ["a", "b", "c", "d"].map(|name| (name, begin(&streams, name)));
    let mut waits = streams.send("*/*", &json!([["pid"]]));
    assert!(waits.is_silent_for(Duration::from_millis(50)));
    streams.proxy.run(&json!({})).check_error(429, &["PIPELOOP_QUEUE", ": 1"]);
    for (name, caller) in callers {
        end(&streams, name, caller);
    }
    pid(&mut waits);
    streams.proxy.check_streams(5);
}

// Deaths.

#[test]
fn a_death_is_told_to_those_in_that_process_and_to_no_other() {
    let streams = two(&json!({"concurrency": 2}), &[]);
    let mut innocent = begin(&streams, "a");
    let mut guilty = begin_and(&streams, "b", &[json!(["exit", 3])]);
    let (c, d) = (begin(&streams, "c"), begin(&streams, "d"));
    streams.make("b");
    for caller in [&mut innocent, &mut guilty] {
        caller.receive().expect("an answer").check_error(502, &["exited with status 3"]);
    }
    // Its worker has no process now, and nobody has to wait for another.
    let second = end(&streams, "c", c);
    let mut next = streams.send("*/*", &json!([["pid"]]));
    assert_eq!(pid(&mut next), second);
    assert_eq!(end(&streams, "d", d), second);
    let logs = streams.proxy.check_streams(5);
    assert_eq!(logs.stderr.matches("error[PL061]").count(), 2, "{}", logs.stderr);
}

#[test]
fn what_a_dead_process_never_read_goes_to_one_that_lives() {
    // Two of them start, and no more. The first one reads a line byte by byte, and dies with others unread.
    let code = r#"#!/bin/bash
id() { id=${line#*:}; id=${id%%,*}; }
if mkdir "$FOLDER/first"; then name=first; elif mkdir "$FOLDER/second"; then name=second; else exit 3; fi 2>&-
echo '{"openwhisk":2,"concurrency":4}'
if [ $name = first ]; then
  read -r line; : > "$FOLDER/begun"
  until [ -e "$FOLDER/go" ]; do sleep 0.01; done
  exit 4
fi
while read -r line; do id; echo "{\"id\":$id,\"result\":{\"second\":true}}"; done
"#;
    let proxy = Proxy::start(&["--workers", "2"], &[]);
    let folder = proxy.directory();
    proxy
        .init_value(&json!({"main": "main", "code": code, "env": {"FOLDER": folder}}))
        .check(200, &json!({"ok": true}));
    let mut callers: Vec<_> = (0..5).map(|_| proxy.caller()).collect();
    callers[0].send_run("*/*", &json!({}));
    eventually("the first has begun", || folder.join("begun").exists().then_some(()));
    for caller in &mut callers[1..4] {
        caller.send_run("*/*", &json!({}));
    }
    // They stand in its pipe by then: four places, and the answer to another request shows that they came.
    proxy.caller().call("GET", "/", b"");
    callers[4].send_run("*/*", &json!({}));
    callers[4].receive().expect("an answer").check(200, &json!({"second": true}));
    fs::write(folder.join("go"), "").expect("the folder is ours");
    callers[0].receive().expect("an answer").check_error(502, &["exited with status 4"]);
    for caller in &mut callers[1..4] {
        caller.receive().expect("an answer").check(200, &json!({"second": true}));
    }
    let logs = proxy.check_streams(5);
    assert_eq!(logs.stderr.matches("error[PL061]").count(), 1, "{}", logs.stderr);
}

#[test]
fn a_process_that_is_let_finish_takes_nothing_more_and_another_does() {
    let streams = two(&json!({"concurrency": 3}), &["--stop-grace", "100ms"]);
    let first = streams.process();
    let a = begin(&streams, "a");
    let body = json!({"value": {"do": [["wait", "/nowhere"]]}, "deadline": now_ms() + 200});
    streams.proxy.run_raw(&body.to_string()).check_error(502, &["deadline"]);
    // It has a third place, which is given until the grace is over and not behind that.
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
    eventually("it is gone", || processes::group(first).is_empty().then_some(()));
    let mut last = streams.send("*/*", &json!([["pid"]]));
    assert_eq!(pid(&mut last), second);
}

// Logs.

#[test]
fn log_frames_of_several_processes_stand_in_their_own_activations_log() {
    let streams = two(&json!({"concurrency": 2}), &[]);
    let names = ["a", "b", "c", "d"];
    let callers = names.map(|name| {
        let logs = (0..20).map(|count| json!(["log", format!("{name} {count}")]));
        let steps: Vec<_> = logs.chain([json!(["pid"])]).collect();
        begin_and(&streams, name, &steps)
    });
    for name in names {
        streams.make(name);
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

// The end.

/// One in each of two processes.
#[track_caller]
fn one_in_each(args: &[&str]) -> (Streams, [(&'static str, Caller); 2]) {
    let streams = two(&json!({"concurrency": 1, "stop": true}), args);
    let callers = ["a", "b"].map(|name| (name, begin(&streams, name)));
    assert_eq!(streams.proxy.actions().len(), 2);
    (streams, callers)
}

#[test]
fn at_the_end_all_processes_finish_and_hear_of_it() {
    let (mut streams, callers) = one_in_each(&["--drain-grace", "20s"]);
    let groups = streams.proxy.actions();
    streams.proxy.signal(Signal::TERM);
    eventually("nothing is accepted any more", || Caller::connect(streams.proxy.port()).is_err().then_some(()));
    let pids = callers.map(|(name, caller)| end(&streams, name, caller));
    assert_ne!(pids[0], pids[1]);
    assert_eq!(streams.proxy.wait().code(), Some(0));
    for text in ["{\"stop\":{\"grace_ms\":1500}}\n", "end of input\n"] {
        assert_eq!(streams.told().matches(text).count(), 2, "{}", streams.told());
    }
    streams.proxy.check_streams(2);
    processes::await_end_of_groups(&groups);
}

#[test]
fn at_the_end_all_processes_are_cut_or_killed() {
    for second_signal in [false, true] {
        let grace = if second_signal { "1h" } else { "200ms" };
        let (mut streams, callers) = one_in_each(&["--drain-grace", grace, "--stop-grace", grace]);
        let groups = streams.proxy.actions();
        streams.proxy.signal(Signal::TERM);
        if second_signal {
            eventually("the end has begun", || Caller::connect(streams.proxy.port()).err());
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
