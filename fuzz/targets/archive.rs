//! Unpacking: bounded and contained, whatever the archive.

#![no_main]

use std::fs;
use std::path::Path;

use libfuzzer_sys::fuzz_target;
use pipeloop::artifact::unpack::{Bounds, unpack};
use pipeloop::error::ArchiveFormat;

const BOUNDS: Bounds = Bounds { bytes: 64 * 1024, entries: 64, halt: None };

fuzz_target!(|bytes: &[u8]| {
    let Some(format) = ArchiveFormat::of(bytes) else { return };
    let around = tempfile::tempdir().expect("a folder of its own");
    let canary = around.path().join("canary");
    fs::write(&canary, "alive").expect("the folder is ours");
    let into = around.path().join("into");
    fs::create_dir(&into).expect("the folder is ours");
    if let Ok(contents) = unpack(format, bytes, &into, &BOUNDS)
        && let Ok(exec) = contents.exec
    {
        assert!(exec.canonicalize().expect("it is there").starts_with(into.canonicalize().expect("it is ours")));
    }
    let mut names: Vec<_> = fs::read_dir(around.path())
        .expect("the folder is ours")
        .map(|entry| entry.expect("readable").file_name())
        .collect();
    names.sort();
    assert_eq!(names, ["canary", "into"], "written beside the action's folder");
    assert_eq!(fs::read(&canary).expect("it was ours"), b"alive");
    let (mut size, mut entries) = (0, 0);
    measure(&into, &into.canonicalize().expect("it is ours"), &mut size, &mut entries);
    assert!(size <= BOUNDS.bytes, "{size} bytes");
    // Folders that no entry names are made as well, a handful for each entry's path.
    assert!(entries <= BOUNDS.entries * 64, "{entries} entries");
});

/// Adds up what lies in a folder, and looks where its links lead.
fn measure(folder: &Path, root: &Path, size: &mut u64, entries: &mut usize) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        *entries += 1;
        let path = entry.path();
        let metadata = fs::symlink_metadata(&path).expect("it is there");
        if metadata.is_dir() {
            measure(&path, root, size, entries);
        } else if metadata.is_symlink() {
            if let Ok(target) = path.canonicalize() {
                assert!(target.starts_with(root), "{} leads to {}", path.display(), target.display());
            }
        } else {
            assert!(metadata.is_file(), "{} is no file", path.display());
            *size += metadata.len();
        }
    }
}
