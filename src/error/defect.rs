//! The catalogue of what can be wrong with a file that is to be started: one variant a cause, with
//! the facts as fields, a stable code, a clause and a hint.
//!
//! A clause says what is so about "it", the file, and stands behind `cannot start the action …:`.

use std::fmt;
use std::path::{Path, PathBuf};

use super::codes;
use crate::text::{excerpt, listing};

/// One thing that is wrong with a file.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are the facts that the clause of each cause is made of")]
pub enum Defect {
    // What it is.
    /// Nothing, or white space.
    Empty,
    /// Data of no known format.
    Unrecognised { seen: String },
    /// Source text, which has to be interpreted or compiled.
    Source { language: Option<Language>, first_line: String },
    /// A known format that Linux does not execute.
    Foreign(Foreign),
    /// A gzip file of something else than a tar archive.
    NoTar { inside: String },
    /// Base64 text in place of what it encodes.
    Encoded { inside: String },
    /// A byte-order mark before `#!`.
    ByteOrderMark,
    /// It is an archive where a program is expected.
    Archive { format: &'static str },

    // The file.
    /// It may not be executed.
    NotExecutable { mode: u32 },
    /// It lies on a file system from which nothing may be executed.
    NoExecMount { folder: PathBuf },
    /// It cannot be read, or is no file.
    Unreadable { reason: String },

    // ELF.
    /// It is built for another machine.
    WrongMachine { built: String, but: &'static str, here: String },
    /// It is built for another system.
    OtherSystem { system: &'static str },
    /// It is an ELF file and no program.
    NoProgram { is: &'static str },
    /// Its headers contradict each other, or it is cut off.
    Damaged { reason: String },
    /// The loader that it names is not here.
    NoLoader { loader: PathBuf, needs: Option<Libc>, here: Option<Libc> },
    /// The loader that it names cannot be used.
    BadLoader { loader: PathBuf, reason: String },
    /// Shared libraries are missing.
    NoLibraries { missing: Vec<MissingLibrary>, searched: Vec<PathBuf> },
    /// A shared library is too old.
    NoVersions {
        library: String,
        path: PathBuf,
        missing: Vec<String>,
        needed_by: Option<String>,
        newest: Option<String>,
    },
    /// A shared library is damaged.
    BadLibrary { path: PathBuf, needed_by: Option<String>, reason: String },
    /// It, or a library, is built for a newer processor: levels of x86-64.
    OldProcessor { needed: u8, here: u8, needed_by: Option<String> },

    // Scripts.
    /// Its `#!` line names nothing.
    NoInterpreterNamed,
    /// Its interpreter is not here.
    NoInterpreter { interpreter: PathBuf },
    /// The command that `env` is to find is not on `PATH`.
    NotOnPath { command: String, path: Option<String> },
    /// A carriage return belongs to its interpreter's name.
    CarriageReturn { line: String },
    /// Its `#!` line is longer than the kernel reads.
    LineTooLong { limit: usize },
    /// Its interpreter is a script, and so on, deeper than the kernel follows.
    NestedTooDeep { chain: Vec<PathBuf> },
    /// `env` gets several words as one.
    EnvWords { words: String },
    /// Its interpreter cannot be started.
    Interpreter { interpreter: PathBuf, defect: Box<Defect> },

    // Doubts.
    /// It ends before its section headers.
    EndsEarly,
    /// Its interpreter is looked for from the folder that it is started in.
    RelativeInterpreter { interpreter: PathBuf },
    /// A carriage return belongs to the interpreter's argument.
    CarriageReturnInArgument { argument: String },
    /// The interpreter's argument is longer than the kernel reads, and is cut.
    ArgumentCut { limit: usize },
}

/// A shared library that is missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MissingLibrary {
    /// Its name as it is asked for.
    pub name: String,
    /// The library that asks for it, if it is not the program itself.
    pub needed_by: Option<String>,
    /// A file of this name that is for another machine.
    pub unfit: Option<PathBuf>,
}

/// A C library, which brings the loader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "their names say it")]
pub enum Libc {
    Glibc,
    Musl,
    UClibc,
    Bionic,
}

/// How sure it is that the program cannot work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The kernel or the loader refuses it.
    Fatal,
    /// The kernel refuses it unless it was given something that runs such programs (`binfmt_misc`).
    ForTheKernel,
    /// It may work; worth telling to whoever asks.
    Doubt,
}

codes! {
    /// The stable code: 03x and 04x what it is, 07x ELF, 08x scripts.
    Defect,
    Defect::Empty => "PL030",
    Defect::Unrecognised { .. } => "PL031",
    Defect::Source { .. } => "PL032",
    Defect::Foreign(Foreign::Html | Foreign::LfsPointer | Foreign::Zeros) => "PL045",
    Defect::Foreign(_) | Defect::NoTar { .. } | Defect::Archive { .. } => "PL044",
    Defect::Encoded { .. } => "PL046",
    Defect::ByteOrderMark => "PL047",
    Defect::NotExecutable { .. } | Defect::Unreadable { .. } => "PL048",
    Defect::NoExecMount { .. } => "PL049",
    Defect::WrongMachine { .. } | Defect::OtherSystem { .. } => "PL070",
    Defect::NoProgram { .. } => "PL071",
    Defect::Damaged { .. } | Defect::EndsEarly => "PL072",
    Defect::NoLoader { .. } => "PL073",
    Defect::BadLoader { .. } => "PL074",
    Defect::NoLibraries { .. } => "PL075",
    Defect::NoVersions { .. } => "PL076",
    Defect::BadLibrary { .. } => "PL077",
    Defect::OldProcessor { .. } => "PL088",
    Defect::NoInterpreter { .. } => "PL080",
    Defect::NotOnPath { .. } => "PL081",
    Defect::CarriageReturn { .. } | Defect::CarriageReturnInArgument { .. } => "PL082",
    Defect::LineTooLong { .. } | Defect::ArgumentCut { .. } => "PL083",
    Defect::NestedTooDeep { .. } => "PL084",
    Defect::EnvWords { .. } => "PL085",
    Defect::NoInterpreterNamed => "PL086",
    Defect::RelativeInterpreter { .. } => "PL087",
    ;
    Defect::Interpreter { defect, .. } => defect.code(),
}

impl Defect {
    /// How sure it is that the program cannot work.
    #[must_use]
    pub fn severity(&self) -> Severity {
        match self {
            Self::EndsEarly
            | Self::RelativeInterpreter { .. }
            | Self::CarriageReturnInArgument { .. }
            | Self::ArgumentCut { .. } => Severity::Doubt,
            Self::WrongMachine { .. } => Severity::ForTheKernel,
            Self::Interpreter { defect, .. } => defect.severity(),
            _ => Severity::Fatal,
        }
    }

    /// The exit status that a shell would have: 127 for what is not found by `env` or the loader,
    /// 126 for what the kernel refuses.
    #[must_use]
    pub fn exit_status(&self) -> u8 {
        match self {
            Self::NotOnPath { .. } | Self::NoLibraries { .. } | Self::OldProcessor { .. } | Self::EnvWords { .. } => {
                127
            }
            Self::Interpreter { defect, .. } => defect.exit_status(),
            _ => 126,
        }
    }

    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::Empty => "upload an ELF executable, a script with a `#!` line, or a zip or tar.gz with `exec` at its root".into(),
            Self::Unrecognised { .. } => ACCEPTED.into(),
            Self::Source { language, .. } => source_hint(*language),
            Self::Foreign(foreign) => foreign.cure().into(),
            Self::NoTar { .. } => "compress a tar archive with `exec` at its root: `tar -czf action.tar.gz exec`; a single program is uploaded as it is".into(),
            Self::Archive { .. } => "`exec` is the program itself: put the program there, not an archive of it".into(),
            Self::Encoded { .. } => "encode it once: `base64 -w0 exec` in `code`, with `\"binary\":true`".into(),
            Self::ByteOrderMark => "save it as UTF-8 without a byte-order mark: `sed -i '1s/^\\xef\\xbb\\xbf//' exec`".into(),
            Self::NotExecutable { .. } => "make it executable: `chmod +x`".into(),
            Self::NoExecMount { .. } => "mount it without `noexec`, or choose another folder with `--workdir` (`PIPELOOP_WORKDIR`)".into(),
            Self::Unreadable { .. } => "put the program itself there, readable for the user that starts it".into(),
            Self::WrongMachine { here, .. } => format!("rebuild it for {here}: {}; `pipeloop check` shows this before a deployment", machine_flags(here)),
            Self::NoProgram { is: "a shared library" } => "link it as an executable, without `-shared`; a library can be loaded by a program beside it in an archive".into(),
            Self::NoProgram { is: "an object file" } => "link it: `gcc -o exec file.o`".into(),
            Self::NoProgram { .. } => "upload the program that it came from".into(),
            Self::OtherSystem { .. } => "build it for Linux: `GOOS=linux go build`, or in a container".into(),
            Self::Damaged { .. } | Self::EndsEarly => "build it again, and compare its size before and after the upload".into(),
            Self::NoLoader { loader, needs, here } => loader_hint(loader, *needs, *here),
            Self::BadLoader { .. } => "repair the image's C library, or upload a static executable".into(),
            Self::NoLibraries { missing, .. } if missing.iter().any(|library| is_libc(&library.name)) => {
                "build it for this image, or link it statically".into()
            }
            Self::NoLibraries { .. } => "install them in the image; or put them into the archive beside `exec` and link with `-Wl,-rpath,'$ORIGIN'`; or link statically".into(),
            Self::NoVersions { missing, .. } => versions_hint(missing),
            Self::BadLibrary { .. } => "install the library again".into(),
            Self::OldProcessor { here, needed_by: None, .. } => format!("build it for this processor: `-march={0}`, `-C target-cpu={0}`, `GOAMD64=v{here}`, or for all: `-march=x86-64`", x86_name(*here)),
            Self::OldProcessor { .. } => "install that library as built for all processors, or build it with `-march=x86-64`".into(),
            Self::NoInterpreterNamed => "name the interpreter with its whole path, for example `#!/usr/bin/env python3`".into(),
            Self::NoInterpreter { interpreter } => interpreter_hint(interpreter),
            Self::NotOnPath { command, .. } => match command.as_str() {
                "python" => "put Python into the image; it is most often named `python3`: `#!/usr/bin/env python3`".into(),
                "nodejs" => "put Node.js into the image; it is most often named `node`: `#!/usr/bin/env node`".into(),
                _ => "put the interpreter into the image, set `PATH`, or upload a static executable".into(),
            },
            Self::CarriageReturn { .. } | Self::CarriageReturnInArgument { .. } => "save it with LF line ends: `dos2unix`, or `sed -i 's/\\r$//'`; with git, `*.sh text eol=lf` in `.gitattributes`".into(),
            Self::LineTooLong { .. } | Self::ArgumentCut { .. } => "use a shorter path, such as a link to the interpreter, or `#!/usr/bin/env`".into(),
            Self::NestedTooDeep { .. } => "name the last interpreter of the chain itself".into(),
            Self::EnvWords { words } => format!("let `env` split the words: `#!/usr/bin/env -S {words}`"),
            Self::RelativeInterpreter { .. } => "name the interpreter with its whole path".into(),
            Self::Interpreter { defect, .. } => match &**defect {
                // Its own cure would be advice for who builds the interpreter.
                Self::NotExecutable { .. } => "make the interpreter executable: `chmod +x`".into(),
                _ => "repair or reinstall the interpreter in the image, or upload a static executable".into(),
            },
        }
    }
}

