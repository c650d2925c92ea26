//! `pipeloop new LANGUAGE [DIR]`: an example as the beginning of an action, from the binary alone.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use clap::Args;
use clap::builder::PossibleValue;
use serde::Serialize;

use crate::error::{Error, ProxyError};
use crate::protocol::Protocol;
use crate::text::shell_word;

use super::choice::Choice;
use super::output::{self, NewAction};

/// Write the example of a language as the beginning of an action.
///
/// The action greets: `{"name":"Mike"}` is answered with `{"hello":"Hello, Mike"}`. Beside it stands a test input,
/// and a build script if the language is compiled. No file that exists is changed.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  pipeloop new python                  writes hello-python/
  pipeloop new go my-action            writes my-action/
  pipeloop new python --protocol 2     an action that streams its answer
  pipeloop new --list                  every language, with its protocols and Debian packages")]
pub(super) struct New {
    /// Language of the action.
    #[arg(required_unless_present = "list", value_parser = Choice { parse: language, offered: languages }, hide_possible_values = true)]
    language: Option<&'static Language>,

    /// Directory to write to; it may exist. `hello-LANGUAGE` unless set.
    #[arg(value_name = "DIR")]
    directory: Option<PathBuf>,

    /// Protocol that the action speaks: 1, 2, 0 or actionloop. 1 unless set.
    #[arg(long, value_name = "PROTOCOL", value_parser = Choice { parse: protocol, offered: protocols }, hide_possible_values = true)]
    protocol: Option<Protocol>,

    /// Print each language with its protocols and the Debian packages it needs.
    #[arg(long, conflicts_with_all = ["language", "directory", "protocol"])]
    list: bool,

    /// With `--list`, print a JSON array of objects with `language`, `aliases`, `protocols` and `packages`. Otherwise
    /// print a JSON object with `files` and the commands `build`, `run`, `check` and `serve`.
    #[arg(long)]
    json: bool,
}

/// The arguments beside each example.
const INPUT: (&str, &str) = ("input.json", "{\"name\":\"Mike\"}\n");

/// The directory of the executables that a build script makes.
const BUILT: &str = "build";

impl New {
    pub(super) fn execute(self) -> Result<u8, Error> {
        let printed = match self.language {
            None => self.print_list(),
            Some(language) => {
                let program = language.program(self.protocol)?;
                let directory = self.directory.unwrap_or_else(|| format!("hello-{}", language.name).into());
                let written = language.write(program, &directory)?;
                let action = commands(language, program, &directory, &written);
                if self.json {
                    output::result(&serde_json::to_vec(&action).expect("commands are plain text"))
                } else {
                    output::new_action(&action)
                }
            }
        };
        output::unless_closed(printed)
            .map_err(|reason| ProxyError::System { doing: "write the list of files", reason })?;
        Ok(0)
    }

    fn print_list(&self) -> io::Result<()> {
        if self.json {
            let listed: Vec<_> = LANGUAGES.iter().map(Listed::of).collect();
            return output::result(&serde_json::to_vec(&listed).expect("a list is plain data"));
        }
        let rows = LANGUAGES.iter().map(|language| {
            let protocols: Vec<_> = language.protocols().map(Protocol::name).collect();
            [language.name.to_owned(), protocols.join(", "), language.packages.join(" ")]
        });
        output::table(["LANGUAGE", "PROTOCOLS", "DEBIAN PACKAGES"], &rows.collect::<Vec<_>>())
    }
}

/// A language, for `--list --json`.
#[derive(Serialize)]
struct Listed {
    language: &'static str,
    aliases: &'static [&'static str],
    protocols: Vec<&'static str>,
    packages: &'static [&'static str],
}

impl Listed {
    fn of(language: &Language) -> Self {
        let Language { name, aliases, packages, .. } = *language;
        Self { language: name, aliases, protocols: language.protocols().map(Protocol::name).collect(), packages }
    }
}

/// A language with examples.
#[derive(Debug)]
struct Language {
    /// Its directory under `examples/`.
    name: &'static str,
    aliases: &'static [&'static str],
    packages: &'static [&'static str],
    /// One for each protocol.
    programs: &'static [Program],
    /// What each of them needs beside it.
    support: &'static [File],
}

/// An example.
#[derive(Debug)]
struct Program {
    protocol: Protocol,
    source: File,
}

#[derive(Debug, Clone, Copy)]
struct File {
    name: &'static str,
    text: &'static str,
}

impl File {
    /// Whether the kernel can execute it.
    fn is_script(self) -> bool {
        self.text.starts_with("#!")
    }
}

