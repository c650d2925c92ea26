//! The documentation holds: every action in it runs, every setting in it exists.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use crate::support::{pipeloop_in, root, search_path};

/// An action in `docs/protocol.md`: `<!-- action: NAME.EXT protocol=P result=JSON -->` and the code block after it.
struct Documented {
    name: String,
    protocol: Option<String>,
    /// Its answer, unless that is a greeting.
    result: Option<String>,
    code: String,
}

impl Documented {
    fn answers(&self, stdout: &str, name: &str) -> bool {
        match &self.result {
            None => greets(stdout, name),
            Some(result) => stdout.trim_end() == result,
        }
    }
}

fn document(name: &str) -> String {
    let path = root().join("docs").join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Every marked code block of a document.
fn actions(document: &str) -> Vec<Documented> {
    let mut found = Vec::new();
    let mut rest = document;
    while let Some((_, after)) = rest.split_once("<!-- action: ") {
        let (marker, after) = after.split_once(" -->\n").expect("a marker ends with its line");
        let mut words = marker.split(' ');
        let name = words.next().expect("a marker has a name").to_owned();
        let (mut protocol, mut result) = (None, None);
        for word in words {
            match word.split_once('=') {
                Some(("protocol", name)) => protocol = Some(name.to_owned()),
                Some(("result", json)) => result = Some(json.to_owned()),
                _ => panic!("{marker:?}: expected protocol=P or result=JSON"),
            }
        }
        let block = after.strip_prefix("```").unwrap_or_else(|| panic!("{marker:?} is not followed by a code block"));
        let (language, block) = block.split_once('\n').expect("a code block has lines");
        assert!(!language.is_empty(), "{marker:?}: the code block names no language");
        let (code, after) =
            block.split_once("\n```\n").unwrap_or_else(|| panic!("{marker:?}: the code block does not end"));
        found.push(Documented { name, protocol, result, code: format!("{code}\n") });
        rest = after;
    }
    found
}

/// The actions of the page at the root, which holds version 1 alone.
fn actions_of_the_page() -> Vec<Documented> {
    actions(&document("../PROTOCOL.md"))
}

/// Writes an action into a directory, and compiles it if it is source code.
fn build(action: &Documented, directory: &Path) -> PathBuf {
    let source = directory.join(&action.name);
    fs::write(&source, &action.code).expect("the directory can be written");
    let (_, extension) = action.name.rsplit_once('.').expect("a name has an extension");
    let compiler: &[&str] = match extension {
        "c" => &["cc", "-o"],
        "go" => &["go", "build", "-o"],
        "rs" => &["rustc", "-o"],
        _ => {
            fs::set_permissions(&source, fs::Permissions::from_mode(0o755)).expect("the file can be changed");
            return source;
        }
    };
    let target = directory.join("exec");
    let output = Command::new(compiler[0])
        .args(&compiler[1..])
        .args([&target, &source])
        .current_dir(directory)
        .output()
        .unwrap_or_else(|error| panic!("{compiler:?}: {error}"));
    assert!(output.status.success(), "{}: {}", action.name, String::from_utf8_lossy(&output.stderr));
    target
}

fn greets(stdout: &str, name: &str) -> bool {
    serde_json::from_str::<serde_json::Value>(stdout)
        .is_ok_and(|answer| answer == serde_json::json!({ "hello": format!("Hello, {name}") }))
}

#[test]
fn version_1_fits_on_a_page() {
    let lines = document("../PROTOCOL.md").lines().count();
    assert!(lines <= 80, "PROTOCOL.md has {lines} lines");
    assert_eq!(actions_of_the_page().len(), 1, "PROTOCOL.md has one example");
}

#[test]
fn every_documented_action_runs_as_it_stands() {
    let actions = actions(&document("protocol.md"));
    for language in ["sh", "py", "js", "go", "c", "rs"] {
        let name = format!("hello.{language}");
        assert!(actions.iter().any(|action| action.name == name), "{name} is missing in docs/protocol.md");
    }
    for action in actions.iter().chain(&actions_of_the_page()) {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let executable = build(action, directory.path());
        let executable = executable.to_str().expect("the path is UTF-8");
        let mut arguments = vec!["run", executable, "-p", "name=Mike"];
        if let Some(protocol) = &action.protocol {
            arguments.extend(["--protocol", protocol]);
        }
        let ended = pipeloop_in(directory.path(), &arguments, &[], "");
        ended.check(0);
        assert!(action.answers(&ended.stdout, "Mike"), "{} answers {}", action.name, ended.stdout);
    }
}

/// A long line of arguments and several in a row: common mistakes fail on these.
#[test]
fn every_documented_loop_takes_long_lines_one_after_another() {
    let long = format!(r#"{{"filler":"{}","name":"Mike"}}"#, "x".repeat(200_000));
    let input = format!("{long}\n{{\"name\":\"Ann\"}}\n");
    for action in actions(&document("protocol.md")).iter().chain(&actions_of_the_page()) {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let executable = build(action, directory.path());
        let mut arguments = vec!["run", "--lines", executable.to_str().expect("the path is UTF-8")];
        if let Some(protocol) = &action.protocol {
            arguments.extend(["--protocol", protocol]);
        }
        let ended = pipeloop_in(directory.path(), &arguments, &[], &input);
        ended.check(0);
        let answers: Vec<_> = ended.stdout.lines().collect();
        assert!(
            matches!(answers[..], [first, second] if action.answers(first, "Mike") && action.answers(second, "Ann")),
            "{} answers {}",
            action.name,
            ended.stdout
        );
    }
}

/// Flag, variable and default of every row of the settings tables in a part of a document. The cells stand in backticks.
fn documented_settings(part: &str) -> BTreeSet<(String, String, String)> {
    let code = |cell: &str| cell.trim().trim_matches('`').to_owned();
    part.lines()
        .filter(|line| line.starts_with("| `--"))
        .map(|line| line.split('|').collect::<Vec<_>>())
        .filter(|cells| cells[2].contains("`PIPELOOP_"))
        .map(|cells| (code(cells[1]), code(cells[2]), code(cells[3])))
        .collect()
}

/// The same, as `--help` and `-h` print it: `--x <X>  … [env: PIPELOOP_X=] [default: y]`, wrapped anywhere.
fn printed_settings(help: &str) -> BTreeSet<(String, String, String)> {
    let words = help.split_whitespace().collect::<Vec<_>>().join(" ");
    let between = |text: &str, before: &str, after: &str| {
        text.split_once(before).and_then(|(_, rest)| rest.split_once(after)).map(|(inner, _)| inner.to_owned())
    };
    words
        .split(" --")
        .skip(1)
        .filter_map(|entry| {
            let variable = between(entry, "[env: ", "=")?;
            let flag = format!("--{}", entry.split(' ').next()?);
            Some((flag, variable, between(entry, "[default: ", "]").unwrap_or_default()))
        })
        .collect()
}

/// The output of a command for a help flag.
fn help(command: &str, flag: &str) -> String {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let help = pipeloop_in(directory.path(), &[command, flag], &[], "");
    help.check(0).stdout.clone()
}

/// The document's settings that `--help` prints, and those that it hides.
fn listed_and_hidden_settings() -> [BTreeSet<(String, String, String)>; 2] {
    let document = document("configuration.md");
    let (listed, hidden) =
        document.split_once("## Values that need no setting").expect("the document has this section");
    [documented_settings(listed), documented_settings(hidden)]
}

#[test]
fn the_settings_tables_match_help() {
    let [listed, _] = listed_and_hidden_settings();
    let printed = printed_settings(&help("serve", "--help"));
    assert!(printed.len() > 15, "the help is not parsed right: {printed:?}");
    assert_eq!(listed, printed, "docs/configuration.md (left) and `pipeloop serve --help` (right) differ");
}

#[test]
fn short_help_prints_about_ten_of_the_settings() {
    for (command, count) in [("serve", 8..=12), ("run", 4..=8), ("check", 4..=8)] {
        let (short, long) = (printed_settings(&help(command, "-h")), printed_settings(&help(command, "--help")));
        assert!(count.contains(&short.len()), "{command}: {short:?}");
        assert!(short.is_subset(&long), "{command}: {short:?}");
        assert!(short.len() < long.len(), "{command}: {short:?}");
    }
}

#[test]
fn settings_that_help_hides_still_work() {
    let [listed, hidden] = listed_and_hidden_settings();
    assert!(!hidden.is_empty() && hidden.is_disjoint(&listed), "{hidden:?}");
    for (flag, variable, _) in &hidden {
        for command in ["serve", "run"] {
            for help_flag in ["-h", "--help"] {
                assert!(!help(command, help_flag).contains(variable), "{command} {help_flag} prints {variable}");
            }
        }
        let directory = tempfile::tempdir().expect("a temporary directory");
        let refused = pipeloop_in(directory.path(), &["serve"], &[(variable, "nonsense")], "");
        refused.check(2).says(&[flag, "nonsense"]);
    }
}

/// Inner tests compare the document with the codes in the source; this compares the command with the document.
#[test]
fn explain_prints_the_sections_of_the_document() {
    let document = document("errors.md");
    let directory = tempfile::tempdir().expect("a temporary directory");
    let mut sections = 0;
    for section in document.split("\n## ").skip(1) {
        let (heading, items) = section.split_once('\n').expect("a section has lines");
        let (code, _) = heading.split_once(": ").expect("a heading has a code");
        let explained = pipeloop_in(directory.path(), &["explain", code], &[], "");
        explained.check(0);
        let mut lines = explained.stdout.lines();
        assert_eq!(lines.next(), Some(heading));
        for item in items.lines().filter_map(|line| line.strip_prefix("- **")) {
            let (label, text) = item.split_once(":** ").expect("an item has a label");
            let printed = lines.by_ref().find_map(|line| line.strip_prefix(&format!("{label}:")));
            assert_eq!(printed.map(str::trim), Some(text.trim()), "{code}, {label}");
        }
        sections += 1;
    }
    assert!(sections > 40, "the document is not parsed right: {sections} sections");
}

/// The commands of `docs/errors.md` that need nothing but a shell, gcc, zip and jq.
fn recipes(document: &str) -> Vec<(&str, &str)> {
    let mut found = Vec::new();
    for section in document.split("\n## ").skip(1) {
        let (code, items) = section.split_once(": ").expect("a heading has a code");
        let (_, item) = items.split_once("- **To get it:** ").expect("a section says how to get its error");
        let item = item.lines().next().expect("a split has a first line");
        let complete = |command: &&str| {
            ["pipeloop run ", "pipeloop check "].iter().any(|call| command.contains(call))
                && !["ACTION", "go build", "-march="].iter().any(|other| command.contains(other))
        };
        // Code spans stand between every other pair of backticks.
        found.extend(item.split('`').skip(1).step_by(2).filter(complete).map(|command| (code, command)));
    }
    found
}

/// A command that hangs, or produces another error, is a bug in the document.
#[test]
fn each_documented_command_produces_its_error() {
    let document = document("errors.md");
    let recipes = recipes(&document);
    assert!(recipes.len() > 40, "the document is not parsed right: {} commands", recipes.len());
    let tools = tempfile::tempdir().expect("a temporary directory");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_pipeloop"), tools.path().join("pipeloop"))
        .expect("the directory can be written");
    let path = format!("{}:{}", tools.path().display(), search_path());
    let next = AtomicUsize::new(0);
    // Most of the time is spent waiting for limits.
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while let Some((code, command)) = recipes.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let directory = tempfile::tempdir().expect("a temporary directory");
                    let output = Command::new("timeout")
                        .args(["60", "sh", "-c", command])
                        .current_dir(directory.path())
                        .env_clear()
                        .env("PATH", &path)
                        .stdin(Stdio::null())
                        .output()
                        .expect("there is a shell");
                    let printed = [output.stdout, output.stderr].concat();
                    let printed = String::from_utf8_lossy(&printed);
                    assert!(printed.contains(code), "{code}: {command}\n{}\n{printed}", output.status);
                }
            });
        }
    });
}

