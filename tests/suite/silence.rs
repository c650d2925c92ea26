//! Activations that will never be answered: their callers are told at once, but only where that is certain.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::support::{Proxy, pipeloop, search_path};

/// An executable in a directory of its own.
struct Script {
    path: PathBuf,
    _directory: tempfile::TempDir,
}

impl Script {
    fn new(text: &str) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("action");
        fs::write(&path, text).expect("the directory can be written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("the file can be changed");
        Self { path, _directory: directory }
    }

    fn python(body: &str) -> Self {
        Self::new(&format!("#!/usr/bin/env python3\nimport os, signal, subprocess, sys, threading, time\n{body}"))
    }

    fn path(&self) -> &str {
        self.path.to_str().expect("the path is UTF-8")
    }
}

/// The run limit is an hour here: without the verdict these tests would not end.
#[track_caller]
fn is_given_up(action: &Script, words: &[&str]) {
    let ended = pipeloop(&["run", action.path()], &[], "");
    ended.check(1).says(&["PL106", "waits for the next one"]).says(words);
    assert_eq!(ended.stdout, "");
}

#[test]
fn an_empty_line_is_no_answer() {
    // `jq` fails, and the substitution is empty.
    let action = Script::new(
        "#!/bin/bash\necho '{\"openwhisk\":1}'\nwhile read -r line; do echo \"$(jq . <<< oops 2> /dev/null)\"; done\n",
    );
    is_given_up(&action, &["an empty line in place of its answer", "$(…)"]);
    let white =
        Script::python("print('{\"openwhisk\":1}', flush=True)\nfor line in sys.stdin: print(' \\t\\r', flush=True)\n");
    is_given_up(&white, &["an empty line in place of its answer"]);
}

#[test]
fn an_unfinished_line_is_shown() {
    for (end, words) in [("", "does not end with a newline: `{\"a\": 1}`"), ("\\r", "ends with CR")] {
        let body = format!(
            "print('{{\"openwhisk\":1}}', flush=True)\nfor line in sys.stdin: print('{{\"a\": 1}}', end='{end}', flush=True)\n"
        );
        is_given_up(&Script::python(&body), &[words, "`{\"a\": 1}`", "LF"]);
    }
    // On descriptor 3 too.
    let on_3 = Script::python("for line in sys.stdin: os.write(3, b'[1')\n");
    is_given_up(&on_3, &["does not end with a newline: `[1`"]);
}

#[test]
fn a_forgotten_or_unflushed_answer_gets_a_hint_for_its_language() {
    let python = Script::python("print('{\"openwhisk\":1}', flush=True)\nfor line in sys.stdin: print('{}')\n");
    is_given_up(&python, &["no answer on stdout, or did not flush it", "flush=True", "--stdout pty"]);
    let perl = Script::new(
        "#!/usr/bin/perl\nprint STDOUT \"{\\\"openwhisk\\\":1}\\n\"; STDOUT->flush;\nwhile (<STDIN>) { print \"{}\\n\" }\n",
    );
    is_given_up(&perl, &["$| = 1"]);
    // The handshake is missing, so that its answers are log lines.
    let no_handshake = Script::python("for line in sys.stdin: print('{}', flush=True)\n");
    is_given_up(&no_handshake, &["no answer on descriptor 3", "`{\"openwhisk\":1}`"]);
    // A shell that waits for the program that it started.
    let wrapped = Script::new("#!/bin/sh\npython3 -c 'import sys\nfor line in sys.stdin: print(1)'\ntrue\n");
    is_given_up(&wrapped, &["no answer on descriptor 3", "flush=True"]);
}

/// The process is replaced, and its other callers get their answers.
#[test]
fn the_next_activation_gets_its_answer() {
    let action = Script::python(
        "print('{\"openwhisk\":1}', flush=True)\nfor line in sys.stdin:\n    print('{\"a\":1}', end='' if 'half' in line else '\\n', flush=True)\n",
    );
    let mut proxy = Proxy::start(&[action.path()], &[]);
    for round in 0..2 {
        let response = proxy.run(&json!({"half": true}));
        assert_eq!(response.status, 502, "round {round}");
        assert!(response.text().contains("does not end with a newline: `{\\\"a\\\":1}`"), "{}", response.text());
        proxy.run(&json!({})).check(200, &json!({"a": 1}));
    }
    let logs = proxy.check_streams(4);
    assert!(logs.stderr.contains("error[PL106]"), "{}", logs.stderr);
    proxy.stop();
}

