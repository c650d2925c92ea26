//! Floods of logs, answers and bodies: the proxy's memory stays within its limits plus 16 MiB.
//!
//! The engine keeps no log here, since it would grow without bound.

use std::time::Duration;

use serde_json::json;
use testkit::processes::resource_usage;

use crate::engine::Container;
use crate::images;

/// The memory that the proxy may use on top of its limits.
const OWN_MIB: u64 = 16;

#[track_caller]
fn serving(settings: &[&str]) -> Container {
    let settings: Vec<_> = settings.iter().flat_map(|setting| ["--env", setting]).collect();
    Container::serving(images::all_purpose(), &[&["--log-driver", "none"], &settings[..]].concat(), &[])
}

/// Checks that the peak of the proxy's memory is within these limits plus its own memory.
#[track_caller]
fn check_peak(container: &Container, load: &str, limits_mib: u64) {
    let peak_kib = resource_usage(container.pid()).peak_kib;
    eprintln!("peak of the proxy's memory, {load}: {peak_kib} KiB, limits {limits_mib} MiB");
    assert!(peak_kib <= (limits_mib + OWN_MIB) * 1024, "{load}: {peak_kib} KiB, limits {limits_mib} MiB");
}

/// Logs this much on each stream. No process keeps the log.
#[track_caller]
fn flood(container: &Container, mib: u64) {
    let mut caller = container.caller();
    caller.set_timeout(Some(Duration::from_mins(5))).expect("a limit above zero");
    let response = caller.call("POST", "/run", json!({"value": {"flood_mib": mib}}).to_string().as_bytes());
    assert_eq!(response.status, 200, "{}", response.text());
}

#[test]
fn a_log_line_of_a_gibibyte_takes_no_memory() {
    let container = serving(&[]);
    flood(&container, 1024);
    check_peak(&container, "1 GiB of log in a line on each stream", 0);
}

/// In version 0 any line of stdout may be the answer until the next one, so the proxy holds as much of a line as an
/// answer may have. While its buffer grows, it may hold the line twice: peaks of 27 to 44 MiB were seen, by how the
/// reads happened to fall.
#[test]
fn a_version_0_log_flood_takes_no_more_than_one_answer() {
    let container = serving(&["PIPELOOP_PROTOCOL=0", "PIPELOOP_MAX_RESULT=16MiB"]);
    flood(&container, 1024);
    check_peak(&container, "1 GiB of log in a line on each stream, version 0, answers of 16 MiB accepted", 2 * 16);
}

#[test]
fn an_oversized_version_0_result_takes_no_more_than_its_limit() {
    let container = serving(&["PIPELOOP_PROTOCOL=0"]);
    let mut caller = container.caller();
    // The whole result goes to the log, which takes time.
    caller.set_timeout(Some(Duration::from_mins(5))).expect("a limit above zero");
    for _ in 0..2 {
        let response = caller.call("POST", "/run", br#"{"value":{"answer_mib":512}}"#);
        response.check_error(502, &["PIPELOOP_MAX_RESULT"]);
    }
    check_peak(&container, "results of 512 MiB in version 0, of which 64 MiB are accepted", 64);
    assert_eq!(container.run(&json!({})).status, 200);
}

#[test]
fn a_log_flood_with_two_workers_takes_no_more_than_the_backlog() {
    let container = serving(&["PIPELOOP_WORKERS=2"]);
    flood(&container, 256);
    check_peak(&container, "256 MiB of log in a line on each stream, two workers", 4);
}

#[test]
fn an_oversized_result_takes_no_more_than_its_limit() {
    let container = serving(&[]);
    for _ in 0..3 {
        container.run(&json!({"answer_mib": 1024})).check_error(502, &["PIPELOOP_MAX_RESULT"]);
    }
    check_peak(&container, "results of 1 GiB, of which 64 MiB are accepted", 64);
    assert_eq!(container.run(&json!({})).status, 200);
}

#[test]
fn a_result_of_the_largest_size_is_held_once() {
    let container = serving(&["PIPELOOP_MAX_RESULT=257MiB"]);
    for _ in 0..3 {
        assert_eq!(container.run(&json!({"answer_mib": 256})).status, 200);
    }
    check_peak(&container, "results of 256 MiB, of which 257 MiB are accepted", 257);
}

/// The proxy holds the answer of each such caller until the caller timeout.
#[test]
fn an_unread_answer_takes_no_more_than_its_own_size() {
    const CALLERS: usize = 4;
    let container = serving(&["PIPELOOP_MAX_RESULT=17MiB"]);
    let callers: Vec<_> = (0..CALLERS)
        .map(|_| {
            let mut caller = container.caller();
            caller.send_request("POST", "/run", br#"{"value":{"answer_mib":16}}"#);
            caller
        })
        .collect();
    // The queue is in order: once this caller has its answer, those of the four exist.
    assert_eq!(container.run(&json!({})).status, 200);
    check_peak(&container, "four callers that do not read 16 MiB each", 17 * CALLERS as u64);
    drop(callers);
    assert_eq!(container.run(&json!({})).status, 200);
}

#[test]
fn a_body_of_the_largest_size_is_held_once() {
    let container = serving(&["PIPELOOP_MAX_BODY=65MiB"]);
    let body = json!({"value": {"filler": "x".repeat(64 << 20)}}).to_string();
    for _ in 0..3 {
        assert_eq!(container.caller().call("POST", "/run", body.as_bytes()).status, 200);
    }
    check_peak(&container, "bodies of 64 MiB, of which 65 MiB are accepted", 65);
}
