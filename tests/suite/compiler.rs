//! Source code and the compiler of the image: a real compiler where its output matters, a script elsewhere.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::{Proxy, archive, eventually, pipeloop_in, processes};

/// A compiler in a temporary directory.
struct Compiler {
    directory: tempfile::TempDir,
}

impl Compiler {
    /// A shell script that is called with MAIN, SRC and BIN.
    fn new(body: &str) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let compiler = Self { directory };
        fs::write(compiler.path(), format!("#!/bin/bash\n{body}\n")).expect("the directory can be written");
        fs::set_permissions(compiler.path(), fs::Permissions::from_mode(0o755)).expect("the file can be changed");
        compiler
    }

    /// gcc, for a single file or all C files of an archive. The entry point is a macro.
    fn gcc() -> Self {
        Self::new(r#"[ ! -f "$2/exec" ] || mv "$2/exec" "$2/exec.c"; exec gcc -DENTRY="$1" -o "$3/exec" "$2"/*.c"#)
    }

    fn path(&self) -> String {
        self.directory.path().join("compile").to_str().expect("the path is text").to_owned()
    }

    /// A proxy with this compiler, set as images do it.
    #[track_caller]
    fn serve(&self, args: &[&str], env: &[(&str, &str)]) -> Proxy {
        let path = self.path();
        let env: Vec<_> = [("OW_COMPILER", path.as_str())].into_iter().chain(env.iter().copied()).collect();
        Proxy::start(args, &env)
    }
}

/// The pipe loop in C, with an answer for each entry point.
const C: &str = r#"#include <stdio.h>
static const char *english(void) { return "Hello"; }
static const char *german(void) { return "Hallo"; }
int main(void) {
    char *line = NULL;
    size_t room = 0;
    setvbuf(stdout, NULL, _IOLBF, 0);
    puts("{\"openwhisk\":1}");
    while (getline(&line, &room, stdin) > 0) printf("{\"hello\":\"%s\"}\n", ENTRY());
    return english == german;
}
"#;

/// A script in place of compiled code: an action that answers with a text.
fn answers(text: &str) -> String {
    format!("#!/bin/bash\necho '{{\"openwhisk\":1}}'\nwhile read -r line; do echo '{{\"text\":\"{text}\"}}'; done\n")
}

fn source(code: &str, main: &str) -> Value {
    json!({"name": "test", "main": main, "code": code, "binary": false})
}

/// How many directories of actions there are.
fn action_directories(proxy: &Proxy) -> usize {
    fs::read_dir(proxy.workdir().join("action")).map_or(0, Iterator::count)
}

#[test]
fn c_source_is_compiled_and_served() {
    let compiler = Compiler::gcc();
    for (main, expected) in [("english", "Hello"), ("german", "Hallo")] {
        let proxy = compiler.serve(&[], &[]);
        proxy.init_value(&source(C, main)).check(200, &json!({"ok": true}));
        for _ in 0..2 {
            proxy.run(&json!({})).check(200, &json!({ "hello": expected }));
        }
        proxy.check_streams(2);
    }
}

#[test]
fn go_source_is_compiled_and_served() {
    let compiler = Compiler::new(r#"cd "$2" && mv exec exec.go && go build -o "$3/exec" exec.go"#);
    let home = std::env::var("HOME").unwrap_or_else(|_| "/tmp".into());
    let proxy = compiler.serve(&["--init-timeout", "5m"], &[("HOME", &home)]);
    let code = r#"package main

import (
	"bufio"
	"fmt"
	"os"
)

func main() {
	fmt.Println(`{"openwhisk":1}`)
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		fmt.Printf("{\"got\":%s}\n", lines.Text())
	}
}
"#;
    // A first build compiles the standard library, which may take longer than the default limit of a test.
    let mut caller = proxy.caller();
    caller.send_request("POST", "/init", json!({"value": source(code, "main")}).to_string().as_bytes());
    let begun = std::time::Instant::now();
    while caller.is_silent_for(std::time::Duration::from_secs(1)) {
        assert!(begun.elapsed().as_secs() < 280, "the compiler does not end");
    }
    caller.receive().expect("an answer").check(200, &json!({"ok": true}));
    proxy.run(&json!({"n": 1})).check(200, &json!({"got": {"n": 1}}));
}

