//! Promises of `docs/openwhisk.md` and `docs/protocol.md` beyond the canonical scenarios: HTTP, the queue, logs, the
//! process, time limits and shutdown.

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::{Value, json};

use crate::support::{
    Caller, Proxy, SENTINEL, WAIT_LIMIT, check_bad_answer, check_detected, eventually, now_ms, processes,
};

const SENTINEL_DEFUSED: &str = "XXX-THE-END-OF-A-WHISK-ACTIVATION-XXX";

/// Version 1 in shell: runs `body` for each `$line`.
fn pipe_loop(body: &str) -> String {
    format!("#!/bin/bash\necho '{{\"openwhisk\":1}}'\nwhile IFS= read -r line; do\n{body}\ndone\n")
}

/// The actionloop dialect in shell: runs `body` for each `$line`, with the result channel as its stdout.
fn dialect(body: &str) -> String {
    format!("#!/bin/bash\nwhile IFS= read -r line; do {{\n{body}\n}} >&3; done\n")
}

/// Version 1: answers with its arguments.
fn echo() -> String {
    pipe_loop("printf '%s\\n' \"$line\"")
}

/// Version 1: logs `begun`, waits until its directory holds the file `go`, and answers with its arguments.
fn waits() -> String {
    pipe_loop("echo begun >&2; until [ -e go ]; do sleep 0.01; done; printf '%s\\n' \"$line\"")
}

#[track_caller]
fn serving(args: &[&str], code: &str) -> Proxy {
    let proxy = Proxy::start(args, &[]);
    proxy.init(code).check(200, &json!({"ok": true}));
    proxy
}

/// Lets an action of [`waits`] continue.
fn release(proxy: &Proxy) {
    std::fs::write(proxy.workdir().join("action/1/bin/go"), "").expect("the action's directory exists");
}

fn send_run(caller: &mut Caller, value: &Value) {
    caller.send_request("POST", "/run", json!({ "value": value }).to_string().as_bytes());
}

// HTTP.

