//! One test for each cell of the table in `docs/lifecycle.md` that no other file tests, and a test that every cell
//! names tests that exist.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use serde_json::json;

use crate::support::{Caller, Proxy, Response, eventually, now_ms, processes, root};

/// Version 1 in shell: `body` has the cases for `$line`.
fn pipe_loop(body: &str) -> String {
    format!(
        "#!/bin/bash\nwait_for() {{ until [ -e $1 ]; do sleep 0.005; done; }}\n\
         echo '{{\"openwhisk\":1}}'\nwhile IFS= read -r line; do\ncase $line in\n{body}\n*) echo \"{{\\\"pid\\\":$$}}\";;\n\
         esac\ndone\n"
    )
}

/// Does what the only member of its arguments asks, and otherwise answers with its pid. A test appends what it does at
/// the end of its input.
fn action() -> String {
    let exits = "*exit*) echo no such table >&2; exit 3;;\n*kill*) kill -9 $$;;";
    let waits = "*wait*) echo begun >&2; wait_for go; echo \"{\\\"pid\\\":$$}\";;\n*sleep*) sleep 600 & sleep 600;;";
    let strays = "*stray*) echo \"{\\\"pid\\\":$$}\"; wait_for go; echo '{\"stray\":1}'; : > done;;\n\
                  *two*) env printf '{\"a\":1}\\n{\"b\":2}\\n';;";
    let closings = "*close*) echo \"{\\\"pid\\\":$$}\"; exec 1>&- 3>&-; : > done; sleep 600;;\n\
                *wave*) echo begun >&2; wait_for go; exit 3;;\n\
                *pair*) echo begun >&2; wait_for go; env printf '{\"a\":1}\\n{\"b\":2}\\n';;\n\
                *shut*) echo begun >&2; wait_for go; exec 1>&- 3>&-; sleep 600;;";
    pipe_loop(&format!("{exits}\n{waits}\n{strays}\n{closings}"))
}

#[track_caller]
fn serving(args: &[&str], code: &str) -> Proxy {
    let proxy = Proxy::start(args, &[]);
    proxy.init(code).check(200, &json!({"ok": true}));
    proxy
}

#[track_caller]
fn ask(proxy: &Proxy, what: &str) -> Response {
    proxy.run(&json!({ "do": what }))
}

/// The process that answers.
#[track_caller]
fn pid(proxy: &Proxy) -> i32 {
    pid_in(&ask(proxy, "say"))
}

