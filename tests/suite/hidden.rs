//! Readiness where the kernel does not show what a process waits for.
//!
//! A process that is not dumpable may be looked at by those alone who have `CAP_SYS_PTRACE`. So the
//! action makes itself so, and the proxy is started without that capability, which ordinary users do
//! not have and root can give up. Everything else is as it always is.
//!
//! Source: prctl(2), `PR_SET_DUMPABLE`; ptrace(2), "Ptrace access mode checking".

use std::os::unix::fs::PermissionsExt;

use rustix::thread::{CapabilitySet, remove_capability_from_bounding_set};
use serde_json::json;

use crate::support::{Proxy, pipeloop_in};

/// The dialect in Python: hides, if it is told to, and then neither speaks nor reads until its folder
/// holds the file `go`.
fn action(hides: bool) -> String {
    format!(
        r#"#!/usr/bin/env python3
import ctypes, json, os, sys, time
if {hides}:
    ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)
print("started", flush=True)
while not os.path.exists("go"):
    time.sleep(0.01)
for line in sys.stdin:
    os.write(3, json.dumps({{"got": json.loads(line)["value"]}}).encode() + b"\n")
"#,
        hides = if hides { "True" } else { "False" }
    )
}

/// A proxy that can look at processes of its own user only, and not at those that hide.
fn proxy(args: &[&str]) -> Proxy {
    proxy_with(args, &[])
}

fn proxy_with(args: &[&str], env: &[(&str, &str)]) -> Proxy {
    without_a_look(|| Proxy::start(args, env))
}

/// Starts something that may look at processes of its own user only.
fn without_a_look<T: Send>(act: impl FnOnce() -> T + Send) -> T {
    let start = || {
        if rustix::process::geteuid().is_root() {
            remove_capability_from_bounding_set(CapabilitySet::SYS_PTRACE).expect("root may give up a capability");
        }
        act()
    };
    // The capability is gone for good in the thread that gives it up.
    std::thread::scope(|scope| scope.spawn(start).join()).expect("it is started")
}

#[test]
fn an_action_that_hides_is_ready_when_its_grace_is_over() {
    let proxy = proxy(&[]);
    // It does not wait for input yet: nothing but the grace says so.
    proxy.init(&action(true)).check(200, &json!({"ok": true}));
    std::fs::write(proxy.workdir().join("action/1/bin/go"), "").expect("the action's folder is there");
    proxy.run(&json!({"n": 1})).check(200, &json!({"got": {"n": 1}}));
    proxy.check_streams(1);
}

/// As long as it is set to, by flag or variable, and no longer.
#[test]
fn the_grace_is_as_long_as_it_is_set() {
    let begun = std::time::Instant::now();
    let patient = proxy(&["--start-grace", "2s"]);
    patient.init(&action(true)).check(200, &json!({"ok": true}));
    assert!(begun.elapsed() >= std::time::Duration::from_secs(2), "{:?}", begun.elapsed());
    // It would be silent for ever, so an end of the init within its limit is the grace's.
    let hasty = proxy_with(&["--init-timeout", "20s"], &[("PIPELOOP_START_GRACE", "0ms")]);
    hasty.init(&action(true)).check(200, &json!({"ok": true}));
}

/// `pipeloop check` says what it took for ready, for how long it had looked, and which setting that was.
#[test]
fn check_names_the_grace() {
    let folder = tempfile::tempdir().expect("a folder of its own");
    let path = folder.path().join("hides");
    // It waits for a moment, so that it is seen before it reads, and reads then.
    let code = action(true).replace("not os.path.exists(\"go\")", "time.monotonic() < begun + 2");
    let code = code.replacen("\nimport", "\nimport time; begun = time.monotonic()\nimport", 1);
    std::fs::write(&path, code).expect("the folder is ours");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("the file is ours");
    let args = ["check", path.to_str().expect("the path is text"), "--start-grace", "700ms"];
    let ended = without_a_look(|| pipeloop_in(folder.path(), &args, &[], ""));
    let expected = "assumed, because it wrote nothing for 700 ms (`PIPELOOP_START_GRACE`)";
    assert!(ended.stdout.contains(expected), "{}", ended.stdout);
}

#[test]
fn an_action_that_hides_is_not_ready_before_its_grace_is_over() {
    let proxy = proxy(&["--start-grace", "1h", "--init-timeout", "1s"]);
    proxy
        .init(&action(true))
        .check_error(502, &["was not ready within 1 s", "has not sent a handshake and is not waiting for input"]);
    assert_eq!(proxy.check_streams(0).stdout, "started\n");
}

/// The same action and the same proxy, and nothing that hides: then the grace does not matter.
#[test]
fn an_action_that_shows_itself_is_not_ready_by_grace() {
    let proxy = proxy(&["--start-grace", "1ms", "--init-timeout", "1s"]);
    proxy
        .init(&action(false))
        .check_error(502, &["was not ready within 1 s", "has not sent a handshake and is not waiting for input"]);
    assert_eq!(proxy.check_streams(0).stdout, "started\n");
}

/// The grace is time in which the action can run.
#[test]
fn an_action_that_was_frozen_gets_its_grace() {
    let proxy = proxy(&["--start-grace", "3s"]);
    let mut caller = proxy.caller();
    caller.send_request("POST", "/init", json!({"value": {"code": action(true)}}).to_string().as_bytes());
    proxy.wait_for("the action starts", |logs| logs.stdout.contains("started\n"));
    proxy.freeze(std::time::Duration::from_millis(3_300));
    assert!(caller.is_silent_for(std::time::Duration::from_millis(300)), "it cannot be ready yet");
    caller.receive().expect("an answer").check(200, &json!({"ok": true}));
}