#[test]
fn every_answer_has_a_length_and_a_type_and_every_error_one_member() {
    let proxy = Proxy::start(&["--max-body", "1KiB", "--max-init-body", "4KiB"], &[]);
    let large = format!("{{\"value\":{{\"code\":\"{}\"}}}}", "x".repeat(5_000));
    let init = json!({"value": {"code": echo()}}).to_string();
    let null = json!({"value": {"code": null, "env": null, "main": null, "binary": null, "name": null}}).to_string();
    // On one connection, so that a leftover of one answer would break the next.
    let mut caller = proxy.caller();
    for (method, path, body, status) in [
        ("GET", "/", "", 404),
        ("POST", "/health", "{}", 404),
        ("GET", "/init", "", 405),
        ("DELETE", "/run", "{}", 405),
        ("POST", "/run", "{}", 500),
        ("POST", "/init", "", 400),
        ("POST", "/init", "[]", 400),
        ("POST", "/init", r#"{"value":{"code":5}}"#, 400),
        ("POST", "/init", r#"{"value":{"code":"x","env":{"A=B":"1"}}}"#, 400),
        ("POST", "/init", r#"{"value":{"code":"x","env":{"A":"1\u0000"}}}"#, 400),
        ("POST", "/init", &null, 403),
        ("POST", "/init", &large, 413),
        ("POST", "/init", r#"{"value":{"code":"source"}}"#, 502),
        ("POST", "/init", &init, 200),
        ("POST", "/init", &init, 403),
        ("POST", "/run", "{", 400),
        ("POST", "/run", r#"{"value":5}"#, 404),
        ("POST", "/run", &large, 413),
        ("POST", "/run", r#"{"value":{"a":1}}"#, 200),
        ("POST", "/run?blocking=true", r#"{"value":{"a":1}}"#, 200),
    ] {
        let response = caller.call(method, path, body.as_bytes());
        response.check_shape();
        assert_eq!(response.status, status, "{method} {path} {body}: {}", response.text());
        let allow = (status == 405).then_some("POST");
        assert_eq!(response.header("allow"), allow, "{method} {path}");
    }
}

#[test]
fn missing_and_null_members_are_accepted() {
    let proxy = Proxy::plain();
    let init = json!({"name": "test", "main": "main", "code": echo(), "binary": false, "env": null});
    proxy.init_value(&init).check(200, &json!({"ok": true}));
    // No api_key, only a value.
    proxy.run_raw(r#"{"value":{"a":1}}"#).check(200, &json!({"a": 1}));
    for body in ["{}", r#"{"value":null}"#, r#"{"activation_id":null,"deadline":null}"#] {
        proxy.run_raw(body).check(200, &json!({}));
    }
    proxy.check_streams(4);
}

#[test]
fn json_passes_through_unchanged() {
    let text = r#"{"b":1.00,"a":1e2,"a":2,"big":123456789012345678901234567890,"\u00e9":"\ud83d\ude00 \/ é","":[ ]}"#;
    let proxy = serving(&[], &echo());
    for body in [format!("{{\"value\":{text}}}"), format!("{{\"z\":0,\r\n\"value\" :\n{text}\n,\"a\":{{}}}}\n\n")] {
        assert_eq!(proxy.run_raw(&body).text(), text);
    }
    // Line ends between tokens become spaces, one for each byte, since a message is one line.
    let response = proxy.run_raw("{\"value\": {\n\"a\" : [1,\r\n2]\n}\n}");
    assert_eq!(response.text(), "{ \"a\" : [1,  2] }");
    let proxy = serving(&["--protocol", "actionloop"], &dialect("printf '%s\\n' \"$line\""));
    let response = proxy.run_raw(&format!("{{\"value\" :\n{text},\r\n\"n\":1.0}}\n"));
    assert_eq!(response.text(), format!("{{\"value\" : {text},  \"n\":1.0}}"));
}

#[test]
fn an_expect_100_continue_header_gets_an_interim_answer() {
    let proxy = serving(&[], &echo());
    let mut caller = proxy.caller();
    let body = r#"{"value":{"a":1}}"#;
    let head =
        format!("POST /run HTTP/1.1\r\nHost: test\r\nExpect: 100-continue\r\nContent-Length: {}\r\n\r\n", body.len());
    caller.send(head.as_bytes()).expect("the head is sent");
    assert_eq!(caller.receive_head().expect("an interim answer").status, 100);
    caller.send(body.as_bytes()).expect("the body is sent");
    caller.receive().expect("an answer").check(200, &json!({"a": 1}));
}

#[test]
fn a_frozen_container_keeps_its_connections() {
    let proxy = serving(&["--caller-timeout", "1s"], &echo());
    let body = r#"{"value":{"a":1}}"#;
    let mut idle = proxy.caller();
    idle.call("POST", "/run", body.as_bytes()).check(200, &json!({"a": 1}));
    let mut half = proxy.caller();
    half.send(b"POST /run HTTP/1.1\r\nHost: te").expect("half a head is sent");
    // The proxy has read the half by the time this is answered.
    proxy.caller().call("GET", "/", b"");
    proxy.signal(Signal::STOP);
    // A freeze is time that passes.
    std::thread::sleep(Duration::from_millis(1_500));
    proxy.signal(Signal::CONT);
    idle.call("POST", "/run", body.as_bytes()).check(200, &json!({"a": 1}));
    half.send(format!("st\r\nContent-Length: {}\r\n\r\n{body}", body.len()).as_bytes()).expect("the rest is sent");
    half.receive().expect("an answer, since a freeze is not the caller's fault").check(200, &json!({"a": 1}));
}

// Init and the queue.

#[test]
fn an_init_during_an_init_is_refused() {
    let proxy = Proxy::plain();
    let slow = echo().replacen('\n', "\necho starting >&2; until [ -e go ]; do sleep 0.01; done\n", 1);
    let init = json!({"value": {"code": slow}}).to_string();
    let mut first = proxy.caller();
    first.send_request("POST", "/init", init.as_bytes());
    proxy.wait_for("the first init is in progress", |logs| logs.stderr.contains("starting\n"));
    proxy.init(&echo()).check_error(403, &["another init is in progress"]);
    proxy.run(&json!({})).check_error(500, &["no action"]);
    release(&proxy);
    first.receive().expect("an answer").check(200, &json!({"ok": true}));
    proxy.run(&json!({"a": 1})).check(200, &json!({"a": 1}));
}

#[test]
fn a_handshake_of_the_wrong_type_is_quoted_in_the_error() {
    for (handshake, expected) in [
        (
            r#"{"openwhisk":1,"context":"yes"}"#,
            r#"`context` of the action's handshake must be `true` or `false`, got `"yes"`"#,
        ),
        (
            r#"{"openwhisk":"1"}"#,
            r#"`openwhisk` of the action's handshake must be a version, which is a whole number, got `"1"`"#,
        ),
        (r#"{"openwhisk":1.5}"#, "got `1.5`"),
    ] {
        for (protocol, channel) in [("auto", 1), ("auto", 3), ("1", 1)] {
            let proxy = Proxy::with_protocol(protocol);
            let code = format!("#!/bin/bash\necho '{handshake}' >&{channel}\ncat\n");
            proxy.init(&code).check_error(502, &[expected, &format!(": `{handshake}`"), "hint: print"]);
            assert_eq!(proxy.check_streams(0).both(), "", "the handshake is not logged");
        }
    }
}

#[test]
fn json_without_a_version_before_the_handshake_is_logged() {
    let line = r#"{"context":"yes","ok":1,"level":"info"}"#;
    let proxy = serving(&[], &echo().replacen('\n', &format!("\necho '{line}'\n"), 1));
    proxy.run(&json!({"a": 1})).check(200, &json!({"a": 1}));
    assert_eq!(proxy.check_streams(1).stdout, format!("{line}\n"));
}

#[test]
fn an_init_goes_on_when_its_caller_leaves() {
    let proxy = Proxy::plain();
    let slow = echo().replacen('\n', "\necho starting >&2; until [ -e go ]; do sleep 0.01; done\n", 1);
    let mut caller = proxy.caller();
    caller.send_request("POST", "/init", json!({"value": {"code": slow}}).to_string().as_bytes());
    proxy.wait_for("the init is in progress", |logs| logs.stderr.contains("starting\n"));
    drop(caller);
    release(&proxy);
    let response =
        eventually("the init is done", || Some(proxy.run(&json!({"a": 1}))).filter(|response| response.status != 500));
    response.check(200, &json!({"a": 1}));
    assert_eq!(proxy.actions().len(), 1);
}

#[test]
fn a_full_queue_refuses_with_429_and_without_sentinels() {
    let proxy = serving(&["--queue", "1"], &waits());
    let mut working = proxy.caller();
    send_run(&mut working, &json!({"n": 1}));
    proxy.wait_for("the first activation runs", |logs| logs.stderr.contains("begun\n"));
    let mut waiting = proxy.caller();
    send_run(&mut waiting, &json!({"n": 2}));
    // The second is in the queue once a third is refused.
    let refused = eventually("the queue is full", || {
        let mut third = proxy.caller();
        send_run(&mut third, &json!({"n": 3}));
        // An activation that is queued stays silent: its caller leaves, and it never starts.
        (!third.is_silent_for(Duration::from_millis(200))).then(|| third.receive().expect("an answer"))
    });
    refused.check_shape();
    refused.check_error(429, &["PIPELOOP_QUEUE"]);
    assert_eq!(refused.header("retry-after"), Some("1"));
    release(&proxy);
    working.receive().expect("an answer").check(200, &json!({"n": 1}));
    // The second activation is refused or gets its own answer.
    let second = waiting.receive().expect("an answer");
    assert!(second.status == 429 || second.json() == json!({"n": 2}), "{}", second.text());
    eventually("the queue has a free place again", || {
        Some(proxy.run(&json!({"n": 4}))).filter(|response| response.status == 200)
    })
    .check(200, &json!({"n": 4}));
}

#[test]
fn an_activation_whose_caller_leaves_the_queue_never_starts() {
    let proxy = serving(&[], &waits());
    let mut working = proxy.caller();
    send_run(&mut working, &json!({"n": 1}));
    proxy.wait_for("the first activation runs", |logs| logs.stderr.contains("begun\n"));
    let mut leaver = proxy.caller();
    send_run(&mut leaver, &json!({"n": 2}));
    // By the time each of these is answered, the proxy has seen every earlier event.
    proxy.caller().call("GET", "/", b"");
    drop(leaver);
    proxy.caller().call("GET", "/", b"");
    release(&proxy);
    working.receive().expect("an answer").check(200, &json!({"n": 1}));
    proxy.run(&json!({"n": 3})).check(200, &json!({"n": 3}));
    assert_eq!(proxy.check_streams(2).stderr, "begun\nbegun\n");
}

#[test]
fn a_deadline_that_passes_in_the_queue_affects_no_other_activation() {
    let proxy = serving(&[], &waits());
    let before = proxy.actions();
    let mut working = proxy.caller();
    send_run(&mut working, &json!({"n": 1}));
    proxy.wait_for("the first activation runs", |logs| logs.stderr.contains("begun\n"));
    // Its caller gets the error at its deadline, however long the activation before it takes.
    let activation = json!({"value": {"n": 2}, "deadline": now_ms() + 300});
    let mut late = proxy.caller();
    late.send_request("POST", "/run", activation.to_string().as_bytes());
    let answered = !late.is_silent_for(Duration::from_secs(5));
    release(&proxy);
    late.receive().expect("an answer").check_error(502, &["deadline"]);
    working.receive().expect("an answer").check(200, &json!({"n": 1}));
    proxy.run(&json!({"n": 3})).check(200, &json!({"n": 3}));
    assert_eq!(proxy.actions(), before, "the process is kept, since it did nothing wrong");
    assert!(answered, "the caller gets the error while the first activation still runs");
}

// Answers.

/// Runs `body` in the first activation of the dialect; `offending` must appear in the log.
#[track_caller]
fn check_bad_dialect_answer(body: &str, offending: &str) {
    let code = dialect(&format!("if [ -z \"$second\" ]; then second=1; {body}\nelse echo '{{\"good\":1}}'; fi"));
    check_bad_answer("actionloop", &code, offending);
}

#[test]
fn actionloop_answers_that_are_not_an_object_are_errors() {
    check_bad_dialect_answer("echo 42", "`42`");
    check_bad_dialect_answer("echo '\"text of it\"'", "text of it");
    check_bad_dialect_answer("echo 'no JSON at all'", "no JSON at all");
    // Not the shell's own printf, which writes each line separately.
    check_bad_dialect_answer("env printf '{\"a\":1}\\n{\"b\":2}\\n'", "{\"b\":2}");
    check_bad_dialect_answer("env printf '{\\n \"a\":1\\n}\\n'", "`{`");
    check_bad_dialect_answer("printf '{\"unfinished\":1}'; exit 0", "unfinished");
    check_bad_dialect_answer("printf '{\"unfinished\":1}'; exit 3", "status 3");
    check_bad_dialect_answer("printf '{\"a\":\"\\377\"}\\n'", "UTF-8");
}

#[test]
fn actionloop_an_exit_without_an_answer_is_reported_with_its_status() {
    let proxy = Proxy::with_protocol("actionloop");
    proxy.init(&dialect("echo the reason >&2; exit 3")).check(200, &json!({"ok": true}));
    for done in 1..=2 {
        proxy.run(&json!({})).check_error(502, &["status 3", "before it answered", "the reason"]);
        proxy.check_streams(done);
    }
}

#[test]
fn an_action_may_answer_while_it_still_reads() {
    // `cat` writes as it reads: if the proxy wrote everything before it read, both would wait forever.
    let large = json!({"text": "x".repeat(8 * 1024 * 1024)});
    for (protocol, code) in [("1", "#!/bin/sh\necho '{\"openwhisk\":1}'\nexec cat\n"), ("0", "#!/bin/sh\nexec cat\n")] {
        let proxy = Proxy::with_protocol(protocol);
        proxy.init(code).check(200, &json!({"ok": true}));
        for _ in 0..2 {
            let response = proxy.run(&large);
            assert!(response.json() == large, "{}: {} bytes", response.status, response.body.len());
        }
        proxy.check_streams(2);
    }
}

#[test]
fn an_answer_over_the_limit_is_an_error_and_the_next_one_works() {
    for protocol in ["0", "1", "actionloop"] {
        let long = "head -c 20000 /dev/zero | tr '\\0' x";
        let body =
            format!("case \"$line\" in *long*) printf '{{\"a\":\"'; {long}; echo '\"}}';; *) echo '{{}}';; esac");
        let code = match protocol {
            "0" => format!("#!/bin/bash\nline=$1\n{body}\n"),
            "1" => pipe_loop(&body),
            _ => dialect(&body),
        };
        let proxy = Proxy::start(&["--max-result", "10KiB", "--protocol", protocol], &[]);
        proxy.init(&code).check(200, &json!({"ok": true}));
        proxy.run(&json!({"how": "long"})).check_error(502, &["10240 bytes", "PIPELOOP_MAX_RESULT"]);
        proxy.run(&json!({})).check(200, &json!({}));
        proxy.check_streams(2);
    }
}

// Logs.

#[test]
fn a_sentinel_written_in_two_parts_is_defused() {
    let body = "printf XXX_THE_END_OF_A_WHISK >&2; sleep 0.2; echo _ACTIVATION_XXX >&2; \
                printf 'XXX_THE_END_OF_A_WHISK_ACT' >&2; echo '{}'";
    let proxy = serving(&[], &pipe_loop(body));
    for done in 1..=2 {
        proxy.run(&json!({})).check(200, &json!({}));
        let log = format!("{SENTINEL_DEFUSED}\nXXX_THE_END_OF_A_WHISK_ACT\n").repeat(done);
        assert_eq!(proxy.check_streams(done).stderr, log);
    }
}

#[test]
fn a_log_line_of_any_length_passes_whole() {
    const LENGTH: usize = 300_000;
    let long = format!("head -c {LENGTH} /dev/zero | tr '\\0'");
    for (protocol, code) in [
        ("0", format!("#!/bin/bash\n{long} e >&2; echo >&2; {long} o; echo; echo '{{}}'\n")),
        (
            "actionloop",
            format!("#!/bin/bash\nwhile read -r l; do {long} e >&2; {long} o; echo; echo '{{}}' >&3; done\n"),
        ),
    ] {
        let proxy = Proxy::with_protocol(protocol);
        proxy.init(&code).check(200, &json!({"ok": true}));
        for done in 1..=2 {
            proxy.run(&json!({})).check(200, &json!({}));
            let logs = proxy.check_streams(done);
            assert!(logs.stdout == format!("{}\n", "o".repeat(LENGTH)).repeat(done), "{} bytes", logs.stdout.len());
            assert!(logs.stderr == format!("{}\n", "e".repeat(LENGTH)).repeat(done), "{} bytes", logs.stderr.len());
        }
    }
}

/// Version 1: logs this many bytes and answers with its arguments.
fn logs_bytes(count: usize) -> String {
    pipe_loop(&format!("head -c {count} /dev/zero | tr '\\0' x >&2; printf '%s\\n' \"$line\""))
}

#[test]
fn an_unread_log_does_not_block_an_answer_forever() {
    // Less than the action's pipe holds, more than the proxy's own pipe has left after the first.
    let proxy = serving(&["--log-stall", "300ms"], &logs_bytes(60_000));
    proxy.while_output_is_unread(|| {
        for n in 0..3 {
            proxy.run(&json!({ "n": n })).check(200, &json!({ "n": n }));
        }
    });
}

#[test]
fn an_unread_log_does_not_block_the_action_forever() {
    // More than all pipes hold: the action blocks in the middle of its log, and must not block until the run timeout.
    let proxy = serving(&["--log-stall", "300ms", "--run-timeout", "5s"], &logs_bytes(500_000));
    proxy.while_output_is_unread(|| proxy.run(&json!({"n": 1})).check(200, &json!({"n": 1})));
}

// The process.

#[test]
fn an_action_inherits_its_pipes_and_no_other_descriptor() {
    let code = r#"#!/usr/bin/env python3
import json, os, sys
def links():
    for fd in sorted(os.listdir("/proc/self/fd"), key=int):
        try: yield int(fd), os.readlink(f"/proc/self/fd/{fd}").split(":")[0]
        except FileNotFoundError: pass  # that of the listing itself
report = json.dumps({
    "links": dict(links()), "leader": os.getpgid(0) == os.getpid(), "arguments": len(sys.argv) - 1,
    "directory": os.getcwd() == os.path.dirname(os.path.realpath(__file__)),
})
"#;
    let three = json!({"0": "pipe", "1": "pipe", "2": "pipe"});
    let four = json!({"0": "pipe", "1": "pipe", "2": "pipe", "3": "pipe"});

    let kept = "print('{\"openwhisk\":1}', flush=True)\nfor line in sys.stdin: print(report, flush=True)\n";
    let proxy = serving(&[], &format!("{code}{kept}"));
    let expected = json!({"links": four, "leader": true, "arguments": 0, "directory": true});
    proxy.run(&json!({})).check(200, &expected);

    // No descriptor that the proxy opened for its callers meanwhile, either.
    let proxy = serving(&["--protocol", "0"], &format!("{code}print(report)\n"));
    let _open: Vec<Caller> = (0..3).map(|_| proxy.caller()).collect();
    let expected = json!({"links": three, "leader": true, "arguments": 1, "directory": true});
    proxy.run(&json!({})).check(200, &expected);
}

#[test]
fn an_action_starts_with_no_signal_blocked_and_the_default_sigpipe() {
    // Other ignored signals are not checked: glibc's `posix_spawn`, which may have started the proxy, ignores two
    // signals of its own.
    let code = "#!/bin/bash\nwhile read -r name mask; do case $name in SigBlk:) blocked=$mask;; SigIgn:) ignored=$mask;; esac\n\
                done < /proc/self/status\nprintf '{\"blocked\":\"%s\",\"sigpipe\":%d}\\n' $blocked $((0x$ignored >> 12 & 1))\n";
    let proxy = serving(&["--protocol", "0"], code);
    proxy.run(&json!({})).check(200, &json!({"blocked": "0000000000000000", "sigpipe": 0}));
}

#[test]
fn descriptors_that_the_proxy_inherits_are_hidden_from_the_action() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let script = directory.path().join("action");
    std::fs::write(&script, "#!/bin/sh\n[ -e /proc/self/fd/9 ] && echo '{\"seen\":true}' || echo '{\"seen\":false}'\n")
        .expect("the directory is writable");
    let output = std::process::Command::new("bash")
        .args(["-c", "chmod +x action; exec 9< action; exec \"$0\" run ./action --protocol 0"])
        .arg(env!("CARGO_BIN_EXE_pipeloop"))
        .current_dir(directory.path())
        .output()
        .expect("bash is installed");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "{\"seen\":false}\n", "{output:?}");
}

#[test]
fn auto_detects_node_that_listens_for_data() {
    check_detected(
        "#!/usr/bin/env node\nlet text = '';\nprocess.stdin.on('data', data => {\n  text += data;\n\
         \n  for (let at; (at = text.indexOf('\\n')) >= 0; text = text.slice(at + 1))\n    \
         require('fs').writeSync(3, JSON.stringify(JSON.parse(text.slice(0, at)).value) + '\\n');\n});\n",
    );
}

#[test]
fn auto_detects_python_started_by_a_shell() {
    check_detected(
        "#!/bin/sh\ncat > action.py <<'END'\nimport json, sys, os\nresults = os.fdopen(3, 'w')\n\
         for line in sys.stdin: print(json.dumps(json.loads(line)['value']), file=results, flush=True)\nEND\n\
         python3 action.py\nexit $?\n",
    );
}

#[test]
fn auto_detects_every_way_to_wait_for_input() {
    let program = |wait: &str| {
        format!(
            "#!/usr/bin/env python3\nimport asyncio, json, os, select, sys, threading\n\
             def answer():\n    line = sys.stdin.readline()\n    if not line: os._exit(0)\n    \
             os.write(3, (json.dumps(json.loads(line)['value']) + '\\n').encode())\n{wait}\n"
        )
    };
    check_detected(&program("while True:\n    select.select([0], [], [])\n    answer()"));
    check_detected(&program(
        "p = select.poll()\np.register(0, select.POLLIN)\nwhile True:\n    p.poll()\n    answer()",
    ));
    check_detected(&program(
        "e = select.epoll()\ne.register(0, select.EPOLLIN)\nwhile True:\n    e.poll()\n    answer()",
    ));
    check_detected(&program("def loop():\n    while True: answer()\nthreading.Thread(target=loop).start()"));
    check_detected(&program(
        "async def main():\n    asyncio.get_running_loop().add_reader(0, answer)\n    \
         await asyncio.Event().wait()\nasyncio.run(main())",
    ));
}

#[test]
fn auto_refuses_an_action_that_neither_writes_nor_reads() {
    let proxy = Proxy::start(&["--init-timeout", "400ms"], &[]);
    proxy.init("#!/bin/sh\necho loading >&2\nsleep 600\n").check_error(502, &["400 ms", "loading"]);
    assert!(proxy.actions().is_empty(), "it was stopped");
    proxy.init(&echo()).check(200, &json!({"ok": true}));
}

#[test]
fn v0_leftover_processes_delay_no_answer_and_are_killed() {
    let proxy = serving(&["--protocol", "0"], "#!/bin/bash\nsleep 600 &\necho \"{\\\"group\\\":$$}\"\n");
    for done in 1..=2 {
        let response = proxy.run(&json!({}));
        assert_eq!(response.status, 200, "{}", response.text());
        let group = response.json()["group"].as_i64().and_then(|group| i32::try_from(group).ok()).expect("a pid");
        eventually("the leftover process is gone", || processes::group(group).is_empty().then_some(()));
        proxy.check_streams(done);
    }
}

// Time limits.

#[test]
fn a_deadline_stops_the_whole_process_group() {
    let proxy =
        serving(&[], &pipe_loop("case $line in *sleep*) sleep 600 & sleep 600;; *) printf '%s\\n' \"$line\";; esac"));
    let before = proxy.actions();
    assert_eq!(before.len(), 1, "{before:?}");
    let activation = json!({"value": {"sleep": true}, "deadline": now_ms() + 500});
    proxy.run_raw(&activation.to_string()).check_error(502, &["deadline"]);
    proxy.check_streams(1);
    eventually("the whole group is gone", || processes::group(before[0]).is_empty().then_some(()));
    proxy.run(&json!({"a": 1})).check(200, &json!({"a": 1}));
    assert_ne!(proxy.actions(), before, "another process answers");
}

#[test]
fn time_spent_frozen_does_not_count() {
    let proxy = serving(&["--run-timeout", "1s"], &waits());
    let mut working = proxy.caller();
    send_run(&mut working, &json!({"n": 1}));
    proxy.wait_for("the activation runs", |logs| logs.stderr.contains("begun\n"));
    let action = Pid::from_raw(proxy.actions()[0]).expect("a pid is positive");
    proxy.signal(Signal::STOP);
    kill_process_group(action, Signal::STOP).expect("the action is alive");
    // A freeze is time that passes.
    std::thread::sleep(Duration::from_millis(1_500));
    release(&proxy);
    // The proxy first, which is the harder order.
    proxy.signal(Signal::CONT);
    kill_process_group(action, Signal::CONT).expect("the action is alive");
    working.receive().expect("an answer").check(200, &json!({"n": 1}));
    assert_eq!(proxy.actions(), [action.as_raw_nonzero().get()], "the same process continues");
}

// Shutdown.

#[test]
fn at_shutdown_an_action_sees_end_of_file_and_may_finish() {
    let finishes = "echo 'leaving' > end; trap 'echo terminated >> end' TERM; sleep 0.3; echo 'left' >> end\n";
    for code in [format!("{}{finishes}", echo()), format!("{}{finishes}", dialect("echo '{}'"))] {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let end = directory.path().join("end");
        // Uploaded files are removed at shutdown; these are not.
        let mut proxy = Proxy::plain();
        let code = code.replacen('\n', &format!("\ncd {}\n", directory.path().display()), 1);
        proxy.init(&code).check(200, &json!({"ok": true}));
        assert_eq!(proxy.run(&json!({})).status, 200);
        assert!(!end.exists());
        proxy.stop();
        assert_eq!(std::fs::read_to_string(&end).expect("the action saw its end"), "leaving\nleft\n");
        assert!(!proxy.workdir().join("action/1").exists(), "the unpacked files are removed");
    }
}

#[test]
fn at_shutdown_an_action_that_does_not_exit_is_killed() {
    // It ignores the end of its input and SIGTERM, and so does its child.
    let stubborn =
        format!("{}while :; do sleep 600; done\n", echo()).replacen('\n', "\ntrap '' TERM\nsleep 600 &\n", 1);
    let mut proxy = serving(&["--stop-grace", "200ms"], &stubborn);
    assert_eq!(proxy.run(&json!({})).status, 200);
    proxy.stop();
}

#[test]
fn at_shutdown_new_connections_are_refused_and_kept_ones_get_503() {
    let mut proxy = serving(&["--drain-grace", "20s"], &waits());
    let mut kept = proxy.caller();
    kept.call("GET", "/", b"");
    let mut working = proxy.caller();
    send_run(&mut working, &json!({"n": 1}));
    proxy.wait_for("the activation runs", |logs| logs.stderr.contains("begun\n"));
    let mut queued = proxy.caller();
    send_run(&mut queued, &json!({"n": 2}));
    await_requests(&mut kept);
    proxy.signal(Signal::TERM);
    eventually("a new connection is refused", || {
        Caller::connect(proxy.port()).err().map(|error| assert_eq!(error.kind(), ErrorKind::ConnectionRefused))
    });
    // 503 tells the platform to run the activation elsewhere.
    send_run(&mut kept, &json!({"n": 3}));
    let refused = kept.receive().expect("an answer");
    refused.check_shape();
    refused.check_error(503, &["shutting down"]);
    assert_eq!(refused.header("connection"), Some("close"));
    assert!(kept.is_closed_within(WAIT_LIMIT), "the connection is closed after that");
    release(&proxy);
    working.receive().expect("an activation in flight is finished").check(200, &json!({"n": 1}));
    queued.receive().expect("an activation in the queue runs").check(200, &json!({"n": 2}));
    assert_eq!(proxy.wait().code(), Some(0));
    proxy.check_streams(2);
}

/// Waits until the proxy has read every request that was sent by now, of which it may read some after this one.
fn await_requests(caller: &mut Caller) {
    caller.call("GET", "/", b"");
    caller.call("GET", "/", b"");
}

/// Starts as many activations of an action like [`waits`] as run at once, queues the others, and sends SIGTERM.
fn drain(args: &[&str], code: &str, at_once: usize, total: usize) -> (Proxy, Vec<Caller>) {
    let proxy = serving(args, code);
    let mut kept = proxy.caller();
    let mut callers = Vec::new();
    for n in 0..total {
        let mut caller = proxy.caller();
        send_run(&mut caller, &json!({ "n": n }));
        callers.push(caller);
        if n < at_once {
            proxy.wait_for("the activation runs", |logs| logs.stderr.matches("begun\n").count() > n);
        }
    }
    await_requests(&mut kept);
    proxy.signal(Signal::TERM);
    eventually("the shutdown has begun", || Caller::connect(proxy.port()).err());
    (proxy, callers)
}

/// Issue 12.
#[test]
fn at_shutdown_the_queue_is_worked_off() {
    let wait = "until [ -e go ]; do sleep 0.01; done";
    // An activation that crashes costs no other its answer.
    let crashes =
        pipe_loop(&format!("echo begun >&2; {wait}; case $line in *1*) exit 3;; esac; printf '%s\\n' \"$line\""));
    for (code, crashed) in [(waits(), None), (crashes, Some(1))] {
        let (mut proxy, callers) = drain(&["--drain-grace", "20s"], &code, 1, 5);
        release(&proxy);
        for (n, mut caller) in callers.into_iter().enumerate() {
            let answer = caller.receive().expect("an answer");
            if crashed == Some(n) {
                answer.check_error(502, &["status 3"]);
            } else {
                answer.check(200, &json!({ "n": n }));
            }
        }
        assert_eq!(proxy.wait().code(), Some(0));
        proxy.check_streams(5);
    }
}

/// Issue 12.
#[test]
fn at_shutdown_the_queue_of_version_2_is_worked_off() {
    let code = "#!/usr/bin/env python3\n\
        import json, os, sys, threading, time\n\
        def work(number, n):\n    \
            print('begun', file=sys.stderr, flush=True)\n    \
            while not os.path.exists('go'): time.sleep(0.01)\n    \
            os.write(1, (json.dumps({'id': number, 'result': {'n': n}}) + '\\n').encode())\n\
        os.write(1, b'{\"openwhisk\":2,\"concurrency\":2}\\n')\n\
        for line in sys.stdin:\n    \
            run = json.loads(line)\n    \
            threading.Thread(target=work, args=(run['run'], run['value']['n']), daemon=True).start()\n";
    let (mut proxy, callers) = drain(&["--drain-grace", "20s"], code, 2, 7);
    release(&proxy);
    for (n, mut caller) in callers.into_iter().enumerate() {
        caller.receive().expect("an answer").check(200, &json!({ "n": n }));
    }
    assert_eq!(proxy.wait().code(), Some(0));
    proxy.check_streams(7);
}

/// Issue 12.
#[test]
fn what_is_left_in_the_queue_when_the_drain_grace_ends_gets_503() {
    for second_signal in [false, true] {
        let grace = if second_signal { "1h" } else { "200ms" };
        let (mut proxy, callers) = drain(&["--drain-grace", grace], &waits(), 1, 3);
        if second_signal {
            proxy.signal(Signal::TERM);
        }
        for (n, mut caller) in callers.into_iter().enumerate() {
            let answer = caller.receive().expect("an answer");
            // 503 tells the platform to run the activation elsewhere.
            if n == 0 { answer.check_error(502, &[]) } else { answer.check_error(503, &["shutting down"]) }
        }
        assert_eq!(proxy.wait().code(), Some(0));
        proxy.check_streams(1);
    }
}

// Failures.

/// The platform reads the log of a failed activation once, at its answer. Issue 12.
#[test]
fn a_failure_is_answered_a_moment_after_its_sentinels() {
    let delay = Duration::from_millis(800);
    let fails = pipe_loop("case $line in *ok*) echo '{}';; *) exit 3;; esac");
    let settings = [("PIPELOOP_FAILURE_DELAY", "800ms")];
    let proxy = Proxy::start::<&str>(&[], &settings);
    proxy.init(&fails).check(200, &json!({"ok": true}));
    let begun = Instant::now();
    proxy.run(&json!({"do": "ok"})).check(200, &json!({}));
    assert!(begun.elapsed() < delay, "{:?}", begun.elapsed());
    let check = |sentinels: usize, send: &dyn Fn(&mut Caller)| {
        let mut caller = proxy.caller();
        let begun = Instant::now();
        send(&mut caller);
        proxy.wait_for("its log has ended", |logs| logs.stderr.matches(SENTINEL).count() == sentinels);
        assert!(caller.is_silent_for(Duration::from_millis(100)), "the answer leaves later");
        caller.receive().expect("an answer").check_error(502, &["status 3"]);
        assert!(begun.elapsed() >= delay, "{:?}", begun.elapsed());
    };
    check(2, &|caller| send_run(caller, &json!({})));
    // Past the fast path.
    check(3, &|caller| caller.send_run("text/event-stream", &json!({})));
    let begun = Instant::now();
    let proxy = Proxy::start::<&str>(&[], &settings);
    proxy.init("#!/bin/sh\necho reason >&2\nexit 3\n").check_error(502, &["status 3"]);
    assert!(begun.elapsed() >= delay, "{:?}", begun.elapsed());
}

/// Issue 12.
#[test]
fn requests_that_reach_no_action_are_answered_at_once() {
    let begun = Instant::now();
    let proxy = Proxy::start(&["--failure-delay", "1h", "--queue", "0"], &[]);
    proxy.run(&json!({})).check_error(500, &[]);
    proxy.init_raw("nonsense").check_error(400, &[]);
    proxy.init(&waits()).check(200, &json!({"ok": true}));
    proxy.init(&waits()).check_error(403, &[]);
    proxy.run_raw("nonsense").check_error(400, &[]);
    proxy.caller().call("GET", "/run", b"").check_error(405, &[]);
    proxy.caller().call("POST", "/", b"").check_error(404, &[]);
    let mut working = proxy.caller();
    send_run(&mut working, &json!({"n": 1}));
    proxy.wait_for("the activation runs", |logs| logs.stderr.contains("begun\n"));
    proxy.run(&json!({})).check_error(429, &[]);
    release(&proxy);
    working.receive().expect("an answer").check(200, &json!({"n": 1}));
    assert!(begun.elapsed() < Duration::from_mins(30), "{:?}", begun.elapsed());
}

/// The kernel accepts connections while the proxy is busy or stopped. They get an answer too.
#[test]
fn at_shutdown_connections_in_the_accept_queue_get_an_answer() {
    let mut proxy = serving(&[], &echo());
    proxy.signal(Signal::STOP);
    let mut callers: Vec<_> = (0..400).map(|_| proxy.caller()).collect();
    for caller in &mut callers {
        send_run(caller, &json!({"n": 1}));
    }
    proxy.signal(Signal::TERM);
    proxy.signal(Signal::CONT);
    for mut caller in callers {
        let response = caller.receive().expect("an answer");
        response.check_shape();
        // Some activations may run before the proxy sees the signal.
        assert!(matches!(response.status, 200 | 503), "{}", response.text());
    }
    assert_eq!(proxy.wait().code(), Some(0));
}

#[test]
fn at_shutdown_an_activation_that_takes_too_long_is_cut_off() {
    let mut proxy = serving(&["--drain-grace", "200ms"], &waits());
    let mut working = proxy.caller();
    send_run(&mut working, &json!({"n": 1}));
    proxy.wait_for("the activation runs", |logs| logs.stderr.contains("begun\n"));
    let action = proxy.actions();
    proxy.signal(Signal::TERM);
    let cut = working.receive().expect("an answer");
    cut.check_shape();
    // Not 503: it has started, and must not run a second time elsewhere.
    cut.check_error(502, &[]);
    assert_eq!(proxy.wait().code(), Some(0));
    proxy.check_streams(1);
    eventually("the action is gone", || processes::group(action[0]).is_empty().then_some(()));
}

#[test]
fn at_shutdown_an_init_in_progress_is_abandoned() {
    let mut proxy = Proxy::start(&["--stop-grace", "200ms"], &[]);
    let code = "#!/bin/bash\necho starting >&2\nsleep 600\n";
    let mut caller = proxy.caller();
    caller.send_request("POST", "/init", json!({"value": {"code": code}}).to_string().as_bytes());
    proxy.wait_for("the init is in progress", |logs| logs.stderr.contains("starting\n"));
    let group = proxy.actions()[0];
    proxy.signal(Signal::TERM);
    assert_eq!(proxy.wait().code(), Some(0));
    // It is killed, and the proxy does not wait until it is reaped.
    eventually("the starting action is gone", || processes::group(group).is_empty().then_some(()));
}

#[test]
fn a_second_signal_ends_the_proxy_at_once() {
    let mut proxy = serving(&["--drain-grace", "1h", "--stop-grace", "1h"], &waits());
    let mut working = proxy.caller();
    send_run(&mut working, &json!({"n": 1}));
    proxy.wait_for("the activation runs", |logs| logs.stderr.contains("begun\n"));
    proxy.signal(Signal::INT);
    eventually("the shutdown has begun", || Caller::connect(proxy.port()).err());
    proxy.signal(Signal::TERM);
    assert_eq!(proxy.wait().code(), Some(0));
}

#[test]
fn v0_an_action_need_not_read_its_input() {
    let proxy = Proxy::with_protocol("0");
    proxy.init("#!/bin/sh\necho '{\"read\":false}'\n").check(200, &json!({"ok": true}));
    let large = json!({"text": "x".repeat(1_000_000)});
    for _ in 0..3 {
        proxy.run(&large).check(200, &json!({"read": false}));
    }
    proxy.check_streams(3);
}
