//! Finds the shared libraries that a loader would load, in the same way, and reports those that are missing.
//!
//! # Theory of operation
//! Libraries are searched breadth-first by name: those of the program, then those of its libraries. A name that was
//! found is not searched again. The C libraries differ in the order of the directories.
//!
//! *glibc:* `DT_RPATH` of the object that needs the library, then of the object that loaded that one, up to the program,
//! unless the needing object has a `DT_RUNPATH`; `LD_LIBRARY_PATH`; the `DT_RUNPATH` of the needing object;
//! `/etc/ld.so.cache`; the default directories. In each directory, those below `glibc-hwcaps` for this processor come
//! first. A file for another machine is skipped, a damaged one is an error. At the end, every version that an object
//! needs must exist.
//!
//! *musl:* `LD_LIBRARY_PATH`; `DT_RUNPATH` or else `DT_RPATH` of the needing object and of the objects that loaded it;
//! the directories in `/etc/ld-musl-ARCH.path`, or else the default ones. The C library, under all its names, is the
//! loader itself. The first file of the name is used, whatever it contains. Versions are not checked.
//!
//! For any other loader the module reports nothing.
//!
//! Source: ld.so(8); glibc, `elf/dl-load.c`, `elf/dl-version.c`; musl, `ldso/dynlink.c`.

use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use object::elf as abi;

use super::elf::{Class, Elf, Fault, Machine};
use super::ld_cache::Cache;
use super::target::{TargetSystem, x86_level};
use crate::error::{Defect, Libc, MissingLibrary, X86Level};

/// A shared library that would be loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Library {
    /// The name that an object needs.
    pub name: OsString,
    /// Its path on the target system.
    pub path: PathBuf,
}

/// The libraries of a program, and their defects.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) libraries: Vec<Library>,
    pub(super) defects: Vec<Defect>,
}

/// Far more than any program has. It bounds the search for hostile files.
const MAX_LIBRARIES: usize = 4096;

/// Finds the loader of a program and all libraries that it would load. `path` is the program's path on the target system.
pub(super) fn inspect(path: &Path, program: Elf, loader: &Path, target: &TargetSystem) -> Found {
    let mut found = Found::default();
    let needs = Libc::of_loader(loader);
    let loader_elf = match target.host(loader).map_err(Fault::Unreadable).and_then(|host| {
        require_executable(&host)?;
        Elf::open(&host)
    }) {
        Ok(elf) if elf.machine == program.machine => elf,
        Ok(elf) => {
            let reason = format!("it is for {}, the program for {}", elf.machine.name(), program.machine.name());
            found.defects.push(Defect::BadLoader { loader: loader.to_owned(), reason });
            return found;
        }
        Err(Fault::Unreadable(error)) if is_missing(&error) => {
            let here = libc_of(target, needs);
            found.defects.push(Defect::NoLoader { loader: loader.to_owned(), needs, here });
            return found;
        }
        Err(fault) => {
            found.defects.push(Defect::BadLoader { loader: loader.to_owned(), reason: reason_of(&fault) });
            return found;
        }
    };
    let soname = loader_elf.soname.clone().unwrap_or_default();
    let rules: &dyn Rules = match needs {
        // A loader of another C library may have the name of glibc's, to start programs that are built for glibc. It
        // has its own rules.
        Some(Libc::Glibc) if Libc::of_loader(Path::new(&soname)) == Some(Libc::Glibc) => {
            &Glibc::new(loader, program.machine, target)
        }
        Some(Libc::Musl) => &Musl::new(loader, target),
        _ => return found,
    };
    let mut search = Search { target, rules, objects: Vec::new(), known: HashMap::new() };
    // The loader is already in memory, under its own name.
    let known = loader.file_name().map(OsStr::to_owned);
    let mut of_loader = Object::new(loader.to_owned(), None, loader_elf);
    of_loader.elf.needed.clear();
    let program_path = target.canonical(path).unwrap_or_else(|_| path.to_owned());
    search.objects.push(Object::new(program_path, None, program));
    search.objects.push(of_loader);
    search.known.extend([soname, known.unwrap_or_default(), loader.as_os_str().to_owned()].map(|name| (name, LOADER)));
    search.run(&mut found);
    found
}

/// Far more than a loader has.
const MAX_LOADER_BYTES: u64 = 8 << 20;

