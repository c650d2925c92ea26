//! The commands among others in a shell: pipes that close early, named pipes, signals, files, variables and names.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::support::{Caller, action_path, eventually, pipeloop, pipeloop_in, search_path};

/// Version 1: answers with its input.
const ECHO: &str =
    "#!/bin/bash\necho '{\"openwhisk\":1}'\nwhile IFS= read -r line; do printf '%s\\n' \"$line\"; done\n";

fn path(action: &str) -> String {
    action_path(action).to_str().expect("the path is UTF-8").to_owned()
}

/// `pipeloop` with no environment but `PATH`.
fn command(directory: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pipeloop"));
    command.args(args).current_dir(directory).env_clear().env("PATH", search_path()).stdin(Stdio::null());
    command
}

/// A `pipeloop` that is killed at the end.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

// Pipes that close early.

/// Runs `pipeloop` with a stdout that no process reads. Returns its status and stderr.
fn without_reader(args: &[&str], stdin: &str) -> (Option<i32>, String) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let mut command = command(directory.path(), args);
    let mut child =
        command.stdin(Stdio::piped()).stdout(writer).stderr(Stdio::piped()).spawn().expect("pipeloop can be started");
    // A command that reads no input may have ended.
    let _ = child.stdin.take().expect("stdin is a pipe").write_all(stdin.as_bytes());
    let output = child.wait_with_output().expect("it ends");
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn a_reader_that_has_had_enough_is_no_error() {
    let echo = tempfile::tempdir().expect("a temporary directory");
    let action = echo.path().join("echo");
    fs::write(&action, ECHO).expect("the directory is writable");
    Command::new("chmod").arg("+x").arg(&action).status().expect("there is a chmod");
    let action = action.to_str().expect("the path is UTF-8");
    let proxy = format!("{} serve --host 127.0.0.1 --port {{port}}", env!("CARGO_BIN_EXE_pipeloop"));
    for (args, stdin) in [
        (&["explain"][..], ""),
        (&["explain", "60"], ""),
        (&["explain", "--json"], ""),
        (&["completion", "bash"], ""),
        (&["conformance", "--list"], ""),
        (&["conformance", "--list", "--json"], ""),
        (&["conformance", "--proxy", &proxy, "v1/echo", "v1/array"], ""),
        (&["conformance", "--proxy", &proxy, "--json", "v1/echo"], ""),
        (&["check", action], ""),
        (&["check", "--json", action], ""),
        (&["run", action], ""),
        (&["run", action, "--lines"], "{}\n{}\n{}\n"),
        (&["run", action, "--stream"], ""),
        (&["--help"], ""),
        (&["run", "--help"], ""),
        (&["--version"], ""),
    ] {
        assert_eq!(without_reader(args, stdin), (Some(0), String::new()), "{args:?}");
    }
    // What the command found out stays in its status.
    assert_eq!(without_reader(&["run", &path("fails.sh")], "").0, Some(1));
    assert_eq!(without_reader(&["check", &path("pipe_loop.py")], ""), (Some(126), String::new()));
}

#[test]
fn chunks_without_a_reader_are_no_error() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let action = directory.path().join("chunks");
    let code = "#!/bin/bash\necho '{\"openwhisk\":2}'\nwhile read -r line; do echo '{\"chunk\":1}'; echo '{\"chunk\":2}'; \
                echo '{\"result\":{}}'; done\n";
    fs::write(&action, code).expect("the directory is writable");
    Command::new("chmod").arg("+x").arg(&action).status().expect("there is a chmod");
    let ended = without_reader(&["run", "--stream", action.to_str().expect("the path is UTF-8")], "");
    assert_eq!(ended, (Some(0), String::new()));
}

// Named pipes and signals.

fn named_pipe(directory: &Path) {
    let made = Command::new("mkfifo").arg(directory.join("pipe")).status().expect("there is a mkfifo");
    assert!(made.success());
}