/// What an upload can be.
pub(crate) const ACCEPTED: &str =
    "accepted are an ELF executable, a script that starts with `#!`, and a zip or tar.gz with `exec` at its root";

impl fmt::Display for Defect {
    #[allow(clippy::too_many_lines)] // One line a cause: splitting it would hide the catalogue.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("it is empty"),
            Self::Unrecognised { seen } => write!(f, "it is no executable, script or archive, but {seen}"),
            Self::Source { language: Some(language), first_line } => match language.interpreter_line() {
                Some(_) => write!(
                    f,
                    "it is {language} source text without a `#!` line that names its interpreter; its first line is {first_line}"
                ),
                None => write!(
                    f,
                    "it is {language} source text, which has to be compiled first; its first line is {first_line}"
                ),
            },
            Self::Source { language: None, first_line } => {
                write!(
                    f,
                    "it is text without a `#!` line, and nothing here could run it: its first line is {first_line}"
                )
            }
            Self::Foreign(foreign) => write!(f, "it is {foreign}"),
            Self::OldProcessor { needed, here, needed_by } => {
                match needed_by {
                    None => f.write_str("it is built for newer processors")?,
                    Some(library) => {
                        write!(f, "its library {} is built for newer processors", excerpt(library.as_bytes()))?;
                    }
                }
                write!(f, ": it needs {}, this one is {}", x86_name(*needed), x86_name(*here))
            }
            Self::NoTar { inside } => write!(f, "it is a gzip file that holds no tar archive, but {inside}"),
            Self::Archive { format } => write!(f, "it is a {format} archive, where the program itself is expected"),
            Self::Encoded { inside } => write!(f, "it is base64 text, encoded once too often; inside is {inside}"),
            Self::ByteOrderMark => {
                f.write_str("a byte-order mark (ef bb bf) stands before its `#!`, so that the kernel does not see it")
            }
            Self::NotExecutable { mode } => write!(f, "it is not executable: its mode is {mode:o}"),
            Self::NoExecMount { folder } => {
                write!(f, "`{}` is mounted `noexec`: nothing in it can be started", folder.display())
            }
            Self::Unreadable { reason } => write!(f, "it cannot be read: {reason}"),
            Self::WrongMachine { built, but, here } => write!(f, "it is built for {built}, {but} {here}"),
            Self::OtherSystem { system } => write!(f, "it is built for {system}, this system is Linux"),
            Self::NoProgram { is } => write!(f, "it is {is}, not a program"),
            Self::EndsEarly => f.write_str(
                "it ends before its section headers, which are not needed to run it: it may have been cut off",
            ),
            Self::Damaged { reason } => write!(f, "it is damaged or incomplete: {reason}"),
            Self::NoLoader { loader, needs, here } => match (needs, here) {
                (Some(needs), Some(here)) if needs != here => {
                    write!(
                        f,
                        "it is built for {needs} and this image has {here}: its loader `{}` is not here",
                        loader.display()
                    )
                }
                (Some(needs), None) => {
                    write!(
                        f,
                        "its loader `{}` is not here, and no other C library; it is built for {needs}",
                        loader.display()
                    )
                }
                _ => write!(f, "its loader `{}` is not here", loader.display()),
            },
            Self::BadLoader { loader, reason } => {
                write!(f, "its loader `{}` cannot be used: {reason}", loader.display())
            }
            Self::NoLibraries { missing, .. } => {
                match missing.len() {
                    1 => f.write_str("it needs a shared library that is not here: ")?,
                    count => write!(f, "it needs {count} shared libraries that are not here: ")?,
                }
                let names: Vec<_> = missing.iter().map(ToString::to_string).collect();
                f.write_str(&names.join(", "))
            }
            Self::NoVersions { library, path, missing, needed_by, newest } => {
                match needed_by {
                    None => f.write_str("it needs ")?,
                    Some(by) => write!(f, "its library {} needs ", excerpt(by.as_bytes()))?,
                }
                write!(
                    f,
                    "{} of {}, which is older here (`{}`",
                    listing(missing, 0),
                    excerpt(library.as_bytes()),
                    path.display()
                )?;
                match newest {
                    Some(newest) => write!(f, " goes up to {})", excerpt(newest.as_bytes())),
                    None => f.write_str(" has no such versions)"),
                }
            }
            Self::BadLibrary { path, needed_by, reason } => {
                write!(f, "the shared library `{}`", path.display())?;
                if let Some(by) = needed_by {
                    write!(f, " (needed by {})", excerpt(by.as_bytes()))?;
                }
                write!(f, " cannot be loaded: {reason}")
            }
            Self::NoInterpreterNamed => f.write_str("its `#!` line names no interpreter"),
            Self::NoInterpreter { interpreter } => {
                write!(f, "its interpreter {} is not here", quoted(interpreter))
            }
            Self::NotOnPath { command, path } => {
                write!(f, "`env` does not find its interpreter {}: ", excerpt(command.as_bytes()))?;
                match path {
                    Some(path) => write!(f, "it is in no folder of `PATH`, {}", excerpt(path.as_bytes())),
                    None => f.write_str("`PATH` is not set, and it is neither in `/bin` nor in `/usr/bin`"),
                }
            }
            Self::CarriageReturn { line } => write!(
                f,
                "its first line ends with CR LF, as on Windows, and the CR is taken for a part of the interpreter's name: {}",
                excerpt(line.as_bytes())
            ),
            Self::LineTooLong { limit } => {
                write!(
                    f,
                    "its `#!` line is too long: the kernel reads at most {limit} bytes and the interpreter's name goes beyond them"
                )
            }
            Self::NestedTooDeep { chain } => {
                let chain: Vec<_> = chain.iter().map(|path| path.display().to_string()).collect();
                write!(
                    f,
                    "its interpreter is a script itself, and so on, deeper than the kernel follows: {}",
                    listing(&chain, 0)
                )
            }
            Self::EnvWords { words } => write!(
                f,
                "`env` gets the rest of the `#!` line as one word and looks for a program of that name: {}",
                excerpt(words.as_bytes())
            ),
            Self::Interpreter { interpreter, defect } => match &**defect {
                Self::Interpreter { .. } | Self::NoInterpreter { .. } | Self::NotOnPath { .. } => {
                    write!(f, "its interpreter {} is a script that cannot be started: {defect}", quoted(interpreter))
                }
                _ => write!(f, "its interpreter {} cannot be started: {defect}", quoted(interpreter)),
            },
            Self::RelativeInterpreter { interpreter } => {
                write!(f, "its interpreter {} is looked for from the folder that it is started in", quoted(interpreter))
            }
            Self::CarriageReturnInArgument { argument } => write!(
                f,
                "its first line ends with CR LF, as on Windows, and the interpreter gets the CR as a part of its argument: {}",
                excerpt(argument.as_bytes())
            ),
            Self::ArgumentCut { limit } => {
                write!(
                    f,
                    "its `#!` line is too long: the kernel reads {limit} bytes and cuts off the rest of the argument"
                )
            }
        }
    }
}