#[test]
fn an_archive_of_sources_is_compiled() {
    let greeting = b"const char *english(void) { return \"Hello from afar\"; }\n";
    let main = C.replace("static const char *english(void) { return \"Hello\"; }", "const char *english(void);");
    let files: [(&str, &[u8]); 2] = [("main.c", main.as_bytes()), ("greeting.c", greeting)];
    for bytes in [archive::zip(&files), archive::tar_gz(&files)] {
        let compiler = Compiler::gcc();
        let proxy = compiler.serve(&[], &[]);
        let code = base64_simd::STANDARD.encode_to_string(&bytes);
        let init = json!({"main": "english", "code": code, "binary": true});
        proxy.init_value(&init).check(200, &json!({"ok": true}));
        proxy.run(&json!({})).check(200, &json!({"hello": "Hello from afar"}));
    }
}

/// An archive may hold its main source file as `exec`.
#[test]
fn an_archive_whose_exec_is_source_is_compiled() {
    let compiler = Compiler::gcc();
    let proxy = compiler.serve(&[], &[]);
    let code = base64_simd::STANDARD.encode_to_string(archive::zip(&[("exec", C.as_bytes())]));
    proxy.init_value(&json!({"main": "german", "code": code, "binary": true})).check(200, &json!({"ok": true}));
    proxy.run(&json!({})).check(200, &json!({"hello": "Hallo"}));
}

#[test]
fn executables_are_not_compiled() {
    let compiler = Compiler::new("echo 'not asked for' >&2; exit 1");
    let script = answers("mine");
    let elf = fs::read("/bin/true").expect("there is an ELF file");
    let proxy = compiler.serve(&[], &[]);
    proxy.init(&script).check(200, &json!({"ok": true}));
    proxy.run(&json!({})).check(200, &json!({"text": "mine"}));
    let proxy = compiler.serve(&["--protocol", "0"], &[]);
    proxy.init_binary(&elf).check(200, &json!({"ok": true}));
    let proxy = compiler.serve(&[], &[]);
    let neighbour =
        script.replace("echo '{\"text\"", "cat word; echo '{\"text\"").replace("mine", "with its neighbours");
    let files: [(&str, &[u8]); 2] = [("exec", neighbour.as_bytes()), ("word", b"")];
    proxy.init_binary(&archive::zip(&files)).check(200, &json!({"ok": true}));
    proxy.run(&json!({})).check(200, &json!({"text": "with its neighbours"}));
    let logs = proxy.check_streams(1);
    assert_eq!(logs.both(), "");
}

#[test]
fn a_compiler_gets_the_entry_point_the_directories_and_the_environment() {
    let compiler = Compiler::new(
        r#"cat > "$3/exec" << END
#!/bin/bash
echo '{"openwhisk":1}'
while read -r line; do
  echo '{"argc":$#,"main":"$1","src":"$2","bin":"$3","pwd":"$PWD","greeting":"$GREETING","env":"$__OW_EXECUTION_ENV","place":"$PLACE","kept":"$OW_EXECUTION_ENV$PIPELOOP_LOG"}'
done
END
chmod +x "$3/exec"; echo "$__OW_EXECUTION_ENV" > "$3/exec.env"; echo "compiling"; cat; cat "$2/exec" >&2"#,
    );
    for (main, expected) in [(json!("hello"), "hello"), (json!(""), "main"), (json!(null), "main")] {
        let env = [("OW_EXECUTION_ENV", "v1"), ("PLACE", "image"), ("PIPELOOP_LOG", "off")];
        let proxy = compiler.serve(&[], &env);
        let init = json!({"main": main, "code": "some source\n", "env": {"GREETING": "a=b"}});
        proxy.init_value(&init).check(200, &json!({"ok": true}));
        let workdir = proxy.workdir().canonicalize().expect("it is there");
        let directory = |name| workdir.join("action/1").join(name);
        proxy.run(&json!({})).check(
            200,
            &json!({"argc": 3, "main": expected, "src": directory("src"), "bin": directory("bin"), "pwd": workdir,
                "greeting": "a=b", "env": "v1", "place": "image", "kept": ""}),
        );
        // Its output is for the author: it is in the log of the first activation, as the output of any init.
        let logs = proxy.check_streams(1);
        assert_eq!((logs.stdout.as_str(), logs.stderr.as_str()), ("compiling\n", "some source\n"));
    }
}

