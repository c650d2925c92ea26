//! Finds a program as a shell does.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// The directories that are searched where there is no `PATH`, as by the C library and the shells.
///
/// Source: execvp(3); glibc's `_CS_PATH`.
pub const DEFAULT_PATH: &str = "/bin:/usr/bin";

/// Why there is no such program.
#[derive(Debug)]
pub enum NotFound {
    /// The name is a path, and there is no such file.
    NoFile(io::Error),
    /// No directory of the search path holds it.
    NotOnPath,
    /// A file of that name cannot be executed: the first one, if several were found.
    NotExecutable(PathBuf),
}

/// Whether a name is a path, so that no directories are searched for it.
#[must_use]
pub fn is_path(name: &OsStr) -> bool {
    name.as_bytes().contains(&b'/')
}

/// Finds a program by its path, or by its name in the directories of `search_path`, of which an empty one is `directory`.
/// Relative paths are relative to `directory`. Links are not followed, since some programs go by their name. Whether the
/// kernel accepts the program is for the start to find out.
///
/// # Errors
/// [`NotFound`].
pub fn find(name: &OsStr, search_path: &OsStr, directory: &Path) -> Result<PathBuf, NotFound> {
    if is_path(name) {
        let path = directory.join(name);
        return match is_program(&path) {
            Ok(true) => Ok(path),
            Ok(false) => Err(NotFound::NotExecutable(path)),
            Err(reason) => Err(NotFound::NoFile(reason)),
        };
    }
    let mut not_executable = None;
    if !name.is_empty() {
        for path in std::env::split_paths(search_path).map(|entry| directory.join(entry).join(name)) {
            match is_program(&path) {
                Ok(true) => return Ok(path),
                Ok(false) => {
                    not_executable.get_or_insert(path);
                }
                Err(_) => {}
            }
        }
    }
    Err(not_executable.map_or(NotFound::NotOnPath, NotFound::NotExecutable))
}

/// Whether there is a file with a permission to execute it.
fn is_program(path: &Path) -> io::Result<bool> {
    let metadata = path.metadata()?;
    Ok(metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}
