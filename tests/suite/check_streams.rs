//! `pipeloop check` of version 2: who keeps every promise passes whole, and each broken one fails
//! exactly its own check, with words.

use std::fs;

use serde_json::Value;

use crate::check::{checked, compiled, fault, named, written};

/// Keeps every promise. Each test breaks one line of it.
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

/// The good one with some of its lines changed.
#[track_caller]
fn broken(changes: &[(&str, &str)]) -> String {
    let mut text = GOOD.to_owned();
    for (line, instead) in changes {
        assert!(text.contains(line), "there is no {line:?}");
        text = text.replace(line, instead);
    }
    text
}

/// Asserts that nothing but this check fails, or is warned of, with this code and these words.
#[track_caller]
fn is_told(text: &str, status: &str, name: &str, code: &str, words: &[&str]) {
    let (_folder, program) = written(text);
    let (ended, report) = checked(&program, &[]);
    is_told_of(&ended, &report, status, name, code, words);
}

#[track_caller]
fn is_told_of(ended: &testkit::command::Ended, report: &Value, status: &str, name: &str, code: &str, words: &[&str]) {
    ended.check(i32::from(status == "failed"));
    let other = if status == "failed" { "warning" } else { "failed" };
    assert_eq!(named(report, status), [name], "{report:#}");
    assert_eq!(named(report, other), [""; 0], "{report:#}");
    let (found, reason, cure) = fault(report, name);
    assert_eq!(found, code, "{reason}");
    for word in words {
        assert!(reason.contains(word) || cure.contains(word), "{word:?} is missing in {reason:?} and {cure:?}");
    }
}

fn fails(changes: &[(&str, &str)], name: &str, code: &str, words: &[&str]) {
    is_told(&broken(changes), "failed", name, code, words);
}

fn warns(changes: &[(&str, &str)], name: &str, code: &str, words: &[&str]) {
    is_told(&broken(changes), "warning", name, code, words);
}

/// What was seen of a check.
fn seen<'a>(report: &'a Value, name: &str) -> &'a str {
    let checks = report["checks"].as_array().expect("checks are an array");
    let check = checks.iter().find(|check| check["name"] == name).expect("there is such a check");
    check["seen"].as_str().expect("it is a text")
}

/// A stream that is long enough to be cancelled and paused in its middle.
const LONG: (&str, &str) = ("{}, 2\n", "{}, 8\n");

#[test]
fn whoever_keeps_every_promise_passes_whole() {
    let (_folder, program) = written(&broken(&[LONG]));
    let (ended, report) = checked(&program, &["--strict"]);
    ended.check(0);
    assert_eq!(named(&report, "passed").len(), 25, "{report:#}");
    assert_eq!(seen(&report, "concurrency"), "8 at once, each got its own answer; side by side");
    assert_eq!(seen(&report, "chunks"), "up to 8, and they come before the end");
    assert_eq!(seen(&report, "cancel"), "ends what it is to end; the next one is answered");
    assert_eq!(seen(&report, "pause"), "no chunk came until it was to go on; the next one is answered");
    assert_eq!(seen(&report, "stop"), "ended with status 0");
}