#[track_caller]
fn pid_in(response: &Response) -> i32 {
    assert_eq!(response.status, 200, "{}", response.text());
    response.json()["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok()).expect("a pid")
}

/// Sends a request without waiting for the answer.
#[track_caller]
fn send(proxy: &Proxy, what: &str) -> Caller {
    let mut caller = proxy.caller();
    send_on(&mut caller, what);
    caller
}

fn send_on(caller: &mut Caller, what: &str) {
    caller.send_request("POST", "/run", json!({"value": {"do": what}}).to_string().as_bytes());
}

/// The same, and waits until the action is in the middle of it.
#[track_caller]
fn begin(proxy: &Proxy, what: &str) -> Caller {
    let caller = send(proxy, what);
    proxy.wait_for("the activation runs", |logs| logs.stderr.contains("begun\n"));
    caller
}

fn action_directory(proxy: &Proxy) -> PathBuf {
    proxy.workdir().join("action/1/bin")
}

fn release(proxy: &Proxy) {
    fs::write(action_directory(proxy).join("go"), "").expect("the action's directory exists");
}

#[track_caller]
fn wait_for_file(proxy: &Proxy, name: &str) {
    eventually("the action has created the file", || action_directory(proxy).join(name).exists().then_some(()));
}

/// Waits until the proxy refuses new connections.
#[track_caller]
fn wait_for_shutdown_to_begin(proxy: &Proxy) {
    eventually("the shutdown has begun", || Caller::connect(proxy.port()).err());
}

/// Freezes the proxy and its actions for longer than any limit a test sets, and thaws the proxy first.
fn freeze(proxy: &Proxy) {
    let groups: Vec<_> = proxy.actions().into_iter().filter_map(Pid::from_raw).collect();
    proxy.signal(Signal::STOP);
    for group in &groups {
        kill_process_group(*group, Signal::STOP).expect("the action is alive");
    }
    // A freeze is time that passes.
    std::thread::sleep(Duration::from_millis(1_700));
    proxy.signal(Signal::CONT);
    for group in &groups {
        kill_process_group(*group, Signal::CONT).expect("the action is alive");
    }
}

#[track_caller]
fn check_gone(group: i32) {
    eventually("the whole group is gone", || processes::group(group).is_empty().then_some(()));
}

// Empty.

#[test]
fn empty_an_incomplete_init_is_ignored() {
    let proxy = Proxy::plain();
    let mut caller = proxy.caller();
    caller.send(b"POST /init HTTP/1.1\r\nHost: t\r\nContent-Length: 100\r\n\r\n{\"value\":").expect("the proxy reads");
    drop(caller);
    proxy.run(&json!({})).check_error(500, &["no action has been initialised"]);
    proxy.init(&action()).check(200, &json!({"ok": true}));
    pid(&proxy);
    proxy.check_streams(1);
}

#[test]
fn empty_a_signal_ends_the_proxy() {
    let mut proxy = Proxy::plain();
    proxy.stop();
    proxy.check_streams(0);
}

// Initialising.

#[test]
fn initialising_a_closed_channel_fails_the_init() {
    let proxy = Proxy::plain();
    let code = "#!/bin/bash\necho last words >&2\nexec 1>&- 3>&-\nsleep 600 &\nsleep 600\n";
    proxy.init(code).check_error(502, &["closed its result channel before it was ready"]);
    assert!(proxy.actions().is_empty(), "it was stopped");
    proxy.init(&action()).check(200, &json!({"ok": true}));
}

#[test]
fn initialising_the_init_timeout_stops_the_whole_group() {
    for (args, code) in [
        (&["--protocol", "1"][..], "#!/bin/bash\necho $$ > group\nsleep 600 &\nsleep 600\n"),
        (&["--protocol", "auto"], "#!/bin/bash\necho $$ > group\n(sleep 600 & sleep 600)\n"),
    ] {
        let args = [args, &["--init-timeout", "400ms"]].concat();
        let proxy = Proxy::start(&args, &[]);
        // The files of a refused upload are removed, so the pid is read before the refusal.
        let mut caller = proxy.caller();
        caller.send_request("POST", "/init", json!({"value": {"code": code}}).to_string().as_bytes());
        let group = eventually("the action has started", || {
            fs::read_to_string(action_directory(&proxy).join("group")).ok()?.trim().parse::<i32>().ok()
        });
        caller.receive().expect("an answer").check_error(502, &["400 ms", "PIPELOOP_INIT_TIMEOUT"]);
        check_gone(group);
    }
}

#[test]
fn initialising_a_second_signal_ends_the_proxy_at_once() {
    let mut proxy = Proxy::start(&["--stop-grace", "1h", "--drain-grace", "1h"], &[]);
    let code = "#!/bin/bash\ntrap '' TERM\necho begun >&2\nsleep 600\n";
    let mut caller = proxy.caller();
    caller.send_request("POST", "/init", json!({"value": {"code": code}}).to_string().as_bytes());
    proxy.wait_for("the init is in progress", |logs| logs.stderr.contains("begun\n"));
    let group = proxy.actions()[0];
    proxy.signal(Signal::TERM);
    proxy.signal(Signal::TERM);
    assert_eq!(proxy.wait().code(), Some(0));
    check_gone(group);
}

#[test]
fn initialising_a_freeze_does_not_count() {
    let proxy = Proxy::start(&["--init-timeout", "1s"], &[]);
    let code =
        action().replacen("echo '{\"openwhisk\":1}'", "echo begun >&2; wait_for go; echo '{\"openwhisk\":1}'", 1);
    let mut caller = proxy.caller();
    caller.send_request("POST", "/init", json!({"value": {"code": code}}).to_string().as_bytes());
    proxy.wait_for("the init is in progress", |logs| logs.stderr.contains("begun\n"));
    freeze(&proxy);
    release(&proxy);
    caller.receive().expect("an answer").check(200, &json!({"ok": true}));
}

// Ready.

#[test]
fn ready_a_crash_fails_no_activation() {
    let proxy = serving(&[], &action());
    let first = pid(&proxy);
    kill_process(Pid::from_raw(first).expect("a pid"), Signal::KILL).expect("the process is alive");
    eventually("the process is gone", || (!processes::lives(first)).then_some(()));
    assert_ne!(pid(&proxy), first);
    assert_eq!(proxy.check_streams(2).stderr, "");
}

#[test]
fn ready_a_stray_is_dropped_and_the_process_replaced() {
    for (args, replaced) in [
        (&[][..], true),
        (&["--stray", "restart"], true),
        (&["--stray", "ignore"], false),
        // Otherwise one stray line would end the action.
        (&["--restart", "never"], false),
    ] {
        let proxy = serving(args, &action());
        let first = pid_in(&ask(&proxy, "stray"));
        release(&proxy);
        wait_for_file(&proxy, "done");
        assert_eq!(pid(&proxy) != first, replaced, "{args:?}");
        assert_eq!(processes::lives(first), !replaced, "{args:?}");
        let logs = proxy.check_streams(2);
        assert!(logs.stderr.contains("dropped a line that answers no activation: `{\"stray\":1}`\n"), "{logs:?}");
        assert_eq!(logs.stderr.contains("restarts the action because it wrote an extra line"), replaced, "{logs:?}");
        // The process that answered stays.
        assert_eq!(pid(&proxy), pid(&proxy));
    }
}

#[test]
fn ready_a_greeting_before_the_first_activation_replaces_no_process() {
    let code = action().replacen("while IFS", "echo Hello; : > done\nwhile IFS", 1);
    let proxy = serving(&[], &code);
    wait_for_file(&proxy, "done");
    assert_eq!(pid(&proxy), pid(&proxy));
    assert!(proxy.check_streams(2).stderr.contains("dropped a line that answers no activation: `Hello`\n"));
}

#[test]
fn ready_a_process_that_closes_its_channel_is_replaced() {
    let proxy = serving(&[], &action());
    let first = pid_in(&ask(&proxy, "close"));
    wait_for_file(&proxy, "done");
    assert_ne!(pid(&proxy), first);
    check_gone(first);
    proxy.check_streams(2);
}

#[test]
fn ready_a_caller_that_leaves_changes_nothing() {
    let proxy = serving(&[], &action());
    let first = pid(&proxy);
    let mut half = proxy.caller();
    half.send(b"POST /run HTTP/1.1\r\nHo").expect("the proxy reads");
    drop((half, proxy.caller()));
    assert_eq!(pid(&proxy), first);
    proxy.check_streams(2);
}

// Busy.

#[test]
fn busy_an_init_is_refused() {
    let proxy = serving(&[], &action());
    let mut caller = begin(&proxy, "wait");
    proxy.init(&action()).check_error(403, &["Cannot initialize the action more than once."]);
    release(&proxy);
    pid_in(&caller.receive().expect("an answer"));
    proxy.check_streams(1);
}

#[test]
fn busy_two_lines_are_an_error_and_the_process_is_replaced() {
    let proxy = serving(&[], &action());
    let first = pid(&proxy);
    ask(&proxy, "two").check(502, &json!({"error": "The action did not return a dictionary or array."}));
    assert_ne!(pid(&proxy), first);
    proxy.check_streams(3);
}

#[test]
fn busy_a_line_before_the_activation_was_read_is_a_stray() {
    // The stray line is written while the second activation is in the pipe, since the shell sleeps before it reads.
    let body = "*first*) echo \"{\\\"pid\\\":$$}\"; wait_for go; sleep 0.2; echo '{\"stray\":1}'; sleep 0.2;;";
    let proxy = serving(&[], &pipe_loop(body));
    let first = pid_in(&ask(&proxy, "first"));
    let mut second = send(&proxy, "second");
    release(&proxy);
    assert_eq!(
        pid_in(&second.receive().expect("an answer")),
        first,
        "its own answer, from the process that wrote the stray line"
    );
    assert_ne!(pid(&proxy), first, "the process is then replaced");
    proxy.check_streams(3);
}

#[test]
fn busy_the_run_timeout_stops_the_whole_group() {
    let proxy = serving(&["--run-timeout", "300ms"], &action());
    let first = pid(&proxy);
    ask(&proxy, "sleep").check_error(502, &["run timeout", "stopped after", "PIPELOOP_RUN_TIMEOUT"]);
    check_gone(first);
    assert_ne!(pid(&proxy), first);
    proxy.check_streams(3);
}

#[test]
fn busy_a_process_that_left_the_group_delays_nothing() {
    let mut proxy = serving(
        &["--run-timeout", "300ms"],
        &pipe_loop("*leave*) setsid bash -c 'echo $$ > escaped; exec sleep 600' & wait_for escaped; sleep 600;;"),
    );
    ask(&proxy, "leave").check_error(502, &["run timeout"]);
    proxy.check_streams(1);
    let text = fs::read_to_string(action_directory(&proxy).join("escaped")).expect("the file exists");
    let escaped: i32 = text.trim().parse().expect("a pid");
    assert!(processes::lives(escaped), "the proxy does not search for it");
    pid(&proxy);
    proxy.stop();
    // The test cleans it up.
    kill_process(Pid::from_raw(escaped).expect("a pid"), Signal::KILL).expect("the process is alive");
}

// Without a process: after a crash, and in a back-off pause.

/// Crashes the action this many times.
#[track_caller]
fn crash(proxy: &Proxy, times: usize) {
    for _ in 0..times {
        ask(proxy, "exit").check_error(502, &["exited with status 3", "before it answered", "no such table"]);
    }
}

#[test]
fn without_process_an_init_is_refused() {
    let proxy = serving(&[], &action());
    crash(&proxy, 1);
    proxy.init(&action()).check_error(403, &["more than once"]);
    pid(&proxy);
}

#[test]
fn without_process_a_failed_start_is_reported() {
    let code = action().replacen('\n', "\n[ ! -e broken ] || { echo broken >&2; exit 4; }\n", 1);
    let proxy = serving(&[], &code);
    fs::write(action_directory(&proxy).join("broken"), "").expect("the directory exists");
    crash(&proxy, 1);
    ask(&proxy, "say").check_error(502, &["exited with status 4", "before it was ready", "broken"]);
    fs::remove_file(action_directory(&proxy).join("broken")).expect("the file exists");
    pid(&proxy);
    proxy.check_streams(3);
}

#[test]
fn without_process_a_caller_that_leaves_affects_no_other() {
    let proxy = serving(&[], &action());
    crash(&proxy, 3);
    drop(send(&proxy, "say"));
    pid(&proxy);
}

#[test]
fn backoff_an_activation_waits_for_a_short_pause() {
    let proxy = serving(&[], &action());
    crash(&proxy, 1);
    let before_the_second = Instant::now();
    crash(&proxy, 1);
    pid(&proxy);
    assert!(before_the_second.elapsed() >= Duration::from_millis(100), "{:?}", before_the_second.elapsed());
    // An answer ends the back-off: the next crash counts as the first, and has no pause.
    crash(&proxy, 1);
    pid(&proxy);
    proxy.check_streams(5);
}

#[test]
fn backoff_a_long_pause_is_reported_and_ends() {
    let proxy = serving(&[], &action().replacen('\n', "\necho >> starts\n", 1));
    crash(&proxy, 6);
    let starts =
        || fs::read_to_string(action_directory(&proxy).join("starts")).expect("the file exists").lines().count();
    assert_eq!(starts(), 6);
    let response = ask(&proxy, "say");
    response.check_error(
        502,
        &["failed 6 times in a row", "not restarted for", "the last failure", "status 3", "no such table"],
    );
    assert_eq!(starts(), 6, "no start is tried in a pause");
    let mut tries = 1;
    eventually("the pause is over", || {
        tries += 1;
        let response = ask(&proxy, "say");
        if response.status != 200 {
            response.check_error(502, &["failed 6 times in a row"]);
        }
        (response.status == 200).then_some(())
    });
    assert_eq!(starts(), 7);
    proxy.check_streams(6 + tries);
    // The action is alive: the back-off starts from the beginning.
    crash(&proxy, 1);
    pid(&proxy);
}

#[test]
fn backoff_failed_starts_count_as_crashes() {
    let code = action().replacen('\n', "\n[ ! -e broken ] || { echo broken >&2; exit 4; }\n", 1);
    let proxy = serving(&[], &code);
    fs::write(action_directory(&proxy).join("broken"), "").expect("the directory exists");
    crash(&proxy, 1);
    for _ in 0..5 {
        ask(&proxy, "say").check_error(502, &["before it was ready"]);
    }
    ask(&proxy, "say").check_error(502, &["failed 6 times in a row", "status 4", "before it was ready", "broken"]);
    proxy.check_streams(7);
}

#[test]
fn backoff_an_activation_with_an_earlier_deadline_does_not_wait() {
    let proxy = serving(&[], &action());
    crash(&proxy, 5);
    let activation = json!({"value": {}, "deadline": now_ms() + 200});
    proxy.run_raw(&activation.to_string()).check_error(502, &["failed 5 times in a row"]);
    pid(&proxy);
}

#[test]
fn backoff_a_waiting_activation_finishes_after_a_signal() {
    let mut proxy = serving(&["--drain-grace", "20s"], &action());
    crash(&proxy, 5);
    let mut caller = send(&proxy, "say");
    // The activation has begun by the time this is answered.
    proxy.caller().call("GET", "/", b"");
    proxy.signal(Signal::TERM);
    pid_in(&caller.receive().expect("an answer"));
    assert_eq!(proxy.wait().code(), Some(0));
    proxy.check_streams(6);
}

#[test]
fn backoff_a_second_signal_ends_the_pause() {
    let mut proxy = serving(&["--drain-grace", "1h"], &action());
    // Long enough a pause for both signals to arrive in it.
    crash(&proxy, 5);
    let mut caller = send(&proxy, "wait");
    proxy.caller().call("GET", "/", b"");
    proxy.signal(Signal::TERM);
    wait_for_shutdown_to_begin(&proxy);
    proxy.signal(Signal::TERM);
    caller.receive().expect("an answer").check_error(502, &["the proxy shut down"]);
    assert_eq!(proxy.wait().code(), Some(0));
    proxy.check_streams(6);
}

#[test]
fn backoff_a_pause_runs_out_during_a_freeze() {
    let proxy = serving(&[], &action());
    crash(&proxy, 6);
    freeze(&proxy);
    pid(&proxy);
}

#[test]
fn backoff_the_queue_stays_bounded() {
    let proxy = serving(&["--queue", "1"], &action());
    crash(&proxy, 5);
    // The first waits for the end of the pause, and one more fits into the queue.
    let mut callers: Vec<_> = (0..4).map(|_| send(&proxy, "say")).collect();
    let mut statuses: Vec<_> = callers.iter_mut().map(|caller| caller.receive().expect("an answer").status).collect();
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 200, 429, 429]);
    proxy.check_streams(7);
}

