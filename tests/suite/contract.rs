//! Requirements of OpenWhisk's contract and of the protocols beyond the canonical scenarios.

use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::{BAD_ANSWER, Proxy, SENTINEL, action, archive, check_bad_answer, check_detected, now_ms};

/// Version 1: answers with its arguments.
const ECHO: &str = "#!/bin/sh\necho '{\"openwhisk\":1}'\nwhile read -r line; do printf '%s\\n' \"$line\"; done\n";

/// Version 1 in shell: runs `body` for each `$line`; `$n` counts the lines.
fn v1(body: &str) -> String {
    format!("#!/bin/sh\necho '{{\"openwhisk\":1}}'\nn=0\nwhile read -r line; do n=$((n + 1))\n{body}\ndone\n")
}

/// Version 1 in shell: the first activation runs `body`, each later one answers with its number.
fn v1_first(body: &str) -> String {
    v1(&format!("if [ $n = 1 ]; then {body}\nelse echo \"{{\\\"n\\\":$n}}\"; fi"))
}

/// A proxy that is initialised with a working action.
#[track_caller]
fn initialised(protocol: &str, code: &str) -> Proxy {
    let proxy = Proxy::with_protocol(protocol);
    proxy.init(code).check(200, &json!({"ok": true}));
    proxy
}

/// Checks that another init succeeds, as it must after a failed one.
#[track_caller]
fn check_good_init(proxy: &Proxy) {
    proxy.init(ECHO).check(200, &json!({"ok": true}));
    proxy.run(&json!({"good": true})).check(200, &json!({"good": true}));
}

#[test]
fn run_before_init_is_an_error() {
    let proxy = Proxy::plain();
    proxy.run(&json!({})).check_error(500, &["no action has been initialised yet", "/init"]);
    check_good_init(&proxy);
}

#[test]
fn init_errors_go_to_the_log_when_asked_to() {
    let proxy = Proxy::start::<&str>(&[], &[("OW_LOG_INIT_ERROR", "1")]);
    let whole = archive::zip(&[("exec", ECHO.as_bytes())]);
    proxy
        .init_binary(&whole[..whole.len() / 2])
        .check(502, &json!({"error": "The action failed to generate or locate a binary. See logs for details."}));
    let logs = proxy.check_streams(1);
    assert!(logs.both().contains("zip archive is damaged"), "{logs:?}");
    proxy
        .init("#!/bin/sh\necho cannot go on >&2\nexit 3\n")
        .check(502, &json!({"error": "Cannot start action. Check logs for details."}));
    let logs = proxy.check_streams(2);
    assert!(logs.stderr.contains("cannot go on\n"), "{logs:?}");
    assert!(logs.both().contains("status 3"), "{logs:?}");
    check_good_init(&proxy);
}

#[test]
fn a_body_over_the_limit_gets_413() {
    let proxy = Proxy::start(&["--max-body", "1KiB"], &[]);
    proxy.init(ECHO).check(200, &json!({"ok": true}));
    proxy.run(&json!({"a": "x".repeat(2000)})).check_error(413, &["1024 bytes", "PIPELOOP_MAX_BODY"]);
    proxy.run(&json!({"a": 1})).check(200, &json!({"a": 1}));
    // The same with `Content-Length` and in chunks.
    let mut caller = proxy.caller();
    let large = json!({"value": {"a": "x".repeat(2000)}}).to_string();
    caller.call("POST", "/run", large.as_bytes()).check_error(413, &["1024 bytes"]);
    let mut caller = proxy.caller();
    caller.call_in_chunks("/run", &[&large.as_bytes()[..700], &large.as_bytes()[700..]]).check_error(413, &["1024"]);
    proxy.run(&json!({"a": 2})).check(200, &json!({"a": 2}));
    proxy.check_streams(5);
}

