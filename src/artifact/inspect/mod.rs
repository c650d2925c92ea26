//! Finds out before the start why an executable cannot work. It reads headers and executes nothing.
//!
//! It knows what the kernel requires of a program ([`elf`], [`shebang`]), what a loader requires of libraries
//! ([`libraries`]), and the formats that people upload by mistake ([`kind`](super::kind)). It inspects a file for a
//! [`TargetSystem`], which is this machine or an unpacked image. It trusts nothing that a file says about itself beyond
//! fixed bounds, and reads only a few pages of a file of any size.
//!
//! A [`Defect`] is fatal if the kernel or the loader refuses the program. In doubt, init goes on: inspection must never
//! refuse a program that works. A program for another machine goes to the kernel, which may run it in an emulator
//! (`binfmt_misc`); that cannot be found out inside a container. If the kernel refuses it, this defect is the reason.

pub mod elf;
mod flush;
mod ld_cache;
pub mod libraries;
pub mod shebang;
pub mod target;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::artifact::kind::HEAD_BYTES;
use crate::error::{Error, Oversized, StartError, UploadError};
use crate::process::Launch;

pub use crate::artifact::kind::Kind;
pub use crate::error::{Defect, Foreign, Language, Libc, MissingLibrary, Severity, X86Level};
pub use flush::flush_hint;
pub use target::TargetSystem;

/// The result of an inspection.
#[derive(Debug)]
pub struct Inspection {
    /// A description of the file: `ELF executable, x86_64, dynamically linked (glibc)`.
    pub what: String,
    /// The interpreter of a script, found on `PATH` if the script names `env`.
    pub interpreter: Option<PathBuf>,
    /// Every shared library that the loader would load for the program or the interpreter.
    pub libraries: Vec<libraries::Library>,
    /// What is wrong with the file, the worst first.
    pub defects: Vec<Defect>,
}

impl Inspection {
    /// Why the kernel or the loader would refuse it, even with an emulator for other machines.
    pub fn fatal(&self) -> impl Iterator<Item = &Defect> {
        self.defects.iter().filter(|defect| defect.severity() == Severity::Fatal)
    }

    /// Why the kernel or the loader would refuse it without an emulator for other machines.
    pub fn fatal_without_emulator(&self) -> impl Iterator<Item = &Defect> {
        self.defects.iter().filter(|defect| defect.severity() != Severity::Warning)
    }

    fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), interpreter: None, libraries: Vec::new(), defects: Vec::new() }
    }

    fn of_defect(what: impl Into<String>, defect: Defect) -> Self {
        Self { defects: vec![defect], ..Self::new(what) }
    }
}

/// Refuses an executable that the kernel or the loader would refuse.
///
/// # Errors
/// [`UploadError::Unusable`], with all fatal defects.
pub fn check(executable: &Path, target: &TargetSystem) -> Result<(), Error> {
    let inspection = inspect(executable, target);
    tracing::debug!(what = inspection.what, interpreter = ?inspection.interpreter, defects = ?inspection.defects, "inspected");
    let defects: Vec<_> = inspection.fatal().cloned().collect();
    if defects.is_empty() {
        Ok(())
    } else {
        Err(Error::Upload(UploadError::Unusable { path: Some(executable.to_owned()), defects }))
    }
}

/// The error for a file that the kernel refused to execute: its defects, or else the kernel's own reason. The file is
/// inspected again, since it may have changed since the init, and since the kernel has shown that it has no emulator for
/// another machine.
#[must_use]
pub fn cannot_start(launch: &Launch, reason: io::Error) -> Error {
    if let Some(oversized) = oversized(launch, &reason) {
        return Error::Start(StartError::TooLarge(oversized));
    }
    let executable = &launch.program;
    let target = &TargetSystem::of(launch);
    let defects: Vec<_> = inspect(executable, target).fatal_without_emulator().cloned().collect();
    if !defects.is_empty() {
        return Error::Upload(UploadError::Unusable { path: Some(executable.to_owned()), defects });
    }
    Error::Start(StartError::CannotStart { path: executable.to_owned(), reason })
}

/// What is too large, if that is why the kernel refused to start a program.
pub(crate) fn oversized(launch: &Launch, reason: &io::Error) -> Option<Box<Oversized>> {
    if reason.raw_os_error() != Some(rustix::io::Errno::TOOBIG.raw_os_error()) {
        return None;
    }
    // Of two variables with one name, the last one counts.
    let variables: BTreeMap<_, _> = launch.environment.iter().map(|(name, value)| (name, value)).collect();
    let sizes = variables.iter().map(|(name, value)| (name.len() + 1 + value.len(), *name));
    let (bytes, name) = sizes.clone().max()?;
    let arguments = [launch.program.as_os_str()].into_iter().chain(launch.arguments.iter().map(AsRef::as_ref));
    // Each has a NUL at its end.
    let total = sizes.map(|(bytes, _)| bytes + 1).chain(arguments.map(|argument| argument.len() + 1)).sum();
    let total_bytes = (bytes <= Oversized::MAX_STRING).then_some(total);
    Some(Box::new(Oversized { variable: name.to_string_lossy().into_owned(), member: None, bytes, total_bytes }))
}

