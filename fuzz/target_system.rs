//! A file to be inspected, in a target that has next to nothing.

use std::cell::RefCell;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use pipeloop::artifact::inspect::{TargetSystem, inspect};
use tempfile::TempDir;

thread_local! {
    static TARGET: RefCell<Option<(TempDir, PathBuf)>> = const { RefCell::new(None) };
}

/// Writes and inspects a file. What is found can be said.
pub(crate) fn inspected(bytes: &[u8]) {
    TARGET.with_borrow_mut(|target| {
        let (folder, program) = target.get_or_insert_with(|| {
            let folder = tempfile::tempdir().expect("a folder of its own");
            let program = folder.path().join("action/exec");
            fs::create_dir_all(folder.path().join("action")).expect("the folder is ours");
            fs::create_dir_all(folder.path().join("bin")).expect("the folder is ours");
            fs::write(folder.path().join("bin/sh"), "#!/bin/sh\n").expect("the folder is ours");
            (folder, program)
        });
        fs::write(&*program, bytes).expect("the folder is ours");
        fs::set_permissions(&*program, fs::Permissions::from_mode(0o755)).expect("the file is ours");
        let directory = program.parent().expect("it lies in a folder");
        let environment = [("PATH".into(), "/bin:".into()), ("LD_LIBRARY_PATH".into(), "lib:/lib".into())];
        let inspection = inspect(program, &TargetSystem::new(folder.path(), directory, &environment));
        assert!(!inspection.what.is_empty());
        for defect in &inspection.defects {
            let sentence = defect.to_string();
            assert!(!sentence.is_empty() && !sentence.contains(['\n', '\0', '\x1b']), "{sentence:?}");
            let _ = (defect.code(), defect.hint(), defect.severity());
        }
    });
}
