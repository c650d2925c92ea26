//! What can be wrong with a file that the proxy is to start: one variant for each cause, with the facts as fields, a
//! clause and a hint.
//!
//! The subject of a clause is "it", the file. The clause follows `cannot start the action …:`.

use std::fmt;
use std::path::{Path, PathBuf};

use super::ArchiveFormat;
use crate::text::{excerpt, listing};

/// One thing that is wrong with a file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the fields are the facts that the clause of each cause is made of")]
pub enum Defect {
    // What it is.
    /// Empty, or only white space.
    #[error("it is empty")]
    Empty,

    /// Data of no known format.
    #[error("it is not an executable, script or archive, but {seen}")]
    Unrecognised { seen: String },

    /// Source text that has to be interpreted or compiled.
    #[error("it is {}; its first line is {first_line}", source(*.language))]
    Source { language: Option<Language>, first_line: String },

    /// A known format that Linux does not execute.
    #[error("it is {0}")]
    Foreign(Foreign),

    /// A gzip file of something other than a tar archive.
    #[error("it is a gzip file that does not contain a tar archive, but {inside}")]
    NotTar { inside: String },

    /// Base64 text that was not decoded.
    #[error("it is base64 text, encoded once too often; it decodes to {inside}")]
    Encoded { inside: String },

    /// A byte-order mark before `#!`.
    #[error("a byte-order mark (ef bb bf) precedes its `#!` and hides it from the kernel")]
    ByteOrderMark,

    /// An archive in place of a program.
    #[error("it is a {format} archive, but the program itself is expected")]
    Archive { format: ArchiveFormat },

    // The file.
    /// It may not be executed.
    #[error("it is not executable: its mode is {mode:o}")]
    NotExecutable { mode: u32 },

    /// Its file system is mounted `noexec`.
    #[error("`{}` is mounted `noexec`: nothing in it can be executed", .directory.display())]
    NoExecMount { directory: PathBuf },

    /// It cannot be read, or is not a file.
    #[error("it cannot be read: {reason}")]
    Unreadable { reason: String },

    // ELF.
    /// It is built for another machine.
    #[error("it is built for {built}, {host} {here}")]
    WrongMachine { built: String, host: Host, here: String },