/// Waits until a process has a handler for SIGTERM.
fn wait_for_handler(child: &Child) {
    eventually("pipeloop handles SIGTERM", || {
        let status = fs::read_to_string(format!("/proc/{}/status", child.id())).ok()?;
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"))?;
        let caught = u64::from_str_radix(caught.trim(), 16).ok()?;
        (caught & (1 << (Signal::TERM.as_raw() - 1)) != 0).then_some(())
    });
}

#[test]
fn a_named_pipe_without_a_writer_can_be_interrupted() {
    for (subcommand, status) in [("run", 143), ("check", 143), ("serve", 0)] {
        let directory = tempfile::tempdir().expect("a temporary directory");
        named_pipe(directory.path());
        let mut command = command(directory.path(), &[subcommand, "pipe"]);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut running = Running(command.spawn().expect("pipeloop can be started"));
        wait_for_handler(&running.0);
        let pid = Pid::from_raw(i32::try_from(running.0.id()).expect("a pid")).expect("a pid");
        kill_process(pid, Signal::TERM).expect("it runs");
        let ended = eventually("it ends", || running.0.try_wait().expect("it is a child"));
        assert_eq!(ended.code(), Some(status), "{subcommand}");
    }
}

#[test]
fn an_action_may_come_from_a_named_pipe() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    named_pipe(directory.path());
    let writer = directory.path().join("pipe");
    let writer = std::thread::spawn(move || fs::write(writer, ECHO));
    let ended = pipeloop_in(directory.path(), &["run", "pipe", "-p", "a=1"], &[], "");
    assert_eq!(ended.check(0).stdout, "{\"a\":1}\n");
    writer.join().expect("it does not panic").expect("the pipe is read");
}

// Files.

#[test]
fn errors_about_the_input_name_the_file() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let write = |name: &str, text: &str| fs::write(directory.path().join(name), text).expect("it is writable");
    write("broken.json", "{\"a\":");
    write("array.json", "[1]");
    write("number.json", "7");
    write("lines.jsonl", "{}\nnonsense\n7\n");
    let action = path("counter.sh");
    for command in ["run", "check"] {
        let says = |args: &[&str], status, text: &str| {
            let args = [&[command, &action], args].concat();
            pipeloop_in(directory.path(), &args, &[], "").check(status).says(&[text]);
        };
        says(&["-i", "missing.json"], 1, "cannot read the input: `missing.json`: No such file or directory");
        says(&["-i", "."], 1, "cannot read the input: `.`: Is a directory");
        says(&["-i", "broken.json"], 2, "`--input` cannot be used: `broken.json`: it is not JSON: EOF");
        says(&["-i", "array.json", "-p", "a=1"], 2, "`array.json`: `-p` can only be added to a JSON object");
    }
    let says = |args: &[&str], status, text: &str| {
        let args = [&["run", &action], args].concat();
        pipeloop_in(directory.path(), &args, &[], "").check(status).says(&[text]);
    };
    says(&["-i", "number.json"], 2, "`number.json`: The action did not receive a dictionary or array");
    says(&["--lines", "-i", "missing.json"], 1, "cannot read the input: `missing.json`: No such file");
    says(&["--lines", "-i", "."], 1, "cannot read the input: `.`: Is a directory");
    let ended = pipeloop_in(directory.path(), &["run", &action, "--lines", "-i", "lines.jsonl"], &[], "");
    for text in [
        "`lines.jsonl`, line 2: it is not JSON: expected ident at column 2\n",
        "`lines.jsonl`, line 3: The action did not receive",
    ] {
        assert!(ended.check(2).stderr.contains(text), "{text} in {}", ended.stderr);
    }
}

// Variables.

