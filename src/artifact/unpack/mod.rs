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

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt;
use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, Cursor, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use flate2::bufread::GzDecoder;
use rustix::fs::FileType;
use tar::EntryType;
use zip::{CompressionMethod, ZipArchive};

use crate::error::{Bundle, Error, FoundInstead, ProxyError, SpecialFile, Unsupported, UploadError};
use crate::text::excerpt;

use crate::artifact::inspect::{Defect, Foreign, Kind as FileKind};
use crate::artifact::kind::HEAD_BYTES;
pub use crate::error::ArchiveFormat as Format;

/// Where what is unpacked comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    Archive(Format),
    /// A folder of this machine.
    Folder,
}

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

/// What was unpacked.
#[derive(Debug)]
pub struct Contents {
    /// The file `exec` at the root, or [`UploadError::ArchiveWithoutExec`], which says what there is.
    pub exec: Result<PathBuf, Error>,
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
        Format::Zip => read_zip(bytes, &mut tree)?,
        Format::TarGz => read_tar_gz(bytes, &mut tree)?,
    }
    tree.finish()
}

/// Copies a folder of this machine into the empty folder `into`, as if it had been packed and uploaded: the
/// same bounds, links and modes, and the same things refused. Folders for which `leave_out` says so are not
/// looked into.
///
/// # Errors
/// As [`unpack`], and [`UploadError::NoSuchAction`] for what cannot be read.
pub(super) fn copy(
    folder: &Path,
    into: &Path,
    bounds: &Bounds,
    leave_out: &dyn Fn(&Path) -> bool,
) -> Result<(), Error> {
    let mut tree = Tree::new(Origin::Folder, into, bounds);
    let mut number = 0;
    // Names below the folder that are still to be looked into.
    let mut ahead = vec![PathBuf::new()];
    while let Some(below) = ahead.pop() {
        let path = folder.join(&below);
        let unreadable = |reason| Error::Upload(UploadError::NoSuchAction { path: path.clone(), reason });
        let mut entries = fs::read_dir(&path).and_then(Iterator::collect::<io::Result<Vec<_>>>).map_err(unreadable)?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for found in entries {
            let path = found.path();
            let unreadable = |reason| Error::Upload(UploadError::NoSuchAction { path: path.clone(), reason });
            let name = below.join(found.file_name());
            number += 1;
            tree.count()?;
            let entry = Entry { origin: Origin::Folder, number, name: name.as_os_str().as_bytes() };
            let metadata = found.metadata().map_err(unreadable)?;
            let mode = metadata.permissions().mode();
            match FileType::from_raw_mode(mode) {
                FileType::Directory if leave_out(&path) => {}
                FileType::Directory => {
                    tree.folder(&entry, mode)?;
                    ahead.push(name);
                }
                FileType::Symlink => {
                    let target = fs::read_link(&path).map_err(unreadable)?;
                    tree.link(&entry, target.as_os_str().as_bytes())?;
                }
                FileType::RegularFile => {
                    let mut content = fs::File::open(&path).map_err(unreadable)?;
                    tree.file(&entry, mode, &mut content, &unreadable)?;
                }
                FileType::Fifo => return Err(entry.of_kind(SpecialFile::Fifo)),
                FileType::Socket => return Err(entry.of_kind(SpecialFile::Socket)),
                _ => return Err(entry.of_kind(SpecialFile::Device)),
            }
        }
    }
    tree.finish().map(|_| ())
}

/// Files are written in pieces of this size.
const BUFFER_BYTES: usize = 64 * 1024;
/// The longest target that Linux can store in a link: `PATH_MAX`, without the final NUL.
const LINK_TARGET_BYTES: usize = 4095;
/// The most names that are looked at to follow one link: twice what its own target can hold.
const LINK_STEPS: usize = 4096;
/// The most bytes of a tar archive between the contents of two files: long names, attributes. They
/// are held in memory.
const TAR_HEADER_BYTES: u64 = 1 << 20;
/// How many names an error lists.
const LISTED: usize = 10;

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

    fn damaged(self, reason: impl Into<String>) -> Error {
        Error::Upload(UploadError::ArchiveDamaged { format: self, reason: reason.into() })
    }
}

