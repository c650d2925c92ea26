//! The command line as a shell sees it.

use std::fs;
use std::os::unix::fs::symlink;

use serde_json::{Value, json};

use crate::support::command::on_terminal;
use crate::support::{Proxy, action, action_path, archive, pipeloop, pipeloop_in};

/// The path of an executable from `tests/actions/` as an argument.
fn path(name: &str) -> String {
    action_path(name).to_str().expect("the path is UTF-8").to_owned()
}

/// Runs `pipeloop run` with an action and arguments.
#[track_caller]
fn run(name: &str, args: &[&str], stdin: &str) -> testkit::command::Ended {
    let path = path(name);
    let args: Vec<&str> = ["run", &path].into_iter().chain(args.iter().copied()).collect();
    pipeloop(&args, &[], stdin)
}

/// The results on stdout, one a line.
#[track_caller]
fn results(stdout: &str) -> Vec<Value> {
    stdout.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"))).collect()
}

#[test]
fn parameters_have_types() {
    let ended = run(
        "counter.sh",
        &[
            "-p",
            "name=Mike",
            "-p",
            "age=7",
            "--param",
            "tags=[\"a\",1]",
            "-p",
            "yes=true",
            "-p",
            "nothing=null",
            "-p",
            "text=\"7\"",
            "-p",
            "empty=",
            "-p",
            "equation=a=b",
        ],
        "",
    );
    ended.check(0);
    let expected = json!({"name": "Mike", "age": 7, "tags": ["a", 1], "yes": true, "nothing": null,
        "text": "7", "empty": "", "equation": "a=b"});
    assert_eq!(results(&ended.stdout), [json!({"n": 1, "got": expected})]);
}

#[test]
fn an_action_without_arguments_gets_an_empty_object() {
    let ended = run("counter.sh", &[], "");
    assert_eq!(results(&ended.check(0).stdout), [json!({"n": 1, "got": {}})]);
}

#[test]
fn results_go_to_stdout_and_logs_to_stderr() {
    let ended = run("counter.sh", &["-p", "a=1"], "");
    ended.check(0);
    assert_eq!(ended.stdout, "{\"n\":1,\"got\":{\"a\":1}}\n");
    assert_eq!(ended.stderr, "log of 1\n", "the log without a sentinel");
}

#[test]
fn input_comes_from_a_file() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    fs::write(directory.path().join("input.json"), "{\n  \"a\": 1\n}\n").expect("the directory is writable");
    let path = path("counter.sh");
    let ended = pipeloop_in(directory.path(), &["run", &path, "--input", "input.json"], &[], "");
    assert_eq!(results(&ended.check(0).stdout), [json!({"n": 1, "got": {"a": 1}})]);
    let ended = pipeloop_in(directory.path(), &["run", &path, "-i", "input.json", "-p", "b=2"], &[], "");
    assert_eq!(results(&ended.check(0).stdout), [json!({"n": 1, "got": {"a": 1, "b": 2}})]);
    pipeloop_in(directory.path(), &["run", &path, "-i", "missing.json"], &[], "").check(1).says(&["read the input"]);
}

#[test]
fn input_comes_from_stdin() {
    let ended = run("counter.sh", &["--input", "-"], "{\"a\":1}\n");
    assert_eq!(results(&ended.check(0).stdout), [json!({"n": 1, "got": {"a": 1}})]);
    let ended = run("counter.sh", &["--input", "-"], "[1,2]");
    assert_eq!(results(&ended.check(0).stdout), [json!({"n": 1, "got": [1, 2]})]);
}

#[test]
fn input_that_is_not_json_exits_with_status_2() {
    run("counter.sh", &["--input", "-"], "{\"a\":").check(2).says(&["--input", "not JSON"]);
    run("counter.sh", &["--input", "-", "-p", "a=1"], "[1]").check(2).says(&["--input", "object"]);
}

