//! Why an executable cannot be started, in words. Reads headers, executes nothing.

use std::fs;
use std::io::{self, Read};
use std::path::Path;

use crate::error::Error;
use crate::text::excerpt;

/// The longest interpreter line that the kernel reads.
///
/// Source: execve(2), "Interpreter scripts", `BINPRM_BUF_SIZE`.
const LONGEST_INTERPRETER_LINE: usize = 255;

/// Turns the kernel's refusal to execute a file into a sentence about that file.
#[must_use]
pub fn cannot_start(program: &Path, reason: &io::Error) -> Error {
    let (reason, hint) = match (interpreter(program), reason.kind()) {
        (Some(interpreter), io::ErrorKind::NotFound) if program.exists() => (
            format!("its interpreter {} is not here", excerpt(interpreter.as_bytes())),
            "put the interpreter into the image, or upload a static executable",
        ),
        (_, io::ErrorKind::NotFound) if program.exists() => (
            "the loader that it names is not here: it was built for another system (glibc and musl differ)".to_owned(),
            "build it for this image, or statically",
        ),
        (Some(interpreter), io::ErrorKind::PermissionDenied) => (
            format!("permission denied for it or its interpreter {}", excerpt(interpreter.as_bytes())),
            "make the interpreter executable, and the folder not `noexec`",
        ),
        _ if reason.raw_os_error() == Some(rustix::io::Errno::NOEXEC.raw_os_error()) => (
            "exec format error: it is no executable for this machine".to_owned(),
            "build it for this machine's architecture",
        ),
        _ => (reason.to_string(), "`pipeloop run ACTION` shows the same on a laptop"),
    };
    Error::CannotStart { path: program.to_owned(), reason, hint }
}

/// The interpreter that a script names, as far as the kernel reads it.
fn interpreter(program: &Path) -> Option<String> {
    let mut head = Vec::new();
    fs::File::open(program).ok()?.take(LONGEST_INTERPRETER_LINE as u64).read_to_end(&mut head).ok()?;
    let line = head.strip_prefix(b"#!")?.split(|byte| *byte == b'\n').next()?;
    let line = String::from_utf8_lossy(line);
    // A carriage return is part of the name for the kernel, and is shown by the excerpt.
    line.trim_matches([' ', '\t']).split([' ', '\t']).next().map(str::to_owned)
}

/// Refuses what the kernel would not execute. Where the kernel says so itself, the C library has a
/// shell read the file instead, and the bytes of a binary would be taken for commands.
///
/// # Errors
/// [`Error::CannotStart`] for a binary that was not built for this machine, or is none.
pub fn check_header(program: &Path) -> Result<(), Error> {
    let mut head = Vec::new();
    let readable = fs::File::open(program).and_then(|file| file.take(ELF_HEAD).read_to_end(&mut head));
    // What cannot be read may be executable all the same; the kernel will tell.
    if readable.is_err() || head.starts_with(b"#!") {
        return Ok(());
    }
    let refused = |reason: String, hint| Err(Error::CannotStart { path: program.to_owned(), reason, hint });
    if !head.starts_with(b"\x7fELF") {
        return refused(
            "it is neither an ELF executable nor a script".into(),
            "put the interpreter on the first line of a script, for example `#!/usr/bin/env python3`",
        );
    }
    if (head.len() as u64) < ELF_HEAD {
        return refused("its ELF header is cut off".into(), "build and upload it again");
    }
    // Bytes 18 and 19 are the machine, in the byte order that byte 5 names.
    let machine = match head[5] {
        1 => u16::from_le_bytes([head[18], head[19]]),
        _ => u16::from_be_bytes([head[18], head[19]]),
    };
    let Some(here) = machine_here() else { return Ok(()) };
    // A 64-bit x86 kernel runs 32-bit programs too, if it was built to.
    if machine == here || (here == EM_X86_64 && machine == EM_386) {
        return Ok(());
    }
    refused(
        format!("it is built for {}, this machine is {}", machine_name(machine), std::env::consts::ARCH),
        "rebuild it for this machine",
    )
}

/// As much of an ELF file as the machine needs.
const ELF_HEAD: u64 = 20;
const EM_386: u16 = 3;
const EM_X86_64: u16 = 62;

/// Source: elf(5), `e_machine`; the numbers of the ELF specification.
fn machine_here() -> Option<u16> {
    Some(match std::env::consts::ARCH {
        "x86_64" => EM_X86_64,
        "aarch64" => 183,
        "riscv64" => 243,
        _ => return None,
    })
}

fn machine_name(machine: u16) -> String {
    match machine {
        EM_386 => "x86 (32 bits)".into(),
        20 | 21 => "powerpc".into(),
        22 => "s390x".into(),
        40 => "arm (32 bits)".into(),
        EM_X86_64 => "x86_64".into(),
        183 => "aarch64".into(),
        243 => "riscv".into(),
        other => format!("machine number {other}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(head: &[u8], expected: Option<&str>) {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), head).unwrap();
        let refused = check_header(file.path()).err().map(|error| error.to_string());
        match expected {
            None => assert_eq!(refused, None),
            Some(words) => assert!(refused.as_ref().is_some_and(|text| text.contains(words)), "{refused:?}"),
        }
    }

    #[test]
    fn what_the_kernel_would_not_execute_is_refused() {
        let this_test = fs::read(std::env::current_exe().unwrap()).unwrap();
        check(&this_test[..64], None);
        check(b"#!/bin/sh\n", None);
        check(b"\x7fELF", Some("its ELF header is cut off"));
        check(b"print('hello')", Some("neither an ELF executable nor a script"));
        let mut foreign = this_test[..64].to_vec();
        foreign[18] = 22;
        check(&foreign, Some("it is built for s390x, this machine is"));
    }
}
