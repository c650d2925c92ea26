//! The shared libraries that a loader would load, found as it finds them, and what it would miss.
//!
//! # Theory of operation
//! Libraries are asked for by name, in breadth: those of the program, then those of these. A name
//! that was found already is not looked for again. What differs is the order of the places.
//!
//! *glibc:* `DT_RPATH` of whoever asks, of whoever loaded that, and so on up to the program, unless
//! whoever asks has a `DT_RUNPATH`; then `LD_LIBRARY_PATH`; then the `DT_RUNPATH` of whoever asks;
//! `/etc/ld.so.cache`; the default folders. In each folder those below `glibc-hwcaps` for this
//! processor come first. A file for another machine is passed over, a damaged one is an error. Then
//! every version that somebody needs must be there.
//!
//! *musl:* `LD_LIBRARY_PATH`; `DT_RUNPATH` or else `DT_RPATH` of whoever asks and of whoever loaded
//! it; the folders in `/etc/ld-musl-ARCH.path`, or else the default ones. The C library under all its
//! names is the loader itself. The first file of the name is taken, whatever it is. Versions do not
//! count.
//!
//! Of another loader nothing is known, and nothing is said.
//!
//! Source: ld.so(8); glibc, `elf/dl-load.c`, `elf/dl-version.c`; musl, `ldso/dynlink.c`.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use super::elf::{Elf, Fault, Machine};
use super::ld_cache::Cache;
use super::target::{TargetSystem, x86_level};
use crate::error::{Defect, Libc, MissingLibrary};

/// A shared library that would be loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Library {
    /// The name by which it was asked for.
    pub name: OsString,
    /// Where it was found, as the loader names it.
    pub path: PathBuf,
}

/// What was found of a program's libraries.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) libraries: Vec<Library>,
    pub(super) defects: Vec<Defect>,
}

/// No program has so many; a file that lies could ask for ever.
const MAX_LIBRARIES: usize = 4096;

/// Looks for the loader of a program and for all that it would load. `path` is the program's, in the
/// target.
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
        // A loader of another C library may stand under the name of glibc's, to start what was
        // built for that. It does not look for libraries in the same way.
        Some(Libc::Glibc) if Libc::of_loader(Path::new(&soname)) == Some(Libc::Glibc) => {
            &Glibc::new(loader, program.machine, target)
        }
        Some(Libc::Musl) => &Musl::new(loader, target),
        _ => return found,
    };
    let mut search = Search { target, rules, objects: Vec::new(), known: HashMap::new() };
    // The loader is there already, under its own name.
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

/// Far above what a loader has.
const MAX_LOADER_BYTES: u64 = 8 << 20;

/// The places of the program and of the loader among the objects.
const PROGRAM: usize = 0;
const LOADER: usize = 1;

/// How a loader looks for a library.
trait Rules {
    /// Where a library of this name may be, in order.
    fn places(&self, name: &OsStr, by: usize, objects: &[Object]) -> Vec<PathBuf>;

    /// Whether the loader itself stands for a library of this name.
    fn is_loader(&self, name: &OsStr) -> bool;

    /// A path with its variables replaced; nothing when that cannot be done.
    fn expand(&self, path: &[u8], object: &Object) -> Option<PathBuf>;

    /// Whether a file for another machine is passed over.
    fn passes_over(&self) -> bool;

    /// Whether the versions of symbols count.
    fn has_versions(&self) -> bool;

    /// The folders that are searched for everybody, for the message.
    fn default_folders(&self) -> &[PathBuf];
}

/// The program, or a library that was found.
struct Object {
    path: PathBuf,
    /// Which object asked for it first.
    loaded_by: Option<usize>,
    elf: Elf,
}

impl Object {
    fn new(path: PathBuf, loaded_by: Option<usize>, elf: Elf) -> Self {
        Self { path, loaded_by, elf }
    }

