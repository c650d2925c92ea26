//! One test for each cell of the table in `docs/lifecycle.md` that no other file has one for, and one that holds
//! the table to its tests.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use serde_json::json;

use crate::support::{Caller, Proxy, Response, eventually, now_ms, processes, root};

/// Version 1 in shell: `body` is done for each `$line`; `$folder` is the action's.
fn pipe_loop(body: &str) -> String {
    format!(
        "#!/bin/bash\nfolder=$PWD\nwait_for() {{ until [ -e $1 ]; do sleep 0.005; done; }}\n\
         echo '{{\"openwhisk\":1}}'\nwhile IFS= read -r line; do\ncase $line in\n{body}\n*) echo \"{{\\\"pid\\\":$$}}\";;\n\
         esac\ndone\n"
    )
}

/// Does what the only member of its arguments says, and else answers with its pid. How it ends when its input
/// does stands behind.
fn action() -> String {
    let deaths = "*exit*) echo no such table >&2; exit 3;;\n*kill*) kill -9 $$;;";
    let waits = "*wait*) echo begun >&2; wait_for go; echo \"{\\\"pid\\\":$$}\";;\n*sleep*) sleep 600 & sleep 600;;";
    let strays = "*stray*) echo \"{\\\"pid\\\":$$}\"; wait_for go; echo '{\"stray\":1}'; : > done;;\n\
                  *two*) env printf '{\"a\":1}\\n{\"b\":2}\\n';;";
    let ends = "*close*) echo \"{\\\"pid\\\":$$}\"; exec 1>&- 3>&-; : > done; sleep 600;;\n\
                *wave*) echo begun >&2; wait_for go; exit 3;;\n\
                *pair*) echo begun >&2; wait_for go; env printf '{\"a\":1}\\n{\"b\":2}\\n';;\n\
                *shut*) echo begun >&2; wait_for go; exec 1>&- 3>&-; sleep 600;;";
    pipe_loop(&format!("{deaths}\n{waits}\n{strays}\n{ends}"))
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

/// A request that is not waited for.
#[track_caller]
fn send(proxy: &Proxy, what: &str) -> Caller {
    let mut caller = proxy.caller();
    send_on(&mut caller, what);
    caller
}

fn send_on(caller: &mut Caller, what: &str) {
    caller.send_request("POST", "/run", json!({"value": {"do": what}}).to_string().as_bytes());
}

/// The same, once the action is in the middle of it.
#[track_caller]
fn begin(proxy: &Proxy, what: &str) -> Caller {
    let caller = send(proxy, what);
    proxy.wait_for("the activation runs", |logs| logs.stderr.contains("begun\n"));
    caller
}

fn folder(proxy: &Proxy) -> PathBuf {
    proxy.workdir().join("action/1/bin")
}

fn let_go(proxy: &Proxy) {
    fs::write(folder(proxy).join("go"), "").expect("the action's folder is there");
}

#[track_caller]
fn wait_for_file(proxy: &Proxy, name: &str) {
    eventually("the action has come so far", || folder(proxy).join(name).exists().then_some(()));
}

/// The end has begun: nobody new gets in.
#[track_caller]
fn wait_for_the_end_to_begin(proxy: &Proxy) {
    eventually("the end has begun", || Caller::connect(proxy.port()).err());
}

/// Everything stands still for longer than any limit that is set with it, and the proxy goes on first.
fn freeze(proxy: &Proxy) {
    let groups: Vec<_> = proxy.actions().into_iter().filter_map(Pid::from_raw).collect();
    proxy.signal(Signal::STOP);
    for group in &groups {
        kill_process_group(*group, Signal::STOP).expect("the action lives");
    }
    // Time has to pass, for that is what a freeze is.
    std::thread::sleep(Duration::from_millis(1_700));
    proxy.signal(Signal::CONT);
    for group in &groups {
        kill_process_group(*group, Signal::CONT).expect("the action lives");
    }
}

#[track_caller]
fn check_gone(group: i32) {
    eventually("the whole group is gone", || processes::group(group).is_empty().then_some(()));
}

// Empty.

#[test]
fn empty_a_caller_that_leaves_in_its_init_leaves_nothing() {
    let proxy = Proxy::plain();
    let mut caller = proxy.caller();
    caller.send(b"POST /init HTTP/1.1\r\nHost: t\r\nContent-Length: 100\r\n\r\n{\"value\":").expect("it reads");
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
        // What is refused is removed, so it is looked at before that.
        let mut caller = proxy.caller();
        caller.send_request("POST", "/init", json!({"value": {"code": code}}).to_string().as_bytes());
        let group = eventually("it has started", || {
            fs::read_to_string(folder(&proxy).join("group")).ok()?.trim().parse::<i32>().ok()
        });
        caller.receive().expect("an answer").check_error(502, &["400 ms", "PIPELOOP_INIT_TIMEOUT"]);
        check_gone(group);
    }
}

