//! What the end of a process tells to whoever knows the words: its status, its last words, how far it
//! had come. Pure functions; the sentences are hints, and nothing is decided by them.

use crate::error::{Ending, Stage};
use crate::process::ExitStatus;
use crate::text::excerpt;

/// The cure for an end, by the best evidence there is: what was counted, then what the process or
/// its loader said, then the bare status.
#[must_use]
pub(super) fn hint(ending: &Ending, stage: Option<&Stage>) -> Option<String> {
    if ending.is_success() {
        return Some(of_success(ending, stage));
    }
    if ending.oom_kills > 0 {
        return Some(
            "raise the memory limit of the action, or let it use less; `dmesg` on the host has the kernel's account"
                .into(),
        );
    }
    of_words(&ending.said).or_else(|| of_status(ending.status?))
}

/// It ended by itself and is content.
fn of_success(ending: &Ending, stage: Option<&Stage>) -> String {
    match stage {
        Some(Stage::BeforeReady) if ending.tail.is_empty() => {
            "it said nothing and did not wait for input: an action reads a line of JSON on stdin, answers it with a line, and goes on until its input ends; for a program that handles one activation and exits, set `PIPELOOP_PROTOCOL=0`".into()
        }
        Some(Stage::AfterLine { .. }) => {
            "an action waits for its input: it reads a line of JSON on stdin, answers it with a line, and goes on until its input ends; for a program that prints one answer and exits, set `PIPELOOP_PROTOCOL=0`".into()
        }
        _ => "an action of this kind reads a line, answers it and goes on until its input ends; for a program that handles one activation and exits, set `PIPELOOP_PROTOCOL=0`".into(),
    }
}

/// The classic last words of loaders, shells and interpreters.
fn of_words(said: &str) -> Option<String> {
    let has = |words: &str| said.contains(words);
    // glibc's loader, then musl's.
    if let Some(library) = between(said, "error while loading shared libraries: ", ":")
        .filter(|_| has("cannot open shared object file"))
        .or_else(|| between(said, "Error loading shared library ", ":"))
    {
        return Some(format!(
            "the loader did not find the shared library {}: install it in the image, pack it beside `exec` and link with `-Wl,-rpath,'$ORIGIN'`, or link statically",
            excerpt(library.as_bytes())
        ));
    }
    if let Some(version) = between(said, "version `", "' not found") {
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
            "something that it starts is no executable for this machine: rebuild it, or give it a `#!` line".into(),
        );
    }
    if let Some(module) = between(said, "No module named '", "'").or_else(|| between(said, "Cannot find module '", "'"))
    {
        return Some(format!(
            "the module {} is neither in the image nor in the archive: pack it beside `exec`",
            excerpt(module.as_bytes())
        ));
    }
    if let Some(command) = missing_command(said) {
        return Some(format!(
            "the program {} is not in the image, or not on `PATH`: put it there, or upload a static executable that does without",
            excerpt(command.as_bytes())
        ));
    }
    let memory = ["MemoryError", "out of memory", "OutOfMemoryError", "bad_alloc", "Cannot allocate memory"];
    if memory.iter().any(|words| has(words)) {
        return Some("it could not get more memory: raise the memory limit of the action, or let it use less".into());
    }
    if has("Illegal instruction") {
        return of_status(ExitStatus::Signalled(4));
    }
    None
}

/// The name in `exec: 3: jq: not found`, `line 2: jq: command not found` and
/// `env: 'jq': No such file or directory`.
fn missing_command(said: &str) -> Option<&str> {
    for words in [": command not found", ": not found", ": inaccessible or not found"] {
        if let Some((before, _)) = said.split_once(words) {
            return before.lines().last()?.rsplit(": ").next().map(str::trim).filter(|name| !name.is_empty());
        }
    }
    let quotes = ['\'', '\u{2018}', '\u{2019}'];
    let (_, after) = said.split_once("env: ")?;
    let (name, _) = after.split_once(": No such file or directory")?;
    let name = name.strip_prefix("can't execute ").unwrap_or(name);
    Some(name.trim_matches(quotes))
}

