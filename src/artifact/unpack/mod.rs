//! Unpacks an uploaded archive, zip or tar.gz, into the action's folder, and copies a folder there by the
//! same rules. Nothing is executed.
//!
//! Only regular files, folders, symbolic links and, in a tar, hard links to earlier files are made.
//! Permission bits are kept, whatever the umask; set-uid, set-gid and sticky bits, owners and times
//! are not. The names' bytes are taken as they are: a backslash is a character like any other, and
//! a legacy code page is not converted. Nothing is removed after an error: the folder is the
//! caller's, and so is what an incomplete extraction left in it.
//!
//! # Theory of operation
//!
//! The folder is empty at first and written by nobody else, and all links are made last. So while
//! files and folders are written there is no link below it that a path could lead through, and
//! plain paths are safe as long as their components are. What was made is kept as a `Tree` in
//! memory as well, which is asked instead of the file system: whether a parent is a folder, what a
//! later entry replaces, where a link leads.
//!
//! A link may lead anywhere inside the folder and to nothing, but never out of it: its target is
//! followed through the finished tree, as the kernel would do it, through other links and `..`,
//! before the first link is made. A name that does not exist counts as a folder there, so that no
//! link comes to lead outside when someone makes that folder. An absolute target is refused even if
//! it names something harmless: a Python environment made by `python3 -m venv` has such links, one
//! made with `--copies` has none.
//!
//! No size that an archive declares is believed. Bytes are counted as they are written, entries as
//! they are met, including folders that no entry names, and what stands between the contents of a
//! tar is bounded too. Only zip's directory is read into memory whole, when it does not
//! announce more entries than are accepted.

mod directory;
mod entry;
mod tar;
mod tree;
mod zip;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{Error, ProxyError};

pub use crate::error::ArchiveFormat as Format;
pub(super) use directory::copy;
pub use tree::Contents;

use entry::Origin;
use tree::Tree;

/// Bounds of an extraction.
#[derive(Debug, Clone)]
pub struct Bounds {
    /// Most bytes that the files may have together, replaced ones included.
    pub bytes: u64,
    /// Most entries, plus folders that had to be made without one.
    pub entries: usize,
    /// Set when nobody needs it any more: the proxy ends.
    pub halt: Option<Arc<AtomicBool>>,
}

impl Bounds {
    /// Stops in the middle when nobody needs it any more.
    fn go_on(&self) -> Result<(), Error> {
        let halted = self.halt.as_ref().is_some_and(|halt| halt.load(Ordering::Relaxed));
        if halted { Err(Error::Proxy(ProxyError::ShuttingDown)) } else { Ok(()) }
    }
}

/// Unpacks `bytes` into the empty folder `into`.
///
/// A file `exec` at its root is made executable if it is not; it may be a link to another file of
/// the archive. Of two files or links with the same path the later one stays.
///
/// # Errors
/// [`UploadError::ArchiveDamaged`] when it cannot be read to its end or contradicts itself,
/// [`UploadError::ArchiveUnsupported`], [`UploadError::ArchiveEscapes`], [`UploadError::ArchiveEntryKind`], [`UploadError::ArchiveTooLarge`],
/// [`UploadError::ArchiveTooManyEntries`], [`UploadError::Unwritable`], and [`ProxyError::ShuttingDown`] when it was halted.
pub fn unpack(format: Format, bytes: &[u8], into: &Path, bounds: &Bounds) -> Result<Contents, Error> {
    let mut tree = Tree::new(Origin::Archive(format), into, bounds);
    match format {
        Format::Zip => zip::read(bytes, &mut tree)?,
        Format::TarGz => tar::read(bytes, &mut tree)?,
    }
    tree.finish()
}

const GZIP_MAGIC: &[u8] = b"\x1f\x8b";

impl Format {
    /// Recognises an archive.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Option<Self> {
        // The second one begins an archive without entries.
        if bytes.starts_with(b"PK\x03\x04") || bytes.starts_with(b"PK\x05\x06") {
            Some(Self::Zip)
        } else if bytes.starts_with(GZIP_MAGIC) {
            Some(Self::TarGz)
        } else {
            None
        }
    }
}
