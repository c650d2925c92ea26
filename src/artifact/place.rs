//! Puts an upload into a folder of its own, and takes an action from the file system.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use super::inspect::{Defect, Kind};
use super::kind::HEAD_BYTES;
use super::unpack::{self, Format, unpack};
use super::{Artifact, Code, Sources};
use crate::error::{Error, ProxyError, UploadError};

/// A folder of ours. Removed once: its name may be another's then.
#[derive(Debug)]
pub(super) struct Made {
    folder: PathBuf,
    removed: AtomicBool,
}

impl Artifact {
    /// Puts uploaded code into a new folder `action/N` below `workdir`: an executable into its
    /// folder `bin`, code for a compiler into its folder `src`, beside an empty `bin`.
    ///
    /// # Errors
    /// Everything that is wrong with the code, and [`UploadError::Unwritable`]. Nothing is left behind.
    pub fn place(code: Code, workdir: &Path, bounds: &unpack::Bounds, sources: Sources) -> Result<Self, Error> {
        let bytes = code.decode()?;
        let kind = Kind::of(&bytes);
        require_usable(&kind, None, sources)?;
        let (mut artifact, source) = Self::in_new_folder(workdir)?;
        match kind {
            Kind::Archive(format) => artifact.place_archive(format, &bytes, source, bounds, sources)?,
            Kind::Source(..) => artifact.place_source(&bytes, source)?,
            _ => {
                create_folder(&artifact.directory)?;
                write_executable(&artifact.executable, &bytes)?;
            }
        }
        Ok(artifact)
    }

    /// One that has yet to be placed, and where its source would lie.
    fn in_new_folder(workdir: &Path) -> Result<(Self, PathBuf), Error> {
        let folder = new_folder(workdir)?;
        let directory = folder.join("bin");
        let executable = directory.join("exec");
        let source = folder.join("src");
        let made = Made { folder, removed: AtomicBool::new(false) };
        Ok((Self { executable, directory, source: None, made: Some(made) }, source))
    }

    /// Unpacks an archive as source code, and moves it to where executables are if it holds one.
    fn place_archive(
        &mut self,
        format: Format,
        bytes: &[u8],
        source: PathBuf,
        bounds: &unpack::Bounds,
        sources: Sources,
    ) -> Result<(), Error> {
        create_folder(&source)?;
        let contents = unpack(format, bytes, &source, bounds)?;
        if sources == Sources::Place && !contents.exec.as_ref().is_ok_and(|exec| is_executable(exec).unwrap_or(false)) {
            create_folder(&self.directory)?;
            self.source = Some(source);
            return Ok(());
        }
        contents.exec?;
        fs::rename(&source, &self.directory)
            .map_err(|reason| Error::Upload(UploadError::Unwritable { path: self.directory.clone(), reason }))
    }

    fn place_source(&mut self, bytes: &[u8], source: PathBuf) -> Result<(), Error> {
        create_folder(&source)?;
        // With the mode that the proxies gave it for which compilers were made.
        write_executable(&source.join("exec"), bytes)?;
        create_folder(&self.directory)?;
        self.source = Some(source);
        Ok(())
    }

    /// Takes an action from the file system: an executable, a folder with `exec`, or an archive or
    /// source code, which are placed as uploaded ones are. A folder of source code is copied for the
    /// compiler, which may write into what it is given.
    ///
    /// # Errors
    /// [`UploadError::NoSuchAction`], and as [`Artifact::place`].
    pub fn open(path: &Path, workdir: &Path, bounds: &unpack::Bounds, sources: Sources) -> Result<Self, Error> {
        let unreadable = |reason| Error::Upload(UploadError::NoSuchAction { path: path.to_owned(), reason });
        let path = path.canonicalize().map_err(unreadable)?;
        if path.is_dir() {
            let executable = path.join("exec");
            let runs = executable.is_file() && is_executable(&executable).unwrap_or(true);
            if sources == Sources::Place && !runs {
                return Self::copy_source(&path, workdir, bounds);
            }
            return Self::in_folder(path);
        }
        let head = read_start(&path, HEAD_BYTES).map_err(unreadable)?;
        let kind = Kind::of(&head);
        require_usable(&kind, Some(&path), sources)?;
        if let Kind::Archive(_) | Kind::Source(..) = kind {
            let bytes = fs::read(&path).map_err(unreadable)?;
            return Self::place(Code::Text(bytes), workdir, bounds, sources);
        }
        let directory = path.parent().map_or_else(|| PathBuf::from("/"), Path::to_owned);
        Ok(Self { executable: path, directory, source: None, made: None })
    }

