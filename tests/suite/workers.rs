//! Several processes of one action: `PIPELOOP_WORKERS`, as documented in `docs/lifecycle.md`.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::{Caller, Logs, Proxy, eventually, processes};

/// Version 1 in shell: runs `body` for each `$line`.
fn pipe_loop(body: &str) -> String {
    format!("#!/bin/bash\necho '{{\"openwhisk\":1}}'\nwhile IFS= read -r line; do\n{body}\ndone\n")
}

/// Waits until this many processes are in the middle of an activation, and answers with its pid.
fn waits_for_others(processes: usize) -> String {
    pipe_loop(&format!("{}; echo \"{{\\\"pid\\\":$$}}\"", barrier(processes)))
}

/// Shell code that waits until this many processes have come to it.
fn barrier(processes: usize) -> String {
    format!(": > here.$$; until [ $(ls here.* | wc -l) -ge {processes} ]; do sleep 0.01; done")
}

/// Removes the files of the barrier, so that it can be used again.
fn reset_barrier(proxy: &Proxy) {
    let directory = fs::read_link(format!("/proc/{}/cwd", proxy.actions()[0])).expect("the action is alive");
    for entry in fs::read_dir(directory).expect("the directory is readable") {
        let entry = entry.expect("the directory is readable");
        if entry.file_name().to_string_lossy().starts_with("here.") {
            fs::remove_file(entry.path()).expect("the file is removable");
        }
    }
}

#[track_caller]
fn serving(args: &[&str], env: &[(&str, &str)], code: &str) -> Proxy {
    let proxy = Proxy::start(args, env);
    proxy.init(code).check(200, &json!({"ok": true}));
    proxy
}

/// Sends this many activations, all of them before the first is answered.
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

/// Runs this many activations concurrently, each in a process of its own.
#[track_caller]
fn check_concurrent(proxy: &Proxy, count: usize) {
    let pids: HashSet<i64> =
        answers(send(proxy, count)).iter().map(|answer| answer["pid"].as_i64().expect("a pid")).collect();
    assert_eq!(pids.len(), count, "{pids:?}");
}

#[test]
fn as_many_activations_as_workers_run_at_once() {
    // No process answers before all four are at the barrier.
    let proxy = serving(&["--workers", "4"], &[], &waits_for_others(4));
    check_concurrent(&proxy, 4);
    assert_eq!(proxy.actions().len(), 4);
    // The processes stay, and no other is started. Without a reset of the barrier a fast process could answer two.
    reset_barrier(&proxy);
    check_concurrent(&proxy, 4);
    assert_eq!(proxy.actions().len(), 4);
    proxy.check_streams(8);
}

#[test]
fn version_0_runs_one_process_for_each_worker() {
    let code = format!("#!/bin/bash\n{}\necho \"{{\\\"pid\\\":$$}}\"\n", barrier(3));
    let proxy = serving(&["--workers", "3", "--protocol", "0"], &[], &code);
    check_concurrent(&proxy, 3);
    proxy.check_streams(3);
}

#[test]
fn activations_one_after_another_start_no_second_process() {
    let proxy = serving(&["--workers", "4"], &[], &waits_for_others(1));
    assert_eq!(proxy.actions().len(), 1, "init starts one");
    let before = proxy.actions();
    for _ in 0..10 {
        proxy.run(&json!({}));
    }
    assert_eq!(proxy.actions(), before);
}

#[test]
fn a_concurrent_container_has_one_worker_per_core_by_default() {
    let cores = std::thread::available_parallelism().expect("cores can be counted").get();
    let concurrent = ("__OW_ALLOW_CONCURRENT", "true");
    check_concurrent(&serving(&[], &[concurrent], &waits_for_others(cores)), cores);
    check_concurrent(&serving(&[], &[("PIPELOOP_WORKERS", "auto")], &waits_for_others(cores)), cores);
    check_concurrent(&serving(&["--workers", "3"], &[concurrent], &waits_for_others(3)), 3);
    // One after another: a second process would fail at `mkdir`.
    for env in [&[concurrent, ("PIPELOOP_WORKERS", "1")][..], &[("__OW_ALLOW_CONCURRENT", "false")]] {
        let exclusive = pipe_loop("mkdir lock || exit 9; sleep 0.02; rmdir lock; echo \"{\\\"pid\\\":$$}\"");
        let proxy = serving(&[], env, &exclusive);
        answers(send(&proxy, 8));
        assert_eq!(proxy.actions().len(), 1);
    }
}

