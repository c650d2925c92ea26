//! Puts an upload into a directory of its own, or takes an action from the file system.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use super::inspect::{Defect, Foreign, Kind, Severity};
use super::kind::HEAD_BYTES;
use super::unpack::{self, unpack};
use super::{Artifact, Code, Sources};
use crate::error::{ArchiveFormat, Error, ProxyError, UploadError};

/// A directory that the proxy made. It is removed only once: afterwards another action may use its name.
#[derive(Debug)]
pub(super) struct OwnedDirectory {
    path: PathBuf,
    removed: AtomicBool,
}

impl Artifact {
    /// Puts uploaded code into a new directory `action/N` below `workdir`: an executable into its subdirectory `bin`,
    /// code for a compiler into its subdirectory `src`, beside an empty `bin`.
    ///
    /// # Errors
    /// The defects of the code, and [`UploadError::Unwritable`]. After an error no files are left.
    pub fn place(code: Code, workdir: &Path, bounds: &unpack::Bounds, sources: Sources) -> Result<Self, Error> {
        let bytes = code.decode()?;
        let kind = Kind::of(&bytes);
        require_usable(&kind, None, sources)?;
        let (mut artifact, source) = Self::in_new_directory(workdir)?;
        match kind {
            Kind::Archive(format) => artifact.place_archive(format, &bytes, source, bounds, sources)?,
            Kind::Source(..) => artifact.place_source(&bytes, source)?,
            _ => {
                create_directory(&artifact.directory)?;
                write_executable(&artifact.executable, &bytes)?;
            }
        }
        Ok(artifact)
    }

    /// An artifact without files yet, and the path for its source code.
    fn in_new_directory(workdir: &Path) -> Result<(Self, PathBuf), Error> {
        let path = new_action_directory(workdir)?;
        let directory = path.join("bin");
        let executable = directory.join("exec");
        let source = path.join("src");
        let owned = OwnedDirectory { path, removed: AtomicBool::new(false) };
        Ok((Self { executable, directory, command: None, source: None, owned: Some(owned) }, source))
    }

    /// Unpacks an archive as source code, and moves it to `bin` if it holds an executable.
    fn place_archive(
        &mut self,
        format: ArchiveFormat,
        bytes: &[u8],
        source: PathBuf,
        bounds: &unpack::Bounds,
        sources: Sources,
    ) -> Result<(), Error> {
        create_directory(&source)?;
        let contents = unpack(format, bytes, &source, bounds)?;
        if sources == Sources::Place && !contents.exec.as_ref().is_ok_and(|exec| is_executable(exec).unwrap_or(false)) {
            create_directory(&self.directory)?;
            self.source = Some(source);
            return Ok(());
        }
        contents.exec?;
        fs::rename(&source, &self.directory)
            .map_err(|reason| Error::Upload(UploadError::Unwritable { path: self.directory.clone(), reason }))
    }

    fn place_source(&mut self, bytes: &[u8], source: PathBuf) -> Result<(), Error> {
        create_directory(&source)?;
        // Executable, as it is in the existing proxies, for which compilers are made.
        write_executable(&source.join("exec"), bytes)?;
        create_directory(&self.directory)?;
        self.source = Some(source);
        Ok(())
    }

    /// Takes an action from the file system: an executable, a directory with `exec`, or an archive or source code, which
    /// is placed like an upload. So is anything that comes from a named pipe. A directory of source code is copied, since
    /// the compiler may write into it.
    ///
    /// # Errors
    /// [`UploadError::NoSuchAction`], and as [`Artifact::place`].
    pub fn open(path: &Path, workdir: &Path, bounds: &unpack::Bounds, sources: Sources) -> Result<Self, Error> {
        let unreadable = |reason| Error::Upload(UploadError::NoSuchAction { path: path.to_owned(), reason });
        if fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_fifo()) {
            // It can be read only once, and not be executed.
            let bytes = read_head(path, usize::try_from(bounds.bytes).unwrap_or(usize::MAX)).map_err(unreadable)?;
            return Self::place(Code::Text(bytes), workdir, bounds, sources);
        }
        let path = path.canonicalize().map_err(unreadable)?;
        if path.is_dir() {
            let executable = path.join("exec");
            let runs = executable.is_file() && is_executable(&executable).unwrap_or(true);
            if sources == Sources::Place && !runs {
                return Self::copy_source(&path, workdir, bounds);
            }
            return Self::open_directory(path);
        }
        let head = read_head(&path, HEAD_BYTES).map_err(unreadable)?;
        let kind = Kind::of(&head);
        require_usable(&kind, Some(&path), sources)?;
        if let Kind::Archive(_) | Kind::Source(..) = kind {
            let bytes = fs::read(&path).map_err(unreadable)?;
            return Self::place(Code::Text(bytes), workdir, bounds, sources);
        }
        let directory = path.parent().map_or_else(|| PathBuf::from("/"), Path::to_owned);
        Ok(Self { executable: path, directory, command: None, source: None, owned: None })
    }

    fn open_directory(directory: PathBuf) -> Result<Self, Error> {
        let executable = directory.join("exec");
        if !executable.is_file() {
            let mut holds: Vec<_> = fs::read_dir(&directory)
                .map_err(|reason| Error::Upload(UploadError::NoSuchAction { path: directory.clone(), reason }))?
                .flatten()
                .map(|entry| entry.file_name().to_string_lossy().into_owned())
                .collect();
            holds.sort();
            let more = holds.len().saturating_sub(10);
            holds.truncate(10);
            return Err(Error::Upload(UploadError::DirectoryWithoutExec { path: directory, holds, more }));
        }
        Ok(Self { executable, directory, command: None, source: None, owned: None })
    }

    fn copy_source(directory: &Path, workdir: &Path, bounds: &unpack::Bounds) -> Result<Self, Error> {
        let (mut artifact, source) = Self::in_new_directory(workdir)?;
        create_directory(&source)?;
        // Proxies place their actions there, and one of them is this copy itself.
        let actions = source.ancestors().nth(2).expect("it is `action/N/src`").to_owned();
        let is_placed = |path: &Path| {
            let name = path.file_name().unwrap_or_default().as_bytes();
            path.parent() == Some(&actions) && name.iter().all(u8::is_ascii_digit)
        };
        unpack::copy(directory, &source, bounds, &is_placed)?;
        create_directory(&artifact.directory)?;
        artifact.source = Some(source);
        Ok(artifact)
    }

    /// Refuses an upload that was built for another execution environment, by the file `exec.env` beside the executable.
    /// An action in the image belongs to this environment by definition and is not checked.
    ///
    /// # Errors
    /// [`UploadError::WrongEnvironment`], also when there is no `exec.env`.
    ///
    /// Source: apache/openwhisk-runtime-go, `docs/ENVVARS.md`, `OW_EXECUTION_ENV`.
    pub fn check_environment(&self, expected: Option<&OsStr>) -> Result<(), Error> {
        let (Some(expected), Some(_)) = (expected, &self.owned) else { return Ok(()) };
        let path = self.directory.join("exec.env");
        let mut found = None;
        // Only a regular file: reading a pipe would block.
        if path.is_file() {
            let text = read_head(&path, MAX_ENVIRONMENT_BYTES)
                .map_err(|reason| Error::Proxy(ProxyError::System { doing: "read `exec.env`", reason }))?;
            found = Some(text.trim_ascii().to_owned());
        }
        if found.as_deref() == Some(expected.as_bytes()) {
            return Ok(());
        }
        let found = found.map(|text| String::from_utf8_lossy(&text).into_owned());
        Err(Error::Upload(UploadError::WrongEnvironment { expected: expected.to_string_lossy().into_owned(), found }))
    }

    /// Removes the files that the proxy made for the action.
    pub fn remove(&self) {
        if let Some(owned) = &self.owned {
            owned.remove();
        }
    }
}

