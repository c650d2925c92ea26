//! `pipeloop check` of version 2: an action that keeps every promise passes, and a broken promise fails exactly
//! its own check.

use std::fs;

use serde_json::Value;

use crate::check::{compile_program, first_fault, names_with_status, run_check, write_program};

/// An action that keeps every promise. Each test breaks one line of it.
const GOOD: &str = r#"#!/usr/bin/env python3
import json, sys, threading, time

lock, states, parts = threading.Lock(), {}, 2

def write(text):
    with lock:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()

def send(number, **frame):
    write(json.dumps({"id": number, **frame}))

def work(number, args):
    going, cancelled = states[number]
    send(number, log="at work")
    for part in range(parts):
        if cancelled.wait(0.03):
            return send(number, error="cancelled")
        going.wait()
        send(number, chunk=f"{args.get('name')} {part}")
    send(number, result={"hello": args.get("name")})

def run(number, args):
    threading.Thread(target=work, args=(number, args), daemon=True).start()

write('{"openwhisk":2,"concurrency":8,"cancel":true,"pause":true,"stop":true}')
for line in sys.stdin:
    frame = json.loads(line)
    if "run" in frame:
        number = frame["run"]
        states[number] = threading.Event(), threading.Event()
        states[number][0].set()
        run(number, frame["value"])
    elif "cancel" in frame:
        states[frame["cancel"]][1].set()
        states[frame["cancel"]][0].set()
    elif "pause" in frame:
        states[frame["pause"]][0].clear()
    elif "resume" in frame:
        states[frame["resume"]][0].set()
    elif "stop" in frame:
        break
"#;

/// [`GOOD`] with some of its lines changed.
#[track_caller]
fn with_changes(changes: &[(&str, &str)]) -> String {
    let mut text = GOOD.to_owned();
    for (line, replacement) in changes {
        assert!(text.contains(line), "{line:?} is missing");
        text = text.replace(line, replacement);
    }
    text
}

/// Asserts that only this check fails, or gets a warning, with this code and these words.
#[track_caller]
fn check_reported(text: &str, status: &str, name: &str, code: &str, words: &[&str]) {
    let (_directory, program) = write_program(text);
    let (ended, report) = run_check(&program, &[]);
    check_report(&ended, &report, status, name, code, words);
}

#[track_caller]
fn check_report(ended: &testkit::command::Ended, report: &Value, status: &str, name: &str, code: &str, words: &[&str]) {
    ended.check(i32::from(status == "failed"));
    let other = if status == "failed" { "warning" } else { "failed" };
    assert_eq!(names_with_status(report, status), [name], "{report:#}");
    assert_eq!(names_with_status(report, other), [""; 0], "{report:#}");
    let (found, reason, hint) = first_fault(report, name);
    assert_eq!(found, code, "{reason}");
    for word in words {
        assert!(reason.contains(word) || hint.contains(word), "{word:?} is missing in {reason:?} and {hint:?}");
    }
}

fn check_fails(changes: &[(&str, &str)], name: &str, code: &str, words: &[&str]) {
    check_reported(&with_changes(changes), "failed", name, code, words);
}

fn check_warns(changes: &[(&str, &str)], name: &str, code: &str, words: &[&str]) {
    check_reported(&with_changes(changes), "warning", name, code, words);
}

/// The observation of a check.
fn observation<'a>(report: &'a Value, name: &str) -> &'a str {
    let checks = report["checks"].as_array().expect("checks are an array");
    let check = checks.iter().find(|check| check["name"] == name).expect("there is such a check");
    check["seen"].as_str().expect("the observation is a string")
}

/// Makes the stream long enough to be cancelled or paused.
const LONG: (&str, &str) = ("{}, 2\n", "{}, 8\n");

#[test]
fn an_action_that_keeps_every_promise_passes() {
    let (_directory, program) = write_program(&with_changes(&[LONG]));
    let (ended, report) = run_check(&program, &["--strict"]);
    ended.check(0);
    assert_eq!(names_with_status(&report, "passed").len(), 25, "{report:#}");
    assert_eq!(observation(&report, "concurrency"), "8 at once, each got its own answer; concurrently");
    assert_eq!(observation(&report, "chunks"), "up to 8, before the last frame");
    assert_eq!(observation(&report, "cancel"), "the cancelled activation ends; the next one is answered");
    assert_eq!(observation(&report, "pause"), "no chunk came between `pause` and `resume`; the next one is answered");
    assert_eq!(observation(&report, "stop"), "exited with status 0");
}

