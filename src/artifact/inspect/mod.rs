//! Why an executable could not work, told before it is started. Reads headers, executes nothing.
//!
//! Knows what the kernel asks of a program ([`elf`], [`shebang`]), what a loader asks of its libraries
//! ([`libraries`]), and the formats that people upload by mistake ([`kind`](super::kind)). It looks into a
//! [`TargetSystem`], which is this machine or an unpacked image. Everything that a file says about itself is
//! believed within bounds only, and no more is read than an answer needs: some pages of a file of any
//! size.
//!
//! A [`Defect`] is fatal when the kernel or the loader refuses the program. In doubt nothing is said
//! at init: a program that works must never be refused by who only looked at it. A program for another
//! machine is left to the kernel, which may have been given something that runs it (`binfmt_misc`); that
//! cannot be looked up from inside a container. Once the kernel has refused it, that is the reason.

pub mod elf;
mod ld_cache;
pub mod libraries;
pub mod shebang;
pub mod target;

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::artifact::kind::HEAD_BYTES;
use crate::error::{Error, StartError, UploadError};

pub use crate::artifact::kind::Kind;
pub use crate::error::{Defect, Foreign, Language, Libc, MissingLibrary, Severity};
pub use target::TargetSystem;

/// What an inspection found.
#[derive(Debug)]
pub struct Inspection {
    /// What the file is: `ELF executable, x86_64, dynamically linked (glibc)`.
    pub what: String,
    /// What a script names as its interpreter, found on `PATH` if `env` would look for it there.
    pub interpreter: Option<PathBuf>,
    /// Every shared library that the program, or the interpreter of the script, would be loaded with.
    pub libraries: Vec<libraries::Library>,
    /// What is wrong with it, the worst first.
    pub defects: Vec<Defect>,
}

impl Inspection {
    /// Why the kernel or the loader would refuse it, whatever the kernel was given to run.
    pub fn fatal(&self) -> impl Iterator<Item = &Defect> {
        self.defects.iter().filter(|defect| defect.severity() == Severity::Fatal)
    }

    /// Why it is refused when nothing runs programs for other machines.
    pub fn fatal_by_itself(&self) -> impl Iterator<Item = &Defect> {
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
/// [`UploadError::Unusable`], with everything that was found at once.
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

/// Turns the kernel's refusal to execute a file into a sentence about that file. It was looked at
/// when it was placed; since then something may have changed, and now it is known that nothing runs
/// what is for another machine.
#[must_use]
pub fn cannot_start(executable: &Path, target: &TargetSystem, reason: io::Error) -> Error {
    let defects: Vec<_> = inspect(executable, target).fatal_by_itself().cloned().collect();
    if !defects.is_empty() {
        return Error::Upload(UploadError::Unusable { path: Some(executable.to_owned()), defects });
    }
    Error::Start(StartError::CannotStart { path: executable.to_owned(), reason })
}

/// Looks at a file that is to be started in a target. `executable` is a path of this machine.
#[must_use]
pub fn inspect(executable: &Path, target: &TargetSystem) -> Inspection {
    let mut inspection = inspect_file(&target.inner(executable), target, &mut Chain::default());
    inspection.defects.sort_by_key(Defect::severity);
    inspection
}

/// How the kernel came to look at a file.
#[derive(Debug, Default)]
struct Chain {
    /// The scripts whose interpreter it is, directly or through one another.
    scripts: Vec<PathBuf>,
    /// How often `env` was in between, which starts a chain of its own.
    restarts: usize,
}

/// Looks at a file of that target.
fn inspect_file(path: &Path, target: &TargetSystem, chain: &mut Chain) -> Inspection {
    let unreadable =
        |error: &io::Error| Inspection::of_defect("unreadable", Defect::Unreadable { reason: error.to_string() });
    let host = match target.host(path) {
        Ok(host) => host,
        Err(error) => return unreadable(&error),
    };
    let refusals = refusals(&host, target);
    // Neither a folder nor a pipe, which would be waited for.
    if refusals.iter().any(|defect| matches!(defect, Defect::Unreadable { .. })) {
        return Inspection { defects: refusals, ..Inspection::new("no file") };
    }
    let mut head = Vec::with_capacity(HEAD_BYTES);
    let read = File::open(&host).and_then(|file| file.take(HEAD_BYTES as u64).read_to_end(&mut head));
    let mut inspection = match read {
        // What may be executed and not read is executed all the same; the kernel reads it.
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
    /// Why a file of this kind cannot be started; nothing for what can be.
    #[must_use]
    pub fn of(kind: &Kind) -> Option<Self> {
        Some(match kind {
            Kind::Elf | Kind::Script => return None,
            Kind::Archive(format) => Self::Archive { format: *format },
            Kind::Source(language, first_line) => Self::Source { language: *language, first_line: first_line.clone() },
            Kind::Marked => Self::ByteOrderMark,
            Kind::Foreign(foreign) => Self::Foreign(*foreign),
            Kind::Encoded(inside) => Self::Encoded { inside: inside.clone() },
            Kind::Empty => Self::Empty,
            Kind::Unknown(seen) => Self::Unrecognised { seen: seen.clone() },
        })
    }
}

/// Why the kernel would refuse to execute a file whatever is in it.
fn refusals(host: &Path, target: &TargetSystem) -> Vec<Defect> {
    use std::os::unix::fs::PermissionsExt;

    let metadata = match std::fs::metadata(host) {
        Ok(metadata) => metadata,
        Err(error) => return vec![Defect::Unreadable { reason: error.to_string() }],
    };
    if !metadata.is_file() {
        let reason = if metadata.is_dir() { "it is a folder" } else { "it is no regular file" };
        return vec![Defect::Unreadable { reason: reason.into() }];
    }
    let mut refusals = Vec::new();
    let mode = metadata.permissions().mode() & 0o7777;
    // Of an image nobody knows who will start it, and how it will be mounted.
    let (executable, mounted_noexec) = if target.is_this_machine() {
        let mounted_noexec = rustix::fs::statvfs(host)
            .is_ok_and(|file_system| file_system.f_flag.contains(rustix::fs::StatVfsMountFlags::NOEXEC));
        (rustix::fs::access(host, rustix::fs::Access::EXEC_OK).is_ok(), mounted_noexec)
    } else {
        (mode & 0o111 != 0, false)
    };
    if mounted_noexec {
        let folder = host.parent().unwrap_or(host).to_owned();
        refusals.push(Defect::NoExecMount { directory: folder });
    } else if !executable {
        refusals.push(Defect::NotExecutable { mode });
    }
    refusals
}