impl Origin {
    fn bundle(self) -> Bundle {
        if self == Self::Folder { Bundle::Directory } else { Bundle::Archive }
    }

    fn damaged(self, reason: String) -> Error {
        match self {
            Self::Archive(format) => format.damaged(reason),
            Self::Folder => Error::Proxy(ProxyError::System {
                doing: "copy the folder for the compiler",
                reason: io::Error::other(reason),
            }),
        }
    }
}

fn read_zip(bytes: &[u8], tree: &mut Tree) -> Result<(), Error> {
    let unreadable = |error| {
        Format::Zip.damaged(format!("its directory, which stands at its end, cannot be read: {}", told(&error)))
    };
    // The library reads the whole directory into memory first, many times as large there.
    if announced_entries(bytes).is_some_and(|count| count > tree.bounds.entries as u64) {
        return Err(tree.too_many());
    }
    let mut archive = ZipArchive::new(Cursor::new(bytes)).map_err(unreadable)?;
    let directory = archive.metadata();
    if directory.len() > tree.bounds.entries {
        return Err(tree.too_many());
    }
    for index in 0..directory.len() {
        tree.count()?;
        let data = directory.entry(index).map_err(unreadable)?;
        let entry = Entry { origin: Origin::Archive(Format::Zip), number: index + 1, name: data.name_raw() };
        // Whichever system it says it comes from: 0 when there are no Unix modes.
        let mode = data.external_attributes() >> 16;
        let kind = match FileType::from_raw_mode(mode) {
            FileType::Directory => Kind::Folder,
            _ if entry.name.ends_with(b"/") => Kind::Folder,
            FileType::Symlink => Kind::Link,
            FileType::Fifo => Kind::Other(SpecialFile::Fifo),
            FileType::Socket => Kind::Other(SpecialFile::Socket),
            FileType::CharacterDevice => Kind::Other(SpecialFile::CharacterDevice),
            FileType::BlockDevice => Kind::Other(SpecialFile::BlockDevice),
            FileType::RegularFile | FileType::Unknown => Kind::File,
        };
        match kind {
            Kind::Folder => {
                tree.folder(&entry, mode)?;
                continue;
            }
            Kind::Other(kind) => return Err(entry.of_kind(kind)),
            _ => {}
        }
        if data.encrypted() {
            return Err(entry.unsupported(Unsupported::Encryption));
        }
        if !matches!(data.compression(), CompressionMethod::Stored | CompressionMethod::Deflated) {
            return Err(entry.unsupported(Unsupported::CompressionMethod));
        }
        let unreadable = |error: &dyn fmt::Display| entry.damaged(format!("cannot be read: {}", told(error)));
        let mut content = archive.by_index(index).map_err(|error| unreadable(&error))?;
        if matches!(kind, Kind::Link) {
            let mut target = Vec::new();
            content.take(LINK_TARGET_BYTES as u64 + 1).read_to_end(&mut target).map_err(|error| unreadable(&error))?;
            tree.link(&entry, &target)?;
        } else {
            tree.file(&entry, mode, &mut content, &|error| unreadable(&error))?;
        }
    }
    Ok(())
}

/// How many entries a zip announces in the record at its end. As many are read and no more.
///
/// Source: PKWARE, APPNOTE.TXT, 4.3.14 to 4.3.16.
fn announced_entries(bytes: &[u8]) -> Option<u64> {
    const RECORD: usize = 22;
    const LOCATOR: usize = 20;
    /// The longest comment, which stands behind the record.
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
    // The number does not fit, or just so: then it stands in a record that a locator before this one leads to.
    let locator = at.checked_sub(LOCATOR).filter(|at| bytes[*at..].starts_with(b"PK\x06\x07"));
    let Some(locator) = locator else { return Some(count) };
    let record = number(locator + 8, 8).and_then(|at| usize::try_from(at).ok());
    let record = record.filter(|at| bytes.get(*at..).is_some_and(|record| record.starts_with(b"PK\x06\x06")));
    record.and_then(|at| number(at + 32, 8)).or(Some(count))
}

