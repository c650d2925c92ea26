//! `/etc/ld.so.cache` of an image, with any content.

#![no_main]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use pipeloop::artifact::inspect::{TargetSystem, inspect};

/// An image with a loader, and a program that needs libraries: the fuzz target itself.
fn image() -> &'static (PathBuf, PathBuf) {
    static IMAGE: OnceLock<(PathBuf, PathBuf)> = OnceLock::new();
    IMAGE.get_or_init(|| {
        let root = tempfile::tempdir().expect("a temporary directory").keep();
        let program = std::env::current_exe().expect("this program is a file");
        fs::create_dir_all(root.join("etc")).expect("the directory can be written");
        let loaders = ["/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1", "/lib/ld-linux-riscv64-lp64d.so.1"];
        let loader = loaders.iter().find(|loader| Path::new(loader).exists()).expect("a glibc machine");
        let inside = root.join(&loader[1..]);
        fs::create_dir_all(inside.parent().expect("it is in a directory")).expect("the directory can be written");
        fs::copy(loader, inside).expect("the directory can be written");
        (root, program)
    })
}

fuzz_target!(|bytes: &[u8]| {
    let (root, program) = image();
    fs::write(root.join("etc/ld.so.cache"), bytes).expect("the directory can be written");
    let directory = program.parent().expect("it is in a directory");
    let inspection = inspect(program, &TargetSystem::new(root, directory, &[]));
    // A cache cannot add a library that does not exist.
    assert!(!inspection.defects.is_empty(), "the image has no libraries");
});