    fn folder(&self) -> &Path {
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
    /// Which object stands for a name; none that is missing or damaged.
    known: HashMap<OsString, usize>,
}

/// What became of a name.
enum Place {
    Found(PathBuf, Box<Elf>),
    Missing { unfit: Option<PathBuf> },
    Bad { path: PathBuf, reason: String },
}

impl Search<'_> {
    fn run(&mut self, found: &mut Found) {
        let mut missing: Vec<MissingLibrary> = Vec::new();
        let mut next = 0;
        while next < self.objects.len() && self.objects.len() < MAX_LIBRARIES {
            for name in self.objects[next].elf.needed.clone() {
                if self.known.contains_key(&name)
                    || missing.iter().any(|missing| *missing.name == *name.to_string_lossy())
                {
                    continue;
                }
                if self.rules.is_loader(&name) {
                    self.known.insert(name, LOADER);
                    continue;
                }
                let needed_by = self.objects[next].name(next);
                match self.find(&name, next) {
                    Place::Found(path, elf) => self.add(name, path, *elf, next, found),
                    Place::Missing { unfit } => {
                        missing.push(MissingLibrary { name: name.to_string_lossy().into_owned(), needed_by, unfit });
                    }
                    Place::Bad { path, reason } => {
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
            let searched = self.rules.default_folders().to_vec();
            found.defects.insert(0, Defect::NoLibraries { missing, searched });
        }
        if self.rules.has_versions() {
            self.check_versions(found);
            self.check_levels(found);
        }
    }

    /// What the processor must have for the program or a library. glibc looks at it since 2.33, and a
    /// C library without this version does not.
    ///
    /// Source: glibc, `sysdeps/x86/dl-prop.h`, `dl_isa_level_check`.
    fn check_levels(&self, found: &mut Found) {
        let libc = self.known.get(OsStr::new("libc.so.6"));
        let looks = libc.is_some_and(|&at| self.objects[at].elf.versions.iter().any(|version| version == "GLIBC_2.33"));
        let Some(here) = self.target.x86_level.filter(|here| looks && *here > 0) else { return };
        for (index, object) in self.objects.iter().enumerate() {
            let needed = object.elf.x86_level;
            if needed > here {
                found.defects.push(Defect::OldProcessor { needed, here, needed_by: object.name(index) });
            }
        }
    }

    fn add(&mut self, name: OsString, path: PathBuf, elf: Elf, by: usize, found: &mut Found) {
        // Another name for what is there already.
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

    fn find(&self, name: &OsStr, by: usize) -> Place {
        let places = if name.as_bytes().contains(&b'/') {
            self.rules.expand(name.as_bytes(), &self.objects[by]).into_iter().collect()
        } else {
            self.rules.places(name, by, &self.objects)
        };
        let mut unfit = None;
        for place in places {
            let elf = self.target.host(&place).map_err(Fault::Unreadable).and_then(|host| Elf::open(&host));
            match elf {
                Ok(elf) if elf.machine == self.objects[PROGRAM].elf.machine => {
                    return Place::Found(place, Box::new(elf));
                }
                Ok(_) if self.rules.passes_over() => unfit = unfit.or(Some(place)),
                Ok(elf) => {
                    return Place::Bad { path: place, reason: format!("it is for {}", elf.machine.name()) };
                }
                Err(Fault::Unreadable(error))
                    if is_missing(&error) || error.kind() == io::ErrorKind::PermissionDenied => {}
                Err(fault) => return Place::Bad { path: place, reason: reason_of(&fault) },
            }
        }
        Place::Missing { unfit }
    }

    /// Every version that an object needs must be one of the library that it names, if that has
    /// versions at all.
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

/// glibc's rules.
struct Glibc<'a> {
    target: &'a TargetSystem,
    machine: Machine,
    cache: Cache,
    default_folders: Vec<PathBuf>,
    /// What `$LIB` stands for.
    lib: String,
    /// The folders of `glibc-hwcaps` that this processor can use, the best one first.
    hwcaps: Vec<&'static str>,
}

impl<'a> Glibc<'a> {
    fn new(loader: &Path, machine: Machine, target: &'a TargetSystem) -> Self {
        let cache =
            target.host(Path::new("/etc/ld.so.cache")).map_or_else(|_| Cache::default(), |path| Cache::read(&path));
        // The default folders are built into the loader. They follow from where it lies: Debian and
        // its kin have a folder for each architecture, the others `lib64` or plain `lib`.
        let canonical = target.canonical(loader).unwrap_or_else(|_| loader.to_owned());
        let own = canonical.parent().unwrap_or(Path::new("/lib")).to_owned();
        let own_name = own.file_name().unwrap_or_default().to_string_lossy().into_owned();
        // Debian's loader may have been copied alone, as into an image that holds what one program
        // needs; it looks where it looked before.
        let built_in = || {
            let mut bytes = Vec::new();
            let file = fs::File::open(target.host(&canonical).ok()?).ok()?;
            io::Read::read_to_end(&mut io::Read::take(file, MAX_LOADER_BYTES), &mut bytes).ok()?;
            folder_of_architecture(&bytes)
        };
        let own_name = if own_name.contains("-linux-") { own_name } else { built_in().unwrap_or(own_name) };
        let folders = |names: &[&str]| names.iter().map(PathBuf::from).collect::<Vec<_>>();
        let (lib, default_folders) = if own_name.contains("-linux-") {
            let lib = format!("lib/{own_name}");
            let of = |prefix: &str| format!("{prefix}/{lib}");
            (lib.clone(), folders(&[&of(""), &of("/usr"), "/lib", "/usr/lib"]))
        } else if own.starts_with("/lib")
            || own.starts_with("/usr/lib")
            || own.starts_with("/lib64")
            || own.starts_with("/usr/lib64")
        {
            let lib = if own_name == "lib64" { "lib64" } else { "lib" };
            (lib.to_owned(), folders(&["/lib64", "/usr/lib64", "/lib", "/usr/lib"]))
        } else {
            // A C library with a place of its own, such as Nix's.
            ("lib".to_owned(), vec![own])
        };
        Self { target, machine, cache, default_folders, lib, hwcaps: hwcaps(machine) }
    }

    /// The files that a library may be in one folder.
    fn in_folder(&self, folder: &Path, name: &OsStr, places: &mut Vec<PathBuf>) {
        let hwcaps = folder.join("glibc-hwcaps");
        if self.target.metadata(&hwcaps).is_ok() {
            places.extend(self.hwcaps.iter().map(|level| hwcaps.join(level).join(name)));
        }
        places.push(folder.join(name));
    }

    fn in_folders(&self, list: &[u8], separators: &[u8], object: &Object, name: &OsStr, places: &mut Vec<PathBuf>) {
        for folder in list.split(|byte| separators.contains(byte)) {
            // An empty folder is the one that the action is started in.
            let folder =
                if folder.is_empty() { Some(self.target.directory.clone()) } else { self.expand(folder, object) };
            if let Some(folder) = folder {
                self.in_folder(&folder, name, places);
            }
        }
    }

    /// What stands in the cache for libraries of this machine.
    ///
    /// Source: glibc, `_DL_CACHE_DEFAULT_ID` of each architecture. Those with several ABIs of the
    /// same machine are told apart when the file is opened.
    fn cache_flags(&self) -> Option<u32> {
        match (self.machine.number, self.machine.class) {
            (62, 2) => Some(0x0303),
            (62, 1) => Some(0x0803),
            (3, _) => Some(0x0003),
            (183, 2) => Some(0x0a03),
            _ => None,
        }
    }
}

impl Rules for Glibc<'_> {
    fn places(&self, name: &OsStr, by: usize, objects: &[Object]) -> Vec<PathBuf> {
        let mut places = Vec::new();
        let asking = &objects[by];
        if asking.elf.runpath.is_none() {
            let mut seen_program = false;
            let mut next = Some(by);
            while let Some(index) = next {
                let object = &objects[index];
                seen_program |= index == PROGRAM;
                // The old form is not read where the new one stands beside it.
                if let (Some(rpath), None) = (&object.elf.rpath, &object.elf.runpath) {
                    self.in_folders(rpath, b":", object, name, &mut places);
                }
                next = object.loaded_by;
            }
            if !seen_program && let (Some(rpath), None) = (&objects[PROGRAM].elf.rpath, &objects[PROGRAM].elf.runpath) {
                self.in_folders(rpath, b":", &objects[PROGRAM], name, &mut places);
            }
        }
        if let Some(list) = self.target.library_path.as_deref().filter(|list| !list.is_empty()) {
            self.in_folders(list.as_bytes(), b":;", &objects[PROGRAM], name, &mut places);
        }
        if let Some(runpath) = &asking.elf.runpath {
            self.in_folders(runpath, b":", asking, name, &mut places);
        }
        let excludes_default = asking.elf.excludes_default_folders();
        let rank = |folder: &str| self.hwcaps.iter().position(|known| *known == folder);
        if let Some(path) = self.cache.find(name.as_bytes(), self.cache_flags(), rank)
            && !(excludes_default && self.default_folders.iter().any(|folder| path.starts_with(folder)))
        {
            places.push(path);
        }
        if !excludes_default {
            for folder in &self.default_folders {
                self.in_folder(folder, name, &mut places);
            }
        }
        places
    }

    fn is_loader(&self, _name: &OsStr) -> bool {
        false
    }

    fn expand(&self, path: &[u8], object: &Object) -> Option<PathBuf> {
        let platform = match self.machine.number {
            3 => "i686",
            62 => "x86_64",
            183 => "aarch64",
            _ => "",
        };
        let variables: [(&[u8], &[u8]); 3] = [
            (b"ORIGIN", object.folder().as_os_str().as_bytes()),
            (b"LIB", self.lib.as_bytes()),
            (b"PLATFORM", platform.as_bytes()),
        ];
        Some(OsString::from_vec(substitute(path, &variables)).into())
    }

    fn passes_over(&self) -> bool {
        true
    }

    fn has_versions(&self) -> bool {
        true
    }

    fn default_folders(&self) -> &[PathBuf] {
        &self.default_folders
    }
}

/// The folders of `glibc-hwcaps` for this processor, the best one first.
///
/// Source: the x86-64 psABI, "Micro-Architecture Levels"; glibc, `dl-hwcaps_subdirs.c`.
fn hwcaps(machine: Machine) -> Vec<&'static str> {
    let levels = ["x86-64-v4", "x86-64-v3", "x86-64-v2"];
    let has = if machine.number == 62 { usize::from(x86_level().saturating_sub(1)) } else { 0 };
    levels[levels.len() - has..].to_vec()
}

/// musl's rules.
struct Musl<'a> {
    target: &'a TargetSystem,
    folders: Vec<PathBuf>,
}

/// Far above what such a file has.
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
        let folders = list
            .split(|byte| matches!(byte, b':' | b'\n'))
            .filter(|folder| !folder.is_empty())
            .map(|folder| PathBuf::from(OsStr::from_bytes(folder)))
            .collect();
        Self { target, folders }
    }
}

