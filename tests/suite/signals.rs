//! The table of signals in `src/process/signals.rs`, for a proxy that is not PID 1.

use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::support::{Proxy, compile, eventually, processes};

/// A proxy that serves `all_purpose.c`.
fn serving(launcher: &[&str], protocol: &str) -> Proxy {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let action = compile("all_purpose.c", directory.path());
    let proxy = Proxy::start_under(launcher, &["--protocol", protocol], &[]);
    proxy.init_binary(&std::fs::read(action).expect("it was compiled")).check(200, &json!({"ok": true}));
    proxy
}

#[test]
fn each_termination_signal_stops_the_proxy_in_order() {
    for signal in [Signal::TERM, Signal::INT, Signal::QUIT, Signal::HUP] {
        let mut proxy = serving(&[], "auto");
        let group = proxy.actions()[0];
        proxy.signal(signal);
        assert_eq!(proxy.wait().code(), Some(0), "{signal:?}");
        assert_eq!(proxy.logs().stderr, "end of input\n", "{signal:?}: the action saw the end of its input");
        eventually("no process of the action is left", || processes::group(group).is_empty().then_some(()));
    }
}

#[test]
fn a_proxy_under_nohup_ignores_sighup() {
    let launcher = ["bash", "-c", "trap '' HUP; \"$0\" \"$@\"; exit $?"];
    let mut proxy = serving(&launcher, "auto");
    proxy.signal(Signal::HUP);
    assert_eq!(proxy.run(&json!({})).status, 200);
    proxy.signal(Signal::TERM);
    assert_eq!(proxy.wait().code(), Some(0));
}

#[test]
fn signals_for_the_action_are_forwarded() {
    let proxy = serving(&[], "auto");
    for signal in ["SIGUSR1", "SIGUSR2"] {
        proxy.signal(if signal == "SIGUSR1" { Signal::USR1 } else { Signal::USR2 });
        // The log of an action between two activations goes to the next one.
        eventually("the action got the signal", || {
            let response = proxy.run(&json!({}));
            assert_eq!(response.status, 200, "{}", response.text());
            proxy.logs().stderr.contains(&format!("got {signal}\n")).then_some(())
        });
    }
}

#[test]
fn an_action_killed_by_a_forwarded_signal_is_restarted() {
    let mut proxy = Proxy::plain();
    let loop_of =
        |body: &str| format!("#!/bin/bash\necho '{{\"openwhisk\":1}}'\nwhile read -r line; do {body}; done\n");
    proxy
        .init(&loop_of("echo begun >&2; [[ $line = *wait* ]] && sleep 600; echo '{}'"))
        .check(200, &json!({"ok": true}));
    let group = proxy.actions()[0];
    let mut caller = proxy.caller();
    caller.send_request("POST", "/run", br#"{"value":{"wait":true}}"#);
    proxy.wait_for("the activation runs", |logs| logs.stderr.contains("begun\n"));
    proxy.signal(Signal::USR1);
    caller.receive().expect("an answer").check_error(502, &["signal 10", "SIGUSR1"]);
    eventually("the whole group got the signal", || processes::group(group).is_empty().then_some(()));
    proxy.run(&json!({})).check(200, &json!({}));
    proxy.check_streams(2);
    proxy.stop();
}

#[test]
fn a_stopped_proxy_resumes_on_sigcont() {
    let proxy = serving(&[], "auto");
    proxy.signal(Signal::STOP);
    let mut caller = proxy.caller();
    caller.send_request("POST", "/run", b"{}");
    proxy.signal(Signal::CONT);
    assert_eq!(caller.receive().expect("an answer").status, 200);
}

#[test]
fn run_exits_with_128_plus_the_signal_number() {
    for (signal, name, status) in [
        (Signal::HUP, "SIGHUP", 129),
        (Signal::INT, "SIGINT", 130),
        (Signal::QUIT, "SIGQUIT", 131),
        (Signal::TERM, "SIGTERM", 143),
    ] {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let action = compile("all_purpose.c", directory.path());
        let mut command = Command::new(env!("CARGO_BIN_EXE_pipeloop"));
        command.arg("run").arg(&action).args(["-p", "sleep_ms=600000"]).stdin(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the binary can be started");
        let mut stderr = BufReader::new(child.stderr.take().expect("stderr is piped"));
        let mut text = String::new();
        stderr.read_line(&mut text).expect("a line");
        assert_eq!(text, "begun\n");
        kill_process(Pid::from_child(&child), signal).expect("the process is alive");
        stderr.read_to_string(&mut text).expect("text");
        assert_eq!(child.wait().expect("it is a child of the test").code(), Some(status), "{text}");
        assert!(text.contains(&format!("pipeloop: {name}, stopping the action\n")), "{text}");
    }
}
