//! The platform freezes and thaws a container at any time. A freeze runs out no limit: time limits count only the time
//! the proxy was running.

use std::time::Duration;

use serde_json::json;

use crate::support::{Proxy, eventually};

/// A limit, and a longer freeze. The rest of a test takes a small part of the limit.
const LIMIT: &str = "3s";
const FREEZE: Duration = Duration::from_millis(3_300);

/// Version 1: answers with its arguments. `first` runs before the handshake, `each` before an answer.
fn action(first: &str, each: &str) -> String {
    format!(
        "#!/bin/bash\n{first}\necho '{{\"openwhisk\":1}}'\nwhile IFS= read -r line; do\n{each}\nprintf '%s\\n' \"$line\"\ndone\n"
    )
}

const WAITS: &str = "echo begun >&2; until [ -e go ]; do sleep 0.01; done";

fn release(proxy: &Proxy) {
    std::fs::write(proxy.workdir().join("action/1/bin/go"), "").expect("the action's directory exists");
}

#[test]
fn a_freeze_during_an_init_does_not_count() {
    let proxy = Proxy::start(&["--init-timeout", LIMIT], &[]);
    let mut caller = proxy.caller();
    caller.send_request("POST", "/init", json!({"value": {"code": action(WAITS, "")}}).to_string().as_bytes());
    proxy.wait_for("the action starts", |logs| logs.stderr.contains("begun\n"));
    proxy.freeze(FREEZE);
    release(&proxy);
    caller.receive().expect("an answer").check(200, &json!({"ok": true}));
}

#[test]
fn a_freeze_during_a_compilation_does_not_count() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("compile");
    let script = action("", "");
    let compiler = format!("#!/bin/bash\ncd \"$3\"\n{WAITS}\ncat > exec << 'END'\n{script}\nEND\n");
    std::fs::write(&path, compiler).expect("the directory is writable");
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&path, executable).expect("the file is writable");
    let proxy = Proxy::start(&["--init-timeout", LIMIT, "--compiler", path.to_str().expect("text")], &[]);
    let mut caller = proxy.caller();
    caller.send_request("POST", "/init", json!({"value": {"code": "some source"}}).to_string().as_bytes());
    proxy.wait_for("the compiler runs", |logs| logs.stderr.contains("begun\n"));
    proxy.freeze(FREEZE);
    release(&proxy);
    caller.receive().expect("an answer").check(200, &json!({"ok": true}));
}

#[test]
fn a_freeze_during_an_activation_does_not_count() {
    let proxy = Proxy::start(&["--run-timeout", LIMIT], &[]);
    proxy.init(&action("", WAITS)).check(200, &json!({"ok": true}));
    let mut caller = proxy.caller();
    caller.send_request("POST", "/run", br#"{"value":{"n":1}}"#);
    proxy.wait_for("the activation runs", |logs| logs.stderr.contains("begun\n"));
    proxy.freeze(FREEZE);
    release(&proxy);
    caller.receive().expect("an answer").check(200, &json!({"n": 1}));
}

#[test]
fn a_freeze_during_a_request_body_does_not_count() {
    let proxy = Proxy::start(&["--caller-timeout", LIMIT], &[]);
    proxy.init(&action("", "")).check(200, &json!({"ok": true}));
    let mut caller = proxy.caller();
    caller.send(b"POST /run HTTP/1.1\r\nContent-Length: 17\r\n\r\n{\"value\"").expect("half of the request is sent");
    // The proxy has read the half by the time this is answered.
    proxy.caller().call("GET", "/", b"");
    proxy.freeze(FREEZE);
    caller.send(br#":{"n":1}}"#).expect("the rest is sent");
    caller.receive().expect("an answer").check(200, &json!({"n": 1}));
}

/// The log is larger than the pipes, so that the proxy waits for its reader during the freeze.
#[test]
fn a_freeze_during_a_log_write_loses_no_line() {
    let proxy = Proxy::start(&["--log-stall", LIMIT], &[]);
    proxy.init(&action("", "seq 100000 >&2")).check(200, &json!({"ok": true}));
    let mut caller = proxy.caller();
    proxy.while_output_is_unread(|| {
        caller.send_request("POST", "/run", br#"{"value":{"n":1}}"#);
        // The kernel decides how much fits, so the pipe is full once its content stops growing.
        let mut last = 0;
        eventually("the pipe is full", || {
            std::thread::sleep(Duration::from_millis(100));
            let unread = proxy.unread_bytes();
            (unread > 0 && unread == std::mem::replace(&mut last, unread)).then_some(())
        });
        proxy.freeze(FREEZE);
    });
    caller.receive().expect("an answer").check(200, &json!({"n": 1}));
    let log = (1..=100_000).fold(String::new(), |log, n| log + &n.to_string() + "\n");
    assert!(proxy.check_streams(1).stderr == log, "every line is in the log");
}
