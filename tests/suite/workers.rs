//! Several processes of one action: `PIPELOOP_WORKERS`, as `docs/lifecycle.md` has it.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::{Caller, Logs, Proxy, eventually, processes};

/// Version 1 in shell: `body` is done for each `$line`, in a process that knows its `$$`.
fn pipe_loop(body: &str) -> String {
    format!("#!/bin/bash\necho '{{\"openwhisk\":1}}'\nwhile IFS= read -r line; do\n{body}\ndone\n")
}

/// Waits until so many processes are in the middle of an activation, and answers with its pid.
fn meets(processes: usize) -> String {
    pipe_loop(&format!("{}; echo \"{{\\\"pid\\\":$$}}\"", meeting(processes)))
}

fn meeting(processes: usize) -> String {
    format!(": > here.$$; until [ $(ls here.* | wc -l) -ge {processes} ]; do sleep 0.01; done")
}

/// Removes what a meeting has left behind.
fn part(proxy: &Proxy) {
    let place = fs::read_link(format!("/proc/{}/cwd", proxy.actions()[0])).expect("the action runs");
    for entry in fs::read_dir(place).expect("its folder can be read") {
        let entry = entry.expect("its folder can be read");
        if entry.file_name().to_string_lossy().starts_with("here.") {
            fs::remove_file(entry.path()).expect("it can be removed");
        }
    }
}

#[track_caller]
fn serving(args: &[&str], env: &[(&str, &str)], code: &str) -> Proxy {
    let proxy = Proxy::start(args, env);
    proxy.init(code).check(200, &json!({"ok": true}));
    proxy
}

/// Sends so many activations, all of them before the first is answered.
#[track_caller]
fn send(proxy: &Proxy, count: usize) -> Vec<Caller> {
    (0..count)
        .map(|n| {
            let mut caller = proxy.caller();
            let body = json!({"value": {"n": n}}).to_string();
            caller.send_request("POST", "/run", body.as_bytes());
            caller
        })
        .collect()
}

#[track_caller]
fn answers(callers: Vec<Caller>) -> Vec<Value> {
    let answer = |mut caller: Caller| {
        let response = caller.receive().expect("an answer");
        assert_eq!(response.status, 200, "{}", response.text());
        response.json()
    };
    callers.into_iter().map(answer).collect()
}

/// So many activations at once, each in a process of its own.
#[track_caller]
fn check_at_once(proxy: &Proxy, count: usize) {
    let pids: HashSet<i64> =
        answers(send(proxy, count)).iter().map(|answer| answer["pid"].as_i64().expect("a pid")).collect();
    assert_eq!(pids.len(), count, "{pids:?}");
}

#[test]
fn as_many_activations_as_workers_run_at_once() {
    // Nobody answers before all four are in it.
    let proxy = serving(&["--workers", "4"], &[], &meets(4));
    check_at_once(&proxy, 4);
    assert_eq!(proxy.actions().len(), 4);
    // They are kept, and nobody else joins them. They meet anew: without that, one that is fast could answer two.
    part(&proxy);
    check_at_once(&proxy, 4);
    assert_eq!(proxy.actions().len(), 4);
    proxy.check_streams(8);
}

#[test]
fn version_0_runs_as_many_processes_at_once_as_there_are_workers() {
    let code = format!("#!/bin/bash\n{}\necho \"{{\\\"pid\\\":$$}}\"\n", meeting(3));
    let proxy = serving(&["--workers", "3", "--protocol", "0"], &[], &code);
    check_at_once(&proxy, 3);
    proxy.check_streams(3);
}

#[test]
fn no_more_processes_are_started_than_activations_come_at_once() {
    let proxy = serving(&["--workers", "4"], &[], &meets(1));
    assert_eq!(proxy.actions().len(), 1, "init starts one");
    let before = proxy.actions();
    for _ in 0..10 {
        proxy.run(&json!({}));
    }
    assert_eq!(proxy.actions(), before);
}

#[test]
fn a_concurrent_container_has_a_worker_a_core_unless_told_otherwise() {
    let cores = std::thread::available_parallelism().expect("cores can be counted").get();
    let concurrent = ("__OW_ALLOW_CONCURRENT", "true");
    check_at_once(&serving(&[], &[concurrent], &meets(cores)), cores);
    check_at_once(&serving(&[], &[("PIPELOOP_WORKERS", "auto")], &meets(cores)), cores);
    check_at_once(&serving(&["--workers", "3"], &[concurrent], &meets(3)), 3);
    // One after another, or they would never come to an end.
    for env in [&[concurrent, ("PIPELOOP_WORKERS", "1")][..], &[("__OW_ALLOW_CONCURRENT", "false")]] {
        let alone = pipe_loop("mkdir alone || exit 9; sleep 0.02; rmdir alone; echo \"{\\\"pid\\\":$$}\"");
        let proxy = serving(&[], env, &alone);
        answers(send(&proxy, 8));
        assert_eq!(proxy.actions().len(), 1);
    }
}