fn read_tar_gz(bytes: &[u8], tree: &mut Tree) -> Result<(), Error> {
    let stream = Gunzip::new(bytes);
    let mut archive = tar::Archive::new(&stream);
    let mut entries = archive.entries().map_err(|error| stream.explain(&error, "it cannot be read"))?;
    for number in 1.. {
        stream.allow(TAR_HEADER_BYTES);
        let Some(next) = entries.next() else { break };
        let mut content = next.map_err(|error| match number {
            1 => stream.fault().unwrap_or_else(|| no_tar(bytes)),
            _ => stream.explain(&error, &format!("entry {number} cannot be read")),
        })?;
        tree.count()?;
        let name = content.path_bytes().into_owned();
        let entry = Entry { origin: Origin::Archive(Format::TarGz), number, name: &name };
        let target = content.link_name_bytes().unwrap_or_default().into_owned();
        // A mode that is no number is none.
        let mode = content.header().mode().unwrap_or(0);
        match tar_kind(content.header().entry_type(), &name) {
            Kind::Folder => tree.folder(&entry, mode)?,
            Kind::Link => tree.link(&entry, &target)?,
            Kind::HardLink => tree.hard_link(&entry, &target)?,
            Kind::Other(kind) => return Err(entry.of_kind(kind)),
            Kind::Remark => {}
            Kind::File => {
                stream.allow(u64::MAX);
                let size = content.size();
                let written = tree.file(&entry, mode, &mut content, &|error| {
                    stream.explain(&error, &format!("entry {number} {} cannot be read", excerpt(&name)))
                })?;
                if written < size {
                    return Err(entry.damaged(format!("ends after {written} of its {size} bytes")));
                }
            }
        }
    }
    // On to the checksum at the end of the stream, which vouches for all that was written. What
    // else stands there does not matter, and is not looked at for ever.
    stream.allow(u64::MAX);
    io::copy(&mut stream.take(tree.bounds.bytes.max(TAR_HEADER_BYTES)), &mut io::sink())
        .map_err(|error| stream.explain(&error, "it cannot be read"))?;
    Ok(())
}

/// Says what is in a gzip file that does not contain a tar archive.
fn no_tar(bytes: &[u8]) -> Error {
    let mut head = Vec::new();
    // What can be decompressed of it is enough.
    let _ = GzDecoder::new(bytes).take(HEAD_BYTES as u64).read_to_end(&mut head);
    let inside = FileKind::of(&head).in_words();
    Error::Upload(UploadError::Unusable { path: None, defects: vec![Defect::NotTar { inside }] })
}

fn tar_kind(of: EntryType, name: &[u8]) -> Kind {
    match of {
        // How folders were written before they had a type of their own.
        EntryType::Regular if name.ends_with(b"/") => Kind::Folder,
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => Kind::File,
        EntryType::Directory => Kind::Folder,
        EntryType::Symlink => Kind::Link,
        EntryType::Link => Kind::HardLink,
        EntryType::Fifo => Kind::Other(SpecialFile::Fifo),
        EntryType::Char => Kind::Other(SpecialFile::CharacterDevice),
        EntryType::Block => Kind::Other(SpecialFile::BlockDevice),
        // `git archive` writes the commit it was made from.
        EntryType::XGlobalHeader => Kind::Remark,
        _ => Kind::Other(SpecialFile::UnknownTarRecord),
    }
}

/// What an entry asks for.
enum Kind {
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
struct Entry<'a> {
    origin: Origin,
    /// Counted from 1.
    number: usize,
    /// Its path, as it stands in the archive.
    name: &'a [u8],
}

impl Entry<'_> {
    fn damaged(&self, what: impl fmt::Display) -> Error {
        self.origin.damaged(format!("entry {} {} {what}", self.number, excerpt(self.name)))
    }

    /// Of a zip, as the other formats have nothing that could be unsupported.
    fn unsupported(&self, feature: Unsupported) -> Error {
        Error::Upload(UploadError::ArchiveUnsupported { entry: self.number, path: lossy(self.name), feature })
    }

    fn escapes(&self, target: Option<&[u8]>) -> Error {
        Error::Upload(UploadError::ArchiveEscapes {
            entry: self.in_archive(),
            path: lossy(self.name),
            target: target.map(lossy),
        })
    }

    fn of_kind(&self, kind: SpecialFile) -> Error {
        Error::Upload(UploadError::ArchiveEntryKind { entry: self.in_archive(), path: lossy(self.name), kind })
    }

    /// Its number, where entries have one that somebody could look up.
    fn in_archive(&self) -> Option<usize> {
        (self.origin != Origin::Folder).then_some(self.number)
    }

    fn unwritable(&self, path: &Path, reason: io::Error) -> Error {
        if reason.kind() == io::ErrorKind::InvalidFilename {
            return self.damaged("has a path that is too long for this system");
        }
        Error::Upload(UploadError::Unwritable { path: path.to_owned(), reason })
    }

    /// The names its path consists of; none for the folder itself.
    fn names(&self) -> Result<Vec<&[u8]>, Error> {
        if self.name.contains(&0) {
            return Err(self.damaged("has a path with a NUL byte in it"));
        }
        names(self.name).ok_or_else(|| self.escapes(None))
    }
}