impl fmt::Display for MissingLibrary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", excerpt(self.name.as_bytes()))?;
        match (&self.needed_by, &self.unfit) {
            (None, None) => Ok(()),
            (Some(by), None) => write!(f, " (needed by {})", excerpt(by.as_bytes())),
            (None, Some(unfit)) => write!(f, " (`{}` is for another machine)", unfit.display()),
            (Some(by), Some(unfit)) => {
                write!(f, " (needed by {}; `{}` is for another machine)", excerpt(by.as_bytes()), unfit.display())
            }
        }
    }
}

impl Libc {
    /// Tells it by the name of its loader.
    #[must_use]
    pub fn of_loader(loader: &Path) -> Option<Self> {
        let name = loader.file_name()?.to_str()?;
        Some(match name {
            _ if name.starts_with("ld-musl-") => Self::Musl,
            _ if name.starts_with("ld-uClibc") || name.starts_with("ld64-uClibc") => Self::UClibc,
            "linker" | "linker64" => Self::Bionic,
            // `ld-linux-x86-64.so.2`, `ld-linux.so.2`, `ld64.so.1`, and `ld.so.1` of some machines.
            _ if name.starts_with("ld-linux") || name.starts_with("ld64.so") || name.starts_with("ld.so") => {
                Self::Glibc
            }
            _ => return None,
        })
    }
}

