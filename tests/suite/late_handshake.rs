//! Handshakes that come after the process was seen waiting for its input: they decide until the first answer.

use std::fs;

use serde_json::{Value, json};

use crate::support::{Proxy, pipeloop_in};

/// Waits for its input in a thread before the author's code runs, as Erlang does. It sends its handshake when it may,
/// and answers with what it got and whether that is the first start. With `READS` the thread also takes what it gets.
const LATE: &str = r#"#!/usr/bin/env python3
import json, os, select, sys, threading, time
arrived, taken = threading.Event(), []
def watch():
    select.select([0], [], [])
    if "READS" in os.environ:
        taken.append(os.read(0, 65536))
    arrived.set()
threading.Thread(target=watch, daemon=True).start()
when = os.environ.get("WHEN")
if when == "go":
    while not os.path.exists(os.environ["GO"]):
        time.sleep(0.005)
elif when == "activation":
    if not os.path.exists(os.environ["GO"]):
        open(os.environ["GO"], "w").close()
        arrived.wait()
    else:
        time.sleep(0.3)
results = os.fdopen(int(os.environ.get("FD", "1")), "w", buffering=1)
print("starting", file=sys.stderr, flush=True)
if os.environ.get("FD") == "3":
    print("a log line", flush=True)
results.write(os.environ["HANDSHAKE"] + "\n")
if "READS" not in os.environ:
    # It loads something after its handshake, and leaves its input unread meanwhile.
    time.sleep(0.2)
two = json.loads(os.environ["HANDSHAKE"])["openwhisk"] == 2
reads = "READS" in os.environ
while True:
    if reads:
        arrived.wait()
    line = taken.pop() if reads else sys.stdin.buffer.readline()
    reads = False
    if not line:
        break
    got = json.loads(line)
    if two:
        results.write(json.dumps({"id": got["run"], "result": {"got": got["value"]}}) + "\n")
    else:
        results.write(json.dumps({"got": got}) + "\n")
"#;

/// Starts a proxy and an action with these variables, which counts as ready before its handshake.
#[track_caller]
fn started(args: &[&str], variables: &Value) -> Proxy {
    let proxy = Proxy::start(args, &[("PIPELOOP_LOG", "info")]);
    let mut env = variables.clone();
    env["GO"] = json!(proxy.directory().join("go"));
    let value = json!({"name": "late", "main": "main", "code": LATE, "binary": false, "env": env});
    proxy.init_value(&value).check(200, &json!({"ok": true}));
    proxy
}

/// Lets the action send its handshake, and waits until it has.
#[track_caller]
fn release(proxy: &Proxy) {
    fs::write(proxy.directory().join("go"), "").expect("the directory is writable");
}

#[track_caller]
fn check_answers(proxy: &Proxy, sentinels: usize) {
    for n in 0..3 {
        proxy.run(&json!({ "n": n })).check(200, &json!({"got": {"n": n}}));
    }
    let logs = proxy.check_streams(sentinels);
    assert!(!logs.stdout.contains("openwhisk"), "a handshake is no log line: {logs:?}");
    assert!(!logs.stderr.contains("dropped a line"), "{logs:?}");
}

