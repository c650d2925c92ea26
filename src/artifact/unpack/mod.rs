//! Unpacks an uploaded archive, zip or tar.gz, into the action's directory, and copies a directory there by the same
//! rules. Nothing is executed.
//!
//! It creates only regular files, directories, symbolic links and, from a tar, hard links to earlier files. It keeps
//! permission bits, whatever the umask, but not set-uid, set-gid and sticky bits, owners and times. Names are bytes: a
//! legacy code page is not converted. A backslash is a character like any other, except in a zip from Windows, where it
//! separates. After an error nothing is removed:
//! the directory with its incomplete contents belongs to the caller.
//!
//! # Theory of operation
//!
//! The directory is empty at first, only this module writes to it, and it creates all links at the end. So no path
//! can lead through a link while files and directories are written, and plain paths are safe if their components are. A
//! `Tree` in memory records what was created, and answers in place of the file system: whether a parent is a directory,
//! what a later entry replaces, where a link leads.
//!
//! A link may lead anywhere, also outside: it is only data, every Python environment made by `python3 -m venv` has such
//! links, and the action could create it itself. Nothing is written through it, and the mode of the file that it names
//! stays what it is. Before the first link is created, each one is followed through the finished tree as the kernel does
//! it, to find circles and the file that `exec` names. If that file is outside, the kernel decides whether it exists.
//!
//! The sizes that an archive declares are not trusted. Bytes are counted as they are written, and entries as they are
//! read, including directories without an entry of their own. The data between the files of a tar has a bound too. Only
//! the directory of a zip is read into memory whole, if it does not announce more entries than are accepted.

mod directory;
mod entry;
mod sparse;
mod tar;
mod tree;
mod zip;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{ArchiveFormat, Error, ProxyError};

pub(super) use directory::copy;
pub use tree::Contents;

use entry::Origin;
use tree::Tree;

/// The limits of an extraction.
#[derive(Debug, Clone)]
pub struct Bounds {
    /// Most bytes of all files together, including replaced ones.
    pub bytes: u64,
    /// Most entries, including directories without an entry of their own.
    pub entries: usize,
    /// Set when the proxy shuts down and the result is no longer needed.
    pub halt: Option<Arc<AtomicBool>>,
}

impl Bounds {
    /// Fails once [`Bounds::halt`] is set.
    fn check_halt(&self) -> Result<(), Error> {
        let halted = self.halt.as_ref().is_some_and(|halt| halt.load(Ordering::Relaxed));
        if halted { Err(Error::Proxy(ProxyError::ShuttingDown)) } else { Ok(()) }
    }
}

/// Unpacks `bytes` into the empty directory `into`.
///
/// A file `exec` at the root is made executable; it may be a link to another file of the archive, which is then made
/// executable, or to a file outside, which is not changed. If two files or links
/// have the same path, the later one replaces the earlier.
///
/// # Errors
/// Of [`UploadError`](crate::error::UploadError): `ArchiveDamaged` if the archive cannot be read to its end or
/// contradicts itself, `ArchiveUnsupported`, `ArchiveEscapes`, `ArchiveDriveLetter`, `ArchiveEntryKind`,
/// `ArchiveTooLarge`, `ArchiveTooManyEntries`, and `Unwritable`. [`ProxyError::ShuttingDown`] if it was halted.
pub fn unpack(format: ArchiveFormat, bytes: &[u8], into: &Path, bounds: &Bounds) -> Result<Contents, Error> {
    let mut tree = Tree::new(Origin::Archive(format), into, bounds);
    match format {
        ArchiveFormat::Zip => zip::read(bytes, &mut tree)?,
        ArchiveFormat::TarGz => tar::read(bytes, &mut tree)?,
    }
    tree.finish()
}

const GZIP_MAGIC: &[u8] = b"\x1f\x8b";

impl ArchiveFormat {
    /// Recognises an archive by its first bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Option<Self> {
        // An archive without entries begins with the second one.
        if bytes.starts_with(b"PK\x03\x04") || bytes.starts_with(b"PK\x05\x06") {
            Some(Self::Zip)
        } else if bytes.starts_with(GZIP_MAGIC) {
            Some(Self::TarGz)
        } else {
            None
        }
    }
}