impl fmt::Display for Libc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Glibc => "glibc",
            Self::Musl => "musl",
            Self::UClibc => "uClibc",
            Self::Bionic => "Android",
        })
    }
}

fn quoted(path: &Path) -> String {
    excerpt(path.as_os_str().as_encoded_bytes())
}

fn source_hint(language: Option<Language>) -> String {
    let Some(language) = language else {
        return format!(
            "{ACCEPTED}; for a script, put its interpreter on the first line, for example `#!/usr/bin/env python3`"
        );
    };
    match (language.interpreter_line(), language.compile_command()) {
        (Some(line), _) => format!("put its interpreter on the first line: `{line}`"),
        (None, Some(command)) => format!("upload what the compiler makes of it: {command}; or name a compiler of the image with `PIPELOOP_COMPILER` (`OW_COMPILER`)"),
        (None, None) => "upload an archive with what the compiler makes of it and a script `exec` that starts it; or name a compiler of the image with `PIPELOOP_COMPILER` (`OW_COMPILER`)".into(),
    }
}

fn machine_flags(here: &str) -> &'static str {
    match here {
        "x86_64" => "`GOARCH=amd64`, `--target x86_64-unknown-linux-musl`, `docker build --platform linux/amd64`",
        "aarch64" => "`GOARCH=arm64`, `--target aarch64-unknown-linux-musl`, `docker build --platform linux/arm64`",
        _ => "with a compiler for it, or in a container of that platform",
    }
}

