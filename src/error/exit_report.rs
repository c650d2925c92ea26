//! How a process exited, and what its exit status and its last output suggest about the cause. Pure functions:
//! they only write hints, no decision depends on them.

use std::fmt;
use std::time::Duration;

use super::Stage;
use crate::process::ExitStatus;
use crate::text::{excerpt, millis};

/// How a process exited.
#[derive(Debug, Clone)]
pub struct ExitReport {
    /// Its exit status, if it is known.
    pub status: Option<ExitStatus>,
    /// The time from its start to its exit.
    pub lifetime: Duration,
    /// The last lines of its standard error, possibly empty.
    pub stderr_tail: Box<str>,
    /// As much of its standard error as the log keeps. The tail is its end.
    pub stderr: Box<str>,
    /// How many processes of the container the kernel killed for lack of memory during its lifetime.
    pub oom_kills: u32,
}

impl ExitReport {
    /// Whether the process ended by itself with status 0.
    #[must_use]
    pub fn is_success(&self) -> bool {
        matches!(self.status, Some(ExitStatus::Exited(0)))
    }

    /// Whether it exited with a status that a shell uses for a program that is missing or cannot be executed.
    pub(super) fn lacks_program(&self) -> bool {
        matches!(self.status, Some(ExitStatus::Exited(126 | 127)))
    }
}

impl fmt::Display for ExitReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.status {
            Some(status) => write!(f, "{status} after {}", millis(self.lifetime))?,
            None => write!(f, "ended after {}", millis(self.lifetime))?,
        }
        match self.oom_kills {
            0 => Ok(()),
            // The killed process may be another one, such as a child.
            _ if !matches!(self.status, Some(ExitStatus::Signalled(9))) => {
                f.write_str(" (the kernel killed a process of this container meanwhile: out of memory)")
            }
            _ => f.write_str(" (by the kernel: out of memory)"),
        }
    }
}

/// What to do about an exit, by the best evidence there is: the kernel's count of kills, then the output of the
/// process or its loader, then the bare status.
#[must_use]
pub(super) fn hint(exit: &ExitReport, stage: Option<&Stage>) -> Option<String> {
    if let Some(Stage::AfterNearHandshake(near)) = stage {
        return Some(near.hint());
    }
    if exit.is_success() {
        return Some(hint_for_success(exit, stage));
    }
    if exit.oom_kills > 0 {
        return Some(
            "raise the memory limit of the action, or let it use less; `dmesg` on the host has the kernel's account"
                .into(),
        );
    }
    hint_from_output(&exit.stderr).or_else(|| hint_from_status(exit.status?))
}

/// It exited with status 0.
fn hint_for_success(exit: &ExitReport, stage: Option<&Stage>) -> String {
    match stage {
        Some(Stage::BeforeReady) if exit.stderr_tail.is_empty() => {
            "it printed nothing and did not wait for input: an action reads a line of JSON on stdin, answers it with a line, and goes on until its input ends; for a program that handles one activation and exits, set `PIPELOOP_PROTOCOL=0`".into()
        }
        Some(Stage::AfterLine { .. }) => {
            "an action waits for its input: it reads a line of JSON on stdin, answers it with a line, and goes on until its input ends; for a program that prints one answer and exits, set `PIPELOOP_PROTOCOL=0`".into()
        }
        _ => "an action of this kind reads a line, answers it and goes on until its input ends; for a program that handles one activation and exits, set `PIPELOOP_PROTOCOL=0`".into(),
    }
}