#[test]
fn restart_never_the_first_exit_is_final() {
    for (what, how) in [("exit", "exited with status 3"), ("kill", "killed by signal 9"), ("sleep", "run timeout")] {
        let mut proxy = serving(&["--restart", "never", "--run-timeout", "1s"], &action());
        pid(&proxy);
        ask(&proxy, what).check_error(502, &[how]);
        for _ in 0..2 {
            ask(&proxy, "say").check_error(502, &["has ended and is not restarted", how, "PIPELOOP_RESTART"]);
        }
        proxy.init(&action()).check_error(403, &["more than once"]);
        assert!(proxy.actions().is_empty());
        proxy.check_streams(4);
        proxy.stop();
    }
}

#[test]
fn restart_never_the_remaining_workers_go_on() {
    let meet = ": > here.$$; until [ $(ls here.* | wc -l) -ge 2 ]; do sleep 0.01; done";
    let proxy = serving(
        &["--restart", "never", "--workers", "2"],
        &pipe_loop(&format!("*meet*) {meet}; echo \"{{\\\"pid\\\":$$}}\";;\n*exit*) exit 3;;")),
    );
    for mut caller in [send(&proxy, "meet"), send(&proxy, "meet")] {
        pid_in(&caller.receive().expect("an answer"));
    }
    ask(&proxy, "exit").check_error(502, &["status 3"]);
    let left = proxy.actions();
    assert_eq!(left.len(), 1);
    for mut caller in [send(&proxy, "say"), send(&proxy, "say"), send(&proxy, "say")] {
        assert_eq!(pid_in(&caller.receive().expect("an answer")), left[0]);
    }
    ask(&proxy, "exit").check_error(502, &["status 3"]);
    ask(&proxy, "say").check_error(502, &["is not restarted"]);
}

