//! Command lines as actions: ordinary programs, unchanged, that turn a line into a line.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use serde_json::{Value, json};

use crate::support::{Proxy, action_path, pipeloop, pipeloop_in, root, search_path};

/// Two activations by one process of a command, and what it answers.
#[track_caller]
fn answers_twice(command: &[&str], expected: [Value; 2]) {
    let arguments = [&["run", "--lines", "--restart", "never", "--"], command].concat();
    let ended = pipeloop(&arguments, &[], "{\"name\":\"Mike\"}\n{\"name\":\"Ann Lee\",\"tab\":\"\\t\"}\n");
    ended.check(0);
    let answers = ended.stdout.lines();
    let answers = answers.map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}")));
    assert_eq!(answers.collect::<Vec<Value>>(), Vec::from(expected), "{command:?}");
    assert_eq!(ended.stderr, "", "{command:?}: the log is empty");
}

/// What a filter answers that passes its input on.
fn unchanged() -> [Value; 2] {
    [json!({"name": "Mike"}), json!({"name": "Ann Lee", "tab": "\t"})]
}

/// What a filter answers that writes `hello` for `name`.
fn renamed() -> [Value; 2] {
    [json!({"hello": "Mike"}), json!({"hello": "Ann Lee", "tab": "\t"})]
}

#[test]
fn ordinary_filters_answer_unchanged() {
    answers_twice(&["jq", "-c", "{hello: .name}"], [json!({"hello": "Mike"}), json!({"hello": "Ann Lee"})]);
    answers_twice(&["cat"], unchanged());
    answers_twice(&["tee"], unchanged());
    answers_twice(&["sed", "s/name/hello/"], renamed());
    answers_twice(&["tr", "n", "g"], [json!({"game": "Mike"}), json!({"game": "Agg Lee", "tab": "\t"})]);
    answers_twice(&["grep", "name"], unchanged());
    answers_twice(&["cut", "-c", "1-"], unchanged());
    answers_twice(&["expand"], unchanged());
    answers_twice(&["fold", "-w", "1000"], unchanged());
    answers_twice(&["perl", "-pe", "s/name/hello/"], renamed());
    answers_twice(&["perl", "-ne", "print"], unchanged());
    answers_twice(&["python3", "-c", "import sys\nfor line in sys.stdin: print(line, end='')"], unchanged());
    let loop_of_bash = "while IFS= read -r line; do printf '%s\\n' \"${line/name/hello}\"; done";
    answers_twice(&["bash", "-c", loop_of_bash], renamed());
}

#[test]
fn filters_of_more_languages_answer_unchanged() {
    answers_twice(&["gawk", "{ sub(/name/, \"hello\"); print }"], renamed());
    // It buffers its input too, unless it is told not to.
    answers_twice(&["mawk", "-W", "interactive", "{ sub(/name/, \"hello\"); print }"], renamed());
    answers_twice(&["ruby", "-pe", "$_.sub!('name', 'hello')"], renamed());
    answers_twice(&["ruby", "-ne", "puts $_"], unchanged());
    let node = "require('readline').createInterface({input: process.stdin}).on('line', (line) => console.log(line))";
    answers_twice(&["node", "-e", node], unchanged());
    answers_twice(
        &["php", "-r", "while (($line = fgets(STDIN)) !== false) echo str_replace('name', 'hello', $line);"],
        renamed(),
    );
    answers_twice(&["lua5.4", "-e", "for line in io.lines() do print(line) end"], unchanged());
}

