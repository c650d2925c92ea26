//! The system on which a program will run: its file system, its search paths, and its processor.
//!
//! It is this machine or an unpacked image. Inside an image, every path and every link target is resolved below the
//! image's root and never leads out of it. The action's own directory exists whatever the root, since a container has it
//! mounted or unpacked.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use crate::error::X86Level;
use crate::process::Launch;
use crate::process::lookup::DEFAULT_PATH;

use super::elf::{Elf, Machine};

/// Where inspection searches for programs, interpreters and libraries.
#[derive(Debug, Clone)]
pub struct TargetSystem {
    /// The root of the file system: `/`, or the directory of an unpacked image.
    pub root: PathBuf,
    /// The directory in which the action starts, as an absolute path of this machine.
    pub directory: PathBuf,
    /// The action's `PATH`.
    pub path: Option<OsString>,
    /// The action's `LD_LIBRARY_PATH`.
    pub library_path: Option<OsString>,
    /// The x86-64 level of the processor; `None` for another family, and for an image, whose processor is not known.
    pub x86_level: Option<X86Level>,
    /// The machine of an image, by its own programs; `None` for this machine.
    pub machine: Option<Machine>,
}

/// How many links Linux follows in one path.
///
/// Source: `path_resolution(7)`.
const MAX_LINKS: usize = 40;

impl TargetSystem {
    /// The target system of an action that starts in `directory` with this environment. If a variable occurs more than
    /// once, the last one counts.
    #[must_use]
    pub fn new(root: &Path, directory: &Path, environment: &[(OsString, OsString)]) -> Self {
        let variable =
            |wanted: &str| environment.iter().rev().find(|(name, _)| name == wanted).map(|(_, value)| value.clone());
        let mut target = Self {
            root: root.to_owned(),
            directory: directory.to_owned(),
            path: variable("PATH"),
            library_path: variable("LD_LIBRARY_PATH"),
            x86_level: if root.as_os_str() == "/" { x86_level() } else { None },
            machine: None,
        };
        if !target.is_this_machine() {
            target.machine = target.machine_of_image();
        }
        target
    }

    /// The machine of the programs that nearly every image has. An image without them counts as one for this machine.
    fn machine_of_image(&self) -> Option<Machine> {
        let programs = ["/bin/sh", "/bin/busybox", "/usr/bin/env", "/bin/ls"].map(PathBuf::from);
        // A loader, of any C library.
        let loaders = ["/lib64", "/lib", "/usr/lib"].into_iter().flat_map(|directory| {
            let entries = self.host(Path::new(directory)).and_then(fs::read_dir).into_iter().flatten().flatten();
            let names = entries.map(|entry| entry.file_name()).filter(|name| name.as_bytes().starts_with(b"ld-"));
            names.map(move |name| Path::new(directory).join(name)).collect::<Vec<_>>()
        });
        programs.into_iter().chain(loaders).find_map(|path| Some(Elf::open(&self.host(&path).ok()?).ok()?.machine))
    }

    /// The target system of a process on this machine.
    #[must_use]
    pub fn of(launch: &Launch) -> Self {
        Self::new(Path::new("/"), &launch.directory, &launch.environment)
    }

    /// The directories of `PATH`; an empty one is the action's directory. Without the variable, `env` and the shells use
    /// the default of the C library.
    pub(super) fn path_directories(&self) -> Vec<PathBuf> {
        let path = self.path.as_deref().unwrap_or(OsStr::new(DEFAULT_PATH));
        std::env::split_paths(path).map(|directory| self.directory.join(directory)).collect()
    }

    /// The path on this machine of a path on the target system. Links are followed to their end, which need not exist. A
    /// relative path is relative to the action's directory.
    ///
    /// # Errors
    /// If a link cannot be read, or if there are too many of them.
    pub(super) fn host(&self, path: &Path) -> io::Result<PathBuf> {
        let path = self.directory.join(path);
        if self.is_this_machine() { Ok(path) } else { Ok(self.mounted(&self.followed(&path)?)) }
    }

    /// A path of the target system without links.
    ///
    /// # Errors
    /// As [`TargetSystem::host`]; on this machine also if the path does not exist.
    pub(super) fn canonical(&self, path: &Path) -> io::Result<PathBuf> {
        let path = self.directory.join(path);
        if self.is_this_machine() { fs::canonicalize(path) } else { self.followed(&path) }
    }

    /// The path on the target system of a path on this machine.
    pub(super) fn inner(&self, host: &Path) -> PathBuf {
        if host.starts_with(&self.directory) {
            return host.to_owned();
        }
        host.strip_prefix(&self.root).map_or_else(|_| host.to_owned(), |below| Path::new("/").join(below))
    }

    /// The metadata of a path, with links followed.
    pub(super) fn metadata(&self, path: &Path) -> io::Result<fs::Metadata> {
        fs::metadata(self.host(path)?)
    }

