//! The limits of a container: memory and processes.

use serde_json::json;
use testkit::processes;
use testkit::wait::eventually;

use crate::engine::Container;
use crate::images;

#[test]
fn an_action_that_outgrows_the_containers_memory_is_reported_and_started_again() {
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

/// Far more than may live at once: they have to be reaped as they end.
#[test]
fn ten_thousand_orphans_are_reaped_where_sixteen_may_live() {
    let container = Container::serving(images::all_purpose(), &["--pids-limit", "16"], &[]);
    container.run(&json!({"orphans": 10_000})).check(200, &json!({"adopted": 10_000}));
    eventually("no orphan waits to be reaped", || (processes::zombies(container.pid()) == 0).then_some(()));
    assert_eq!(container.processes().len(), 2, "the proxy and its action: {:?}", container.processes());
}

#[test]
fn a_container_in_which_no_process_may_start_reports_that() {
    let container = Container::serving(images::scratch(), &["--pids-limit", "1"], &[]);
    container
        .init(images::all_purpose_code())
        .check_error(500, &["cannot start a thread", "Resource temporarily unavailable"]);
    container.docker(&["update", "--pids-limit", "16"]);
    container.init(images::all_purpose_code()).check(200, &json!({"ok": true}));
    assert_eq!(container.run(&json!({})).status, 200);
}
