//! An action that is a command line: a program found on `PATH`, with its arguments.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Error, ProxyError, UploadError};
use crate::process::lookup::{self, DEFAULT_PATH, NotFound};

use super::Artifact;

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

/// The program of this name, as an absolute path.
fn find(name: &OsStr, search_path: &OsStr, directory: &Path) -> Result<PathBuf, Error> {
    lookup::find(name, search_path, directory).map_err(|reason| {
        Error::Upload(UploadError::NoSuchCommand {
            name: name.to_string_lossy().into_owned(),
            is_path: lookup::is_path(name),
            not_executable: match reason {
                NotFound::NotExecutable(path) => Some(path),
                NotFound::NoFile(_) | NotFound::NotOnPath => None,
            },
        })
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

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
