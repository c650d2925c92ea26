//! Faults of the Go ActionLoop proxy that pipeloop must not have.
//!
//! Source: the project's probe of the Go ActionLoop proxy, situations P1 to P12.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Barrier;

use serde_json::json;

use crate::support::{Caller, Logs, Proxy, Response, SENTINEL, action, archive, eventually, processes};

const ACTIONLOOP: (&str, &str) = ("PIPELOOP_PROTOCOL", "actionloop");
const SLEEPS: &str = "#!/bin/bash\nsleep 600\n";

/// A program of the actionloop dialect in Python with this `main(arguments, context)`; its result channel is `results`.
fn program(main: &str) -> String {
    let program = action("actionloop.py");
    assert!(program.contains("\n# MAIN\n"), "the program has a place for main");
    program.replace("\n# MAIN\n", &format!("\nimport json, os, sys, time\n{main}\n"))
}

fn initialised(main: &str, env: &[(&str, &str)]) -> Proxy {
    let mut env = env.to_vec();
    env.push(ACTIONLOOP);
    let proxy = Proxy::start::<&str>(&[], &env);
    proxy.init(&program(main)).check(200, &json!({"ok": true}));
    proxy
}

/// Calls with a number, on an open connection.
fn call_with(caller: &mut Caller, number: usize) -> Response {
    let body = json!({"value": {"n": number}}).to_string();
    let response = caller.call("POST", "/run", body.as_bytes());
    response.check_shape();
    response
}

/// Starts this many callers at once, each with its own connection and this many calls. Every answer must have the
/// number of its call.
fn check_own_numbers(proxy: &Proxy, callers: usize, calls: usize) {
    let start = Barrier::new(callers);
    std::thread::scope(|scope| {
        for caller in 0..callers {
            let mut connection = proxy.caller();
            let start = &start;
            scope.spawn(move || {
                start.wait();
                for number in (caller * calls..).take(calls) {
                    call_with(&mut connection, number).check(200, &json!({ "n": number }));
                }
            });
        }
    });
    proxy.check_streams(callers * calls);
}

/// Checks that a call gets its own answer or an error, and never another's answer.
#[track_caller]
fn check_own_or_error(response: &Response, number: usize, stray: &str) {
    if response.status == 200 {
        assert_eq!(response.json(), json!({ "n": number }), "with a stray written {stray}");
    } else {
        response.check_error(502, &[]);
    }
}

/// Every file and directory below a directory, at any depth.
fn everything_below(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).expect("the directory exists") {
        let entry = entry.expect("the directory is readable");
        found.push(entry.path());
        if entry.file_type().expect("an entry has a type").is_dir() {
            found.extend(everything_below(&entry.path()));
        }
    }
    found
}

#[test]
fn p1_after_an_exit_between_calls_a_restarted_process_answers() {
    let proxy = initialised(
        r#"
def main(arguments, context):
    print(json.dumps({"n": arguments["n"], "pid": os.getpid()}), file=results, flush=True)
    os._exit(3)
"#,
        &[],
    );
    let mut pids = HashSet::new();
    for number in 0..6 {
        let response = proxy.run(&json!({ "n": number }));
        assert_eq!((response.status, &response.json()["n"]), (200, &json!(number)), "{}", response.text());
        let pid = response.json()["pid"].as_i64().expect("a pid");
        assert!(pids.insert(pid), "the process answered twice: {pid}");
        if number % 2 == 0 {
            // Half of the calls come once the process is certainly gone, half as soon as possible.
            let pid = i32::try_from(pid).expect("a pid fits");
            eventually("the process ends", || (!processes::lives(pid)).then_some(()));
        }
    }
    proxy.check_streams(6);
}

#[test]
fn p2_an_action_that_closes_its_result_channel_and_keeps_running_is_an_error() {
    let proxy = initialised(
        r#"
def main(arguments, context):
    if arguments.get("close"):
        os.close(3)
        time.sleep(600)
    return {"pid": os.getpid()}
"#,
        &[],
    );
    let before = proxy.run(&json!({})).json();
    proxy.run(&json!({"close": true})).check_error(502, &["closed descriptor 3", "stopped"]);
    let after = proxy.run(&json!({}));
    assert_eq!(after.status, 200, "{}", after.text());
    assert_ne!(after.json(), before, "another process answers");
    assert_eq!(proxy.actions().len(), 1, "the process that closed it is gone");
    proxy.check_streams(3);
}