#[test]
fn check_sends_no_frames_that_were_not_promised() {
    let records_frames = (
        "    frame = json.loads(line)\n",
        "    frame = json.loads(line)\n    print(*(frame.keys() - {'run', 'value', 'context'}), file=open('received', 'a'))\n",
    );
    let no_promises = (r#","concurrency":8,"cancel":true,"pause":true,"stop":true"#, "");
    let (directory, program) = write_program(&with_changes(&[records_frames, no_promises]));
    let (ended, report) = run_check(&program, &["--strict"]);
    ended.check(0);
    assert_eq!(names_with_status(&report, "not_applicable"), ["concurrency", "cancel", "pause", "stop"], "{report:#}");
    let received = fs::read_to_string(directory.path().join("received")).expect("the action has received frames");
    assert!(
        received.lines().count() > 18 && received.trim().is_empty(),
        "it got other frames than `run`: {received:?}"
    );

    // An action that promises gets the frames.
    let (directory, program) = write_program(&with_changes(&[records_frames]));
    run_check(&program, &["--strict"]).0.check(0);
    let received = fs::read_to_string(directory.path().join("received")).expect("the action has received frames");
    for frame in ["cancel", "pause", "resume", "stop"] {
        assert!(received.lines().any(|line| line == frame), "{frame} is missing in {received:?}");
    }
}

#[test]
fn a_frame_without_an_id_is_reported() {
    let log = ("send(number, log=\"at work\")", "write(json.dumps({\"log\": \"at work\"}))");
    check_fails(&[log], "ids", "PL103", &["a frame has no `id`", r#"`{"log": "at work"}`"#, "`chunk` and `log` too"]);
    let all = ("json.dumps({\"id\": number, **frame})", "json.dumps(frame)");
    check_fails(&[all], "ids", "PL103", &["a frame has no `id`", "several may be in flight"]);
    // With a concurrency of 1 the id may be left out.
    let (_directory, program) = write_program(&with_changes(&[all, (r#""concurrency":8,"#, "")]));
    run_check(&program, &["--strict"]).0.check(0);
}

#[test]
fn a_changed_id_is_reported() {
    let number = "{\"id\": number, **frame}";
    let unknown = ["an `id` of no activation in flight", "unchanged"];
    check_fails(
        &[(number, "{\"id\": str(number), **frame}")],
        "ids",
        "PL103",
        &[unknown[0], unknown[1], r#""id": "1""#],
    );
    check_fails(
        &[(number, "{\"id\": float(number), **frame}")],
        "ids",
        "PL103",
        &[unknown[0], unknown[1], r#""id": 1.0"#],
    );
    // Also an id that is wrong only after many activations.
    let short = "{\"id\": number & 0xffffffff, **frame}";
    check_fails(&[(number, short)], "ids", "PL103", &["4294967999 was the last", r#""id": 703"#]);
    check_fails(&[(number, "{\"id\": 1, **frame}")], "ids", "PL103", &["2 was the last that was sent", r#""id": 1"#]);
    let own = ("    send(number, result=", "    send(number + 500, log=1)\n    send(number, result=");
    check_fails(&[own], "ids", "PL103", &[unknown[0], "no id of its own"]);
}

#[test]
fn a_rounded_id_is_reported() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let text = "#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n\
        int main(void) {\n    char *line = NULL; size_t size = 0;\n    puts(\"{\\\"openwhisk\\\":2}\"); fflush(stdout);\n\
        while (getline(&line, &size, stdin) != -1) {\n        char *run = strstr(line, \"\\\"run\\\":\");\n\
        if (run) printf(\"{\\\"id\\\":%g,\\\"result\\\":{}}\\n\", atof(run + 6));\n        fflush(stdout);\n    }\n    return 0;\n}\n";
    let program = compile_program(directory.path(), "gcc", &["-o"], "action.c", text);
    let (ended, report) = run_check(&program, &[]);
    check_report(&ended, &report, "failed", "ids", "PL103", &["1000003 was the last", "`{\"id\":1e+06,"]);
}

#[test]
fn frames_after_the_last_one_are_reported() {
    let result = "    send(number, result={\"hello\": args.get(\"name\")})";
    let behind = ["after its last one", "exactly one of"];
    check_fails(&[(result, &format!("{result}\n{result}"))], "ids", "PL103", &behind);
    check_fails(&[(result, &format!("{result}\n    send(number, chunk=\"late\")"))], "ids", "PL103", &behind);
    check_fails(
        &[(result, &format!("{result}\n    time.sleep(0.05); send(number, end=True)"))],
        "ids",
        "PL103",
        &behind,
    );
}

#[test]
fn swapped_answers_are_reported() {
    // Each thread uses the arguments that the loop read last.
    let last =
        ("        run(number, frame[\"value\"])\n", "        last = frame[\"value\"]\n        run(number, last)\n");
    let parts = ("chunk=f\"{args.get('name')} {part}\"", "chunk=part");
    let result = ("result={\"hello\": args.get(\"name\")}", "result={\"hello\": last.get(\"name\")}");
    check_fails(
        &[last, parts, result],
        "concurrency",
        "PL103",
        &["holds the arguments of another", "of its own thread or task"],
    );
}

#[test]
fn lost_activations_are_reported() {
    // The number of lost activations depends on the speed of the machine.
    let drops = ("def run(number, args):\n", "def run(number, args):\n    if threading.active_count() > 4: return\n");
    check_fails(
        &[drops],
        "concurrency",
        "PL104",
        &[r#"promises `"concurrency":8`"#, "of 8 at once ", " had not ended", "promise a smaller"],
    );
    let refuses = (
        "def run(number, args):\n",
        "def run(number, args):\n    if threading.active_count() > 4: return send(number, error=\"busy\")\n",
    );
    check_fails(&[refuses], "concurrency", "PL104", &[" of 8 at once failed, and no single one did", "busy"]);
}

#[test]
fn sequential_activations_get_a_warning() {
    let serial = ("threading.Thread(target=work, args=(number, args), daemon=True).start()", "work(number, args)");
    let handshake = (r#","cancel":true,"pause":true,"stop":true"#, r#","stop":true"#);
    let words = ["one after the other: 8 at once took", "a single one", "go on reading"];
    // No activation here reaches the limit. On a busy machine eight activations in sequence may take long.
    let limit = ["--timeout", "60s"];
    // Long activations, so that a delay of the machine is small beside them.
    let slow = ("cancelled.wait(0.03)", "cancelled.wait(0.06)");
    let (_directory, program) = write_program(&with_changes(&[serial, handshake, slow]));
    let (ended, report) = run_check(&program, &limit);
    check_report(&ended, &report, "warning", "concurrency", "PL104", &words);
    // If no activation waits, their order cannot be measured.
    let quick = ("cancelled.wait(0.03)", "cancelled.is_set()");
    let (_directory, program) = write_program(&with_changes(&[serial, handshake, quick]));
    let (ended, report) = run_check(&program, &[&["--strict"], &limit[..]].concat());
    ended.check(0);
    assert!(observation(&report, "concurrency").contains("too quick to tell"), "{report:#}");
    // The same if they wait only for a core. The work ends after a time on the clock, as a sleep does, so that the load of
    // the machine hardly changes its duration. Four threads do it, to get a share of a loaded CPU; `sha256` lets them run
    // at once.
    let spin = (
        "def work(",
        "def spin():\n    end = time.monotonic() + 0.06\n    def burn():\n\
         \x20       while time.monotonic() < end: hashlib.sha256(block)\n\
         \x20   for _ in range(3): threading.Thread(target=burn).start()\n    burn()\n\n\
         block = bytes(200_000)\n\ndef work(",
    );
    let busy = ("cancelled.wait(0.03)", "spin()");
    let import = ("import json,", "import hashlib, json,");
    let (_directory, program) = write_program(&with_changes(&[serial, handshake, import, spin, busy]));
    let (ended, report) = run_check(&program, &[&["--strict"], &limit[..]].concat());
    ended.check(0);
    assert!(observation(&report, "concurrency").contains("busy all the time"), "{report:#}");
}

#[test]
fn chunks_that_wait_for_the_last_frame_get_a_warning() {
    let held = ("        sys.stdout.flush()\n", "        if '\"chunk\"' not in text: sys.stdout.flush()\n");
    let words = ["the chunks came only together with the last frame", "`\"Mike 0\"`", "flush=True"];
    let held_log = ("    send(number, log=\"at work\")\n", "");
    let program = with_changes(&[held, held_log, LONG, (r#""pause":true,"#, "")]);
    let program = program.replace("{args.get('name')} {part}", "Mike {part}");
    check_reported(&program, "warning", "chunks", "PL094", &words);
}

#[test]
fn an_ignored_cancel_is_reported() {
    let honours = "        if cancelled.wait(0.03):\n            return send(number, error=\"cancelled\")\n";
    // It stops the work and sends no last frame.
    let forgets = (honours, "        if cancelled.wait(0.03):\n            return\n");
    let words = [r#"promises `"cancel":true`"#, "had not ended 2 s later", "with `error` or `end`"];
    check_fails(&[forgets], "cancel", "PL104", &words);
    // It sends two last frames.
    let twice = (
        "        states[frame[\"cancel\"]][1].set()\n",
        "        send(frame[\"cancel\"], error=\"cancelled\")\n        states[frame[\"cancel\"]][1].set()\n",
    );
    check_fails(&[twice], "cancel", "PL103", &["after its last one", "`cancel` comes late"]);
    // It does not know `cancel`.
    let unknown = ("    if \"run\" in frame:\n", "    if \"cancel\" in frame or \"run\" in frame:\n");
    check_fails(&[unknown], "cancel", "PL061", &["exited with status 1", "KeyError: 'run'"]);
    // It assumes that the id is still in flight.
    let forgotten = ("    send(number, result=", "    states.pop(number)\n    send(number, result=");
    check_fails(&[("0.03", "0.01"), forgotten, (r#""pause":true,"#, "")], "cancel", "PL061", &["KeyError: "]);
    // It ignores `cancel`.
    let ignores = (honours, "        time.sleep(0.03)\n");
    check_warns(
        &[LONG, ignores],
        "cancel",
        "PL104",
        &["a cancelled activation went on for", "without `cancel` it takes"],
    );
}

#[test]
fn an_ignored_pause_is_reported() {
    let ignores = ("        states[frame[\"pause\"]][0].clear()\n", "        pass\n");
    let words = [r#"promises `"pause":true`"#, "chunks came in the 1", "after it had time to read `pause`", "`resume`"];
    // Only the activation that is paused is long: the 32nd.
    let long_once = ("range(parts)", "range(60 if len(states) == 32 else 2)");
    check_fails(&[long_once, ignores], "pause", "PL104", &words);
    let stays = ("        states[frame[\"resume\"]][0].set()\n", "        pass\n");
    check_fails(&[long_once, stays], "pause", "PL104", &["it did not go on within 4 s after `resume`"]);
    let unknown = (
        "    elif \"pause\" in frame:\n",
        "    elif \"resume\" not in frame and \"stop\" not in frame:\n        frame[\"run\"]\n    elif False:\n",
    );
    check_fails(&[long_once, unknown], "pause", "PL061", &["KeyError: 'run'"]);
    // It does not read its input while it works.
    let serial = ("threading.Thread(target=work, args=(number, args), daemon=True).start()", "work(number, args)");
    let long_once = ("range(parts)", "range(60 if len(states) == 21 else 2)");
    let only_pause = (r#""concurrency":8,"cancel":true,"pause""#, r#""pause""#);
    let words = ["chunks came in the 1", "had time to read"];
    check_fails(&[serial, long_once, only_pause], "pause", "PL104", &words);
}

#[test]
fn an_ignored_stop_is_reported() {
    let hangs = ("        break\n", "        time.sleep(1000)\n");
    let words = [
        r#"promises `"stop":true`"#,
        "did not exit within 1 s after `stop` and the end of its input",
        "exit with status 0",
    ];
    check_fails(&[hangs], "stop", "PL104", &words);
    let unknown = ("    elif \"stop\" in frame:\n        break\n", "    else:\n        frame[\"run\"]\n");
    check_fails(&[unknown], "stop", "PL104", &["it exited with status 1 when `stop` came"]);
    // It may wait for the end of its input instead.
    let (_directory, program) = write_program(&with_changes(&[("        break\n", "        continue\n")]));
    run_check(&program, &["--strict"]).0.check(0);
}

#[test]
fn lines_that_are_not_frames_are_reported() {
    let one = (r#""concurrency":8,"#, "");
    let result = "send(number, result={\"hello\": args.get(\"name\")})";
    // An answer of version 1.
    let bare = (result, "write(json.dumps({\"hello\": args.get(\"name\")}))");
    for changes in [&[bare][..], &[bare, one]] {
        check_fails(
            changes,
            "framing",
            "PL100",
            &["none of `chunk`, `result`", r#"`{"hello": "Mike"}`"#, "one JSON object a line"],
        );
    }
    let pretty = (result, "write(json.dumps({\"id\": number, \"result\": {}}, indent=1))");
    for changes in [&[pretty][..], &[pretty, one]] {
        check_fails(changes, "framing", "PL100", &["not JSON", "`{`"]);
    }
    check_fails(&[(result, "send(number, result=5)")], "framing", "PL060", &["a number, not an object or array"]);
    let debug = (result, "write(\"debug\"); send(number, result={\"hello\": args.get(\"name\")})");
    for changes in [&[debug][..], &[debug, one]] {
        check_fails(changes, "channel", "PL095", &["something other than answers on stdout: `debug`", "descriptor 3"]);
    }
}

#[test]
fn a_stream_without_a_last_frame_is_reported() {
    let endless = ("range(parts)", "iter(int, 1)");
    let words = ["no last frame came within 500 ms", "chunks did", "`result`, `error` or `end`"];
    let (_directory, program) = write_program(&with_changes(&[endless]));
    let (ended, report) = run_check(&program, &["--timeout", "500ms"]);
    check_report(&ended, &report, "failed", "answers", "PL064", &words[1..]);
    let (_, reason, _) = first_fault(&report, "answers");
    assert!(reason.starts_with("no last frame came within 5"), "{reason}");
}