#[test]
fn what_is_not_promised_is_not_asked_for() {
    let noted = (
        "    frame = json.loads(line)\n",
        "    frame = json.loads(line)\n    print(*(frame.keys() - {'run', 'value', 'context'}), file=open('heard', 'a'))\n",
    );
    let nothing = (r#","concurrency":8,"cancel":true,"pause":true,"stop":true"#, "");
    let (folder, program) = written(&broken(&[noted, nothing]));
    let (ended, report) = checked(&program, &["--strict"]);
    ended.check(0);
    assert_eq!(named(&report, "not_applicable"), ["concurrency", "cancel", "pause", "stop"], "{report:#}");
    let heard = fs::read_to_string(folder.path().join("heard")).expect("it has heard something");
    assert!(heard.lines().count() > 18 && heard.trim().is_empty(), "nothing but run frames: {heard:?}");

    // Who promises hears of it.
    let (folder, program) = written(&broken(&[noted]));
    checked(&program, &["--strict"]).0.check(0);
    let heard = fs::read_to_string(folder.path().join("heard")).expect("it has heard something");
    for frame in ["cancel", "pause", "resume", "stop"] {
        assert!(heard.lines().any(|line| line == frame), "{frame} is missing in {heard:?}");
    }
}

#[test]
fn a_frame_without_a_number_is_told() {
    let log = ("send(number, log=\"at work\")", "write(json.dumps({\"log\": \"at work\"}))");
    fails(&[log], "ids", "PL103", &["a frame has no `id`", r#"`{"log": "at work"}`"#, "`chunk` and `log` too"]);
    let all = ("json.dumps({\"id\": number, **frame})", "json.dumps(frame)");
    fails(&[all], "ids", "PL103", &["a frame has no `id`", "several may be in flight"]);
    // With one at a time it may be left out.
    let (_folder, program) = written(&broken(&[all, (r#""concurrency":8,"#, "")]));
    checked(&program, &["--strict"]).0.check(0);
}

#[test]
fn a_number_that_is_not_the_one_that_was_sent_is_told() {
    let number = "{\"id\": number, **frame}";
    let unknown = ["an `id` that is no activation's in flight", "as it came"];
    fails(&[(number, "{\"id\": str(number), **frame}")], "ids", "PL103", &[unknown[0], unknown[1], r#""id": "1""#]);
    fails(&[(number, "{\"id\": float(number), **frame}")], "ids", "PL103", &[unknown[0], unknown[1], r#""id": 1.0"#]);
    // Also one that is wrong only where nobody looks, late in a long life.
    let short = "{\"id\": number & 0xffffffff, **frame}";
    fails(&[(number, short)], "ids", "PL103", &["4294967999 was the last", r#""id": 703"#]);
    fails(&[(number, "{\"id\": 1, **frame}")], "ids", "PL103", &["2 was the last that was sent", r#""id": 1"#]);
    let own = ("    send(number, result=", "    send(number + 500, log=1)\n    send(number, result=");
    fails(&[own], "ids", "PL103", &[unknown[0], "none of its own"]);
}

#[test]
fn a_number_that_a_formatter_rounds_is_told() {
    let folder = tempfile::tempdir().expect("a folder of its own");
    let text = "#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n\
        int main(void) {\n    char *line = NULL; size_t size = 0;\n    puts(\"{\\\"openwhisk\\\":2}\"); fflush(stdout);\n\
        while (getline(&line, &size, stdin) != -1) {\n        char *run = strstr(line, \"\\\"run\\\":\");\n\
        if (run) printf(\"{\\\"id\\\":%g,\\\"result\\\":{}}\\n\", atof(run + 6));\n        fflush(stdout);\n    }\n    return 0;\n}\n";
    let program = compiled(folder.path(), "gcc", &["-o"], "action.c", text);
    let (ended, report) = checked(&program, &[]);
    is_told_of(&ended, &report, "failed", "ids", "PL103", &["1000003 was the last", "`{\"id\":1e+06,"]);
}

#[test]
fn what_comes_behind_the_end_of_an_activation_is_told() {
    let result = "    send(number, result={\"hello\": args.get(\"name\")})";
    let behind = ["behind its last one", "exactly one of"];
    fails(&[(result, &format!("{result}\n{result}"))], "ids", "PL103", &behind);
    fails(&[(result, &format!("{result}\n    send(number, chunk=\"late\")"))], "ids", "PL103", &behind);
    fails(&[(result, &format!("{result}\n    time.sleep(0.05); send(number, end=True)"))], "ids", "PL103", &behind);
}

#[test]
fn answers_that_are_mixed_up_are_told() {
    // What the reading loop has read last is taken for one's own.
    let last =
        ("        run(number, frame[\"value\"])\n", "        last = frame[\"value\"]\n        run(number, last)\n");
    let parts = ("chunk=f\"{args.get('name')} {part}\"", "chunk=part");
    let result = ("result={\"hello\": args.get(\"name\")}", "result={\"hello\": last.get(\"name\")}");
    fails(
        &[last, parts, result],
        "concurrency",
        "PL103",
        &["holds the arguments of another", "of its own thread or task"],
    );
}

#[test]
fn a_program_that_loses_some_of_several_is_told() {
    // How many it loses depends on how fast they come.
    let drops = ("def run(number, args):\n", "def run(number, args):\n    if threading.active_count() > 4: return\n");
    fails(
        &[drops],
        "concurrency",
        "PL104",
        &[r#"promises `"concurrency":8`"#, "of 8 at once ", " had not ended", "promise less"],
    );
    let refuses = (
        "def run(number, args):\n",
        "def run(number, args):\n    if threading.active_count() > 4: return send(number, error=\"busy\")\n",
    );
    fails(&[refuses], "concurrency", "PL104", &[" of 8 at once failed, and none of those that were alone", "busy"]);
}

#[test]
fn a_program_that_takes_one_after_the_other_is_warned_of() {
    let serial = ("threading.Thread(target=work, args=(number, args), daemon=True).start()", "work(number, args)");
    let handshake = (r#","cancel":true,"pause":true,"stop":true"#, r#","stop":true"#);
    let words = ["one after the other: 8 at once took", "one alone", "go on reading"];
    warns(&[serial, handshake], "concurrency", "PL104", &words);
    // Where nobody waits nobody can tell.
    let quick = ("cancelled.wait(0.03)", "cancelled.is_set()");
    let (_folder, program) = written(&broken(&[serial, handshake, quick]));
    let (ended, report) = checked(&program, &["--strict"]);
    ended.check(0);
    assert!(seen(&report, "concurrency").contains("too quick to tell"), "{report:#}");
    // Nor where a core is all that they wait for.
    let busy = (
        "cancelled.wait(0.03)",
        "any(iter(lambda begun=time.process_time(): time.process_time() - begun > 0.04, True))",
    );
    let (_folder, program) = written(&broken(&[serial, handshake, busy]));
    let (ended, report) = checked(&program, &["--strict"]);
    ended.check(0);
    assert!(seen(&report, "concurrency").contains("at work all the time"), "{report:#}");
}

#[test]
fn chunks_that_wait_for_the_end_are_warned_of() {
    let held = ("        sys.stdout.flush()\n", "        if '\"chunk\"' not in text: sys.stdout.flush()\n");
    let words = ["the chunks came only together with the end", "`\"Mike 0\"`", "flush=True"];
    let held_log = ("    send(number, log=\"at work\")\n", "");
    let program = broken(&[held, held_log, LONG, (r#""pause":true,"#, "")]);
    let program = program.replace("{args.get('name')} {part}", "Mike {part}");
    is_told(&program, "warning", "chunks", "PL094", &words);
}

#[test]
fn a_program_that_does_not_heed_cancel_is_told() {
    let heeds = "        if cancelled.wait(0.03):\n            return send(number, error=\"cancelled\")\n";
    // It forgets to end what it ends.
    let forgets = (heeds, "        if cancelled.wait(0.03):\n            return\n");
    let words = [r#"promises `"cancel":true`"#, "had not ended 2 s later", "with `error` or `end`"];
    fails(&[forgets], "cancel", "PL104", &words);
    // It ends it twice.
    let twice = (
        "        states[frame[\"cancel\"]][1].set()\n",
        "        send(frame[\"cancel\"], error=\"cancelled\")\n        states[frame[\"cancel\"]][1].set()\n",
    );
    fails(&[twice], "cancel", "PL103", &["behind its last one", "`cancel` comes late"]);
    // It has never heard of it.
    let unknown = ("    if \"run\" in frame:\n", "    if \"cancel\" in frame or \"run\" in frame:\n");
    fails(&[unknown], "cancel", "PL061", &["exited with status 1", "KeyError: 'run'"]);
    // It takes it for one that is in flight, always.
    let forgotten = ("    send(number, result=", "    states.pop(number)\n    send(number, result=");
    fails(&[("0.03", "0.01"), forgotten, (r#""pause":true,"#, "")], "cancel", "PL061", &["KeyError: "]);
    // It does not care.
    let ignores = (heeds, "        time.sleep(0.03)\n");
    warns(
        &[LONG, ignores],
        "cancel",
        "PL104",
        &["an activation that was cancelled went on for", "without that it takes"],
    );
}

#[test]
fn a_program_that_does_not_heed_pause_is_told() {
    let ignores = ("        states[frame[\"pause\"]][0].clear()\n", "        pass\n");
    let words = [r#"promises `"pause":true`"#, "chunks came in the 1", "after it was to pause", "`resume`"];
    // Only the activation that is paused is that long, which is the thirty-second.
    let long_once = ("range(parts)", "range(60 if len(states) == 32 else 2)");
    fails(&[long_once, ignores], "pause", "PL104", &words);
    let stays = ("        states[frame[\"resume\"]][0].set()\n", "        pass\n");
    fails(&[long_once, stays], "pause", "PL104", &["it did not go on within 4 s after it was to resume"]);
    let unknown = (
        "    elif \"pause\" in frame:\n",
        "    elif \"resume\" not in frame and \"stop\" not in frame:\n        frame[\"run\"]\n    elif False:\n",
    );
    fails(&[long_once, unknown], "pause", "PL061", &["KeyError: 'run'"]);
    // It does not even read while it is at work.
    let serial = ("threading.Thread(target=work, args=(number, args), daemon=True).start()", "work(number, args)");
    let long_once = ("range(parts)", "range(60 if len(states) == 21 else 2)");
    let only_pause = (r#""concurrency":8,"cancel":true,"pause""#, r#""pause""#);
    let words = ["chunks came in the 1", "could know it"];
    fails(&[serial, long_once, only_pause], "pause", "PL104", &words);
}

#[test]
fn a_program_that_does_not_end_on_stop_is_told() {
    let hangs = ("        break\n", "        time.sleep(1000)\n");
    let words = [
        r#"promises `"stop":true`"#,
        "did not end within 1 s after `stop` and the end of its input",
        "exit with status 0",
    ];
    fails(&[hangs], "stop", "PL104", &words);
    let unknown = ("    elif \"stop\" in frame:\n        break\n", "    else:\n        frame[\"run\"]\n");
    fails(&[unknown], "stop", "PL104", &["it exited with status 1 when `stop` came"]);
    // It may as well wait for the end of its input.
    let (_folder, program) = written(&broken(&[("        break\n", "        continue\n")]));
    checked(&program, &["--strict"]).0.check(0);
}

#[test]
fn lines_that_are_no_frames_are_told() {
    let one = (r#""concurrency":8,"#, "");
    let result = "send(number, result={\"hello\": args.get(\"name\")})";
    // An answer of version 1.
    let bare = (result, "write(json.dumps({\"hello\": args.get(\"name\")}))");
    for changes in [&[bare][..], &[bare, one]] {
        fails(
            changes,
            "framing",
            "PL100",
            &["none of `chunk`, `result`", r#"`{"hello": "Mike"}`"#, "one JSON object a line"],
        );
    }
    let pretty = (result, "write(json.dumps({\"id\": number, \"result\": {}}, indent=1))");
    for changes in [&[pretty][..], &[pretty, one]] {
        fails(changes, "framing", "PL100", &["not JSON", "`{`"]);
    }
    fails(&[(result, "send(number, result=5)")], "framing", "PL060", &["a number, not an object or array"]);
    let debug = (result, "write(\"debug\"); send(number, result={\"hello\": args.get(\"name\")})");
    for changes in [&[debug][..], &[debug, one]] {
        fails(changes, "channel", "PL095", &["something else than answers on stdout: `debug`", "descriptor 3"]);
    }
}

#[test]
fn a_stream_without_an_end_is_told() {
    let endless = ("range(parts)", "iter(int, 1)");
    let words = ["no end came within 500 ms", "chunks did", "`result`, `error` or `end`"];
    let (_folder, program) = written(&broken(&[endless]));
    let (ended, report) = checked(&program, &["--timeout", "500ms"]);
    is_told_of(&ended, &report, "failed", "answers", "PL064", &words[1..]);
    let (_, reason, _) = fault(&report, "answers");
    assert!(reason.starts_with("no end came within 5"), "{reason}");
}