#[test]
fn a_syntax_error_shows_the_message_of_the_compiler() {
    let compiler = Compiler::gcc();
    let proxy = compiler.serve(&[], &[]);
    let response = proxy.init_value(&source("int main(void) { return 0 }\n", "main"));
    response
        .check_error(502, &["the compiler `", "exited with status 1: `", "error: expected", "(hint: fix the source"]);
    let logs = proxy.check_streams(0);
    assert!(
        logs.stderr.contains("exec.c:1:") && logs.stderr.contains("error: expected"),
        "the log has the message of gcc"
    );
    assert_eq!(action_directories(&proxy), 0, "a failed init leaves nothing behind");
    // A new init is possible.
    proxy.init_value(&source(C, "english")).check(200, &json!({"ok": true}));
    proxy.run(&json!({})).check(200, &json!({"hello": "Hello"}));
}

#[test]
fn a_failed_compilation_is_logged_if_the_platform_wants_it() {
    let compiler = Compiler::new("echo 'line 1: no such word'; exit 3");
    let proxy = compiler.serve(&[], &[("OW_LOG_INIT_ERROR", "1")]);
    let text = "The action failed to generate or locate a binary. See logs for details.";
    proxy.init("some source").check(502, &json!({ "error": text }));
    let logs = proxy.check_streams(1);
    assert_eq!(logs.stdout, "line 1: no such word\n");
    assert!(logs.stderr.contains("error[PL033]: the compiler `"), "{}", logs.stderr);
    // A wrapper of a compiler may print errors on stdout.
    assert!(logs.stderr.contains("exited with status 3: `line 1: no such word`"), "{}", logs.stderr);
}

#[test]
fn a_compiler_that_hangs_is_stopped_with_its_processes() {
    let compiler = Compiler::new("echo $$; sleep 1000 & sleep 1000");
    let proxy = compiler.serve(&["--compile-timeout", "1s"], &[]);
    let says = ["did not finish within 1 s and was stopped", "PIPELOOP_COMPILE_TIMEOUT"];
    proxy.init("some source").check_error(502, &says);
    check_gone(&proxy);
    assert_eq!(action_directories(&proxy), 0, "a failed init leaves nothing behind");
    proxy.init(&answers("next")).check(200, &json!({"ok": true}));
}

