//! Reads tar archives that are compressed with gzip.

use std::cell::{Cell, RefCell};
use std::io::{self, Read};

use flate2::bufread::GzDecoder;
use tar::EntryType;

use super::GZIP_MAGIC;
use super::entry::{Entry, Kind, Origin, clause};
use super::sparse::{self, BadMap, Sparse};
use super::tree::Tree;
use crate::artifact::inspect::{Defect, Kind as FileKind};
use crate::artifact::kind::HEAD_BYTES;
use crate::error::{ArchiveFormat, Error, SpecialFile, UploadError};
use crate::text::excerpt;

/// Most bytes of a tar archive between the contents of two files: long names and attributes, which are kept in memory.
const MAX_HEADER_BYTES: u64 = 1 << 20;

pub(super) fn read(bytes: &[u8], tree: &mut Tree) -> Result<(), Error> {
    let stream = Gunzip::new(bytes);
    let mut archive = tar::Archive::new(&stream);
    let mut entries = archive.entries().map_err(|error| stream.explain(&error, "it cannot be read"))?;
    for number in 1.. {
        stream.allow(MAX_HEADER_BYTES);
        let Some(next) = entries.next() else { break };
        let mut content = next.map_err(|error| match number {
            1 => stream.fault().unwrap_or_else(|| no_tar(bytes)),
            _ => stream.explain(&error, &format!("entry {number} cannot be read")),
        })?;
        tree.count()?;
        let (name, sparse) = sparse(&mut content);
        let name = name.unwrap_or_else(|| content.path_bytes().into_owned());
        let entry = Entry { origin: Origin::Archive(ArchiveFormat::TarGz), number, name: &name };
        let target = content.link_name_bytes().unwrap_or_default().into_owned();
        // An invalid mode counts as none.
        let mode = content.header().mode().unwrap_or(0);
        match tar_kind(content.header().entry_type(), &name) {
            Kind::Directory => tree.directory(&entry, mode)?,
            Kind::Link => tree.link(&entry, &target)?,
            Kind::HardLink => tree.hard_link(&entry, &target)?,
            Kind::Other(kind) => return Err(entry.special_file(kind)),
            Kind::Metadata => {}
            Kind::File => {
                let unreadable =
                    |error| stream.explain(&error, &format!("entry {number} {} cannot be read", excerpt(&name)));
                let bad_map = |error| match error {
                    BadMap::Unreadable(error) => unreadable(error),
                    BadMap::Wrong(what) => entry.damaged(format!("is a sparse file with a wrong map: it has {what}")),
                };
                let mut size = content.size();
                let written = if let Some(sparse) = sparse.map_err(bad_map)? {
                    let content_bytes = std::mem::replace(&mut size, sparse.size);
                    // The map counts as a header.
                    let mut expanded = sparse.open(content, content_bytes).map_err(bad_map)?;
                    stream.allow(u64::MAX);
                    tree.file(&entry, mode, &mut expanded, &unreadable)?
                } else {
                    stream.allow(u64::MAX);
                    tree.file(&entry, mode, &mut content, &unreadable)?
                };
                if written < size {
                    return Err(entry.damaged(format!("ends after {written} of its {size} bytes")));
                }
            }
        }
    }
    // Read on to the checksum at the end of the stream, which covers everything that was written. Other data there is
    // ignored, up to a limit.
    stream.allow(u64::MAX);
    io::copy(&mut stream.take(tree.bounds.bytes.max(MAX_HEADER_BYTES)), &mut io::sink())
        .map_err(|error| stream.explain(&error, "it cannot be read"))?;
    Ok(())
}

/// What the attributes of an entry say about a sparse file, and its path.
fn sparse(content: &mut tar::Entry<'_, impl Read>) -> (Option<Vec<u8>>, Result<Option<Sparse>, BadMap>) {
    let attributes = match content.pax_extensions() {
        // An attribute that is malformed belongs to no sparse file.
        Ok(attributes) => attributes.into_iter().flatten().flatten(),
        Err(error) => return (None, Err(BadMap::Unreadable(error))),
    };
    let attributes: Vec<_> = attributes.map(|attribute| (attribute.key_bytes(), attribute.value_bytes())).collect();
    let name = attributes.iter().find(|(key, _)| *key == sparse::NAME).map(|(_, name)| name.to_vec());
    (name, Sparse::of(attributes.into_iter()))
}

/// The error for a gzip file that does not contain a tar archive: it says what the file contains.
fn no_tar(bytes: &[u8]) -> Error {
    let mut head = Vec::new();
    // A decompression error does not matter: the bytes before it are enough.
    let _ = GzDecoder::new(bytes).take(HEAD_BYTES as u64).read_to_end(&mut head);
    let inside = FileKind::of(&head).in_words();
    Error::Upload(UploadError::Unusable { path: None, defects: vec![Defect::NotTar { inside }] })
}

fn tar_kind(entry_type: EntryType, name: &[u8]) -> Kind {
    match entry_type {
        // Old archives have no type for directories.
        EntryType::Regular if name.ends_with(b"/") => Kind::Directory,
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => Kind::File,
        EntryType::Directory => Kind::Directory,
        EntryType::Symlink => Kind::Link,
        EntryType::Link => Kind::HardLink,
        EntryType::Fifo => Kind::Other(SpecialFile::Fifo),
        EntryType::Char => Kind::Other(SpecialFile::CharacterDevice),
        EntryType::Block => Kind::Other(SpecialFile::BlockDevice),
        // `git archive` stores the commit in it.
        EntryType::XGlobalHeader => Kind::Metadata,
        _ => Kind::Other(SpecialFile::UnknownTarRecord),
    }
}

/// Decompresses gzip, all members one after the other.
///
/// Data after the last member is ignored, as `gzip` does. The state is shared, so that the caller can set the allowance
/// and read the fault while the tar reader borrows it.
struct Gunzip<'a> {
    decoder: RefCell<GzDecoder<&'a [u8]>>,
    /// How many more bytes may be read.
    allowance: Cell<u64>,
    /// What went wrong in this layer: the errors of the tar reader do not say it.
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
        self.fault.take().map(|reason| ArchiveFormat::TarGz.damaged(reason))
    }

    /// Converts an error of the tar reader: to the fault of this layer if there is one, or else to its own text.
    fn explain(&self, error: &io::Error, what: &str) -> Error {
        self.fault().unwrap_or_else(|| ArchiveFormat::TarGz.damaged(format!("{what}: {}", clause(error))))
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
            return Err(failed(format!("the headers of one entry take more than {MAX_HEADER_BYTES} bytes")));
        }
        let mut decoder = self.decoder.borrow_mut();
        loop {
            let read = decoder.read(&mut buffer[..length]).map_err(|error| {
                failed(match error.kind() {
                    io::ErrorKind::UnexpectedEof => "its gzip stream ends too early".into(),
                    _ => format!("its gzip stream is broken: {}", clause(&error)),
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