    pub(super) fn is_this_machine(&self) -> bool {
        self.root.as_os_str() == "/"
    }

    /// The path on this machine of a path without links.
    fn mounted(&self, path: &Path) -> PathBuf {
        if path.starts_with(&self.directory) {
            return path.to_owned();
        }
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// Follows every link of an absolute path, with `/` as the root of the target system.
    fn followed(&self, path: &Path) -> io::Result<PathBuf> {
        let mut done = PathBuf::from("/");
        let mut pending: Vec<OsString> = names(path);
        let mut links = 0;
        while let Some(name) = pending.pop() {
            if name == ".." {
                done.pop();
                continue;
            }
            done.push(&name);
            let target = match fs::read_link(self.mounted(&done)) {
                Ok(target) => target,
                // It is not a link, or does not exist: opening it will show that.
                Err(error) if matches!(error.raw_os_error(), Some(code) if code == rustix::io::Errno::INVAL.raw_os_error()) =>
                {
                    continue;
                }
                Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                    continue;
                }
                Err(error) => return Err(error),
            };
            links += 1;
            if links > MAX_LINKS {
                return Err(rustix::io::Errno::LOOP.into());
            }
            done.pop();
            if target.is_absolute() {
                done = PathBuf::from("/");
            }
            pending.extend(names(&target));
        }
        Ok(done)
    }
}

/// The x86-64 level of this processor; `None` for another family.
///
/// Source: the psABI of x86-64, "Micro-Architecture Levels".
pub(super) fn x86_level() -> Option<X86Level> {
    #[cfg(target_arch = "x86_64")]
    {
        let v2 = is_x86_feature_detected!("sse4.2")
            && is_x86_feature_detected!("ssse3")
            && is_x86_feature_detected!("popcnt")
            && is_x86_feature_detected!("cmpxchg16b");
        let v3 = v2
            && is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("bmi1")
            && is_x86_feature_detected!("bmi2")
            && is_x86_feature_detected!("f16c")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("lzcnt")
            && is_x86_feature_detected!("movbe");
        let v4 = v3
            && is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512cd")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl");
        let levels = [(v4, X86Level::V4), (v3, X86Level::V3), (v2, X86Level::V2), (true, X86Level::V1)];
        levels.into_iter().find_map(|(has, level)| has.then_some(level))
    }
    #[cfg(not(target_arch = "x86_64"))]
    None
}

/// The components of a path, the last one first.
fn names(path: &Path) -> Vec<OsString> {
    let mut names: Vec<_> = path
        .components()
        .filter_map(|component| match component {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some("..".into()),
            _ => None,
        })
        .collect();
    names.reverse();
    names
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// Outside the image's root, these links would lead to files of this machine.
    #[test]
    fn links_stay_inside_the_image() {
        let image = tempfile::tempdir().unwrap();
        let root = image.path();
        fs::create_dir_all(root.join("usr/bin")).unwrap();
        fs::write(root.join("usr/bin/tool"), "inside").unwrap();
        symlink("usr/bin", root.join("bin")).unwrap();
        symlink("/usr/bin/tool", root.join("usr/bin/absolute")).unwrap();
        symlink("../../../../../../usr/bin/tool", root.join("usr/bin/upwards")).unwrap();
        symlink("loop", root.join("loop")).unwrap();
        let action = tempfile::tempdir().unwrap();
        fs::write(action.path().join("exec"), "action").unwrap();
        let target = TargetSystem::new(root, action.path(), &[]);
        for path in ["/bin/tool", "/bin/absolute", "/usr/bin/upwards", "/../bin/tool"] {
            let host = target.host(Path::new(path)).unwrap();
            assert_eq!(host, root.join("usr/bin/tool"), "{path}");
            assert_eq!(target.canonical(Path::new(path)).unwrap(), Path::new("/usr/bin/tool"), "{path}");
        }
        assert!(target.host(Path::new("/loop")).is_err());
        assert!(!target.host(Path::new("/etc/passwd")).unwrap().exists(), "it exists on this machine only");
        // The action's directory exists, by its absolute path and for relative paths.
        assert_eq!(fs::read_to_string(target.host(Path::new("exec")).unwrap()).unwrap(), "action");
        assert_eq!(target.inner(&root.join("bin/tool")), Path::new("/bin/tool"));
    }

    #[test]
    fn the_last_variable_of_a_name_counts() {
        let environment = [("PATH".into(), "/first".into()), ("PATH".into(), "/second::x".into())];
        let target = TargetSystem::new(Path::new("/"), Path::new("/action"), &environment);
        assert_eq!(target.path_directories(), [Path::new("/second"), Path::new("/action/"), Path::new("/action/x")]);
        assert_eq!(target.library_path, None);
    }
}
