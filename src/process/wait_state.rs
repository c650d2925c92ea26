//! Sees from outside whether a process waits for input.
//!
//! Linux shows it without the process's help: a thread that sleeps in `read(0)`, or in `poll`,
//! `select` or `epoll_wait` on a set that holds descriptor 0, waits for its input. This answers the
//! question that the protocol's first design left open: how to see at init, without a handshake, that
//! an action is really up.
//!
//! Descendants count: `sh -c "python3 action.py"` waits for the interpreter, which waits for input.
//!
//! Source: proc(5), `/proc/PID/task/TID/syscall`, `/proc/PID/fdinfo/FD`, `/proc/PID/mem`.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::time::Duration;

use rustix::process::Pid;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use tokio::io::unix::AsyncFd;

use super::pipe::watch_as_it_is;

/// What a process waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WaitState {
    /// The process, or a descendant, waits for its standard input.
    WaitsOnStdin,
    /// The process does something else.
    Busy,
    /// `/proc` does not show it (gVisor, hidepid, a kernel without the file, `io_uring`).
    Unknown,
}

/// A timer for the pauses between probes. Finer than the runtime's timers, which count whole
/// milliseconds: with those an action that is up sooner would have to wait.
#[derive(Debug)]
pub struct ProbeTimer(AsyncFd<OwnedFd>);

impl ProbeTimer {
    /// A timer that is not set.
    ///
    /// # Errors
    /// When no descriptors are left.
    pub fn new() -> io::Result<Self> {
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?;
        Ok(Self(watch_as_it_is(timer)?))
    }

    /// Sets the timer to expire once, after `pause`.
    pub fn set(&self, pause: Duration) {
        let never_again = Timespec { tv_sec: 0, tv_nsec: 0 };
        let value = Timespec::try_from(pause).expect("a pause is short");
        let times = Itimerspec { it_interval: never_again, it_value: value };
        timerfd_settime(self.0.get_ref(), TimerfdTimerFlags::empty(), &times).expect("it is a timer");
    }

    /// Waits until the timer expires.
    pub async fn expired(&self) {
        let Ok(mut ready) = self.0.readable().await else { return };
        // Clears the expiry until the timer is set again.
        let _ = rustix::io::read(self.0.get_ref(), &mut [0; 8]);
        ready.clear_ready();
    }
}

/// How many threads, of the process and its descendants, one probe reads at most.
const MAX_THREADS: usize = 512;

/// Reads once what a process and its descendants wait for. `stdin` is the proxy's end of its input pipe.
#[must_use]
pub fn probe(pid: Pid, stdin: impl AsFd) -> WaitState {
    let Ok(stat) = rustix::fs::fstat(stdin) else { return WaitState::Unknown };
    let pipe = format!("pipe:[{}]", stat.st_ino);
    let mut known = false;
    let mut pids = vec![pid.as_raw_nonzero().get()];
    let mut threads_seen = 0;
    while let Some(pid) = pids.pop() {
        let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { continue };
        for thread in threads.flatten() {
            threads_seen += 1;
            if threads_seen > MAX_THREADS {
                return if known { WaitState::Busy } else { WaitState::Unknown };
            }
            let thread = thread.path();
            // For a running thread the file says "running"; without permission the read fails.
            if let Ok(call) = fs::read_to_string(thread.join("syscall")) {
                known = true;
                if SystemCall::parse(&call).is_some_and(|call| call.waits_for(pid, &pipe)) {
                    return WaitState::WaitsOnStdin;
                }
            }
            if let Ok(children) = fs::read_to_string(thread.join("children")) {
                pids.extend(children.split_ascii_whitespace().filter_map(|pid| pid.parse::<i32>().ok()));
            }
        }
    }
    if known { WaitState::Busy } else { WaitState::Unknown }
}

/// A system call in which a thread sleeps: its number and arguments.
struct SystemCall {
    number: i64,
    arguments: [u64; 6],
}

impl SystemCall {
    /// Parses `0 0x0 0x7ffd… 0x1 0x0 0x0 0x0 SP PC`. `None` for `running` and `-1 SP PC`.
    fn parse(text: &str) -> Option<Self> {
        let mut fields = text.split_ascii_whitespace();
        let number = fields.next()?.parse().ok().filter(|number| *number >= 0)?;
        let mut arguments = [0; 6];
        for argument in &mut arguments {
            *argument = u64::from_str_radix(fields.next()?.strip_prefix("0x")?, 16).ok()?;
        }
        Some(Self { number, arguments })
    }

