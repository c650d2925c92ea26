//! Commands: those that start a proxy, and other programs that run to their end.

use std::ffi::OsStr;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Instant;

use crate::output::{CapturedOutput, excerpt};
use crate::wait::{WAIT_LIMIT, poll_until};

/// Removes every setting of a proxy from the environment of a command, so that the proxy it starts has only the
/// settings it is given.
pub fn forget_proxy_settings(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if ["PIPELOOP_", "OW_", "__OW_"].iter().any(|prefix| text.starts_with(prefix)) {
            command.env_remove(name);
        }
    }
}

/// Gives a command no environment but `PATH` and these variables.
pub fn set_environment(command: &mut Command, variables: &[(&str, &str)]) {
    command.env_clear().env("PATH", search_path()).envs(variables.iter().copied());
}

/// The `PATH` of programs that tests start, with the system's own directories first. A shim of a version manager in
/// front of them takes a quarter of a second to start an interpreter and shows several processes.
pub fn search_path() -> String {
    let inherited = std::env::var("PATH").unwrap_or_default();
    format!("/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:{inherited}")
}

/// A command that has ended. If a test panics while it holds this, the command, its directory, its status and its
/// output are printed.
#[derive(Debug)]
pub struct Ended {
    command: String,
    directory: PathBuf,
    /// Its exit status.
    pub status: ExitStatus,
    /// What it wrote to standard output.
    pub stdout: String,
    /// What it wrote to standard error.
    pub stderr: String,
}

/// Runs a command in a directory to its end, with this standard input. `shown` stands for it in a report.
///
/// # Panics
/// If it cannot be started, or does not end within [`WAIT_LIMIT`].
#[track_caller]
pub fn run_to_end(mut command: Command, directory: &Path, stdin: &str, shown: String) -> Ended {
    command.current_dir(directory).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{shown}: {error}"));
    let stdout = CapturedOutput::new(child.stdout.take().expect("stdout is piped").into()).expect("a pipe");
    let stderr = CapturedOutput::new(child.stderr.take().expect("stderr is piped").into()).expect("a pipe");
    let mut input = child.stdin.take().expect("stdin is piped");
    // A command that does not read its input closes it early.
    let _ = input.write_all(stdin.as_bytes());
    drop(input);
    let ended = poll_until(Instant::now() + WAIT_LIMIT, || child.try_wait().expect("it is a child"));
    let status = ended.unwrap_or_else(|| {
        child.kill().expect("it is a child");
        child.wait().expect("it is a child")
    });
    let report =
        Ended { command: shown, directory: directory.to_owned(), status, stdout: stdout.text(), stderr: stderr.text() };
    assert!(ended.is_some(), "the command did not end within {WAIT_LIMIT:?}");
    report
}

impl Ended {
    /// Asserts the exit status.
    ///
    /// # Panics
    /// If it differs.
    #[track_caller]
    pub fn check(&self, status: i32) -> &Self {
        assert_eq!(self.status.code(), Some(status), "{}", self.status);
        self
    }

    /// Asserts that stderr holds each of these texts, and stdout nothing at all.
    ///
    /// # Panics
    /// If a text is missing or stdout holds something.
    #[track_caller]
    pub fn says(&self, texts: &[&str]) -> &Self {
        assert_eq!(self.stdout, "", "an error is reported on stderr");
        for text in texts {
            assert!(self.stderr.contains(text), "{text:?} is missing on stderr");
        }
        self
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        if REPORTS && std::thread::panicking() {
            report(&self.command, &self.directory, &self.status.to_string(), &self.stdout, &self.stderr);
        }
    }
}

/// Whether a test that fails unwinds, and so can print a report. The released binary aborts: it leaves the code of the
/// report out.
pub(crate) const REPORTS: bool = cfg!(panic = "unwind");

/// Prints what explains the failure of a test.
pub(crate) fn report(command: &str, directory: &Path, status: &str, stdout: &str, stderr: &str) {
    eprintln!("--- command: {command}");
    eprintln!("--- directory: {}", directory.display());
    eprintln!("--- status: {status}");
    eprintln!("--- stdout:\n{}", excerpt(stdout));
    eprintln!("--- stderr:\n{}---", excerpt(stderr));
}

/// Compiles or links files with the C compiler.
///
/// # Errors
/// If there is no `cc`, or what it reported.
pub fn compile_c(flags: &[&str], output: &Path, inputs: &[&Path]) -> io::Result<()> {
    let inputs = inputs.iter().map(|input| input.as_os_str());
    let arguments = flags.iter().map(OsStr::new).chain([OsStr::new("-o"), output.as_os_str()]).chain(inputs);
    let done = Command::new("cc").args(arguments).output();
    let done =
        done.map_err(|error| io::Error::new(error.kind(), format!("cannot run the C compiler `cc`: {error}")))?;
    if !done.status.success() {
        return Err(io::Error::other(format!("cc: {}", String::from_utf8_lossy(&done.stderr))));
    }
    Ok(())
}