#[test]
fn chunked_bodies_are_read() {
    let proxy = Proxy::plain();
    let init = json!({"value": {"code": ECHO, "main": "main", "binary": false}}).to_string();
    let mut caller = proxy.caller();
    let (head, tail) = init.as_bytes().split_at(20);
    caller.call_in_chunks("/init", &[head, tail]).check(200, &json!({"ok": true}));
    caller.call_in_chunks("/run", &[b"{\"value\":{\"a\"", b":1", b"}}"]).check(200, &json!({"a": 1}));
}

#[test]
fn an_empty_body_is_refused() {
    let proxy = Proxy::plain();
    proxy.init_raw("").check_error(400, &["the body of init is empty"]);
    check_good_init(&proxy);
    proxy.run_raw("").check_error(400, &["the body of run is empty"]);
    proxy.run(&json!({"a": 1})).check(200, &json!({"a": 1}));
}

#[test]
fn invalid_base64_is_refused() {
    let proxy = Proxy::plain();
    for code in ["IyEvYmluL3No*", "IyEvYmluL3N", "é"] {
        proxy
            .init_value(&json!({"main": "main", "code": code, "binary": true}))
            .check_error(400, &["not valid base64", "base64 -w0"]);
    }
    check_good_init(&proxy);
}

/// Checks that an upload is refused with these texts, and that another init succeeds.
#[track_caller]
fn check_refused(upload: &[u8], texts: &[&str]) {
    let proxy = Proxy::plain();
    proxy.init_binary(upload).check_error(502, texts);
    proxy.check_streams(0);
    check_good_init(&proxy);
}

#[test]
fn an_empty_archive_is_refused() {
    check_refused(&archive::zip(&[]), &["no file `exec`", "nothing"]);
    check_refused(&archive::tar_gz(&[]), &["no file `exec`", "nothing"]);
}

#[test]
fn a_truncated_archive_is_refused() {
    let bytes: Vec<u8> = (0..20_000_u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()).collect();
    let files: &[(&str, &[u8])] = &[("data", &bytes), ("exec", ECHO.as_bytes())];
    let (zip, tar_gz) = (archive::zip(files), archive::tar_gz(files));
    check_refused(&zip[..zip.len() - 30], &["the zip archive is damaged or incomplete"]);
    check_refused(&zip[..4], &["the zip archive is damaged or incomplete"]);
    check_refused(&tar_gz[..tar_gz.len() / 2], &["the tar.gz archive is damaged or incomplete"]);
}

#[test]
fn an_archive_without_exec_is_refused_with_a_listing() {
    let files: &[(&str, &[u8])] = &[("main.py", b"x"), ("folder/exec", b"#!/bin/sh\n")];
    for upload in [archive::zip(files), archive::tar_gz(files)] {
        check_refused(
            &upload,
            &["no file `exec` at its root", "main.py", "one in the directory `folder`", "cd folder && zip -r"],
        );
    }
}

#[test]
fn source_text_is_refused() {
    check_refused(b"def main(args):\n  return args\n", &["source text", "def main(args):", "#!/usr/bin/env python3"]);
}

#[test]
fn data_is_refused() {
    check_refused(b"\x00\x01\x02\x03", &["00 01 02 03"]);
    check_refused(b"\n \n", &["empty"]);
}

#[test]
fn a_damaged_executable_is_refused() {
    check_refused(b"\x7fELFgarbage", &["cannot start the action"]);
}

#[test]
fn a_missing_interpreter_is_named() {
    check_refused(b"#!/nowhere/interpreter\n", &["cannot start the action", "/nowhere/interpreter"]);
    check_refused(b"#!/usr/bin/env no-such-interpreter\n", &["`no-such-interpreter`", "in no directory of `PATH`"]);
}