/// An action that answers after it has waited for input again, in some way that must be seen.
#[track_caller]
fn answers_late(action: &Script) {
    let ended = pipeloop(&["run", "--run-timeout", "60s", action.path()], &[], "");
    assert_eq!(ended.check(0).stdout, "{\"late\":1}\n");
}

/// Longer than it takes to give up.
const LATE: &str = "time.sleep(2); print('{\"late\":1}', flush=True)";

#[test]
fn a_child_may_still_answer() {
    answers_late(&Script::python(
        "print('{\"openwhisk\":1}', flush=True)\nfor line in sys.stdin: subprocess.Popen(\"sleep 2; echo '{\\\"late\\\":1}'\", shell=True)\n",
    ));
    // In a session of its own, and without its parent.
    answers_late(&Script::python(&format!(
        "print('{{\"openwhisk\":1}}', flush=True)\nfor line in sys.stdin:\n    if os.fork() == 0:\n        os.setsid()\n        if os.fork() == 0: {LATE}\n        os._exit(0)\n    os.wait()\n"
    )));
    // A background job of a shell.
    answers_late(&Script::new(
        "#!/bin/bash\necho '{\"openwhisk\":1}'\nwhile read -r line; do (sleep 2; echo '{\"late\":1}') & done\n",
    ));
}

#[test]
fn a_thread_may_still_answer() {
    answers_late(&Script::python(&format!(
        "def answer(): {LATE}\nprint('{{\"openwhisk\":1}}', flush=True)\nfor line in sys.stdin: threading.Thread(target=answer).start()\n"
    )));
    // One that waits for another one.
    answers_late(&Script::python(&format!(
        "go = threading.Event()\ndef answer():\n    go.wait(); {LATE}\ndef alarm():\n    time.sleep(1); go.set()\nthreading.Thread(target=answer, daemon=True).start()\nprint('{{\"openwhisk\":1}}', flush=True)\nfor line in sys.stdin: threading.Thread(target=alarm, daemon=True).start()\ntime.sleep(5)\n"
    )));
}

#[test]
fn an_event_loop_may_still_answer() {
    answers_late(&Script::python(
        "import asyncio\nasync def late():\n    await asyncio.sleep(2); print('{\"late\":1}', flush=True)\nasync def main():\n    reader = asyncio.StreamReader()\n    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)\n    print('{\"openwhisk\":1}', flush=True)\n    tasks = []\n    while await reader.readline(): tasks.append(asyncio.create_task(late()))\nasyncio.run(main())\n",
    ));
    // A poll with a time limit, by which it wakes up.
    answers_late(&Script::python(
        "import select\nprint('{\"openwhisk\":1}', flush=True)\nsys.stdin.readline()\nselect.select([0], [], [], 2)\nprint('{\"late\":1}', flush=True)\nsys.stdin.readline()\n",
    ));
    // An alarm, which only its handler shows.
    answers_late(&Script::python(
        "def ring(*_): print('{\"late\":1}', flush=True)\nsignal.signal(signal.SIGALRM, ring)\nprint('{\"openwhisk\":1}', flush=True)\nfor line in sys.stdin: signal.alarm(2)\n",
    ));
}

#[test]
fn node_may_still_answer() {
    answers_late(&Script::new(
        "#!/usr/bin/env node\nconsole.log('{\"openwhisk\":1}');\nprocess.stdin.on('data', () => setTimeout(() => console.log('{\"late\":1}'), 2000));\n",
    ));
}