#[test]
fn initialising_a_second_signal_ends_at_once() {
    let mut proxy = Proxy::start(&["--stop-grace", "1h", "--drain-grace", "1h"], &[]);
    let code = "#!/bin/bash\ntrap '' TERM\necho begun >&2\nsleep 600\n";
    let mut caller = proxy.caller();
    caller.send_request("POST", "/init", json!({"value": {"code": code}}).to_string().as_bytes());
    proxy.wait_for("the init is under way", |logs| logs.stderr.contains("begun\n"));
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
    proxy.wait_for("the init is under way", |logs| logs.stderr.contains("begun\n"));
    freeze(&proxy);
    let_go(&proxy);
    caller.receive().expect("an answer").check(200, &json!({"ok": true}));
}

// Ready.

#[test]
fn ready_a_death_is_nobodys() {
    let proxy = serving(&[], &action());
    let first = pid(&proxy);
    kill_process(Pid::from_raw(first).expect("a pid"), Signal::KILL).expect("it lives");
    eventually("it is gone", || (!processes::lives(first)).then_some(()));
    assert_ne!(pid(&proxy), first);
    assert_eq!(proxy.check_streams(2).stderr, "");
}

#[test]
fn ready_a_stray_is_dropped_and_the_process_replaced() {
    for (args, replaced) in [
        (&[][..], true),
        (&["--stray", "restart"], true),
        (&["--stray", "ignore"], false),
        // Otherwise one stray would be the end of the action.
        (&["--restart", "never"], false),
    ] {
        let proxy = serving(args, &action());
        let first = pid_in(&ask(&proxy, "stray"));
        let_go(&proxy);
        wait_for_file(&proxy, "done");
        assert_eq!(pid(&proxy) != first, replaced, "{args:?}");
        assert_eq!(processes::lives(first), !replaced, "{args:?}");
        let logs = proxy.check_streams(2);
        assert!(logs.stderr.contains("dropped a line that answers no activation: `{\"stray\":1}`\n"), "{logs:?}");
        assert_eq!(logs.stderr.contains("started anew, since it wrote a line too many"), replaced, "{logs:?}");
        // That was all: the one after it stays.
        assert_eq!(pid(&proxy), pid(&proxy));
    }
}