#[test]
fn compiled_filters_answer_without_a_flush() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let compile = |name: &str, source: &str, compiler: &[&str]| {
        let path = directory.path().join(name);
        fs::write(&path, source).expect("the directory can be written");
        let output = Command::new(compiler[0]).args(&compiler[1..]).arg(&path).current_dir(directory.path()).output();
        let output = output.unwrap_or_else(|error| panic!("{compiler:?}: {error}"));
        assert!(output.status.success(), "{compiler:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    let path = |name: &str| directory.path().join(name).to_str().expect("the path is UTF-8").to_owned();

    compile(
        "filter.c",
        "#include <stdio.h>\nint main(void) { char line[4096]; while (fgets(line, sizeof line, stdin)) printf(\"%s\", line); }\n",
        &["cc", "-o", "of_c"],
    );
    answers_twice(&[&path("of_c")], unchanged());
    compile("filter.hs", "main :: IO ()\nmain = interact id\n", &["ghc", "-v0", "-o", "of_haskell"]);
    answers_twice(&[&path("of_haskell")], unchanged());
    compile(
        "filter.go",
        "package main\n\nimport (\n\t\"bufio\"\n\t\"fmt\"\n\t\"os\"\n)\n\nfunc main() {\n\tlines := bufio.NewScanner(os.Stdin)\n\tfor lines.Scan() {\n\t\tfmt.Println(lines.Text())\n\t}\n}\n",
        &["go", "build", "-o", "of_go"],
    );
    answers_twice(&[&path("of_go")], unchanged());
    compile(
        "Filter.java",
        "import java.util.Scanner;\npublic class Filter {\n  public static void main(String[] args) {\n    Scanner in = new Scanner(System.in);\n    while (in.hasNextLine()) System.out.println(in.nextLine());\n  }\n}\n",
        &["javac"],
    );
    answers_twice(&["java", "-cp", directory.path().to_str().expect("the path is UTF-8"), "Filter"], unchanged());
}

/// The terminal is what makes these programs work: on a pipe they hold their answers back.
#[test]
fn on_a_pipe_a_filter_holds_its_answer_back() {
    let limit = ["--run-timeout", "1s"];
    let sed = ["-p", "name=Mike", "--", "sed", "s/name/hello/"];
    let ended = pipeloop(&[&["run", "--stdout", "pipe"], &limit[..], &sed].concat(), &[], "");
    ended.check(1);
    assert_eq!(ended.stdout, "");
    let ended =
        pipeloop(&[&["run"], &sed[..]].concat(), &[("PIPELOOP_STDOUT", "pipe"), ("PIPELOOP_RUN_TIMEOUT", "1s")], "");
    assert_eq!(ended.check(1).stdout, "");
    pipeloop(&[&["run"], &sed[..]].concat(), &[], "").check(0);
    // The other way round, a terminal for an action with a handshake that does not flush.
    let source = "import sys\nprint('{\"openwhisk\":1}')\nfor line in sys.stdin: print(line.strip())";
    let unflushed = ["-p", "name=Mike", "--protocol", "1", "--stdout", "pty", "--", "python3", "-c", source];
    let ended = pipeloop(&[&["run"], &unflushed[..]].concat(), &[], "");
    assert_eq!(ended.check(0).stdout, "{\"name\":\"Mike\"}\n");
}

#[test]
fn check_suggests_a_terminal_for_a_filter_on_a_pipe() {
    let ended = pipeloop(&["check", "--stdout", "pipe", "--timeout", "2s", "--", "sed", "s/a/b/"], &[], "");
    assert!(ended.check(1).stdout.contains("`--stdout pty`"), "{}", ended.stdout);
    let ended = pipeloop(&["check", "--strict", "-p", "name=Mike", "--", "jq", "-c", "{hello: .name}"], &[], "");
    let report = &ended.check(0).stdout;
    assert!(report.contains("protocol         filter, "), "{report}");
    let ended = pipeloop(&["check", "--json", "--", "cat", "it's here"], &[], "");
    let report: Value = serde_json::from_str(&ended.stdout).expect("the report is JSON");
    assert_eq!(report["action"], "cat 'it'\\''s here'");
}

/// What a program finds on its standard output, and what becomes of its terminal.
#[test]
fn a_terminal_is_raw_wide_and_controls_nothing() {
    let source = r#"
import json, os, sys, termios
for line in sys.stdin:
    modes = termios.tcgetattr(1)
    try:
        os.close(os.open("/dev/tty", os.O_RDWR))
        controls = True
    except OSError:
        controls = False
    print(json.dumps({
        "terminals": [os.isatty(0), os.isatty(1), os.isatty(2)],
        "width": os.get_terminal_size(1).columns,
        "echo": bool(modes[3] & termios.ECHO), "output": bool(modes[1] & termios.OPOST),
        "signals": bool(modes[3] & termios.ISIG), "controls": controls,
        "term": os.environ.get("TERM"), "plain": os.environ.get("NO_COLOR"),
    }))
"#;
    let expected = json!({
        "terminals": [false, true, false], "width": 10_000, "echo": false, "output": false, "signals": false,
        "controls": false, "term": "dumb", "plain": "1",
    });
    let ended = pipeloop(&["run", "--", "python3", "-c", source], &[("TERM", "xterm-256color")], "");
    assert_eq!(serde_json::from_str::<Value>(&ended.check(0).stdout).expect("it is JSON"), expected);
    // A filter that is uploaded gets the same, and the environment of its init wins.
    let proxy = Proxy::with_protocol("filter");
    let code = format!("#!/usr/bin/env python3{source}");
    let init = json!({"name": "filter", "main": "main", "code": code, "env": {"TERM": "vt100"}});
    proxy.init_value(&init).check(200, &json!({"ok": true}));
    let mut of_init = expected;
    of_init["term"] = json!("vt100");
    proxy.run(&json!({})).check(200, &of_init);
}

#[test]
fn escape_sequences_are_removed_from_answers() {
    let coloured = r#"import sys
for line in sys.stdin:
    print('\x1b]0;title\x07\x1b[2J\x1b[1;39m{\x1b[0m\x1b[34;1m"a"\x1b[0m:\x1b[32m"b"\x1b[0m}\x1b[K\r')"#;
    let ended = pipeloop(&["run", "--", "python3", "-c", coloured], &[], "");
    assert_eq!(ended.check(0).stdout, "{\"a\":\"b\"}\n");
    // On a pipe nobody asked for plain text, and the answer is shown as it is.
    pipeloop(&["run", "--stdout", "pipe", "--", "python3", "-uc", coloured], &[], "").check(1).says(&[r"\u{1b}[2J"]);
}

/// A terminal passes a few kilobytes at a time.
#[test]
fn large_answers_pass_a_terminal_whole() {
    for mebibytes in [1, 8] {
        let filler: String = "abcdefghijklmnopqrstuvw".chars().cycle().take(mebibytes << 20).collect();
        let input = format!("{{\"filler\":\"{filler}\"}}\n{{\"then\":\"small\"}}\n");
        let ended = pipeloop(&["run", "--lines", "--", "sed", "-n", "p"], &[], &input);
        ended.check(0);
        assert!(ended.stdout == input, "{mebibytes} MiB came back as {} bytes", ended.stdout.len());
    }
}

/// Descriptor 3 and stderr stay as they are, and standard output is a log then, whole before each sentinel.
#[test]
fn a_log_on_a_terminal_is_whole() {
    let source = r#"
import json, os, sys
for line in sys.stdin:
    number = json.loads(line)["value"]["number"]
    for at in range(2000): print("line", number, at)
    print("the end of", number, end="", flush=True)
    print("on stderr", number, file=sys.stderr, flush=True)
    os.write(3, b'{"number":%d}\n' % number)
"#;
    let mut proxy = Proxy::start(&["--protocol", "actionloop", "--stdout", "pty", "--", "python3", "-c", source], &[]);
    let mut expected = String::new();
    for number in 0..3 {
        proxy.run(&json!({"number": number})).check(200, &json!({"number": number}));
        expected.extend((0..2000).map(|at| format!("line {number} {at}\n")));
        expected.push_str(&format!("the end of {number}\n"));
        // Each before its sentinel.
        let logs = proxy.check_streams(number + 1);
        assert!(logs.stdout == expected, "the log up to activation {number}: {}", logs.stdout);
        assert!(logs.stderr.ends_with(&format!("on stderr {number}\n")), "{}", logs.stderr);
    }
    proxy.stop();
}

#[test]
fn a_command_line_is_served() {
    let mut proxy = Proxy::start(&["--", "jq", "-c", "{hello: .name, greeting: env.GREETING}"], &[]);
    proxy.run(&json!({"name": "Mike"})).check(200, &json!({"hello": "Mike", "greeting": null}));
    // The platform initialises an action of the image without code. The environment restarts the command.
    proxy.init_value(&json!({"name": "jq", "env": {"GREETING": "hi"}})).check(200, &json!({"ok": true}));
    let before = proxy.actions();
    for name in ["Ann", "Über \"日本\" \\"] {
        proxy.run(&json!({"name": name})).check(200, &json!({"hello": name, "greeting": "hi"}));
    }
    assert_eq!(proxy.actions(), before, "one process for all activations");
    proxy.check_streams(3);
    proxy.stop();
}

#[test]
fn a_script_of_an_interpreter_for_filters_can_be_uploaded() {
    let mut proxy = Proxy::plain();
    let init = |protocol: &str| json!({"name": "perl", "code": "#!/usr/bin/perl -p\ns/name/hello/;\n", "env": {"PIPELOOP_PROTOCOL": protocol}});
    proxy.init_value(&init("filter")).check(200, &json!({"ok": true}));
    proxy.run(&json!({"name": "Mike"})).check(200, &json!({"hello": "Mike"}));
    proxy.run(&json!({"name": "Ann"})).check(200, &json!({"hello": "Ann"}));
    proxy.check_streams(2);
    proxy.stop();
}

/// A command that knows a protocol keeps it.
#[test]
fn a_handshake_decides_for_a_command_too() {
    let python = root().join("examples/python");
    let path = |name: &str| python.join(name).to_str().expect("the path is UTF-8").to_owned();
    for (script, protocol) in [("hello.py", "1, "), ("hello-stream.py", "2, "), ("hello-fd3.py", "actionloop, ")] {
        let ended = pipeloop(&["check", "-p", "name=Mike", "--", "python3", &path(script)], &[], "");
        let report = &ended.check(0).stdout;
        assert!(report.contains(&format!("protocol         {protocol}")), "{script}: {report}");
    }
    let once = ["run", "--protocol", "0", "-p", "name=Mike", "--", "python3", &path("hello-once.py")];
    assert_eq!(pipeloop(&once, &[], "").check(0).stdout, "{\"hello\": \"Hello, Mike\"}\n");
    // A command line is not added to.
    let sort = ["run", "--protocol", "0", "-p", "name=Mike", "--", "sort"];
    assert_eq!(pipeloop(&sort, &[], "").check(0).stdout, "{\"name\":\"Mike\"}\n");
}

#[test]
fn a_command_is_found_as_a_shell_finds_it() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let tool = directory.path().join("tool");
    fs::write(&tool, "#!/bin/sh\npwd >&2\nexec cat\n").expect("the directory can be written");
    let run = |command: &[&str]| pipeloop_in(directory.path(), &[&["run", "--"], command].concat(), &[], "");

    run(&["tool"]).check(127).says(&["PL041", "cannot find the command `tool`", "PATH"]);
    run(&["./tool"]).check(126).says(&["tool` is not executable", "chmod +x"]);
    run(&["./other"]).check(127).says(&["`./other`", "there is no such file"]);
    run(&["/"]).check(126).says(&["`/`"]);
    run(&[""]).check(127).says(&["``"]);
    fs::set_permissions(&tool, fs::Permissions::from_mode(0o755)).expect("the file can be changed");
    let ended = run(&["./tool"]);
    ended.check(0);
    let current = directory.path().canonicalize().expect("the directory exists");
    assert_eq!(
        ended.stderr.trim_end(),
        current.to_str().expect("the path is UTF-8"),
        "it runs in the current directory"
    );
    // An action of either kind is needed, and one only.
    pipeloop(&["run"], &[], "").check(2).says(&["ACTION"]);
    pipeloop(&["run", "action", "--", "cat"], &[], "").check(2).says(&["COMMAND"]);
    // Options of the command are its own.
    let ended = pipeloop(&["run", "--", "grep", "--color=always", "-h", "{"], &[], "");
    assert_eq!(ended.check(0).stdout, "{}\n");
}