fn of_status(status: ExitStatus) -> Option<String> {
    let status = match status {
        // A shell's way to pass on the signal that ended its command.
        ExitStatus::Exited(code) if code > 128 && of_signal(code - 128).is_some() => {
            let signal = ExitStatus::Signalled(code - 128);
            return of_status(signal)
                .map(|hint| format!("{code} is a shell's word for a command that {signal}; {hint}"));
        }
        other => other,
    };
    match status {
        ExitStatus::Exited(126) => Some("126 is a shell's word for a program that it found and could not execute: make it executable, and look whether it is built for this machine".into()),
        ExitStatus::Exited(127) => Some("127 is a shell's word for a program that it did not find: put the interpreter into the image, or upload a static executable; the loader says 127 too when a shared library is missing".into()),
        ExitStatus::Exited(_) => None,
        ExitStatus::Signalled(signal) => of_signal(signal).map(Into::into),
    }
}

fn of_signal(signal: i32) -> Option<&'static str> {
    Some(match signal {
        4 => {
            "signal 4 is an instruction that this processor does not have: it was built for a newer one; build without `-march=native` and `target-cpu=native`"
        }
        6 => {
            "signal 6 is an abort of the program itself, such as a failed assertion or a panic: its last words are in the log"
        }
        7 => {
            "signal 7 is an access to memory that is not there, such as a mapped file that was cut off, or a full `/dev/shm`"
        }
        8 => "signal 8 is an arithmetic fault, such as a division by zero",
        9 => "signal 9 that nobody sent is most often the kernel, out of memory: raise the memory limit",
        11 => "signal 11 is a fault of the program itself, such as a null pointer or a stack that is used up",
        13 => {
            "signal 13 is a write to a pipe that nobody reads: it wrote to a descriptor that is not its result channel"
        }
        24 => "signal 24 is the limit on processor time (`ulimit -t`)",
        25 => "signal 25 is the limit on the size of files (`ulimit -f`)",
        31 => "signal 31 is a system call that the container does not allow (seccomp)",
        _ => return None,
    })
}

fn between<'a>(text: &'a str, before: &str, after: &str) -> Option<&'a str> {
    text.split_once(before)?.1.split_once(after).map(|(inner, _)| inner)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn ending(status: ExitStatus, tail: &str) -> Ending {
        Ending {
            status: Some(status),
            lived: Duration::from_millis(2),
            tail: tail.into(),
            said: tail.into(),
            oom_kills: 0,
        }
    }

    fn check(status: ExitStatus, tail: &str, expected: &str) {
        let hint = hint(&ending(status, tail), None).unwrap_or_default();
        assert!(hint.contains(expected), "{tail:?}: {hint:?} does not hold {expected:?}");
    }

    /// The words are those of the loaders, shells and interpreters themselves; those that a machine
    /// has are provoked in `tests/suite/endings.rs`.
    #[test]
    fn classic_last_words_are_understood() {
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
        check(Exited(126), "./exec: 2: ./tool: Exec format error", "no executable for this machine");
        check(Exited(1), "ModuleNotFoundError: No module named 'numpy'", "the module `numpy`");
        check(Exited(1), "Error: Cannot find module 'left-pad'", "the module `left-pad`");
        check(Exited(126), "", "could not execute");
        check(Exited(127), "", "did not find");
        check(Exited(139), "", "139 is a shell's word for a command that was killed by signal 11 (SIGSEGV)");
        check(Exited(132), "Illegal instruction (core dumped)", "newer one");
        check(Signalled(4), "", "newer one");
        check(Signalled(9), "", "out of memory");
        check(Signalled(31), "", "seccomp");
        assert_eq!(hint(&ending(Exited(3), "oops"), None), None);
        assert_eq!(hint(&ending(Exited(255), ""), None), None, "no signal has this number");
    }

    #[test]
    fn a_kill_that_was_counted_is_no_guess() {
        let mut ending = ending(ExitStatus::Signalled(9), "");
        ending.oom_kills = 1;
        assert!(hint(&ending, None).is_some_and(|hint| !hint.contains("most often")));
        assert!(ending.to_string().contains("out of memory"), "{ending}");
    }
}
