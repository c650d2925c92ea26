//! What all callers together make the proxy hold has one bound.

use std::time::Duration;

use serde_json::json;

use crate::support::{Caller, Proxy, compile, eventually, processes};

/// What the proxy may take beside what its bounds allow.
const OWN_MIB: u64 = 16;

/// A proxy that serves `butler.c`, and may hold so much.
fn serving(limit: &str) -> (Proxy, tempfile::TempDir) {
    let folder = tempfile::tempdir().expect("a folder of its own");
    let action = compile("butler.c", folder.path());
    let action = action.to_str().expect("the path is text").to_owned();
    let proxy = Proxy::start(&["--max-memory", limit, "--max-result", "9MiB", &action], &[]);
    (proxy, folder)
}

fn send(proxy: &Proxy, body: &str) -> Caller {
    // So that the kernel holds little of what is not read.
    let mut caller = Caller::connect_narrow(proxy.port()).expect("the proxy accepts a connection");
    caller.set_timeout(Some(Duration::from_mins(1))).expect("a limit above zero");
    caller.send_request("POST", "/run", body.as_bytes());
    caller
}

fn with_filler(mib: usize) -> String {
    json!({"value": {"filler": "x".repeat(mib << 20)}}).to_string()
}

#[track_caller]
fn check_peak(proxy: &Proxy, what: &str, bounds_mib: u64) {
    let peak_kib = processes::resource_usage(proxy.pid()).peak_kib;
    eprintln!("peak of the proxy's memory, {what}: {peak_kib} KiB, bounds {bounds_mib} MiB");
    assert!(peak_kib <= (bounds_mib + OWN_MIB) * 1024, "{what}: {peak_kib} KiB, bounds {bounds_mib} MiB");
}

#[test]
fn bodies_that_wait_are_bounded_together() {
    let (proxy, _folder) = serving("40MiB");
    // Busy until it is told; what comes meanwhile waits.
    let mut busy = send(&proxy, r#"{"value":{"await_signal":1}}"#);
    proxy.wait_for("it is busy", |logs| logs.stderr.contains("begun\n"));
    let body = with_filler(8);
    let mut waiting = Vec::new();
    let mut refused = 0;
    for _ in 0..20 {
        let mut caller = send(&proxy, &body);
        // One that was read whole is told at once, or waits.
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
    assert!((3..=5).contains(&waiting.len()), "{} of 8 MiB wait in 40 MiB", waiting.len());
    assert_eq!(refused, 20 - waiting.len());
    check_peak(&proxy, "twenty bodies of 8 MiB, of which 40 MiB may be held", 40);
    // What is small gets in all the same.
    let mut small = send(&proxy, r#"{"value":{}}"#);
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(proxy.actions()[0]).expect("a pid is positive"),
        rustix::process::Signal::USR1,
    )
    .expect("it lives");
    let answered = waiting.len() + 2;
    for caller in [&mut busy].into_iter().chain(&mut waiting).chain([&mut small]) {
        assert_eq!(caller.receive().expect("an answer").status, 200);
    }
    // Nothing is held any more.
    for _ in 0..3 {
        assert_eq!(send(&proxy, &body).receive().expect("an answer").status, 200);
    }
    proxy.check_streams(answered + 3);
}

#[test]
fn answers_that_nobody_reads_are_bounded_together() {
    let (proxy, _folder) = serving("20MiB");
    let ask = r#"{"value":{"answer_mib":8}}"#;
    let mut deaf: Vec<_> = (0..12).map(|_| send(&proxy, ask)).collect();
    // Whoever comes behind them is answered, and has been answered after them.
    eventually("all of them have come", || {
        let response = proxy.run(&json!({}));
        (response.status == 200 || response.status == 429).then_some(())
    });
    check_peak(&proxy, "twelve answers of 8 MiB that nobody reads, of which 20 MiB may be held", 20 + 9);
    let statuses: Vec<_> = deaf.iter_mut().map(|caller| caller.receive().expect("an answer").status).collect();
    let given = statuses.iter().filter(|status| **status == 200).count();
    assert!((2..=4).contains(&given), "{statuses:?}");
    assert!(statuses.iter().all(|status| [200, 429].contains(status)), "{statuses:?}");
    drop(deaf);
    for _ in 0..3 {
        assert_eq!(send(&proxy, ask).receive().expect("an answer").status, 200);
    }
}

/// A bound below what one request needs is no reason to refuse one that comes alone.
#[test]
fn what_comes_alone_is_served() {
    let (proxy, _folder) = serving("1MiB");
    for _ in 0..3 {
        assert_eq!(send(&proxy, &with_filler(8)).receive().expect("an answer").status, 200);
    }
    assert_eq!(send(&proxy, r#"{"value":{"answer_mib":8}}"#).receive().expect("an answer").status, 200);
}

/// Bodies that come whole at once are taken by a shorter way than others: they count the same.
#[test]
fn small_bodies_count_too() {
    for headers in ["", "Accept: application/json;q=0.9\r\n"] {
        let (proxy, _folder) = serving("12000b");
        let send = |body: &str| {
            let mut caller = proxy.caller();
            let head = format!("POST /run HTTP/1.1\r\nHost: test\r\n{headers}Content-Length: {}\r\n\r\n", body.len());
            caller.send((head + body).as_bytes()).expect("it is sent");
            caller
        };
        let body = |length: usize| {
            let filler = "x".repeat(length - json!({"value": {"filler": ""}}).to_string().len());
            json!({"value": {"filler": filler}}).to_string()
        };
        let mut busy = send(r#"{"value":{"await_signal":1}}"#);
        proxy.wait_for("it is busy", |logs| logs.stderr.contains("begun\n"));
        let mut waiting = [6000, 6000].map(|length| {
            let mut caller = send(&body(length));
            assert!(caller.is_silent_for(Duration::from_millis(300)), "there is room for {length} bytes");
            caller
        });
        // It is full to the last byte, for what is not counted itself as well.
        for length in [6000, 100] {
            send(&body(length)).receive().expect("an answer").check_error(429, &["at most 12000 are allowed"]);
        }
        proxy.actions().into_iter().for_each(|action| {
            let action = rustix::process::Pid::from_raw(action).expect("a pid is positive");
            rustix::process::kill_process(action, rustix::process::Signal::USR1).expect("it lives");
        });
        for caller in [&mut busy].into_iter().chain(&mut waiting) {
            assert_eq!(caller.receive().expect("an answer").status, 200);
        }
        // Nothing is held any more.
        assert_eq!(send(&body(7000)).receive().expect("an answer").status, 200);
    }
}
