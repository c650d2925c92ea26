//! An entry of an archive or directory, and the errors about it.

use std::fmt;
use std::io;
use std::path::Path;

use crate::error::{ArchiveFormat, Bundle, Error, ProxyError, SpecialFile, Unsupported, UploadError};
use crate::text::excerpt;

/// The source of the entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    Archive(ArchiveFormat),
    /// A directory of this machine.
    Directory,
}

/// What an entry is.
pub(super) enum Kind {
    Directory,
    File,
    Link,
    HardLink,
    /// It describes the archive and creates no file.
    Metadata,
    /// A kind of file that is refused.
    Other(SpecialFile),
}

/// An entry, for the messages about it.
pub(super) struct Entry<'a> {
    pub(super) origin: Origin,
    /// Counted from 1.
    pub(super) number: usize,
    /// Its path, as it is in the archive.
    pub(super) name: &'a [u8],
}

impl ArchiveFormat {
    pub(super) fn damaged(self, reason: impl Into<String>) -> Error {
        Error::Upload(UploadError::ArchiveDamaged { format: self, reason: reason.into() })
    }
}

impl Origin {
    pub(super) fn bundle(self) -> Bundle {
        if self == Self::Directory { Bundle::Directory } else { Bundle::Archive }
    }

    pub(super) fn damaged(self, reason: String) -> Error {
        match self {
            Self::Archive(format) => format.damaged(reason),
            Self::Directory => Error::Proxy(ProxyError::System {
                doing: "copy the directory for the compiler",
                reason: io::Error::other(reason),
            }),
        }
    }
}

impl Entry<'_> {
    pub(super) fn damaged(&self, what: impl fmt::Display) -> Error {
        self.origin.damaged(format!("entry {} {} {what}", self.number, excerpt(self.name)))
    }

    /// Only for a zip: the other formats have no unsupported features.
    pub(super) fn unsupported(&self, feature: Unsupported) -> Error {
        Error::Upload(UploadError::ArchiveUnsupported { entry: self.number, path: lossy(self.name), feature })
    }

    pub(super) fn escapes(&self, target: Option<&[u8]>) -> Error {
        Error::Upload(UploadError::ArchiveEscapes {
            entry: self.reported_number(),
            path: lossy(self.name),
            target: target.map(lossy),
        })
    }

    pub(super) fn special_file(&self, kind: SpecialFile) -> Error {
        Error::Upload(UploadError::ArchiveEntryKind { entry: self.reported_number(), path: lossy(self.name), kind })
    }

    /// Its number, if its origin is an archive: the files of a directory have no order.
    fn reported_number(&self) -> Option<usize> {
        (self.origin != Origin::Directory).then_some(self.number)
    }

    pub(super) fn unwritable(&self, path: &Path, reason: io::Error) -> Error {
        if reason.kind() == io::ErrorKind::InvalidFilename {
            return self.damaged("has a path that is too long for this system");
        }
        Error::Upload(UploadError::Unwritable { path: path.to_owned(), reason })
    }

    /// The components of its path; none for the root.
    pub(super) fn names(&self) -> Result<Vec<&[u8]>, Error> {
        if self.name.contains(&0) {
            return Err(self.damaged("has a path with a NUL byte in it"));
        }
        names(self.name).ok_or_else(|| self.escapes(None))
    }
}

/// Splits a path into components. `a/../b` is `b`; `None` for an absolute path and for one that leads above its start.
pub(super) fn names(path: &[u8]) -> Option<Vec<&[u8]>> {
    if path.starts_with(b"/") {
        return None;
    }
    let mut names = Vec::new();
    for name in path.split(|byte| *byte == b'/') {
        match name {
            b"" | b"." => {}
            b".." => drop(names.pop()?),
            _ => names.push(name),
        }
    }
    Some(names)
}

/// A library's error as a clause of the proxy's messages.
pub(super) fn clause(error: &dyn fmt::Display) -> String {
    let text = error.to_string();
    let text = ["invalid Zip archive: ", "unsupported Zip archive: ", "i/o error: "]
        .iter()
        .find_map(|prefix| text.strip_prefix(prefix))
        .unwrap_or(&text);
    let mut characters = text.chars();
    // Lower case for `Could not`, but not for `EOCD`.
    match (characters.next(), characters.clone().next()) {
        (Some(first), Some(second)) if second.is_lowercase() => first.to_lowercase().chain(characters).collect(),
        _ => text.to_owned(),
    }
}

pub(super) fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