/// Splits a path into names. `a/../b` is `b`; nothing for an absolute path and one that leads above
/// its start.
fn names(path: &[u8]) -> Option<Vec<&[u8]>> {
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

/// What has been unpacked so far, or will be in the end.
struct Tree<'a> {
    origin: Origin,
    root: &'a Path,
    bounds: &'a Bounds,
    nodes: Vec<Node>,
    bytes_left: u64,
    entries_left: usize,
    buffer: Vec<u8>,
}

/// What stands at a path.
struct Node {
    parent: usize,
    name: Box<[u8]>,
    is: Is,
}

enum Is {
    Folder(BTreeMap<Box<[u8]>, usize>),
    File,
    /// A symbolic link that is still to be made, and the number of its entry.
    Link {
        target: Box<[u8]>,
        entry: usize,
    },
}

/// Where an entry goes.
struct Place<'n> {
    folder: usize,
    name: &'n [u8],
    path: PathBuf,
}

/// Why a link is refused.
enum Lost {
    Outside,
    Circling,
}

/// The node of the folder that is unpacked into. It is its own parent.
const ROOT: usize = 0;

impl<'a> Tree<'a> {
    fn new(origin: Origin, root: &'a Path, bounds: &'a Bounds) -> Self {
        Self {
            origin,
            root,
            bounds,
            nodes: vec![Node { parent: ROOT, name: Box::default(), is: Is::Folder(BTreeMap::new()) }],
            bytes_left: bounds.bytes,
            entries_left: bounds.entries,
            buffer: vec![0; BUFFER_BYTES],
        }
    }

    /// Counts one entry.
    fn count(&mut self) -> Result<(), Error> {
        self.bounds.go_on()?;
        self.entries_left = self.entries_left.checked_sub(1).ok_or_else(|| self.too_many())?;
        Ok(())
    }

    fn too_many(&self) -> Error {
        Error::Upload(UploadError::ArchiveTooManyEntries { bundle: self.origin.bundle(), limit: self.bounds.entries })
    }

    /// Makes a folder, or sets the mode of one that an earlier entry needed. The mode of the root is
    /// not the archive's business.
    fn folder(&mut self, entry: &Entry, mode: u32) -> Result<(), Error> {
        let names = entry.names()?;
        let Some((name, parents)) = names.split_last() else { return Ok(()) };
        let folder = self.descend(entry, parents)?;
        match self.child(folder, name).map(|node| &self.nodes[node].is) {
            None => drop(self.new_folder(entry, folder, name)?),
            Some(Is::Folder(_)) => {}
            Some(_) => return Err(entry.damaged("is a folder where an earlier entry is none")),
        }
        let path = self.path(folder).join(OsStr::from_bytes(name));
        set_mode(&path, permissions(mode, 0o755, 0o700)).map_err(|reason| entry.unwritable(&path, reason))
    }

