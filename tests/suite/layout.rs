//! The layout of `src/`: the direction of imports, the size of each module, and where `unsafe` may stand.
//!
//! `clippy.toml` holds the other powers (environment, printing, starting, waiting) to one place each.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::support::root;

/// The top-level modules of `src/` in layers, in the order in which an activation passes them. A file imports only from
/// layers below its own. Modules in one layer do not import each other.
const LAYERS: &[&[&str]] = &[
    &["cli"],
    &["front"],
    &["check"],
    &["action"],
    &["config"],
    &["artifact", "protocol"],
    // HTTP for the fronts; knows no action.
    &["server"],
    &["logs"],
    &["activation"],
    &["memory_budget"],
    &["error"],
    &["process"],
    &["time", "text"],
];

/// A source file: its top-level module, its path and its text.
struct Source {
    module: String,
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
            let module = path.split(['/', '.']).next().expect("a path has a first part").to_owned();
            sources.push(Source { module, path, text });
        }
    }
}

/// The code of a file without its comments and its inner tests, which may import anything.
fn code(text: &str) -> String {
    let code = text.split("#[cfg(test)]\nmod ").next().expect("a split has a first part");
    code.lines().filter(|line| !line.trim_start().starts_with("//")).map(|line| format!("{line}\n")).collect()
}

fn rank(module: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.contains(&module))
}

/// Every import of a file from a layer that is not below its own, or from an unknown module.
fn wrong_imports(source: &Source) -> Vec<String> {
    let Some(own) = rank(&source.module) else { return vec![format!("{} is in an unknown module", source.path)] };
    let code = code(&source.text);
    let mut wrong = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        // `$crate::` and names such as `mycrate::` are no imports from this crate.
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
            let module = name.trim_start().split(end).next().expect("a split has a first part");
            if module == source.module || module.is_empty() {
                continue;
            }
            if rank(module).is_none_or(|other| other <= own) {
                wrong.push(format!("{} ({}) imports crate::{module}", source.path, source.module));
            }
        }
    }
    wrong
}

#[test]
fn imports_point_in_the_direction_of_the_layers() {
    let is_in_a_layer = |source: &Source| !["lib", "main"].contains(&&*source.module);
    let wrong: Vec<_> = sources().iter().filter(|source| is_in_a_layer(source)).flat_map(wrong_imports).collect();
    assert!(wrong.is_empty(), "imports against the direction of ARCHITECTURE.md:\n{}", wrong.join("\n"));
}

#[test]
fn an_import_against_the_direction_is_found() {
    let check = |module: &str, text: &str| {
        let source = Source { module: module.into(), path: format!("{module}.rs"), text: text.into() };
        wrong_imports(&source).len()
    };
    assert_eq!(check("action", "use crate::protocol::line;\nuse crate::process::{Launch, Process};\n"), 0);
    assert_eq!(check("process", "use crate::protocol::line;\n"), 1);
    assert_eq!(check("protocol", "fn f() { crate::artifact::place() }\n"), 1, "modules in one layer");
    assert_eq!(check("server", "use crate::{\n    action::Action,\n    error::Error,\n};\n"), 1);
    assert_eq!(check("server", "use crate::attic::Action;\n"), 1, "an unknown module");
    assert_eq!(check("attic", ""), 1, "a file in an unknown module");
    assert_eq!(check("process", "//! See [`crate::protocol`].\nfn f() {}\n"), 0, "comments import nothing");
    assert_eq!(check("process", "#[cfg(test)]\nmod tests {\n    use crate::protocol::line;\n}\n"), 0, "inner tests");
}

#[test]
fn no_module_holds_more_than_a_fifth_of_the_source() {
    let mut lines: BTreeMap<String, usize> = BTreeMap::new();
    for source in sources() {
        *lines.entry(source.module).or_default() += source.text.lines().count();
    }
    let total: usize = lines.values().sum();
    for (module, lines) in lines {
        assert!(lines * 5 <= total, "src/{module} has {lines} of {total} lines; split it by subject");
    }
}

#[test]
fn unsafe_code_is_in_process_only_and_has_a_safety_comment() {
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
            assert_eq!(source.module, "process", "{place}: unsafe code outside process/");
            // A function that is unsafe by its trait only declares it; its body has a block of its own.
            if !code.contains("unsafe fn ") {
                let above = lines[number.saturating_sub(6)..number].join("\n");
                assert!(above.contains("// SAFETY:"), "{place}: no `// SAFETY:` above it");
            }
        }
    }
}

#[test]
fn every_file_starts_with_a_module_comment() {
    for source in sources() {
        assert!(source.text.starts_with("//! "), "src/{} does not begin with `//!`", source.path);
    }
}
