//! Runs the compiler of the image, which turns source code into an executable.
//!
//! The compiler is called as `COMPILER MAIN SRC BIN`: the name of the entry point, the directory with the source code (a
//! single file is `exec` there, an archive is unpacked), and an empty directory, in which it must create an executable
//! `exec`. Its output is for the author and goes to the log. It has the action's environment and the proxy's working
//! directory, as compilers for existing proxies expect.
//!
//! Source: apache/openwhisk-runtime-go, `docs/ENVVARS.md` and `openwhisk/compiler.go`.

use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::{CompileFailure, Error, UploadError};
use crate::logs::Logs;
use crate::process::spawn::ResultChannel;
use crate::process::stop::{KillOnDrop, kill_and_reap};
use crate::process::{ExitStatus, Launch, Reaper, StdoutKind, start};
use crate::time;

use super::inspect::oversized;
use super::{Artifact, is_executable};

/// Compiles the source code of an artifact, if it has source code and there is a compiler.
///
/// # Errors
/// As [`Compilation::run`].
pub(crate) async fn compile(
    artifact: &Artifact,
    compiler: Option<&Path>,
    main: &str,
    environment: &[(OsString, OsString)],
    limit: Duration,
    reaper: &Reaper,
    logs: &mut Logs,
) -> Result<(), Error> {
    let (Some(source), Some(compiler)) = (&artifact.source, compiler) else { return Ok(()) };
    let output = &artifact.directory;
    Compilation { compiler, main, source, output, environment, limit }.run(reaper, logs).await
}

/// One call of a compiler.
#[derive(Debug)]
struct Compilation<'a> {
    /// The compiler, as an absolute path.
    compiler: &'a Path,
    /// The name of the entry point.
    main: &'a str,
    /// The directory with the source code.
    source: &'a Path,
    /// The empty directory for the executable.
    output: &'a Path,
    /// All variables of its environment.
    environment: &'a [(OsString, OsString)],
    /// How long it may take.
    limit: Duration,
}

impl Compilation<'_> {
    /// Runs the compiler to its end. None of its processes outlives this call, also when the future is dropped.
    ///
    /// # Errors
    /// [`UploadError::Compile`] when the compiler cannot be started, fails, takes too long or leaves no
    /// executable.
    async fn run(&self, reaper: &Reaper, logs: &mut Logs) -> Result<(), Error> {
        logs.stdout.forget_tail();
        logs.stderr.forget_tail();
        self.call(reaper, logs).await.and_then(|()| self.check()).map_err(|problem| {
            // Compilers complain on stderr, wrappers of compilers on stdout.
            let tail = Some(logs.stderr.tail()).filter(|tail| !tail.is_empty()).unwrap_or_else(|| logs.stdout.tail());
            Error::Upload(UploadError::Compile { compiler: self.compiler.to_owned(), problem, tail })
        })
    }

    async fn call(&self, reaper: &Reaper, logs: &mut Logs) -> Result<(), CompileFailure> {
        let launch = Launch {
            program: self.compiler.to_owned(),
            arguments: vec![self.main.into(), self.source.into(), self.output.into()],
            environment: self.environment.to_vec(),
            directory: PathBuf::from("."),
            stdout: StdoutKind::Pipe,
        };
        let cannot_start = |reason| match oversized(&launch, &reason) {
            Some(oversized) => CompileFailure::TooLarge(oversized),
            None => CompileFailure::CannotStart(reason),
        };
        let (process, pipes) = start(&launch, ResultChannel::Stdout, reaper).map_err(cannot_start)?;
        let guard = KillOnDrop::new(process);
        let process = guard.process();
        drop(pipes.stdin);
        logs.stdout.attach(pipes.stdout, b"");
        logs.stderr.attach(pipes.stderr, b"");
        let exit = tokio::select! {
            exit = time::timeout(self.limit, process.exited()) => exit,
            never = logs.pump() => match never {},
        };
        kill_and_reap(process).await;
        logs.detach();
        match exit {
            None => Err(CompileFailure::TooSlow { limit: self.limit }),
            Some(Some(exit)) if exit.status == ExitStatus::Exited(0) => Ok(()),
            Some(exit) => Err(CompileFailure::Failed { status: exit.map(|exit| exit.status) }),
        }
    }

    /// Checks the executable, and sets its mode if it has no execute bits: compilers rely on that. The mode of a file that
    /// a link names outside the directory stays what it is.
    fn check(&self) -> Result<(), CompileFailure> {
        let executable = self.output.join("exec");
        let metadata = fs::metadata(&executable).ok().filter(fs::Metadata::is_file).ok_or(CompileFailure::NoExec)?;
        let mode = metadata.permissions().mode();
        let usable = || -> io::Result<bool> {
            let inside = || Ok::<_, io::Error>(executable.canonicalize()?.starts_with(self.output.canonicalize()?));
            if mode & 0o111 == 0 && inside()? {
                fs::set_permissions(&executable, Permissions::from_mode(mode & 0o777 | 0o755))?;
            }
            is_executable(&executable)
        };
        if usable().unwrap_or(false) { Ok(()) } else { Err(CompileFailure::NotExecutable) }
    }
}
