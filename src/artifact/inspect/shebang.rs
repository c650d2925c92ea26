//! Reads `#!` lines as the kernel does, and the arguments of `env` in them.
//!
//! Source: Linux, `fs/binfmt_script.c`, `fs/exec.c`; execve(2), "Interpreter scripts"; env(1).

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::target::TargetSystem;
use super::{Chain, Inspection};
use crate::error::Defect;

/// How much of a file the kernel reads: `BINPRM_BUF_SIZE`.
const KERNEL_BYTES: usize = 256;
/// How deep scripts may be nested as interpreters: the kernel makes six rounds, and the last one is for a program. Its
/// manual says four.
const MAX_SCRIPTS: usize = 5;
/// How often `env` may start a new chain before the inspection ends.
const MAX_RESTARTS: usize = 5;

/// A `#!` line.
#[derive(Debug, PartialEq, Eq)]
struct Line {
    interpreter: Vec<u8>,
    /// Everything after the interpreter, which gets it as one argument.
    argument: Option<Vec<u8>>,
    /// The argument is longer than the kernel reads.
    is_cut: bool,
}

/// Reads the line as `load_script` does, which refuses invalid lines.
fn parse(head: &[u8]) -> Result<Line, Defect> {
    let buffer = &head[..head.len().min(KERNEL_BYTES)];
    let blank = |byte: &u8| matches!(byte, b' ' | b'\t');
    let newline = memchr::memchr(b'\n', buffer);
    // The kernel fills the rest of the buffer with NULs.
    let whole = newline.is_some() || head.len() < KERNEL_BYTES;
    let line = &buffer[2..newline.unwrap_or(buffer.len().min(KERNEL_BYTES - 1))];
    let start = line.iter().position(|byte| !blank(byte)).unwrap_or(line.len());
    let line = &line[start..];
    let length = line.iter().position(|byte| blank(byte) || *byte == 0);
    if !whole && length.is_none() {
        return Err(Defect::LineTooLong { limit: KERNEL_BYTES - 1 });
    }
    let (interpreter, rest) = line.split_at(length.unwrap_or(line.len()));
    if interpreter.is_empty() {
        return Err(Defect::NoInterpreterNamed);
    }
    // A NUL ends the argument.
    let rest = rest.split(|byte| *byte == 0).next().unwrap_or_default();
    let start = rest.iter().position(|byte| !blank(byte)).unwrap_or(rest.len());
    let end = rest.iter().rposition(|byte| !blank(byte)).map_or(start, |last| last + 1);
    let argument = (start < end).then(|| rest[start..end].to_vec());
    Ok(Line { interpreter: interpreter.to_vec(), is_cut: !whole && argument.is_some(), argument })
}

/// Inspects a script of the target system.
pub(super) fn inspect(path: &Path, head: &[u8], target: &TargetSystem, chain: &mut Chain) -> Inspection {
    chain.scripts.push(path.to_owned());
    let line = match parse(head) {
        Ok(line) => line,
        Err(defect) => return Inspection::of_defect("script", defect),
    };
    let interpreter = PathBuf::from(OsStr::from_bytes(&line.interpreter));
    let mut inspection = Inspection::new(format!("script for {}", interpreter.display()));
    if chain.scripts.len() > MAX_SCRIPTS {
        inspection.defects.push(Defect::NestedTooDeep { chain: chain.scripts.clone() });
        return inspection;
    }
    if let Some(without) = line.interpreter.strip_suffix(b"\r") {
        // A file of that name could exist, but in practice never does.
        let named = OsStr::from_bytes(&line.interpreter);
        if target.metadata(Path::new(named)).is_err() {
            let line = String::from_utf8_lossy(&[b"#!", without, b"\r"].concat()).into_owned();
            inspection.defects.push(Defect::CarriageReturn { line });
            return inspection;
        }
    }
    if target.metadata(&interpreter).is_err() {
        inspection.defects.push(Defect::NoInterpreter { interpreter });
        return inspection;
    }
    if interpreter.is_relative() {
        inspection.defects.push(Defect::RelativeInterpreter { interpreter: interpreter.clone() });
    }
    if line.is_cut {
        inspection.defects.push(Defect::ArgumentCut { limit: KERNEL_BYTES - 1 });
    }
    let is_env = interpreter.file_name() == Some(OsStr::new("env"));
    let command = match &line.argument {
        Some(argument) if is_env => match env(argument, line.is_cut) {
            Ok(command) => command,
            Err(defect) => {
                inspection.defects.push(defect);
                return inspection;
            }
        },
        Some(argument) if argument.ends_with(b"\r") => {
            let argument = String::from_utf8_lossy(argument).into_owned();
            inspection.defects.push(Defect::CarriageReturnInArgument { argument });
            None
        }
        _ => None,
    };
    inspect_interpreter(&mut inspection, &interpreter, target, chain);
    if let Some(command) = command {
        find_on_path(&mut inspection, command, target, chain.restarts);
    } else if !is_env {
        inspection.interpreter = Some(interpreter);
    }
    inspection
}