#[test]
fn a_compiler_may_take_longer_than_the_start_of_the_action() {
    let compiler = Compiler::new(r#"sleep 3; cp "$2/exec" "$3/exec"; sed -i '1i #!/bin/bash' "$3/exec""#);
    let proxy = compiler.serve(&["--init-timeout", "2s"], &[]);
    let source = "echo '{\"openwhisk\":1}'; while read -r line; do echo \"$line\"; done\n";
    proxy.init(source).check(200, &json!({"ok": true}));
    proxy.run(&json!({"a": 1})).check(200, &json!({"a": 1}));
}

/// Waits until no process of a group is left. The number of the group is the first line on stdout.
#[track_caller]
fn check_gone(proxy: &Proxy) {
    let group = proxy.logs().stdout.lines().next().expect("it printed its number").parse().expect("a number");
    eventually("nothing of the compiler is left", || processes::group(group).is_empty().then_some(()));
}

#[test]
fn processes_that_a_compiler_leaves_are_stopped() {
    let script = answers("compiled");
    let compiler = Compiler::new(&format!(
        "echo $$; sleep 1000 & cat > \"$3/exec\" << 'END'\n{script}\nEND\nchmod +x \"$3/exec\""
    ));
    let proxy = compiler.serve(&[], &[]);
    proxy.init("some source").check(200, &json!({"ok": true}));
    check_gone(&proxy);
    proxy.run(&json!({})).check(200, &json!({"text": "compiled"}));
}

#[test]
fn a_compiler_must_create_an_executable() {
    for (body, expected) in [
        ("echo 'nothing to do'", "did not create a file `exec`: `nothing to do`"),
        ("mkdir \"$3/exec\"", "did not create a file `exec`"),
        ("ln -s nowhere \"$3/exec\"", "did not create a file `exec`"),
        ("echo 'some text' > \"$3/exec\"", "created an `exec` that is neither an ELF executable nor a script"),
        ("touch \"$3/exec\"; chmod +x \"$3/exec\"", "created an `exec` that is neither an ELF executable nor a script"),
    ] {
        let compiler = Compiler::new(body);
        let proxy = compiler.serve(&[], &[]);
        proxy.init("some source").check_error(502, &["the compiler `", expected, "hint: "]);
        assert_eq!(action_directories(&proxy), 0, "a failed init leaves nothing behind");
    }
}

/// Compilers for Apache's proxy rely on the proxy to set the mode.
#[test]
fn the_file_that_a_compiler_creates_is_made_executable() {
    let script = answers("compiled");
    let compiler = Compiler::new(&format!("cat > \"$3/exec\" << 'END'\n{script}\nEND\nchmod 600 \"$3/exec\""));
    let proxy = compiler.serve(&[], &[]);
    proxy.init("some source").check(200, &json!({"ok": true}));
    proxy.run(&json!({})).check(200, &json!({"text": "compiled"}));
}

#[test]
fn a_missing_compiler_is_reported_before_the_proxy_serves() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    fs::write(directory.path().join("text"), "").expect("the directory can be written");
    for (name, expected) in [
        ("/nonexistent/compile", "No such file or directory"),
        ("no-such-compiler", "no such program on `PATH`"),
        ("./text", "it is not an executable file"),
        ("./", "it is not an executable file"),
    ] {
        for (args, env) in [
            (vec!["serve", "--port", "0", "--compiler", name], vec![]),
            (vec!["serve", "--port", "0"], vec![("PIPELOOP_COMPILER", name)]),
            (vec!["serve", "--port", "0"], vec![("OW_COMPILER", name)]),
            (vec!["run", "text"], vec![("OW_COMPILER", name)]),
        ] {
            pipeloop_in(directory.path(), &args, &env, "").check(2).says(&[expected]);
        }
    }
}

#[test]
fn a_compiler_that_was_removed_is_reported() {
    let compiler = Compiler::gcc();
    let proxy = compiler.serve(&[], &[]);
    fs::remove_file(compiler.path()).expect("it is there");
    proxy.init(C).check_error(502, &["the compiler `", "cannot be started: No such file", "OW_COMPILER"]);
    assert_eq!(action_directories(&proxy), 0, "a failed init leaves nothing behind");
}

#[test]
fn a_compilation_goes_on_when_its_caller_leaves() {
    let script = answers("compiled");
    let compiler = Compiler::new(&format!(
        "echo begun; until [ -e go ]; do sleep 0.01; done; cat > \"$3/exec\" << 'END'\n{script}\nEND"
    ));
    let proxy = compiler.serve(&[], &[]);
    let mut caller = proxy.caller();
    caller.send_request("POST", "/init", json!({"value": source("x", "main")}).to_string().as_bytes());
    proxy.wait_for("the compiler runs", |logs| logs.stdout.contains("begun\n"));
    drop(caller);
    proxy.init("some source").check_error(403, &["another init is in progress"]);
    fs::write(proxy.workdir().join("go"), "").expect("the directory exists");
    let response =
        eventually("the init is done", || Some(proxy.run(&json!({}))).filter(|response| response.status != 500));
    response.check(200, &json!({"text": "compiled"}));
}