/// The usual last lines of loaders, shells and interpreters.
fn hint_from_output(output: &str) -> Option<String> {
    let has = |text: &str| output.contains(text);
    // glibc's loader, then musl's.
    if let Some(library) = between(output, "error while loading shared libraries: ", ":")
        .filter(|_| has("cannot open shared object file"))
        .or_else(|| between(output, "Error loading shared library ", ":"))
    {
        return Some(format!(
            "the loader did not find the shared library {}: install it in the image, pack it beside `exec` and link with `-Wl,-rpath,'$ORIGIN'`, or link statically",
            excerpt(library.as_bytes())
        ));
    }
    if let Some(version) = between(output, "version `", "' not found") {
        return Some(format!(
            "it was built with a newer library than the image has, one with {}: build it in the image that it will run in, or statically",
            excerpt(version.as_bytes())
        ));
    }
    if has("Error relocating") || has("symbol lookup error") {
        return Some("a shared library here lacks a symbol that it was built with: it was built for another C library (glibc and musl differ) or a newer version; build it in the image that it will run in, or statically".into());
    }
    if has("Exec format error") || has("cannot execute binary file") {
        return Some(
            "something that it starts is not an executable for this machine: rebuild it, or give it a `#!` line".into(),
        );
    }
    if let Some(module) =
        between(output, "No module named '", "'").or_else(|| between(output, "Cannot find module '", "'"))
    {
        return Some(format!(
            "the module {} is neither in the image nor in the archive: pack it beside `exec`",
            excerpt(module.as_bytes())
        ));
    }
    if let Some(command) = missing_command(output) {
        return Some(format!(
            "the program {} is not in the image, or not on `PATH`: put it there, or upload a static executable that does without",
            excerpt(command.as_bytes())
        ));
    }
    let memory = ["MemoryError", "out of memory", "OutOfMemoryError", "bad_alloc", "Cannot allocate memory"];
    if memory.iter().any(|text| has(text)) {
        return Some("it could not get more memory: raise the memory limit of the action, or let it use less".into());
    }
    if has("Illegal instruction") {
        return hint_from_status(ExitStatus::Signalled(4));
    }
    None
}

/// The name in `exec: 3: jq: not found`, `line 2: jq: command not found` and
/// `env: 'jq': No such file or directory`.
fn missing_command(output: &str) -> Option<&str> {
    for marker in [": command not found", ": not found", ": inaccessible or not found"] {
        if let Some((before, _)) = output.split_once(marker) {
            return before.lines().last()?.rsplit(": ").next().map(str::trim).filter(|name| !name.is_empty());
        }
    }
    let quotes = ['\'', '\u{2018}', '\u{2019}'];
    let (_, after) = output.split_once("env: ")?;
    let (name, _) = after.split_once(": No such file or directory")?;
    let name = name.strip_prefix("can't execute ").unwrap_or(name);
    Some(name.trim_matches(quotes))
}

fn hint_from_status(status: ExitStatus) -> Option<String> {
    let status = match status {
        // A shell exits like this when a signal ended its command.
        ExitStatus::Exited(code) if code > 128 && hint_from_signal(code - 128).is_some() => {
            let signal = ExitStatus::Signalled(code - 128);
            return hint_from_status(signal)
                .map(|hint| format!("a shell exits with {code} when its command {signal}; {hint}"));
        }
        other => other,
    };
    match status {
        ExitStatus::Exited(126) => Some("a shell exits with 126 when it finds a program but cannot execute it: make it executable, and check that it is built for this machine".into()),
        ExitStatus::Exited(127) => Some("a shell exits with 127 when it cannot find a program: put the interpreter into the image, or upload a static executable; the loader exits with 127 too when a shared library is missing".into()),
        ExitStatus::Exited(_) => None,
        ExitStatus::Signalled(signal) => hint_from_signal(signal).map(Into::into),
    }
}

