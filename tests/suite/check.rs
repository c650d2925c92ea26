//! `pipeloop check`: a good action passes, and a broken promise fails exactly its own check.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

use crate::support::command::on_terminal;
use crate::support::{action_path, archive, eventually, pipeloop, pipeloop_in, processes, root, search_path};
use testkit::command::Ended;

/// The checks that only version 2 has.
const OF_VERSION_2: [&str; 6] = ["ids", "concurrency", "chunks", "cancel", "pause", "stop"];

/// Writes an executable into a temporary directory.
pub(crate) fn write_program(text: &str) -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("action");
    fs::write(&path, text).expect("the directory is writable");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("the file is writable");
    (directory, path)
}

/// A loop of version 1 in Python, with code before the loop and code for each line.
fn python(before: &str, each: &str) -> String {
    let each = each.replace('\n', "\n    ");
    format!(
        "#!/usr/bin/env python3\nimport json, os, signal, sys, time\n{before}\nprint('{{\"openwhisk\":1}}', flush=True)\n\
         for line in sys.stdin:\n    args = json.loads(line)\n    answer = {{'hello': args.get('name', 'stranger')}}\n    {each}\n"
    )
}

const ANSWER: &str = "print(json.dumps(answer), flush=True)";

/// Runs `pipeloop check --json` on a program, with short time limits.
#[track_caller]
pub(crate) fn run_check(program: &Path, args: &[&str]) -> (Ended, Value) {
    let program = program.to_str().expect("the path is UTF-8");
    let mut all = vec!["check", program, "--json", "--stop-grace", "2s"];
    if !args.contains(&"--timeout") {
        // Long enough for 1 MiB on a busy machine, and short enough for a test.
        all.extend(["--timeout", "4s"]);
    }
    let args = [&all, args].concat();
    let ended = pipeloop(&args, &[], "");
    let report: Value = serde_json::from_str(&ended.stdout).unwrap_or_else(|error| panic!("{error}"));
    (ended, report)
}

/// The names of the checks with this status.
pub(crate) fn names_with_status(report: &Value, status: &str) -> Vec<String> {
    let checks = report["checks"].as_array().expect("checks are an array");
    let of_status = checks.iter().filter(|check| check["status"] == status);
    of_status.map(|check| check["name"].as_str().expect("a check has a name").to_owned()).collect()
}

/// The first fault of a check: code, reason and hint.
pub(crate) fn first_fault<'a>(report: &'a Value, name: &str) -> (&'a str, &'a str, &'a str) {
    let checks = report["checks"].as_array().expect("checks are an array");
    let check = checks.iter().find(|check| check["name"] == name).expect("there is such a check");
    let text = |member: &str| check["faults"][0][member].as_str().unwrap_or_default();
    (text("code"), text("reason"), text("hint"))
}

/// Asserts that exactly one check fails, with this code and these words in its reason and hint.
#[track_caller]
fn check_fails(text: &str, args: &[&str], name: &str, code: &str, words: &[&str]) {
    let (_directory, program) = write_program(text);
    check_program_fails(&program, args, 1, name, code, words);
}

#[track_caller]
fn check_program_fails(program: &Path, args: &[&str], status: i32, name: &str, code: &str, words: &[&str]) {
    let (ended, report) = run_check(program, args);
    ended.check(status);
    assert_eq!(names_with_status(&report, "failed"), [name], "{report:#}");
    assert_eq!(names_with_status(&report, "warning"), [""; 0], "{report:#}");
    let (found, reason, hint) = first_fault(&report, name);
    assert_eq!(found, code, "{reason}");
    for word in words {
        assert!(reason.contains(word) || hint.contains(word), "{word:?} is missing in {reason:?} and {hint:?}");
    }
}