#[test]
fn ready_a_greeting_before_the_first_activation_is_no_stray() {
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
fn ready_a_caller_that_leaves_is_nothing() {
    let proxy = serving(&[], &action());
    let first = pid(&proxy);
    let mut half = proxy.caller();
    half.send(b"POST /run HTTP/1.1\r\nHo").expect("it reads");
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
    let_go(&proxy);
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
    // The first line is written while the second activation stands in the pipe, which the stopped shell shows.
    let body = "*first*) echo \"{\\\"pid\\\":$$}\"; wait_for go; sleep 0.2; echo '{\"stray\":1}'; sleep 0.2;;";
    let proxy = serving(&[], &pipe_loop(body));
    let first = pid_in(&ask(&proxy, "first"));
    let mut second = send(&proxy, "second");
    let_go(&proxy);
    assert_eq!(pid_in(&second.receive().expect("an answer")), first, "its own answer, by the process that strayed");
    assert_ne!(pid(&proxy), first, "which is replaced then");
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
fn busy_what_has_left_the_group_holds_nothing_up() {
    let mut proxy = serving(
        &["--run-timeout", "300ms"],
        &pipe_loop("*leave*) setsid bash -c 'echo $$ > escaped; exec sleep 600' & wait_for escaped; sleep 600;;"),
    );
    ask(&proxy, "leave").check_error(502, &["run timeout"]);
    proxy.check_streams(1);
    let text = fs::read_to_string(folder(&proxy).join("escaped")).expect("it is there");
    let escaped: i32 = text.trim().parse().expect("a pid");
    assert!(processes::lives(escaped), "it is not hunted");
    pid(&proxy);
    proxy.stop();
    // It is this test's to clean up.
    kill_process(Pid::from_raw(escaped).expect("a pid"), Signal::KILL).expect("it lives");
}

// Without a process: after a death, and in a pause.

/// So many activations that the action does not survive.
#[track_caller]
fn let_die(proxy: &Proxy, times: usize) {
    for _ in 0..times {
        ask(proxy, "exit").check_error(502, &["exited with status 3", "before it answered", "no such table"]);
    }
}

#[test]
fn dead_an_init_is_refused() {
    let proxy = serving(&[], &action());
    let_die(&proxy, 1);
    proxy.init(&action()).check_error(403, &["more than once"]);
    pid(&proxy);
}

#[test]
fn dead_a_start_that_fails_is_told() {
    let code = action().replacen('\n', "\n[ ! -e broken ] || { echo broken >&2; exit 4; }\n", 1);
    let proxy = serving(&[], &code);
    fs::write(folder(&proxy).join("broken"), "").expect("the folder is there");
    let_die(&proxy, 1);
    ask(&proxy, "say").check_error(502, &["exited with status 4", "before it was ready", "broken"]);
    fs::remove_file(folder(&proxy).join("broken")).expect("it is there");
    pid(&proxy);
    proxy.check_streams(3);
}

#[test]
fn dead_a_caller_that_leaves_costs_nobody_anything() {
    let proxy = serving(&[], &action());
    let_die(&proxy, 3);
    drop(send(&proxy, "say"));
    pid(&proxy);
}

#[test]
fn pause_a_short_one_is_waited_for() {
    let proxy = serving(&[], &action());
    let_die(&proxy, 1);
    let before_the_second = Instant::now();
    let_die(&proxy, 1);
    pid(&proxy);
    assert!(before_the_second.elapsed() >= Duration::from_millis(100), "{:?}", before_the_second.elapsed());
    // An answer ends it: the next death is a first one, and has no pause.
    let_die(&proxy, 1);
    pid(&proxy);
    proxy.check_streams(5);
}

#[test]
fn pause_a_long_one_is_told_and_then_over() {
    let proxy = serving(&[], &action().replacen('\n', "\necho >> starts\n", 1));
    let_die(&proxy, 6);
    let starts = || fs::read_to_string(folder(&proxy).join("starts")).expect("it is there").lines().count();
    assert_eq!(starts(), 6);
    let told = ask(&proxy, "say");
    told.check_error(
        502,
        &["failed 6 times in a row", "not restarted for", "the last failure", "status 3", "no such table"],
    );
    assert_eq!(starts(), 6, "nothing is tried in a pause");
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
    // It lives: all is as if it had never died.
    let_die(&proxy, 1);
    pid(&proxy);
}

#[test]
fn pause_starts_that_fail_are_counted_as_deaths() {
    let code = action().replacen('\n', "\n[ ! -e broken ] || { echo broken >&2; exit 4; }\n", 1);
    let proxy = serving(&[], &code);
    fs::write(folder(&proxy).join("broken"), "").expect("the folder is there");
    let_die(&proxy, 1);
    for _ in 0..5 {
        ask(&proxy, "say").check_error(502, &["before it was ready"]);
    }
    ask(&proxy, "say").check_error(502, &["failed 6 times in a row", "status 4", "before it was ready", "broken"]);
    proxy.check_streams(7);
}

#[test]
fn pause_a_deadline_before_its_end_is_not_waited_for() {
    let proxy = serving(&[], &action());
    let_die(&proxy, 5);
    let activation = json!({"value": {}, "deadline": now_ms() + 200});
    proxy.run_raw(&activation.to_string()).check_error(502, &["failed 5 times in a row"]);
    pid(&proxy);
}

#[test]
fn pause_a_signal_lets_who_waits_for_it_finish() {
    let mut proxy = serving(&["--drain-grace", "20s"], &action());
    let_die(&proxy, 5);
    let mut caller = send(&proxy, "say");
    // It is begun by the time that this is answered.
    proxy.caller().call("GET", "/", b"");
    proxy.signal(Signal::TERM);
    pid_in(&caller.receive().expect("an answer"));
    assert_eq!(proxy.wait().code(), Some(0));
    proxy.check_streams(6);
}

#[test]
fn pause_a_second_signal_ends_it() {
    let mut proxy = serving(&["--drain-grace", "1h"], &action());
    // The pause is longer than the two signals take.
    let_die(&proxy, 5);
    let mut caller = send(&proxy, "wait");
    proxy.caller().call("GET", "/", b"");
    proxy.signal(Signal::TERM);
    wait_for_the_end_to_begin(&proxy);
    proxy.signal(Signal::TERM);
    caller.receive().expect("an answer").check_error(502, &["the proxy shut down"]);
    assert_eq!(proxy.wait().code(), Some(0));
    proxy.check_streams(6);
}

#[test]
fn pause_a_freeze_only_lets_it_pass() {
    let proxy = serving(&[], &action());
    let_die(&proxy, 6);
    freeze(&proxy);
    pid(&proxy);
}

#[test]
fn pause_the_queue_is_bounded_as_ever() {
    let proxy = serving(&["--queue", "1"], &action());
    let_die(&proxy, 5);
    // The first waits for the pause, another may wait for it.
    let mut callers: Vec<_> = (0..4).map(|_| send(&proxy, "say")).collect();
    let mut statuses: Vec<_> = callers.iter_mut().map(|caller| caller.receive().expect("an answer").status).collect();
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 200, 429, 429]);
    proxy.check_streams(7);
}