    /// Writes a file and tells its size. `explain` turns an error of `content` into ours.
    fn file(
        &mut self,
        entry: &Entry,
        mode: u32,
        content: &mut dyn Read,
        explain: &dyn Fn(io::Error) -> Error,
    ) -> Result<u64, Error> {
        let names = entry.names()?;
        let place = self.place(entry, &names)?;
        let unwritable = |reason| entry.unwritable(&place.path, reason);
        // Never an existing file: what stood here is gone, and it may live on as a hard link.
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(&place.path).map_err(unwritable)?;
        let mut written = 0;
        loop {
            let piece = match content.read(&mut self.buffer) {
                Ok(0) => break,
                Ok(length) => &self.buffer[..length],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(explain(error)),
            };
            let length = piece.len() as u64;
            self.bounds.go_on()?;
            self.bytes_left =
                self.bytes_left.checked_sub(length).ok_or(Error::Upload(UploadError::ArchiveTooLarge {
                    bundle: self.origin.bundle(),
                    limit_bytes: self.bounds.bytes,
                }))?;
            file.write_all(piece).map_err(unwritable)?;
            written += length;
        }
        // Explicitly, since the umask has no say.
        file.set_permissions(Permissions::from_mode(permissions(mode, 0o644, 0o400))).map_err(unwritable)?;
        self.put(place.folder, place.name, Is::File);
        Ok(written)
    }

    /// Notes a symbolic link, which [`Tree::finish`] makes.
    fn link(&mut self, entry: &Entry, target: &[u8]) -> Result<(), Error> {
        let names = entry.names()?;
        if target.is_empty() || target.contains(&0) || target.len() > LINK_TARGET_BYTES {
            return Err(entry.damaged(format!("is a link with an impossible target: {}", excerpt(target))));
        }
        if target.starts_with(b"/") {
            return Err(entry.escapes(Some(target)));
        }
        let place = self.place(entry, &names)?;
        self.put(place.folder, place.name, Is::Link { target: target.into(), entry: entry.number });
        Ok(())
    }

    /// Gives an earlier file another name. `target` is a path from the root.
    fn hard_link(&mut self, entry: &Entry, target: &[u8]) -> Result<(), Error> {
        let names_of_target = names(target).ok_or_else(|| entry.escapes(Some(target)))?;
        let no_file = || entry.damaged(format!("is a hard link to {}, which is no earlier file", excerpt(target)));
        let file = names_of_target.iter().try_fold(ROOT, |at, name| self.child(at, name)).ok_or_else(no_file)?;
        if !matches!(self.nodes[file].is, Is::File) {
            return Err(no_file());
        }
        let names = entry.names()?;
        if names == names_of_target {
            return Ok(());
        }
        let source = self.path(file);
        let place = self.place(entry, &names)?;
        fs::hard_link(source, &place.path).map_err(|reason| entry.unwritable(&place.path, reason))?;
        self.put(place.folder, place.name, Is::File);
        Ok(())
    }

