//! The memory budget: one limit for the bodies and answers of all callers together.

use std::time::Duration;

use serde_json::json;

use crate::support::{Caller, Proxy, compile, eventually, processes};

/// The memory that the proxy may use on top of its limits.
const OWN_MIB: u64 = 16;

/// A proxy that serves `all_purpose.c` with this memory budget.
fn start_with_budget(limit: &str) -> (Proxy, tempfile::TempDir) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let action = compile("all_purpose.c", directory.path());
    let action = action.to_str().expect("the path is UTF-8").to_owned();
    let proxy = Proxy::start(&["--max-memory", limit, "--max-result", "9MiB", &action], &[]);
    (proxy, directory)
}

fn send(proxy: &Proxy, body: &str) -> Caller {
    // Small socket buffers, so that the kernel holds little of an unread answer.
    let mut caller = Caller::connect_narrow(proxy.port()).expect("the proxy accepts a connection");
    caller.set_timeout(Some(Duration::from_mins(1))).expect("a limit above zero");
    caller.send_request("POST", "/run", body.as_bytes());
    caller
}

fn with_filler(mib: usize) -> String {
    json!({"value": {"filler": "x".repeat(mib << 20)}}).to_string()
}

#[track_caller]
fn check_peak(proxy: &Proxy, load: &str, limits_mib: u64) {
    let peak_kib = processes::resource_usage(proxy.pid()).peak_kib;
    eprintln!("peak of the proxy's memory, {load}: {peak_kib} KiB, limits {limits_mib} MiB");
    assert!(peak_kib <= (limits_mib + OWN_MIB) * 1024, "{load}: {peak_kib} KiB, limits {limits_mib} MiB");
}

#[test]
fn queued_bodies_share_one_memory_budget() {
    let (proxy, _directory) = start_with_budget("40MiB");
    // The action is busy until it gets a signal; later requests wait in the queue.
    let mut busy = send(&proxy, r#"{"value":{"await_signal":1}}"#);
    proxy.wait_for("the action is busy", |logs| logs.stderr.contains("begun\n"));
    let body = with_filler(8);
    let mut waiting = Vec::new();
    let mut refused = 0;
    for _ in 0..20 {
        let mut caller = send(&proxy, &body);
        // The proxy either refuses a body at once or keeps it in the queue.
        if caller.is_silent_for(Duration::from_millis(300)) {
            waiting.push(caller);
            continue;
        }
        let response = caller.receive().expect("an answer");
        response
            .check_error(429, &["the memory budget is full", "at most 41943040 are allowed", "PIPELOOP_MAX_MEMORY"]);
        assert_eq!(response.header("retry-after"), Some("1"));
        refused += 1;
    }
    assert!((3..=5).contains(&waiting.len()), "{} bodies of 8 MiB wait in a budget of 40 MiB", waiting.len());
    assert_eq!(refused, 20 - waiting.len());
    check_peak(&proxy, "twenty bodies of 8 MiB, budget 40 MiB", 40);
    // A small request is still admitted.
    let mut small = send(&proxy, r#"{"value":{}}"#);
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(proxy.actions()[0]).expect("a pid is positive"),
        rustix::process::Signal::USR1,
    )
    .expect("the action lives");
    let answered = waiting.len() + 2;
    for caller in [&mut busy].into_iter().chain(&mut waiting).chain([&mut small]) {
        assert_eq!(caller.receive().expect("an answer").status, 200);
    }
    // The whole budget is free again.
    for _ in 0..3 {
        assert_eq!(send(&proxy, &body).receive().expect("an answer").status, 200);
    }
    proxy.check_streams(answered + 3);
}

#[test]
fn unread_answers_share_one_memory_budget() {
    let (proxy, _directory) = start_with_budget("20MiB");
    let ask = r#"{"value":{"answer_mib":8}}"#;
    let mut unread: Vec<_> = (0..12).map(|_| send(&proxy, ask)).collect();
    // The queue is in order: once a later request has its answer, those before it have theirs.
    eventually("all requests have been handled", || {
        let response = proxy.run(&json!({}));
        (response.status == 200 || response.status == 429).then_some(())
    });
    check_peak(&proxy, "twelve unread answers of 8 MiB, budget 20 MiB", 20 + 9);
    let statuses: Vec<_> = unread.iter_mut().map(|caller| caller.receive().expect("an answer").status).collect();
    let admitted = statuses.iter().filter(|status| **status == 200).count();
    assert!((2..=4).contains(&admitted), "{statuses:?}");
    assert!(statuses.iter().all(|status| [200, 429].contains(status)), "{statuses:?}");
    drop(unread);
    for _ in 0..3 {
        assert_eq!(send(&proxy, ask).receive().expect("an answer").status, 200);
    }
}

/// Even if the request alone needs more than the whole budget.
#[test]
fn a_lone_request_is_always_admitted() {
    let (proxy, _directory) = start_with_budget("1MiB");
    for _ in 0..3 {
        assert_eq!(send(&proxy, &with_filler(8)).receive().expect("an answer").status, 200);
    }
    assert_eq!(send(&proxy, r#"{"value":{"answer_mib":8}}"#).receive().expect("an answer").status, 200);
}

/// On the fast path and over hyper.
#[test]
fn small_bodies_count_towards_the_memory_budget() {
    for headers in ["", "Accept: application/json;q=0.9\r\n"] {
        let (proxy, _directory) = start_with_budget("12000b");
        let send = |body: &str| {
            let mut caller = proxy.caller();
            let head = format!("POST /run HTTP/1.1\r\nHost: test\r\n{headers}Content-Length: {}\r\n\r\n", body.len());
            caller.send((head + body).as_bytes()).expect("the request is sent");
            caller
        };
        let body = |length: usize| {
            let filler = "x".repeat(length - json!({"value": {"filler": ""}}).to_string().len());
            json!({"value": {"filler": filler}}).to_string()
        };
        let mut busy = send(r#"{"value":{"await_signal":1}}"#);
        proxy.wait_for("the action is busy", |logs| logs.stderr.contains("begun\n"));
        let mut waiting = [6000, 6000].map(|length| {
            let mut caller = send(&body(length));
            assert!(caller.is_silent_for(Duration::from_millis(300)), "a body of {length} bytes was not queued");
            caller
        });
        // The budget is used up to the last byte, which also refuses a body too small to be counted.
        for length in [6000, 100] {
            send(&body(length)).receive().expect("an answer").check_error(429, &["at most 12000 are allowed"]);
        }
        proxy.actions().into_iter().for_each(|action| {
            let action = rustix::process::Pid::from_raw(action).expect("a pid is positive");
            rustix::process::kill_process(action, rustix::process::Signal::USR1).expect("the action lives");
        });
        for caller in [&mut busy].into_iter().chain(&mut waiting) {
            assert_eq!(caller.receive().expect("an answer").status, 200);
        }
        // The whole budget is free again.
        assert_eq!(send(&body(7000)).receive().expect("an answer").status, 200);
    }
}
