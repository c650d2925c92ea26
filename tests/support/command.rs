//! The command line as a shell sees it: arguments and stdin in, status, stdout and stderr out.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, Stdio};

use testkit::command::{Ended, run_to_end, search_path, set_environment};

/// Runs `pipeloop` in a directory of its own.
#[track_caller]
pub(crate) fn pipeloop<S: AsRef<OsStr>>(args: &[S], env: &[(&str, &str)], stdin: &str) -> Ended {
    let directory = tempfile::tempdir().expect("a temporary directory");
    pipeloop_in(directory.path(), args, env, stdin)
}

/// Runs `pipeloop` with no environment but `PATH` and these variables, to its end.
#[track_caller]
pub(crate) fn pipeloop_in<S: AsRef<OsStr>>(directory: &Path, args: &[S], env: &[(&str, &str)], stdin: &str) -> Ended {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pipeloop"));
    command.args(args);
    set_environment(&mut command, env);
    let shown = format!("{command:?} with {env:?} and stdin {stdin:?}");
    run_to_end(command, directory, stdin, shown)
}

/// Runs `pipeloop` on a pseudo-terminal, which Python opens, and returns what a person would see.
#[track_caller]
pub(crate) fn on_terminal(args: &[&str], no_color: &str) -> String {
    let mut command = Command::new("python3");
    command.args(["-c", "import pty, sys\npty.spawn(sys.argv[1:])", env!("CARGO_BIN_EXE_pipeloop")]).args(args);
    command.env_clear().env("PATH", search_path()).env("TERM", "xterm").env("NO_COLOR", no_color).stdin(Stdio::null());
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    String::from_utf8_lossy(&output.stdout).into_owned()
}