// Draining.

#[test]
fn draining_an_init_is_refused_with_503() {
    let mut proxy = serving(&["--drain-grace", "20s"], &action());
    let mut kept = proxy.caller();
    kept.call("GET", "/", b"");
    let mut working = begin(&proxy, "wait");
    proxy.signal(Signal::TERM);
    wait_for_shutdown_to_begin(&proxy);
    kept.call("POST", "/init", b"{}").check_error(503, &["shutting down"]);
    release(&proxy);
    pid_in(&working.receive().expect("an answer"));
    assert_eq!(proxy.wait().code(), Some(0));
    proxy.check_streams(1);
}

#[test]
fn draining_a_failure_of_the_action_is_reported() {
    for (what, texts) in [
        ("wave", &["status 3", "before it answered"][..]),
        ("pair", &["The action did not return a dictionary or array."]),
        ("shut", &["closed stdout before it answered", "stopped"]),
    ] {
        let mut proxy = serving(&["--drain-grace", "1h"], &action());
        let mut working = begin(&proxy, what);
        proxy.signal(Signal::TERM);
        wait_for_shutdown_to_begin(&proxy);
        release(&proxy);
        working.receive().expect("an answer").check_error(502, texts);
        assert_eq!(proxy.wait().code(), Some(0));
        proxy.check_streams(1);
    }
}