#[test]
fn an_unflushed_answer_gets_a_hint_for_its_language() {
    let text = python("", "print(json.dumps(answer))");
    check_fails(
        &text,
        &[],
        "flushed",
        "PL094",
        &["the answer came only", r#"{"hello": "Mike"}"#, "python3 -u", "flush=True"],
    );
    let jq = "#!/bin/sh\necho '{\"openwhisk\":1}'\nexec jq -c '{hello:.name}'\n";
    check_fails(jq, &[], "flushed", "PL094", &["jq --unbuffered"]);
    let sed = "#!/bin/sh\necho '{\"openwhisk\":1}'\nsed 's/name/hello/'\n";
    check_fails(sed, &[], "flushed", "PL094", &["sed -u"]);
    let perl = "#!/usr/bin/perl\n{ local $| = 1; print qq({\"openwhisk\":1}\\n); }\nwhile (<STDIN>) { print; }\n";
    check_fails(perl, &[], "flushed", "PL094", &["$| = 1"]);
}

#[test]
fn an_unflushed_answer_gets_a_hint_for_its_compiler() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let c = "#include <stdio.h>\nint main(void) { char line[2000000]; puts(\"{\\\"openwhisk\\\":1}\"); fflush(stdout);\n\
             while (fgets(line, sizeof line, stdin)) fputs(line, stdout); return 0; }\n";
    let program = compile_program(directory.path(), "gcc", &["-o"], "action.c", c);
    check_program_fails(&program, &[], 1, "flushed", "PL094", &["fflush(stdout)"]);
    let go = "package main\nimport (\"bufio\"; \"os\")\nfunc main() {\n\tos.Stdout.WriteString(\"{\\\"openwhisk\\\":1}\\n\")\n\
              \tin, out := bufio.NewReader(os.Stdin), bufio.NewWriterSize(os.Stdout, 4<<20)\n\tdefer out.Flush()\n\
              \tfor {\n\t\tline, err := in.ReadString('\\n')\n\t\tif err != nil {\n\t\t\treturn\n\t\t}\n\t\tout.WriteString(line)\n\t}\n}\n";
    let program = compile_program(directory.path(), "go", &["build", "-o"], "action.go", go);
    check_program_fails(&program, &[], 1, "flushed", "PL094", &["bufio.Writer"]);
}

/// Compiles a program, with the environment of the test: compilers have homes and caches.
#[track_caller]
pub(crate) fn compile_program(directory: &Path, compiler: &str, args: &[&str], name: &str, text: &str) -> PathBuf {
    fs::write(directory.join(name), text).expect("the directory is writable");
    let target = directory.join(name.replace('.', "-"));
    let mut command = Command::new(compiler);
    command.args(args).arg(&target).arg(name).current_dir(directory).env("PATH", search_path());
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    target
}

#[test]
fn an_unflushed_handshake_is_reported() {
    let text = python("", "print(json.dumps(answer))").replace(", flush=True)\nfor", ")\nfor");
    check_fails(&text, &[], "flushed", "PL094", &["the handshake came only", "python3 -u"]);
}

