//! Reads zip archives.

use std::borrow::Cow;
use std::fmt;
use std::io::{Cursor, Read};

use rustix::fs::FileType;
use zip::{CompressionMethod, System, ZipArchive};

use super::entry::{Entry, Kind, Origin, clause, lossy};
use super::tree::{MAX_LINK_TARGET_BYTES, Tree};
use crate::error::{ArchiveFormat, Error, SpecialFile, Unsupported, UploadError};

pub(super) fn read(bytes: &[u8], tree: &mut Tree) -> Result<(), Error> {
    let unreadable = |error| {
        ArchiveFormat::Zip
            .damaged(format!("its directory, which stands at its end, cannot be read: {}", clause(&error)))
    };
    // Checked first: the library reads the whole directory into memory, where it takes several times its size.
    if announced_entries(bytes).is_some_and(|count| count > tree.bounds.entries as u64) {
        return Err(tree.too_many_entries());
    }
    let mut archive = ZipArchive::new(Cursor::new(bytes)).map_err(unreadable)?;
    let directory = archive.metadata();
    if directory.len() > tree.bounds.entries {
        return Err(tree.too_many_entries());
    }
    for index in 0..directory.len() {
        tree.count()?;
        let data = directory.entry(index).map_err(unreadable)?;
        let raw = data.name_raw();
        let on_windows = is_windows(data.system());
        let name = if on_windows { with_slashes(raw) } else { Cow::Borrowed(raw) };
        let entry = Entry { origin: Origin::Archive(ArchiveFormat::Zip), number: index + 1, name: &name };
        if has_drive_letter(raw, on_windows) {
            return Err(Error::Upload(UploadError::ArchiveDriveLetter { entry: index + 1, path: lossy(raw) }));
        }
        // The Unix mode, whichever system the entry names as its origin: 0 if there is none.
        let mode = data.external_attributes() >> 16;
        let kind = match FileType::from_raw_mode(mode) {
            FileType::Directory => Kind::Directory,
            _ if entry.name.ends_with(b"/") => Kind::Directory,
            FileType::Symlink => Kind::Link,
            FileType::Fifo => Kind::Other(SpecialFile::Fifo),
            FileType::Socket => Kind::Other(SpecialFile::Socket),
            FileType::CharacterDevice => Kind::Other(SpecialFile::CharacterDevice),
            FileType::BlockDevice => Kind::Other(SpecialFile::BlockDevice),
            FileType::RegularFile | FileType::Unknown => Kind::File,
        };
        match kind {
            Kind::Directory => {
                tree.directory(&entry, mode)?;
                continue;
            }
            Kind::Other(kind) => return Err(entry.special_file(kind)),
            _ => {}
        }
        if data.encrypted() {
            return Err(entry.unsupported(Unsupported::Encryption));
        }
        if !matches!(data.compression(), CompressionMethod::Stored | CompressionMethod::Deflated) {
            return Err(entry.unsupported(Unsupported::CompressionMethod));
        }
        let unreadable = |error: &dyn fmt::Display| entry.damaged(format!("cannot be read: {}", clause(error)));
        let mut content = archive.by_index(index).map_err(|error| unreadable(&error))?;
        if matches!(kind, Kind::Link) {
            let mut target = Vec::new();
            content
                .take(MAX_LINK_TARGET_BYTES as u64 + 1)
                .read_to_end(&mut target)
                .map_err(|error| unreadable(&error))?;
            tree.link(&entry, &target)?;
        } else {
            tree.file(&entry, mode, &mut content, &|error| unreadable(&error))?;
        }
    }
    Ok(())
}

/// Whether an entry was made on a system whose file names cannot contain a backslash.
///
/// Source: PKWARE, APPNOTE.TXT, 4.4.2.2: FAT, OS/2, NTFS and VFAT.
fn is_windows(system: System) -> bool {
    matches!(system, System::Dos | System::Os2 | System::WindowsNTFS | System::VFAT)
}

/// A path with slashes in place of backslashes, which some tools write on Windows although the format forbids it. A name
/// in a legacy code page stays as it is: there a backslash may be half of a character.
///
/// Source: PKWARE, APPNOTE.TXT, 4.4.17.1; Info-ZIP's `unzip`, which converts them, too.
fn with_slashes(name: &[u8]) -> Cow<'_, [u8]> {
    if name.contains(&b'\\') && std::str::from_utf8(name).is_ok() {
        Cow::Owned(name.iter().map(|byte| if *byte == b'\\' { b'/' } else { *byte }).collect())
    } else {
        Cow::Borrowed(name)
    }
}

