//! The command line as a shell sees it: arguments and stdin in, status, stdout and stderr out.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Instant;

use super::proxy::excerpt;
use super::{PATIENCE, search_path};

/// A command that has ended. If the test fails, it says everything there is to say.
pub(crate) struct Ended {
    command: String,
    directory: PathBuf,
    status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Runs `pipeloop` in a folder of its own.
#[track_caller]
pub(crate) fn pipeloop<S: AsRef<OsStr>>(args: &[S], env: &[(&str, &str)], stdin: &str) -> Ended {
    let directory = tempfile::tempdir().expect("a folder of its own");
    pipeloop_in(directory.path(), args, env, stdin)
}

/// Runs `pipeloop` with no environment but `PATH` and these variables, to its end.
#[track_caller]
pub(crate) fn pipeloop_in<S: AsRef<OsStr>>(directory: &Path, args: &[S], env: &[(&str, &str)], stdin: &str) -> Ended {
    // Files, so that nobody has to read while it runs.
    let scratch = tempfile::tempdir().expect("a folder of its own");
    let path = |name| scratch.path().join(name);
    let mut command = Command::new(env!("CARGO_BIN_EXE_pipeloop"));
    command.args(args).env_clear().env("PATH", search_path()).envs(env.iter().copied()).current_dir(directory);
    command.stdin(Stdio::piped());
    command.stdout(File::create(path("stdout")).expect("a file for stdout"));
    command.stderr(File::create(path("stderr")).expect("a file for stderr"));
    let shown = format!("{command:?} with {env:?} and stdin {stdin:?}");
    let mut child = command.spawn().expect("the binary can be started");
    let mut input = child.stdin.take().expect("it is piped");
    // Whoever does not read its input ends it early.
    let _ = input.write_all(stdin.as_bytes());
    drop(input);
    let begun = Instant::now();
    let (status, in_time) = loop {
        if let Some(status) = child.try_wait().expect("it is our child") {
            break (status, true);
        }
        if begun.elapsed() > PATIENCE {
            child.kill().expect("it is our child");
            break (child.wait().expect("it is our child"), false);
        }
        std::thread::sleep(std::time::Duration::from_millis(2));
    };
    let read = |name| String::from_utf8_lossy(&std::fs::read(path(name)).expect("the file is ours")).into_owned();
    let (stdout, stderr) = (read("stdout"), read("stderr"));
    let ended = Ended { command: shown, directory: directory.to_owned(), status, stdout, stderr };
    assert!(in_time, "the command did not end within {PATIENCE:?}");
    ended
}

/// Runs `pipeloop` on a terminal, by way of Python, and returns what a person would see.
#[track_caller]
pub(crate) fn on_terminal(args: &[&str], no_color: &str) -> String {
    let mut command = Command::new("python3");
    command.args(["-c", "import pty, sys\npty.spawn(sys.argv[1:])", env!("CARGO_BIN_EXE_pipeloop")]).args(args);
    command.env_clear().env("PATH", search_path()).env("TERM", "xterm").env("NO_COLOR", no_color).stdin(Stdio::null());
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

impl Ended {
    /// Asserts the exit status.
    #[track_caller]
    pub(crate) fn check(&self, status: i32) -> &Self {
        assert_eq!(self.status.code(), Some(status), "{}", self.status);
        self
    }

    /// Asserts that stderr holds each of these texts, and stdout nothing at all.
    #[track_caller]
    pub(crate) fn says(&self, texts: &[&str]) -> &Self {
        assert_eq!(self.stdout, "", "an error is told on stderr");
        for text in texts {
            assert!(self.stderr.contains(text), "{text:?} is missing on stderr");
        }
        self
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- command: {}", self.command);
            eprintln!("--- directory: {}", self.directory.display());
            eprintln!("--- status: {}", self.status);
            eprintln!("--- stdout:\n{}", excerpt(&self.stdout));
            eprintln!("--- stderr:\n{}---", excerpt(&self.stderr));
        }
    }
}
