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

// Variables.

/// A `pipeloop serve` that is killed at the end.
struct Serving(Child);

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

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