/// The indices of the program and of the loader among the objects.
const PROGRAM: usize = 0;
const LOADER: usize = 1;

/// How a loader finds a library.
trait Rules {
    /// The paths where a library of this name may be, in order.
    fn candidates(&self, name: &OsStr, by: usize, objects: &[Object]) -> Vec<PathBuf>;

    /// Whether the loader itself provides the library of this name.
    fn is_loader(&self, name: &OsStr) -> bool;

    /// A path with its variables replaced; `None` if the loader ignores the path.
    fn expand(&self, path: &[u8], object: &Object) -> Option<PathBuf>;

    /// Whether a file for another machine is skipped.
    fn skips_other_machines(&self) -> bool;

    /// Whether the loader checks the versions of symbols.
    fn checks_versions(&self) -> bool;

    /// The default directories, for the message.
    fn default_directories(&self) -> &[PathBuf];
}

/// The program, or a library that was found.
struct Object {
    path: PathBuf,
    /// The object that needed it first.
    loaded_by: Option<usize>,
    elf: Elf,
}

impl Object {
    fn new(path: PathBuf, loaded_by: Option<usize>, elf: Elf) -> Self {
        Self { path, loaded_by, elf }
    }

    fn directory(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new("/"))
    }

    /// Its name in messages, unless it is the program.
    fn name(&self, index: usize) -> Option<String> {
        (index != PROGRAM).then(|| self.path.file_name().unwrap_or_default().to_string_lossy().into_owned())
    }
}

struct Search<'a> {
    target: &'a TargetSystem,
    rules: &'a dyn Rules,
    objects: Vec<Object>,
    /// The object for each name, without missing and damaged ones.
    known: HashMap<OsString, usize>,
}

/// The result of the search for a name.
enum Lookup {
    Found(PathBuf, Box<Elf>),
    Missing { unfit: Option<PathBuf> },
    Bad { path: PathBuf, reason: String },
}