#[test]
fn shutdown_stops_a_compilation() {
    let compiler = Compiler::new("echo $$; sleep 1000 & sleep 1000");
    let mut proxy = compiler.serve(&[], &[]);
    let mut caller = proxy.caller();
    caller.send_request("POST", "/init", json!({"value": source("x", "main")}).to_string().as_bytes());
    proxy.wait_for("the compiler runs", |logs| logs.stdout.ends_with('\n'));
    proxy.signal(Signal::TERM);
    assert_eq!(proxy.wait().code(), Some(0));
    check_gone(&proxy);
}

#[test]
fn a_source_file_runs_from_the_command_line() {
    let compiler = Compiler::gcc();
    let directory = tempfile::tempdir().expect("a temporary directory");
    // Without a name, the entry point is `main`, so the macro cannot be used.
    fs::write(directory.path().join("hello.c"), C.replace("ENTRY()", "english()"))
        .expect("the directory can be written");
    let ended = pipeloop_in(directory.path(), &["run", "hello.c"], &[("OW_COMPILER", &compiler.path())], "");
    assert_eq!(ended.check(0).stdout, "{\"hello\":\"Hello\"}\n");
    assert_eq!(fs::read_dir(directory.path().join("action")).expect("it was made").count(), 0, "nothing is left");
    assert!(directory.path().join("hello.c").exists(), "the author's file stays");

    fs::write(directory.path().join("wrong.c"), "int main(void) { return 0 }\n").expect("the directory can be written");
    let ended = pipeloop_in(directory.path(), &["run", "--compiler", &compiler.path(), "wrong.c"], &[], "");
    ended.check(126).says(&[
        "error: expected",
        "error[PL033]: the compiler `",
        "exited with status 1: `",
        "\nhint: fix",
    ]);

    let source = directory.path().join("hello.c");
    let proxy = compiler.serve(&[source.to_str().expect("the path is text")], &[]);
    proxy.run(&json!({})).check(200, &json!({"hello": "Hello"}));
}

/// All files below a directory, with their contents.
fn contents(directory: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    let mut pending = vec![directory.to_owned()];
    while let Some(at) = pending.pop() {
        for entry in fs::read_dir(&at).expect("the directory can be read") {
            let path = entry.expect("the directory can be read").path();
            if path.is_dir() {
                found.push((path.clone(), Vec::new()));
                pending.push(path);
            } else {
                found.push((path.clone(), fs::read(&path).expect("the file can be read")));
            }
        }
    }
    found.sort();
    found
}

/// A directory with the source code of an action, whose greeting is in a subdirectory.
fn source_directory() -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let main = C.replace("static const char *english(void) { return \"Hello\"; }", "#include \"lib/greeting.h\"");
    fs::write(directory.path().join("main.c"), main).expect("the directory can be written");
    fs::create_dir(directory.path().join("lib")).expect("the directory can be written");
    let greeting = "static const char *english(void) { return \"Hello from below\"; }\n";
    fs::write(directory.path().join("lib/words.h"), greeting).expect("the directory can be written");
    std::os::unix::fs::symlink("words.h", directory.path().join("lib/greeting.h"))
        .expect("the directory can be written");
    directory
}