/// Inspects the interpreter, a program that must start like any other.
fn inspect_interpreter(inspection: &mut Inspection, interpreter: &Path, target: &TargetSystem, chain: &mut Chain) {
    let inner = super::inspect_file(interpreter, target, chain);
    inspection.libraries.extend(inner.libraries);
    for defect in inner.defects {
        inspection.defects.push(match defect {
            // It lists the whole chain.
            Defect::NestedTooDeep { .. } => defect,
            _ => Defect::Interpreter { interpreter: interpreter.to_owned(), defect: Box::new(defect) },
        });
    }
}

/// The command that `env` executes, and the `PATH` for it.
#[derive(Debug, PartialEq, Eq)]
struct Command {
    name: OsString,
    path: SearchPath,
}

/// Where `env` searches for its command.
#[derive(Debug, PartialEq, Eq)]
enum SearchPath {
    Inherited,
    Set(OsString),
    Unset,
}

/// Parses the single argument that `env` gets from the kernel. `None` for an argument that is not understood here.
fn env(argument: &[u8], is_cut: bool) -> Result<Option<Command>, Defect> {
    let Ok(text) = std::str::from_utf8(argument) else { return Ok(None) };
    let split =
        text.strip_prefix("-S").or_else(|| text.strip_prefix("--split-string=")).or_else(|| text.strip_prefix("-vS"));
    if let Some(rest) = split {
        // Only `env` knows the result of quotes, escapes and variables, and of an argument that was cut.
        if is_cut || rest.contains(['\'', '"', '\\', '$', '#']) {
            return Ok(None);
        }
        let words: Vec<_> = rest.split([' ', '\t']).filter(|word| !word.is_empty()).collect();
        return command(&words);
    }
    if text.starts_with('-') {
        // With one option and no operand, `env` prints its environment. Several options in one word are an error, whose
        // text differs between implementations.
        return match text.split_once([' ', '\t']) {
            Some(_) => Err(Defect::EnvWords { words: text.trim_end_matches('\r').to_owned() }),
            None => Ok(None),
        };
    }
    if let Some(name) = text.strip_suffix('\r') {
        return Err(Defect::CarriageReturn { line: format!("#!/usr/bin/env {name}\r") });
    }
    // `env` sets a variable to everything that follows.
    if text.contains('=') {
        return Ok(None);
    }
    if text.contains([' ', '\t']) {
        return Err(Defect::EnvWords { words: text.to_owned() });
    }
    Ok(Some(Command { name: text.into(), path: SearchPath::Inherited }))
}

/// Parses the words after `-S`: options, variables, a command.
fn command(words: &[&str]) -> Result<Option<Command>, Defect> {
    let mut path = SearchPath::Inherited;
    let mut words = words.iter();
    while let Some(word) = words.next() {
        match *word {
            "-i" | "-" | "--ignore-environment" => path = SearchPath::Unset,
            "-u" => {
                if words.next().is_some_and(|name| *name == "PATH") {
                    path = SearchPath::Unset;
                }
            }
            "--" | "-v" | "--debug" => {}
            word if word.starts_with('-') => return Ok(None),
            word => match word.split_once('=') {
                Some(("PATH", value)) => path = SearchPath::Set(value.into()),
                Some(_) => {}
                None => {
                    return match word.strip_suffix('\r') {
                        Some(name) => Err(Defect::CarriageReturn { line: format!("#!/usr/bin/env -S {name}\r") }),
                        None => Ok(Some(Command { name: word.into(), path })),
                    };
                }
            },
        }
    }
    Ok(None)
}