#[test]
fn the_queue_begins_behind_the_workers() {
    let code = pipe_loop(": > here.$$; until [ -e go ]; do sleep 0.01; done; echo '{}'");
    let proxy = serving(&["--workers", "2", "--queue", "1"], &[], &code);
    let folder = proxy.workdir().join("action/1/bin");
    let working = send(&proxy, 2);
    wait_for_two(&folder);
    // Of two more, one finds a place and one does not; whichever that is, it is told at once.
    let mut others = send(&proxy, 2);
    let refused = eventually("one is refused", || {
        others.iter_mut().position(|caller| !caller.is_silent_for(std::time::Duration::from_millis(20)))
    });
    let refused = others.remove(refused).receive().expect("an answer");
    refused.check_error(429, &["PIPELOOP_QUEUE", ": 1"]);
    assert_eq!(refused.header("retry-after"), Some("1"));
    // A caller that leaves makes room for another.
    drop(others);
    let next = eventually("there is a place again", || {
        let mut next = send(&proxy, 1).remove(0);
        next.is_silent_for(std::time::Duration::from_millis(200)).then_some(next)
    });
    fs::write(folder.join("go"), "").expect("the folder is there");
    answers(working);
    answers(vec![next]);
    proxy.check_streams(3);
}

/// Until two processes are in the middle of an activation.
fn wait_for_two(folder: &Path) {
    eventually("two are at work", || {
        let names = fs::read_dir(folder).expect("the folder is there").flatten();
        (names.filter(|entry| entry.file_name().to_string_lossy().starts_with("here.")).count() == 2).then_some(())
    });
}

// Logs.

#[test]
fn the_log_of_each_activation_stands_together_with_its_sentinel() {
    let lines = "for i in {1..20}; do echo \"$line $i\"; sleep 0.002; done";
    let body = format!("{}; {lines} >&2; {lines} >&4; echo '{{}}'", meeting(3));
    // Both streams: the dialect logs on stdout as well.
    let code = format!("#!/bin/bash\nexec 4>&1 1>&3\nwhile IFS= read -r line; do\n{body}\ndone\n");
    let proxy = serving(&["--workers", "3", "--protocol", "actionloop"], &[], &code);
    for _ in 0..3 {
        answers(send(&proxy, 3));
    }
    proxy.check_streams(9);
    let logs = proxy.logs();
    for stream in [&logs.stdout, &logs.stderr] {
        let activations = Logs::activations(stream);
        assert_eq!(activations.len(), 10, "{stream}");
        assert_eq!(activations[9], "");
        for log in &activations[..9] {
            let first = log.lines().next().expect("it logs").trim_end_matches(" 1");
            let expected: Vec<_> = (1..=20).map(|i| format!("{first} {i}")).collect();
            assert_eq!(log.lines().collect::<Vec<_>>(), expected);
        }
    }
}

#[test]
fn a_log_too_large_to_gather_passes_in_whole_lines() {
    const LINES: usize = 2_000;
    let body = format!(
        "{}; for ((i = 0; i < {LINES}; i++)); do echo \"$line of many lines, this is number $i\"; done >&2; echo '{{}}'",
        meeting(3)
    );
    let proxy = serving(&["--workers", "3", "--log-backlog", "4KiB"], &[], &pipe_loop(&body));
    answers(send(&proxy, 3));
    let logs = proxy.check_streams(3);
    let mut next = [0; 3];
    for line in logs.stderr.lines() {
        let (arguments, number) = line.split_once(" of many lines, this is number ").expect("lines are whole");
        let n = serde_json::from_str::<Value>(arguments).expect("lines are whole")["n"].as_u64().expect("a number");
        let next = &mut next[usize::try_from(n).expect("three of them")];
        assert_eq!(number, next.to_string(), "in order");
        *next += 1;
    }
    assert_eq!(next, [LINES; 3]);
}

#[test]
fn a_line_too_long_to_gather_is_broken_and_holds_nobody_up() {
    // The first begins a line and does not end it before the second has been answered.
    let body = format!(
        "{}; case $line in *0*) head -c 10000 /dev/zero | tr '\\0' x >&2; until [ -e go ]; do sleep 0.01; done; \
         echo end >&2;; *) echo second >&2;; esac; echo '{{}}'",
        meeting(2)
    );
    let proxy = serving(&["--workers", "2", "--log-backlog", "4KiB"], &[], &pipe_loop(&body));
    let mut callers = send(&proxy, 2);
    answers(vec![callers.remove(1)]);
    proxy.wait_for("the beginning of the line is out", |logs| logs.stderr.contains("xxx\n"));
    fs::write(proxy.workdir().join("action/1/bin/go"), "").expect("the folder is there");
    answers(callers);
    let logs = proxy.check_streams(2);
    let lines: Vec<_> = logs.stderr.lines().collect();
    assert!(lines.contains(&"second") && lines.len() > 2, "{} lines", lines.len());
    let others = lines.iter().filter(|line| **line != "second");
    let text: String = others.copied().collect();
    assert!(text == format!("{}end", "x".repeat(10_000)), "{} bytes", text.len());
}