#[test]
fn a_bad_setting_names_its_variable() {
    for (variable, value, flag) in [
        ("PIPELOOP_PORT", "65536", "--port <PORT>"),
        ("PIPELOOP_PORT", "", "--port <PORT>"),
        ("PIPELOOP_RESTART", "perhaps", "--restart <WHEN>"),
        ("PIPELOOP_MAX_BODY", "lots", "--max-body <SIZE>"),
        ("PIPELOOP_COMPILER", "/nowhere/cc", "--compiler <PROGRAM>"),
        ("PIPELOOP_HOST", "no such name", "--host <ADDRESS>"),
    ] {
        let name = format!("'{variable} ({flag})'");
        pipeloop(&["serve"], &[(variable, value)], "").check(2).says(&[&name]);
    }
    // The flag wins, and then it is the flag that is wrong.
    for args in [&["serve", "--port", "many"][..], &["serve", "--port=many"]] {
        let ended = pipeloop(args, &[("PIPELOOP_PORT", "8080")], "");
        ended.check(2).says(&["'--port <PORT>'"]);
        assert!(!ended.stderr.contains("PIPELOOP_PORT"), "{}", ended.stderr);
    }
    let port_file = [("PIPELOOP_PORT_FILE", "/nowhere/port"), ("PIPELOOP_PORT", "0"), ("PIPELOOP_HOST", "127.0.0.1")];
    pipeloop(&["serve"], &port_file, "").check(2).says(&["`PIPELOOP_PORT_FILE` cannot be used"]);
    let flag = ["serve", "--port-file", "/nowhere/port"];
    pipeloop(&flag, &port_file, "").check(2).says(&["`--port-file` cannot be used"]);
    let directory = tempfile::tempdir().expect("a temporary directory");
    let mut command = command(directory.path(), &["serve"]);
    command.env("PIPELOOP_QUEUE", <std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(b"\xff"));
    let output = command.output().expect("pipeloop can be started");
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("'PIPELOOP_QUEUE (--queue <COUNT>)'"), "{stderr}");
}

/// The port itself cannot be tested, because 8080 may be taken. What counts is that the variable is not read.
#[test]
fn the_variable_of_a_kubernetes_service_is_skipped() {
    for url in ["tcp://10.96.0.7:8080", "udp://10.96.0.7:53", "sctp://[fd00::7]:8080"] {
        // An address of another machine, so that the proxy ends where it would listen.
        let variables = [("PIPELOOP_PORT", url), ("PIPELOOP_HOST", "192.0.2.1")];
        let skipped = format!("`PIPELOOP_PORT={url}` is skipped: Kubernetes sets it for a Service named `pipeloop`");
        pipeloop(&["serve"], &variables, "").check(1).says(&[&skipped, "cannot listen on 192.0.2.1:8080"]);
        let ended = pipeloop(&["serve", "--port", "1234"], &variables, "");
        ended.check(1).says(&["cannot listen on 192.0.2.1:1234"]);
        assert!(!ended.stderr.contains("skipped"), "{}", ended.stderr);
        pipeloop(&["serve", "--port", url], &[], "").check(2).says(&["'--port <PORT>'"]);
    }
}

// Addresses.

#[test]
fn the_host_may_be_a_name() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    for host in ["localhost", "LOCALHOST", "127.0.0.1", "[::1]", "::1"] {
        let file = directory.path().join(format!("port of {host}"));
        let args = ["serve", "--host", host, "--port", "0", "--port-file", file.to_str().expect("it is UTF-8")];
        let mut command = command(directory.path(), &args);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let _running = Running(command.spawn().expect("pipeloop can be started"));
        let port: u16 = eventually("the proxy listens", || fs::read_to_string(&file).ok()?.trim().parse().ok());
        let address = if host.contains(':') { "::1" } else { "127.0.0.1" };
        let stream = std::net::TcpStream::connect((address, port)).expect("the proxy listens there");
        Caller::over(stream).expect("a caller").call("GET", "/", b"").check_error(404, &[]);
    }
    pipeloop(&["serve", "--host", "no such name"], &[], "").check(2).says(&["expected an IP address or a name"]);
}