#[test]
fn draining_a_freeze_does_not_count() {
    let mut proxy = serving(&["--drain-grace", "1s"], &action());
    let mut working = begin(&proxy, "wait");
    proxy.signal(Signal::TERM);
    wait_for_shutdown_to_begin(&proxy);
    freeze(&proxy);
    release(&proxy);
    pid_in(&working.receive().expect("an answer"));
    assert_eq!(proxy.wait().code(), Some(0));
    proxy.check_streams(1);
}

#[test]
fn draining_a_deadline_holds() {
    let mut proxy = serving(&["--drain-grace", "1h"], &action());
    let mut working = proxy.caller();
    let activation = json!({"value": {"do": "wait"}, "deadline": now_ms() + 1_000});
    working.send_request("POST", "/run", activation.to_string().as_bytes());
    proxy.wait_for("the activation runs", |logs| logs.stderr.contains("begun\n"));
    proxy.signal(Signal::TERM);
    working.receive().expect("an answer").check_error(502, &["deadline"]);
    assert_eq!(proxy.wait().code(), Some(0));
    proxy.check_streams(1);
}

#[test]
fn draining_waits_for_the_activation_of_a_caller_that_left() {
    let mut proxy = serving(&["--drain-grace", "1h"], &action());
    drop(begin(&proxy, "wait"));
    proxy.signal(Signal::TERM);
    wait_for_shutdown_to_begin(&proxy);
    release(&proxy);
    assert_eq!(proxy.wait().code(), Some(0));
    proxy.check_streams(1);
}