/// What is no filter gets a sentence that says so, and what to do.
#[test]
fn commands_that_are_no_filters_are_explained() {
    let run = |command: &[&str]| {
        let limits = ["run", "-p", "name=Mike", "--run-timeout", "2s", "--init-timeout", "5s", "--"];
        pipeloop(&[&limits[..], command].concat(), &[], "")
    };
    run(&["bash", "-c", "printf '> '; cat"]).check(1).says(&["PL059", "`>`", "prompt"]);
    run(&["bash", "-c", "read -r line; echo one; echo two"]).check(1).says(&["PL060", "`one`", "`two`"]);
    run(&["jq", "{hello: .name}"]).check(1).says(&["PL060", "on one line", "`jq -c`"]);
    run(&["sort"]).check(1).says(&["`--protocol 0`"]);
    run(&["jq", "-s", "."]).check(1).says(&["`--protocol 0`"]);
    run(&["echo", "hello"]).check(1).says(&["PL051", "`hello`", "PIPELOOP_PROTOCOL=0"]);
    run(&["false"]).check(1).says(&["PL051", "status 1"]);
    run(&["bash", "-c", "read -rs -p Password: word < /dev/tty && cat"]).check(1).says(&["/dev/tty"]);
    run(&["wc", "-c"]).check(1).says(&["`--protocol 0`"]);
}

