//! When an action counts as ready: lines that are nearly a handshake, the acknowledgement, and programs that cannot be
//! seen waiting.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::{Proxy, pipeloop_in};

/// An init that must fail well before its limit of 30 s, with these texts.
#[track_caller]
fn check_refused_at_once(args: &[&str], env: &[(&str, &str)], code: &str, texts: &[&str]) {
    let proxy = Proxy::start(args, env);
    let begun = Instant::now();
    proxy.init(code).check_error(502, texts);
    assert!(begun.elapsed() < Duration::from_secs(15), "at once: {:?}", begun.elapsed());
    assert!(proxy.actions().is_empty(), "it is stopped");
}

/// A shell script that prints this, as `printf` understands it, and then answers lines on stdout.
fn prints(text: &str) -> String {
    format!("#!/bin/bash\nprintf '{text}'\nwhile read -r line; do echo \"$line\"; done\n")
}

/// Lines that are nearly a handshake, as `printf` prints them, and what is said about them.
const NEARLY: [(&str, &str); 12] = [
    (r"{\047openwhisk\047: 1}\n", "it is not JSON"),
    (r"{openwhisk:1}\n", "it is not JSON"),
    (r#"\357\273\277{"openwhisk":1}\n"#, "byte-order mark"),
    (r#"\377\376{\0"\0o\0p\0e\0n\0w\0h\0i\0s\0k\0"\0:\0001\0}\0\n\0"#, "UTF-16"),
    (r#"Loading... {"openwhisk":1}\n"#, "other text is before it"),
    (r#"{"openwhisk":1} ready\n"#, "other text is after it"),
    (r#""{\\"openwhisk\\":1}"\n"#, "quotes"),
    (r#"{"OpenWhisk":1}\n"#, "lower case"),
    (r#"{\n  "openwhisk": 1\n}\n"#, "only a part"),
    (r#"{"openwhisk":1}"#, "the newline at its end is missing"),
    (r#"{"openwhisk":1}\r"#, "the newline at its end is missing"),
    (r#"some log\n{"openwhisk":1}"#, "the newline at its end is missing"),
];

#[test]
fn a_line_that_is_nearly_a_handshake_is_named_with_the_right_one() {
    for (text, fault) in NEARLY {
        let expected = [fault, "expected `{\"openwhisk\":1}`, got `"];
        check_refused_at_once(&[], &[], &prints(text), &expected);
        if !text.starts_with("some log") && !text.starts_with(r"{\n") {
            check_refused_at_once(&["--protocol", "1"], &[], &prints(text), &expected);
        }
        // The exit is still told first.
        let exits = format!("#!/bin/bash\nprintf '{text}'\nexit 3\n");
        let proxy = Proxy::plain();
        proxy.init(&exits).check_error(502, &["exited with status 3", expected[0], expected[1]]);
    }
    let version_2 = prints(r"{\047openwhisk\047: 2}\n");
    check_refused_at_once(&[], &[], &version_2, &["expected `{\"openwhisk\":2}`, got `{'openwhisk': 2}`"]);
}

#[test]
fn white_space_before_a_handshake_is_fine() {
    for protocol in ["auto", "1"] {
        for text in [r#"  {"openwhisk":1}\n"#, r#"\t{"openwhisk":1} \r\n"#, r#"\n\n {"openwhisk":1}\n"#] {
            let proxy = Proxy::with_protocol(protocol);
            proxy.init(&prints(text)).check(200, &json!({"ok": true}));
            proxy.run(&json!({"a": 1})).check(200, &json!({"a": 1}));
            assert_eq!(proxy.check_streams(1).stdout, "");
        }
    }
}

#[test]
fn log_lines_about_a_handshake_are_log_lines() {
    let text = r#"openwhisk\n{"log":{"openwhisk":1}}\nsent {\047openwhisk\047: 1}\n{"openwhisk":1}\n"#;
    let proxy = Proxy::plain();
    proxy.init(&prints(text)).check(200, &json!({"ok": true}));
    proxy.run(&json!({"a": 1})).check(200, &json!({"a": 1}));
    let log = "openwhisk\n{\"log\":{\"openwhisk\":1}}\nsent {'openwhisk': 1}\n";
    assert_eq!(proxy.check_streams(1).stdout, log);
}

#[test]
fn a_handshake_that_is_not_flushed_or_on_stderr_is_named() {
    let unflushed =
        "#!/usr/bin/env python3\nimport sys\nprint('{\"openwhisk\":1}')\nfor line in sys.stdin:\n    print(line)\n";
    let stderr = "#!/bin/bash\necho '{\"openwhisk\":1}' >&2\nwhile read -r line; do echo \"$line\"; done\n";
    for (code, fault) in [(unflushed, "only after the end of its input"), (stderr, "it came on stderr")] {
        let proxy = Proxy::start(&["--protocol", "1", "--init-timeout", "1s"], &[]);
        proxy.init(code).check_error(502, &[fault, "expected `{\"openwhisk\":1}`, got `{\"openwhisk\":1}`"]);
    }
}

#[test]
fn a_check_never_misses_a_handshake_that_it_quotes() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("action");
    for protocol in ["auto", "1"] {
        for (text, _) in NEARLY {
            fs::write(&path, prints(text)).expect("the directory is writable");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("its mode can be set");
            let args = ["check", "--protocol", protocol, "--timeout", "1s", "action"];
            let ended = pipeloop_in(directory.path(), &args, &[], "");
            assert!(!ended.stdout.contains("not sent a handshake"), "{text}: {}", ended.stdout);
            assert!(ended.stdout.contains("{\"openwhisk\":1}"), "{text}: {}", ended.stdout);
            assert!(ended.stdout.contains("✗ protocol"), "{text}: {}", ended.stdout);
        }
    }
}

// The acknowledgement.

const ACK: &[(&str, &str)] = &[("OW_WAIT_FOR_ACK", "1")];

#[test]
fn with_auto_anything_but_an_acknowledgement_or_a_handshake_is_an_error_at_once() {
    for line in ["{\"ok\":false}", "{}", "ready", "[]", "{\"ok\":\"true\"}"] {
        let texts = ["descriptor 3", "acknowledgement", "expected `{\"ok\":true}`", line];
        // It lives on, it waits for its input, or its line has no end.
        for rest in ["sleep 600", "while read -r line; do :; done"] {
            let code = format!("#!/bin/bash\necho loading\nprintf '%s\\n' '{line}' >&3\n{rest}\n");
            check_refused_at_once(&[], ACK, &code, &texts);
        }
        let code = format!("#!/bin/bash\nprintf '%s' '{line}' >&3\nwhile read -r line; do :; done\n");
        check_refused_at_once(&[], ACK, &code, &texts);
    }
    let code = "#!/bin/bash\nprintf '%s' '{\"ok\":true}' >&3\nwhile read -r line; do :; done\n";
    check_refused_at_once(&[], ACK, code, &["no acknowledgement", "the newline at its end is missing"]);
    check_refused_at_once(&["--protocol", "actionloop"], ACK, code, &["the newline at its end is missing"]);
}

#[test]
fn with_auto_an_acknowledgement_or_a_handshake_is_still_accepted() {
    for (line, fd, wants) in [
        ("{\"ok\":true}", 3, json!({"value": {"a": 1}, "activation_id": "test"})),
        ("{\"openwhisk\":1}", 3, json!({"a": 1})),
        ("{\"openwhisk\":1}", 1, json!({"a": 1})),
    ] {
        let code = format!(
            "#!/bin/bash\necho loading >&2\necho '{line}' >&{fd}\nwhile read -r line; do echo \"$line\" >&{fd}; done\n"
        );
        let proxy = Proxy::start::<&str>(&[], ACK);
        proxy.init(&code).check(200, &json!({"ok": true}));
        proxy.run(&json!({"a": 1})).check(200, &wants);
    }
}

#[test]
fn an_exit_before_the_acknowledgement_says_so() {
    for args in [&[][..], &["--protocol", "actionloop"]] {
        let proxy = Proxy::start(args, ACK);
        let code = "#!/bin/bash\necho a log line\necho oops >&2\nexit 3\n";
        let texts = ["exited with status 3", "not sent its acknowledgement `{\"ok\":true}`", "oops"];
        proxy.init(code).check_error(502, &texts);
        let code = "#!/bin/bash\nprintf '{\"ok\":true}' >&3\nexit 3\n";
        proxy.init(code).check_error(502, &["exited with status 3", "the newline at its end is missing"]);
    }
}