    fn in_folder(folder: PathBuf) -> Result<Self, Error> {
        let executable = folder.join("exec");
        if !executable.is_file() {
            let mut holds: Vec<_> = fs::read_dir(&folder)
                .map_err(|reason| Error::Upload(UploadError::NoSuchAction { path: folder.clone(), reason }))?
                .flatten()
                .map(|entry| entry.file_name().to_string_lossy().into_owned())
                .collect();
            holds.sort();
            let more = holds.len().saturating_sub(10);
            holds.truncate(10);
            return Err(Error::Upload(UploadError::DirectoryWithoutExec { path: folder, holds, more }));
        }
        Ok(Self { executable, directory: folder, source: None, made: None })
    }

    fn copy_source(folder: &Path, workdir: &Path, bounds: &unpack::Bounds) -> Result<Self, Error> {
        let (mut artifact, source) = Self::in_new_folder(workdir)?;
        create_folder(&source)?;
        // What lies there is placed by a proxy, this copy itself among it.
        let places = source.ancestors().nth(2).expect("it is `action/N/src`").to_owned();
        let is_placed = |path: &Path| {
            let name = path.file_name().unwrap_or_default().as_bytes();
            path.parent() == Some(&places) && name.iter().all(u8::is_ascii_digit)
        };
        unpack::copy(folder, &source, bounds, &is_placed)?;
        create_folder(&artifact.directory)?;
        artifact.source = Some(source);
        Ok(artifact)
    }

    /// Refuses what was built for another execution environment than this, as the file `exec.env` beside the
    /// executable tells. What lies in the image is of this one by definition, and not looked at.
    ///
    /// # Errors
    /// [`UploadError::WrongEnvironment`], also when it does not tell.
    ///
    /// Source: apache/openwhisk-runtime-go, `docs/ENVVARS.md`, `OW_EXECUTION_ENV`.
    pub fn check_environment(&self, expected: Option<&OsStr>) -> Result<(), Error> {
        let (Some(expected), Some(_)) = (expected, &self.made) else { return Ok(()) };
        let path = self.directory.join("exec.env");
        let mut found = None;
        // Neither a folder nor a pipe, which would be waited for.
        if path.is_file() {
            let text = read_start(&path, MAX_ENVIRONMENT)
                .map_err(|reason| Error::Proxy(ProxyError::System { doing: "read `exec.env`", reason }))?;
            found = Some(text.trim_ascii().to_owned());
        }
        if found.as_deref() == Some(expected.as_bytes()) {
            return Ok(());
        }
        let found = found.map(|text| String::from_utf8_lossy(&text).into_owned());
        Err(Error::Upload(UploadError::WrongEnvironment { expected: expected.to_string_lossy().into_owned(), found }))
    }

    /// Removes what was made for the action.
    pub fn remove(&self) {
        if let Some(made) = &self.made {
            made.remove();
        }
    }
}

impl Made {
    fn remove(&self) {
        if self.removed.swap(true, Ordering::Relaxed) {
            return;
        }
        // What was killed a moment ago may have been writing there: then a second try finds all of it. What
        // cannot be removed is only a waste of space; the next action has its own folder.
        let _ = fs::remove_dir_all(&self.folder).or_else(|_| fs::remove_dir_all(&self.folder));
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        self.remove();
    }
}

/// The most that is read of `exec.env`: a name, such as that of an image.
const MAX_ENVIRONMENT: usize = 4096;

/// Refuses code that is no executable, no archive of a kind that is unpacked, and no source text that
/// somebody could compile.
fn require_usable(kind: &Kind, path: Option<&Path>, sources: Sources) -> Result<(), Error> {
    match kind {
        Kind::Archive(_) => return Ok(()),
        Kind::Source(..) if sources == Sources::Place => return Ok(()),
        _ => {}
    }
    match Defect::of(kind) {
        Some(defect) => {
            Err(Error::Upload(UploadError::Unusable { path: path.map(Path::to_owned), defects: vec![defect] }))
        }
        None => Ok(()),
    }
}

/// Whether a file is an ELF executable or a script, by its first bytes.
pub(crate) fn is_executable(path: &Path) -> io::Result<bool> {
    Ok(matches!(Kind::of(&read_start(path, HEAD_BYTES)?), Kind::Elf | Kind::Script))
}