#[test]
fn p3_twenty_callers_at_once_get_their_own_numbers() {
    let proxy = initialised("def main(arguments, context): time.sleep(0.005); return arguments", &[]);
    check_own_numbers(&proxy, 20, 1);
}

#[test]
fn p4_four_callers_with_a_hundred_calls_each_get_their_own_numbers() {
    let proxy = initialised("def main(arguments, context): return arguments", &[]);
    check_own_numbers(&proxy, 4, 100);
}

#[test]
fn p5_a_recognisable_stray_line_is_never_an_answer() {
    // Both lines carry the number of the call, so that only its time distinguishes a stray line from an answer.
    let in_one_write = r#"
def main(arguments, context): return json.dumps(arguments) + "\n" + json.dumps(arguments)
"#;
    let late = r#"
def main(arguments, context):
    print(json.dumps(arguments), file=results, flush=True)
    time.sleep(0.03)
    print(json.dumps(arguments), file=results, flush=True)
    open(os.path.join(os.environ["SIGNALS"], f"stray {arguments['n']}"), "w").close()
    return ""
"#;
    let proxy = initialised(in_one_write, &[]);
    let mut caller = proxy.caller();
    for number in 0..20 {
        check_own_or_error(&call_with(&mut caller, number), number, "in one write");
    }
    proxy.check_streams(20);
    // A stray line that is written before the next call affects no caller. One that is written just when the next line
    // is read cannot be distinguished from an answer, since the lines of these protocols carry no ids; see "Strays" in
    // `docs/protocol.md`.
    let signals = tempfile::tempdir().expect("a temporary directory");
    let proxy = initialised(late, &[("SIGNALS", signals.path().to_str().expect("a name in UTF-8"))]);
    let mut caller = proxy.caller();
    for number in 0..20 {
        call_with(&mut caller, number).check(200, &json!({ "n": number }));
        let stray = signals.path().join(format!("stray {number}"));
        eventually("the stray line is written", || stray.exists().then_some(()));
    }
    proxy.check_streams(20);
}

#[test]
fn p6_a_crash_during_a_call_is_reported_and_the_next_call_works() {
    let proxy = initialised(
        r#"
def main(arguments, context):
    if arguments.get("crash") == "exit":
        print("first words\nno such table: users", file=sys.stderr, flush=True)
        os._exit(7)
    if arguments.get("crash") == "signal":
        print("about to be killed", file=sys.stderr, flush=True)
        os.kill(os.getpid(), 9)
    return arguments
"#,
        &[],
    );
    proxy.run(&json!({"n": 1})).check(200, &json!({"n": 1}));
    proxy.run(&json!({"crash": "exit"})).check_error(502, &["exited with status 7", "no such table: users"]);
    proxy.run(&json!({"n": 2})).check(200, &json!({"n": 2}));
    proxy.run(&json!({"crash": "signal"})).check_error(502, &["signal 9", "about to be killed"]);
    proxy.run(&json!({"n": 3})).check(200, &json!({"n": 3}));
    proxy.check_streams(5);
}

#[test]
fn p7_an_action_that_never_acknowledges_or_never_reads_has_a_time_limit() {
    let ack = ("OW_WAIT_FOR_ACK", "1");
    let proxy = Proxy::start::<&str>(&[], &[ACTIONLOOP, ack, ("PIPELOOP_INIT_TIMEOUT", "300ms")]);
    proxy.init(SLEEPS).check_error(502, &["300 ms"]);
    assert!(proxy.actions().is_empty(), "the action was stopped");

    let proxy = Proxy::start::<&str>(&[], &[ACTIONLOOP, ack, ("PIPELOOP_RUN_TIMEOUT", "300ms")]);
    proxy.init("#!/bin/bash\necho '{\"ok\":true}' >&3\nsleep 600\n").check(200, &json!({"ok": true}));
    let large = json!({"text": "x".repeat(1_000_000)});
    for arguments in [&large, &json!({"n": 1}), &large] {
        proxy.run(arguments).check_error(502, &["run timeout"]);
        assert!(proxy.actions().is_empty(), "the action was stopped");
    }
    proxy.check_streams(3);
}