impl Search<'_> {
    fn run(&mut self, found: &mut Found) {
        let mut missing: Vec<MissingLibrary> = Vec::new();
        let mut missing_names: HashSet<String> = HashSet::new();
        let mut next = 0;
        while next < self.objects.len() && self.objects.len() < MAX_LIBRARIES {
            for name in self.objects[next].elf.needed.clone() {
                if self.known.contains_key(&name) || missing_names.contains(&*name.to_string_lossy()) {
                    continue;
                }
                if self.rules.is_loader(&name) {
                    self.known.insert(name, LOADER);
                    continue;
                }
                let needed_by = self.objects[next].name(next);
                match self.find(&name, next) {
                    Lookup::Found(path, elf) => self.add(name, path, *elf, next, found),
                    Lookup::Missing { unfit } => {
                        let name = name.to_string_lossy().into_owned();
                        missing_names.insert(name.clone());
                        missing.push(MissingLibrary { name, needed_by, unfit });
                    }
                    Lookup::Bad { path, reason } => {
                        let defect = Defect::BadLibrary { path, needed_by, reason };
                        if !found.defects.contains(&defect) {
                            found.defects.push(defect);
                        }
                    }
                }
            }
            next += 1;
        }
        if !missing.is_empty() {
            let searched = self.rules.default_directories().to_vec();
            found.defects.insert(0, Defect::NoLibraries { missing, searched });
        }
        if self.rules.checks_versions() {
            self.check_versions(found);
            self.check_levels(found);
        }
    }

    /// Checks that the processor has the level that the program and each library require. glibc checks it since 2.33.
    ///
    /// Source: glibc, `sysdeps/x86/dl-prop.h`, `dl_isa_level_check`.
    fn check_levels(&self, found: &mut Found) {
        let libc = self.known.get(OsStr::new("libc.so.6"));
        let checks =
            libc.is_some_and(|&at| self.objects[at].elf.versions.iter().any(|version| version == "GLIBC_2.33"));
        let Some(here) = self.target.x86_level.filter(|_| checks) else { return };
        for (index, object) in self.objects.iter().enumerate() {
            if let Some(needed) = object.elf.x86_level.filter(|needed| *needed > here) {
                found.defects.push(Defect::OldProcessor { needed, here, needed_by: object.name(index) });
            }
        }
    }

    fn add(&mut self, name: OsString, path: PathBuf, elf: Elf, by: usize, found: &mut Found) {
        // The same file may have been found under another name.
        let same = self.objects.iter().position(|object| object.path == path);
        let index = same.unwrap_or(self.objects.len());
        if same.is_none() {
            found.libraries.push(Library { name: name.clone(), path: path.clone() });
            if let Some(soname) = elf.soname.clone() {
                self.known.entry(soname).or_insert(index);
            }
            self.objects.push(Object::new(path, Some(by), elf));
        }
        self.known.insert(name, index);
    }

    fn find(&self, name: &OsStr, by: usize) -> Lookup {
        let candidates = if name.as_bytes().contains(&b'/') {
            self.rules.expand(name.as_bytes(), &self.objects[by]).into_iter().collect()
        } else {
            self.rules.candidates(name, by, &self.objects)
        };
        let mut unfit = None;
        for path in candidates {
            let elf = self.target.host(&path).map_err(Fault::Unreadable).and_then(|host| Elf::open(&host));
            match elf {
                Ok(elf) if elf.machine == self.objects[PROGRAM].elf.machine => {
                    return Lookup::Found(path, Box::new(elf));
                }
                Ok(_) if self.rules.skips_other_machines() => unfit = unfit.or(Some(path)),
                Ok(elf) => {
                    return Lookup::Bad { path, reason: format!("it is for {}", elf.machine.name()) };
                }
                Err(Fault::Unreadable(error))
                    if is_missing(&error) || error.kind() == io::ErrorKind::PermissionDenied => {}
                Err(fault) => return Lookup::Bad { path, reason: reason_of(&fault) },
            }
        }
        Lookup::Missing { unfit }
    }

    /// Checks that each library has the versions that objects need of it, if it has versions at all.
    fn check_versions(&self, found: &mut Found) {
        for (index, object) in self.objects.iter().enumerate() {
            let mut by_library: Vec<(&OsString, Vec<String>)> = Vec::new();
            for (library, version) in &object.elf.versions_needed {
                let Some(&at) = self.known.get(library) else { continue };
                let has = &self.objects[at].elf.versions;
                if has.is_empty() || has.contains(version) {
                    continue;
                }
                match by_library.iter_mut().find(|(name, _)| *name == library) {
                    Some((_, versions)) => versions.push(version.clone()),
                    None => by_library.push((library, vec![version.clone()])),
                }
            }
            for (library, missing) in by_library {
                let provider = &self.objects[self.known[library]];
                let newest = newest_like(&missing[0], &provider.elf.versions);
                found.defects.push(Defect::NoVersions {
                    library: library.to_string_lossy().into_owned(),
                    path: provider.path.clone(),
                    missing,
                    needed_by: object.name(index),
                    newest,
                });
            }
        }
    }
}

/// The highest version of the same family: `GLIBC_2.36` for `GLIBC_2.38`.
fn newest_like(version: &str, versions: &[String]) -> Option<String> {
    let family = version.split_once(|letter: char| letter.is_ascii_digit())?.0;
    let numbers = |version: &str| -> Option<Vec<u32>> {
        version.strip_prefix(family)?.split('.').map(|number| number.parse().ok()).collect()
    };
    versions.iter().filter_map(|version| Some((numbers(version)?, version))).max().map(|(_, version)| version.clone())
}

/// The rules of glibc.
struct Glibc<'a> {
    target: &'a TargetSystem,
    machine: Machine,
    cache: Cache,
    default_directories: Vec<PathBuf>,
    /// The value of `$LIB`.
    lib: String,
    /// The directories of `glibc-hwcaps` that this processor can use, the best one first.
    hwcaps: Vec<&'static str>,
}