/// Whether a path begins with a drive letter. On a system that allows such names a backslash must follow.
fn has_drive_letter(name: &[u8], on_windows: bool) -> bool {
    match name {
        [letter, b':', rest @ ..] => letter.is_ascii_alphabetic() && (on_windows || rest.starts_with(b"\\")),
        _ => false,
    }
}

/// How many entries a zip announces in the record at its end. The library reads exactly as many.
///
/// Source: PKWARE, APPNOTE.TXT, 4.3.14 to 4.3.16.
fn announced_entries(bytes: &[u8]) -> Option<u64> {
    const RECORD: usize = 22;
    const LOCATOR: usize = 20;
    /// The longest comment, which follows the record.
    const COMMENT: usize = 65_535;
    let number = |at: usize, length: usize| -> Option<u64> {
        let field = bytes.get(at..at.checked_add(length)?)?;
        Some(field.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    };
    let from = bytes.len().saturating_sub(RECORD + COMMENT);
    let at = from + memchr::memmem::rfind(&bytes[from..], b"PK\x05\x06")?;
    let count = number(at + 10, 2)?;
    if count < 0xffff {
        return Some(count);
    }
    // 65535 or more: the number is in another record, to which a locator before this one points.
    let locator = at.checked_sub(LOCATOR).filter(|at| bytes[*at..].starts_with(b"PK\x06\x07"));
    let Some(locator) = locator else { return Some(count) };
    let record = number(locator + 8, 8).and_then(|at| usize::try_from(at).ok());
    let record = record.filter(|at| bytes.get(*at..).is_some_and(|record| record.starts_with(b"PK\x06\x06")));
    record.and_then(|at| number(at + 32, 8)).or(Some(count))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifact::unpack::{Bounds, unpack};
    use zip::write::{SimpleFileOptions, ZipWriter};

    /// The archives have no directory, so the number must come from the record at the end.
    #[test]
    fn announced_entries_are_counted_before_the_directory_is_read() {
        let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
        writer.start_file("exec", SimpleFileOptions::default()).unwrap();
        let few = writer.finish().unwrap().into_inner();
        let end = memchr::memmem::rfind(&few, b"PK\x05\x06").unwrap();
        assert_eq!(announced_entries(&few), Some(1));
        assert_eq!(announced_entries(&few[..end]), None);
        assert_eq!(announced_entries(&few[..end + 11]), None);

        let mut many = b"PK\x03\x04 and no directory".to_vec();
        many.extend_from_slice(&few[end..]);
        let end = many.len() - 22;
        many[end + 10..end + 12].copy_from_slice(&60_000_u16.to_le_bytes());
        // The longest comment.
        many[end + 20..end + 22].copy_from_slice(&u16::MAX.to_le_bytes());
        many.resize(many.len() + usize::from(u16::MAX), b' ');
        assert_eq!(announced_entries(&many), Some(60_000));
        let directory = tempfile::tempdir().unwrap();
        let bounds = Bounds { bytes: 1 << 20, entries: 50, halt: None };
        let error = unpack(ArchiveFormat::Zip, &many, directory.path(), &bounds).unwrap_err();
        assert_eq!(error.code(), "PL039", "{error}");

        // Zip64: a record, a locator that points to it, and a number that does not fit.
        let mut large = b"some data".to_vec();
        let record = large.len() as u64;
        large.extend_from_slice(b"PK\x06\x06");
        large.resize(large.len() + 28, 0);
        large.extend_from_slice(&70_000_u64.to_le_bytes());
        large.resize(large.len() + 16, 0);
        large.extend_from_slice(b"PK\x06\x07\0\0\0\0");
        large.extend_from_slice(&record.to_le_bytes());
        large.extend_from_slice(&1_u32.to_le_bytes());
        let locator_end = large.len();
        large.extend_from_slice(b"PK\x05\x06\0\0\0\0\xff\xff\xff\xff");
        large.resize(locator_end + 22, 0);
        assert_eq!(announced_entries(&large), Some(70_000));
        // If the locator points nowhere, the number that fits counts.
        large[locator_end - 12] = 0xff;
        assert_eq!(announced_entries(&large), Some(65_535));
    }
}
