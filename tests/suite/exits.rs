//! The error about an action that exited too early: its status, its stage, the end of its stderr, and a hint.
//! A real shell, loader or interpreter causes each exit.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;

use crate::support::bench::{ACTION, Bench};
use crate::support::{Proxy, pipeloop, search_path};

/// Checks the error about an action that exits at its start.
#[track_caller]
fn check_exit(action: &Path, status: i32, texts: &[&str]) {
    let ended = pipeloop(&[OsStr::new("run"), action.as_os_str()], &[], "");
    ended.check(status);
    for text in ["error[PL051]: the action ", "before it was ready"].iter().chain(texts) {
        assert!(ended.stderr.contains(text), "{text:?} is missing on stderr");
    }
}

/// The same for a shell script.
#[track_caller]
fn check_script_exit(bench: &Bench, script: &str, status: i32, texts: &[&str]) {
    check_exit(&bench.write("script", format!("#!/bin/sh\n{script}\n")), status, texts);
}

/// The first of two examples of an early exit in the mail that proposed the protocol: it exits at once.
#[test]
fn bin_true_is_not_an_action() {
    let program = fs::read("/bin/true").expect("every machine has it");
    let texts = [
        "the action exited with status 0 after ",
        " ms, before it was ready",
        "it printed nothing and did not wait for input",
        "reads a line of JSON on stdin",
    ];
    let proxy = Proxy::plain();
    proxy.init_binary(&program).check_error(502, &texts);
    proxy.check_streams(0);
    check_exit(Path::new("/bin/true"), 1, &texts);
}

/// The second example: it prints a line that is not a handshake, and exits.
#[test]
fn bin_pwd_is_not_an_action() {
    let program = fs::read("/bin/pwd").expect("every machine has it");
    let proxy = Proxy::plain();
    let texts = [
        "the action exited with status 0 after ",
        "before it was ready; its first line was not a handshake: `/",
        "/action/1/bin`",
        "an action waits for its input",
        "PIPELOOP_PROTOCOL=0",
    ];
    proxy.init_binary(&program).check_error(502, &texts);
    assert!(proxy.check_streams(0).stdout.ends_with("/action/1/bin\n"), "its output is its log");
    let value = json!({"main": "main", "code": base64_simd::STANDARD.encode_to_string(&program), "binary": true,
        "env": {"PIPELOOP_PROTOCOL": "actionloop"}});
    Proxy::plain().init_value(&value).check_error(502, &["its first line was not a handshake: `/"]);
}

#[test]
fn a_wrong_first_line_is_reported_with_the_end_of_stderr() {
    let bench = Bench::new();
    let texts =
        ["exited with status 3", "its first line was not a handshake: `ready`; the end of its stderr: `one | two`"];
    check_script_exit(&bench, "echo ready; echo more; echo one >&2; echo two >&2; exit 3", 3, &texts);
    // Also when it exits in the middle of the line.
    check_script_exit(&bench, "printf read; exit 4", 4, &["its first line was not a handshake: `read`"]);
}

#[test]
fn shell_errors_get_a_hint() {
    let bench = Bench::new();
    bench.cc("program", ACTION, &[]);
    let mut foreign = fs::read(bench.path("program")).expect("it was compiled");
    foreign[18] = 183;
    bench.write("foreign", foreign);
    fs::write(bench.path("data"), "data").expect("the directory can be written");
    check_script_exit(
        &bench,
        "exec no-such-tool -x",
        127,
        &["exited with status 127", "the program `no-such-tool` is not in the image"],
    );
    check_script_exit(&bench, "no-such-tool; exit $?", 127, &["the program `no-such-tool` is not in the image"]);
    check_script_exit(&bench, "env no-such-tool", 127, &["the program `no-such-tool` is not in the image"]);
    let bash = bench.write("bash", "#!/bin/bash\nno-such-tool\n");
    check_exit(&bash, 127, &["the program `no-such-tool` is not in the image"]);
    check_script_exit(&bench, "./data", 126, &["exited with status 126", "a shell exits with 126 when"]);
    check_script_exit(&bench, "exec ./foreign", 126, &["Exec format error", "not an executable for this machine"]);
    check_script_exit(
        &bench,
        "sh -c 'kill -SEGV $$'; exit $?",
        139,
        &["a shell exits with 139 when", "signal 11 (SIGSEGV)"],
    );
}

#[test]
fn loader_errors_get_a_hint() {
    let bench = Bench::new();
    let soname = ["-Wl,-soname,libone.so"];
    bench.library("libone.so", &["one"], &soname);
    let program = bench.program("program", &["one"], &["libone.so", "-Wl,-rpath,$ORIGIN"]);
    // The action is a sound script; the program that it starts is broken.
    let start = format!("exec {}", program.display());
    bench.library("libone.so", &["other"], &soname);
    check_script_exit(&bench, &start, 127, &["symbol lookup error", "lacks a symbol"]);
    fs::remove_file(bench.path("libone.so")).expect("it was made");
    check_script_exit(
        &bench,
        &start,
        127,
        &["error while loading shared libraries", "did not find the shared library `libone.so`"],
    );
    let mut newer = fs::read(bench.cc("newer", ACTION, &[])).expect("it was compiled");
    let at = memchr::memmem::find(&newer, b"GLIBC_2.34\0").expect("`__libc_start_main` has had it since 2.34");
    newer[at..at + 10].copy_from_slice(b"GLIBC_9.99");
    let newer = bench.write("newer", newer);
    check_script_exit(
        &bench,
        &format!("exec {}", newer.display()),
        1,
        &["a newer library than the image has, one with `GLIBC_9.99`"],
    );

    let library = ["-shared", "-fPIC", "-Wl,-soname,libone.so"];
    bench.compile("musl-gcc", "libone.so", "int one(void) { return 1; }", &library);
    let calls = ACTION.replace("int main(void) {", "int one(void); int main(void) { if (!one()) return 1;");
    let program = bench.compile("musl-gcc", "musl", &calls, &["libone.so", "-Wl,-rpath,$ORIGIN"]);
    let start = format!("exec {}", program.display());
    bench.compile("musl-gcc", "libone.so", "int other(void) { return 1; }", &library);
    check_script_exit(&bench, &start, 127, &["Error relocating", "glibc and musl differ"]);
    fs::remove_file(bench.path("libone.so")).expect("it was made");
    check_script_exit(
        &bench,
        &start,
        127,
        &["Error loading shared library", "did not find the shared library `libone.so`"],
    );
}