impl<'a> Glibc<'a> {
    fn new(loader: &Path, machine: Machine, target: &'a TargetSystem) -> Self {
        let cache =
            target.host(Path::new("/etc/ld.so.cache")).map_or_else(|_| Cache::default(), |path| Cache::read(&path));
        // The default directories are built into the loader, and follow from its own directory: Debian and its
        // derivatives have a directory for each architecture, other distributions `lib64` or just `lib`.
        let canonical = target.canonical(loader).unwrap_or_else(|_| loader.to_owned());
        let own = canonical.parent().unwrap_or(Path::new("/lib")).to_owned();
        let own_name = own.file_name().unwrap_or_default().to_string_lossy().into_owned();
        // Debian's loader may have been copied alone, as into an image for a single program. Its default directories
        // stay the same.
        let built_in = || {
            let mut bytes = Vec::new();
            let file = fs::File::open(target.host(&canonical).ok()?).ok()?;
            io::Read::read_to_end(&mut io::Read::take(file, MAX_LOADER_BYTES), &mut bytes).ok()?;
            architecture_directory(&bytes)
        };
        let own_name = if own_name.contains("-linux-") { own_name } else { built_in().unwrap_or(own_name) };
        let directories = |names: &[&str]| names.iter().map(PathBuf::from).collect::<Vec<_>>();
        let (lib, default_directories) = if own_name.contains("-linux-") {
            let lib = format!("lib/{own_name}");
            let of = |prefix: &str| format!("{prefix}/{lib}");
            (lib.clone(), directories(&[&of(""), &of("/usr"), "/lib", "/usr/lib"]))
        } else if own.starts_with("/lib")
            || own.starts_with("/usr/lib")
            || own.starts_with("/lib64")
            || own.starts_with("/usr/lib64")
        {
            let lib = if own_name == "lib64" { "lib64" } else { "lib" };
            (lib.to_owned(), directories(&["/lib64", "/usr/lib64", "/lib", "/usr/lib"]))
        } else {
            // A C library in a directory of its own, such as Nix's.
            ("lib".to_owned(), vec![own])
        };
        Self { target, machine, cache, default_directories, lib, hwcaps: hwcaps(machine) }
    }

    /// Adds the paths that a library may have in one directory.
    fn add_directory(&self, directory: &Path, name: &OsStr, candidates: &mut Vec<PathBuf>) {
        let hwcaps = directory.join("glibc-hwcaps");
        if self.target.metadata(&hwcaps).is_ok() {
            candidates.extend(self.hwcaps.iter().map(|level| hwcaps.join(level).join(name)));
        }
        candidates.push(directory.join(name));
    }

    fn add_search_path(
        &self,
        list: &[u8],
        separators: &[u8],
        object: &Object,
        name: &OsStr,
        candidates: &mut Vec<PathBuf>,
    ) {
        for directory in list.split(|byte| separators.contains(byte)) {
            // An empty name is the directory in which the action starts.
            let directory =
                if directory.is_empty() { Some(self.target.directory.clone()) } else { self.expand(directory, object) };
            if let Some(directory) = directory {
                self.add_directory(&directory, name, candidates);
            }
        }
    }

    /// The flags of cache entries for libraries of this machine.
    ///
    /// Source: glibc, `_DL_CACHE_DEFAULT_ID` of each architecture. For a machine with several ABIs, any entry counts: the
    /// file itself shows its ABI.
    fn cache_flags(&self) -> Option<u32> {
        match (abi::Machine(self.machine.number), self.machine.class) {
            (abi::EM_X86_64, Class::Bits64) => Some(0x0303),
            (abi::EM_X86_64, Class::Bits32) => Some(0x0803),
            (abi::EM_386, _) => Some(0x0003),
            (abi::EM_AARCH64, Class::Bits64) => Some(0x0a03),
            _ => None,
        }
    }
}