#[test]
fn a_missing_handshake_is_reported() {
    let text = python("", ANSWER).replace("print('{\"openwhisk\":1}', flush=True)\n", "");
    check_fails(
        &text,
        &[],
        "protocol",
        "PL055",
        &["answers on stdout", "has not sent a handshake", r#"{"openwhisk":1}"#],
    );
    let asked_for = ["--protocol", "1", "--init-timeout", "1s"];
    check_fails(&text, &asked_for, "protocol", "PL055", &["has not sent the handshake"]);
}

#[test]
fn an_answer_on_several_lines_is_reported() {
    let text = python("", "print(json.dumps(answer, indent=1), flush=True)");
    check_fails(&text, &[], "framing", "PL060", &["more than one line", "no pretty-printing"]);
    // The same, with each line in a write of its own.
    let text = python("", "for part in ['[', '{}', ']']:\n    print(part, flush=True); time.sleep(0.05)");
    check_fails(&text, &[], "framing", "PL060", &["`[`"]);
}

#[test]
fn an_answer_that_is_not_an_object_is_reported() {
    check_fails(
        &python("", "print(5, flush=True)"),
        &[],
        "framing",
        "PL060",
        &["a number, not an object or array: `5`"],
    );
    check_fails(&python("", "print('nope', flush=True)"), &[], "framing", "PL060", &["is not JSON", "`nope`"]);
}

#[test]
fn debug_output_on_stdout_is_reported() {
    let before = python("", &format!("print('debug')\n{ANSWER}"));
    check_fails(
        &before,
        &[],
        "channel",
        "PL095",
        &["something other than answers on stdout: `debug`", "stderr", "descriptor 3"],
    );
    let apart = python("", &format!("print('debug', flush=True)\ntime.sleep(0.05)\n{ANSWER}"));
    check_fails(&apart, &[], "channel", "PL095", &["`debug`"]);
    // After the answer it is a stray line, which is reported after all activations. The action reads its next line a moment
    // later: a stray that arrives when some of that line has been read passes for its answer.
    let behind = python("", &format!("{ANSWER}\ntime.sleep(0.05)\nprint('debug', flush=True)\ntime.sleep(0.2)"));
    check_fails(&behind, &[], "channel", "PL095", &["`debug`"]);
}

#[test]
fn a_crash_on_a_long_line_is_reported() {
    let text = python("", &format!("if len(line) > 100000: sys.exit('too long for me')\n{ANSWER}"));
    check_fails(&text, &[], "large", "PL061", &["exited with status 1", "too long for me"]);
}

#[test]
fn a_slow_answer_is_not_reported_as_unflushed() {
    let text = python("", &format!("time.sleep(1000)\n{ANSWER}"));
    check_fails(&text, &["--timeout", "300ms"], "answers", "PL064", &["within", "still at work", "--timeout"]);
    // It reads its input and writes nothing.
    check_fails(&python("", "pass"), &["--timeout", "300ms"], "answers", "PL064", &["at the end of its input either"]);
}

#[test]
fn a_crash_on_the_second_activation_is_reported() {
    let text = python("count = 0", &format!("count += 1\nif count == 2: os.abort()\n{ANSWER}"));
    check_fails(&text, &[], "reused", "PL061", &["SIGABRT"]);
}

#[test]
fn a_crash_without_suitable_arguments_is_reported() {
    let text = python("", &format!("args['city']\n{ANSWER}"));
    let (_directory, program) = write_program(&text);
    check_program_fails(&program, &[], 1, "answers", "PL061", &["KeyError: 'city'"]);
    // With suitable arguments it still crashes on others.
    let (ended, report) = run_check(&program, &["-p", "city=Berlin"]);
    ended.check(1);
    assert_eq!(names_with_status(&report, "failed"), ["empty", "unknown"], "{report:#}");
}

#[test]
fn mangled_unicode_is_reported() {
    let latin = "sys.stdout.buffer.write((json.dumps(answer, ensure_ascii=False) + '\\n').encode('latin-1', 'replace')); sys.stdout.flush()";
    check_fails(&python("", latin), &[], "unicode", "PL096", &["invalid UTF-8", "UTF-8 in every locale"]);
    let ascii = latin.replace("latin-1", "ascii");
    check_fails(&python("", &ascii), &[], "unicode", "PL096", &["characters were replaced"]);
    let twice = "answer = json.loads(json.dumps(answer, ensure_ascii=False).encode().decode('latin-1'))\nprint(json.dumps(answer), flush=True)";
    check_fails(&python("", twice), &[], "unicode", "PL096", &["Latin-1"]);
    let crashes = "json.dumps(answer, ensure_ascii=False).encode('ascii')\nprint(json.dumps(answer), flush=True)";
    check_fails(&python("", crashes), &[], "unicode", "PL061", &["UnicodeEncodeError"]);
}

#[test]
fn an_answer_to_another_activation_is_reported() {
    let late = "print(json.dumps(globals().get('last', answer)), flush=True); last = answer";
    check_fails(&python("", late), &[], "sequence", "PL095", &["activation 2", "another activation"]);
}

#[test]
fn a_program_that_ignores_the_end_of_its_input_is_reported() {
    let text = format!("{}\nwhile True: time.sleep(60)\n", python("", ANSWER));
    check_fails(&text, &[], "end_of_file", "PL097", &["did not exit within 1 s after the end of its input", "killed"]);
}

#[test]
fn a_program_that_ignores_sigterm_is_reported() {
    let text = python("signal.signal(signal.SIGTERM, signal.SIG_IGN)", ANSWER);
    check_fails(&text, &[], "sigterm", "PL098", &["did not exit within 1 s after SIGTERM"]);
}

#[test]
fn an_orphan_is_reported_and_killed() {
    let (directory, program) = write_program(&python(
        "if os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        open('pid', 'w').write(str(os.getpid()))\n        \
         os.closerange(0, 100); os.execvp('sleep', ['sleep', '1000'])\n    os._exit(0)\n",
        ANSWER,
    ));
    check_program_fails(&program, &[], 1, "orphans", "PL099", &["outlive", "`sleep`"]);
    let pid =
        fs::read_to_string(directory.path().join("pid")).expect("the daemon has started").parse().expect("a number");
    eventually("the daemon has exited", || (!processes::lives(pid)).then_some(()));
}

#[test]
fn a_program_that_is_not_an_action_is_reported() {
    for program in ["/bin/true", "/bin/pwd"] {
        check_program_fails(
            Path::new(program),
            &[],
            1,
            "starts",
            "PL051",
            &["exited with status 0", "PIPELOOP_PROTOCOL=0"],
        );
    }
    let dies = "#!/bin/sh\necho 'no such table' >&2\nexit 5\n";
    check_fails(dies, &[], "starts", "PL051", &["exited with status 5", "no such table"]);
}

#[test]
fn a_missing_interpreter_is_reported_without_a_start() {
    let (_directory, program) = write_program("#!/usr/bin/nonexistent\n");
    let (ended, report) = run_check(&program, &[]);
    ended.check(126);
    assert_eq!(names_with_status(&report, "failed"), ["executable"], "{report:#}");
    assert!(first_fault(&report, "executable").1.contains("/usr/bin/nonexistent"), "{report:#}");
    assert_eq!(names_with_status(&report, "passed"), ["recognised"]);
}

#[test]
fn a_missing_shared_library_is_reported_without_a_start() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let here = directory.path();
    fs::write(here.join("part.c"), "int part(void) { return 1; }").expect("the directory is writable");
    let made = Command::new("gcc").args(["-shared", "-fPIC", "-o", "libpart.so", "part.c"]).current_dir(here).status();
    assert!(made.expect("there is gcc").success());
    let text = "int part(void); int main(void) { return part(); }";
    let program = compile_program(
        here,
        "gcc",
        &["-L.", "-Wl,-rpath,$ORIGIN", "-Wl,--no-as-needed", "-lpart", "-o"],
        "action.c",
        text,
    );
    fs::remove_file(here.join("libpart.so")).expect("the library was compiled");
    // The status of the dynamic loader.
    check_program_fails(&program, &[], 127, "executable", "PL075", &["libpart.so"]);
}

