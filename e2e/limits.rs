//! A container's limits of memory and processes.

use serde_json::json;
use testkit::processes;
use testkit::wait::eventually;

use crate::engine::Container;
use crate::images;

#[test]
fn an_out_of_memory_kill_is_reported_and_the_action_restarted() {
    let container = Container::serving(images::all_purpose(), &["--memory", "64m", "--memory-swap", "64m"], &[]);
    for done in 1..=3 {
        let response = container.run(&json!({"eat_mib": 256}));
        response.check_error(502, &["signal 9", "out of memory"]);
        let next = container.run(&json!({"eat_mib": 8}));
        assert_eq!(next.status, 200, "{}", next.text());
        container.check_sentinels(2 * done);
    }
    container.docker(&["stop"]);
    assert_eq!(container.wait(), "0");
}

/// Far more than may exist at once: the proxy must reap each when it exits.
#[test]
fn ten_thousand_orphans_are_reaped_within_a_limit_of_sixteen_processes() {
    let container = Container::serving(images::all_purpose(), &["--pids-limit", "16"], &[]);
    container.run(&json!({"orphans": 10_000})).check(200, &json!({"adopted": 10_000}));
    eventually("every orphan has been reaped", || (processes::zombies(container.pid()) == 0).then_some(()));
    assert_eq!(container.processes().len(), 2, "the proxy and its action: {:?}", container.processes());
}

#[test]
fn a_container_that_allows_no_second_process_reports_that() {
    let container = Container::serving(images::scratch(), &["--pids-limit", "1"], &[]);
    container
        .init(images::all_purpose_code())
        .check_error(500, &["cannot start a thread", "Resource temporarily unavailable"]);
    container.docker(&["update", "--pids-limit", "16"]);
    container.init(images::all_purpose_code()).check(200, &json!({"ok": true}));
    assert_eq!(container.run(&json!({})).status, 200);
}