fn loader_hint(loader: &Path, needs: Option<Libc>, here: Option<Libc>) -> String {
    if loader.starts_with("/nix/store") {
        return "it was built with Nix and refers to its store: link it statically, or build the image with Nix too"
            .into();
    }
    match (needs, here) {
        (Some(Libc::Glibc), Some(Libc::Musl)) => "build it in an Alpine image, or statically (`CGO_ENABLED=0 go build`, `cargo build --target x86_64-unknown-linux-musl`); or use an image with glibc, such as Debian's".into(),
        (Some(Libc::Musl), Some(Libc::Glibc)) => "build it in an image with glibc, such as Debian's, or statically (`musl-gcc -static`)".into(),
        (Some(Libc::Bionic), _) => "it was built for Android: build it for Linux".into(),
        _ => "build it for this image, or statically".into(),
    }
}

fn versions_hint(missing: &[String]) -> String {
    let of = |prefix: &str| missing.iter().any(|version| version.starts_with(prefix));
    if of("GLIBC_") {
        "build it on a system as old as this image, such as a container of the same image; or statically (`CGO_ENABLED=0 go build`, `cargo build --target x86_64-unknown-linux-musl`); or use a newer image".into()
    } else if of("GLIBCXX_") || of("CXXABI_") || of("GCC_") {
        "build it with the compiler of this image, or link with `-static-libstdc++ -static-libgcc`; or use a newer image".into()
    } else {
        "build it against the library of this image, or put the newer library into the image".into()
    }
}

