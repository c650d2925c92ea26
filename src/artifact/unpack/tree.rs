//! The tree of what has been unpacked, and writing it.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use super::Bounds;
use super::entry::{Entry, Origin, lossy, names};
use crate::error::{Defect, Error, Foreign, FoundInstead, UploadError};
use crate::text::excerpt;

/// What was unpacked.
#[derive(Debug)]
pub struct Contents {
    /// The file `exec` at the root, or [`UploadError::ArchiveWithoutExec`], which says what there is.
    pub exec: Result<PathBuf, Error>,
}

/// Files are written in pieces of this size.
const BUFFER_BYTES: usize = 64 * 1024;
/// The longest target that Linux can store in a link: `PATH_MAX`, without the final NUL.
pub(super) const LINK_TARGET_BYTES: usize = 4095;
/// The most names that are looked at to follow one link: twice what its own target can hold.
const LINK_STEPS: usize = 4096;
/// How many names an error lists.
const LISTED: usize = 10;

/// What has been unpacked so far, or will be in the end.
pub(super) struct Tree<'a> {
    origin: Origin,
    root: &'a Path,
    pub(super) bounds: &'a Bounds,
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
    pub(super) fn new(origin: Origin, root: &'a Path, bounds: &'a Bounds) -> Self {
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
    pub(super) fn count(&mut self) -> Result<(), Error> {
        self.bounds.go_on()?;
        self.entries_left = self.entries_left.checked_sub(1).ok_or_else(|| self.too_many())?;
        Ok(())
    }

    pub(super) fn too_many(&self) -> Error {
        Error::Upload(UploadError::ArchiveTooManyEntries { bundle: self.origin.bundle(), limit: self.bounds.entries })
    }

    /// Makes a folder, or sets the mode of one that an earlier entry needed. The mode of the root is
    /// not the archive's business.
    pub(super) fn folder(&mut self, entry: &Entry, mode: u32) -> Result<(), Error> {
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
    pub(super) fn file(
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
    pub(super) fn link(&mut self, entry: &Entry, target: &[u8]) -> Result<(), Error> {
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
    pub(super) fn hard_link(&mut self, entry: &Entry, target: &[u8]) -> Result<(), Error> {
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
    pub(super) fn finish(self) -> Result<Contents, Error> {
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