/// The compiler gets a copy, as for an upload, and never writes into the directory itself.
#[test]
fn a_directory_of_sources_is_compiled_in_a_copy() {
    let compiler = Compiler::new(r#"cd "$2"; touch written; exec gcc -DENTRY="$1" -o "$3/exec" *.c"#);
    let directory = source_directory();
    let before = contents(directory.path());
    let place = directory.path().to_str().expect("the path is text");
    let workdir = tempfile::tempdir().expect("a temporary directory");
    let set = [("OW_COMPILER", compiler.path())];
    let env = set.each_ref().map(|(name, value)| (*name, value.as_str()));
    for (main, expected) in [("english", "Hello from below"), ("german", "Hallo")] {
        let ended = pipeloop_in(workdir.path(), &["run", place, "--main", main], &env, "");
        assert_eq!(ended.check(0).stdout, format!("{{\"hello\":\"{expected}\"}}\n"));
        let proxy = compiler.serve(&[place], &[("PIPELOOP_MAIN", main)]);
        proxy.run(&json!({})).check(200, &json!({ "hello": expected }));
        let ended = pipeloop_in(workdir.path(), &["check", place, "--main", main], &env, "");
        assert!(ended.check(0).stdout.contains(expected), "{expected}");
    }
    assert_eq!(contents(directory.path()), before, "the author's directory stays as it is");
    assert_eq!(fs::read_dir(workdir.path().join("action")).expect("it was made").count(), 0, "nothing is left");
}

/// The copy is inside the directory that is copied, if that is the working directory.
#[test]
fn the_working_directory_is_compiled() {
    let compiler = Compiler::gcc();
    let directory = source_directory();
    // The files of another proxy, or of one that was killed.
    fs::create_dir_all(directory.path().join("action/7/src")).expect("the directory can be written");
    fs::write(directory.path().join("action/7/src/main.c"), "no C at all").expect("the directory can be written");
    let set = [("OW_COMPILER", compiler.path())];
    let env = set.each_ref().map(|(name, value)| (*name, value.as_str()));
    let ended = pipeloop_in(directory.path(), &["run", ".", "--main", "english"], &env, "");
    assert_eq!(ended.check(0).stdout, "{\"hello\":\"Hello from below\"}\n");
}

#[test]
fn a_directory_for_the_compiler_has_the_limits_of_an_archive() {
    let compiler = Compiler::gcc();
    let workdir = tempfile::tempdir().expect("a temporary directory");
    let check = |prepare: &dyn Fn(&Path), args: &[&str], expected: &[&str]| {
        let directory = source_directory();
        prepare(directory.path());
        let place = directory.path().to_str().expect("the path is text");
        let args: Vec<_> = ["run", place].iter().chain(args).copied().collect();
        let ended = pipeloop_in(workdir.path(), &args, &[("OW_COMPILER", &compiler.path())], "");
        ended.check(1).says(expected);
        assert_eq!(fs::read_dir(workdir.path().join("action")).expect("it was made").count(), 0, "nothing is left");
    };
    let fifo = |directory: &Path| {
        let status = std::process::Command::new("mkfifo").arg(directory.join("pipe")).status();
        assert!(status.expect("there is mkfifo").success());
    };
    check(&fifo, &[], &["error[PL037]: a directory entry is a fifo, not a file, directory or link: `pipe`"]);
    check(&|_| {}, &["--max-entries", "2"], &["error[PL039]: the directory has more than the 2 entries"]);
    check(&|_| {}, &["--max-unpacked", "20"], &["error[PL038]: the directory comes to more than the 20 bytes"]);
}

#[test]
fn a_directory_for_the_compiler_may_have_links_that_lead_outside() {
    let compiler = Compiler::gcc();
    let workdir = tempfile::tempdir().expect("a temporary directory");
    let directory = source_directory();
    std::os::unix::fs::symlink("/etc", directory.path().join("lib/out")).expect("the directory can be written");
    let place = directory.path().to_str().expect("the path is text");
    pipeloop_in(workdir.path(), &["run", place], &[("OW_COMPILER", &compiler.path())], "").check(0);
}

#[test]
fn the_mode_of_a_file_outside_stays_what_it_is() {
    let outside = tempfile::tempdir().expect("a temporary directory");
    let program = outside.path().join("program");
    fs::write(&program, "#!/bin/sh\n").expect("the directory can be written");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o600)).expect("the file can be changed");
    let compiler = Compiler::new(&format!("ln -s {} \"$3/exec\"", program.display()));
    let workdir = tempfile::tempdir().expect("a temporary directory");
    let directory = source_directory();
    let place = directory.path().to_str().expect("the path is text");
    let ended = pipeloop_in(workdir.path(), &["run", place], &[("OW_COMPILER", &compiler.path())], "");
    ended.check(126).says(&["it is not executable: its mode is 600"]);
    assert_eq!(fs::metadata(&program).expect("it exists").permissions().mode() & 0o777, 0o600);
}