    /// Finds the place for a file or link, makes its parents, and clears it.
    fn place<'n>(&mut self, entry: &Entry, names: &[&'n [u8]]) -> Result<Place<'n>, Error> {
        let Some((name, parents)) = names.split_last() else {
            return Err(entry.damaged("stands where the folder itself is"));
        };
        let folder = self.descend(entry, parents)?;
        let path = self.path(folder).join(OsStr::from_bytes(name));
        match self.child(folder, name).map(|node| &self.nodes[node].is) {
            Some(Is::Folder(_)) => return Err(entry.damaged("is no folder where an earlier entry is one")),
            Some(Is::File) => fs::remove_file(&path).map_err(|reason| entry.unwritable(&path, reason))?,
            Some(Is::Link { .. }) | None => {}
        }
        Ok(Place { folder, name, path })
    }

    /// Walks down from the root and makes the folders that are missing.
    fn descend(&mut self, entry: &Entry, names: &[&[u8]]) -> Result<usize, Error> {
        let mut at = ROOT;
        for name in names {
            at = match self.child(at, name) {
                Some(node) if matches!(self.nodes[node].is, Is::Folder(_)) => node,
                Some(node) => {
                    let what = format!("would have to be below {}, which is no folder", excerpt(&self.name(node)));
                    return Err(entry.damaged(what));
                }
                None => {
                    self.count()?;
                    self.new_folder(entry, at, name)?
                }
            };
        }
        Ok(at)
    }

    fn new_folder(&mut self, entry: &Entry, parent: usize, name: &[u8]) -> Result<usize, Error> {
        let path = self.path(parent).join(OsStr::from_bytes(name));
        fs::create_dir(&path)
            .and_then(|()| set_mode(&path, 0o755))
            .map_err(|reason| entry.unwritable(&path, reason))?;
        Ok(self.put(parent, name, Is::Folder(BTreeMap::new())))
    }

    fn put(&mut self, parent: usize, name: &[u8], is: Is) -> usize {
        if let Some(node) = self.child(parent, name) {
            self.nodes[node].is = is;
            return node;
        }
        let node = self.nodes.len();
        self.nodes.push(Node { parent, name: name.into(), is });
        if let Is::Folder(children) = &mut self.nodes[parent].is {
            children.insert(name.into(), node);
        }
        node
    }

    fn child(&self, folder: usize, name: &[u8]) -> Option<usize> {
        match &self.nodes[folder].is {
            Is::Folder(children) => children.get(name).copied(),
            _ => None,
        }
    }

    /// The path of a node from the root.
    fn name(&self, mut node: usize) -> Vec<u8> {
        let mut names = Vec::new();
        while node != ROOT {
            names.push(&*self.nodes[node].name);
            node = self.nodes[node].parent;
        }
        names.reverse();
        names.join(&b'/')
    }

    fn path(&self, node: usize) -> PathBuf {
        self.root.join(OsStr::from_bytes(&self.name(node)))
    }

    /// Makes the links and finds `exec`.
    fn finish(self) -> Result<Contents, Error> {
        let mut links = Vec::new();
        for (node, Node { parent, is, .. }) in self.nodes.iter().enumerate() {
            let Is::Link { target, entry } = is else { continue };
            let name = self.name(node);
            let entry = Entry { origin: self.origin, number: *entry, name: &name };
            match self.follow(*parent, target) {
                Ok(_) => links.push((target, self.path(node))),
                Err(Lost::Outside) => return Err(entry.escapes(Some(target))),
                Err(Lost::Circling) => {
                    return Err(entry.damaged("is a link that leads in a circle, or through too many others"));
                }
            }
        }
        let exec = match self.follow(ROOT, b"exec") {
            Ok(Some(exec)) if matches!(self.nodes[exec].is, Is::File) => {
                let path = self.path(exec);
                fs::metadata(&path)
                    .and_then(|metadata| set_mode(&path, metadata.permissions().mode() & 0o777 | 0o755))
                    .map_err(|reason| Error::Upload(UploadError::Unwritable { path: path.clone(), reason }))?;
                Ok(path)
            }
            _ => Err(self.without_exec()),
        };
        for (target, path) in links {
            symlink(OsStr::from_bytes(target), &path)
                .map_err(|reason| Error::Upload(UploadError::Unwritable { path, reason }))?;
        }
        Ok(Contents { exec })
    }

    /// Follows a relative path from a folder as the kernel would; nothing if it leads to nothing.
    ///
    /// Source: `path_resolution(7)`; unlike there, a name that does not exist, or is no folder,
    /// counts as a folder as long as the path goes on.
    fn follow<'p>(&'p self, folder: usize, path: &'p [u8]) -> Result<Option<usize>, Lost> {
        let mut at = folder;
        // How many names that do not exist the path is below `at`.
        let mut missing = 0_usize;
        // The names that are still ahead, the next one last.
        let mut ahead: Vec<_> = path.rsplit(|byte| *byte == b'/').collect();
        let mut steps = ahead.len();
        let mut broken = false;
        while let Some(name) = ahead.pop() {
            // Only in a folder there are names, `.` and `..` too.
            broken |= missing > 0 || !matches!(self.nodes[at].is, Is::Folder(_));
            match name {
                b"" | b"." => {}
                b".." if missing > 0 => missing -= 1,
                b".." if at == ROOT => return Err(Lost::Outside),
                b".." => at = self.nodes[at].parent,
                _ if missing > 0 => missing += 1,
                _ => match self.child(at, name) {
                    None => missing = 1,
                    Some(node) => match &self.nodes[node].is {
                        Is::Folder(_) | Is::File => at = node,
                        Is::Link { target, .. } => {
                            let passed = ahead.len();
                            ahead.extend(target.rsplit(|byte| *byte == b'/'));
                            steps += ahead.len() - passed;
                            if steps > LINK_STEPS {
                                return Err(Lost::Circling);
                            }
                        }
                    },
                },
            }
        }
        Ok((missing == 0 && !broken).then_some(at))
    }

    /// Tells what there is instead of `exec`: what bears that name elsewhere first, as it is most
    /// likely what was meant, then what is nearest to the root.
    fn without_exec(&self) -> Error {
        let mut leaves: Vec<_> = (1..self.nodes.len())
            .filter(|node| !matches!(&self.nodes[*node].is, Is::Folder(children) if !children.is_empty()))
            .map(|node| {
                let mut path = self.name(node);
                let depth = memchr::memchr_iter(b'/', &path).count();
                if matches!(self.nodes[node].is, Is::Folder(_)) {
                    path.push(b'/');
                }
                (&*self.nodes[node].name != b"exec", depth, path)
            })
            .collect();
        leaves.sort();
        if leaves.iter().any(|(_, _, path)| path == b"META-INF/MANIFEST.MF") {
            return Error::Upload(UploadError::Unusable { path: None, defects: vec![Defect::Foreign(Foreign::Jar)] });
        }
        let instead = match self.child(ROOT, b"exec").map(|node| &self.nodes[node].is) {
            Some(Is::Folder(_)) => FoundInstead::Directory,
            Some(Is::Link { target, .. }) => FoundInstead::DeadLink { target: lossy(target) },
            Some(Is::File) | None => match leaves.first() {
                Some((false, _, path)) if path.ends_with(b"/exec") => {
                    FoundInstead::Below { directory: lossy(&path[..path.len() - b"/exec".len()]) }
                }
                _ => FoundInstead::Nothing,
            },
        };
        let more = leaves.len().saturating_sub(LISTED);
        let holds = leaves.iter().take(LISTED).map(|(_, _, path)| lossy(path)).collect();
        Error::Upload(UploadError::ArchiveWithoutExec { instead, holds, more })
    }
}