macro_rules! languages {
    ($($name:literal ($($alias:literal),*) needs [$($package:literal),*] {
        $($protocol:ident $source:literal),* $(; $($support:literal),*)?
    })*) => {
        /// Every language with its examples, as they stand in `examples/`.
        const LANGUAGES: &[Language] = &[$(Language {
            name: $name,
            aliases: &[$($alias),*],
            packages: &[$($package),*],
            programs: &[$(Program { protocol: Protocol::$protocol, source: file!($name, $source) }),*],
            support: &[$($(file!($name, $support)),*)?],
        }),*];
    };
}

macro_rules! file {
    ($directory:literal, $name:literal) => {
        File { name: $name, text: include_str!(concat!("../../examples/", $directory, "/", $name)) }
    };
}

languages! {
    "bash" ("sh", "shell") needs ["jq"] {
        PipeLoop "hello-careful.sh", Streams "hello-stream.sh", SingleShot "hello-once.sh", ActionLoop "hello-fd3.sh"
    }
    "python" ("py", "python3") needs ["python3"] {
        PipeLoop "hello.py", Streams "hello-stream.py", SingleShot "hello-once.py", ActionLoop "hello-fd3.py"
    }
    "perl" ("pl") needs ["perl"] { PipeLoop "hello.pl", ActionLoop "hello-fd3.pl" }
    "ruby" ("rb") needs ["ruby"] { PipeLoop "hello.rb", ActionLoop "hello-fd3.rb" }
    "nodejs" ("node", "js", "javascript") needs ["nodejs"] {
        PipeLoop "hello.js", Streams "hello-stream.js", ActionLoop "hello-fd3.js"
    }
    "php" () needs ["php-cli"] { PipeLoop "hello.php", ActionLoop "hello-fd3.php" }
    "go" ("golang") needs ["golang-go"] {
        PipeLoop "hello.go", Streams "hello-stream.go", ActionLoop "hello-fd3.go"; "build.sh"
    }
    "rust" ("rs") needs ["rustc"] {
        PipeLoop "hello.rs", Streams "hello-stream.rs", ActionLoop "hello-fd3.rs";
        "member.rs", "build.sh"
    }
    "c" () needs ["gcc"] {
        PipeLoop "hello.c", SingleShot "hello-once.c", ActionLoop "hello-fd3.c"; "member.h", "build.sh"
    }
    "cpp" ("c++", "cxx") needs ["g++"] { PipeLoop "hello.cpp"; "build.sh" }
    "java" () needs ["default-jdk-headless"] {
        PipeLoop "Hello.java", Streams "HelloStream.java"; "build.sh"
    }
    "haskell" ("hs") needs ["ghc"] { PipeLoop "hello.hs"; "build.sh" }
    "csharp" ("c#", "cs") needs ["mono-mcs", "mono-runtime"] { PipeLoop "hello.cs"; "build.sh" }
}

impl Language {
    fn protocols(&self) -> impl Iterator<Item = Protocol> {
        self.programs.iter().map(|program| program.protocol)
    }

    /// The example that speaks a protocol; version 1 unless asked for another.
    ///
    /// # Errors
    /// [`ProxyError::BadSetting`] if there is none.
    fn program(&self, protocol: Option<Protocol>) -> Result<&Program, Error> {
        let asked = protocol.unwrap_or(Protocol::PipeLoop);
        self.programs.iter().find(|program| program.protocol == asked).ok_or_else(|| {
            let has: Vec<_> = self.protocols().map(Protocol::name).collect();
            let speak: Vec<_> = LANGUAGES
                .iter()
                .filter(|other| other.protocols().any(|spoken| spoken == asked))
                .map(|language| language.name)
                .collect();
            Error::Proxy(ProxyError::BadSetting {
                setting: "--protocol",
                reason: format!(
                    "{} has examples of {}; {asked} has examples in {}",
                    self.name,
                    has.join(", "),
                    speak.join(", ")
                ),
            })
        })
    }

