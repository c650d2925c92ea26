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
