//! Starts an executable with its pipes.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
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
    /// Its whole environment.
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
        .args(&launch.arguments)
        .env_clear()
        .envs(launch.environment.iter().map(|(name, value)| (name, value)))
        .current_dir(&launch.directory)
        .process_group(0)
        .stdin(Stdio::from(child_stdin))
        .stdout(Stdio::from(child_stdout))
        .stderr(Stdio::from(child_stderr));
    if let Some(child_results) = child_results {
        pass_as_result_channel(&mut command, child_results);
    }

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

/// Makes `write_end` the child's descriptor 3.
#[expect(unsafe_code, reason = "the standard library passes on descriptors 0, 1 and 2 only")]
fn pass_as_result_channel(command: &mut Command, write_end: OwnedFd) {
    let move_to_3 = move || {
        if write_end.as_raw_fd() == RESULT_FD {
            rustix::io::fcntl_setfd(&write_end, FdFlags::empty())?;
        } else {
            // SAFETY: this is the child between fork and exec, where descriptor 3 belongs to
            // nobody: whatever the parent had there is about to be closed by exec. It cannot be
            // the pipe by which the standard library reports a failed exec either, for that is
            // made after ours, and one of ours took 3 if it was free. `dup2` leaves an open
            // descriptor 3 without close-on-exec; `forget` keeps it open across this closure.
            let mut target = unsafe { OwnedFd::from_raw_fd(RESULT_FD) };
            let moved = rustix::io::dup2(&write_end, &mut target);
            std::mem::forget(target);
            moved?;
        }
        Ok(())
    };
    // SAFETY: the closure runs in the child after fork, and makes only system calls
    // (`dup2`, `fcntl`), which are async-signal-safe; it allocates nothing and takes no lock.
    unsafe { command.pre_exec(move_to_3) };
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