    /// It is built for another system.
    #[error("it is built for {system}, this system is Linux")]
    OtherSystem { system: &'static str },

    /// It is an ELF file but not a program.
    #[error("it is {is}, not a program")]
    NotProgram { is: NonProgram },

    /// Its headers contradict each other, or it is cut off.
    #[error("it is damaged or incomplete: {reason}")]
    Damaged { reason: String },

    /// The loader that it names is missing.
    #[error("{}its loader `{}` is missing", libc_mismatch(*.needs, *.here), .loader.display())]
    NoLoader { loader: PathBuf, needs: Option<Libc>, here: Option<Libc> },

    /// The loader that it names cannot be used.
    #[error("its loader `{}` cannot be used: {reason}", .loader.display())]
    BadLoader { loader: PathBuf, reason: String },

    /// Shared libraries are missing.
    #[error("it needs {}", missing_libraries(.missing))]
    NoLibraries { missing: Vec<MissingLibrary>, searched: Vec<PathBuf> },

    /// A shared library is too old.
    #[error("{} {} of {}, but the library here is older (`{}` {})",
        needing(.needed_by.as_deref()),
        listing(.missing, 0),
        excerpt(.library.as_bytes()),
        .path.display(),
        newest_version(.newest.as_deref()))]
    NoVersions {
        library: String,
        path: PathBuf,
        missing: Vec<String>,
        needed_by: Option<String>,
        newest: Option<String>,
    },

    /// A shared library is damaged.
    #[error("the shared library `{}`{} cannot be loaded: {reason}", .path.display(), dependent(.needed_by.as_deref()))]
    BadLibrary { path: PathBuf, needed_by: Option<String>, reason: String },

    /// It, or a library, is built for a newer processor: levels of x86-64.
    #[error("{} for newer processors: it needs {needed}, this one is {here}", built(.needed_by.as_deref()))]
    OldProcessor { needed: X86Level, here: X86Level, needed_by: Option<String> },

    // Scripts.
    /// Its `#!` line names nothing.
    #[error("its `#!` line names no interpreter")]
    NoInterpreterNamed,

    /// Its interpreter does not exist.
    #[error("its interpreter {} does not exist", quoted(.interpreter))]
    NoInterpreter { interpreter: PathBuf },

    /// `env` cannot find its interpreter on `PATH`.
    #[error("`env` cannot find its interpreter {}: {}", excerpt(.command.as_bytes()), searched(.path.as_deref()))]
    NotOnPath { command: String, path: Option<String> },

    /// A carriage return is part of its interpreter's name.
    #[error("its first line ends with CR LF, as on Windows, and the kernel takes the CR as part of the interpreter's name: {}",
        excerpt(.line.as_bytes()))]
    CarriageReturn { line: String },

    /// Its `#!` line is longer than the kernel reads.
    #[error("its `#!` line is too long: the kernel reads at most {limit} bytes, and the interpreter's name is longer")]
    LineTooLong { limit: usize },

    /// Its interpreter is a script whose interpreter is a script, nested deeper than the kernel follows.
    #[error("its interpreter is a script whose interpreter is a script, nested deeper than the kernel follows: {}",
        paths(.chain))]
    NestedTooDeep { chain: Vec<PathBuf> },

    /// `env` gets several words as one.
    #[error("`env` gets the rest of the `#!` line as one argument and looks for a program of that name: {}",
        excerpt(.words.as_bytes()))]
    EnvWords { words: String },

    /// Its interpreter cannot be started.
    #[error("its interpreter {} {}: {defect}", quoted(.interpreter), interpreter_failure(.defect))]
    Interpreter { interpreter: PathBuf, defect: Box<Defect> },

    // Warnings.
    /// It ends before its section headers.
    #[error("it may be truncated: it ends before its section headers, which are not needed to run it")]
    EndsEarly,

    /// Its interpreter is a relative path, resolved from the directory in which the script is started.
    #[error("its interpreter {} is a relative path, resolved from the directory in which the script is started",
        quoted(.interpreter))]
    RelativeInterpreter { interpreter: PathBuf },

    /// A carriage return is part of the interpreter's argument.
    #[error("its first line ends with CR LF, as on Windows, and the interpreter gets the CR as part of its argument: {}",
        excerpt(.argument.as_bytes()))]
    CarriageReturnInArgument { argument: String },

    /// The kernel cuts the interpreter's argument, which is too long.
    #[error("its `#!` line is too long: the kernel reads {limit} bytes and cuts off the rest of the argument")]
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

/// A level of x86-64: which instructions a processor has.
///
/// Source: the psABI of x86-64, "Micro-Architecture Levels".
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "their names say it")]
pub enum X86Level {
    V1,
    V2,
    V3,
    V4,
}

impl X86Level {
    fn number(self) -> u8 {
        match self {
            Self::V1 => 1,
            Self::V2 => 2,
            Self::V3 => 3,
            Self::V4 => 4,
        }
    }
}

impl fmt::Display for X86Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::V1 => f.write_str("x86-64"),
            level => write!(f, "x86-64-v{}", level.number()),
        }
    }
}

/// An ELF file that is not a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "their names say it")]
pub enum NonProgram {
    SharedLibrary,
    ObjectFile,
    CoreDump,
    Unknown,
}

/// Where the action is to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Host {
    /// On this machine.
    ThisMachine,
    /// In the image that `--image-root` names.
    Image,
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
    /// The kernel refuses it, unless it knows an emulator or a loader for such programs (`binfmt_misc`).
    KernelDecides,
    /// It may work; `pipeloop check` reports it.
    Warning,
}

