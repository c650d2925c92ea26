//! The tree of unpacked files: in memory, and on disk.

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

/// The result of unpacking.
#[derive(Debug)]
pub struct Contents {
    /// The file `exec` at the root, or [`UploadError::ArchiveWithoutExec`], which lists the files that there are.
    pub exec: Result<PathBuf, Error>,
}

/// The size of the buffer for writing files.
const BUFFER_BYTES: usize = 64 * 1024;
/// The longest target that Linux can store in a link: `PATH_MAX`, without the final NUL.
pub(super) const MAX_LINK_TARGET_BYTES: usize = 4095;
/// How many components may be followed for one link: twice as many as its own target can hold.
const MAX_LINK_STEPS: usize = 4096;
/// How many files an error lists.
const MAX_LISTED: usize = 10;

/// The files that were unpacked so far, and the links that will be created at the end.
pub(super) struct Tree<'a> {
    origin: Origin,
    root: &'a Path,
    pub(super) bounds: &'a Bounds,
    nodes: Vec<Node>,
    bytes_left: u64,
    entries_left: usize,
    buffer: Vec<u8>,
}

/// The file at a path.
struct Node {
    parent: usize,
    name: Box<[u8]>,
    kind: NodeKind,
}

enum NodeKind {
    Directory(BTreeMap<Box<[u8]>, usize>),
    File,
    /// A symbolic link that is not created yet, and the number of its entry.
    Link {
        target: Box<[u8]>,
        entry: usize,
    },
}

/// Where to write a file or link.
struct Destination<'n> {
    parent: usize,
    name: &'n [u8],
    path: PathBuf,
}

/// Why a link cannot be followed.
enum LinkError {
    Outside,
    Loop,
}

/// The node of the directory that everything is unpacked into. It is its own parent.
const ROOT: usize = 0;

impl<'a> Tree<'a> {
    pub(super) fn new(origin: Origin, root: &'a Path, bounds: &'a Bounds) -> Self {
        Self {
            origin,
            root,
            bounds,
            nodes: vec![Node { parent: ROOT, name: Box::default(), kind: NodeKind::Directory(BTreeMap::new()) }],
            bytes_left: bounds.bytes,
            entries_left: bounds.entries,
            buffer: vec![0; BUFFER_BYTES],
        }
    }

    /// Counts one entry.
    pub(super) fn count(&mut self) -> Result<(), Error> {
        self.bounds.check_halt()?;
        self.entries_left = self.entries_left.checked_sub(1).ok_or_else(|| self.too_many_entries())?;
        Ok(())
    }

    pub(super) fn too_many_entries(&self) -> Error {
        Error::Upload(UploadError::ArchiveTooManyEntries { bundle: self.origin.bundle(), limit: self.bounds.entries })
    }

    /// Makes a directory, or sets the mode of one that an earlier entry created implicitly. An archive cannot set the
    /// mode of the root.
    pub(super) fn directory(&mut self, entry: &Entry, mode: u32) -> Result<(), Error> {
        let names = entry.names()?;
        let Some((name, parents)) = names.split_last() else { return Ok(()) };
        let parent = self.descend(entry, parents)?;
        match self.child(parent, name).map(|node| &self.nodes[node].kind) {
            None => drop(self.create_directory(entry, parent, name)?),
            Some(NodeKind::Directory(_)) => {}
            Some(_) => return Err(entry.damaged("is a directory where an earlier entry is not")),
        }
        let path = self.path(parent).join(OsStr::from_bytes(name));
        set_mode(&path, permissions(mode, 0o755, 0o700)).map_err(|reason| entry.unwritable(&path, reason))
    }

    /// Writes a file and returns its size. `explain` converts an error of `content`.
    pub(super) fn file(
        &mut self,
        entry: &Entry,
        mode: u32,
        content: &mut dyn Read,
        explain: &dyn Fn(io::Error) -> Error,
    ) -> Result<u64, Error> {
        let names = entry.names()?;
        let destination = self.prepare(entry, &names)?;
        let unwritable = |reason| entry.unwritable(&destination.path, reason);
        // Never an existing file: an earlier one at this path is gone, and may still exist under another name as a hard
        // link.
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(&destination.path).map_err(unwritable)?;
        let mut written = 0;
        loop {
            let chunk = match content.read(&mut self.buffer) {
                Ok(0) => break,
                Ok(length) => &self.buffer[..length],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(explain(error)),
            };
            let length = chunk.len() as u64;
            self.bounds.check_halt()?;
            self.bytes_left =
                self.bytes_left.checked_sub(length).ok_or(Error::Upload(UploadError::ArchiveTooLarge {
                    bundle: self.origin.bundle(),
                    limit_bytes: self.bounds.bytes,
                }))?;
            file.write_all(chunk).map_err(unwritable)?;
            written += length;
        }
        // Set explicitly, so that the umask does not apply.
        file.set_permissions(Permissions::from_mode(permissions(mode, 0o644, 0o400))).map_err(unwritable)?;
        self.insert(destination.parent, destination.name, NodeKind::File);
        Ok(written)
    }

