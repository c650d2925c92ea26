//! An action that is a command line: a program found on `PATH`, with its arguments.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, ProxyError, UploadError};

use super::Artifact;

/// The directories that are searched where there is no `PATH`, as by glibc.
///
/// Source: execvp(3).
const DEFAULT_PATH: &str = "/bin:/usr/bin";

impl Artifact {
    /// Finds the program of a command line as a shell does. Its directory is the current one.
    ///
    /// # Errors
    /// [`UploadError::NoSuchCommand`]; [`ProxyError::System`] if the current directory cannot be read.
    pub fn of_command(command: &[OsString], search_path: Option<&OsStr>) -> Result<Self, Error> {
        let directory = fs::canonicalize(".")
            .map_err(|reason| Error::Proxy(ProxyError::System { doing: "read the current directory", reason }))?;
        let (name, arguments) = command.split_first().expect("a command line has a first word");
        let executable = find(name, search_path.unwrap_or(OsStr::new(DEFAULT_PATH)), &directory)?;
        Ok(Self { executable, directory, command: Some(arguments.to_vec()), source: None, owned: None })
    }
}

/// The program of this name, as an absolute path. Links are not followed, since some programs go by their name.
fn find(name: &OsStr, search_path: &OsStr, directory: &Path) -> Result<PathBuf, Error> {
    let is_path = name.as_bytes().contains(&b'/');
    let candidates: Vec<PathBuf> = if is_path {
        vec![directory.join(name)]
    } else if name.is_empty() {
        Vec::new()
    } else {
        // An empty entry is the current directory.
        std::env::split_paths(search_path).map(|entry| directory.join(entry).join(name)).collect()
    };
    let mut not_executable = None;
    for path in candidates {
        match executable(&path) {
            Ok(true) => return Ok(path),
            Ok(false) => {
                not_executable.get_or_insert(path);
            }
            Err(_) => {}
        }
    }
    let name = name.to_string_lossy().into_owned();
    Err(Error::Upload(UploadError::NoSuchCommand { name, is_path, not_executable }))
}

/// Whether there is a file with a permission to execute it. Whether the kernel accepts it is for the start to find out.
fn executable(path: &Path) -> io::Result<bool> {
    let metadata = path.metadata()?;
    Ok(metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_in_the_order_of_the_search_path() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        for (place, mode) in [("first/tool", 0o644), ("second/tool", 0o755), ("third/tool", 0o755), ("here", 0o755)] {
            let path = root.join(place);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, "").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        }
        fs::create_dir_all(root.join("zero/tool")).unwrap();
        let search_path = OsStr::new("zero:first:second:third:");
        let find = |name: &str| find(OsStr::new(name), search_path, root);
        assert_eq!(find("tool").unwrap(), root.join("second/tool"));
        assert_eq!(find("./here").unwrap(), root.join("./here"));
        assert_eq!(find("here").unwrap(), root.join("here"), "an empty entry is the current directory");
        for (name, expected) in [
            ("", "cannot find the command ``"),
            ("missing", "no directory of PATH holds it"),
            ("./tool", "there is no such file"),
            ("first/tool", "first/tool` is not executable"),
            ("./zero", "zero` is not executable"),
        ] {
            let error = find(name).unwrap_err().to_string();
            assert!(error.contains(expected), "{name}: {error}");
        }
    }
}
