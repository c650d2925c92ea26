//! What an inspection finds, with real broken things, and that it finds nothing wrong with what works.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use pipeloop::action::inspect::{World, inspect};

use crate::support::search_path;

/// This machine, with the environment that the tests give to actions.
fn here() -> World {
    World::new(Path::new("/"), Path::new("/"), &[("PATH".into(), search_path().into())])
}

/// Every executable in the folders where a machine has its programs.
fn executables() -> Vec<PathBuf> {
    let folders = ["/bin", "/usr/bin", "/usr/sbin", "/sbin", "/usr/local/bin", "/usr/local/sbin"];
    let mut found: Vec<_> = folders
        .iter()
        .filter_map(|folder| fs::read_dir(folder).ok())
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter_map(|path| {
            let metadata = fs::metadata(&path).ok()?;
            (metadata.is_file() && metadata.permissions().mode() & 0o111 != 0).then(|| path.canonicalize().ok())?
        })
        .collect();
    found.sort();
    found.dedup();
    assert!(found.len() > 100, "this machine has few programs: {found:?}");
    found
}

#[test]
fn no_program_of_this_machine_is_refused() {
    let world = here();
    let mut refused = Vec::new();
    for path in executables() {
        let inspection = inspect(&path, &world);
        refused.extend(inspection.fatal().map(|defect| format!("{}: {defect} [{}]", path.display(), defect.code())));
    }
    assert!(refused.is_empty(), "{}", refused.join("\n"));
}

/// What `ldd` says of many programs at once: for each the libraries with a path, by name.
fn ldd(programs: &[PathBuf]) -> BTreeMap<PathBuf, BTreeMap<String, PathBuf>> {
    let output = Command::new("ldd").args(programs).output().expect("ldd is a part of glibc");
    let text = String::from_utf8_lossy(&output.stdout);
    let mut all = BTreeMap::new();
    let mut current = None;
    for line in text.lines() {
        if let Some(program) = line.strip_suffix(':').filter(|line| !line.starts_with('\t')) {
            current = Some(PathBuf::from(program));
            all.insert(PathBuf::from(program), BTreeMap::new());
        } else if let Some((name, rest)) = line.trim().split_once(" => ")
            && let Some((path, _)) = rest.split_once(" (0x")
        {
            let libraries = all.get_mut(current.as_ref().expect("a program comes first")).expect("it was put there");
            libraries.insert(name.to_owned(), PathBuf::from(path));
        }
    }
    all
}

#[test]
fn the_libraries_found_are_those_that_the_loader_finds() {
    let world = here();
    let found: BTreeMap<PathBuf, BTreeMap<String, PathBuf>> = executables()
        .into_iter()
        .filter(|path| path.starts_with("/usr/bin"))
        .map(|path| (path.clone(), inspect(&path, &world)))
        .filter(|(_, inspection)| inspection.what.contains("(glibc)"))
        .map(|(path, inspection)| {
            let name = |name: &std::ffi::OsStr| name.to_string_lossy().into_owned();
            (path, inspection.libraries.iter().map(|library| (name(&library.name), library.path.clone())).collect())
        })
        .collect();
    assert!(found.len() > 50, "this machine has few dynamic programs: {:?}", found.keys());
    let programs: Vec<_> = found.keys().cloned().collect();
    let told = ldd(&programs);
    let mut compared = 0;
    for (program, libraries) in &found {
        let expected = &told[program];
        compared += expected.len();
        assert_eq!(libraries, expected, "{}: found (left) and what ldd says (right)", program.display());
    }
    assert!(compared > 200, "ldd is not read right: {told:?}");
}

/// An image that holds what one program needs, put together from what `ldd` says of it: the loader is
/// no link into the folder of the libraries there, and there is no cache that names that folder.
#[test]
fn a_program_that_was_copied_with_its_libraries_is_whole() {
    let image = tempfile::tempdir().expect("a folder of its own");
    let output = Command::new("ldd").arg("/bin/bash").output().expect("ldd is a part of glibc");
    let text = String::from_utf8_lossy(&output.stdout);
    let libraries = text.split_whitespace().filter(|word| word.starts_with('/'));
    for path in libraries.chain(["/bin/bash"]) {
        let copy = image.path().join(path.trim_start_matches('/'));
        fs::create_dir_all(copy.parent().expect("it has a folder")).expect("the folder is ours");
        fs::copy(path, copy).expect("there is room");
    }
    let world = World::new(image.path(), Path::new("/action"), &[]);
    let program = image.path().join("bin/bash");
    let inspection = inspect(&program, &world);
    let refused: Vec<_> = inspection.fatal().map(ToString::to_string).collect();
    assert!(refused.is_empty(), "{refused:?}");
    assert!(inspection.libraries.len() > 1, "{:?}", inspection.libraries);
    let library = inspection.libraries[0].path.strip_prefix("/").expect("an absolute path");
    fs::remove_file(image.path().join(library)).expect("it is there");
    assert_eq!(inspect(&program, &world).fatal().count(), 1, "and without one of them it is not");
}