#[test]
fn a_directory_with_an_executable_exec_is_not_compiled() {
    let compiler = Compiler::new("echo 'not asked for' >&2; exit 1");
    let directory = tempfile::tempdir().expect("a temporary directory");
    let script = "#!/bin/bash\nread -r line; echo \"{\\\"pwd\\\":\\\"$PWD\\\"}\"\n";
    fs::write(directory.path().join("exec"), script).expect("the directory can be written");
    fs::set_permissions(directory.path().join("exec"), fs::Permissions::from_mode(0o755))
        .expect("the file can be changed");
    let place = directory.path().canonicalize().expect("it is there");
    let args = ["run", "--protocol", "0", place.to_str().expect("the path is text")];
    let ended = pipeloop_in(directory.path(), &args, &[("OW_COMPILER", &compiler.path())], "");
    assert_eq!(ended.check(0).stdout, format!("{{\"pwd\":\"{}\"}}\n", place.display()));
}

/// The author of an image knows the entry point of its action, but platforms always send one.
#[test]
fn a_directory_in_the_image_keeps_its_entry_point() {
    let compiler = Compiler::gcc();
    let directory = source_directory();
    let place = directory.path().to_str().expect("the path is text");
    let proxy = compiler.serve(&[place, "--main", "german"], &[]);
    proxy.init_value(&json!({"main": "english", "env": {"A": "b"}})).check(200, &json!({"ok": true}));
    proxy.run(&json!({})).check(200, &json!({"hello": "Hallo"}));
    assert_eq!(action_directories(&proxy), 1, "the first one is removed");
}

/// The response to an init with this `exec.env`, if `OW_EXECUTION_ENV` is set.
fn init_built_for(environment: Option<&[u8]>) -> crate::support::Response {
    let proxy = Proxy::start::<&str>(&[], &[("OW_EXECUTION_ENV", "openwhisk/action-c-v1")]);
    let script = answers("built for this");
    let mut files: Vec<(&str, &[u8])> = vec![("exec", script.as_bytes())];
    files.extend(environment.map(|environment| ("exec.env", environment)));
    let response = proxy.init_binary(&archive::zip(&files));
    if response.status == 200 {
        proxy.run(&json!({})).check(200, &json!({"text": "built for this"}));
    } else {
        assert_eq!(action_directories(&proxy), 0, "a failed init leaves nothing behind");
    }
    response
}

#[test]
fn an_upload_that_was_built_for_another_environment_is_refused() {
    init_built_for(Some(b"openwhisk/action-c-v1")).check(200, &json!({"ok": true}));
    init_built_for(Some(b"  openwhisk/action-c-v1\r\n\n")).check(200, &json!({"ok": true}));
    for other in ["openwhisk/action-c-v2", "openwhisk/action-c-v10", "openwhisk/action-c-v", ""] {
        init_built_for(Some(other.as_bytes())).check_error(
            502,
            &[
                "was built for the execution environment `",
                other,
                "this one is `openwhisk/action-c-v1`",
                "build it again",
            ],
        );
    }
    init_built_for(None).check_error(502, &["no file `exec.env`", "`openwhisk/action-c-v1`", "OW_EXECUTION_ENV"]);
    // A single file has no `exec.env` beside it.
    let proxy = Proxy::start::<&str>(&[], &[("OW_EXECUTION_ENV", "v1"), ("OW_LOG_INIT_ERROR", "1")]);
    let text = "Cannot start action. Check logs for details.";
    proxy.init(&answers("alone")).check(502, &json!({ "error": text }));
    let logs = proxy.check_streams(1);
    assert!(logs.stderr.contains("error[PL057]: the action has no file `exec.env`"), "{}", logs.stderr);
    // An empty variable counts as unset: images unset a variable of their base image in this way.
    let proxy = Proxy::start::<&str>(&[], &[("OW_EXECUTION_ENV", "")]);
    proxy.init(&answers("alone")).check(200, &json!({"ok": true}));
}

