//! Builds broken and working programs: a temporary directory, a compiler and a linker.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

/// A temporary directory with a compiler.
pub(crate) struct Bench {
    pub(crate) directory: tempfile::TempDir,
}

/// A version 1 action without dependencies: it sends its handshake, and exits when its input ends.
pub(crate) const ACTION: &str = r#"
#include <stdio.h>
int main(void) { puts("{\"openwhisk\":1}"); fflush(stdout); while (getchar() != EOF) {} return 0; }
"#;

impl Bench {
    pub(crate) fn new() -> Self {
        Self { directory: tempfile::tempdir().expect("a temporary directory") }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Writes an executable file.
    pub(crate) fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("it is in the directory")).expect("the directory can be written");
        fs::write(&path, bytes).expect("the directory can be written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("the file can be changed");
        path
    }

    /// Runs a tool in the directory.
    #[track_caller]
    pub(crate) fn tool<S: AsRef<OsStr>>(&self, program: &str, args: &[S], env: &[(&str, &str)]) {
        let output = Command::new(program).args(args).envs(env.iter().copied()).current_dir(&self.directory).output();
        let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
        assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Compiles C to a file of this name.
    #[track_caller]
    pub(crate) fn cc(&self, name: &str, source: &str, flags: &[&str]) -> PathBuf {
        self.compile("cc", name, source, flags)
    }

    #[track_caller]
    pub(crate) fn compile(&self, compiler: &str, name: &str, source: &str, flags: &[&str]) -> PathBuf {
        let input = format!("{}.c", name.replace('/', "_"));
        fs::write(self.path(&input), source).expect("the directory can be written");
        fs::create_dir_all(self.path(name).parent().expect("it is in the directory"))
            .expect("the directory can be written");
        let flags: Vec<_> = ["-o", name, &input].into_iter().chain(flags.iter().copied()).collect();
        self.tool(compiler, &flags, &[]);
        self.path(name)
    }

    /// A shared library with these functions, each of which returns a number.
    #[track_caller]
    pub(crate) fn library(&self, name: &str, functions: &[&str], flags: &[&str]) -> PathBuf {
        let source =
            functions.iter().map(|name| format!("int {name}(void) {{ return 1; }}\n")).collect::<Vec<_>>().concat();
        let flags: Vec<_> = ["-shared", "-fPIC"].into_iter().chain(flags.iter().copied()).collect();
        self.cc(name, &source, &flags)
    }

    /// A program that calls these functions.
    #[track_caller]
    pub(crate) fn program(&self, name: &str, functions: &[&str], flags: &[&str]) -> PathBuf {
        let declared = functions.iter().map(|name| format!("int {name}(void);\n")).collect::<Vec<_>>().concat();
        let called = functions.iter().map(|name| format!(" && {name}()")).collect::<Vec<_>>().concat();
        let main =
            ACTION.replace("int main(void) {", "int main(void) { if (!(1CALLS)) return 1;").replace("CALLS", &called);
        self.cc(name, &format!("{declared}{main}"), flags)
    }
}
