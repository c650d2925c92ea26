//! Code and archives that cannot become an action.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Defect, Oversized, quoted};
use crate::process::ExitStatus;
use crate::text::{excerpt, listing, millis};

/// Why what was uploaded cannot be an action.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the fields are the facts that the sentence of each cause is made of")]
pub enum UploadError {
    /// Inspection shows that it cannot work: all defects, the worst first. Without a path it is the code as it
    /// was uploaded.
    #[error("{}: {}", unusable(.path.as_deref()), clauses(.defects))]
    Unusable { path: Option<PathBuf>, defects: Vec<Defect> },

    /// The compiler did not turn it into an executable.
    #[error("the compiler `{}` {problem}{}", .compiler.display(), quoted(": ", .tail))]
    Compile {
        compiler: PathBuf,
        #[source]
        problem: CompileFailure,
        tail: String,
    },

    /// The archive cannot be read to its end.
    #[error("the {format} archive is damaged or incomplete: {reason}")]
    ArchiveDamaged { format: ArchiveFormat, reason: String },

    /// An entry of a zip uses a feature that is not supported.
    #[error("the zip archive uses an unsupported feature: entry {entry} {} {feature}", excerpt(.path.as_bytes()))]
    ArchiveUnsupported { entry: usize, path: String, feature: Unsupported },

    /// The archive has no `exec` at its root.
    #[error("the archive has no file `exec` at its root{instead}; it contains {}", listing(.holds, *.more))]
    ArchiveWithoutExec { instead: FoundInstead, holds: Vec<String>, more: usize },

    /// The directory named on the command line has no `exec`.
    #[error("the directory `{}` has no file `exec`; it contains {}", .path.display(), listing(.holds, *.more))]
    DirectoryWithoutExec { path: PathBuf, holds: Vec<String>, more: usize },

    /// An entry would land outside the action's directory.
    #[error("{}", escape(*.entry, .path, .target.as_deref()))]
    ArchiveEscapes { entry: Option<usize>, path: String, target: Option<String> },

    /// An entry of a zip has an absolute path of Windows.
    #[error("archive entry {entry} has a drive letter in its path, as on Windows: {}", excerpt(.path.as_bytes()))]
    ArchiveDriveLetter { entry: usize, path: String },

    /// An entry is neither file, directory nor link.
    #[error("{} is a {kind}, not a file, directory or link: {}", numbered(*.entry), excerpt(.path.as_bytes()))]
    ArchiveEntryKind { entry: Option<usize>, path: String, kind: SpecialFile },

    /// The archive unpacks, or the directory comes to more bytes than allowed.
    #[error("the {} to more than the {limit_bytes} bytes that are accepted", .bundle.unpacks())]
    ArchiveTooLarge { bundle: Bundle, limit_bytes: u64 },

    /// The archive or directory has more entries than allowed.
    #[error("the {bundle} has more than the {limit} entries that are accepted")]
    ArchiveTooManyEntries { bundle: Bundle, limit: usize },

    /// `OW_EXECUTION_ENV` names another execution environment than its `exec.env`, or it has no `exec.env`.
    #[error("{}", wrong_environment(.expected, .found.as_deref()))]
    WrongEnvironment { expected: String, found: Option<String> },

    /// A file of the action cannot be written.
    #[error("cannot write the action to `{}`: {reason}", .path.display())]
    Unwritable {
        path: PathBuf,
        #[source]
        reason: io::Error,
    },

    /// The command line of an action names no program.
    #[error("cannot find the command {}: {}", excerpt(.name.as_bytes()), no_command(*.is_path, .not_executable.as_deref()))]
    NoSuchCommand {
        name: String,
        /// Whether the name is a path, so that `PATH` was not searched.
        is_path: bool,
        /// A file of that name that cannot be executed.
        not_executable: Option<PathBuf>,
    },

    /// The action that the command line names cannot be read.
    #[error("cannot read the action `{}`: {reason}", .path.display())]
    NoSuchAction {
        path: PathBuf,
        #[source]
        reason: io::Error,
    },
}

/// Why a command is not found.
fn no_command(is_path: bool, not_executable: Option<&Path>) -> String {
    match not_executable {
        Some(path) => format!("`{}` is not executable", path.display()),
        None if is_path => "there is no such file".into(),
        None => "no directory of PATH holds it".into(),
    }
}

/// A format of archives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ArchiveFormat {
    /// A zip file.
    Zip,
    /// A tar archive, compressed with gzip.
    TarGz,
}

