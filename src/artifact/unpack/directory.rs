//! Copies a directory of this machine by the rules for archives.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::FileType;

use super::Bounds;
use super::entry::{Entry, Origin};
use super::tree::Tree;
use crate::error::{Error, SpecialFile, UploadError};

/// Copies a directory of this machine into the empty directory `into`, as if it had been packed and uploaded: with the
/// same bounds, links, modes and refusals. The contents of a directory for which `leave_out` returns true are not copied.
///
/// # Errors
/// As [`unpack`](super::unpack), and [`UploadError::NoSuchAction`] for a file that cannot be read.
pub(in crate::artifact) fn copy(
    from: &Path,
    into: &Path,
    bounds: &Bounds,
    leave_out: &dyn Fn(&Path) -> bool,
) -> Result<(), Error> {
    let mut tree = Tree::new(Origin::Directory, into, bounds);
    let mut number = 0;
    // Subdirectories that are still to be copied, as paths below `from`.
    let mut pending = vec![PathBuf::new()];
    while let Some(below) = pending.pop() {
        let path = from.join(&below);
        let unreadable = |reason| Error::Upload(UploadError::NoSuchAction { path: path.clone(), reason });
        let mut entries = fs::read_dir(&path).and_then(Iterator::collect::<io::Result<Vec<_>>>).map_err(unreadable)?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for found in entries {
            let path = found.path();
            let unreadable = |reason| Error::Upload(UploadError::NoSuchAction { path: path.clone(), reason });
            let name = below.join(found.file_name());
            number += 1;
            tree.count()?;
            let entry = Entry { origin: Origin::Directory, number, name: name.as_os_str().as_bytes() };
            let metadata = found.metadata().map_err(unreadable)?;
            let mode = metadata.permissions().mode();
            match FileType::from_raw_mode(mode) {
                FileType::Directory if leave_out(&path) => {}
                FileType::Directory => {
                    tree.directory(&entry, mode)?;
                    pending.push(name);
                }
                FileType::Symlink => {
                    let target = fs::read_link(&path).map_err(unreadable)?;
                    tree.link(&entry, target.as_os_str().as_bytes())?;
                }
                FileType::RegularFile => {
                    let mut content = fs::File::open(&path).map_err(unreadable)?;
                    tree.file(&entry, mode, &mut content, &unreadable)?;
                }
                FileType::Fifo => return Err(entry.special_file(SpecialFile::Fifo)),
                FileType::Socket => return Err(entry.special_file(SpecialFile::Socket)),
                _ => return Err(entry.special_file(SpecialFile::Device)),
            }
        }
    }
    tree.finish().map(|_| ())
}