#[test]
fn an_action_in_the_image_needs_no_environment_file() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    fs::write(directory.path().join("exec"), answers("baked in")).expect("the directory can be written");
    fs::set_permissions(directory.path().join("exec"), fs::Permissions::from_mode(0o755))
        .expect("the file can be changed");
    let proxy = Proxy::start(&[directory.path().to_str().expect("text")], &[("OW_EXECUTION_ENV", "v1")]);
    proxy.run(&json!({})).check(200, &json!({"text": "baked in"}));
}

/// The caller gets status 503. The working directory may outlive the container, so it must be empty.
#[test]
fn an_init_that_shutdown_interrupts_leaves_no_directory() {
    let compiler = Compiler::new("echo $$; echo compiling >&2; sleep 1000 & sleep 1000");
    let starts = "#!/bin/bash\necho $$; echo compiling >&2; sleep 1000 & sleep 1000\n";
    for code in ["some source", starts] {
        let mut proxy = compiler.serve(&[], &[]);
        let mut caller = proxy.caller();
        caller.send_request("POST", "/init", json!({"value": source(code, "main")}).to_string().as_bytes());
        proxy.wait_for("the init is in progress", |logs| logs.stderr.contains("compiling\n"));
        assert_eq!(action_directories(&proxy), 1);
        proxy.signal(Signal::TERM);
        caller.receive().expect("an answer").check(503, &json!({"error": "the proxy is shutting down"}));
        assert_eq!(proxy.wait().code(), Some(0));
        assert_eq!(action_directories(&proxy), 0, "{code:?}");
        check_gone(&proxy);
    }
    // The same for an action on the command line.
    let directory = source_directory();
    let workdir = tempfile::tempdir().expect("a temporary directory");
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_pipeloop"));
    command.args(["serve", "--port", "0"]).arg(directory.path()).env("OW_COMPILER", compiler.path());
    let mut child = command.current_dir(workdir.path()).stdout(Stdio::piped()).spawn().expect("it can be started");
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("it is piped")).read_line(&mut line).expect("the compiler prints");
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, Signal::TERM).expect("it is running");
    assert_eq!(child.wait().expect("it is a child of this test").code(), Some(0));
    assert_eq!(fs::read_dir(workdir.path().join("action")).expect("it was made").count(), 0, "nothing is left");
}

/// Unpacking has its own thread, and ends with the proxy.
#[test]
fn shutdown_stops_unpacking() {
    // Small to send, large to unpack.
    let large = vec![0; 400 << 20];
    let code = base64_simd::STANDARD.encode_to_string(archive::zip(&[("exec", &large)]));
    let mut proxy = Proxy::plain();
    let mut caller = proxy.caller();
    let init = json!({"value": {"code": code, "binary": true}});
    caller.send_request("POST", "/init", init.to_string().as_bytes());
    let exec = proxy.workdir().join("action/1/src/exec");
    eventually("it is being unpacked", || exec.exists().then_some(()));
    proxy.signal(Signal::TERM);
    caller.receive().expect("an answer").check(503, &json!({"error": "the proxy is shutting down"}));
    assert_eq!(proxy.wait().code(), Some(0));
    assert_eq!(action_directories(&proxy), 0);
}

#[test]
fn without_a_compiler_source_is_refused_with_a_hint() {
    // An empty variable counts as unset: images unset a variable of their base image in this way.
    let proxy = Proxy::start::<&str>(&[], &[("OW_COMPILER", "")]);
    proxy.init(C).check_error(502, &["C source text, which has to be compiled first", "OW_COMPILER"]);
}