impl Rules for Glibc<'_> {
    fn candidates(&self, name: &OsStr, by: usize, objects: &[Object]) -> Vec<PathBuf> {
        let mut candidates = Vec::new();
        let asking = &objects[by];
        if asking.elf.runpath.is_none() {
            let mut seen_program = false;
            let mut next = Some(by);
            while let Some(index) = next {
                let object = &objects[index];
                seen_program |= index == PROGRAM;
                // An object with the new form ignores its old one.
                if let (Some(rpath), None) = (&object.elf.rpath, &object.elf.runpath) {
                    self.add_search_path(rpath, b":", object, name, &mut candidates);
                }
                next = object.loaded_by;
            }
            if !seen_program && let (Some(rpath), None) = (&objects[PROGRAM].elf.rpath, &objects[PROGRAM].elf.runpath) {
                self.add_search_path(rpath, b":", &objects[PROGRAM], name, &mut candidates);
            }
        }
        if let Some(list) = self.target.library_path.as_deref().filter(|list| !list.is_empty()) {
            self.add_search_path(list.as_bytes(), b":;", &objects[PROGRAM], name, &mut candidates);
        }
        if let Some(runpath) = &asking.elf.runpath {
            self.add_search_path(runpath, b":", asking, name, &mut candidates);
        }
        let excludes_default = asking.elf.excludes_default_directories();
        let rank = |directory: &str| self.hwcaps.iter().position(|known| *known == directory);
        if let Some(path) = self.cache.find(name.as_bytes(), self.cache_flags(), rank)
            && !(excludes_default && self.default_directories.iter().any(|directory| path.starts_with(directory)))
        {
            candidates.push(path);
        }
        if !excludes_default {
            for directory in &self.default_directories {
                self.add_directory(directory, name, &mut candidates);
            }
        }
        candidates
    }

    fn is_loader(&self, _name: &OsStr) -> bool {
        false
    }

    fn expand(&self, path: &[u8], object: &Object) -> Option<PathBuf> {
        let platform = match abi::Machine(self.machine.number) {
            abi::EM_386 => "i686",
            abi::EM_X86_64 => "x86_64",
            abi::EM_AARCH64 => "aarch64",
            _ => "",
        };
        let variables: [(&[u8], &[u8]); 3] = [
            (b"ORIGIN", object.directory().as_os_str().as_bytes()),
            (b"LIB", self.lib.as_bytes()),
            (b"PLATFORM", platform.as_bytes()),
        ];
        Some(OsString::from_vec(substitute(path, &variables)).into())
    }

    fn skips_other_machines(&self) -> bool {
        true
    }

    fn checks_versions(&self) -> bool {
        true
    }

    fn default_directories(&self) -> &[PathBuf] {
        &self.default_directories
    }
}

/// The directories of `glibc-hwcaps` for this processor, the best one first.
///
/// Source: the x86-64 psABI, "Micro-Architecture Levels"; glibc, `dl-hwcaps_subdirs.c`.
fn hwcaps(machine: Machine) -> Vec<&'static str> {
    let levels = [(X86Level::V4, "x86-64-v4"), (X86Level::V3, "x86-64-v3"), (X86Level::V2, "x86-64-v2")];
    let here = x86_level().filter(|_| machine.number == abi::EM_X86_64.0);
    levels.into_iter().filter(|(level, _)| here.is_some_and(|here| *level <= here)).map(|(_, name)| name).collect()
}

/// The rules of musl.
struct Musl<'a> {
    target: &'a TargetSystem,
    directories: Vec<PathBuf>,
}

/// Far more than such a file has.
const MAX_PATH_BYTES: u64 = 1 << 20;

impl<'a> Musl<'a> {
    fn new(loader: &Path, target: &'a TargetSystem) -> Self {
        // `/lib/ld-musl-x86_64.so.1` has its list in `/etc/ld-musl-x86_64.path`.
        let name = loader.file_name().unwrap_or_default().to_string_lossy();
        let list = format!("{}.path", name.split(".so").next().unwrap_or_default());
        let prefix = loader.parent().and_then(Path::parent).unwrap_or(Path::new("/"));
        let list = target.host(&prefix.join("etc").join(list)).and_then(|path| {
            let mut list = Vec::new();
            io::Read::read_to_end(&mut io::Read::take(fs::File::open(path)?, MAX_PATH_BYTES), &mut list)?;
            Ok(list)
        });
        let list = list.unwrap_or_else(|_| b"/lib:/usr/local/lib:/usr/lib".to_vec());
        let directories = list
            .split(|byte| matches!(byte, b':' | b'\n'))
            .filter(|directory| !directory.is_empty())
            .map(|directory| PathBuf::from(OsStr::from_bytes(directory)))
            .collect();
        Self { target, directories }
    }
}