impl OwnedDirectory {
    fn remove(&self) {
        if self.removed.swap(true, Ordering::Relaxed) {
            return;
        }
        // A process that was just killed may have written files during the first try; a second try removes them too.
        // Files that cannot be removed only waste space: the next action gets its own directory.
        let _ = fs::remove_dir_all(&self.path).or_else(|_| fs::remove_dir_all(&self.path));
    }
}

impl Drop for OwnedDirectory {
    fn drop(&mut self) {
        self.remove();
    }
}

/// How much of `exec.env` is read. It holds a name, such as that of an image.
const MAX_ENVIRONMENT_BYTES: usize = 4096;

/// Refuses code that is neither an executable, nor an archive of a supported format, nor source code for the compiler.
fn require_usable(kind: &Kind, path: Option<&Path>, sources: Sources) -> Result<(), Error> {
    match kind {
        Kind::Archive(_) => return Ok(()),
        Kind::Source(..) if sources == Sources::Place => return Ok(()),
        _ => {}
    }
    match Defect::of(kind) {
        Some(defect) if defect.severity() == Severity::Fatal => {
            Err(Error::Upload(UploadError::Unusable { path: path.map(Path::to_owned), defects: vec![defect] }))
        }
        // The kernel may know a loader for it.
        Some(_) | None => Ok(()),
    }
}

/// Whether a file is an ELF file, a script or an APE program, by its first bytes.
pub(crate) fn is_executable(path: &Path) -> io::Result<bool> {
    let kind = Kind::of(&read_head(path, HEAD_BYTES)?);
    Ok(matches!(kind, Kind::Elf | Kind::Script | Kind::Foreign(Foreign::Ape)))
}

/// Makes a directory `action/N`, where N is one more than the highest number there.
fn new_action_directory(workdir: &Path) -> Result<PathBuf, Error> {
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
        let directory = actions.join(number.to_string());
        match fs::create_dir(&directory) {
            Ok(()) => return Ok(directory),
            // Another proxy with the same working directory was faster.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(reason) => return Err(unwritable(&directory, reason)),
        }
    }
    unreachable!("the numbers do not end")
}

fn create_directory(path: &Path) -> Result<(), Error> {
    fs::create_dir(path).map_err(|reason| Error::Upload(UploadError::Unwritable { path: path.to_owned(), reason }))
}

fn write_executable(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let write = || {
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o755).open(path)?;
        io::Write::write_all(&mut file, bytes)?;
        // Set again, since the umask applies to the mode above.
        file.set_permissions(fs::Permissions::from_mode(0o755))
    };
    write().map_err(|reason| Error::Upload(UploadError::Unwritable { path: path.to_owned(), reason }))
}

/// The first bytes of a file, at most `limit_bytes`.
fn read_head(path: &Path, limit_bytes: usize) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(fs::File::open(path)?, limit_bytes as u64), &mut head)?;
    Ok(head)
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
    fn the_content_of_code_decides_what_it_is() {
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
    fn each_action_has_its_own_directory() {
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
    fn the_error_for_a_directory_without_exec_lists_its_files() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("main.py"), "").unwrap();
        let error = Artifact::open(directory.path(), directory.path(), &BOUNDS, Sources::Refuse).unwrap_err();
        assert!(error.to_string().contains("it contains `main.py`"), "{error}");
    }
}