/// What holds the files of an action.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "their names say it")]
pub enum Bundle {
    Archive,
    Directory,
}

/// A feature of zip files that is not supported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unsupported {
    /// A password.
    Encryption,
    /// Anything but deflate and stored.
    CompressionMethod,
}

/// What an entry can be that an action may not bring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "their names say it")]
pub enum SpecialFile {
    Fifo,
    Socket,
    CharacterDevice,
    BlockDevice,
    /// A device of either kind, or what this system has no name for.
    Device,
    UnknownTarRecord,
}

/// What an archive has in place of a file `exec` at its root.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "as for the errors")]
pub enum FoundInstead {
    /// Nothing of that name.
    Nothing,
    /// One in a directory, most often because the directory was packed and not its contents.
    Below { directory: String },
    /// A directory of that name.
    Directory,
    /// A link to a file that the archive does not contain or, if it leads outside, that does not exist.
    DeadLink { target: String, outside: bool },
}

/// Why a compiler did not create an executable.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "as for the errors")]
pub enum CompileFailure {
    /// The kernel refused to execute it.
    #[error("cannot be started: {0}")]
    CannotStart(#[source] io::Error),
    /// A variable, or all variables and arguments together, are larger than the kernel accepts.
    #[error("cannot be started: {0}")]
    TooLarge(Box<Oversized>),
    /// It exited, but not with status 0.
    #[error("{}", status.map_or_else(|| "ended with an unknown status".to_owned(), |status| status.to_string()))]
    Failed { status: Option<ExitStatus> },
    /// It did not finish in time.
    #[error("did not finish within {} and was stopped", millis(*.limit))]
    TooSlow { limit: Duration },
    /// It did not create a file `exec`.
    #[error("did not create a file `exec`")]
    NoExec,
    /// It created an `exec` that cannot be executed.
    #[error("created an `exec` that is neither an ELF executable nor a script")]
    NotExecutable,
}

impl UploadError {
    /// What to do about it, when there is something to do that the sentence does not say.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Unusable { defects, .. } => {
                let mut hints: Vec<_> = defects.iter().map(Defect::hint).collect();
                hints.dedup();
                hints.join("; ")
            }
            Self::Compile { problem, .. } => problem.hint().into(),
            Self::ArchiveDamaged { .. } => "make the archive again and compare its size before and after the upload".into(),
            Self::ArchiveUnsupported { feature, .. } => feature.hint().into(),
            Self::ArchiveWithoutExec { instead, .. } => instead.hint(),
            Self::DirectoryWithoutExec { .. } => "name the program `exec`, or name the program itself instead of its directory".into(),
            Self::ArchiveEscapes { .. } => "make the archive inside the directory that holds `exec`, so that no path begins with `/` or leads above it; only symbolic links may lead outside".into(),
            Self::ArchiveDriveLetter { .. } => "make the archive with paths relative to the directory that holds `exec`".into(),
            Self::ArchiveTooLarge { .. } => "raise `PIPELOOP_MAX_UNPACKED` to accept actions of this size".into(),
            Self::ArchiveTooManyEntries { .. } => "raise `PIPELOOP_MAX_ENTRIES` to accept actions with so many files".into(),
            Self::WrongEnvironment { found: Some(_), .. } => "build it again with the compiler of this image, or run it in the image that it was built for".into(),
            Self::WrongEnvironment { found: None, .. } => "build it with the compiler of this image, which writes `exec.env`; to accept any action, unset `OW_EXECUTION_ENV`".into(),
            Self::Unwritable { .. } => "choose a writable directory with `--workdir` (`PIPELOOP_WORKDIR`)".into(),
            Self::NoSuchCommand { not_executable: Some(_), .. } => "make it executable with `chmod +x`, or put its interpreter before it".into(),
            Self::NoSuchCommand { .. } => "install the program, or name it with its path; after `--` the program comes first, and then its arguments".into(),
            Self::ArchiveEntryKind { .. } | Self::NoSuchAction { .. } => return None,
        })
    }
}