// Stopping.

#[test]
fn stopping_a_second_signal_kills_the_group() {
    let stubborn = format!("{}: > eof\ntrap '' TERM\nsleep 600 &\nwhile :; do sleep 600; done\n", action());
    let mut proxy = serving(&["--stop-grace", "1h"], &stubborn);
    let group = pid(&proxy);
    proxy.signal(Signal::TERM);
    wait_for_file(&proxy, "eof");
    proxy.signal(Signal::TERM);
    assert_eq!(proxy.wait().code(), Some(0));
    check_gone(group);
}

#[test]
fn stopping_last_output_follows_no_sentinel() {
    let code = format!("{}echo goodbye >&2\n", action());
    let mut proxy = serving(&[], &code);
    pid(&proxy);
    proxy.stop();
    assert_eq!(proxy.check_streams(1).stderr, "");
}

// The table.

/// Every test that the suites have, as `file::name`.
fn tests() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(root().join("tests/suite")).expect("the suites exist") {
        let path = entry.expect("the directory is readable").path();
        let file = path.file_stem().expect("a name").to_string_lossy().into_owned();
        let text = fs::read_to_string(&path).expect("a suite");
        let lines: Vec<_> = text.lines().map(str::trim).collect();
        for pair in lines.windows(2) {
            let Some((name, parameters)) = pair[1].strip_prefix("fn ").and_then(|line| line.split_once('(')) else {
                continue;
            };
            // A macro turns the canonical ones into one test for each language.
            if pair[0] == "#[test]" || parameters == "variant: &Variant) {" {
                found.insert(format!("{file}::{name}"));
            }
        }
    }
    found
}