#[test]
fn missing_and_empty_actions_have_their_own_status() {
    let (ended, report) = run_check(Path::new("/nonexistent"), &[]);
    ended.check(127);
    assert_eq!(names_with_status(&report, "failed"), ["recognised"]);
    assert_eq!(first_fault(&report, "recognised").0, "PL041");
    let (_directory, empty) = write_program("");
    run_check(&empty, &[]).0.check(126);
    let path = action_path("counter.sh");
    let path = path.to_str().expect("the path is UTF-8");
    pipeloop(&["check"], &[], "").check(2).says(&["ACTION"]);
    pipeloop(&["check", path, "--timeout", "0s"], &[], "").check(2).says(&["--timeout"]);
    pipeloop(&["check", path, "--image-root", "/nonexistent"], &[], "").check(2).says(&["--image-root"]);
    pipeloop(&["check", path, "--input", "-"], &[], "{").check(2).says(&["--input", "not JSON"]);
}

#[test]
fn a_program_that_answers_once_gets_a_warning() {
    let (_directory, program) =
        write_program("#!/bin/sh\necho '{\"openwhisk\":1}'\nread -r line\necho '{\"hello\":\"once\"}'\n");
    let (ended, report) = run_check(&program, &[]);
    ended.check(0);
    assert_eq!(names_with_status(&report, "failed"), [""; 0], "{report:#}");
    assert_eq!(names_with_status(&report, "warning"), ["reused"], "{report:#}");
    assert!(first_fault(&report, "reused").2.contains("--protocol 0"));
    assert_eq!(names_with_status(&report, "not_reached"), ["sequence"]);
    run_check(&program, &["--strict"]).0.check(1);
}

