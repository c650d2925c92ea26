//! Unpacking: no archive exceeds the bounds or writes outside the directory.

#![no_main]

use std::fs;
use std::path::Path;

use libfuzzer_sys::fuzz_target;
use pipeloop::artifact::unpack::{Bounds, unpack};
use pipeloop::error::ArchiveFormat;

const BOUNDS: Bounds = Bounds { bytes: 64 * 1024, entries: 64, halt: None };

fuzz_target!(|bytes: &[u8]| {
    let Some(format) = ArchiveFormat::of(bytes) else { return };
    let around = tempfile::tempdir().expect("a temporary directory");
    let canary = around.path().join("canary");
    fs::write(&canary, "alive").expect("the directory can be written");
    let into = around.path().join("into");
    fs::create_dir(&into).expect("the directory can be written");
    if let Ok(contents) = unpack(format, bytes, &into, &BOUNDS)
        && let Ok(exec) = contents.exec
    {
        assert!(exec.canonicalize().expect("it is there").starts_with(into.canonicalize().expect("it was made")));
    }
    let mut names: Vec<_> = fs::read_dir(around.path())
        .expect("the directory can be written")
        .map(|entry| entry.expect("readable").file_name())
        .collect();
    names.sort();
    assert_eq!(names, ["canary", "into"], "written outside the directory");
    assert_eq!(fs::read(&canary).expect("it can be read"), b"alive");
    let (mut size, mut entries) = (0, 0);
    measure(&into, &into.canonicalize().expect("it was made"), &mut size, &mut entries);
    assert!(size <= BOUNDS.bytes, "{size} bytes");
    // Directories without an entry of their own count, too: a few for each path.
    assert!(entries <= BOUNDS.entries * 64, "{entries} entries");
});

/// Adds up the sizes of the files in a directory, and checks where its links lead.
fn measure(directory: &Path, root: &Path, size: &mut u64, entries: &mut usize) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
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
            assert!(metadata.is_file(), "{} is not a file", path.display());
            *size += metadata.len();
        }
    }
}
