//! Too much of everything: the proxy's memory stays within its bounds plus 16 MiB.
//!
//! The engine keeps no log here, since it would grow without bound.

use std::time::Duration;

use serde_json::json;
use testkit::processes::resource_usage;

use crate::engine::Container;
use crate::images;

/// The memory that the proxy may take beside what its bounds allow.
const OWN_MIB: u64 = 16;

#[track_caller]
fn serving(settings: &[&str]) -> Container {
    let settings: Vec<_> = settings.iter().flat_map(|setting| ["--env", setting]).collect();
    Container::serving(images::all_purpose(), &[&["--log-driver", "none"], &settings[..]].concat(), &[])
}

/// Asserts that the peak of the proxy's memory is within these bounds and its own.
#[track_caller]
fn check_peak(container: &Container, what: &str, bounds_mib: u64) {
    let peak_kib = resource_usage(container.pid()).peak_kib;
    eprintln!("peak of the proxy's memory, {what}: {peak_kib} KiB, bounds {bounds_mib} MiB");
    assert!(peak_kib <= (bounds_mib + OWN_MIB) * 1024, "{what}: {peak_kib} KiB, bounds {bounds_mib} MiB");
}

/// Logs this much on each stream. The log passes through several processes, and none keeps it.
#[track_caller]
fn flood(container: &Container, mib: u64) {
    let mut caller = container.caller();
    caller.set_timeout(Some(Duration::from_mins(5))).expect("a limit above zero");
    let response = caller.call("POST", "/run", json!({"value": {"flood_mib": mib}}).to_string().as_bytes());
    assert_eq!(response.status, 200, "{}", response.text());
}

#[test]
fn a_log_of_a_gibibyte_in_one_line_takes_no_memory() {
    let container = serving(&[]);
    flood(&container, 1024);
    check_peak(&container, "1 GiB of log in a line on each stream", 0);
}

/// A line of stdout may be the answer in version 0 until another one follows it: so much of it is held.
#[test]
fn a_single_shot_that_floods_its_log_takes_no_more_than_an_answer() {
    let container = serving(&["PIPELOOP_PROTOCOL=0", "PIPELOOP_MAX_RESULT=16MiB"]);
    flood(&container, 1024);
    check_peak(&container, "1 GiB of log in a line on each stream, version 0, answers of 16 MiB accepted", 16);
}

#[test]
fn a_single_shot_that_answers_too_much_takes_no_more_than_its_bound() {
    let container = serving(&["PIPELOOP_PROTOCOL=0"]);
    let mut caller = container.caller();
    // All of it goes to the log.
    caller.set_timeout(Some(Duration::from_mins(5))).expect("a limit above zero");
    for _ in 0..2 {
        let response = caller.call("POST", "/run", br#"{"value":{"answer_mib":512}}"#);
        response.check_error(502, &["PIPELOOP_MAX_RESULT"]);
    }
    check_peak(&container, "results of 512 MiB in version 0, of which 64 MiB are accepted", 64);
    assert_eq!(container.run(&json!({})).status, 200);
}

#[test]
fn a_long_log_takes_no_more_than_its_backlog_where_logs_are_gathered() {
    let container = serving(&["PIPELOOP_WORKERS=2"]);
    flood(&container, 256);
    check_peak(&container, "256 MiB of log in a line on each stream, two workers", 4);
}

#[test]
fn a_result_of_a_gibibyte_takes_no_more_than_its_bound() {
    let container = serving(&[]);
    for _ in 0..3 {
        container.run(&json!({"answer_mib": 1024})).check_error(502, &["PIPELOOP_MAX_RESULT"]);
    }
    check_peak(&container, "results of 1 GiB, of which 64 MiB are accepted", 64);
    assert_eq!(container.run(&json!({})).status, 200);
}

#[test]
fn results_as_large_as_their_bound_are_held_once() {
    let container = serving(&["PIPELOOP_MAX_RESULT=257MiB"]);
    for _ in 0..3 {
        assert_eq!(container.run(&json!({"answer_mib": 256})).status, 200);
    }
    check_peak(&container, "results of 256 MiB, of which 257 MiB are accepted", 257);
}

/// Each caller that does not read holds its own answer, until the caller timeout.
#[test]
fn callers_that_never_read_hold_their_answers_and_no_more() {
    const CALLERS: usize = 4;
    let container = serving(&["PIPELOOP_MAX_RESULT=17MiB"]);
    let callers: Vec<_> = (0..CALLERS)
        .map(|_| {
            let mut caller = container.caller();
            caller.send_request("POST", "/run", br#"{"value":{"answer_mib":16}}"#);
            caller
        })
        .collect();
    // A later caller is answered, and by then the answers of those four were made.
    assert_eq!(container.run(&json!({})).status, 200);
    check_peak(&container, "four callers that do not read 16 MiB each", 17 * CALLERS as u64);
    drop(callers);
    assert_eq!(container.run(&json!({})).status, 200);
}

#[test]
fn bodies_as_large_as_their_bound_are_held_once() {
    let container = serving(&["PIPELOOP_MAX_BODY=65MiB"]);
    let body = json!({"value": {"filler": "x".repeat(64 << 20)}}).to_string();
    for _ in 0..3 {
        assert_eq!(container.caller().call("POST", "/run", body.as_bytes()).status, 200);
    }
    check_peak(&container, "bodies of 64 MiB, of which 65 MiB are accepted", 65);
}