impl FoundInstead {
    fn hint(&self) -> String {
        match self {
            Self::Below { directory } => format!(
                "pack the contents of the directory, not the directory itself: `cd {directory} && zip -r ../action.zip .`, or `tar -czf action.tar.gz -C {directory} .`"
            ),
            Self::DeadLink { outside: true, .. } => {
                "put the program into the image, or pack it: `zip` without `-y` packs the file in place of the link".into()
            }
            Self::DeadLink { outside: false, .. } => {
                "pack the target of the link too; `zip` without `-y` packs the file in place of the link".into()
            }
            Self::Nothing | Self::Directory => {
                "name the program `exec` and put it at the top of the archive, not in a directory: `zip action.zip exec`"
                    .into()
            }
        }
    }
}

impl fmt::Display for FoundInstead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => Ok(()),
            Self::Below { directory } => write!(f, ", but one in the directory {}", excerpt(directory.as_bytes())),
            Self::Directory => f.write_str(", but a directory of that name"),
            Self::DeadLink { target, outside } => {
                let place = if *outside { "here" } else { "in the archive" };
                write!(f, ", but a link to {}, which is not a file {place}", excerpt(target.as_bytes()))
            }
        }
    }
}

impl fmt::Display for ArchiveFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Zip => "zip",
            Self::TarGz => "tar.gz",
        })
    }
}

impl Bundle {
    /// For a sentence about its size.
    fn unpacks(self) -> &'static str {
        match self {
            Self::Archive => "archive unpacks",
            Self::Directory => "directory comes",
        }
    }
}

impl fmt::Display for Bundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Archive => "archive",
            Self::Directory => "directory",
        })
    }
}

impl Unsupported {
    fn hint(self) -> &'static str {
        match self {
            Self::Encryption => "make the archive again without a password",
            Self::CompressionMethod => "make the archive again with deflate, as `zip` does by default",
        }
    }
}

impl fmt::Display for Unsupported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Encryption => "is encrypted",
            Self::CompressionMethod => "uses a compression method that is not supported; deflate and stored are",
        })
    }
}

impl fmt::Display for SpecialFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fifo => "fifo",
            Self::Socket => "socket",
            Self::CharacterDevice => "character device",
            Self::BlockDevice => "block device",
            Self::Device => "device",
            Self::UnknownTarRecord => "tar record of an unknown type",
        })
    }
}

impl CompileFailure {
    fn hint(&self) -> &'static str {
        match self {
            Self::CannotStart(_) => {
                "name a program that this image can execute with `PIPELOOP_COMPILER` (`OW_COMPILER`)"
            }
            Self::TooLarge(oversized) => oversized.hint(),
            Self::Failed { .. } => "fix the source; the action's log has the compiler's whole output",
            Self::TooSlow { .. } => {
                "if it only needs more time, raise `PIPELOOP_COMPILE_TIMEOUT`, or upload the compiled program"
            }
            Self::NoExec => {
                "the action's log has the compiler's whole output; it is called as `COMPILER MAIN SRC BIN` and must create an executable `BIN/exec`"
            }
            Self::NotExecutable => "the compiler must create an ELF executable or a script with a `#!` line",
        }
    }
}

fn unusable(path: Option<&Path>) -> String {
    path.map_or_else(
        || "the uploaded code cannot be an action".into(),
        |path| format!("cannot start the action `{}`", path.display()),
    )
}

fn clauses(defects: &[Defect]) -> String {
    let clauses: Vec<_> = defects.iter().map(Defect::to_string).collect();
    clauses.join("; ")
}

fn escape(entry: Option<usize>, path: &str, target: Option<&str>) -> String {
    let path = excerpt(path.as_bytes());
    match (entry, target) {
        (Some(entry), None) => format!("archive entry {entry} would be written outside the action's directory: {path}"),
        (None, None) => format!("a directory entry would be written outside the action's directory: {path}"),
        (Some(entry), Some(target)) => {
            format!(
                "archive entry {entry}, {path}, links outside the action's directory: {}",
                excerpt(target.as_bytes())
            )
        }
        (None, Some(target)) => {
            format!("the directory entry {path} links outside the action's directory: {}", excerpt(target.as_bytes()))
        }
    }
}

fn numbered(entry: Option<usize>) -> String {
    entry.map_or_else(|| "a directory entry".into(), |entry| format!("archive entry {entry}"))
}

fn wrong_environment(expected: &str, found: Option<&str>) -> String {
    let expected = excerpt(expected.as_bytes());
    match found {
        Some(found) => format!(
            "the action was built for the execution environment {} (by its `exec.env`), but this one is {expected}",
            excerpt(found.as_bytes())
        ),
        None => format!(
            "the action has no file `exec.env` beside its `exec` to show that it was built for this execution environment, {expected}"
        ),
    }
}