#[test]
fn activations_queue_once_all_workers_are_busy() {
    let code = pipe_loop(": > here.$$; until [ -e go ]; do sleep 0.01; done; echo '{}'");
    let proxy = serving(&["--workers", "2", "--queue", "1"], &[], &code);
    let directory = proxy.workdir().join("action/1/bin");
    let working = send(&proxy, 2);
    wait_for_two(&directory);
    // Of two more, one fits into the queue; the other is refused at once.
    let mut others = send(&proxy, 2);
    let refused = eventually("one activation is refused", || {
        others.iter_mut().position(|caller| !caller.is_silent_for(std::time::Duration::from_millis(20)))
    });
    let refused = others.remove(refused).receive().expect("an answer");
    refused.check_error(429, &["PIPELOOP_QUEUE", ": 1"]);
    assert_eq!(refused.header("retry-after"), Some("1"));
    // A caller that leaves frees its place in the queue.
    drop(others);
    let next = eventually("the queue has a free place again", || {
        let mut next = send(&proxy, 1).remove(0);
        next.is_silent_for(std::time::Duration::from_millis(200)).then_some(next)
    });
    fs::write(directory.join("go"), "").expect("the directory exists");
    answers(working);
    answers(vec![next]);
    proxy.check_streams(3);
}

/// Waits until two processes are in the middle of an activation.
fn wait_for_two(directory: &Path) {
    eventually("two processes are busy", || {
        let names = fs::read_dir(directory).expect("the directory exists").flatten();
        (names.filter(|entry| entry.file_name().to_string_lossy().starts_with("here.")).count() == 2).then_some(())
    });
}

// Logs.

#[test]
fn the_log_of_each_activation_is_contiguous_with_its_sentinel() {
    let lines = "for i in {1..20}; do echo \"$line $i\"; sleep 0.002; done";
    let body = format!("{}; {lines} >&2; {lines} >&4; echo '{{}}'", barrier(3));
    // Both streams: the actionloop dialect also logs on stdout.
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
            let first = log.lines().next().expect("the activation logs").trim_end_matches(" 1");
            let expected: Vec<_> = (1..=20).map(|i| format!("{first} {i}")).collect();
            assert_eq!(log.lines().collect::<Vec<_>>(), expected);
        }
    }
}

