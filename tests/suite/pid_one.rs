//! The proxy as PID 1, without a container engine: in a PID namespace of its own.
//!
//! `e2e/` tests the same in real containers.

use std::process::{Child, Command, Stdio};

use rustix::process::Signal;
use serde_json::json;

use crate::support::{Proxy, compile, eventually, processes, search_path};

/// The command that starts a program as PID 1: permitted to root, and to other users who may create user namespaces.
/// Without this permission the tests print a notice, and fail in CI.
fn launcher() -> Option<&'static [&'static str]> {
    const AS_ROOT: &[&str] = &["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"];
    const AS_OTHERS: &[&str] =
        &["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child", "--mount-proc"];
    let works = |words: &[&str]| {
        let output = Command::new(words[0]).args(&words[1..]).arg("true").output();
        output.is_ok_and(|output| output.status.success())
    };
    let found = [AS_ROOT, AS_OTHERS].into_iter().find(|words| works(words));
    if found.is_none() {
        assert!(std::env::var_os("CI").is_none(), "`unshare --pid` is not permitted here, and CI needs it");
        eprintln!("NOT TESTED: the proxy as PID 1, since `unshare --pid` is not permitted here");
    }
    found
}

/// A proxy as PID 1 that serves `all_purpose.c`.
fn serving(env: &[(&str, &str)]) -> Option<Proxy> {
    let launcher = launcher()?;
    let directory = tempfile::tempdir().expect("a temporary directory");
    let action = compile("all_purpose.c", directory.path());
    let proxy = Proxy::start_under::<&str>(launcher, &[], env);
    let code = std::fs::read(action).expect("it was compiled");
    proxy.init_binary(&code).check(200, &json!({"ok": true}));
    // The proxy really is PID 1.
    let status = std::fs::read_to_string(format!("/proc/{}/status", proxy.pid())).expect("the proxy is running");
    let inside = status.lines().find_map(|line| line.strip_prefix("NSpid:")).expect("Linux 4.1 or later");
    assert_eq!(inside.split_whitespace().last(), Some("1"), "{inside}");
    Some(proxy)
}

#[test]
fn ten_thousand_orphans_are_reaped() {
    let Some(mut proxy) = serving(&[]) else { return };
    proxy.run(&json!({"orphans": 10_000})).check(200, &json!({"adopted": 10_000}));
    eventually("every orphan is reaped", || (processes::zombies(proxy.pid()) == 0).then_some(()));
    assert_eq!(proxy.actions().len(), 1, "the action is the only child left");
    proxy.run(&json!({"orphans": 1})).check(200, &json!({"adopted": 1}));
    proxy.check_streams(2);
    proxy.stop();
}

/// The kernel delivers to PID 1 only signals it handles, so there is no default action.
#[test]
fn each_termination_signal_stops_the_proxy_in_order() {
    for signal in [Signal::TERM, Signal::INT, Signal::QUIT, Signal::HUP] {
        let Some(mut proxy) = serving(&[]) else { return };
        proxy.signal(signal);
        assert_eq!(proxy.wait().code(), Some(0), "{signal:?}");
        assert_eq!(proxy.logs().stderr, "end of input\n", "{signal:?}: the action saw the end of its input");
    }
}

#[test]
fn other_signals_are_ignored() {
    let Some(mut proxy) = serving(&[]) else { return };
    let before = proxy.actions();
    for signal in [Signal::PIPE, Signal::ALARM, Signal::VTALARM, Signal::PROF, Signal::WINCH, Signal::CONT, Signal::IO]
    {
        proxy.signal(signal);
        assert_eq!(proxy.run(&json!({})).status, 200, "{signal:?}");
    }
    assert_eq!(proxy.actions(), before);
    proxy.stop();
}

#[test]
fn a_second_signal_ends_the_proxy_at_once() {
    let graces = [("PIPELOOP_DRAIN_GRACE", "1h"), ("PIPELOOP_STOP_GRACE", "1h"), ("STUBBORN", "1")];
    let Some(mut proxy) = serving(&graces) else { return };
    proxy.signal(Signal::TERM);
    proxy.wait_for("the orderly shutdown has begun", |logs| logs.stderr.contains("end of input\n"));
    proxy.signal(Signal::QUIT);
    assert_eq!(proxy.wait().code(), Some(0));
}

/// A launcher that is killed on drop, and its child with it.
struct KillOnDrop(Child);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The kernel drops SIGTERM to PID 1 unless it is handled or blocked, so the proxy blocks it from its first line on.
/// The start takes long here, since the proxy searches tens of thousands of directories for a compiler.
#[test]
fn a_signal_before_the_handlers_are_installed_is_not_lost() {
    let Some(launcher) = launcher() else { return };
    let directory = tempfile::tempdir().expect("a temporary directory");
    let mut command = Command::new(launcher[0]);
    command.args(&launcher[1..]).arg(env!("CARGO_BIN_EXE_pipeloop"));
    command.args(["serve", "--host", "127.0.0.1", "--port", "0", "--workdir"]).arg(directory.path());
    command.env("PATH", format!("{}:{}", "/x:".repeat(40_000), search_path()));
    command.env("PIPELOOP_COMPILER", "cat").stderr(Stdio::null());
    let mut child = KillOnDrop(command.spawn().expect("the proxy starts"));
    let parent = i32::try_from(child.0.id()).expect("a pid fits");
    let pid = eventually("the proxy has started", || processes::child_named(parent, "pipeloop"));
    let has_term = |status: &str, set: &str| {
        let mask = status.lines().find_map(|line| line.strip_prefix(set)).expect("Linux reports the mask").trim();
        // Signal N is bit N-1.
        u64::from_str_radix(mask, 16).expect("hexadecimal") & (1 << 14) != 0
    };
    eventually("SIGTERM is blocked", || {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the proxy is running");
        assert!(!has_term(&status, "SigCgt:"), "its handler is installed, and SIGTERM was not blocked before");
        has_term(&status, "SigBlk:").then_some(())
    });
    let pid = rustix::process::Pid::from_raw(pid).expect("a pid is positive");
    rustix::process::kill_process(pid, Signal::TERM).expect("the proxy is running");
    let status = eventually("the proxy ends", || child.0.try_wait().expect("it is a child of the test"));
    assert_eq!(status.code(), Some(0), "in order");
}