/// A link to a file or to a section of a document.
#[test]
fn every_link_has_a_target() {
    let anchor = |heading: &str| -> String {
        let kept = heading.to_lowercase().replace('`', "");
        kept.chars()
            .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
            .collect::<String>()
            .replace(' ', "-")
    };
    for name in [
        "README.md",
        "../PROTOCOL.md",
        "protocol.md",
        "openwhisk.md",
        "containers.md",
        "configuration.md",
        "errors.md",
        "lifecycle.md",
        "reliability.md",
        "performance.md",
        "maintainers/performance.md",
        "maintainers/soak.md",
    ] {
        let directory = root().join("docs").join(name).parent().expect("a document is in a directory").to_owned();
        let text = document(name);
        for (at, _) in text.match_indices("](") {
            let target = text[at + 2..].split(')').next().expect("a split has a first part");
            if target.contains("://") {
                continue;
            }
            let (file, section) = target.split_once('#').unwrap_or((target, ""));
            let path = if file.is_empty() { root().join("docs").join(name) } else { directory.join(file) };
            assert!(path.exists(), "{name} links to {target}");
            if !section.is_empty() {
                let linked = fs::read_to_string(&path).expect("a document");
                let found = linked
                    .lines()
                    .filter(|line| line.starts_with('#'))
                    .any(|line| anchor(line.trim_start_matches('#').trim()) == section);
                assert!(found, "{name} links to {target}");
            }
        }
    }
}