    /// Writes an example and what it needs into a directory, which is made if there is none. Returns the files.
    ///
    /// # Errors
    /// [`ProxyError::BadSetting`] if one of the files exists, and then nothing is written;
    /// [`ProxyError::System`] if the directory or a file cannot be made.
    fn write(&self, program: &Program, directory: &Path) -> Result<Vec<PathBuf>, Error> {
        let (name, text) = INPUT;
        let files: Vec<File> =
            [program.source].iter().chain(self.support).copied().chain([File { name, text }]).collect();
        let paths: Vec<_> = files.iter().map(|file| directory.join(file.name)).collect();
        if let Some(path) = paths.iter().find(|path| path.symlink_metadata().is_ok()) {
            return Err(exists(path));
        }
        fs::create_dir_all(directory).map_err(|reason| cannot_write(directory, &reason))?;
        for (file, path) in files.iter().zip(&paths) {
            let mode = if file.is_script() { 0o777 } else { 0o666 };
            let opened = OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
            opened.and_then(|mut opened| opened.write_all(file.text.as_bytes())).map_err(|reason| {
                if reason.kind() == io::ErrorKind::AlreadyExists { exists(path) } else { cannot_write(path, &reason) }
            })?;
        }
        Ok(paths)
    }
}

fn exists(path: &Path) -> Error {
    let reason = format!("`{}` exists already; name another directory", path.display());
    Error::Proxy(ProxyError::BadSetting { setting: "DIR", reason })
}

fn cannot_write(path: &Path, reason: &io::Error) -> Error {
    let reason = io::Error::new(reason.kind(), format!("`{}`: {reason}", path.display()));
    Error::Proxy(ProxyError::System { doing: "write the action", reason })
}

/// The commands that build, run, check and serve an example that was written.
fn commands(language: &Language, program: &Program, directory: &Path, files: &[PathBuf]) -> NewAction {
    let script = language.support.iter().find(|file| file.name == "build.sh");
    let action = match script {
        None => directory.join(program.source.name),
        Some(_) => directory.join(BUILT).join(executable(program.source.name)),
    };
    let (action, input) = (quoted(&action), quoted(&directory.join(INPUT.0)));
    // Version 0 is never guessed.
    let protocol = if program.protocol == Protocol::SingleShot { " --protocol 0" } else { "" };
    let stream = if program.protocol == Protocol::Streams { " --stream" } else { "" };
    NewAction {
        files: files.iter().map(|path| path.display().to_string()).collect(),
        packages: language.packages,
        build: script
            .map(|script| format!("{} {}", quoted(&directory.join(script.name)), quoted(&directory.join(BUILT)))),
        run: format!("pipeloop run{protocol}{stream} {action} --input {input}"),
        check: format!("pipeloop check{protocol} {action} --input {input}"),
        serve: format!("pipeloop serve{protocol} {action}"),
    }
}

/// The name of the executable that a build script makes of a source file: `hello-stream` for `HelloStream.java`.
fn executable(source: &str) -> String {
    let (stem, _) = source.rsplit_once('.').unwrap_or((source, ""));
    let mut name = String::new();
    for (at, c) in stem.char_indices() {
        if c.is_ascii_uppercase() && at > 0 {
            name.push('-');
        }
        name.push(c.to_ascii_lowercase());
    }
    name
}

/// A path as a shell takes it, and as no option.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let text = if text.starts_with('-') || !text.contains('/') { format!("./{text}") } else { text };
    shell_word(&text)
}

fn languages() -> Vec<PossibleValue> {
    LANGUAGES.iter().map(|language| PossibleValue::new(language.name)).collect()
}

/// Finds a language by its name or another name for it.
fn language(typed: &str) -> Result<&'static Language, String> {
    let typed = typed.to_lowercase();
    let found = LANGUAGES.iter().find(|language| language.name == typed || language.aliases.contains(&&*typed));
    found.ok_or_else(|| {
        let names: Vec<_> = LANGUAGES.iter().map(|language| language.name).collect();
        format!("there are examples in {}", names.join(", "))
    })
}

/// What examples speak, the recommended one first.
const SPOKEN: [Protocol; 4] = [Protocol::PipeLoop, Protocol::Streams, Protocol::SingleShot, Protocol::ActionLoop];

fn protocols() -> Vec<PossibleValue> {
    SPOKEN.map(|protocol| PossibleValue::new(protocol.name())).into()
}

fn protocol(typed: &str) -> Result<Protocol, String> {
    let found = SPOKEN.into_iter().find(|protocol| protocol.name() == typed);
    found.ok_or_else(|| format!("expected one of {}", SPOKEN.map(Protocol::name).join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_quoted_for_a_shell() {
        for (path, expected) in [
            ("hello-go/hello", "hello-go/hello"),
            ("exec", "./exec"),
            ("-x/exec", "./-x/exec"),
            ("my action/it's", r"'my action/it'\''s'"),
        ] {
            assert_eq!(quoted(Path::new(path)), expected);
        }
    }
}
