//! `pipeloop new`: the examples, from the binary alone.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::support::{pipeloop, pipeloop_in, root, search_path};

/// The languages that the command knows, with their protocols.
fn listed() -> Vec<(String, Vec<String>)> {
    let ended = pipeloop(&["new", "--list", "--json"], &[], "");
    let list: Vec<Value> = serde_json::from_str(&ended.check(0).stdout).expect("the list is JSON");
    let text = |value: &Value| value.as_str().expect("a name is a string").to_owned();
    let protocols = |entry: &Value| entry["protocols"].as_array().expect("a list").iter().map(text).collect();
    list.iter().map(|entry| (text(&entry["language"]), protocols(entry))).collect()
}

/// Writes the example of a language, and returns what the command printed.
fn write(directory: &Path, language: &str, protocol: &str, target: &str) -> Value {
    let ended = pipeloop_in(directory, &["new", language, target, "--protocol", protocol, "--json"], &[], "");
    serde_json::from_str(&ended.check(0).stdout).expect("what was written is JSON")
}

/// Runs a command that `pipeloop new` printed, in a shell in which pipeloop is found.
#[track_caller]
fn shell(directory: &Path, command: &str) -> String {
    let tools = tempfile::tempdir().expect("a temporary directory");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_pipeloop"), tools.path().join("pipeloop"))
        .expect("the directory can be written");
    let output = Command::new("sh")
        .args(["-c", command])
        .current_dir(directory)
        // With the environment of the test: compilers have homes and caches.
        .env("PATH", format!("{}:{}", tools.path().display(), search_path()))
        .output()
        .expect("there is a shell");
    let printed = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command}: {}\n{printed}", output.status);
    String::from_utf8(output.stdout).expect("the output is UTF-8")
}

/// Writes, builds, runs and checks the example of a language in each protocol, by the commands that are printed.
/// The tests of the examples call this, because they need the same tools.
#[track_caller]
pub(crate) fn check_language(language: &str) {
    let (_, protocols) = listed().into_iter().find(|(name, _)| name == language).expect("the language is listed");
    for protocol in protocols {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let written = write(directory.path(), language, &protocol, "it's mine");
        if let Some(build) = written["build"].as_str() {
            shell(directory.path(), build);
        }
        let printed = shell(directory.path(), written["run"].as_str().expect("a command"));
        let answer = printed.lines().last().expect("an answer");
        let answer: Value = serde_json::from_str(answer).unwrap_or_else(|error| panic!("{printed}: {error}"));
        assert_eq!(answer, json!({"hello": "Hello, Mike"}), "{language}, protocol {protocol}");
        shell(directory.path(), written["check"].as_str().expect("a command"));
    }
}

#[test]
fn every_example_is_offered_as_it_stands() {
    let mut offered = BTreeSet::new();
    let directory = tempfile::tempdir().expect("a temporary directory");
    for (language, protocols) in listed() {
        for protocol in protocols {
            let target = format!("{language}-{protocol}");
            let written = write(directory.path(), &language, &protocol, &target);
            for file in written["files"].as_array().expect("a list") {
                let path = directory.path().join(file.as_str().expect("a path is a string"));
                let name = path.file_name().and_then(|name| name.to_str()).expect("a name in UTF-8").to_owned();
                if name == "input.json" {
                    continue;
                }
                let text = fs::read_to_string(&path).expect("the file was written");
                let example = root().join("examples").join(&language).join(&name);
                assert_eq!(text, fs::read_to_string(&example).expect("it is an example"), "{}", example.display());
                let mode = path.metadata().expect("the file exists").permissions().mode();
                assert_eq!(mode & 0o100 != 0, text.starts_with("#!"), "{}: mode {mode:o}", path.display());
                offered.insert(format!("{language}/{name}"));
            }
        }
    }
    let mut present = BTreeSet::new();
    for language in fs::read_dir(root().join("examples")).expect("there are examples") {
        let language = language.expect("the entry can be read").path();
        for file in language.is_dir().then(|| fs::read_dir(&language).expect("a directory")).into_iter().flatten() {
            let file = file.expect("the entry can be read").path();
            let path = file.strip_prefix(root().join("examples")).expect("it is below").display().to_string();
            present.insert(path);
        }
    }
    // The script of the mail that proposed the protocol. hello-careful.sh has none of its limits.
    assert!(present.remove("bash/hello.sh"));
    assert_eq!(offered, present, "the files that are offered (left) and those in examples/ (right)");
}

#[test]
fn the_commands_are_printed_for_people() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let ended = pipeloop_in(directory.path(), &["new", "c++"], &[], "");
    let expected = "\
wrote hello-cpp/hello.cpp
wrote hello-cpp/build.sh
wrote hello-cpp/input.json

It needs the Debian package g++. Next:

  build  hello-cpp/build.sh hello-cpp/build
  run    pipeloop run hello-cpp/build/hello --input hello-cpp/input.json
  check  pipeloop check hello-cpp/build/hello --input hello-cpp/input.json
  serve  pipeloop serve hello-cpp/build/hello
";
    assert_eq!(ended.check(0).stdout, expected);
}

#[test]
fn no_file_is_overwritten() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    fs::write(directory.path().join("hello.py"), "mine").expect("the directory can be written");
    let ended = pipeloop_in(directory.path(), &["new", "python", "."], &[], "");
    ended.check(2).says(&["`./hello.py` exists already", "another directory"]);
    assert_eq!(fs::read_to_string(directory.path().join("hello.py")).expect("the file is there"), "mine");
    assert!(!directory.path().join("input.json").exists(), "nothing else is written either");
    // A link that leads nowhere is somebody's file too.
    std::os::unix::fs::symlink("nowhere", directory.path().join("hello.rb")).expect("the directory can be written");
    pipeloop_in(directory.path(), &["new", "ruby", "."], &[], "").check(2).says(&["`./hello.rb` exists already"]);
    // Beside other files there is room.
    pipeloop_in(directory.path(), &["new", "perl", "."], &[], "").check(0);
}

#[test]
fn what_has_no_example_is_named_with_what_has_one() {
    pipeloop(&["new", "cobol"], &[], "").check(2).says(&["cobol", "bash, python, "]);
    pipeloop(&["new", "ruby", "--protocol", "2"], &[], "")
        .check(2)
        .says(&["ruby has examples of 1, actionloop", "python"]);
    pipeloop(&["new", "ruby", "--protocol", "auto"], &[], "").check(2).says(&["auto", "1, 2, 0, actionloop"]);
    pipeloop(&["new"], &[], "").check(2).says(&["LANGUAGE"]);
    let directory = tempfile::tempdir().expect("a temporary directory");
    fs::write(directory.path().join("file"), "").expect("the directory can be written");
    pipeloop_in(directory.path(), &["new", "python", "file/below"], &[], "").check(1).says(&["`file/below`"]);
}

#[test]
fn completion_offers_languages() {
    for shell in ["bash", "zsh"] {
        let ended = pipeloop(&["completion", shell], &[], "");
        assert!(ended.check(0).stdout.contains("haskell"), "{shell}");
    }
}
