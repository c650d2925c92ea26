//! Starts an executable with its pipes.
//!
//! The kernel alone decides what can be executed. So the child ends in a plain `execve`: the standard
//! library ends in `execvp`, which hands a file that the kernel refuses to a shell.

#![expect(
    clippy::disallowed_methods,
    reason = "the one place that starts processes, on a thread that may wait for a busy executable"
)]

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::ffi::{CString, OsStr, OsString, c_char};
use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use clap::ValueEnum;
use rustix::io::FdFlags;
use rustix::process::Pid;
use tokio::io::unix::AsyncFd;

use super::memory::oom_kills;
use super::pipe::{pipe, watch};
use super::reap::{Exit, Reaper};
use super::terminal;

/// How to start an executable.
#[derive(Debug, Clone)]
pub struct Launch {
    /// The program, as an absolute path.
    pub program: PathBuf,
    /// Its arguments, without the program's own name.
    pub arguments: Vec<OsString>,
    /// Its whole environment. Of two variables with one name the last counts.
    pub environment: Vec<(OsString, OsString)>,
    /// Its working directory.
    pub directory: PathBuf,
    /// What its standard output is.
    pub stdout: StdoutKind,
}

/// What the standard output of a process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum StdoutKind {
    /// A pipe.
    #[default]
    Pipe,
    /// A raw pseudo-terminal, to which programs write each line at once.
    Pty,
}

/// Where a process writes its results. Displayed as messages name it.
///
/// A process that is started with [`ResultChannel::Descriptor3`] gets a pipe there, and may still choose
/// stdout by its handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResultChannel {
    /// Standard output.
    Stdout,
    /// Descriptor 3.
    Descriptor3,
}

impl ResultChannel {
    /// Its name in messages.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Descriptor3 => "descriptor 3",
        }
    }
}

impl fmt::Display for ResultChannel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A started process. Dropping it does not stop it: see [`super::stop`].
#[derive(Debug)]
pub struct Process {
    /// Its pid, and the id of its process group.
    pub pid: Pid,
    /// When it was started.
    pub started: Instant,
    oom_kills_before: Option<u64>,
    exit: tokio::sync::watch::Receiver<Option<Exit>>,
}

/// The proxy's ends of a process's pipes, non-blocking and registered with the runtime.
#[derive(Debug)]
pub struct Pipes {
    /// The process's input. Dropping this gives the process end-of-file.
    pub stdin: AsyncFd<OwnedFd>,
    /// Its standard output, a pipe or a [`terminal`].
    pub stdout: AsyncFd<OwnedFd>,
    /// Its standard error.
    pub stderr: AsyncFd<OwnedFd>,
    /// Its descriptor 3, when it was given one.
    pub results: Option<AsyncFd<OwnedFd>>,
    /// Why standard output is a pipe, if it should be a terminal.
    pub no_terminal: Option<io::Error>,
}

/// The descriptor of the result channel in the child.
const RESULT_FD: RawFd = 3;

/// How often to try again after "text file busy". A file that was just written may still be open for
/// writing in a child of another thread that has not called exec yet, which takes a moment.
const BUSY_TRIES: u32 = 50;

/// Starts an executable as the leader of a new process group.
///
/// # Errors
/// The kernel's error: `NotFound` also when the interpreter of a script or binary is missing,
/// `ENOEXEC` for a file it cannot execute.
pub fn start(launch: &Launch, channel: ResultChannel, reaper: &Reaper) -> io::Result<(Process, Pipes)> {
    let (child_stdin, stdin) = pipe()?;
    let ((stdout, child_stdout), no_terminal) = match launch.stdout {
        StdoutKind::Pipe => (pipe()?, None),
        StdoutKind::Pty => match terminal::open() {
            Ok(ends) => (ends, None),
            Err(reason) => (pipe()?, Some(reason)),
        },
    };
    let (stderr, child_stderr) = pipe()?;
    let (results, child_results) = match channel {
        ResultChannel::Stdout => (None, None),
        ResultChannel::Descriptor3 => {
            let (read_end, write_end) = pipe()?;
            (Some(read_end), Some(write_end))
        }
    };

    let mut command = Command::new(&launch.program);
    command
        .current_dir(&launch.directory)
        .process_group(0)
        .stdin(Stdio::from(child_stdin))
        .stdout(Stdio::from(child_stdout))
        .stderr(Stdio::from(child_stderr));
    execute_in_child(&mut command, Image::new(launch)?, child_results);

    let oom_kills_before = oom_kills();
    let mut tries = 0;
    let child = loop {
        match command.spawn() {
            Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy && tries < BUSY_TRIES => {
                tries += 1;
                std::thread::sleep(Duration::from_millis(2));
            }
            other => break other?,
        }
    };
    // Closes the proxy's copies of the child's pipe ends, so that end-of-file means what it says.
    drop(command);

    let started = Instant::now();
    let pid = Pid::from_child(&child);
    let exit = reaper.register(pid);
    let pipes = Pipes {
        stdin: watch(stdin)?,
        stdout: watch(stdout)?,
        stderr: watch(stderr)?,
        results: results.map(watch).transpose()?,
        no_terminal,
    };
    Ok((Process { pid, started, oom_kills_before, exit }, pipes))
}

impl Process {
    /// The process's exit, if it has ended already.
    #[must_use]
    pub fn exit(&self) -> Option<Exit> {
        *self.exit.borrow()
    }

    /// The out-of-memory kills in the proxy's control group since this process was started; 0 also where
    /// the kernel does not count them.
    #[must_use]
    pub fn oom_kills(&self) -> u32 {
        oom_kills()
            .zip(self.oom_kills_before)
            .map_or(0, |(now, before)| u32::try_from(now.saturating_sub(before)).unwrap_or(u32::MAX))
    }

