//! How a program flushes its output, in the words of its language.

use std::fs;
use std::path::{Path, PathBuf};

use memchr::memmem;

use crate::process::{Launch, StdoutKind};

/// How the programs of an action flush their output. `programs` are those that run, as paths.
#[must_use]
pub fn flush_hint(programs: &[PathBuf], launch: &Launch) -> String {
    let names: Vec<_> =
        programs.iter().filter_map(|program| program.file_name()?.to_str()).map(str::to_lowercase).collect();
    let runs = |begins: &[&str]| names.iter().any(|name| begins.iter().any(|begin| name.starts_with(begin)));
    // Filters come first: the shell that starts them holds nothing back itself.
    let known = if runs(&["jq"]) {
        "`jq --unbuffered`"
    } else if runs(&["sed"]) {
        "`sed -u`"
    } else if runs(&["awk", "gawk", "mawk", "original-awk"]) {
        "`fflush()` after each `print`; mawk reads with `-W interactive` only"
    } else if runs(&["grep", "egrep"]) {
        "`grep --line-buffered`"
    } else if runs(&["tr", "cut", "tee", "sort", "uniq"]) {
        "`stdbuf -oL` before the filter"
    } else if runs(&["python", "pypy"]) {
        "`print(…, flush=True)`, or start it with `python3 -u`"
    } else if runs(&["perl"]) {
        "`$| = 1;` at the beginning"
    } else if runs(&["ruby"]) {
        "`$stdout.sync = true` at the beginning"
    } else if runs(&["php"]) {
        "`fflush(STDOUT)`, and no `ob_start`"
    } else if runs(&["java"]) {
        "`System.out.flush()`"
    } else if runs(&["mono", "dotnet"]) {
        "`Console.Out.Flush()`, or `AutoFlush = true` on the writer"
    } else if runs(&["lua"]) {
        "`io.stdout:setvbuf(\"line\")`"
    } else if is_go(&launch.program) {
        "`Flush()` on the `bufio.Writer`, or write to `os.Stdout` itself"
    } else {
        "`fflush(stdout)` in C, `std::cout << std::flush` in C++, `io::stdout().flush()` in Rust, `hFlush stdout` in Haskell"
    };
    let terminal = match launch.stdout {
        StdoutKind::Pipe => "; or give it a terminal, to which most programs write each line at once: `--stdout pty`",
        StdoutKind::Pty => "",
    };
    format!(
        "flush after each line: {known}{terminal}; if it reads all of its input before it answers, answer line by line, or use `--protocol 0`"
    )
}

/// Whether Go's compiler made a program: it leaves a mark.
///
/// Source: Go, package `debug/buildinfo`.
fn is_go(executable: &Path) -> bool {
    fs::read(executable).is_ok_and(|bytes| memmem::find(&bytes, b"\xff Go buildinf:").is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hint_is_for_the_program_that_holds_output_back() {
        let hint = |programs: &[&str]| {
            let launch = Launch {
                program: "/nonexistent".into(),
                arguments: Vec::new(),
                environment: Vec::new(),
                directory: "/".into(),
                stdout: StdoutKind::Pipe,
            };
            flush_hint(&programs.iter().map(PathBuf::from).collect::<Vec<_>>(), &launch)
        };
        assert!(hint(&["/usr/bin/perl"]).contains("--stdout pty"));
        assert!(hint(&["/usr/bin/python3.11"]).contains("python3 -u"));
        assert!(hint(&["/usr/bin/perl"]).contains("$| = 1"));
        assert!(hint(&["/bin/bash", "/usr/bin/sed"]).contains("sed -u"));
        assert!(hint(&["/bin/bash", "/usr/bin/jq", "/usr/bin/python3"]).contains("jq --unbuffered"));
        assert!(hint(&["/srv/exec"]).contains("fflush(stdout)"));
    }
}