#[test]
fn a_handshake_between_init_and_the_first_activation_decides() {
    for (handshake, fd) in [
        (r#"{"openwhisk":1}"#, "1"),
        (r#"{"openwhisk":1}"#, "3"),
        (r#"{"openwhisk":2}"#, "1"),
        (r#"{"openwhisk":2,"concurrency":4}"#, "3"),
    ] {
        let proxy = started(&[], &json!({"HANDSHAKE": handshake, "FD": fd, "WHEN": "go"}));
        release(&proxy);
        proxy.wait_for("the handshake is seen", |logs| logs.stderr.contains("announced its protocol"));
        check_answers(&proxy, 3);
        let log = proxy.logs().stdout;
        assert_eq!(log.contains("a log line\n"), fd == "3", "{log:?}");
    }
}

#[test]
fn a_handshake_after_the_first_activation_was_sent_decides() {
    for (handshake, fd) in [
        (r#"{"openwhisk":1}"#, "1"),
        (r#"{"openwhisk":1}"#, "3"),
        (r#"{"openwhisk":1,"context":null}"#, "1"),
        (r#"{"openwhisk":2}"#, "1"),
        (r#"{"openwhisk":2,"concurrency":4}"#, "3"),
    ] {
        for args in [&[][..], &["--restart", "never"]] {
            // What was not read is taken back, and the process stays.
            let proxy = started(args, &json!({"HANDSHAKE": handshake, "FD": fd, "WHEN": "activation"}));
            let first = proxy.actions();
            check_answers(&proxy, 3);
            assert_eq!(proxy.actions(), first, "{handshake} on {fd}");
            // What the runtime has read cannot be taken back.
            let variables = json!({"HANDSHAKE": handshake, "FD": fd, "WHEN": "activation", "READS": "1"});
            let proxy = started(args, &variables);
            let first = proxy.actions();
            check_answers(&proxy, 3);
            assert_ne!(proxy.actions(), first, "{handshake} on {fd}");
            let log = proxy.logs().stderr;
            assert!(log.contains("its handshake came after its first activation"), "{log:?}");
        }
    }
}

#[test]
fn a_late_handshake_that_cannot_be_used_fails_the_activation() {
    for (handshake, texts) in [
        (r#"{"openwhisk":9}"#, ["version `9`", "versions 1 and 2"]),
        (r#"{"openwhisk":2,"concurrency":0}"#, ["`concurrency`", "from 1 to 1024"]),
    ] {
        for reads in [json!({}), json!({"READS": "1"})] {
            let mut variables = json!({"HANDSHAKE": handshake, "WHEN": "activation"});
            variables.as_object_mut().expect("an object").extend(reads.as_object().expect("an object").clone());
            let proxy = started(&[], &variables);
            proxy.run(&json!({})).check_error(502, &texts);
        }
    }
}

#[test]
fn after_the_first_answer_a_handshake_is_a_log_line() {
    let code = "#!/bin/bash\nn=0\nwhile read -r line; do\n[ $n = 1 ] && echo '{\"openwhisk\":1}'\n\
                n=$((n+1)); echo \"{\\\"n\\\":$n}\" >&3\ndone\n";
    let proxy = Proxy::plain();
    proxy.init(code).check(200, &json!({"ok": true}));
    for n in 1..=3 {
        proxy.run(&json!({})).check(200, &json!({ "n": n }));
    }
    assert_eq!(proxy.check_streams(3).stdout, "{\"openwhisk\":1}\n");
}

#[test]
fn what_a_caller_sends_is_no_handshake_when_the_action_prints_it() {
    let code = "#!/bin/bash\nwhile read -r line; do\necho '{\"openwhisk\":1}'; echo '{\"openwhisk\":1}' >&3\ndone\n";
    let proxy = Proxy::plain();
    proxy.init(code).check(200, &json!({"ok": true}));
    proxy.run(&json!({"openwhisk": 1})).check(200, &json!({"openwhisk": 1}));
    assert_eq!(proxy.check_streams(1).stdout, "{\"openwhisk\":1}\n");
}

#[test]
fn output_before_the_first_answer_stays_in_its_log() {
    // Lines that could become a handshake, one without its end, and an activation that ends at its limit.
    let code = "#!/bin/bash\nread -r line\necho '{\"a\":1}'; printf '{\"b\"'; sleep 600\n";
    let proxy = Proxy::start(&["--run-timeout", "300ms"], &[]);
    proxy.init(code).check(200, &json!({"ok": true}));
    proxy.run(&json!({})).check_error(502, &["run timeout"]);
    assert_eq!(proxy.check_streams(1).stdout, "{\"a\":1}\n{\"b\"\n");
}

#[test]
fn a_check_recognises_a_late_handshake() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("late");
    fs::write(&path, LATE).expect("the directory is writable");
    std::process::Command::new("chmod").arg("+x").arg(&path).status().expect("chmod");
    let go = directory.path().join("go");
    for (handshake, reads) in [(1, false), (1, true), (2, false), (2, true)] {
        let _ = fs::remove_file(&go);
        let text = format!("{{\"openwhisk\":{handshake}}}");
        let mut env = vec![("HANDSHAKE", &*text), ("WHEN", "activation"), ("GO", go.to_str().expect("UTF-8"))];
        if reads {
            env.push(("READS", "1"));
        }
        let ended = pipeloop_in(directory.path(), &["check", "late"], &env, "");
        let ended = ended.check(0);
        let line = format!("{handshake}, recognised by its handshake on stdout");
        assert!(ended.stdout.contains(&line), "{}", ended.stdout);
    }
}