    /// Waits for the process to exit. `None` when its status is lost.
    pub async fn exited(&self) -> Option<Exit> {
        let mut exit = self.exit.clone();
        // An error means that another thread got the status.
        exit.wait_for(Option::is_some).await.ok().and_then(|exit| *exit)
    }
}

/// The parameters of `execve`, built before the fork because the child cannot allocate.
struct Image {
    program: CString,
    arguments: Strings,
    environment: Strings,
}

impl Image {
    /// # Errors
    /// `InvalidInput` for a NUL in any string.
    fn new(launch: &Launch) -> io::Result<Self> {
        let variables: BTreeMap<&OsStr, &OsStr> =
            launch.environment.iter().map(|(name, value)| (name.as_os_str(), value.as_os_str())).collect();
        let program = launch.program.as_os_str();
        Ok(Self {
            program: CString::new(program.as_bytes())?,
            arguments: Strings::new(
                std::iter::once(program)
                    .chain(launch.arguments.iter().map(OsString::as_os_str))
                    .map(|argument| argument.as_bytes().to_vec()),
            )?,
            environment: Strings::new(
                variables.into_iter().map(|(name, value)| [name.as_bytes(), b"=", value.as_bytes()].concat()),
            )?,
        })
    }

    /// Becomes this program. Returns only when the kernel refuses it.
    #[expect(unsafe_code, reason = "the standard library ends in `execvp`, and hands a refused file to a shell")]
    fn execute(&self) -> io::Result<Infallible> {
        // SAFETY: the program is a string that ends with NUL, and both lists hold pointers to such
        // strings and end with a null pointer; `self` owns all of it and outlives the call.
        unsafe { libc::execve(self.program.as_ptr(), self.arguments.as_ptr(), self.environment.as_ptr()) };
        Err(io::Error::last_os_error())
    }
}

/// A null-terminated array of C strings.
struct Strings {
    /// One for each string, then a null pointer.
    pointers: Vec<*const c_char>,
    /// The strings behind the pointers; never changed.
    _owned: Vec<CString>,
}

// SAFETY: the pointers lead to the heap blocks of `_owned`, which move together with them and are
// never written to; so any thread may read them.
#[expect(unsafe_code, reason = "raw pointers are neither `Send` nor `Sync` by themselves")]
unsafe impl Send for Strings {}
// SAFETY: as above.
#[expect(unsafe_code, reason = "raw pointers are neither `Send` nor `Sync` by themselves")]
unsafe impl Sync for Strings {}

impl Strings {
    fn new(strings: impl Iterator<Item = Vec<u8>>) -> io::Result<Self> {
        let owned = strings.map(CString::new).collect::<Result<Vec<_>, _>>()?;
        let pointers = owned.iter().map(|string| string.as_ptr()).chain([std::ptr::null()]).collect();
        Ok(Self { pointers, _owned: owned })
    }

    fn as_ptr(&self) -> *const *const c_char {
        self.pointers.as_ptr()
    }
}

/// Makes the child execute this program, with `results` as its descriptor 3. An error of `execve` comes
/// back as the error of [`Command::spawn`].
#[expect(unsafe_code, reason = "the standard library passes on descriptors 0, 1 and 2 only, and ends in `execvp`")]
fn execute_in_child(command: &mut Command, image: Image, results: Option<OwnedFd>) {
    let execute = move || {
        if let Some(write_end) = &results {
            move_to_result_fd(write_end)?;
        }
        match image.execute()? {}
    };
    // SAFETY: the closure runs in the child after fork, as the last step of the standard library there:
    // directory, process group, signal mask and dispositions are set by then. It makes only system calls
    // (`dup2`, `fcntl`, `execve`), which are async-signal-safe; it allocates nothing, frees nothing and
    // takes no lock. Its error holds only a number.
    unsafe { command.pre_exec(execute) };
}

/// Makes `write_end` descriptor 3 of this process, which is the child between fork and exec.
#[expect(unsafe_code, reason = "descriptor 3 is known only by its number")]
fn move_to_result_fd(write_end: &OwnedFd) -> io::Result<()> {
    if write_end.as_raw_fd() == RESULT_FD {
        rustix::io::fcntl_setfd(write_end, FdFlags::empty())?;
        return Ok(());
    }
    // SAFETY: nothing in the child uses descriptor 3: exec is about to close the parent's descriptor of
    // that number. It cannot be the pipe by which the standard library reports a failed exec either:
    // that pipe is made after those of `start`, one of which took 3 if it was free. `dup2` leaves
    // descriptor 3 open without close-on-exec; `forget` keeps it open after this function.
    let mut target = unsafe { OwnedFd::from_raw_fd(RESULT_FD) };
    let moved = rustix::io::dup2(write_end, &mut target);
    std::mem::forget(target);
    Ok(moved?)
}

/// Marks every inherited descriptor above 2 as close-on-exec, so that no child sees it. Must be called
/// once, before the first child is started.
pub fn close_inherited_on_exec() {
    let Ok(entries) = std::fs::read_dir("/proc/self/fd") else { return };
    let fds: Vec<RawFd> =
        entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).filter(|fd| *fd > 2).collect();
    for fd in fds {
        set_close_on_exec(fd);
    }
}

#[expect(unsafe_code, reason = "an inherited descriptor is known only by its number")]
fn set_close_on_exec(fd: RawFd) {
    // SAFETY: `fcntl` with F_SETFD changes a flag of a descriptor, and no memory. For a number that is
    // not open any more (the one that listed the directory) it fails with EBADF.
    let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) };
    let _ = rustix::io::fcntl_setfd(fd, FdFlags::CLOEXEC);
}