    /// Records a symbolic link, which [`Tree::finish`] creates.
    pub(super) fn link(&mut self, entry: &Entry, target: &[u8]) -> Result<(), Error> {
        let names = entry.names()?;
        if target.is_empty() || target.contains(&0) || target.len() > MAX_LINK_TARGET_BYTES {
            return Err(entry.damaged(format!("is a link with an impossible target: {}", excerpt(target))));
        }
        if target.starts_with(b"/") {
            return Err(entry.escapes(Some(target)));
        }
        let destination = self.prepare(entry, &names)?;
        self.insert(
            destination.parent,
            destination.name,
            NodeKind::Link { target: target.into(), entry: entry.number },
        );
        Ok(())
    }

    /// Creates a hard link to an earlier file. `target` is a path from the root.
    pub(super) fn hard_link(&mut self, entry: &Entry, target: &[u8]) -> Result<(), Error> {
        let names_of_target = names(target).ok_or_else(|| entry.escapes(Some(target)))?;
        let no_file = || entry.damaged(format!("is a hard link to {}, which is no earlier file", excerpt(target)));
        let file = names_of_target.iter().try_fold(ROOT, |at, name| self.child(at, name)).ok_or_else(no_file)?;
        if !matches!(self.nodes[file].kind, NodeKind::File) {
            return Err(no_file());
        }
        let names = entry.names()?;
        if names == names_of_target {
            return Ok(());
        }
        let source = self.path(file);
        let destination = self.prepare(entry, &names)?;
        fs::hard_link(source, &destination.path).map_err(|reason| entry.unwritable(&destination.path, reason))?;
        self.insert(destination.parent, destination.name, NodeKind::File);
        Ok(())
    }