/// As in an image without devices.
#[test]
fn without_a_terminal_the_output_is_a_pipe_and_the_log_says_so() {
    let script = "mount --bind /dev/null /dev/ptmx && exec \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--map-root-user", "--mount", "sh", "-c", script, "sh", env!("CARGO_BIN_EXE_pipeloop")]);
    command.args(["run", "-p", "name=Mike", "--", "jq", "--unbuffered", "-c", "{hello: .name}"]);
    command.env_clear().env("PATH", search_path());
    let output = command.output().expect("there is unshare");
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(stdout, "{\"hello\":\"Mike\"}\n", "{stderr}");
    assert!(stderr.contains("no terminal can be had"), "{stderr}");
}

#[test]
fn version_1_actions_get_a_pipe() {
    let action = action_path("counter.sh");
    let command = ["run", "--", action.to_str().expect("the path is UTF-8")];
    pipeloop(&command, &[], "").check(0);
    let shown = "test -t 1 && echo '{\"terminal\":1}' >&2; echo '{\"openwhisk\":1}'; cat";
    let file = tempfile::tempdir().expect("a temporary directory");
    let path = file.path().join("action.sh");
    fs::write(&path, format!("#!/bin/sh\n{shown}\n")).expect("the directory can be written");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("the file can be changed");
    let ended = pipeloop(&["run", path.to_str().expect("the path is UTF-8")], &[], "");
    assert_eq!(ended.check(0).stderr, "", "a file has a pipe unless it is a filter");
}