const STATES: [&str; 6] = ["Empty", "Initialising", "Ready", "Busy", "Without a process", "Draining"];
const EVENTS: [&str; 11] = [
    "init",
    "run",
    "the process ends",
    "a stray line",
    "the result channel ends",
    "a caller leaves",
    "a limit of time",
    "SIGTERM, SIGINT",
    "a second signal",
    "a freeze",
    "a full queue",
];

#[test]
fn every_cell_of_the_table_has_a_test_that_exists() {
    let document = fs::read_to_string(root().join("docs/lifecycle.md")).expect("the document exists");
    let (_, table) = document.split_once("\n## The table\n").expect("there is a table");
    let tests = tests();
    assert!(tests.len() > 200, "the suites were not parsed correctly: {}", tests.len());
    let mut cells = BTreeSet::new();
    for row in table.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| state ")) {
        let columns: Vec<_> = row.split('|').map(str::trim).collect();
        let [_, state, event, happens, gets, names, _] = columns[..] else { panic!("five columns: {row}") };
        assert!(!happens.is_empty() && !gets.is_empty(), "{row}");
        cells.insert((state, event));
        if happens == "cannot happen" {
            continue;
        }
        assert!(!names.is_empty(), "no test: {row}");
        for name in names.split(", ") {
            let name = name.trim_matches('`');
            assert!(tests.contains(name), "the table names {name}, which does not exist");
        }
    }
    let all: BTreeSet<_> = STATES.iter().flat_map(|state| EVENTS.iter().map(|event| (*state, *event))).collect();
    let stopping: BTreeSet<_> = cells.iter().filter(|(state, _)| *state == "Stopping").copied().collect();
    assert!(stopping.len() >= 3, "{stopping:?}");
    let cells: BTreeSet<_> = cells.difference(&stopping).copied().collect();
    assert_eq!(cells, all, "cells of the table (left) and states by events (right)");
    // The differences of version 2 have tests as well.
    let (_, section) = document.split_once("\n## Several activations in one process\n").expect("there is a section");
    let (section, _) = section.split_once("\n## ").expect("another section follows");
    let rows: Vec<_> = section.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| state ")).collect();
    assert!(rows.len() > 15, "{}", rows.len());
    for row in rows {
        let columns: Vec<_> = row.split('|').map(str::trim).collect();
        let [_, state, _, _, _, names, _] = columns[..] else { panic!("five columns: {row}") };
        assert!(STATES.contains(&state) && !names.is_empty(), "{row}");
        for name in names.split(", ").map(|name| name.trim_matches('`')) {
            assert!(tests.contains(name), "the table of version 2 names {name}, which does not exist");
        }
    }
    // The table names every test of this file.
    for test in tests.iter().filter(|test| test.starts_with("lifecycle::") && !test.contains("every_cell")) {
        assert!(table.contains(&format!("`{test}`")), "the table does not name {test}");
    }
}