// Deaths.

#[test]
fn a_death_takes_one_activation_with_it_and_no_other() {
    let body = format!("{}; case $line in *1*) kill -9 $$;; esac; sleep 0.1; echo \"$line\"", meeting(4));
    let proxy = serving(&["--workers", "4"], &[], &pipe_loop(&body));
    for round in 1..=3 {
        for (n, mut caller) in send(&proxy, 4).into_iter().enumerate() {
            let response = caller.receive().expect("an answer");
            if n == 1 {
                response.check_error(502, &["signal 9", "before it answered"]);
            } else {
                response.check(200, &json!({ "n": n }));
            }
        }
        proxy.check_streams(4 * round);
    }
}

#[test]
fn a_process_that_does_not_start_takes_no_activation_from_one_that_lives() {
    // The first process is the only one that ever starts.
    let code = pipe_loop("sleep 0.05; echo \"{\\\"pid\\\":$$}\"").replacen(
        '\n',
        "\nmkdir only || { echo cannot start >&2; exit 3; }\n",
        1,
    );
    let proxy = serving(&["--workers", "4"], &[], &code);
    let pids: HashSet<String> = answers(send(&proxy, 12)).iter().map(ToString::to_string).collect();
    assert_eq!(pids.len(), 1, "one process answers all of them");
    proxy.check_streams(12);
    // Once it is gone as well, its end is told.
    let pid = proxy.actions()[0];
    rustix::process::kill_process(rustix::process::Pid::from_raw(pid).expect("a pid"), Signal::KILL).expect("it lives");
    eventually("it is gone", || (!processes::lives(pid)).then_some(()));
    proxy.run(&json!({})).check_error(502, &["status 3", "cannot start"]);
}

// Init and the end.

#[test]
fn an_init_of_the_image_starts_all_workers_anew() {
    let folder = tempfile::tempdir().expect("a folder of its own");
    let path = folder.path().join("exec");
    fs::write(&path, pipe_loop(&format!("{}; echo \"{{\\\"pid\\\":$$,\\\"v\\\":\\\"$V\\\"}}\"", meeting(2))))
        .expect("ours");
    fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("ours");
    let proxy = Proxy::start(&["--workers".as_ref(), "2".as_ref(), path.as_os_str()], &[]);
    let old: HashSet<i32> = {
        answers(send(&proxy, 2));
        proxy.actions().into_iter().collect()
    };
    assert_eq!(old.len(), 2);
    proxy.init_value(&json!({"env": {"V": "new"}})).check(200, &json!({"ok": true}));
    for answer in answers(send(&proxy, 2)) {
        assert_eq!(answer["v"], "new");
    }
    let new = proxy.actions();
    assert!(new.len() <= 2 && new.iter().all(|pid| !old.contains(pid)), "{old:?} {new:?}");
}

#[test]
fn at_the_end_all_workers_finish_and_all_processes_leave() {
    let code = format!("{}echo left >> left\nsleep 600 &\n", meets(3));
    let mut proxy = serving(&["--workers", "3", "--drain-grace", "20s"], &[], &code);
    let folder = proxy.workdir().join("action/1/bin");
    // Two of three: they wait for the third, which comes when the end has begun.
    let callers = send(&proxy, 2);
    wait_for_two(&folder);
    let groups = proxy.actions();
    proxy.signal(Signal::TERM);
    eventually("the end has begun", || Caller::connect(proxy.port()).err());
    assert_eq!(groups.len(), 2, "what is in flight goes on");
    fs::write(folder.join("here.third"), "").expect("the folder is there");
    answers(callers);
    assert_eq!(proxy.wait().code(), Some(0));
    proxy.check_streams(2);
    processes::await_end_of_groups(&groups);
}

#[test]
fn at_the_end_all_workers_are_cut_or_killed() {
    for second_signal in [false, true] {
        let grace = if second_signal { "1h" } else { "200ms" };
        let mut proxy = serving(&["--workers", "2", "--drain-grace", grace, "--stop-grace", grace], &[], &meets(3));
        let folder = proxy.workdir().join("action/1/bin");
        let callers = send(&proxy, 2);
        wait_for_two(&folder);
        let groups = proxy.actions();
        proxy.signal(Signal::TERM);
        if second_signal {
            eventually("the end has begun", || Caller::connect(proxy.port()).err());
            proxy.signal(Signal::TERM);
        }
        for mut caller in callers {
            caller.receive().expect("an answer").check_error(502, &["the proxy shut down"]);
        }
        assert_eq!(proxy.wait().code(), Some(0));
        proxy.check_streams(2);
        processes::await_end_of_groups(&groups);
    }
}

#[test]
fn a_count_of_workers_that_cannot_be_used_is_told() {
    for wrong in ["0", "1025", "many"] {
        let ended = crate::support::pipeloop(&["serve", "--workers", wrong], &[], "");
        ended.check(2).says(&["--workers", "`auto` or a count from 1 to 1024"]);
    }
}
