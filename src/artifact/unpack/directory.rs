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

/// Copies a folder of this machine into the empty folder `into`, as if it had been packed and uploaded: the
/// same bounds, links and modes, and the same things refused. Folders for which `leave_out` says so are not
/// looked into.
///
/// # Errors
/// As [`unpack`](super::unpack), and [`UploadError::NoSuchAction`] for what cannot be read.
pub(in crate::artifact) fn copy(
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