#[test]
fn arguments_that_are_not_an_object_are_refused() {
    const TEXT: &str = "The action did not receive a dictionary or array as an argument.";
    for (protocol, code) in [("1", ECHO), ("0", "#!/bin/sh\ncat\n")] {
        let proxy = initialised(protocol, code);
        for (done, value) in [json!(5), json!("text"), json!(true)].iter().enumerate() {
            proxy.run(value).check(404, &json!({ "error": TEXT }));
            proxy.check_streams(done + 1);
        }
        proxy.run(&json!([1, "two"])).check(200, &json!([1, "two"]));
        proxy.check_streams(4);
    }
}

#[test]
fn a_failed_start_leaves_the_proxy_ready_for_another_init() {
    for protocol in ["1", "actionloop", "auto"] {
        let proxy = Proxy::with_protocol(protocol);
        let error = proxy.init("#!/bin/sh\necho the reason >&2\nexit 3\n");
        error.check_error(502, &["status 3", "before it was ready", "the reason"]);
        proxy.run(&json!({})).check_error(500, &["no action"]);
        let code = if protocol == "actionloop" { "#!/bin/sh\ncat >&3\n" } else { ECHO };
        proxy.init(code).check(200, &json!({"ok": true}));
        assert_eq!(proxy.run(&json!({"a": 1})).status, 200);
    }
}

// Version 0.