/// The permission bits of an entry, where 0 means that the archive has no modes.
fn permissions(mode: u32, default: u32, at_least: u32) -> u32 {
    match mode & 0o777 {
        0 => default,
        bits => bits | at_least,
    }
}

fn set_mode(path: &Path, mode: u32) -> io::Result<()> {
    fs::set_permissions(path, Permissions::from_mode(mode))
}

/// Decompresses gzip, all members one after the other.
///
/// What follows the last member and does not begin another one is ignored, as `gzip` does. Its
/// state is shared, so that it can be asked and bounded while a tar archive is read from it.
struct Gunzip<'a> {
    decoder: RefCell<GzDecoder<&'a [u8]>>,
    /// How many more bytes may be read.
    allowance: Cell<u64>,
    /// What went wrong in this layer, since the one above tells only that something did.
    fault: Cell<Option<String>>,
}

impl<'a> Gunzip<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self { decoder: RefCell::new(GzDecoder::new(bytes)), allowance: Cell::new(0), fault: Cell::new(None) }
    }

    fn allow(&self, bytes: u64) {
        self.allowance.set(bytes);
    }

    fn fault(&self) -> Option<Error> {
        self.fault.take().map(|reason| Format::TarGz.damaged(reason))
    }

    /// What an error of the tar reader comes from: this layer, or else its own.
    fn explain(&self, error: &io::Error, what: &str) -> Error {
        self.fault().unwrap_or_else(|| Format::TarGz.damaged(format!("{what}: {}", told(error))))
    }
}

impl Read for &Gunzip<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let failed = |reason: String| {
            self.fault.set(Some(reason));
            io::Error::from(io::ErrorKind::InvalidData)
        };
        let length = usize::try_from(self.allowance.get()).unwrap_or(usize::MAX).min(buffer.len());
        if length == 0 && !buffer.is_empty() {
            return Err(failed(format!("the headers of one entry take more than {TAR_HEADER_BYTES} bytes")));
        }
        let mut decoder = self.decoder.borrow_mut();
        loop {
            let read = decoder.read(&mut buffer[..length]).map_err(|error| {
                failed(match error.kind() {
                    io::ErrorKind::UnexpectedEof => "its gzip stream ends too early".into(),
                    _ => format!("its gzip stream is broken: {}", told(&error)),
                })
            })?;
            let rest: &[u8] = decoder.get_ref();
            if read > 0 || length == 0 || !rest.starts_with(GZIP_MAGIC) {
                self.allowance.set(self.allowance.get() - read as u64);
                return Ok(read);
            }
            decoder.reset(rest);
        }
    }
}

/// A library's error as the end of a sentence of ours.
fn told(error: &dyn fmt::Display) -> String {
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

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests;