#[test]
fn one_process_answers_all_lines() {
    let ended = run("counter.sh", &["--lines"], "{\"a\":1}\n\n{\"a\":2}\n[3]");
    let expected = [json!({"n": 1, "got": {"a": 1}}), json!({"n": 2, "got": {"a": 2}}), json!({"n": 3, "got": [3]})];
    assert_eq!(results(&ended.check(0).stdout), expected);
    assert_eq!(ended.stderr, "log of 1\nlog of 2\nlog of 3\n");
}

#[test]
fn an_invalid_line_does_not_stop_the_others() {
    let ended = run("counter.sh", &["--lines"], "{\"a\":1}\n\nnonsense\n7\n{\"a\":2}\n");
    ended.check(2);
    let expected = [json!({"n": 1, "got": {"a": 1}}), json!({"n": 2, "got": {"a": 2}})];
    assert_eq!(results(&ended.stdout), expected);
    for line in [
        "error[PL091]: `--input` cannot be used: line 3: it is not JSON: expected ident at column 2\n",
        "error[PL091]: `--input` cannot be used: line 4: The action did not receive a dictionary or array",
    ] {
        assert!(ended.stderr.contains(line), "{line:?} is missing");
    }
}

#[test]
fn an_error_result_exits_with_status_1() {
    let ended = run("fails.sh", &[], "");
    ended.check(1);
    assert_eq!(ended.stdout, "{\"error\":\"no\"}\n");
    let ended = run("fails.sh", &["--lines"], "{}\n{}\n");
    assert_eq!(ended.check(1).stdout, "{\"error\":\"no\"}\n{\"error\":\"no\"}\n");
}

#[test]
fn a_port_file_that_cannot_be_written_is_reported() {
    let args = ["serve", "--host", "127.0.0.1", "--port", "0", "--port-file", "/nonexistent/port"];
    pipeloop(&args, &[], "")
        .check(2)
        .says(&["`--port-file` cannot be used: cannot write `/nonexistent/port`: No such file"]);
}

#[test]
fn a_missing_file_exits_with_status_127() {
    pipeloop(&["run", "missing"], &[], "").check(127).says(&["error[PL041]", "`missing`"]);
    pipeloop(&["serve", "missing", "--port", "0"], &[], "").check(127).says(&["error[PL041]", "`missing`"]);
}

#[test]
fn a_file_that_cannot_be_executed_exits_with_status_126() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let write =
        |name: &str, text: &str| fs::write(directory.path().join(name), text).expect("the directory is writable");
    write("script", "#!/bin/sh\n");
    write("source.py", "print(1)\n");
    write("empty", "");
    let run = |name| pipeloop_in(directory.path(), &["run", name], &[], "");
    run("script").check(126).says(&["not executable", "chmod +x"]);
    run("source.py").check(126).says(&["source text", "print(1)"]);
    run("empty").check(126).says(&["empty"]);
}

#[test]
fn a_wrong_command_line_exits_with_status_2() {
    pipeloop::<&str>(&[], &[], "").check(2).says(&["Usage"]);
    pipeloop(&["run"], &[], "").check(2).says(&["ACTION"]);
    pipeloop(&["walk"], &[], "").check(2).says(&["walk"]);
    run("counter.sh", &["--no-such-flag"], "").check(2).says(&["--no-such-flag"]);
    run("counter.sh", &["-p", "nothing"], "").check(2).says(&["NAME=VALUE"]);
    run("counter.sh", &["-p", "=5"], "").check(2).says(&["name"]);
    run("counter.sh", &["--lines", "-p", "a=1"], "").check(2).says(&["--param", "--lines"]);
}

#[test]
fn a_crash_exits_with_the_status_of_the_action() {
    let ended = run("exits.sh", &[], "");
    ended.check(3).says(&["error[PL061]", "status 3", "last words"]);
}

#[test]
fn times_go_to_stderr() {
    let ended = run("counter.sh", &["--time", "--lines"], "{}\n{}\n");
    ended.check(0);
    assert_eq!(results(&ended.stdout).len(), 2);
    let count = |label: &str| ended.stderr.lines().filter(|line| line.starts_with(label)).count();
    assert_eq!((count("init  "), count("run   ")), (1, 2));
}

