//! Init, run and logs, in almost empty images and under every restriction that a platform may put on a container.

use std::fs;

use serde_json::json;
use testkit::output::SENTINEL;

use crate::engine::Container;
use crate::images::{self, root};

/// The restrictions that a careful operator puts on a container.
const RESTRICTED: &[&str] = &[
    "--read-only",
    "--tmpfs",
    "/work:exec,uid=1000,mode=700",
    "--workdir",
    "/work",
    "--user",
    "1000:1000",
    "--cap-drop",
    "ALL",
    "--security-opt",
    "no-new-privileges",
    "--pids-limit",
    "64",
    "--memory",
    "64m",
];

/// With the proxy as PID 1, and with the engine's init as PID 1.
const EITHER_INIT: [&[&str]; 2] = [&[], &["--init"]];

/// Uploads a static executable and runs it. `docker logs` must show its log in order, with sentinels.
#[track_caller]
fn check_upload(options: &[&str]) {
    let container = Container::serving(images::scratch(), options, &[]);
    container.run(&json!({})).check_error(500, &["no action"]);
    container.init(images::all_purpose_code()).check(200, &json!({"ok": true}));
    let (mut stdout, mut stderr) = (String::new(), String::new());
    for text in ["one", "two", "three"] {
        let response = container.run(&json!({ "say": text }));
        assert_eq!(response.status, 200, "{}", response.text());
        let user = if options.contains(&"--user") { 1000 } else { 0 };
        assert_eq!(response.json()["user"], json!(user));
        let is_pid_1 = !options.contains(&"--init");
        assert_eq!(response.json()["parent"] == json!(1), is_pid_1, "{}", response.text());
        stdout += &format!("out: {text}\n{SENTINEL}\n");
        stderr += &format!("err: {text}\n{SENTINEL}\n");
    }
    container.check_logs(&stdout, &stderr);
    container.docker(&["stop"]);
    assert_eq!(container.wait(), "0");
    container.check_logs(&stdout, &stderr);
}

#[test]
fn an_upload_runs_in_an_otherwise_empty_image() {
    for init in EITHER_INIT {
        check_upload(init);
    }
}

#[test]
fn an_upload_runs_without_any_privilege() {
    for init in EITHER_INIT {
        check_upload(&[RESTRICTED, init].concat());
    }
}

/// With these settings, a silent executable gets ready in time only if the proxy can read `/proc`.
const NEEDS_PROC: &[&str] = &["--env", "PIPELOOP_START_GRACE=1h", "--env", "PIPELOOP_INIT_TIMEOUT=15s"];

#[test]
fn scripts_run_in_a_small_debian_image() {
    for options in [NEEDS_PROC.to_vec(), [NEEDS_PROC, RESTRICTED].concat()] {
        // The first logs on stderr and has a handshake. The second logs on stdout and is silent.
        for (name, logs_on_stdout) in [("hello-careful.sh", false), ("hello-fd3.sh", true)] {
            let code = fs::read(root().join("examples/bash").join(name)).expect("the example can be read");
            let container = Container::serving(images::debian(), &options, &[]);
            container.init(&code).check(200, &json!({"ok": true}));
            let (mut log, mut sentinels) = (String::new(), String::new());
            for name in ["Mike", "Zoë \"☂\""] {
                let greeting = json!({ "hello": format!("Hello, {name}") });
                container.run(&json!({ "name": name })).check(200, &greeting);
                log += &format!("name={name}\n{SENTINEL}\n");
                sentinels += &format!("{SENTINEL}\n");
            }
            if logs_on_stdout {
                container.check_logs(&log, &sentinels);
            } else {
                container.check_logs(&sentinels, &log);
            }
        }
    }
}

#[test]
fn an_action_in_the_image_answers_without_init() {
    let options = &RESTRICTED[..1];
    let container = Container::serving(images::all_purpose(), options, &[]);
    assert_eq!(container.run(&json!({"say": "here"})).status, 200);
    container.check_logs(&format!("out: here\n{SENTINEL}\n"), &format!("err: here\n{SENTINEL}\n"));
}

#[test]
fn an_unwritable_directory_is_reported() {
    for options in [&["--read-only"][..], &["--user", "1000:1000"][..]] {
        let container = Container::serving(images::scratch(), options, &[]);
        for _ in 0..2 {
            let response = container.init(images::all_purpose_code());
            response.check_error(500, &["`/action`", "PIPELOOP_WORKDIR"]);
        }
    }
}

#[test]
fn a_noexec_directory_is_reported() {
    // The engine mounts a tmpfs with `noexec` unless an option says otherwise.
    let container =
        Container::serving(images::scratch(), &["--read-only", "--tmpfs", "/work", "--workdir", "/work"], &[]);
    container.init(images::all_purpose_code()).check_error(502, &["noexec"]);
}