/// Finds the command as `execvp` does: the first file that may be executed.
fn find_on_path(inspection: &mut Inspection, command: Command, target: &TargetSystem, restarts: usize) {
    let Command { name, path } = command;
    let mut target = target.clone();
    match path {
        SearchPath::Inherited => {}
        SearchPath::Set(path) => target.path = Some(path),
        SearchPath::Unset => target.path = None,
    }
    let candidates = if name.as_bytes().contains(&b'/') {
        vec![PathBuf::from(&name)]
    } else {
        target.path_directories().into_iter().map(|directory| directory.join(&name)).collect()
    };
    // A script that `env` finds may name `env` again, or even itself. The inspection ends after some rounds.
    let mut chain = Chain { scripts: Vec::new(), restarts: restarts + 1 };
    if chain.restarts > MAX_RESTARTS {
        return;
    }
    let found = candidates
        .iter()
        .find(|candidate| target.host(candidate).is_ok_and(|host| super::refusals(&host, &target).is_empty()));
    let Some(found) = found else {
        // A file that exists but may not be executed is the better explanation.
        let existing =
            candidates.iter().find(|candidate| target.metadata(candidate).is_ok_and(|metadata| metadata.is_file()));
        if let Some(candidate) = existing {
            inspect_interpreter(inspection, candidate, &target, &mut chain);
        } else {
            let path = target.path.as_ref().map(|path| path.to_string_lossy().into_owned());
            inspection.defects.push(Defect::NotOnPath { command: name.to_string_lossy().into_owned(), path });
        }
        return;
    };
    inspection.what = format!("script for {}", found.display());
    inspect_interpreter(inspection, found, &target, &mut chain);
    inspection.interpreter = Some(found.clone());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(head: &str, interpreter: &str, argument: Option<&str>) {
        let line = parse(head.as_bytes()).unwrap();
        assert_eq!(String::from_utf8(line.interpreter).unwrap(), interpreter, "{head:?}");
        assert_eq!(line.argument.map(|argument| String::from_utf8(argument).unwrap()).as_deref(), argument, "{head:?}");
    }

    #[test]
    fn lines_are_parsed_as_the_kernel_does() {
        check("#!/bin/sh\n", "/bin/sh", None);
        check("#!/bin/sh", "/bin/sh", None);
        check("#! \t/bin/sh \t\necho", "/bin/sh", None);
        check("#!/bin/sh -e -u \n", "/bin/sh", Some("-e -u"));
        check("#!/bin/sh\r\n", "/bin/sh\r", None);
        check("#!/bin/sh -e\0-u\n", "/bin/sh", Some("-e"));
        for empty in ["#!", "#!\n", "#! \t\n/bin/sh"] {
            assert_eq!(parse(empty.as_bytes()), Err(Defect::NoInterpreterNamed), "{empty:?}");
        }
    }

    #[test]
    fn a_line_is_read_to_the_limit_of_the_kernel() {
        // The newline is the last byte that the kernel reads.
        let longest = format!("/{}", "x".repeat(252));
        check(&format!("#!{longest}\n{}", "y".repeat(300)), &longest, None);
        let too_long = format!("#!{longest}x\n{}", "y".repeat(300));
        assert_eq!(parse(too_long.as_bytes()), Err(Defect::LineTooLong { limit: 255 }));
        let cut = format!("#!/bin/sh {}\n", "x".repeat(300));
        let line = parse(cut.as_bytes()).unwrap();
        assert!(line.is_cut);
        assert_eq!(line.argument.unwrap().len(), 255 - "#!/bin/sh ".len());
    }

    fn check_env(argument: &str, expected: Result<Option<&str>, &str>) {
        let command = env(argument.as_bytes(), false);
        let command = command.map(|command| command.map(|command| command.name.into_string().unwrap()));
        match expected {
            Ok(name) => assert_eq!(command.unwrap().as_deref(), name, "{argument:?}"),
            Err(code) => assert_eq!(command.unwrap_err().code(), code, "{argument:?}"),
        }
    }

    #[test]
    fn the_argument_of_env_is_parsed() {
        check_env("python3", Ok(Some("python3")));
        check_env("-S python3 -u", Ok(Some("python3")));
        check_env("-Spython3 -u", Ok(Some("python3")));
        check_env("-S -i A=b PATH=/x python3", Ok(Some("python3")));
        check_env("python3 -u", Err("PL085"));
        check_env("-i python3", Err("PL085"));
        check_env("python3\r", Err("PL082"));
        check_env("-S python3\r", Err("PL082"));
        // Arguments that are correct, or not understood.
        for silent in ["-i", "A=b", "-S python3 'a b'", "-S --chdir=/ python3", "-S ${SHELL}"] {
            check_env(silent, Ok(None));
        }
    }
}