/// A folder `action/N` that did not exist, where N counts on from the highest there is.
fn new_folder(workdir: &Path) -> Result<PathBuf, Error> {
    let unwritable = |path: &Path, reason| Error::Upload(UploadError::Unwritable { path: path.to_owned(), reason });
    let workdir = workdir.canonicalize().map_err(|reason| unwritable(workdir, reason))?;
    let actions = workdir.join("action");
    fs::create_dir_all(&actions).map_err(|reason| unwritable(&actions, reason))?;
    let highest = fs::read_dir(&actions)
        .map_err(|reason| unwritable(&actions, reason))?
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u64>().ok())
        .max();
    for number in highest.unwrap_or(0) + 1.. {
        let folder = actions.join(number.to_string());
        match fs::create_dir(&folder) {
            Ok(()) => return Ok(folder),
            // Another proxy that shares the folder was faster.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(reason) => return Err(unwritable(&folder, reason)),
        }
    }
    unreachable!("the numbers do not end")
}

fn create_folder(path: &Path) -> Result<(), Error> {
    fs::create_dir(path).map_err(|reason| Error::Upload(UploadError::Unwritable { path: path.to_owned(), reason }))
}

fn write_executable(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let write = || {
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o755).open(path)?;
        io::Write::write_all(&mut file, bytes)?;
        // Whatever the umask says.
        file.set_permissions(fs::Permissions::from_mode(0o755))
    };
    write().map_err(|reason| Error::Upload(UploadError::Unwritable { path: path.to_owned(), reason }))
}

/// At most so many of the first bytes of a file.
fn read_start(path: &Path, most: usize) -> io::Result<Vec<u8>> {
    let mut start = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(fs::File::open(path)?, most as u64), &mut start)?;
    Ok(start)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: unpack::Bounds = unpack::Bounds { bytes: 1 << 20, entries: 100, halt: None };

    fn check(code: Code, expected: Result<&[u8], &str>) {
        let workdir = tempfile::tempdir().unwrap();
        let placed = Artifact::place(code, workdir.path(), &BOUNDS, Sources::Refuse);
        match expected {
            Ok(bytes) => {
                let artifact = placed.unwrap();
                assert_eq!(fs::read(&artifact.executable).unwrap(), bytes);
                assert_eq!(fs::metadata(&artifact.executable).unwrap().permissions().mode() & 0o777, 0o755);
                assert!(artifact.executable.ends_with("action/1/bin/exec"));
            }
            Err(code) => {
                assert_eq!(placed.unwrap_err().code(), code);
                let left = fs::read_dir(workdir.path().join("action")).map_or(0, Iterator::count);
                assert_eq!(left, 0, "a refused action leaves nothing behind");
            }
        }
    }

    #[test]
    fn code_is_told_by_its_content() {
        let script = b"#!/bin/sh\necho hello\n";
        check(Code::Text(script.to_vec()), Ok(script));
        check(Code::Encoded(base64_simd::STANDARD.encode_to_string(script).into()), Ok(script));
        check(Code::Text(b"\x7fELF...".to_vec()), Ok(b"\x7fELF..."));
        check(Code::Text(b"".to_vec()), Err("PL030"));
        check(Code::Text(b"\0\x01\x02".to_vec()), Err("PL031"));
        check(Code::Text(b"def main(args):\n    return args\n".to_vec()), Err("PL032"));
        check(Code::Encoded(b"not base64!".to_vec()), Err("PL021"));
        check(Code::Encoded(b"abcd".to_vec()), Err("PL031"));
        check(Code::Text(b"PK\x03\x04".to_vec()), Err("PL034"));
    }

    #[test]
    fn base64_may_be_broken_into_lines() {
        check(Code::Encoded(b"IyEvYmlu\nL3NoCg==\n".to_vec()), Ok(b"#!/bin/sh\n"));
    }

    #[test]
    fn each_action_has_a_folder_of_its_own() {
        let workdir = tempfile::tempdir().unwrap();
        let place =
            || Artifact::place(Code::Text(b"#!/bin/sh\n".to_vec()), workdir.path(), &BOUNDS, Sources::Refuse).unwrap();
        let (first, second) = (place(), place());
        assert_ne!(first.directory, second.directory);
        first.remove();
        assert!(!first.executable.exists());
        assert!(second.executable.exists());
    }

    #[test]
    fn a_folder_without_exec_says_what_it_holds() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("main.py"), "").unwrap();
        let error = Artifact::open(folder.path(), folder.path(), &BOUNDS, Sources::Refuse).unwrap_err();
        assert!(error.to_string().contains("it contains `main.py`"), "{error}");
    }
}
