//! Images, each built once and from local files only.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use testkit::command::compile_c;

use crate::engine::{docker, setting};

/// The directory of the package.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// An image that holds only the binary, which serves uploads below `/`.
pub(crate) fn scratch() -> &'static str {
    static IMAGE: OnceLock<()> = OnceLock::new();
    IMAGE.get_or_init(|| {
        let dockerfile = "FROM scratch\nCOPY pipeloop /pipeloop\nENTRYPOINT [\"/pipeloop\", \"serve\"]\n";
        build("pipeloop-e2e/scratch", dockerfile, &[]);
    });
    "pipeloop-e2e/scratch"
}

/// An image that holds the binary and `all_purpose.c`, which it serves.
pub(crate) fn all_purpose() -> &'static str {
    static IMAGE: OnceLock<()> = OnceLock::new();
    IMAGE.get_or_init(|| {
        let dockerfile = "FROM scratch\nCOPY pipeloop /pipeloop\nCOPY all_purpose /action/exec\n\
                          ENTRYPOINT [\"/pipeloop\", \"serve\", \"/action/exec\"]\n";
        build("pipeloop-e2e/all_purpose", dockerfile, &[("all_purpose", all_purpose_code())]);
    });
    "pipeloop-e2e/all_purpose"
}

/// `all_purpose.c` as a static executable.
pub(crate) fn all_purpose_code() -> &'static [u8] {
    static CODE: OnceLock<Vec<u8>> = OnceLock::new();
    CODE.get_or_init(|| code("all_purpose.c"))
}

/// `streamer.c` as a static executable.
pub(crate) fn streamer_code() -> &'static [u8] {
    static CODE: OnceLock<Vec<u8>> = OnceLock::new();
    CODE.get_or_init(|| code("streamer.c"))
}

/// A C program from `tests/actions/`, compiled.
fn code(name: &str) -> Vec<u8> {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let (source, binary) = (root().join("tests/actions").join(name), directory.path().join("binary"));
    compile_c(&["-O1", "-static", "-Wall", "-Werror"], &binary, &[&source])
        .unwrap_or_else(|error| panic!("{name}: {error}"));
    fs::read(binary).expect("it was compiled")
}

/// A small Debian with bash, coreutils, jq and the binary, which serves uploads below `/work`.
pub(crate) fn debian() -> &'static str {
    static IMAGE: OnceLock<()> = OnceLock::new();
    IMAGE.get_or_init(|| {
        debian_base();
        let dockerfile = "FROM debian:12-slim\nCOPY pipeloop /usr/local/bin/pipeloop\nWORKDIR /work\n\
                          ENTRYPOINT [\"pipeloop\", \"serve\"]\n";
        build("pipeloop-e2e/debian", dockerfile, &[]);
    });
    "pipeloop-e2e/debian"
}

/// Builds an image from local programs and their libraries, under the name of Debian's own image, which the
/// documentation uses.
pub(crate) fn debian_base() {
    static IMAGE: OnceLock<()> = OnceLock::new();
    IMAGE.get_or_init(|| {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/e2e/debian");
        let mut tar = Command::new(script).stdout(Stdio::piped()).spawn().expect("e2e/debian can be started");
        let archive = tar.stdout.take().expect("stdout was piped at spawn");
        let import = Command::new(setting("PIPELOOP_E2E_DOCKER"))
            .args(["import", "-", "debian:12-slim"])
            .stdin(archive)
            .output()
            .expect("there is a client");
        assert!(tar.wait().expect("it is a child of this process").success(), "e2e/debian");
        assert!(import.status.success(), "docker import: {}", String::from_utf8_lossy(&import.stderr));
    });
}

/// Builds an image from a Dockerfile and files beside it; `pipeloop` is one of them.
#[track_caller]
pub(crate) fn build(name: &str, dockerfile: &str, files: &[(&str, &[u8])]) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    fs::copy(setting("PIPELOOP_E2E_BINARY"), directory.path().join("pipeloop")).expect("the binary can be copied");
    write(&directory.path().join("Dockerfile"), dockerfile.as_bytes());
    for (name, bytes) in files {
        write(&directory.path().join(name), bytes);
    }
    docker(&[
        "build",
        "--quiet",
        "--network",
        "none",
        "--tag",
        name,
        directory.path().to_str().expect("a path in UTF-8"),
    ]);
}

fn write(path: &PathBuf, bytes: &[u8]) {
    let mut file = fs::File::create(path).expect("the directory can be written");
    file.write_all(bytes).expect("the disk is not full");
    make_executable(path);
}

fn make_executable(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("the file can be changed");
}
