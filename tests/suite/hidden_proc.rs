//! Readiness of an action whose `/proc` entries are hidden from the proxy.
//!
//! Only a process with `CAP_SYS_PTRACE` may inspect a process that is not dumpable. So the action makes
//! itself undumpable, and the proxy starts without that capability: ordinary users do not have it, and
//! root can drop it. Nothing else differs from other tests.
//!
//! Source: prctl(2), `PR_SET_DUMPABLE`; ptrace(2), "Ptrace access mode checking".

use std::os::unix::fs::PermissionsExt;

use rustix::thread::{CapabilitySet, remove_capability_from_bounding_set};
use serde_json::json;

use crate::support::{Proxy, pipeloop_in};

/// An action in Python, in the actionloop dialect. It hides if asked to, and then neither writes nor
/// reads until its directory holds the file `go`.
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

/// A proxy that cannot inspect processes that hide.
fn proxy(args: &[&str]) -> Proxy {
    proxy_with(args, &[])
}

fn proxy_with(args: &[&str], env: &[(&str, &str)]) -> Proxy {
    without_ptrace_capability(|| Proxy::start(args, env))
}

/// Starts a process that lacks `CAP_SYS_PTRACE`.
fn without_ptrace_capability<T: Send>(act: impl FnOnce() -> T + Send) -> T {
    let start = || {
        if rustix::process::geteuid().is_root() {
            remove_capability_from_bounding_set(CapabilitySet::SYS_PTRACE).expect("root may drop a capability");
        }
        act()
    };
    // The thread that drops the capability never gets it back.
    std::thread::scope(|scope| scope.spawn(start).join()).expect("the thread does not panic")
}

#[test]
fn a_hidden_action_is_ready_after_the_start_grace() {
    let proxy = proxy(&[]);
    // It does not wait for input yet: only the grace makes it ready.
    proxy.init(&action(true)).check(200, &json!({"ok": true}));
    std::fs::write(proxy.workdir().join("action/1/bin/go"), "").expect("the action's directory exists");
    proxy.run(&json!({"n": 1})).check(200, &json!({"got": {"n": 1}}));
    proxy.check_streams(1);
}

#[test]
fn a_flag_or_a_variable_sets_the_start_grace() {
    let begun = std::time::Instant::now();
    let long_grace = proxy(&["--start-grace", "2s"]);
    long_grace.init(&action(true)).check(200, &json!({"ok": true}));
    assert!(begun.elapsed() >= std::time::Duration::from_secs(2), "{:?}", begun.elapsed());
    // The action stays silent, so only the grace can end the init within its limit.
    let no_grace = proxy_with(&["--init-timeout", "20s"], &[("PIPELOOP_START_GRACE", "0ms")]);
    no_grace.init(&action(true)).check(200, &json!({"ok": true}));
}

/// `pipeloop check` says why it assumed that the action was ready, after how long, and which setting that was.
#[test]
fn check_names_the_start_grace() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("hides");
    // It waits before it reads, so that the check looks at it first.
    let code = action(true).replace("not os.path.exists(\"go\")", "time.monotonic() < begun + 2");
    let code = code.replacen("\nimport", "\nimport time; begun = time.monotonic()\nimport", 1);
    std::fs::write(&path, code).expect("the directory can be written");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("the file can be changed");
    let args = ["check", path.to_str().expect("the path is UTF-8"), "--start-grace", "700ms"];
    let ended = without_ptrace_capability(|| pipeloop_in(directory.path(), &args, &[], ""));
    let expected = "assumed, because it wrote nothing for 700 ms (`PIPELOOP_START_GRACE`)";
    assert!(ended.stdout.contains(expected), "{}", ended.stdout);
}

#[test]
fn a_hidden_action_is_not_ready_before_the_start_grace() {
    let proxy = proxy(&["--start-grace", "1h", "--init-timeout", "1s"]);
    proxy
        .init(&action(true))
        .check_error(502, &["was not ready within 1 s", "has not sent a handshake and is not waiting for input"]);
    assert_eq!(proxy.check_streams(0).stdout, "started\n");
}

/// The same proxy, and the same action without hiding: the grace does not matter.
#[test]
fn the_start_grace_makes_no_visible_action_ready() {
    let proxy = proxy(&["--start-grace", "1ms", "--init-timeout", "1s"]);
    proxy
        .init(&action(false))
        .check_error(502, &["was not ready within 1 s", "has not sent a handshake and is not waiting for input"]);
    assert_eq!(proxy.check_streams(0).stdout, "started\n");
}

/// Only the time that the action can run counts.
#[test]
fn a_freeze_does_not_count_towards_the_start_grace() {
    let proxy = proxy(&["--start-grace", "3s"]);
    let mut caller = proxy.caller();
    caller.send_request("POST", "/init", json!({"value": {"code": action(true)}}).to_string().as_bytes());
    proxy.wait_for("the action starts", |logs| logs.stdout.contains("started\n"));
    proxy.freeze(std::time::Duration::from_millis(3_300));
    assert!(caller.is_silent_for(std::time::Duration::from_millis(300)), "it cannot be ready yet");
    caller.receive().expect("an answer").check(200, &json!({"ok": true}));
}