#[test]
fn v0_arguments_are_argv_1_and_stdin() {
    let proxy = initialised(
        "0",
        "#!/usr/bin/env python3\nimport json, sys\ntext = sys.stdin.read()\n\
         print(json.dumps({\"argv\": [len(argument) for argument in sys.argv[1:]], \"stdin\": len(text), \
         \"same\": sys.argv[1:] == [text]}))\n",
    );
    // Source: execve(2), MAX_ARG_STRLEN: 32 pages, of which the NUL takes a byte.
    let run = |length: usize| proxy.run(&json!({"a": "x".repeat(length - r#"{"a":""}"#.len())}));
    run(100).check(200, &json!({"argv": [100], "stdin": 100, "same": true}));
    run(131_071).check(200, &json!({"argv": [131_071], "stdin": 131_071, "same": true}));
    run(131_072).check(200, &json!({"argv": [], "stdin": 131_072, "same": false}));
    run(1_000_000).check(200, &json!({"argv": [], "stdin": 1_000_000, "same": false}));
}

#[test]
fn v0_the_last_line_is_the_result_whatever_the_status() {
    let proxy = initialised("0", "#!/bin/sh\necho first\necho '{\"not\":\"yet\"}'\necho '{\"x\":1}'\nexit 7\n");
    proxy.run(&json!({})).check(200, &json!({"x": 1}));
    assert_eq!(proxy.check_streams(1).stdout, "first\n{\"not\":\"yet\"}\n");
}

#[test]
fn v0_an_exit_without_a_result_reports_the_status() {
    let proxy = initialised("0", "#!/bin/sh\necho no result\necho trouble >&2\nexit 7\n");
    let response = proxy.run(&json!({}));
    response.check_error(502, &[BAD_ANSWER, "status 7", "trouble"]);
    assert!(response.error().starts_with(BAD_ANSWER));
    let logs = proxy.check_streams(1);
    assert!(logs.both().contains("no result"), "{logs:?}");
    let proxy = initialised("0", "#!/bin/sh\nexit 7\n");
    proxy.run(&json!({})).check_error(502, &["status 7"]);
    let proxy = initialised("0", "#!/bin/sh\n");
    proxy.run(&json!({})).check(502, &json!({ "error": BAD_ANSWER }));
}

#[test]
fn v0_a_missing_program_gets_a_hint() {
    for (code, hint) in [
        ("#!/bin/sh\nno-such-interpreter\n", "hint: the program `no-such-interpreter` is not in the image"),
        ("#!/bin/sh\n/etc\n", "hint: a shell exits with 126 when it finds a program but cannot execute it"),
    ] {
        let proxy = Proxy::with_protocol("0");
        proxy.init(code).check(200, &json!({"ok": true}));
        assert_eq!(proxy.run(&json!({})).status, 502);
        let logs = proxy.check_streams(1);
        assert!(logs.stderr.contains(hint), "{hint:?} in the log");
    }
}

#[test]
fn v0_an_empty_last_line_is_not_a_result() {
    let proxy = initialised("0", "#!/bin/sh\nprintf '{\"x\":1}\\n\\n'\n");
    proxy.run(&json!({})).check(502, &json!({ "error": BAD_ANSWER }));
    proxy.check_streams(1);
}

#[test]
fn v0_a_result_needs_no_newline() {
    let proxy = initialised("0", "#!/bin/sh\nprintf 'log\\n{\"x\":1}'\n");
    proxy.run(&json!({})).check(200, &json!({"x": 1}));
    assert_eq!(proxy.check_streams(1).stdout, "log\n");
}

// Version 1.

#[track_caller]
fn check_bad_v1_answer(body: &str, offending: &str) {
    check_bad_answer("1", &v1_first(body), offending);
}

#[test]
fn v1_answers_that_are_not_an_object_are_errors() {
    check_bad_v1_answer("echo 42", "42");
    check_bad_v1_answer("echo '\"text of it\"'", "text of it");
    check_bad_v1_answer("echo 'no JSON at all'", "no JSON at all");
    check_bad_v1_answer("echo '{\"a\":1} {\"b\":2}'", "{\"b\":2}");
}

#[test]
fn v1_empty_lines_are_ignored() {
    let proxy = initialised("1", &v1("echo; echo; printf '%s\\n\\n' \"$line\""));
    for n in 1..=3 {
        proxy.run(&json!({ "n": n })).check(200, &json!({ "n": n }));
    }
    proxy.check_streams(3);
}

#[test]
fn v1_a_second_line_is_an_error_and_not_the_next_answer() {
    for answer in ["{\\n  \"a\": 1\\n}\\n", "{\"a\":1}\\n{\"b\":2}\\n"] {
        // By default the next activation would get another process, which would start counting again.
        let proxy = Proxy::start(&["--protocol", "1", "--stray", "ignore"], &[]);
        proxy.init(&v1_first(&format!("printf '{answer}'"))).check(200, &json!({"ok": true}));
        let response = proxy.run(&json!({}));
        assert_eq!(response.status, 502, "{answer}: {}", response.text());
        assert!(response.error().starts_with(BAD_ANSWER), "{}", response.error());
        assert!(proxy.check_streams(1).both().contains('{'));
        proxy.run(&json!({})).check(200, &json!({"n": 2}));
        proxy.check_streams(2);
    }
}

#[test]
fn v1_a_bad_answer_does_not_end_the_process() {
    let proxy = initialised("1", &v1_first("echo 42"));
    assert_eq!(proxy.run(&json!({})).status, 502);
    proxy.run(&json!({})).check(200, &json!({"n": 2}));
}

#[test]
fn v1_an_unfinished_line_is_an_error() {
    check_bad_v1_answer("printf '{\"unfinished\":1}'; exit 0", "unfinished");
    check_bad_v1_answer("printf '{\"unfinished\":1}'; exit 3", "unfinished");
}

#[test]
fn v1_an_exit_without_an_answer_reports_the_status() {
    let proxy = initialised("1", &v1("echo the reason >&2; exit 3"));
    proxy.run(&json!({})).check_error(502, &["status 3", "before it answered", "the reason"]);
    proxy.check_streams(1);
    // A new process serves the next activation.
    proxy.run(&json!({})).check_error(502, &["status 3", "before it answered"]);
    proxy.check_streams(2);
    let proxy = initialised("1", &v1("kill -9 $$"));
    proxy.run(&json!({})).check_error(502, &["signal 9", "memory"]);
}

#[test]
fn a_sentinel_printed_by_the_action_is_defused() {
    let code = v1(&format!("echo {SENTINEL} >&2; echo behind >&2; echo '{{}}'"));
    let proxy = initialised("1", &code);
    proxy.run(&json!({})).check(200, &json!({}));
    let logs = proxy.logs();
    assert_eq!(logs.stdout, format!("{SENTINEL}\n"));
    let lines: Vec<_> = logs.stderr.lines().collect();
    assert_eq!(lines.iter().filter(|line| **line == SENTINEL).count(), 1, "{lines:?}");
    assert_eq!(lines[lines.len() - 2..], ["behind", SENTINEL]);
    assert!(lines.len() == 3, "the action's line is kept in a changed form: {lines:?}");
}

#[test]
fn a_last_log_line_without_newline_gets_one() {
    let proxy = initialised("1", &v1("printf 'no newline' >&2; echo '{}'"));
    proxy.run(&json!({})).check(200, &json!({}));
    proxy.run(&json!({})).check(200, &json!({}));
    assert_eq!(proxy.check_streams(2).stderr, "no newline\nno newline\n");
    let proxy = initialised("0", "#!/bin/sh\nprintf 'no newline' >&2\necho '{}'\n");
    proxy.run(&json!({})).check(200, &json!({}));
    assert_eq!(proxy.check_streams(1).stderr, "no newline\n");
}

// Settings and variables.

/// Version 0: answers with the names of its environment variables.
const NAMES: &str = "#!/usr/bin/env python3\nimport json, os\nprint(json.dumps({\"names\": sorted(os.environ)}))\n";

#[test]
fn init_env_sets_the_protocol() {
    let proxy = Proxy::with_protocol("1");
    let init = |protocol: &str| {
        let env = json!({"PIPELOOP_PROTOCOL": protocol, "OTHER": "x"});
        proxy.init_value(&json!({"main": "main", "code": NAMES, "env": env}))
    };
    init("3").check_error(400, &["PIPELOOP_PROTOCOL", "`3`"]);
    init("0").check(200, &json!({"ok": true}));
    let names = proxy.run(&json!({})).json()["names"].clone();
    let names: Vec<String> = serde_json::from_value(names).expect("an array of names");
    assert!(names.iter().any(|name| name == "OTHER"), "{names:?}");
    assert!(!names.iter().any(|name| name.starts_with("PIPELOOP_")), "{names:?}");
}

#[test]
fn settings_of_the_proxy_are_hidden_from_the_action() {
    let env = [
        ("PIPELOOP_PROTOCOL", "0"),
        ("PIPELOOP_MAX_BODY", "1MiB"),
        ("PIPELOOP_UNKNOWN", "x"),
        ("OW_LOG_INIT_ERROR", "1"),
        ("OW_UNKNOWN", "x"),
        ("__OW_API_HOST", "x"),
        ("OWN", "x"),
    ];
    let proxy = Proxy::start::<&str>(&[], &env);
    proxy.init(NAMES).check(200, &json!({"ok": true}));
    let names = proxy.run(&json!({})).json()["names"].clone();
    let names: Vec<String> = serde_json::from_value(names).expect("an array of names");
    assert!(!names.iter().any(|name| name.starts_with("PIPELOOP_") || name.starts_with("OW_")), "{names:?}");
    for kept in ["__OW_API_HOST", "OWN", "PATH"] {
        assert!(names.iter().any(|name| name == kept), "{kept}: {names:?}");
    }
}

#[test]
fn variables_for_actions_are_passed_on_with_their_values() {
    let proxy = Proxy::start::<&str>(&[], &[("OW_WAIT_FOR_ACK", "yes"), ("OW_EXECUTION_ENV", "v1")]);
    let code = "#!/bin/bash\necho '{\"openwhisk\":1}'\n\
         while read -r line; do echo \"{\\\"ack\\\":\\\"$__OW_WAIT_FOR_ACK\\\",\\\"env\\\":\\\"$__OW_EXECUTION_ENV\\\"}\"; done\n";
    let files: [(&str, &[u8]); 2] = [("exec", code.as_bytes()), ("exec.env", b"v1\n")];
    proxy.init_binary(&archive::zip(&files)).check(200, &json!({"ok": true}));
    proxy.run(&json!({})).check(200, &json!({"ack": "yes", "env": "v1"}));
}

// Time.

#[test]
fn an_activation_ends_at_its_deadline() {
    for (protocol, code) in [
        ("1", v1("case $line in *sleep*) sleep 60;; *) printf '%s\\n' \"$line\";; esac")),
        ("0", "#!/bin/sh\ncase $1 in *sleep*) sleep 60;; *) echo \"$1\";; esac\n".to_owned()),
    ] {
        let proxy = initialised(protocol, &code);
        let activation = json!({"value": {"sleep": true}, "deadline": (now_ms() + 1000).to_string()});
        proxy.run_raw(&activation.to_string()).check_error(502, &["deadline", "stopped after"]);
        assert!(now_ms() < activation["deadline"].as_str().unwrap().parse::<u128>().unwrap() + 30_000);
        proxy.check_streams(1);
        proxy.run(&json!({"a": 1})).check(200, &json!({"a": 1}));
        proxy.check_streams(2);
    }
}

#[test]
fn a_deadline_in_the_past_is_ignored() {
    let proxy = initialised("1", ECHO);
    for deadline in [json!("1"), json!(1), json!((now_ms() - 1000).to_string()), json!("soon"), Value::Null] {
        let activation = json!({"value": {"a": 1}, "deadline": deadline});
        proxy.run_raw(&activation.to_string()).check(200, &json!({"a": 1}));
    }
}

// Connections.

#[test]
fn a_caller_that_leaves_takes_no_answer_from_another() {
    let proxy = initialised("1", &v1("echo begun >&2; sleep 0.3; printf '%s\\n' \"$line\""));
    let mut leaving = proxy.caller();
    leaving.send_request("POST", "/run", br#"{"value":{"caller":"first"}}"#);
    proxy.wait_for("the first activation runs", |logs| logs.stderr.contains("begun\n"));
    drop(leaving);
    proxy.run(&json!({"caller": "second"})).check(200, &json!({"caller": "second"}));
    proxy.run(&json!({"caller": "third"})).check(200, &json!({"caller": "third"}));
    proxy.check_streams(3);
}

#[test]
fn idle_connections_are_kept_and_partial_requests_time_out() {
    let proxy = Proxy::start(&["--caller-timeout", "200ms"], &[]);
    proxy.init(ECHO).check(200, &json!({"ok": true}));
    let mut idle = proxy.caller();
    let body = br#"{"value":{"a":1}}"#;
    idle.call("POST", "/run", body).check(200, &json!({"a": 1}));
    assert!(!idle.is_closed_within(Duration::from_millis(700)), "an idle connection was closed");
    idle.call("POST", "/run", body).check(200, &json!({"a": 1}));

    let mut half = proxy.caller();
    half.send(b"POST /run HTTP/1.1\r\nHos").expect("half a head is sent");
    assert!(half.is_closed_within(crate::support::WAIT_LIMIT), "the proxy still waits for the rest of a head");

    let mut half = proxy.caller();
    half.send(b"POST /run HTTP/1.1\r\nHost: test\r\nContent-Length: 17\r\n\r\n{\"value\"")
        .expect("half a body is sent");
    half.receive().expect("an answer to half a body").check_error(408, &["stopped arriving"]);
    idle.call("POST", "/run", body).check(200, &json!({"a": 1}));
}

#[test]
fn sigterm_lets_the_activation_in_flight_finish() {
    for (protocol, code) in [
        ("1", v1("echo begun >&2; sleep 0.5; printf '%s\\n' \"$line\"")),
        ("0", "#!/bin/sh\necho begun >&2\nsleep 0.5\necho \"$1\"\n".to_owned()),
    ] {
        let mut proxy = initialised(protocol, &code);
        let mut caller = proxy.caller();
        caller.send_request("POST", "/run", br#"{"value":{"a":1}}"#);
        proxy.wait_for("the activation runs", |logs| logs.stderr.contains("begun\n"));
        proxy.signal(Signal::TERM);
        caller.receive().expect("an answer").check(200, &json!({"a": 1}));
        assert_eq!(proxy.wait().code(), Some(0));
        proxy.check_streams(1);
    }
}

// Detection.

#[test]
fn auto_a_late_exit_before_the_handshake_is_reported() {
    let proxy = Proxy::plain();
    let response = proxy.init("#!/bin/sh\nsleep 0.3\necho the reason >&2\nexit 3\n");
    response.check_error(502, &["status 3", "before it was ready", "the reason"]);
    check_good_init(&proxy);
}

#[test]
fn auto_init_waits_for_a_slow_start() {
    let proxy = Proxy::plain();
    proxy
        .init("#!/bin/sh\nsleep 1\n: > started\nwhile read -r line; do printf '%s\\n' \"$line\" >&3; done\n")
        .check(200, &json!({"ok": true}));
    assert!(proxy.workdir().join("action/1/bin/started").exists(), "init returned before the action was ready");
    assert_eq!(proxy.run(&json!({"a": 1})).json()["value"], json!({"a": 1}));
}

#[test]
fn auto_a_handshake_may_come_on_descriptor_3() {
    let proxy = Proxy::plain();
    proxy
        .init(
            "#!/bin/sh\necho '{\"openwhisk\":1}' >&3\n\
             while read -r line; do echo log; printf '%s\\n' \"$line\" >&3; done\n",
        )
        .check(200, &json!({"ok": true}));
    // The arguments alone, as in version 1.
    proxy.run(&json!({"a": 1})).check(200, &json!({"a": 1}));
    assert_eq!(proxy.check_streams(1).stdout, "log\n");
}

#[test]
fn an_unsupported_version_is_reported() {
    for protocol in ["auto", "1"] {
        let proxy = Proxy::with_protocol(protocol);
        let response = proxy.init("#!/bin/sh\necho '{\"openwhisk\":9}'\ncat\n");
        response.check_error(502, &["version `9`", "versions 1 and 2", "version 0", "actionloop"]);
        check_good_init(&proxy);
    }
}

#[test]
fn v1_a_wrong_first_line_is_reported() {
    let proxy = Proxy::with_protocol("1");
    let response = proxy.init("#!/bin/sh\necho 'Loading the model'\necho '{\"openwhisk\":1}'\ncat\n");
    response.check_error(502, &["Loading the model", "{\"openwhisk\":1}", "stdout"]);
    check_good_init(&proxy);
}

#[test]
fn auto_lines_before_the_handshake_are_log() {
    let proxy = Proxy::plain();
    let code = ECHO.replacen("echo", "echo 'Loading the model'\necho '{\"hello\":1}'\necho", 1);
    proxy.init(&code).check(200, &json!({"ok": true}));
    proxy.run(&json!({"a": 1})).check(200, &json!({"a": 1}));
    let logs = proxy.check_streams(1);
    assert_eq!(logs.stdout, "Loading the model\n{\"hello\":1}\n");
}

#[test]
fn auto_detects_that_node_is_ready() {
    check_detected(
        "#!/usr/bin/env node\nconst lines = require('readline').createInterface({ input: process.stdin });\n\
         lines.on('line', line => require('fs').writeSync(3, JSON.stringify(JSON.parse(line).value) + '\\n'));\n",
    );
}

#[test]
fn auto_detects_that_python_is_ready() {
    check_detected(&action("actionloop.py").replace("# MAIN", "def main(arguments, context): return arguments"));
}

#[test]
fn auto_detects_that_a_wrapper_is_ready() {
    // The shell waits for another shell, which waits for input.
    check_detected(
        "#!/bin/sh\nsh -c 'n=0; while read -r line; do n=$((n + 1)); echo \"{\\\"n\\\":$n}\" >&3; done'\nexit 0\n",
    );
}