fn interpreter_hint(interpreter: &Path) -> String {
    let name = interpreter.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    match name.as_str() {
        "bash" => "put bash into the image, or write it for `/bin/sh`".into(),
        "env" => "put `env` into the image (coreutils, BusyBox), or name the interpreter with its whole path".into(),
        "" => "put the interpreter into the image, or upload a static executable".into(),
        // Where it lies differs from image to image.
        name if interpreter.is_absolute() && !interpreter.starts_with("/bin") => {
            format!(
                "put the interpreter into the image; if it lies elsewhere there, `#!/usr/bin/env {}` finds it",
                name.escape_default()
            )
        }
        _ => "put the interpreter into the image, or upload a static executable".into(),
    }
}

fn x86_name(level: u8) -> String {
    if level > 1 { format!("x86-64-v{level}") } else { "x86-64".into() }
}

fn is_libc(name: &str) -> bool {
    name.starts_with("libc.so") || name.starts_with("libc.musl-")
}

/// A known format that Linux does not execute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "their names say it, and `Display` does in words")]
pub enum Foreign {
    MachO,
    Windows,
    JavaClass,
    Jar,
    WebAssembly,
    Tar,
    SevenZip,
    Xz,
    Zstd,
    Bzip2,
    Rar,
    Html,
    LfsPointer,
    Utf16,
    Zeros,
    Pdf,
    PythonBytecode,
}

/// A language that source text is written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "their names say it")]
pub enum Language {
    Python,
    JavaScript,
    TypeScript,
    Php,
    Go,
    Rust,
    Shell,
    Ruby,
    Perl,
    Java,
    C,
    Cpp,
    CSharp,
    Swift,
    Haskell,
}