#[test]
fn an_exit_status_other_than_0_gets_a_warning() {
    let (_directory, program) = write_program(&format!("{}\nsys.exit(3)\n", python("", ANSWER)));
    let (ended, report) = run_check(&program, &[]);
    ended.check(0);
    assert_eq!(names_with_status(&report, "warning"), ["end_of_file"], "{report:#}");
    assert!(first_fault(&report, "end_of_file").1.contains("exited with status 3"));
}

#[test]
fn version_0_is_checked_with_a_process_for_each_activation() {
    let version_0 = ["--protocol", "0"];
    let (_directory, program) = write_program("#!/bin/sh\necho log\necho '{\"hello\":\"you\"}'\n");
    let (ended, report) = run_check(&program, &version_0);
    ended.check(0);
    let apart = ["starts", "flushed", "reused"].into_iter().chain(OF_VERSION_2).chain(["channel", "sigterm"]);
    assert_eq!(names_with_status(&report, "not_applicable"), apart.collect::<Vec<_>>(), "{report:#}");
    assert_eq!(names_with_status(&report, "passed").len(), 14, "{report:#}");
    assert_eq!((&report["protocol"], &report["protocol_evidence"]), (&"0".into(), &"setting".into()));

    check_fails("#!/bin/sh\necho 5\n", &version_0, "framing", "PL060", &["a number"]);
    check_fails("#!/bin/sh\nexit 3\n", &version_0, "answers", "PL060", &["without an answer", "status 3"]);
    check_fails(
        "#!/bin/sh\necho '{}'\nexec >&- 2>&-\nexec sleep 60\n",
        &version_0,
        "end_of_file",
        "PL097",
        &["did not exit"],
    );
    let large = "#!/bin/sh\n[ -n \"$1\" ] || exit 1\necho '{}'\n";
    check_fails(large, &version_0, "large", "PL060", &["status 1"]);
}

#[test]
fn answers_on_descriptor_3_pass() {
    let text = python("sys.stdout = os.fdopen(3, 'w')", &format!("print('log', file=sys.__stdout__)\n{ANSWER}"));
    let (_directory, program) = write_program(&text);
    let (ended, report) = run_check(&program, &["--strict"]);
    ended.check(0);
    assert_eq!(report["protocol"], "1");
    assert_eq!(names_with_status(&report, "passed").len(), 19, "{report:#}");
    assert_eq!(names_with_status(&report, "not_applicable"), OF_VERSION_2, "{report:#}");
}

#[test]
fn an_archive_is_checked_and_leaves_no_files() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let code = fs::read(root().join("examples/python/hello.py")).expect("the example is there");
    fs::write(directory.path().join("action.zip"), archive::zip(&[("exec", &code)]))
        .expect("the directory is writable");
    pipeloop_in(directory.path(), &["check", "action.zip"], &[], "").check(0);
    let left = fs::read_dir(directory.path().join("action")).map_or(0, Iterator::count);
    assert_eq!(left, 0, "the unpacked files are removed");
}

