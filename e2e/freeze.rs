//! `docker pause`, which the platform uses between activations: time passes only outside the container.

use std::thread::sleep;
use std::time::Duration;

use serde_json::json;

use crate::engine::{Container, pause};
use crate::images;

/// Every time limit of the proxy, far shorter than the freeze.
const SHORT: &[&str] = &[
    "--env",
    "PIPELOOP_CALLER_TIMEOUT=2s",
    "--env",
    "PIPELOOP_INIT_TIMEOUT=2s",
    "--env",
    "PIPELOOP_LOG_STALL=2s",
    "--env",
    "PIPELOOP_RUN_TIMEOUT=2s",
];

/// Freezes a container for the time that `e2e/run` sets.
#[track_caller]
fn freeze(container: &Container) {
    container.docker(&["pause"]);
    sleep(pause());
    container.docker(&["unpause"]);
}

#[test]
fn a_freeze_between_two_activations_keeps_connections_and_the_process() {
    let container = Container::serving(images::all_purpose(), SHORT, &[]);
    let mut kept = container.caller();
    let mut half = container.caller();
    half.send(b"POST /run HTTP/1.1\r\nHost: te").expect("half a head is sent");
    let first = kept.call("POST", "/run", br#"{"value":{"say":"before"}}"#);
    assert_eq!(first.status, 200, "{}", first.text());
    freeze(&container);
    let second = kept.call("POST", "/run", br#"{"value":{"say":"after"}}"#);
    assert_eq!((second.status, second.json()), (200, first.json()), "the same process answers");
    half.send(b"st\r\nContent-Length: 2\r\n\r\n{}").expect("the rest is sent");
    let third = half.receive().expect("an answer to the request that the freeze interrupted");
    assert_eq!((third.status, third.json()), (200, first.json()));
    container.check_sentinels(3);
}

#[test]
fn a_freeze_during_an_activation_does_not_fail_it() {
    let container = Container::serving(images::all_purpose(), SHORT, &[]);
    let before = container.actions();
    let mut caller = container.begin_sleep(1_000);
    let mut waiting = container.caller();
    waiting.send_request("POST", "/run", br#"{"value":{"say":"next"}}"#);
    freeze(&container);
    for (caller, which) in [(&mut caller, "the activation that ran"), (&mut waiting, "the activation that waited")] {
        let response = caller.receive().expect("an answer");
        assert_eq!(response.status, 200, "{which}: {}", response.text());
    }
    assert_eq!(container.actions(), before);
    container.check_sentinels(2);
}

/// A freeze does not count towards a time limit.
#[test]
fn a_freeze_during_init_does_not_fail_it() {
    let container = Container::serving(images::debian(), SHORT, &[]);
    let code =
        "#!/bin/bash\necho starting >&2\nsleep 1\necho '{\"openwhisk\":1}'\nwhile read -r line; do echo '{}'; done\n";
    let mut caller = container.caller();
    caller.send_request("POST", "/init", json!({"value": {"code": code}}).to_string().as_bytes());
    testkit::wait::eventually("it starts", || container.logs().stderr.contains("starting").then_some(()));
    freeze(&container);
    caller.receive().expect("an answer").check(200, &json!({"ok": true}));
    container.run(&json!({})).check(200, &json!({}));
}

#[test]
fn a_thawed_container_can_be_stopped() {
    let container = Container::serving(images::all_purpose(), &[], &[]);
    let mut caller = container.begin_sleep(600_000);
    container.docker(&["pause"]);
    sleep(Duration::from_secs(1));
    container.docker(&["unpause"]);
    container.docker(&["stop"]);
    assert_eq!(container.wait(), "0");
    caller.receive().expect("an answer").check_error(502, &[]);
}