impl Foreign {
    /// What to do with it.
    pub(crate) fn cure(self) -> &'static str {
        match self {
            Self::MachO => {
                "build it for Linux: `GOOS=linux go build`, `cargo build --target x86_64-unknown-linux-musl`, or inside a container"
            }
            Self::Windows => "build it for Linux, for example in a container or with `GOOS=linux go build`",
            Self::JavaClass | Self::Jar => {
                "put it into an archive beside a script `exec` that starts it, such as `#!/bin/sh` and `exec java -cp . Main`, for an image with Java"
            }
            Self::WebAssembly => {
                "put it into an archive beside a script `exec` that starts it with a runtime of the image, such as `exec wasmtime main.wasm`; or build it for Linux"
            }
            Self::Tar => "compress it: `gzip action.tar`; archives are taken as zip or tar.gz",
            Self::SevenZip | Self::Xz | Self::Zstd | Self::Bzip2 | Self::Rar => {
                "pack it as zip or tar.gz: `zip -r action.zip exec`, or `tar -czf action.tar.gz exec`"
            }
            Self::Html => {
                "look at the page: most often it is what a server said in place of a download, such as a login or an error; then download the file itself"
            }
            Self::LfsPointer => "fetch the file itself before packing: `git lfs pull`",
            Self::Utf16 => "save it as UTF-8 without a byte-order mark; PowerShell's `>` writes UTF-16",
            Self::Zeros => {
                "build or download it again and compare its size and checksum: the space was reserved and nothing was written into it"
            }
            Self::Pdf => "upload the program, not its documentation",
            Self::PythonBytecode => "upload the source with `#!/usr/bin/env python3` as its first line",
        }
    }
}

impl fmt::Display for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::MachO => "a Mach-O executable, for macOS",
            Self::Windows => "a PE executable, for Windows",
            Self::JavaClass => "a compiled Java class",
            Self::Jar => "a Java archive (jar)",
            Self::WebAssembly => "a WebAssembly module",
            Self::Tar => "a tar archive that is not compressed",
            Self::SevenZip => "a 7z archive",
            Self::Xz => "an xz file",
            Self::Zstd => "a zstd file",
            Self::Bzip2 => "a bzip2 file",
            Self::Rar => "a rar archive",
            Self::Html => "an HTML page",
            Self::LfsPointer => "a Git LFS pointer, not the file that it stands for",
            Self::Utf16 => "text in UTF-16",
            Self::Zeros => "zero bytes where a program should begin",
            Self::Pdf => "a PDF document",
            Self::PythonBytecode => "compiled Python (pyc)",
        })
    }
}

impl Language {
    /// The `#!` line that starts it, for a language that is interpreted.
    #[must_use]
    pub fn interpreter_line(self) -> Option<&'static str> {
        Some(match self {
            Self::Python => "#!/usr/bin/env python3",
            Self::JavaScript => "#!/usr/bin/env node",
            Self::TypeScript => "#!/usr/bin/env -S deno run",
            Self::Php => "#!/usr/bin/env php",
            Self::Shell => "#!/bin/sh",
            Self::Ruby => "#!/usr/bin/env ruby",
            Self::Perl => "#!/usr/bin/env perl",
            Self::Go | Self::Rust | Self::Java | Self::C | Self::Cpp | Self::CSharp | Self::Swift | Self::Haskell => {
                return None;
            }
        })
    }

    /// How to make a program of it that needs nothing of the image, for a language that is compiled.
    pub(crate) fn compile_command(self) -> Option<&'static str> {
        Some(match self {
            Self::Go => "`CGO_ENABLED=0 go build -o exec`",
            Self::Rust => "`cargo build --release --target x86_64-unknown-linux-musl`",
            Self::C => "`gcc -static -o exec main.c`",
            Self::Cpp => "`g++ -static -o exec main.cpp`",
            Self::Swift => "`swiftc -static-executable -o exec main.swift`",
            Self::Haskell => "`ghc -o exec Main.hs`",
            _ => return None,
        })
    }
}

impl fmt::Display for Language {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Python => "Python",
            Self::JavaScript => "JavaScript",
            Self::TypeScript => "TypeScript",
            Self::Php => "PHP",
            Self::Go => "Go",
            Self::Rust => "Rust",
            Self::Shell => "shell",
            Self::Ruby => "Ruby",
            Self::Perl => "Perl",
            Self::Java => "Java",
            Self::C => "C",
            Self::Cpp => "C++",
            Self::CSharp => "C#",
            Self::Swift => "Swift",
            Self::Haskell => "Haskell",
        })
    }
}