#[test]
fn an_inspection_does_not_start_the_action() {
    let (directory, program) = write_program("#!/bin/sh\ntouch started\n");
    let (ended, report) = run_check(&program, &["--no-start"]);
    ended.check(0);
    assert_eq!(names_with_status(&report, "passed"), ["recognised", "executable"]);
    assert_eq!(names_with_status(&report, "not_applicable").len(), 23);
    assert!(!directory.path().join("started").exists());

    // An image without the interpreter, and one with it.
    let image = tempfile::tempdir().expect("a temporary directory");
    let root = image.path().to_str().expect("the path is UTF-8");
    let against = |status| {
        let (ended, report) = run_check(&program, &["--image-root", root]);
        ended.check(status);
        assert!(!directory.path().join("started").exists());
        report
    };
    let report = against(126);
    assert_eq!(names_with_status(&report, "failed"), ["executable"], "{report:#}");
    fs::create_dir(image.path().join("bin")).expect("the directory is writable");
    fs::copy("/bin/busybox", image.path().join("bin/sh"))
        .or_else(|_| fs::copy(static_program(), image.path().join("bin/sh")))
        .expect("a static program");
    let report = against(0);
    assert!(report["checks"][2]["seen"].as_str().is_some_and(|seen| seen.contains("--image-root")), "{report:#}");
}

/// A program that needs neither a loader nor libraries.
fn static_program() -> &'static str {
    env!("CARGO_BIN_EXE_pipeloop")
}

/// A report with every duration replaced, since durations vary.
fn without_durations(report: &str) -> String {
    let mut lines = String::new();
    for line in report.lines() {
        let mut words: Vec<_> = line.split(' ').collect();
        for at in 1..words.len() {
            let is_number = words[at - 1].parse::<f64>().is_ok();
            if is_number && matches!(words[at], "µs" | "ms" | "s") {
                (words[at - 1], words[at]) = ("1", "ms");
            }
        }
        lines.push_str(&words.join(" "));
        lines.push('\n');
    }
    lines
}

#[test]
fn a_report_reads_well() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let text = python("", "print('working on', answer, file=sys.stderr, flush=True)\nprint(json.dumps(answer))");
    fs::write(directory.path().join("hello.py"), text).expect("the directory is writable");
    let path = directory.path().join("hello.py");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("the file is writable");
    let ended = pipeloop_in(directory.path(), &["check", "hello.py", "--timeout", "1s"], &[], "");
    ended.check(1);
    assert_eq!(ended.stderr, "", "the action's log is not part of the report");
    let expected = "  \
  ✓ recognised       WHAT
  ✓ executable       nothing that it needs is missing here
  ✓ starts           ready  1 ms
  ✓ protocol         1, recognised by its handshake on stdout
  ✓ answers          something comes back
  ✗ flushed
      PL094: the answer came only after the end of its input: `{\"hello\": \"Mike\"}`
      hint: flush after each line: `print(…, flush=True)`, or start it with `python3 -u`; or give it a terminal, to which most programs write each line at once: `--stdout pty`; if it reads all of its input before it answers, answer line by line, or use `--protocol 0`
      log | working on {'hello': 'Mike'}
  – not reached: framing, reused, Unicode, quotes, nested JSON, empty object, unknown keys, 1 MiB input, sequence, result channel
  – not in version 1: ids, concurrency, chunks, cancel, pause, stop
  ✓ end of input     exited with status 0  1 ms
  ✓ SIGTERM          exited, with its input still open  1 ms
  ✓ orphans          no process outlives it

8 passed, 1 failed, 6 not applicable, 10 not reached  1 ms
";
    let what =
        ended.stdout.lines().next().and_then(|line| line.split_once("recognised       ")).expect("a first line").1;
    assert_eq!(without_durations(&ended.stdout), expected.replacen("WHAT", what, 1));
}