#[test]
fn p8_an_early_exit_without_acknowledgement_fails_init() {
    for protocol in ["actionloop", "auto"] {
        let proxy = Proxy::with_protocol(protocol);
        proxy.init("#!/bin/bash\nsleep 0.05\nexit 1\n").check_error(502, &["status 1"]);
        // A corrected action is accepted after a refusal.
        let echo = program("def main(arguments, context): return arguments");
        proxy.init(&echo).check(200, &json!({"ok": true}));
        proxy.run(&json!({"n": 1})).check(200, &json!({"n": 1}));
    }
}

#[test]
fn p9_output_after_an_answer_appears_in_the_next_activations_log() {
    let proxy = Proxy::start::<&str>(&[], &[ACTIONLOOP]);
    proxy.init_action("logs_after_answer.py", &json!({"SIGNALS": proxy.directory()}));
    let mut expected = String::new();
    for number in 1..=3 {
        proxy.run(&json!({})).check(200, &json!({ "n": number }));
        expected.push_str(&format!("early {number}\n{SENTINEL}\n"));
        assert_eq!(proxy.logs().stdout, expected);
        fs::write(proxy.directory().join(format!("go {number}")), "").expect("the directory is writable");
        let said = proxy.directory().join(format!("said {number}"));
        eventually("the action logs after its answer", || said.exists().then_some(()));
        assert_eq!(proxy.logs().stdout, expected, "no line follows the sentinel");
        expected.push_str(&format!("late {number}\n"));
    }
    let logs = proxy.logs();
    let activations = Logs::activations(&logs.stdout);
    assert_eq!(activations, ["early 1\n", "late 1\nearly 2\n", "late 2\nearly 3\n", ""]);
}

#[test]
fn p10_a_variable_with_equals_signs_arrives_whole() {
    let main = r#"
def main(arguments, context): return {name: os.environ.get(name) for name in ["__OW_TOKEN", "FROM_INIT"]}
"#;
    let proxy = Proxy::start::<&str>(&[], &[ACTIONLOOP, ("__OW_TOKEN", "YWJj=ZGVm==")]);
    let env = json!({"FROM_INIT": "=a=b=="});
    proxy.init_value(&json!({"main": "main", "code": program(main), "env": env})).check(200, &json!({"ok": true}));
    proxy.run(&json!({})).check(200, &json!({"__OW_TOKEN": "YWJj=ZGVm==", "FROM_INIT": "=a=b=="}));
}

#[test]
fn p11_an_archive_that_would_write_outside_its_directory_is_refused() {
    let proxy = Proxy::start::<&str>(&[], &[ACTIONLOOP]);
    let echo = program("def main(arguments, context): return arguments");
    let outside = ("../../../x", b"escaped".as_slice());
    let exec = ("exec", echo.as_bytes());
    for files in [[exec, outside], [outside, exec]] {
        let refused = proxy.init_binary(&archive::zip(&files));
        assert!((400..=502).contains(&refused.status), "{refused:?}");
        assert!(refused.error().contains("../../../x"), "{}", refused.error());
        for path in everything_below(proxy.directory()) {
            assert_ne!(path.file_name(), Some("x".as_ref()), "written: {}", path.display());
            assert!(!path.ends_with("exec"), "left behind: {}", path.display());
        }
    }
    proxy.init_binary(&archive::zip(&[exec])).check(200, &json!({"ok": true}));
    proxy.run(&json!({"n": 1})).check(200, &json!({"n": 1}));
}

#[test]
fn p12_an_unknown_path_is_404_and_a_wrong_method_405() {
    let proxy = Proxy::plain();
    let check = |method: &str, path: &str, status: u16| {
        let response = proxy.caller().call(method, path, b"");
        response.check_shape();
        assert_eq!(response.status, status, "{method} {path}: {}", response.text());
        assert!(!response.error().is_empty(), "{method} {path} gets an error message");
    };
    for path in ["/health", "/", "/nothing", "/run/more", "/initialise"] {
        check("GET", path, 404);
        check("POST", path, 404);
    }
    for path in ["/run", "/init"] {
        check("GET", path, 405);
        check("PUT", path, 405);
    }
}