    /// Whether this call returns when bytes arrive on `pipe`.
    fn waits_for(&self, pid: i32, pipe: &str) -> bool {
        let [first, second, ..] = self.arguments;
        match Kind::of(self.number) {
            Some(Kind::Read) => is_pipe(pid, first, pipe),
            Some(Kind::Poll) => {
                polled(pid, first, second).is_ok_and(|fds| fds.into_iter().any(|fd| is_pipe(pid, fd, pipe)))
            }
            Some(Kind::Select) => {
                selected(pid, first, second).is_ok_and(|fds| fds.into_iter().any(|fd| is_pipe(pid, fd, pipe)))
            }
            Some(Kind::Epoll) => watched(pid, first).into_iter().any(|fd| is_pipe(pid, fd, pipe)),
            None => false,
        }
    }
}

/// The system calls that wait for input, by the meaning of their arguments.
enum Kind {
    /// (fd, …)
    Read,
    /// `(struct pollfd *fds, nfds, …)`
    Poll,
    /// `(nfds, fd_set *readfds, …)`
    Select,
    /// (epfd, …)
    Epoll,
}

impl Kind {
    #[cfg(target_arch = "x86_64")]
    fn of(number: i64) -> Option<Self> {
        Some(match number {
            0 | 19 => Self::Read,           // read, readv
            7 | 271 => Self::Poll,          // poll, ppoll
            23 | 270 => Self::Select,       // select, pselect6
            232 | 281 | 441 => Self::Epoll, // epoll_wait, epoll_pwait, epoll_pwait2
            _ => return None,
        })
    }

    #[cfg(any(target_arch = "aarch64", target_arch = "riscv64"))]
    fn of(number: i64) -> Option<Self> {
        Some(match number {
            63 | 65 => Self::Read,
            73 => Self::Poll,
            72 => Self::Select,
            22 | 441 => Self::Epoll,
            _ => return None,
        })
    }

    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64")))]
    fn of(_number: i64) -> Option<Self> {
        None
    }
}

/// Whether descriptor `fd` of process `pid` is the pipe. The descriptor may have any number there.
fn is_pipe(pid: i32, fd: u64, pipe: &str) -> bool {
    fs::read_link(format!("/proc/{pid}/fd/{fd}")).is_ok_and(|target| target.as_os_str() == pipe)
}

/// The descriptors of an epoll set.
fn watched(pid: i32, epoll: u64) -> Vec<u64> {
    let Ok(info) = fs::read_to_string(format!("/proc/{pid}/fdinfo/{epoll}")) else { return Vec::new() };
    info.lines().filter_map(|line| line.strip_prefix("tfd:")?.split_ascii_whitespace().next()?.parse().ok()).collect()
}

/// The descriptors of a `pollfd` array in another process.
fn polled(pid: i32, array: u64, count: u64) -> io::Result<Vec<u64>> {
    /// `struct pollfd { int fd; short events; short revents; }`
    const SIZE: usize = 8;
    let mut bytes = vec![0; SIZE * count.min(1024) as usize];
    memory(pid)?.read_exact_at(&mut bytes, array)?;
    Ok(bytes
        .chunks_exact(SIZE)
        .filter_map(|entry| {
            let fd = i32::from_ne_bytes(entry[..4].try_into().expect("four bytes"));
            u64::try_from(fd).ok()
        })
        .collect())
}

/// The descriptors of an `fd_set` in another process.
fn selected(pid: i32, count: u64, set: u64) -> io::Result<Vec<u64>> {
    let count = count.min(1024);
    if set == 0 {
        return Ok(Vec::new());
    }
    let mut bits = vec![0_u8; count.div_ceil(8) as usize];
    memory(pid)?.read_exact_at(&mut bits, set)?;
    // Little-endian words of bits are bytes of bits in the same order.
    Ok((0..count).filter(|fd| bits[(fd / 8) as usize] & (1 << (fd % 8)) != 0).collect())
}

fn memory(pid: i32) -> io::Result<fs::File> {
    fs::File::open(format!("/proc/{pid}/mem"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn system_calls_are_parsed_as_proc_prints_them() {
        let call = SystemCall::parse("281 0xd 0x7fffe7f5fa20 0x400 0xffffffff 0x0 0x8 0x7f 0x7e\n").unwrap();
        assert_eq!((call.number, call.arguments[0], call.arguments[3]), (281, 13, 0xffff_ffff));
        assert!(SystemCall::parse("running\n").is_none());
        assert!(SystemCall::parse("-1 0x7ffd 0x7ffe\n").is_none());
        assert!(SystemCall::parse("").is_none());
    }
}
