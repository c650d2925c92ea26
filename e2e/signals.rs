//! `docker kill` and `docker stop`: the table of `src/process/signals.rs` as an operator sees it.

use std::time::{Duration, Instant};

use serde_json::json;
use testkit::output::SENTINEL;
use testkit::wait::eventually;

use crate::engine::Container;
use crate::images;

/// How long `docker stop` waits before it kills a container.
const GRACE_OF_THE_ENGINE: Duration = Duration::from_secs(10);

#[test]
fn each_termination_signal_stops_the_container_gracefully() {
    for init in [&[][..], &["--init"]] {
        for signal in ["TERM", "INT", "QUIT", "HUP"] {
            let container = Container::serving(images::all_purpose(), init, &[]);
            container.kill(signal);
            assert_eq!(container.wait(), "0", "{signal}");
            container.check_logs("", "end of input\n");
        }
    }
}

#[test]
fn a_second_signal_stops_the_container_at_once() {
    let graces = ["--env", "PIPELOOP_DRAIN_GRACE=1h", "--env", "PIPELOOP_STOP_GRACE=1h", "--env", "STUBBORN=1"];
    for second in ["TERM", "INT"] {
        // The second signal comes while the proxy waits for the activation, and then while it waits for the action.
        let container = Container::serving(images::all_purpose(), &graces, &[]);
        let mut caller = container.begin_sleep(600_000);
        container.kill("INT");
        eventually("shutdown has begun", || container.try_caller().is_err().then_some(()));
        container.kill(second);
        assert_eq!(container.wait(), "0");
        caller.receive().expect("an answer").check_error(502, &[]);

        let container = Container::serving(images::all_purpose(), &graces, &[]);
        container.kill("TERM");
        eventually("shutdown has begun", || container.logs().stderr.contains("end of input").then_some(()));
        container.kill(second);
        assert_eq!(container.wait(), "0");
    }
}

#[test]
fn signals_without_a_meaning_are_ignored() {
    let container = Container::serving(images::all_purpose(), &[], &[]);
    let before = container.actions();
    for signal in
        ["PIPE", "WINCH", "CONT", "URG", "ALRM", "VTALRM", "PROF", "IO", "TSTP", "TTIN", "TTOU", "PWR", "XCPU", "CHLD"]
    {
        container.kill(signal);
        let response = container.run(&json!({}));
        assert_eq!(response.status, 200, "{signal}: {}", response.text());
    }
    assert_eq!(container.actions(), before, "one process answers all requests");
}

#[test]
fn the_actions_own_signals_reach_it() {
    for init in [&[][..], &["--init"]] {
        let container = Container::serving(images::all_purpose(), init, &[]);
        for signal in ["USR1", "USR2"] {
            let mut caller = container.begin(&json!({"await_signal": 1}));
            container.kill(signal);
            assert_eq!(caller.receive().expect("an answer").status, 200);
        }
        let log = format!("begun\ngot SIGUSR1\n{SENTINEL}\nbegun\ngot SIGUSR2\n{SENTINEL}\n");
        container.check_logs(&format!("{SENTINEL}\n{SENTINEL}\n"), &log);
    }
}

#[test]
fn sigstop_suspends_the_container_and_sigcont_resumes_it() {
    let container = Container::serving(images::all_purpose(), &[], &[]);
    let mut caller = container.caller();
    container.kill("STOP");
    caller.send_request("POST", "/run", b"{}");
    assert!(caller.is_silent_for(Duration::from_millis(300)), "the engine's SIGSTOP did not stop the container");
    container.kill("CONT");
    assert_eq!(caller.receive().expect("an answer").status, 200);
}

#[test]
fn a_killed_container_leaves_nothing_behind() {
    let container = Container::serving(images::all_purpose(), &[], &[]);
    assert_eq!(container.actions().len(), 1);
    container.kill("KILL");
    assert_eq!(container.wait(), "137");
}

/// `docker stop` ends the container within the engine's grace, as status 0 shows: a container that the engine had to
/// kill has 137.
#[track_caller]
fn check_stop(container: &Container) {
    let begun = Instant::now();
    container.docker(&["stop"]);
    assert!(begun.elapsed() < GRACE_OF_THE_ENGINE, "{:?}", begun.elapsed());
    assert_eq!(container.wait(), "0");
}

#[test]
fn an_idle_container_stops() {
    for init in [&[][..], &["--init"]] {
        let container = Container::serving(images::all_purpose(), init, &[]);
        assert_eq!(container.run(&json!({})).status, 200);
        check_stop(&container);
        container.check_sentinels(1);
    }
}

#[test]
fn a_container_without_an_action_stops() {
    check_stop(&Container::serving(images::scratch(), &[], &[]));
}

#[test]
fn a_stopping_container_finishes_its_activation() {
    let container = Container::serving(images::all_purpose(), &[], &[]);
    let mut caller = container.begin_sleep(1_000);
    check_stop(&container);
    assert_eq!(caller.receive().expect("an answer").status, 200);
    container.check_sentinels(1);
}

#[test]
fn a_stopping_container_ends_an_activation_that_takes_too_long() {
    for init in [&[][..], &["--init"]] {
        let container = Container::serving(images::all_purpose(), init, &[]);
        let mut caller = container.begin_sleep(600_000);
        check_stop(&container);
        caller.receive().expect("an answer").check_error(502, &["PIPELOOP_DRAIN_GRACE"]);
        container.check_sentinels(1);
    }
}

#[test]
fn a_container_stops_even_if_its_action_ignores_end_of_input_and_sigterm() {
    let container = Container::serving(images::all_purpose(), &["--env", "STUBBORN=1"], &[]);
    check_stop(&container);
    container.check_logs("", "end of input\ngot SIGTERM\n");

    let container = Container::serving(images::all_purpose(), &["--env", "STUBBORN=1"], &[]);
    let mut caller = container.begin_sleep(600_000);
    check_stop(&container);
    caller.receive().expect("an answer").check_error(502, &["PIPELOOP_DRAIN_GRACE"]);
}