#[test]
fn a_log_too_large_to_buffer_passes_in_whole_lines() {
    const LINES: usize = 2_000;
    let body = format!(
        "{}; for ((i = 0; i < {LINES}; i++)); do echo \"$line of many lines, this is number $i\"; done >&2; echo '{{}}'",
        barrier(3)
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
fn a_line_too_long_to_buffer_is_split_and_delays_no_other() {
    // The first activation begins a line and ends it only after the second has been answered.
    let body = format!(
        "{}; case $line in *0*) head -c 10000 /dev/zero | tr '\\0' x >&2; until [ -e go ]; do sleep 0.01; done; \
         echo end >&2;; *) echo second >&2;; esac; echo '{{}}'",
        barrier(2)
    );
    let proxy = serving(&["--workers", "2", "--log-backlog", "4KiB"], &[], &pipe_loop(&body));
    let mut callers = send(&proxy, 2);
    answers(vec![callers.remove(1)]);
    proxy.wait_for("the beginning of the line is logged", |logs| logs.stderr.contains("xxx\n"));
    fs::write(proxy.workdir().join("action/1/bin/go"), "").expect("the directory exists");
    answers(callers);
    let logs = proxy.check_streams(2);
    let lines: Vec<_> = logs.stderr.lines().collect();
    assert!(lines.contains(&"second") && lines.len() > 2, "{} lines", lines.len());
    let others = lines.iter().filter(|line| **line != "second");
    let text: String = others.copied().collect();
    assert!(text == format!("{}end", "x".repeat(10_000)), "{} bytes", text.len());
}

// Crashes.

#[test]
fn a_crash_fails_one_activation_and_no_other() {
    let body = format!("{}; case $line in *1*) kill -9 $$;; esac; sleep 0.1; echo \"$line\"", barrier(4));
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
fn a_process_that_fails_to_start_takes_no_activation_from_a_live_one() {
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
    // Once that process is gone as well, the failure is reported.
    let pid = proxy.actions()[0];
    rustix::process::kill_process(rustix::process::Pid::from_raw(pid).expect("a pid"), Signal::KILL)
        .expect("the process is alive");
    eventually("the process is gone", || (!processes::lives(pid)).then_some(()));
    proxy.run(&json!({})).check_error(502, &["status 3", "cannot start"]);
}

// Init and shutdown.

#[test]
fn an_init_of_the_images_action_restarts_all_workers() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("exec");
    fs::write(&path, pipe_loop(&format!("{}; echo \"{{\\\"pid\\\":$$,\\\"v\\\":\\\"$V\\\"}}\"", barrier(2))))
        .expect("the directory is writable");
    fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("the directory is writable");
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
fn at_shutdown_all_workers_finish_and_all_processes_exit() {
    let code = format!("{}echo left >> left\nsleep 600 &\n", waits_for_others(3));
    let mut proxy = serving(&["--workers", "3", "--drain-grace", "20s"], &[], &code);
    let directory = proxy.workdir().join("action/1/bin");
    // Two of three: they wait for the third, which comes once the shutdown has begun.
    let callers = send(&proxy, 2);
    wait_for_two(&directory);
    let groups = proxy.actions();
    proxy.signal(Signal::TERM);
    eventually("the shutdown has begun", || Caller::connect(proxy.port()).err());
    assert_eq!(groups.len(), 2, "activations in flight go on");
    fs::write(directory.join("here.third"), "").expect("the directory exists");
    answers(callers);
    assert_eq!(proxy.wait().code(), Some(0));
    proxy.check_streams(2);
    processes::await_end_of_groups(&groups);
}

#[test]
fn at_shutdown_all_workers_are_cut_off_or_killed() {
    for second_signal in [false, true] {
        let grace = if second_signal { "1h" } else { "200ms" };
        let mut proxy =
            serving(&["--workers", "2", "--drain-grace", grace, "--stop-grace", grace], &[], &waits_for_others(3));
        let directory = proxy.workdir().join("action/1/bin");
        let callers = send(&proxy, 2);
        wait_for_two(&directory);
        let groups = proxy.actions();
        proxy.signal(Signal::TERM);
        if second_signal {
            eventually("the shutdown has begun", || Caller::connect(proxy.port()).err());
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

/// Version 1 in shell: marks its activation as begun, waits for the file `go`, and answers with its arguments.
fn waits() -> String {
    pipe_loop(
        "case $line in *exit*) exit 3;; esac; : > begun.${line//[^0-9]/}; until [ -e go ]; do sleep 0.01; done; \
         printf '%s\\n' \"$line\"",
    )
}

#[track_caller]
fn send_numbered(proxy: &Proxy, n: usize) -> Caller {
    let mut caller = proxy.caller();
    caller.send_request("POST", "/run", json!({"value": {"n": n}}).to_string().as_bytes());
    caller
}

#[track_caller]
fn begin_numbered(proxy: &Proxy, n: usize) -> Caller {
    let caller = send_numbered(proxy, n);
    let begun = proxy.workdir().join(format!("action/1/bin/begun.{n}"));
    eventually("the activation runs", || begun.exists().then_some(()));
    caller
}

/// Sends SIGTERM while these activations run or wait, and checks that each gets its answer.
#[track_caller]
fn check_drained(mut proxy: Proxy, callers: Vec<Caller>) {
    // When another request is answered, every request before it was read.
    let mut kept = proxy.caller();
    for _ in 0..2 {
        kept.call("GET", "/", b"");
    }
    proxy.signal(Signal::TERM);
    eventually("the shutdown has begun", || Caller::connect(proxy.port()).err());
    fs::write(proxy.workdir().join("action/1/bin/go"), "").expect("the directory exists");
    for (n, mut caller) in callers.into_iter().enumerate() {
        caller.receive().expect("an answer").check(200, &json!({ "n": n }));
    }
    // No worker waits for the end of the grace.
    assert_eq!(proxy.wait().code(), Some(0));
}

/// Issue 12.
#[test]
fn at_shutdown_several_workers_work_the_queue_off() {
    // Fewer activations than workers, as many, and more.
    for total in [2, 3, 9] {
        let proxy = serving(&["--workers", "3", "--drain-grace", "1h"], &[], &waits());
        let callers = (0..total).map(|n| if n < 3 { begin_numbered(&proxy, n) } else { send_numbered(&proxy, n) });
        let callers = callers.collect();
        check_drained(proxy, callers);
    }
}

/// Issue 12.
#[test]
fn at_shutdown_a_worker_that_may_not_start_a_process_delays_nothing() {
    let proxy = serving(&["--workers", "2", "--restart", "never", "--drain-grace", "1h"], &[], &waits());
    let first = begin_numbered(&proxy, 0);
    // The second process ends, and its worker may start no other.
    proxy.run(&json!({"do": "exit"})).check_error(502, &["status 3"]);
    let callers = vec![first, send_numbered(&proxy, 1), send_numbered(&proxy, 2)];
    check_drained(proxy, callers);
}

#[test]
fn an_invalid_count_of_workers_is_refused() {
    for invalid in ["0", "1025", "many"] {
        let ended = crate::support::pipeloop(&["serve", "--workers", invalid], &[], "");
        ended.check(2).says(&["--workers", "`auto` or a count from 1 to 1024"]);
    }
}