impl Rules for Musl<'_> {
    fn candidates(&self, name: &OsStr, by: usize, objects: &[Object]) -> Vec<PathBuf> {
        let mut directories = Vec::new();
        let split = |list: &[u8]| -> Vec<PathBuf> {
            list.split(|byte| matches!(byte, b':' | b'\n'))
                .map(|directory| PathBuf::from(OsStr::from_bytes(directory)))
                .collect()
        };
        if let Some(list) = &self.target.library_path {
            directories.extend(split(list.as_bytes()));
        }
        let mut next = Some(by);
        while let Some(index) = next {
            let object = &objects[index];
            if let Some(list) = object.elf.runpath.as_ref().or(object.elf.rpath.as_ref())
                && let Some(list) = self.expand(list, object)
            {
                directories.extend(split(list.as_os_str().as_bytes()));
            }
            next = object.loaded_by;
        }
        directories.extend(self.directories.iter().cloned());
        directories
            .into_iter()
            .filter(|directory| !directory.as_os_str().is_empty())
            .map(|directory| directory.join(name))
            .collect()
    }

    fn is_loader(&self, name: &OsStr) -> bool {
        let Some(rest) = name.as_bytes().strip_prefix(b"lib") else { return false };
        ["c.", "pthread.", "rt.", "m.", "dl.", "util.", "xnet."].iter().any(|part| rest.starts_with(part.as_bytes()))
    }

    fn expand(&self, path: &[u8], object: &Object) -> Option<PathBuf> {
        let expanded = substitute(path, &[(b"ORIGIN", object.directory().as_os_str().as_bytes())]);
        // The loader ignores a path with any other variable.
        (!expanded.contains(&b'$')).then(|| OsString::from_vec(expanded).into())
    }

    fn skips_other_machines(&self) -> bool {
        false
    }

    fn checks_versions(&self) -> bool {
        false
    }

    fn default_directories(&self) -> &[PathBuf] {
        &self.directories
    }
}

/// Replaces `$NAME` and `${NAME}`.
fn substitute(path: &[u8], variables: &[(&[u8], &[u8])]) -> Vec<u8> {
    let mut result = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some(at) = memchr::memchr(b'$', rest) {
        result.extend_from_slice(&rest[..at]);
        rest = &rest[at..];
        let replaced = variables.iter().find_map(|(name, value)| {
            if let Some(inner) = rest.strip_prefix(b"${") {
                return Some((value, inner.strip_prefix(*name)?.strip_prefix(b"}")?));
            }
            let after = rest[1..].strip_prefix(*name)?;
            // `$LIBRARY` is not `$LIB`.
            let ends = after.first().is_none_or(|next| !next.is_ascii_alphanumeric() && *next != b'_');
            ends.then_some((value, after))
        });
        if let Some((value, after)) = replaced {
            result.extend_from_slice(value);
            rest = after;
        } else {
            result.push(b'$');
            rest = &rest[1..];
        }
    }
    result.extend_from_slice(rest);
    result
}

/// The name in `/lib/x86_64-linux-gnu/`, one of the default directories that are built into Debian's loaders.
fn architecture_directory(loader: &[u8]) -> Option<String> {
    let names = memchr::memmem::find_iter(loader, b"/lib/").filter_map(|at| {
        let rest = &loader[at + b"/lib/".len()..];
        std::str::from_utf8(&rest[..memchr::memchr(b'/', &rest[..rest.len().min(64)])?]).ok()
    });
    let is_name = |name: &&str| name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
    names.filter(is_name).find(|name| name.contains("-linux-")).map(str::to_owned)
}

/// The C library of an image, by its loaders: the wanted one, if the image has several.
fn libc_of(target: &TargetSystem, wanted: Option<Libc>) -> Option<Libc> {
    let found: Vec<_> = ["/lib", "/lib64", "/usr/lib", "/usr/lib64"]
        .iter()
        .filter_map(|directory| fs::read_dir(target.host(Path::new(directory)).ok()?).ok())
        .flatten()
        .flatten()
        .filter_map(|entry| Libc::of_loader(Path::new(&entry.file_name())))
        .collect();
    wanted.filter(|wanted| found.contains(wanted)).or_else(|| found.first().copied())
}

fn require_executable(host: &Path) -> Result<(), Fault> {
    use std::os::unix::fs::PermissionsExt;

    let metadata = fs::metadata(host).map_err(Fault::Unreadable)?;
    if metadata.is_file() && metadata.permissions().mode() & 0o111 == 0 {
        return Err(Fault::Damaged("it is not executable".into()));
    }
    Ok(())
}

fn is_missing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

fn reason_of(fault: &Fault) -> String {
    match fault {
        Fault::NotElf => "it is no ELF file".into(),
        Fault::Damaged(reason) => reason.clone(),
        Fault::Unreadable(error) => error.to_string(),
    }
}
