//! Starts an executable with its pipes.
//!
//! What can be executed is the kernel's to say. So the last call of the child is a plain `execve`: the
//! standard library's is `execvp`, which has a shell read what the kernel refuses.

#![expect(
    clippy::disallowed_methods,
    reason = "the one place that starts processes, on a thread that may wait for a busy executable"
)]

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::ffi::{CString, OsStr, OsString, c_char};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::io::FdFlags;
use rustix::process::Pid;
use tokio::io::unix::AsyncFd;

use super::memory::oom_kills;
use super::pipe::{pipe, watch};
use super::reap::{Exit, Reaper};

/// How to start an executable.
#[derive(Debug, Clone)]
pub struct Launch {
    /// The program, as an absolute path.
    pub program: PathBuf,
    /// Its arguments, without the program's own name.
    pub arguments: Vec<OsString>,
    /// Its whole environment, of which the last variable of a name counts.
    pub environment: Vec<(OsString, OsString)>,
    /// Its working directory.
    pub directory: PathBuf,
}

/// Whether the child gets a descriptor 3 for results.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResultChannel {
    /// Descriptors 0, 1 and 2 only.
    Stdout,
    /// A pipe on descriptor 3 as well.
    Descriptor3,
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

/// Our ends of a process's pipes, non-blocking and registered with the runtime.
#[derive(Debug)]
pub struct Pipes {
    /// What it reads. Dropping this is end-of-file for it.
    pub stdin: AsyncFd<OwnedFd>,
    /// What it prints.
    pub stdout: AsyncFd<OwnedFd>,
    /// What it logs.
    pub stderr: AsyncFd<OwnedFd>,
    /// Its result channel, when it was given one.
    pub results: Option<AsyncFd<OwnedFd>>,
}

/// The descriptor of the result channel in the child.
const RESULT_FD: RawFd = 3;

/// A file that was written a moment ago may still be open for writing in a child that another
/// thread is about to exec; the kernel then says "text file busy". It passes.
const BUSY_TRIES: u32 = 50;

/// Starts an executable as the leader of a new process group.
///
/// # Errors
/// What the kernel says: `NotFound` also when the interpreter of a script or binary is missing,
/// `ENOEXEC` for a file it cannot execute.
pub fn start(launch: &Launch, channel: ResultChannel, reaper: &Reaper) -> io::Result<(Process, Pipes)> {
    let (child_stdin, stdin) = pipe()?;
    let (stdout, child_stdout) = pipe()?;
    let (stderr, child_stderr) = pipe()?;
    let (results, child_results) = match channel {
        ResultChannel::Stdout => (None, None),
        ResultChannel::Descriptor3 => {
            let (ours, theirs) = pipe()?;
            (Some(ours), Some(theirs))
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
    // From here on end-of-file tells the truth: the child's ends are the child's alone.
    drop(command);

    let started = Instant::now();
    let pid = Pid::from_child(&child);
    let exit = reaper.register(pid);
    let pipes = Pipes {
        stdin: watch(stdin)?,
        stdout: watch(stdout)?,
        stderr: watch(stderr)?,
        results: results.map(watch).transpose()?,
    };
    Ok((Process { pid, started, oom_kills_before, exit }, pipes))
}

impl Process {
    /// The process's exit, if it has ended already.
    #[must_use]
    pub fn exit(&self) -> Option<Exit> {
        *self.exit.borrow()
    }

    /// How many processes of our control group the kernel killed for want of memory since this one
    /// was started; 0 also where that cannot be told.
    #[must_use]
    pub fn oom_kills(&self) -> u32 {
        oom_kills()
            .zip(self.oom_kills_before)
            .map_or(0, |(now, before)| u32::try_from(now.saturating_sub(before)).unwrap_or(u32::MAX))
    }

    /// Waits for the end of the process. `None` when its status cannot be learnt.
    pub async fn exited(&self) -> Option<Exit> {
        let mut exit = self.exit.clone();
        // An error means that the status went to somebody else.
        exit.wait_for(Option::is_some).await.ok().and_then(|exit| *exit)
    }
}

/// What `execve` gets, made before the fork: nothing can be allocated after it.
struct Image {
    program: CString,
    arguments: Strings,
    environment: Strings,
}

impl Image {
    /// # Errors
    /// `InvalidInput` for a NUL in any of it.
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

/// A list of strings as C has it.
struct Strings {
    /// One for each string, then a null pointer.
    pointers: Vec<*const c_char>,
    /// What the pointers lead to; never changed.
    _owned: Vec<CString>,
}

// SAFETY: the pointers lead to the heap blocks of the strings beside them, which move with the list
// and are never written to; so they may be read from any thread.
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

/// Makes the child end in this program, with `results` as its descriptor 3. What the kernel says
/// against it comes back as the error of [`Command::spawn`].
#[expect(unsafe_code, reason = "the standard library passes on descriptors 0, 1 and 2 only, and ends in `execvp`")]
fn execute_in_child(command: &mut Command, image: Image, results: Option<OwnedFd>) {
    let execute = move || {
        if let Some(write_end) = &results {
            move_to_result_fd(write_end)?;
        }
        match image.execute()? {}
    };
    // SAFETY: the closure runs in the child after fork, as the last of what the standard library does
    // there: folder, process group, signal mask and dispositions are set by then. It makes only system
    // calls (`dup2`, `fcntl`, `execve`), which are async-signal-safe; it allocates nothing, frees
    // nothing and takes no lock. An error of the system is no more than its number.
    unsafe { command.pre_exec(execute) };
}

/// Makes `write_end` descriptor 3 of this process, which is the child between fork and exec.
#[expect(unsafe_code, reason = "descriptor 3 is known by its number only")]
fn move_to_result_fd(write_end: &OwnedFd) -> io::Result<()> {
    if write_end.as_raw_fd() == RESULT_FD {
        rustix::io::fcntl_setfd(write_end, FdFlags::empty())?;
        return Ok(());
    }
    // SAFETY: descriptor 3 belongs to nobody here: whatever the parent had there is about to be closed
    // by exec. It cannot be the pipe by which the standard library reports a failed exec either, for
    // that is made after ours, and one of ours took 3 if it was free. `dup2` leaves an open descriptor
    // 3 without close-on-exec; `forget` keeps it open behind this function.
    let mut target = unsafe { OwnedFd::from_raw_fd(RESULT_FD) };
    let moved = rustix::io::dup2(write_end, &mut target);
    std::mem::forget(target);
    Ok(moved?)
}

/// Marks everything that we inherited beyond standard error as close-on-exec, so that no child
/// sees it. To be called once, before anything is started.
pub fn keep_inherited_descriptors() {
    let Ok(entries) = std::fs::read_dir("/proc/self/fd") else { return };
    let fds: Vec<RawFd> =
        entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).filter(|fd| *fd > 2).collect();
    for fd in fds {
        set_close_on_exec(fd);
    }
}

#[expect(unsafe_code, reason = "a descriptor that was inherited is known by its number only")]
fn set_close_on_exec(fd: RawFd) {
    // SAFETY: `fcntl` with F_SETFD changes a flag of a descriptor, and no memory. A number that
    // is not open any more (the one that listed the folder) is answered with EBADF.
    let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) };
    let _ = rustix::io::fcntl_setfd(fd, FdFlags::CLOEXEC);
}
