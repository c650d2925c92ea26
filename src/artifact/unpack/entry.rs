//! Entries of an archive, and the errors about them.

use std::fmt;
use std::io;
use std::path::Path;

use super::Format;
use crate::error::{Bundle, Error, ProxyError, SpecialFile, Unsupported, UploadError};
use crate::text::excerpt;

/// Where what is unpacked comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    Archive(Format),
    /// A folder of this machine.
    Folder,
}

/// What an entry asks for.
pub(super) enum Kind {
    Folder,
    File,
    Link,
    HardLink,
    /// Nothing: it describes the archive.
    Remark,
    /// Something that is not made, by its name in messages.
    Other(SpecialFile),
}

/// An entry of the archive, for the messages about it.
pub(super) struct Entry<'a> {
    pub(super) origin: Origin,
    /// Counted from 1.
    pub(super) number: usize,
    /// Its path, as it stands in the archive.
    pub(super) name: &'a [u8],
}

impl Format {
    pub(super) fn damaged(self, reason: impl Into<String>) -> Error {
        Error::Upload(UploadError::ArchiveDamaged { format: self, reason: reason.into() })
    }
}

impl Origin {
    pub(super) fn bundle(self) -> Bundle {
        if self == Self::Folder { Bundle::Directory } else { Bundle::Archive }
    }

    pub(super) fn damaged(self, reason: String) -> Error {
        match self {
            Self::Archive(format) => format.damaged(reason),
            Self::Folder => Error::Proxy(ProxyError::System {
                doing: "copy the folder for the compiler",
                reason: io::Error::other(reason),
            }),
        }
    }
}

impl Entry<'_> {
    pub(super) fn damaged(&self, what: impl fmt::Display) -> Error {
        self.origin.damaged(format!("entry {} {} {what}", self.number, excerpt(self.name)))
    }

    /// Of a zip, as the other formats have nothing that could be unsupported.
    pub(super) fn unsupported(&self, feature: Unsupported) -> Error {
        Error::Upload(UploadError::ArchiveUnsupported { entry: self.number, path: lossy(self.name), feature })
    }

    pub(super) fn escapes(&self, target: Option<&[u8]>) -> Error {
        Error::Upload(UploadError::ArchiveEscapes {
            entry: self.in_archive(),
            path: lossy(self.name),
            target: target.map(lossy),
        })
    }

    pub(super) fn of_kind(&self, kind: SpecialFile) -> Error {
        Error::Upload(UploadError::ArchiveEntryKind { entry: self.in_archive(), path: lossy(self.name), kind })
    }

    /// Its number, where entries have one that somebody could look up.
    fn in_archive(&self) -> Option<usize> {
        (self.origin != Origin::Folder).then_some(self.number)
    }

    pub(super) fn unwritable(&self, path: &Path, reason: io::Error) -> Error {
        if reason.kind() == io::ErrorKind::InvalidFilename {
            return self.damaged("has a path that is too long for this system");
        }
        Error::Upload(UploadError::Unwritable { path: path.to_owned(), reason })
    }

    /// The names its path consists of; none for the folder itself.
    pub(super) fn names(&self) -> Result<Vec<&[u8]>, Error> {
        if self.name.contains(&0) {
            return Err(self.damaged("has a path with a NUL byte in it"));
        }
        names(self.name).ok_or_else(|| self.escapes(None))
    }
}

/// Splits a path into names. `a/../b` is `b`; nothing for an absolute path and one that leads above
/// its start.
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

/// A library's error as the end of a sentence of ours.
pub(super) fn told(error: &dyn fmt::Display) -> String {
    let text = error.to_string();
    let text = ["invalid Zip archive: ", "unsupported Zip archive: ", "i/o error: "]
        .iter()
        .find_map(|prefix| text.strip_prefix(prefix))
        .unwrap_or(&text);
    let mut characters = text.chars();
    // `Could not` begins a sentence, `EOCD` does not.
    match (characters.next(), characters.clone().next()) {
        (Some(first), Some(second)) if second.is_lowercase() => first.to_lowercase().chain(characters).collect(),
        _ => text.to_owned(),
    }
}

pub(super) fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
