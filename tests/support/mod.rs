//! What the tests need of this repository: its binary, its test actions and its files.
//!
//! The crate `testkit` starts a proxy, calls it, waits for a condition and reads `/proc`; its names are re-exported
//! here. No test waits for a fixed time: [`eventually`] polls a condition and panics after [`WAIT_LIMIT`].
//! A test that fails prints the command, its directory, its status and both its streams.

pub(crate) mod archive;
pub(crate) mod bench;
pub(crate) mod command;
pub(crate) mod proxy;

pub(crate) use command::{pipeloop, pipeloop_in};
pub(crate) use proxy::{Proxy, check_bad_answer, check_detected};
pub(crate) use testkit::command::search_path;
pub(crate) use testkit::http::{Caller, Response};
pub(crate) use testkit::output::{Logs, SENTINEL};
pub(crate) use testkit::processes;
pub(crate) use testkit::wait::{WAIT_LIMIT, eventually, now_ms};

use std::path::{Path, PathBuf};

use testkit::command::compile_c;

/// The beginning of the answer to an unusable result.
pub(crate) const BAD_ANSWER: &str = "The action did not return a dictionary or array.";

/// The path of a tiny executable from `tests/actions/`.
pub(crate) fn action_path(name: &str) -> PathBuf {
    root().join("tests/actions").join(name)
}

/// The text of a tiny executable from `tests/actions/`, for an upload.
pub(crate) fn action(name: &str) -> String {
    let path = action_path(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Compiles a C program from `tests/actions/` into a static executable in a directory.
pub(crate) fn compile(name: &str, directory: &Path) -> PathBuf {
    let target = directory.join(name.trim_end_matches(".c"));
    let compiled = compile_c(&["-O1", "-static", "-Wall", "-Werror"], &target, &[&action_path(name)]);
    compiled.unwrap_or_else(|error| panic!("{name}: {error}"));
    target
}

/// The directory of the package.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