/// Inspects a file that will be started on a target system. `executable` is a path of this machine.
#[must_use]
pub fn inspect(executable: &Path, target: &TargetSystem) -> Inspection {
    let mut inspection = inspect_file(&target.inner(executable), target, &mut Chain::default());
    inspection.defects.sort_by_key(Defect::severity);
    inspection
}

/// How the kernel came to execute a file.
#[derive(Debug, Default)]
struct Chain {
    /// The scripts whose interpreter it is, directly or through other scripts.
    scripts: Vec<PathBuf>,
    /// How often `env` started a new chain.
    restarts: usize,
}

/// Inspects a file of the target system.
fn inspect_file(path: &Path, target: &TargetSystem, chain: &mut Chain) -> Inspection {
    let unreadable =
        |error: &io::Error| Inspection::of_defect("unreadable", Defect::Unreadable { reason: error.to_string() });
    let host = match target.host(path) {
        Ok(host) => host,
        Err(error) => return unreadable(&error),
    };
    let refusals = refusals(&host, target);
    // Only a regular file: reading a pipe would block.
    if refusals.iter().any(|defect| matches!(defect, Defect::Unreadable { .. })) {
        return Inspection { defects: refusals, ..Inspection::new("no file") };
    }
    let mut head = Vec::with_capacity(HEAD_BYTES);
    let read = File::open(&host).and_then(|file| file.take(HEAD_BYTES as u64).read_to_end(&mut head));
    let mut inspection = match read {
        // The kernel executes a file without read permission, too.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Inspection::new("unreadable"),
        Err(error) => return unreadable(&error),
        Ok(_) => match Kind::of(&head) {
            Kind::Elf => elf::inspect(path, &host, target),
            Kind::Script => shebang::inspect(path, &head, target, chain),
            other => match Defect::of(&other) {
                Some(defect) => Inspection::of_defect(other.in_words(), defect),
                None => Inspection::new(other.in_words()),
            },
        },
    };
    inspection.defects.splice(0..0, refusals);
    inspection
}

impl Defect {
    /// Why a file of this kind cannot be started; `None` if it can.
    #[must_use]
    pub fn of(kind: &Kind) -> Option<Self> {
        Some(match kind {
            Kind::Elf | Kind::Script => return None,
            Kind::Archive(format) => Self::Archive { format: *format },
            Kind::Source(language, first_line) => Self::Source { language: *language, first_line: first_line.clone() },
            Kind::MarkedScript => Self::ByteOrderMark,
            Kind::Foreign(foreign) => Self::Foreign(*foreign),
            Kind::Encoded(inside) => Self::Encoded { inside: inside.clone() },
            Kind::Empty => Self::Empty,
            Kind::Unknown(seen) => Self::Unrecognised { seen: seen.clone() },
        })
    }
}

/// Why the kernel would refuse to execute a file, whatever its content.
fn refusals(host: &Path, target: &TargetSystem) -> Vec<Defect> {
    use std::os::unix::fs::PermissionsExt;

    let metadata = match std::fs::metadata(host) {
        Ok(metadata) => metadata,
        Err(error) => return vec![Defect::Unreadable { reason: error.to_string() }],
    };
    if !metadata.is_file() {
        let reason = if metadata.is_dir() { "it is a directory" } else { "it is not a regular file" };
        return vec![Defect::Unreadable { reason: reason.into() }];
    }
    let mut refusals = Vec::new();
    let mode = metadata.permissions().mode() & 0o7777;
    // For an image, neither the user nor the mount options are known.
    let (executable, mounted_noexec) = if target.is_this_machine() {
        let mounted_noexec = rustix::fs::statvfs(host)
            .is_ok_and(|file_system| file_system.f_flag.contains(rustix::fs::StatVfsMountFlags::NOEXEC));
        (rustix::fs::access(host, rustix::fs::Access::EXEC_OK).is_ok(), mounted_noexec)
    } else {
        (mode & 0o111 != 0, false)
    };
    if mounted_noexec {
        let directory = host.parent().unwrap_or(host).to_owned();
        refusals.push(Defect::NoExecMount { directory });
    } else if !executable {
        refusals.push(Defect::NotExecutable { mode });
    }
    refusals
}
