//! The layout of `src/`: which way imports point, how large a room may grow, where `unsafe` may stand.
//!
//! `clippy.toml` holds the other powers (environment, printing, starting, waiting) to one place each.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::support::root;

/// The rooms of `src/`, in the order of the road an activation takes. A file imports from rooms that stand below
/// its own only. Rooms in one row know nothing of each other.
const ROAD: &[&[&str]] = &[
    &["cli"],
    &["front"],
    &["check"],
    &["action"],
    &["config"],
    &["artifact", "protocol"],
    // What fronts speak HTTP with: it knows no action.
    &["server"],
    &["logs"],
    &["activation"],
    &["memory_budget"],
    &["error"],
    &["process"],
    &["time", "text"],
];

/// A source file: its room, its path and its text.
struct Source {
    room: String,
    path: String,
    text: String,
}

fn sources() -> Vec<Source> {
    let mut sources = Vec::new();
    collect(&root().join("src"), &mut sources);
    assert!(sources.len() > 50, "only {} files are in src/", sources.len());
    sources
}

fn collect(directory: &Path, sources: &mut Vec<Source>) {
    for entry in fs::read_dir(directory).expect("src/ can be read") {
        let path = entry.expect("src/ can be read").path();
        if path.is_dir() {
            collect(&path, sources);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).expect("a source file is text");
            let path = path.strip_prefix(root().join("src")).expect("it is below src/").display().to_string();
            let room = path.split(['/', '.']).next().expect("a path has a first part").to_owned();
            sources.push(Source { room, path, text });
        }
    }
}

/// The code of a file without its comments and its inner tests, which may use what they like.
fn code(text: &str) -> String {
    let code = text.split("#[cfg(test)]\nmod ").next().expect("a split has a first part");
    code.lines().filter(|line| !line.trim_start().starts_with("//")).map(|line| format!("{line}\n")).collect()
}

fn rank(room: &str) -> Option<usize> {
    ROAD.iter().position(|row| row.contains(&room))
}

/// Every import of a file that points the wrong way, or at a room that is on no map.
fn wrong_imports(source: &Source) -> Vec<String> {
    let Some(own) = rank(&source.room) else { return vec![format!("{} is in no known room", source.path)] };
    let code = code(&source.text);
    let mut wrong = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        // `$crate::` and names such as `mycrate::` are something else.
        if code[..at].ends_with(|before: char| before.is_alphanumeric() || before == '_' || before == '$') {
            continue;
        }
        let rest = &code[at + "crate::".len()..];
        let names: Vec<&str> = match rest.strip_prefix('{') {
            // `use crate::{a::A, b}`: the first name of each item.
            Some(list) => list.split('}').next().expect("a split has a first part").split(',').collect(),
            None => vec![rest],
        };
        for name in names {
            let end = |letter: char| !letter.is_alphanumeric() && letter != '_';
            let room = name.trim_start().split(end).next().expect("a split has a first part");
            if room == source.room || room.is_empty() {
                continue;
            }
            if rank(room).is_none_or(|other| other <= own) {
                wrong.push(format!("{} ({}) imports crate::{room}", source.path, source.room));
            }
        }
    }
    wrong
}

#[test]
fn imports_point_along_the_road() {
    let rooms = |source: &Source| !["lib", "main"].contains(&&*source.room);
    let wrong: Vec<_> = sources().iter().filter(|source| rooms(source)).flat_map(wrong_imports).collect();
    assert!(wrong.is_empty(), "imports against the direction of ARCHITECTURE.md:\n{}", wrong.join("\n"));
}

#[test]
fn an_import_against_the_direction_is_found() {
    let check = |room: &str, text: &str| {
        let source = Source { room: room.into(), path: format!("{room}.rs"), text: text.into() };
        wrong_imports(&source).len()
    };
    assert_eq!(check("action", "use crate::protocol::line;\nuse crate::process::{Launch, Process};\n"), 0);
    assert_eq!(check("process", "use crate::protocol::line;\n"), 1);
    assert_eq!(check("protocol", "fn f() { crate::artifact::place() }\n"), 1, "rooms in one row");
    assert_eq!(check("server", "use crate::{\n    action::Action,\n    error::Error,\n};\n"), 1);
    assert_eq!(check("server", "use crate::attic::Action;\n"), 1, "an unknown room");
    assert_eq!(check("attic", ""), 1, "a file of an unknown room");
    assert_eq!(check("process", "//! See [`crate::protocol`].\nfn f() {}\n"), 0, "comments import nothing");
    assert_eq!(check("process", "#[cfg(test)]\nmod tests {\n    use crate::protocol::line;\n}\n"), 0, "inner tests");
}

#[test]
fn no_room_holds_more_than_a_fifth_of_the_source() {
    let mut lines: BTreeMap<String, usize> = BTreeMap::new();
    for source in sources() {
        *lines.entry(source.room).or_default() += source.text.lines().count();
    }
    let total: usize = lines.values().sum();
    for (room, lines) in lines {
        assert!(lines * 5 <= total, "src/{room} has {lines} of {total} lines; split it by subject");
    }
}

#[test]
fn unsafe_code_stands_in_process_only_and_says_why_it_is_safe() {
    for source in sources() {
        let lines: Vec<&str> = source.text.lines().collect();
        for (number, line) in lines.iter().enumerate() {
            let code = line.trim_start();
            let is_unsafe = !code.starts_with("//")
                && ["unsafe {", "unsafe fn ", "unsafe impl ", "unsafe extern "].iter().any(|word| code.contains(word));
            if !is_unsafe {
                continue;
            }
            let place = format!("src/{}:{}", source.path, number + 1);
            assert_eq!(source.room, "process", "{place}: unsafe code outside process/");
            // A function that is unsafe by its trait only declares it; its body has a block of its own.
            if !code.contains("unsafe fn ") {
                let above = lines[number.saturating_sub(6)..number].join("\n");
                assert!(above.contains("// SAFETY:"), "{place}: no `// SAFETY:` above it");
            }
        }
    }
}

#[test]
fn every_file_says_what_it_is_for() {
    for source in sources() {
        assert!(source.text.starts_with("//! "), "src/{} does not begin with `//!`", source.path);
    }
}