impl Rules for Musl<'_> {
    fn places(&self, name: &OsStr, by: usize, objects: &[Object]) -> Vec<PathBuf> {
        let mut folders = Vec::new();
        let split = |list: &[u8]| -> Vec<PathBuf> {
            list.split(|byte| matches!(byte, b':' | b'\n'))
                .map(|folder| PathBuf::from(OsStr::from_bytes(folder)))
                .collect()
        };
        if let Some(list) = &self.target.library_path {
            folders.extend(split(list.as_bytes()));
        }
        let mut next = Some(by);
        while let Some(index) = next {
            let object = &objects[index];
            if let Some(list) = object.elf.runpath.as_ref().or(object.elf.rpath.as_ref())
                && let Some(list) = self.expand(list, object)
            {
                folders.extend(split(list.as_os_str().as_bytes()));
            }
            next = object.loaded_by;
        }
        folders.extend(self.folders.iter().cloned());
        folders.into_iter().filter(|folder| !folder.as_os_str().is_empty()).map(|folder| folder.join(name)).collect()
    }

    fn is_loader(&self, name: &OsStr) -> bool {
        let Some(rest) = name.as_bytes().strip_prefix(b"lib") else { return false };
        ["c.", "pthread.", "rt.", "m.", "dl.", "util.", "xnet."].iter().any(|part| rest.starts_with(part.as_bytes()))
    }

    fn expand(&self, path: &[u8], object: &Object) -> Option<PathBuf> {
        let expanded = substitute(path, &[(b"ORIGIN", object.folder().as_os_str().as_bytes())]);
        // A path with another variable is not used at all.
        (!expanded.contains(&b'$')).then(|| OsString::from_vec(expanded).into())
    }

    fn passes_over(&self) -> bool {
        false
    }

    fn has_versions(&self) -> bool {
        false
    }

    fn default_folders(&self) -> &[PathBuf] {
        &self.folders
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
            // `$LIBRARY` is no `$LIB`.
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

/// The name in `/lib/x86_64-linux-gnu/`, one of the folders that are built into Debian's loaders.
fn folder_of_architecture(loader: &[u8]) -> Option<String> {
    let names = memchr::memmem::find_iter(loader, b"/lib/").filter_map(|at| {
        let rest = &loader[at + b"/lib/".len()..];
        std::str::from_utf8(&rest[..memchr::memchr(b'/', &rest[..rest.len().min(64)])?]).ok()
    });
    let is_name = |name: &&str| name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
    names.filter(is_name).find(|name| name.contains("-linux-")).map(str::to_owned)
}

/// The C library that an image has, by its loaders: the wanted one, if it has that among others.
fn libc_of(target: &TargetSystem, wanted: Option<Libc>) -> Option<Libc> {
    let found: Vec<_> = ["/lib", "/lib64", "/usr/lib", "/usr/lib64"]
        .iter()
        .filter_map(|folder| fs::read_dir(target.host(Path::new(folder)).ok()?).ok())
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