#[test]
fn work_is_no_silence() {
    let begin = "print('{\"openwhisk\":1}', flush=True)\nline = sys.stdin.readline()\n";
    let end = "\nprint('{\"late\":1}', flush=True)\nsys.stdin.readline()\n";
    for work in [
        "time.sleep(2)",
        "until = time.monotonic() + 2\nwhile time.monotonic() < until: pass",
        "subprocess.run(['sleep', '2'])",
        // Another pipe, which a child writes to.
        "subprocess.Popen(['sh', '-c', 'sleep 2; echo'], stdout=subprocess.PIPE).stdout.read()",
        // The next line is read before the answer: by a thread, while another one works.
        "threading.Thread(target=sys.stdin.readline, daemon=True).start()\ntime.sleep(2)\nprint('{\"late\":1}', flush=True)\nos._exit(0)",
    ] {
        answers_late(&Script::python(&format!("{begin}{work}{end}")));
    }
}

/// A process that is stopped by a signal only looks as if it waited.
#[test]
fn a_stopped_process_may_still_answer() {
    let action = Script::python(
        "print('{\"openwhisk\":1}', flush=True)\nfor line in sys.stdin:\n    os.kill(os.getpid(), signal.SIGSTOP)\n    print('{\"late\":1}', flush=True)\n",
    );
    let proxy = Proxy::start(&[action.path()], &[]);
    let pid = Pid::from_raw(proxy.actions()[0]).expect("a pid");
    let mut caller = proxy.caller();
    caller.send_run("application/json", &json!({}));
    assert!(caller.is_silent_for(std::time::Duration::from_secs(2)), "no verdict about a stopped process");
    kill_process(pid, Signal::CONT).expect("it is there");
    assert_eq!(caller.receive_head().expect("an answer").status, 200);
}

/// Runs `pipeloop run` on a terminal, presses Ctrl-C after a text, and returns what was printed.
fn interrupted_on_terminal(args: &[&str], after: &str) -> String {
    let driver = r#"
import os, pty, sys
pid, terminal = pty.fork()
if pid == 0: os.execv(sys.argv[2], sys.argv[2:])
seen = b""
while True:
    try: part = os.read(terminal, 4096)
    except OSError: break
    if not part: break
    seen += part
    if sys.argv[1].encode() in seen:
        os.write(terminal, b"\x03")
        sys.argv[1] = "never again"
os.waitpid(pid, 0)
sys.stdout.buffer.write(seen)
"#;
    let mut command = Command::new("python3");
    command.args(["-c", driver, after, env!("CARGO_BIN_EXE_pipeloop")]).args(args);
    command.env_clear().env("PATH", search_path()).env("TERM", "dumb").stdin(Stdio::null());
    let output = command.output().expect("there is Python");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn a_person_is_told_that_no_answer_has_come_yet() {
    let slow = "read -r line; echo begun >&2; sleep 4; echo '{\"late\":1}'; read -r line";
    let told = "and `pipeloop check -- bash -c ";
    let shown = interrupted_on_terminal(&["run", "--", "bash", "-c", slow], "the text that never comes");
    assert!(shown.contains("pipeloop: no answer after 3.0") && shown.contains(told), "{shown}");
    assert!(shown.contains("\"late\": 1"), "the answer still counts: {shown}");
    let shown = interrupted_on_terminal(&["run", "--", "bash", "-c", slow], "begun");
    assert!(shown.contains("pipeloop: no answer after") && shown.contains(told), "{shown}");
    assert!(shown.contains("SIGINT, stopping the action"), "{shown}");
    // A script is told nothing.
    let ended = pipeloop(&["run", "--", "bash", "-c", slow], &[], "");
    assert_eq!(ended.check(0).stderr, "begun\n");
}

/// `check` finds the same, and says more where it can.
#[test]
fn check_agrees() {
    let empty = Script::new("#!/bin/bash\necho '{\"openwhisk\":1}'\nwhile read -r line; do echo; done\n");
    let ended = pipeloop(&["check", empty.path()], &[], "");
    assert!(ended.check(1).stdout.contains("PL106"), "{}", ended.stdout);
    let unflushed =
        Script::python("print('{\"openwhisk\":1}', flush=True)\nfor line in sys.stdin: print('{\"b\":2}')\n");
    let ended = pipeloop(&["check", unflushed.path()], &[], "");
    let report = &ended.check(1).stdout;
    assert!(report.contains("PL094") && report.contains("`{\"b\":2}`"), "{report}");
}
