//! Every program under `examples/`, with its real interpreter or compiler.
//!
//! A missing interpreter or compiler fails the test and names its Debian package; it never skips the test.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::new_action;
use crate::support::{Proxy, pipeloop, root, search_path};

/// A directory under `examples/`.
struct Language {
    directory: &'static str,
    /// Commands, each with its Debian package.
    needs: &'static [(&'static str, &'static str)],
    /// The source file of each program. The end of its name says which protocol it speaks.
    sources: &'static [&'static str],
}

macro_rules! languages {
    ($($directory:ident needs $needs:expr, has $sources:expr;)*) => {
        const LANGUAGES: &[Language] =
            &[$(Language { directory: stringify!($directory), needs: &$needs, sources: &$sources }),*];
        $(#[test] fn $directory() { check_language(stringify!($directory)); })*
    };
}

languages! {
    bash needs [("bash", "bash"), ("jq", "jq"), ("logger", "bsdutils")],
        has ["hello.sh", "hello-careful.sh", "hello-fd3.sh", "hello-once.sh", "hello-stream.sh"];
    python needs [("python3", "python3")],
        has ["hello.py", "hello-fd3.py", "hello-once.py", "hello-stream.py"];
    perl needs [("perl", "perl")], has ["hello.pl", "hello-fd3.pl"];
    ruby needs [("ruby", "ruby")], has ["hello.rb", "hello-fd3.rb"];
    nodejs needs [("node", "nodejs")], has ["hello.js", "hello-fd3.js", "hello-stream.js"];
    php needs [("php", "php-cli")], has ["hello.php", "hello-fd3.php"];
    go needs [("go", "golang-go")], has ["hello.go", "hello-fd3.go", "hello-stream.go"];
    rust needs [("rustc", "rustc")], has ["hello.rs", "hello-fd3.rs", "hello-stream.rs"];
    c needs [("gcc", "gcc")], has ["hello.c", "hello-fd3.c", "hello-once.c"];
    cpp needs [("g++", "g++")], has ["hello.cpp"];
    java needs [("javac", "default-jdk-headless"), ("java", "default-jdk-headless")],
        has ["Hello.java", "HelloStream.java"];
    haskell needs [("ghc", "ghc")], has ["hello.hs"];
    csharp needs [("mcs", "mono-mcs"), ("mono", "mono-runtime")], has ["hello.cs"];
}

#[test]
fn every_example_is_tested() {
    let mut covered = BTreeSet::new();
    for language in LANGUAGES {
        covered.extend(language.sources.iter().map(|source| format!("{}/{source}", language.directory)));
    }
    let mut present = BTreeSet::new();
    for name in names(&examples()) {
        if matches!(&*name, "README.md" | "packages.txt") {
            continue;
        }
        let directory = examples().join(&name);
        assert!(directory.is_dir(), "examples/{name} is not in the directory of a language");
        let sources = names(&directory).into_iter().filter(|file| file != "build.sh" && !file.starts_with("member."));
        present.extend(sources.map(|file| format!("{name}/{file}")));
    }
    assert_eq!(present, covered, "the files in examples/ (left) and those that are tested (right)");
}

fn check_language(directory: &str) {
    let language = LANGUAGES.iter().find(|language| language.directory == directory).expect("it is in the table");
    language.check_needs();
    let built = tempfile::tempdir().expect("a temporary directory");
    let compiled = language.build(built.path());
    for source in language.sources {
        let (stem, _) = source.rsplit_once('.').expect("a name has an extension");
        // A Java class has a name in camel case, its executable one like the others.
        let stem = if stem == "HelloStream" { "hello-stream" } else { stem };
        let program =
            if compiled { built.path().join(stem.to_lowercase()) } else { examples().join(directory).join(source) };
        assert!(program.is_file(), "{} is missing for {directory}/{source}", program.display());
        eprintln!("--- example: {directory}/{source}");
        // The canonical script handles plain names only, and no missing name.
        let is_canonical = (directory, *source) == ("bash", "hello.sh");
        match stem {
            _ if is_canonical => check_program(&program, None, &[MIKE, MIKE, MIKE], false),
            _ if stem.ends_with("-once") => check_program(&program, Some("0"), &[MIKE, ESCAPED, UNNAMED], true),
            _ => check_program(&program, None, &[MIKE, ESCAPED, UNNAMED], true),
        }
        if stem.ends_with("-stream") {
            check_stream(&program);
            let lines = fs::read_to_string(examples().join(directory).join(source))
                .expect("the source can be read")
                .lines()
                .count();
            assert!(lines <= 40, "{directory}/{source} is meant to be copied, but has {lines} lines");
        }
    }
    new_action::check_language(directory);
}

/// Arguments as they are sent, and the name in the greeting.
type Greeting = (&'static str, &'static str);

const MIKE: Greeting = (r#"{"name":"Mike"}"#, "Mike");
const ESCAPED: Greeting = (r#"{"name":"\u00dcber \"日本\" \\"}"#, r#"Über "日本" \"#);
const UNNAMED: Greeting = ("{}", "stranger");

/// Serves a program and checks its greetings. The first must be to Mike.
fn check_program(program: &Path, protocol: Option<&str>, greetings: &[Greeting], logs_name: bool) {
    let env: Vec<_> = protocol.map(|name| ("PIPELOOP_PROTOCOL", name)).into_iter().collect();
    let mut proxy = Proxy::start(&[program], &env);
    let keeps_its_process = protocol != Some("0");
    let before = proxy.actions();
    for (done, (arguments, name)) in greetings.iter().enumerate() {
        let response = proxy.run_raw(&format!(r#"{{"value":{arguments},"activation_id":"test"}}"#));
        response.check(200, &greeting(name));
        let logs = proxy.check_streams(done + 1);
        if logs_name && done == 0 {
            assert!(logs.both().lines().any(|line| line == "name=Mike"), "the line `name=Mike` is missing: {logs:?}");
        }
        if keeps_its_process {
            assert_eq!(before.len(), 1, "not one process for all activations: {before:?}");
            assert_eq!(proxy.actions(), before, "another process after activation {}", done + 1);
        }
    }
    proxy.stop();
    // Every example passes `pipeloop check`, also the canonical script.
    let env: Vec<_> = protocol.map(|name| ("PIPELOOP_PROTOCOL", name)).into_iter().collect();
    pipeloop(&[OsStr::new("check"), program.as_os_str(), OsStr::new("--strict")], &env, "").check(0);
}

/// A program of version 2 greets in chunks, and greets one caller while another activation sleeps.
fn check_stream(program: &Path) {
    let mut proxy = Proxy::start(&[program.as_os_str(), "--drain-grace".as_ref(), "0s".as_ref()], &[]);
    let mut caller = proxy.caller();
    caller.send_run("application/x-ndjson", &json!({"name": "Mike"}));
    assert_eq!(caller.receive_head().expect("an answer").status, 200);
    let chunks = std::iter::from_fn(|| caller.receive_chunk().expect("the stream is complete"));
    let text = String::from_utf8(chunks.flatten().collect()).expect("the stream is UTF-8");
    let frames: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    let expected = [json!({"chunk": "Hello, "}), json!({"chunk": "Mike"}), json!({"result": greeting("Mike")})];
    assert_eq!(frames, expected, "{}", program.display());

    let before = proxy.actions();
    let mut sleeper = proxy.caller();
    sleeper.send_run("application/json", &json!({"name": "Sleeper", "ms": 60_000}));
    proxy.run(&json!({"name": "Ann"})).check(200, &greeting("Ann"));
    assert!(
        sleeper.is_silent_for(Duration::from_millis(1)),
        "{}: one activation waited for the other",
        program.display()
    );
    assert_eq!(proxy.actions().first(), before.first(), "both run in one process");
    proxy.stop();
}

fn greeting(name: &str) -> Value {
    json!({"hello": format!("Hello, {name}")})
}

impl Language {
    #[track_caller]
    fn check_needs(&self) {
        let path = search_path();
        for (command, package) in self.needs {
            let found = std::env::split_paths(&path).any(|directory| directory.join(command).is_file());
            assert!(found, "{} needs `{command}`: apt-get install {package}", self.directory);
        }
    }

    fn packages(&self) -> String {
        self.needs
            .iter()
            .map(|(_, package)| *package)
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect::<Vec<_>>()
            .join(" ")
    }

    /// Runs the language's build script. Returns whether there is one.
    #[track_caller]
    fn build(&self, target: &Path) -> bool {
        let script = examples().join(self.directory).join("build.sh");
        if !script.exists() {
            return false;
        }
        // With the environment of the test: compilers have homes and caches.
        let output = Command::new(&script).arg(target).output();
        let output = output.unwrap_or_else(|error| panic!("{}: {error}", script.display()));
        assert!(
            output.status.success(),
            "{} failed ({}), which needs the packages {}:\n{}{}",
            script.display(),
            output.status,
            self.packages(),
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
        true
    }
}

fn examples() -> PathBuf {
    root().join("examples")
}

/// The names in a directory.
fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    entries.map(|entry| entry.expect("it can be read").file_name().into_string().expect("a name in UTF-8")).collect()
}