#[test]
fn never_the_first_end_is_the_last() {
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
fn never_several_workers_go_on_with_those_that_live() {
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
fn draining_an_init_is_told_to_go_elsewhere() {
    let mut proxy = serving(&["--drain-grace", "20s"], &action());
    let mut kept = proxy.caller();
    kept.call("GET", "/", b"");
    let mut working = begin(&proxy, "wait");
    proxy.signal(Signal::TERM);
    wait_for_the_end_to_begin(&proxy);
    kept.call("POST", "/init", b"{}").check_error(503, &["shutting down"]);
    let_go(&proxy);
    pid_in(&working.receive().expect("an answer"));
    assert_eq!(proxy.wait().code(), Some(0));
    proxy.check_streams(1);
}

#[test]
fn draining_whatever_the_action_does_is_told() {
    for (what, texts) in [
        ("wave", &["status 3", "before it answered"][..]),
        ("pair", &["The action did not return a dictionary or array."]),
        ("shut", &["closed stdout before it answered", "stopped"]),
    ] {
        let mut proxy = serving(&["--drain-grace", "1h"], &action());
        let mut working = begin(&proxy, what);
        proxy.signal(Signal::TERM);
        wait_for_the_end_to_begin(&proxy);
        let_go(&proxy);
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
    wait_for_the_end_to_begin(&proxy);
    freeze(&proxy);
    let_go(&proxy);
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
fn draining_a_caller_that_leaves_is_not_waited_for_but_its_activation_is() {
    let mut proxy = serving(&["--drain-grace", "1h"], &action());
    drop(begin(&proxy, "wait"));
    proxy.signal(Signal::TERM);
    wait_for_the_end_to_begin(&proxy);
    let_go(&proxy);
    assert_eq!(proxy.wait().code(), Some(0));
    proxy.check_streams(1);
}

// Stopping.

#[test]
fn stopping_a_second_signal_kills() {
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
fn stopping_what_is_printed_then_stands_behind_no_sentinel() {
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
    for entry in fs::read_dir(root().join("tests/suite")).expect("the suites are here") {
        let path = entry.expect("the folder can be read").path();
        let file = path.file_stem().expect("a name").to_string_lossy().into_owned();
        let text = fs::read_to_string(&path).expect("a suite");
        let lines: Vec<_> = text.lines().map(str::trim).collect();
        for pair in lines.windows(2) {
            let Some((name, parameters)) = pair[1].strip_prefix("fn ").and_then(|line| line.split_once('(')) else {
                continue;
            };
            // The canonical ones are made into a test for each language that there is.
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
    let document = fs::read_to_string(root().join("docs/lifecycle.md")).expect("the document is here");
    let (_, table) = document.split_once("\n## The table\n").expect("there is a table");
    let tests = tests();
    assert!(tests.len() > 200, "the suites are not read right: {}", tests.len());
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
            assert!(tests.contains(name), "there is no test {name}, which the table names");
        }
    }
    let all: BTreeSet<_> = STATES.iter().flat_map(|state| EVENTS.iter().map(|event| (*state, *event))).collect();
    let of_the_end: BTreeSet<_> = cells.iter().filter(|(state, _)| *state == "Stopping").copied().collect();
    assert!(of_the_end.len() >= 3, "{of_the_end:?}");
    let cells: BTreeSet<_> = cells.difference(&of_the_end).copied().collect();
    assert_eq!(cells, all, "cells of the table (left) and states by events (right)");
    // What differs in version 2 is held by tests as well.
    let (_, section) = document.split_once("\n## Several activations in one process\n").expect("there is a section");
    let (section, _) = section.split_once("\n## ").expect("another one is behind it");
    let rows: Vec<_> = section.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| state ")).collect();
    assert!(rows.len() > 15, "{}", rows.len());
    for row in rows {
        let columns: Vec<_> = row.split('|').map(str::trim).collect();
        let [_, state, _, _, _, names, _] = columns[..] else { panic!("five columns: {row}") };
        assert!(STATES.contains(&state) && !names.is_empty(), "{row}");
        for name in names.split(", ").map(|name| name.trim_matches('`')) {
            assert!(tests.contains(name), "there is no test {name}, which the table of version 2 names");
        }
    }
    // Every test of this file holds a cell.
    for test in tests.iter().filter(|test| test.starts_with("lifecycle::") && !test.contains("every_cell")) {
        assert!(table.contains(&format!("`{test}`")), "the table does not name {test}");
    }
}
