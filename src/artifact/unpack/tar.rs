//! Reads tar archives that are compressed with gzip.

use std::cell::{Cell, RefCell};
use std::io::{self, Read};

use flate2::bufread::GzDecoder;
use tar::EntryType;

use super::entry::{Entry, Kind, Origin, told};
use super::tree::Tree;
use super::{Format, GZIP_MAGIC};
use crate::artifact::inspect::{Defect, Kind as FileKind};
use crate::artifact::kind::HEAD_BYTES;
use crate::error::{Error, SpecialFile, UploadError};
use crate::text::excerpt;

/// The most bytes of a tar archive between the contents of two files: long names, attributes. They
/// are held in memory.
const TAR_HEADER_BYTES: u64 = 1 << 20;

pub(super) fn read(bytes: &[u8], tree: &mut Tree) -> Result<(), Error> {
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