/// In a network of its own, where the system's default is that an IPv6 socket takes no IPv4. Calls the proxy at both
/// addresses and prints the statuses.
const CALL_BOTH: &str = r#"
import fcntl, http.client, os, socket, struct, subprocess, sys, time
s = socket.socket()
fcntl.ioctl(s, 0x8914, struct.pack("16sh14x", b"lo", 0x1 | 0x40))
open("/proc/sys/net/ipv6/bindv6only", "w").write("1")
p = subprocess.Popen([sys.argv[1], "serve", "--port", "0", "--port-file", "port"], stderr=subprocess.DEVNULL)
while not (os.path.exists("port") and open("port").read().strip()): time.sleep(0.01)
for host in "127.0.0.1", "::1":
    try:
        c = http.client.HTTPConnection(host, int(open("port").read()), timeout=5)
        c.request("GET", "/")
        print(host, c.getresponse().status)
    except OSError as e: print(host, e)
p.kill()
"#;

#[test]
fn ipv4_is_served_whatever_the_default_of_the_system_is() {
    const AS_ROOT: &[&str] = &["--net"];
    const AS_OTHERS: &[&str] = &["--user", "--map-root-user", "--net"];
    let unshare = |words: &[&str]| {
        let mut command = Command::new("unshare");
        command.args(words);
        command
    };
    let is_permitted =
        |words: &&&[&str]| unshare(words).arg("true").output().is_ok_and(|output| output.status.success());
    let Some(words) = [AS_ROOT, AS_OTHERS].iter().find(is_permitted).copied() else {
        assert!(std::env::var_os("CI").is_none(), "`unshare --net` is not permitted here, and CI needs it");
        eprintln!("NOT TESTED: `bindv6only`, since `unshare --net` is not permitted here");
        return;
    };
    if !Path::new("/proc/sys/net/ipv6/bindv6only").exists() {
        eprintln!("NOT TESTED: `bindv6only`, since this machine has no IPv6");
        return;
    }
    let directory = tempfile::tempdir().expect("a temporary directory");
    let mut command = unshare(words);
    command.args(["python3", "-c", CALL_BOTH, env!("CARGO_BIN_EXE_pipeloop")]).current_dir(directory.path());
    let output = command.output().expect("there is an `unshare`");
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    let stderr = String::from_utf8_lossy(&output.stderr);
    if stderr.contains("Read-only file system") && std::env::var_os("CI").is_none() {
        eprintln!("NOT TESTED: `bindv6only`, since /proc/sys is read-only here");
        return;
    }
    assert_eq!(shown, "127.0.0.1 404\n::1 404\n", "{stderr}");
}

// Conformance.

#[test]
fn conformance_stops_at_once_where_nothing_listens() {
    // The port is taken, and no connection is accepted after the listener is closed.
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    let port = listener.local_addr().expect("an address").port();
    drop(listener);
    for host in ["127.0.0.1", "localhost"] {
        let url = format!("http://{host}:{port}");
        let ended = pipeloop(&["conformance", "--proxy", &url], &[], "");
        ended.check(2).says(&["`--proxy` cannot be used: nothing listens at", host, "Connection refused"]);
        assert_eq!(ended.stdout, "", "no case was played");
    }
    for (proxy, text) in [("/nowhere/proxy {port}", "/nowhere/proxy"), ("false {port}", "ended"), ("sleep {port}", "")]
    {
        let ended = pipeloop(&["conformance", "--timeout", "300ms", "--proxy", proxy], &[], "");
        ended.check(2).says(&["`--proxy` cannot be used", text]);
        assert_eq!(ended.stdout, "", "no case was played");
    }
}

#[test]
fn conformance_finds_a_proxy_on_any_address_of_its_name() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let args = ["serve", "--host", "127.0.0.1", "--port", "0", "--port-file", "port"];
    let mut command = command(directory.path(), &args);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let _running = Running(command.spawn().expect("pipeloop can be started"));
    let file = directory.path().join("port");
    let port: u16 = eventually("the proxy listens", || fs::read_to_string(&file).ok()?.trim().parse().ok());
    // `localhost` may be ::1 first.
    let url = format!("http://localhost:{port}");
    let ended = pipeloop(&["conformance", "--proxy", &url, "--json", "v1/echo"], &[], "");
    let document: serde_json::Value = serde_json::from_str(&ended.check(0).stdout).expect("it is JSON");
    assert_eq!(document["summary"], json!({"passed": 1, "failed": 0, "not_run": 0}));
}
