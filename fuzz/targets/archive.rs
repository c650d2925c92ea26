//! Unpacking: no archive exceeds the bounds or writes outside the directory.

#![no_main]

use std::fs;
use std::os::unix::fs::PermissionsExt;
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
    let mode = || fs::metadata(&canary).expect("it is there").permissions().mode();
    let mode_before = mode();
    let into = around.path().join("into");
    fs::create_dir(&into).expect("the directory can be written");
    if let Ok(contents) = unpack(format, bytes, &into, &BOUNDS)
        && let Ok(exec) = contents.exec
    {
        assert!(exec.is_file(), "{} is not a file", exec.display());
        assert!(exec.starts_with(&into), "{} is not in the directory", exec.display());
    }
    let mut names: Vec<_> = fs::read_dir(around.path())
        .expect("the directory can be written")
        .map(|entry| entry.expect("readable").file_name())
        .collect();
    names.sort();
    assert_eq!(names, ["canary", "into"], "written outside the directory");
    assert_eq!(fs::read(&canary).expect("it can be read"), b"alive");
    assert_eq!(mode(), mode_before);
    let (mut size, mut entries) = (0, 0);
    measure(&into, &mut size, &mut entries);
    assert!(size <= BOUNDS.bytes, "{size} bytes");
    // Directories without an entry of their own count, too: a few for each path.
    assert!(entries <= BOUNDS.entries * 64, "{entries} entries");
});

/// Adds up the sizes of the files in a directory. Links may lead anywhere.
fn measure(directory: &Path, size: &mut u64, entries: &mut usize) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        *entries += 1;
        let path = entry.path();
        let metadata = fs::symlink_metadata(&path).expect("it is there");
        if metadata.is_dir() {
            measure(&path, size, entries);
        } else if !metadata.is_symlink() {
            assert!(metadata.is_file(), "{} is not a file", path.display());
            *size += metadata.len();
        }
    }
}