#[test]
fn the_json_report_keeps_its_members() {
    let (ended, report) = run_check(&root().join("examples/python/hello.py"), &[]);
    ended.check(0);
    assert_eq!(ended.stdout.lines().count(), 1, "one document on one line");
    let members = |value: &Value| value.as_object().expect("an object").keys().cloned().collect::<Vec<_>>();
    let all = [
        "action",
        "activations",
        "checks",
        "exit_status",
        "init_ms",
        "pipeloop",
        "protocol",
        "protocol_evidence",
        "summary",
        "total_ms",
    ];
    assert_eq!(members(&report), all);
    assert_eq!(members(&report["checks"][0]), ["faults", "log", "ms", "name", "seen", "status"]);
    assert_eq!(members(&report["activations"][0]), ["check", "ms"]);
    assert_eq!(members(&report["summary"]), ["failed", "not_applicable", "not_reached", "passed", "warnings"]);
    assert_eq!((&report["protocol"], &report["protocol_evidence"]), (&"1".into(), &"handshake".into()));
    assert_eq!(report["summary"]["passed"], 19);
    let mut activations: BTreeMap<_, usize> = BTreeMap::new();
    for activation in report["activations"].as_array().expect("an array") {
        assert!(activation["ms"].as_f64().is_some_and(|ms| ms > 0.0), "{activation}");
        *activations.entry(activation["check"].as_str().expect("a name")).or_default() += 1;
    }
    assert_eq!(activations["sequence"], 10);
    assert_eq!(activations.values().sum::<usize>(), 18);
    // The documentation lists every check.
    let document = fs::read_to_string(root().join("docs/check.md")).expect("the documentation can be read");
    for check in report["checks"].as_array().expect("an array") {
        let row = format!("| `{}` |", check["name"].as_str().expect("a name"));
        assert!(document.contains(&row), "{row} is missing in docs/check.md");
    }
}

#[test]
fn logs_are_printed_with_the_logs_flag() {
    let path = root().join("examples/python/hello.py");
    let path = path.to_str().expect("the path is UTF-8");
    let without_flag = pipeloop(&["check", path], &[], "");
    assert_eq!(without_flag.check(0).stderr, "");
    let with_flag = pipeloop(&["check", path, "--logs"], &[], "");
    assert!(with_flag.check(0).stderr.starts_with("name=Mike\nname=Mike\nname=Zoë"), "{}", with_flag.stderr);
}

#[test]
fn an_interrupt_ends_the_action() {
    let (directory, program) = write_program(&python("open('pid', 'w').write(str(os.getpid()))", "time.sleep(1000)"));
    let mut child = Command::new(env!("CARGO_BIN_EXE_pipeloop"))
        .args(["check", program.to_str().expect("the path is UTF-8")])
        .env("PATH", search_path())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("the binary can be started");
    let pid: i32 =
        eventually("the action runs", || fs::read_to_string(directory.path().join("pid")).ok()?.parse().ok());
    let status = Command::new("kill").args(["-INT", &child.id().to_string()]).status().expect("there is kill");
    assert!(status.success());
    let status = eventually("the check ends", || child.try_wait().expect("it is a child of this process"));
    assert_eq!(status.code(), Some(130));
    assert!(!processes::lives(pid), "the action has ended as well");
}

#[test]
fn a_terminal_gets_colours_unless_no_color_is_set() {
    let path = root().join("examples/python/hello.py");
    let args = ["check", path.to_str().expect("the path is UTF-8")];
    assert!(on_terminal(&args, "").contains("\x1b[32m✓\x1b[0m recognised"));
    let uncoloured = on_terminal(&args, "1");
    assert!(uncoloured.contains("✓ recognised") && !uncoloured.contains('\x1b'), "{uncoloured:?}");
}