fn hint_from_signal(signal: i32) -> Option<&'static str> {
    Some(match signal {
        4 => {
            "signal 4 means an instruction that this processor does not have: the program was built for a newer one; build without `-march=native` and `target-cpu=native`"
        }
        6 => {
            "signal 6 is an abort of the program itself, such as a failed assertion or a panic: the log has the end of its output"
        }
        7 => {
            "signal 7 is an access to memory that does not exist, such as a mapped file that was cut off, or a full `/dev/shm`"
        }
        8 => "signal 8 is an arithmetic fault, such as a division by zero",
        9 => "signal 9 most often comes from the kernel when memory runs out: raise the memory limit",
        11 => "signal 11 is a fault of the program itself, such as a null pointer or a stack overflow",
        13 => {
            "signal 13 is a write to a pipe without a reader: it wrote to a descriptor that is not its result channel"
        }
        24 => "signal 24 is the limit on processor time (`ulimit -t`)",
        25 => "signal 25 is the limit on the size of files (`ulimit -f`)",
        31 => "signal 31 is a system call that the container forbids (seccomp)",
        _ => return None,
    })
}

fn between<'a>(text: &'a str, before: &str, after: &str) -> Option<&'a str> {
    text.split_once(before)?.1.split_once(after).map(|(inner, _)| inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit(status: ExitStatus, tail: &str) -> ExitReport {
        ExitReport {
            status: Some(status),
            lifetime: Duration::from_millis(2),
            stderr_tail: tail.into(),
            stderr: tail.into(),
            oom_kills: 0,
        }
    }

    fn check(status: ExitStatus, tail: &str, expected: &str) {
        let hint = hint(&exit(status, tail), None).unwrap_or_default();
        assert!(hint.contains(expected), "{tail:?}: {hint:?} does not hold {expected:?}");
    }

    /// The lines come from the loaders, shells and interpreters themselves; those that this machine has are
    /// provoked in `tests/suite/exits.rs`.
    #[test]
    fn usual_last_lines_are_understood() {
        use ExitStatus::{Exited, Signalled};
        check(
            Exited(127),
            "./exec: error while loading shared libraries: libfoo.so.1: cannot open shared object file: No such file or directory",
            "shared library `libfoo.so.1`",
        );
        check(
            Exited(127),
            "Error loading shared library libfoo.so.1: No such file or directory (needed by ./exec)",
            "`libfoo.so.1`",
        );
        check(
            Exited(1),
            "./exec: /lib/libc.so.6: version `GLIBC_2.38' not found (required by ./exec)",
            "one with `GLIBC_2.38`",
        );
        check(Exited(127), "Error relocating ./exec: __fprintf_chk: symbol not found", "glibc and musl differ");
        check(Exited(127), "./exec: symbol lookup error: ./exec: undefined symbol: nothing", "lacks a symbol");
        check(Exited(127), "./exec: 3: jq: not found", "the program `jq`");
        check(Exited(127), "/bin/x: line 2: jq: command not found", "the program `jq`");
        check(Exited(127), "/usr/bin/env: \u{2018}jq\u{2019}: No such file or directory", "the program `jq`");
        check(Exited(127), "env: can't execute 'jq': No such file or directory", "the program `jq`");
        check(Exited(126), "./exec: 2: ./tool: Exec format error", "not an executable for this machine");
        check(Exited(1), "ModuleNotFoundError: No module named 'numpy'", "the module `numpy`");
        check(Exited(1), "Error: Cannot find module 'left-pad'", "the module `left-pad`");
        check(Exited(126), "", "cannot execute");
        check(Exited(127), "", "cannot find");
        check(Exited(139), "", "a shell exits with 139 when its command was killed by signal 11 (SIGSEGV)");
        check(Exited(132), "Illegal instruction (core dumped)", "newer one");
        check(Signalled(4), "", "newer one");
        check(Signalled(9), "", "memory runs out");
        check(Signalled(31), "", "seccomp");
        assert_eq!(hint(&exit(Exited(3), "oops"), None), None);
        assert_eq!(hint(&exit(Exited(255), ""), None), None, "no signal has this number");
    }

    #[test]
    fn a_kill_that_was_counted_is_no_guess() {
        let mut exit = exit(ExitStatus::Signalled(9), "");
        exit.oom_kills = 1;
        assert!(hint(&exit, None).is_some_and(|hint| !hint.contains("most often")));
        assert!(exit.to_string().contains("out of memory"), "{exit}");
    }
}