impl Defect {
    /// How sure it is that the program cannot work.
    #[must_use]
    pub fn severity(&self) -> Severity {
        match self {
            Self::EndsEarly
            | Self::RelativeInterpreter { .. }
            | Self::CarriageReturnInArgument { .. }
            | Self::ArgumentCut { .. } => Severity::Warning,
            Self::WrongMachine { .. } | Self::Foreign(Foreign::Ape) => Severity::KernelDecides,
            Self::Interpreter { defect, .. } => defect.severity(),
            _ => Severity::Fatal,
        }
    }

    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::Empty => "upload an ELF executable, a script with a `#!` line, or a zip or tar.gz with `exec` at its root".into(),
            Self::Unrecognised { .. } => ACCEPTED.into(),
            Self::Source { language, .. } => source_hint(*language),
            Self::Foreign(foreign) => foreign.hint().into(),
            Self::NotTar { .. } => "compress a tar archive with `exec` at its root: `tar -czf action.tar.gz exec`; a single program is uploaded as it is".into(),
            Self::Archive { .. } => "`exec` is the program itself: put the program there, not an archive of it".into(),
            Self::Encoded { .. } => "encode it once: `base64 -w0 exec` in `code`, with `\"binary\":true`".into(),
            Self::ByteOrderMark => "save it as UTF-8 without a byte-order mark: `sed -i '1s/^\\xef\\xbb\\xbf//' exec`".into(),
            Self::NotExecutable { .. } => "make it executable: `chmod +x`".into(),
            Self::NoExecMount { .. } => "mount it without `noexec`, or choose another directory with `--workdir` (`PIPELOOP_WORKDIR`)".into(),
            Self::Unreadable { .. } => "put the program itself there, readable by the user that starts it".into(),
            Self::WrongMachine { here, .. } => format!("rebuild it for {here}: {}; `pipeloop check` shows this before a deployment", machine_flags(here)),
            Self::NotProgram { is: NonProgram::SharedLibrary } => "link it as an executable, without `-shared`; a library can be loaded by a program beside it in an archive".into(),
            Self::NotProgram { is: NonProgram::ObjectFile } => "link it: `gcc -o exec file.o`".into(),
            Self::NotProgram { is: NonProgram::CoreDump | NonProgram::Unknown } => "upload the program that it came from".into(),
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
            Self::OldProcessor { here, needed_by: None, .. } => format!("build it for this processor: `-march={0}`, `-C target-cpu={0}`, `GOAMD64=v{1}`, or for all: `-march=x86-64`", here, here.number()),
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
                // Its own hint is for the person who builds the interpreter.
                Self::NotExecutable { .. } => "make the interpreter executable: `chmod +x`".into(),
                _ => "repair or reinstall the interpreter in the image, or upload a static executable".into(),
            },
        }
    }
}

/// What an upload can be.
pub(crate) const ACCEPTED: &str =
    "accepted are an ELF executable, a script that starts with `#!`, and a zip or tar.gz with `exec` at its root";

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

impl NonProgram {
    /// What it is, without an article.
    pub(crate) fn noun(self) -> &'static str {
        match self {
            Self::SharedLibrary => "shared library",
            Self::ObjectFile => "object file",
            Self::CoreDump => "core dump",
            Self::Unknown => "ELF file of an unknown type",
        }
    }
}

impl fmt::Display for NonProgram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let article = match self {
            Self::SharedLibrary | Self::CoreDump => "a",
            Self::ObjectFile | Self::Unknown => "an",
        };
        write!(f, "{article} {}", self.noun())
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ThisMachine => "this machine is",
            Self::Image => "that image is for",
        })
    }
}