    /// Makes the parent directories of a new file or link, and removes an earlier file at its path.
    fn prepare<'n>(&mut self, entry: &Entry, names: &[&'n [u8]]) -> Result<Destination<'n>, Error> {
        let Some((name, parents)) = names.split_last() else {
            return Err(entry.damaged("stands where the directory itself is"));
        };
        let parent = self.descend(entry, parents)?;
        let path = self.path(parent).join(OsStr::from_bytes(name));
        match self.child(parent, name).map(|node| &self.nodes[node].kind) {
            Some(NodeKind::Directory(_)) => {
                return Err(entry.damaged("is not a directory where an earlier entry is one"));
            }
            Some(NodeKind::File) => fs::remove_file(&path).map_err(|reason| entry.unwritable(&path, reason))?,
            Some(NodeKind::Link { .. }) | None => {}
        }
        Ok(Destination { parent, name, path })
    }

    /// Walks down from the root and creates missing directories.
    fn descend(&mut self, entry: &Entry, names: &[&[u8]]) -> Result<usize, Error> {
        let mut at = ROOT;
        for name in names {
            at = match self.child(at, name) {
                Some(node) if matches!(self.nodes[node].kind, NodeKind::Directory(_)) => node,
                Some(node) => {
                    let what = format!(
                        "would have to be below {}, which is not a directory",
                        excerpt(&self.relative_path(node))
                    );
                    return Err(entry.damaged(what));
                }
                None => {
                    self.count()?;
                    self.create_directory(entry, at, name)?
                }
            };
        }
        Ok(at)
    }

    fn create_directory(&mut self, entry: &Entry, parent: usize, name: &[u8]) -> Result<usize, Error> {
        let path = self.path(parent).join(OsStr::from_bytes(name));
        fs::create_dir(&path)
            .and_then(|()| set_mode(&path, 0o755))
            .map_err(|reason| entry.unwritable(&path, reason))?;
        Ok(self.insert(parent, name, NodeKind::Directory(BTreeMap::new())))
    }

    fn insert(&mut self, parent: usize, name: &[u8], kind: NodeKind) -> usize {
        if let Some(node) = self.child(parent, name) {
            self.nodes[node].kind = kind;
            return node;
        }
        let node = self.nodes.len();
        self.nodes.push(Node { parent, name: name.into(), kind });
        if let NodeKind::Directory(children) = &mut self.nodes[parent].kind {
            children.insert(name.into(), node);
        }
        node
    }

    fn child(&self, directory: usize, name: &[u8]) -> Option<usize> {
        match &self.nodes[directory].kind {
            NodeKind::Directory(children) => children.get(name).copied(),
            _ => None,
        }
    }

    /// The path of a node from the root.
    fn relative_path(&self, mut node: usize) -> Vec<u8> {
        let mut names = Vec::new();
        while node != ROOT {
            names.push(&*self.nodes[node].name);
            node = self.nodes[node].parent;
        }
        names.reverse();
        names.join(&b'/')
    }

    fn path(&self, node: usize) -> PathBuf {
        self.root.join(OsStr::from_bytes(&self.relative_path(node)))
    }

    /// Creates the links and finds `exec`.
    pub(super) fn finish(self) -> Result<Contents, Error> {
        let mut links = Vec::new();
        for (node, Node { parent, kind, .. }) in self.nodes.iter().enumerate() {
            let NodeKind::Link { target, entry } = kind else { continue };
            let name = self.relative_path(node);
            let entry = Entry { origin: self.origin, number: *entry, name: &name };
            match self.follow(*parent, target) {
                Ok(_) => links.push((target, self.path(node))),
                Err(LinkError::Outside) => return Err(entry.escapes(Some(target))),
                Err(LinkError::Loop) => {
                    return Err(entry.damaged("is a link that leads in a circle, or through too many others"));
                }
            }
        }
        let exec = match self.follow(ROOT, b"exec") {
            Ok(Some(exec)) if matches!(self.nodes[exec].kind, NodeKind::File) => {
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

    /// Follows a relative path from a directory as the kernel would; `None` if it leads to nothing.
    ///
    /// Source: `path_resolution(7)`. Unlike there, a name that does not exist, or is not a directory, counts as a directory
    /// if more names follow.
    fn follow<'p>(&'p self, directory: usize, path: &'p [u8]) -> Result<Option<usize>, LinkError> {
        let mut at = directory;
        // How many missing names below `at` the path has reached.
        let mut missing = 0_usize;
        // The names that follow, the next one last.
        let mut pending: Vec<_> = path.rsplit(|byte| *byte == b'/').collect();
        let mut steps = pending.len();
        let mut broken = false;
        while let Some(name) = pending.pop() {
            // Only a directory has entries, including `.` and `..`.
            broken |= missing > 0 || !matches!(self.nodes[at].kind, NodeKind::Directory(_));
            match name {
                b"" | b"." => {}
                b".." if missing > 0 => missing -= 1,
                b".." if at == ROOT => return Err(LinkError::Outside),
                b".." => at = self.nodes[at].parent,
                _ if missing > 0 => missing += 1,
                _ => match self.child(at, name) {
                    None => missing = 1,
                    Some(node) => match &self.nodes[node].kind {
                        NodeKind::Directory(_) | NodeKind::File => at = node,
                        NodeKind::Link { target, .. } => {
                            let before = pending.len();
                            pending.extend(target.rsplit(|byte| *byte == b'/'));
                            steps += pending.len() - before;
                            if steps > MAX_LINK_STEPS {
                                return Err(LinkError::Loop);
                            }
                        }
                    },
                },
            }
        }
        Ok((missing == 0 && !broken).then_some(at))
    }

    /// The error for an archive without `exec`, with a list of its files: first files of that name in a subdirectory,
    /// which most likely should be the action, then those nearest to the root.
    fn without_exec(&self) -> Error {
        let mut leaves: Vec<_> = (1..self.nodes.len())
            .filter(|node| !matches!(&self.nodes[*node].kind, NodeKind::Directory(children) if !children.is_empty()))
            .map(|node| {
                let mut path = self.relative_path(node);
                let depth = memchr::memchr_iter(b'/', &path).count();
                if matches!(self.nodes[node].kind, NodeKind::Directory(_)) {
                    path.push(b'/');
                }
                (&*self.nodes[node].name != b"exec", depth, path)
            })
            .collect();
        leaves.sort();
        if leaves.iter().any(|(_, _, path)| path == b"META-INF/MANIFEST.MF") {
            return Error::Upload(UploadError::Unusable { path: None, defects: vec![Defect::Foreign(Foreign::Jar)] });
        }
        let instead = match self.child(ROOT, b"exec").map(|node| &self.nodes[node].kind) {
            Some(NodeKind::Directory(_)) => FoundInstead::Directory,
            Some(NodeKind::Link { target, .. }) => FoundInstead::DeadLink { target: lossy(target) },
            Some(NodeKind::File) | None => match leaves.first() {
                Some((false, _, path)) if path.ends_with(b"/exec") => {
                    FoundInstead::Below { directory: lossy(&path[..path.len() - b"/exec".len()]) }
                }
                _ => FoundInstead::Nothing,
            },
        };
        let more = leaves.len().saturating_sub(MAX_LISTED);
        let holds = leaves.iter().take(MAX_LISTED).map(|(_, _, path)| lossy(path)).collect();
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
