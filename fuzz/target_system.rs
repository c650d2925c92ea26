//! Inspects a file for a target system with almost no files.

use std::cell::RefCell;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use pipeloop::artifact::inspect::{TargetSystem, inspect};
use tempfile::TempDir;

thread_local! {
    static TARGET: RefCell<Option<(TempDir, PathBuf)>> = const { RefCell::new(None) };
}

/// Writes and inspects a file. Every defect must have a message.
pub(crate) fn inspected(bytes: &[u8]) {
    TARGET.with_borrow_mut(|target| {
        let (root, program) = target.get_or_insert_with(|| {
            let root = tempfile::tempdir().expect("a temporary directory");
            let program = root.path().join("action/exec");
            fs::create_dir_all(root.path().join("action")).expect("the directory can be written");
            fs::create_dir_all(root.path().join("bin")).expect("the directory can be written");
            fs::write(root.path().join("bin/sh"), "#!/bin/sh\n").expect("the directory can be written");
            (root, program)
        });
        fs::write(&*program, bytes).expect("the directory can be written");
        fs::set_permissions(&*program, fs::Permissions::from_mode(0o755)).expect("the file can be changed");
        let directory = program.parent().expect("it is in a directory");
        let environment = [("PATH".into(), "/bin:".into()), ("LD_LIBRARY_PATH".into(), "lib:/lib".into())];
        let inspection = inspect(program, &TargetSystem::new(root.path(), directory, &environment));
        assert!(!inspection.what.is_empty());
        for defect in &inspection.defects {
            let sentence = defect.to_string();
            assert!(!sentence.is_empty() && !sentence.contains(['\n', '\0', '\x1b']), "{sentence:?}");
            let _ = (defect.code(), defect.hint(), defect.severity());
        }
    });
}
