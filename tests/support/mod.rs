//! What every area needs: a proxy of its own, a caller, actions, archives, processes.
//!
//! Nothing waits for a fixed time: [`eventually`] polls a condition and gives up, loudly, after
//! [`PATIENCE`]. Whatever fails prints the command, its directory, its status and both its streams.

pub(crate) mod archive;
pub(crate) mod bench;
pub(crate) mod command;
pub(crate) mod http;
pub(crate) mod processes;
pub(crate) mod proxy;

pub(crate) use command::{pipeloop, pipeloop_in};
pub(crate) use http::{Caller, Response};
pub(crate) use proxy::{Logs, Proxy, check_bad_answer, check_detected};

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The line that ends an activation's log on each stream.
pub(crate) const SENTINEL: &str = "XXX_THE_END_OF_A_WHISK_ACTIVATION_XXX";

/// How long a condition may take to come true. Generous: nothing here asserts that something is fast.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// The beginning of the answer to an unusable result.
pub(crate) const BAD_ANSWER: &str = "The action did not return a dictionary or array.";

/// The time as deadlines tell it.
pub(crate) fn now_ms() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("it is after 1970").as_millis()
}

/// Polls until there is something, and panics with `what` when patience is over.
pub(crate) fn eventually<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(begun.elapsed() < PATIENCE, "waited for {PATIENCE:?} in vain: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The path of a tiny executable from `tests/actions/`.
pub(crate) fn action_path(name: &str) -> PathBuf {
    root().join("tests/actions").join(name)
}

/// The text of a tiny executable from `tests/actions/`, to be uploaded.
pub(crate) fn action(name: &str) -> String {
    let path = action_path(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Compiles a C program from `tests/actions/` into a static executable.
pub(crate) fn compile(name: &str, folder: &Path) -> PathBuf {
    let target = folder.join(name.trim_end_matches(".c"));
    let compiler = ["-O1", "-static", "-Wall", "-Werror", "-o"];
    let output = std::process::Command::new("cc").args(compiler).args([&target, &action_path(name)]).output();
    let output = output.expect("there is a C compiler");
    assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    target
}

/// The folder of the package.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Where programs are looked for: the system's own first. A shim of a version manager in front of
/// them takes a quarter of a second to start an interpreter and shows several processes.
pub(crate) fn search_path() -> String {
    let inherited = std::env::var("PATH").unwrap_or_default();
    format!("/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:{inherited}")
}