#[test]
fn interpreter_errors_get_a_hint() {
    let bench = Bench::new();
    let python = bench.write("python", "#!/usr/bin/python3\nimport no_such_module\n");
    check_exit(&python, 1, &["the module `no_such_module` is neither in the image nor in the archive"]);
    let node = bench.write("node", "#!/usr/bin/env node\nrequire('no-such-module')\n");
    check_exit(&node, 1, &["the module `no-such-module` is neither in the image nor in the archive"]);
}

#[test]
fn signals_get_a_hint() {
    let bench = Bench::new();
    let check = |body: &str, status: i32, texts: &[&str]| {
        let source = format!("#include <stdlib.h>\n#include <signal.h>\nint main(void) {{ {body} return 0; }}\n");
        check_exit(&bench.cc("program", &source, &["-O0"]), status, texts);
    };
    check(
        "*(volatile int *)0 = 1;",
        139,
        &["was killed by signal 11 (SIGSEGV) after ", "a fault of the program itself"],
    );
    check("__asm__(\"ud2\");", 132, &["was killed by signal 4 (SIGILL)", "this processor does not have"]);
    check("abort();", 134, &["was killed by signal 6 (SIGABRT)", "an abort of the program itself"]);
    check(
        "raise(SIGKILL);",
        137,
        &["was killed by signal 9 (SIGKILL)", "most often comes from the kernel when memory runs out"],
    );
    check("raise(SIGSYS);", 159, &["was killed by signal 31 (SIGSYS)", "seccomp"]);
    check("volatile int zero = 0; return 7 / zero;", 136, &["was killed by signal 8 (SIGFPE)", "division by zero"]);
}

/// A control group below the test's own, with little memory.
struct MemoryGroup(PathBuf);

const MEMORY_BYTES: &str = "67108864";

impl MemoryGroup {
    /// None where a group cannot be created: without the rights, or where a group that has processes may
    /// have no groups below it.
    fn new() -> Option<Self> {
        let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
        let (directory, limit) = groups.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            let (controllers, path) = (fields.next()?, fields.next()?.trim_start_matches('/'));
            if controllers.split(',').any(|name| name == "memory") {
                return Some((Path::new("/sys/fs/cgroup/memory").join(path), "memory.limit_in_bytes"));
            }
            let directory = Path::new("/sys/fs/cgroup").join(path);
            (controllers.is_empty() && directory.join("memory.max").exists()).then_some((directory, "memory.max"))
        })?;
        let group = Self(directory.join(format!("pipeloop-test-{}", std::process::id())));
        fs::create_dir(&group.0).ok()?;
        fs::write(group.0.join(limit), MEMORY_BYTES).ok()?;
        // Without swap there is no such limit.
        let _ = fs::write(group.0.join("memory.swap.max"), "0");
        let _ = fs::write(group.0.join("memory.memsw.limit_in_bytes"), MEMORY_BYTES);
        // Whether a process can join the group.
        let joined = Command::new("sh").args(["-c", "echo $$ > \"$0\"/cgroup.procs"]).arg(&group.0).status();
        joined.is_ok_and(|status| status.success()).then_some(group)
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        // Its processes have exited; the kernel may take a moment to notice.
        crate::support::eventually("the group is empty", || fs::remove_dir(&self.0).ok());
    }
}

/// Where the kernel counts out-of-memory kills, the error says that it was one; elsewhere the hint says
/// that it may have been one.
#[test]
fn an_out_of_memory_kill_is_reported() {
    let bench = Bench::new();
    let hungry =
        "import sys\nprint('{\"openwhisk\":1}', flush=True)\nsys.stdin.readline()\nx = bytearray(b'x') * (200 << 20)\n";
    let at_run = bench.write("at-run", format!("#!/usr/bin/python3\n{hungry}"));
    let at_start = bench.write("at-start", "#!/usr/bin/python3\nx = bytearray(b'x') * (200 << 20)\n");
    let Some(group) = MemoryGroup::new() else {
        // The kernel counts nothing for this test, so the hint only suspects it.
        check_script_exit(
            &bench,
            "kill -KILL $$",
            137,
            &["signal 9 most often comes from the kernel when memory runs out"],
        );
        return;
    };
    for (action, code) in [(at_run, "PL061"), (at_start, "PL051")] {
        let output = Command::new("sh")
            .args(["-c", "echo $$ > \"$0\"/cgroup.procs && exec \"$@\""])
            .arg(&group.0)
            .args([env!("CARGO_BIN_EXE_pipeloop"), "run"])
            .arg(&action)
            .env_clear()
            .env("PATH", search_path())
            .stdin(std::process::Stdio::null())
            .output()
            .expect("there is a shell");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(137), "{stderr}");
        for text in [
            code,
            "was killed by signal 9 (SIGKILL) after ",
            "(by the kernel: out of memory)",
            "hint: raise the memory limit",
        ] {
            assert!(stderr.contains(text), "{text:?} is missing in {stderr}");
        }
    }
}