#[test]
fn a_flag_or_a_variable_sets_the_protocol() {
    let path = path("counter.sh");
    // In version 0 the last line is the result, and the lines before it are log.
    let ended = pipeloop(&["run", &path, "--protocol", "0", "-i", "-"], &[], "{\"a\":1}");
    // The input has no newline, so `read` finds no line.
    assert_eq!(ended.check(0).stdout, "{\"openwhisk\":1}\n");
    let ended = pipeloop(&["run", &path], &[("PIPELOOP_PROTOCOL", "0")], "");
    assert_eq!(ended.check(0).stdout, "{\"openwhisk\":1}\n");
    let ended = pipeloop(&["run", &path, "--protocol", "1"], &[("PIPELOOP_PROTOCOL", "0")], "");
    assert_eq!(results(&ended.check(0).stdout), [json!({"n": 1, "got": {}})]);
}

/// Starts a proxy with its action on the command line, and checks that it answers.
#[track_caller]
fn check_served(action: &str) {
    let mut proxy = Proxy::start(&[action], &[]);
    proxy.run(&json!({"a": 1})).check(200, &json!({"n": 1, "got": {"a": 1}}));
    let refused = proxy.init(&crate::support::action("counter.sh"));
    refused.check(403, &json!({"error": "Cannot initialize the action more than once."}));
    proxy.run(&json!({"a": 2})).check(200, &json!({"n": 2, "got": {"a": 2}}));
    proxy.check_streams(2);
    proxy.stop();
}

#[test]
fn a_file_is_served() {
    check_served(&path("counter.sh"));
}

#[test]
fn a_directory_is_served() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    symlink(action_path("counter.sh"), directory.path().join("exec")).expect("the directory is writable");
    check_served(directory.path().to_str().expect("the path is UTF-8"));
}

#[test]
fn a_directory_without_exec_is_refused() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    fs::create_dir(directory.path().join("folder")).expect("the directory is writable");
    fs::write(directory.path().join("folder/main.sh"), "").expect("the directory is writable");
    for command in ["run", "serve"] {
        pipeloop_in(directory.path(), &[command, "folder"], &[], "").check(1).says(&["error[PL042]", "`main.sh`"]);
    }
}

#[test]
fn archives_are_served() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let code = action("counter.sh");
    let files: &[(&str, &[u8])] = &[("exec", code.as_bytes()), ("data/file", b"x")];
    // The content decides, not the name.
    for (name, bytes) in [("action.zip", archive::zip(files)), ("action", archive::tar_gz(files))] {
        let path = directory.path().join(name);
        fs::write(&path, bytes).expect("the directory is writable");
        check_served(path.to_str().expect("the path is UTF-8"));
    }
}

#[test]
fn wrong_settings_are_refused_before_anything_starts() {
    let wrong = [
        ("PIPELOOP_MAX_BODY", "lots", "max-body"),
        ("PIPELOOP_PORT", "65536", "port"),
        ("PIPELOOP_PROTOCOL", "3", "protocol"),
        ("PIPELOOP_RUN_TIMEOUT", "0s", "run-timeout"),
        ("PIPELOOP_STOP_GRACE", "5", "stop-grace"),
        ("PIPELOOP_MAX_CONNECTIONS", "0", "max-connections"),
        ("PIPELOOP_QUEUE", "-1", "queue"),
        ("PIPELOOP_LOG", "loud", "log"),
        ("PIPELOOP_HOST", "here", "host"),
        ("PIPELOOP_STREAM_BUFFER", "some", "stream-buffer"),
        ("PIPELOOP_LOG_FORMAT", "xml", "log-format"),
    ];
    for (variable, value, flag) in wrong {
        pipeloop(&["serve"], &[(variable, value)], "").check(2).says(&[&format!("--{flag}"), value]);
    }
}