impl Libc {
    /// The C library that a loader belongs to, by the loader's name.
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

fn source(language: Option<Language>) -> String {
    match language {
        Some(language) if language.interpreter_line().is_some() => {
            format!("{language} source text without a `#!` line that names its interpreter")
        }
        Some(language) => format!("{language} source text, which has to be compiled first"),
        None => "text without a `#!` line that names its interpreter".into(),
    }
}

fn libc_mismatch(needs: Option<Libc>, here: Option<Libc>) -> String {
    match (needs, here) {
        (Some(needs), Some(here)) if needs != here => format!("it is built for {needs} and this image has {here}: "),
        (Some(needs), None) => format!("it is built for {needs} and this image has no C library: "),
        _ => String::new(),
    }
}

fn missing_libraries(missing: &[MissingLibrary]) -> String {
    let names: Vec<_> = missing.iter().map(ToString::to_string).collect();
    let names = names.join(", ");
    match missing.len() {
        1 => format!("a shared library that is missing: {names}"),
        count => format!("{count} shared libraries that are missing: {names}"),
    }
}

fn needing(library: Option<&str>) -> String {
    library.map_or_else(|| "it needs".into(), |library| format!("its library {} needs", excerpt(library.as_bytes())))
}

fn built(library: Option<&str>) -> String {
    library
        .map_or_else(|| "it is built".into(), |library| format!("its library {} is built", excerpt(library.as_bytes())))
}

fn newest_version(newest: Option<&str>) -> String {
    newest.map_or_else(|| "has no such versions".into(), |newest| format!("goes up to {}", excerpt(newest.as_bytes())))
}

fn dependent(library: Option<&str>) -> String {
    library.map_or_else(String::new, |library| format!(" (needed by {})", excerpt(library.as_bytes())))
}

fn searched(path: Option<&str>) -> String {
    path.map_or_else(
        || "`PATH` is not set, and it is neither in `/bin` nor in `/usr/bin`".into(),
        |path| format!("it is in no directory of `PATH`, {}", excerpt(path.as_bytes())),
    )
}

fn paths(chain: &[PathBuf]) -> String {
    let chain: Vec<_> = chain.iter().map(|path| path.display().to_string()).collect();
    listing(&chain, 0)
}

fn interpreter_failure(defect: &Defect) -> &'static str {
    match defect {
        Defect::Interpreter { .. } | Defect::NoInterpreter { .. } | Defect::NotOnPath { .. } => {
            "is a script that cannot be started"
        }
        _ => "cannot be started",
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
        (None, Some(command)) => format!("upload the compiled program: {command}; or name a compiler of the image with `PIPELOOP_COMPILER` (`OW_COMPILER`)"),
        (None, None) => "upload an archive with the compiled program and a script `exec` that starts it; or name a compiler of the image with `PIPELOOP_COMPILER` (`OW_COMPILER`)".into(),
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
        // Its path differs from image to image.
        name if interpreter.is_absolute() && !interpreter.starts_with("/bin") => {
            format!(
                "put the interpreter into the image; if it lies elsewhere there, `#!/usr/bin/env {}` finds it",
                name.escape_default()
            )
        }
        _ => "put the interpreter into the image, or upload a static executable".into(),
    }
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
    Ape,
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
    /// What to do about it.
    pub(crate) fn hint(self) -> &'static str {
        match self {
            Self::MachO => {
                "build it for Linux: `GOOS=linux go build`, `cargo build --target x86_64-unknown-linux-musl`, or inside a container"
            }
            Self::Windows => "build it for Linux, for example in a container or with `GOOS=linux go build`",
            Self::Ape => {
                "turn it into an ELF program: `assimilate exec`, which comes with cosmocc, or `sh ./exec --assimilate`; or put it into an archive as `program`, beside a script `exec` of `#!/bin/sh` and `exec sh ./program`"
            }
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
                "open the page: most often it is a login or error page that a server sent in place of the download; then download the file itself"
            }
            Self::LfsPointer => "fetch the file itself before packing: `git lfs pull`",
            Self::Utf16 => "save it as UTF-8 without a byte-order mark; PowerShell's `>` writes UTF-16",
            Self::Zeros => {
                "build or download it again and compare its size and checksum: the space was allocated but nothing was written to it"
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
            Self::Ape => "an APE program (Cosmopolitan), which Linux executes only where the APE loader is registered",
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
    /// The `#!` line for it, if the language is interpreted.
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

    /// The command that compiles it into a static program, for a language that is compiled.
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