#[test]
fn bash_completion_is_a_valid_script() {
    let ended = pipeloop(&["completion", "bash"], &[], "");
    ended.check(0);
    assert_eq!(ended.stderr, "");
    assert!(ended.stdout.contains("pipeloop"));
    let directory = tempfile::tempdir().expect("a temporary directory");
    let script = directory.path().join("completion");
    fs::write(&script, &ended.stdout).expect("the directory is writable");
    let checked = std::process::Command::new("bash").arg("-n").arg(&script).output().expect("there is a bash");
    assert!(checked.status.success() && checked.stderr.is_empty(), "{checked:?}");
    pipeloop(&["completion", "cmd.exe"], &[], "").check(2).says(&["cmd.exe"]);
}

#[test]
fn explain_accepts_short_and_lower_case_codes() {
    let ended = pipeloop(&["explain", "pl12", "60"], &[], "");
    ended.check(0);
    let (first, second) = ended.stdout.split_once("\n\nPL060: ").expect("two entries, a blank line between them");
    assert!(first.starts_with("PL012: the body is empty\n\nSays:      `the body of run is empty`\nMeans:"));
    assert!(second.contains("\nCure:      print one object or array on one line"));
    assert_eq!(ended.stderr, "");
}

#[test]
fn a_terminal_gets_a_pointer_to_explain() {
    let shown = on_terminal(&["run", "missing"], "1");
    assert!(shown.contains("for more: pipeloop explain PL041"), "{shown}");
    let ended = pipeloop(&["run", "missing"], &[], "");
    assert!(!ended.check(127).stderr.contains("explain"), "a script gets no pointer");
    let shown = on_terminal(&["explain", "60"], "");
    assert!(shown.starts_with("\x1b[1mPL060: the answer is unusable\x1b[0m"), "{shown:?}");
    let styles = ["\x1b[0m", "\x1b[1m", "\x1b[2m", "\x1b[36m"];
    let widths = shown.lines().map(|line| styles.iter().fold(line.to_owned(), |line, style| line.replace(style, "")));
    assert!(
        widths.clone().count() > 6 && widths.into_iter().all(|line| line.trim_end().chars().count() <= 80),
        "{shown}"
    );
}

#[test]
fn explain_without_a_code_lists_all_codes() {
    let ended = pipeloop(&["explain"], &[], "");
    ended.check(0);
    assert!(ended.stdout.starts_with("PL010  the body is not JSON\nPL011  "));
    assert!(ended.stdout.lines().all(|line| (line.starts_with("PL0") || line.starts_with("PL1")) && line.len() > 10));
}

#[test]
fn explain_prints_json() {
    let ended = pipeloop(&["explain", "--json", "PL012"], &[], "");
    ended.check(0);
    let entries: Value = serde_json::from_str(&ended.stdout).expect("it is JSON");
    let expected = json!([{"code": "PL012", "title": "the body is empty", "says": "`the body of run is empty`",
        "means": "the body is empty or only white space. Status 400.",
        "to_get_it": "`curl -d '' localhost:8080/run`", "cure": "send at least `{}`."}]);
    assert_eq!(entries, expected);
}

#[test]
fn explain_suggests_codes_near_an_unknown_one() {
    pipeloop(&["explain", "PL009"], &[], "").check(2).says(&["PL009", "PL010 (the body is not JSON)", "PL011"]);
    pipeloop(&["explain", "handshake"], &[], "").check(2).says(&["PL055 (no handshake)"]);
    pipeloop(&["explain", "PL999"], &[], "").check(2).says(&["`pipeloop explain` lists all of them"]);
}

#[test]
fn completion_offers_error_codes() {
    // The scripts for other shells complete no positional arguments.
    for shell in ["bash", "zsh"] {
        let ended = pipeloop(&["completion", shell], &[], "");
        assert!(ended.check(0).stdout.contains("PL060"), "{shell}");
    }
}

#[test]
fn help_and_version_go_to_stdout() {
    for args in [
        &["--help"][..],
        &["run", "--help"],
        &["serve", "--help"],
        &["explain", "--help"],
        &["--version"],
        &["run", "--version"],
    ] {
        let ended = pipeloop(args, &[], "");
        ended.check(0);
        assert_eq!(ended.stderr, "", "{args:?}");
        assert!(ended.stdout.contains("pipeloop"), "{args:?}: {}", ended.stdout);
    }
}
