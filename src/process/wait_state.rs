//! Sees from outside whether a process waits for input.
//!
//! Linux shows it without the process's help: a thread that sleeps in `read(0)`, or in `poll`,
//! `select` or `epoll_wait` on a set that holds descriptor 0, waits for its input. This answers the
//! question that the protocol's first design left open: how to see at init, without a handshake, that
//! an action is really up.
//!
//! Some waits cannot be judged: a system call of another architecture's table (a 32-bit program), a wait for an
//! `io_uring`, a sleep between two reads that do not block. A process that does such a thing, and of which no thread
//! waits visibly, counts as unseen.
//!
//! Descendants count: `sh -c "python3 action.py"` waits for the interpreter, which waits for input.
//!
//! Source: proc(5), `/proc/PID/task/TID/syscall`, `/proc/PID/fdinfo/FD`, `/proc/PID/mem`.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::time::Duration;

use rustix::fs::OFlags;
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
    /// `/proc` does not show it (gVisor, hidepid, a kernel without the file), or it cannot be judged.
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
    let Some(pipe) = pipe_name(stdin) else { return WaitState::Unknown };
    let (mut known, mut unjudged) = (false, false);
    let mut pids = vec![pid.as_raw_nonzero().get()];
    let mut threads_seen = 0;
    while let Some(pid) = pids.pop() {
        let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { continue };
        let mut table = None;
        for thread in threads.flatten() {
            threads_seen += 1;
            if threads_seen > MAX_THREADS {
                return if known && !unjudged { WaitState::Busy } else { WaitState::Unknown };
            }
            let thread = thread.path();
            // For a running thread the file says "running"; without permission the read fails.
            if let Ok(call) = fs::read_to_string(thread.join("syscall")) {
                known = true;
                if let Some(call) = SystemCall::parse(&call) {
                    let table = *table.get_or_insert_with(|| Table::of(pid));
                    match call.judge(table, pid, &pipe) {
                        WaitState::WaitsOnStdin => return WaitState::WaitsOnStdin,
                        WaitState::Busy => {}
                        WaitState::Unknown => unjudged = true,
                    }
                }
            }
            if let Ok(children) = fs::read_to_string(thread.join("children")) {
                pids.extend(children.split_ascii_whitespace().filter_map(|pid| pid.parse::<i32>().ok()));
            }
        }
    }
    if known && !unjudged { WaitState::Busy } else { WaitState::Unknown }
}

/// The name of a pipe, as links in `/proc/PID/fd` show it.
pub(super) fn pipe_name(pipe: impl AsFd) -> Option<String> {
    Some(format!("pipe:[{}]", rustix::fs::fstat(pipe).ok()?.st_ino))
}

/// Whether a call returns only when bytes arrive on `pipe`, or when it ends.
pub(super) fn is_only_input(call: &SystemCall, table: Table, pid: i32, pipe: &str) -> bool {
    let [first, second, third, fourth, fifth, _] = call.arguments;
    // A timeout is an `int`.
    let is_endless = |timeout: u64| timeout & 0xffff_ffff == 0xffff_ffff;
    let only = |fds: io::Result<Vec<u64>>| {
        let fds = fds.unwrap_or_default();
        let is_pipe =
            |fd: &u64| fs::read_link(format!("/proc/{pid}/fd/{fd}")).is_ok_and(|target| target.as_os_str() == pipe);
        !fds.is_empty() && fds.iter().all(is_pipe)
    };
    match (table, table.kind(call.number)) {
        (Table::Native, Kind::Read) => only(Ok(vec![first])),
        (Table::Native, Kind::Poll) => second > 0 && is_endless(third) && only(polled(pid, first, second)),
        (Table::Native, Kind::PollTimespec) => second > 0 && third == 0 && only(polled(pid, first, second)),
        (Table::Native, Kind::Select) => (third, fourth, fifth) == (0, 0, 0) && only(selected(pid, first, second)),
        (Table::Native, Kind::Epoll) => is_endless(fourth) && only(Ok(watched(pid, first))),
        (Table::Native, Kind::EpollTimespec) => fourth == 0 && only(Ok(watched(pid, first))),
        _ => false,
    }
}

/// Whether a call waits for the end of a child.
pub(super) fn is_wait_for_child(call: &SystemCall, table: Table) -> bool {
    table == Table::Native && table.kind(call.number) == Kind::Child
}

/// A system call in which a thread sleeps: its number and arguments.
pub(super) struct SystemCall {
    number: i64,
    arguments: [u64; 6],
}

impl SystemCall {
    /// Parses `0 0x0 0x7ffd… 0x1 0x0 0x0 0x0 SP PC`. `None` for `running` and `-1 SP PC`.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut fields = text.split_ascii_whitespace();
        let number = fields.next()?.parse().ok().filter(|number| *number >= 0)?;
        let mut arguments = [0; 6];
        for argument in &mut arguments {
            *argument = u64::from_str_radix(fields.next()?.strip_prefix("0x")?, 16).ok()?;
        }
        Some(Self { number, arguments })
    }

    /// What a process waits for in this call: whether it returns when bytes arrive on `pipe`.
    fn judge(&self, table: Table, pid: i32, pipe: &str) -> WaitState {
        let [first, second, ..] = self.arguments;
        let any = |fds: io::Result<Vec<u64>>| any_of(&fds.unwrap_or_default(), pid, pipe);
        match table.kind(self.number) {
            Kind::Read | Kind::Splice => any_of(&[first], pid, pipe),
            // An old way to sleep for less than a second.
            Kind::Poll | Kind::PollTimespec if second == 0 => sleep(pid, pipe),
            Kind::Select if first == 0 || second == 0 => sleep(pid, pipe),
            Kind::Poll | Kind::PollTimespec => any(polled(pid, first, second)),
            Kind::Select => any(selected(pid, first, second)),
            Kind::Epoll | Kind::EpollTimespec => any(Ok(watched(pid, first))),
            Kind::Sleep => sleep(pid, pipe),
            Kind::Opaque => WaitState::Unknown,
            Kind::Child | Kind::Other => WaitState::Busy,
        }
    }
}

/// What a process waits for that waits until one of these descriptors has something to read.
fn any_of(descriptors: &[u64], pid: i32, pipe: &str) -> WaitState {
    let targets: Vec<_> =
        descriptors.iter().filter_map(|fd| fs::read_link(format!("/proc/{pid}/fd/{fd}")).ok()).collect();
    if targets.iter().any(|target| target.as_os_str() == pipe) {
        WaitState::WaitsOnStdin
    } else if targets.iter().any(|target| target.as_os_str() == "anon_inode:[io_uring]") {
        // The ring may hold a read of its input.
        WaitState::Unknown
    } else {
        WaitState::Busy
    }
}

/// What a process that sleeps waits for: it may look for its input after each sleep, if reading it does not block.
fn sleep(pid: i32, pipe: &str) -> WaitState {
    let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fd")) else { return WaitState::Busy };
    let does_not_block = |descriptor: fs::DirEntry| {
        let name = descriptor.file_name();
        let is_stdin = fs::read_link(descriptor.path()).is_ok_and(|target| target.as_os_str() == pipe);
        is_stdin
            && fs::read_to_string(format!("/proc/{pid}/fdinfo/{}", name.to_string_lossy()))
                .is_ok_and(|info| is_nonblocking(&info))
    };
    if descriptors.flatten().any(does_not_block) { WaitState::Unknown } else { WaitState::Busy }
}

/// Whether an open file has `O_NONBLOCK`. Its flags are octal in `/proc/PID/fdinfo/FD`.
fn is_nonblocking(info: &str) -> bool {
    let flags = info.lines().find_map(|line| u32::from_str_radix(line.strip_prefix("flags:")?.trim(), 8).ok());
    flags.is_some_and(|flags| flags & OFlags::NONBLOCK.bits() != 0)
}

/// Whose numbers the system calls of a process have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Table {
    /// Those of the proxy's architecture.
    Native,
    /// Those of 32-bit x86, on x86-64.
    I386,
    /// Those of another one.
    Foreign,
}

/// The system calls that wait, by the meaning of their arguments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// (fd, …)
    Read,
    /// (fd, …), which moves bytes between two descriptors.
    Splice,
    /// `(struct pollfd *fds, nfds, int timeout)`
    Poll,
    /// `(struct pollfd *fds, nfds, struct timespec *timeout, …)`
    PollTimespec,
    /// `(nfds, fd_set *readfds, …)`
    Select,
    /// `(epfd, events, maxevents, int timeout, …)`
    Epoll,
    /// `(epfd, events, maxevents, struct timespec *timeout, …)`
    EpollTimespec,
    /// It waits for the end of a child.
    Child,
    /// It waits for time to pass.
    Sleep,
    /// Its arguments do not show what it waits for.
    Opaque,
    /// It waits for no descriptor.
    Other,
}

impl Table {
    /// The table of a process, by the header of its executable. One that cannot be read counts as native.
    pub(super) fn of(pid: i32) -> Self {
        /// `EI_CLASS` and the two bytes of `e_machine`.
        fn class_and_machine(header: &[u8; 20]) -> [u8; 3] {
            [header[4], header[18], header[19]]
        }
        let read = |path: String| {
            let mut header = [0; 20];
            fs::File::open(path)?.read_exact_at(&mut header, 0)?;
            Ok::<_, io::Error>(class_and_machine(&header))
        };
        match (read(format!("/proc/{pid}/exe")), read("/proc/self/exe".into())) {
            (Ok(theirs), Ok(own)) if theirs == own => Self::Native,
            // ELFCLASS32, EM_386.
            (Ok([1, 3, 0]), _) if cfg!(target_arch = "x86_64") => Self::I386,
            (Ok(_), Ok(_)) => Self::Foreign,
            _ => Self::Native,
        }
    }

    fn kind(self, number: i64) -> Kind {
        match self {
            Self::Native => native_kind(number),
            Self::I386 => i386_kind(number),
            Self::Foreign => Kind::Opaque,
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn native_kind(number: i64) -> Kind {
    match number {
        0 | 19 => Kind::Read,       // read, readv
        275 | 276 => Kind::Splice,  // splice, tee
        7 => Kind::Poll,            // poll
        271 => Kind::PollTimespec,  // ppoll
        23 | 270 => Kind::Select,   // select, pselect6
        232 | 281 => Kind::Epoll,   // epoll_wait, epoll_pwait
        441 => Kind::EpollTimespec, // epoll_pwait2
        61 | 247 => Kind::Child,    // wait4, waitid
        35 | 230 => Kind::Sleep,    // nanosleep, clock_nanosleep
        426 => Kind::Opaque,        // io_uring_enter
        _ => Kind::Other,
    }
}

#[cfg(any(target_arch = "aarch64", target_arch = "riscv64"))]
fn native_kind(number: i64) -> Kind {
    match number {
        63 | 65 => Kind::Read,
        76 | 77 => Kind::Splice,
        73 => Kind::PollTimespec,
        72 => Kind::Select,
        22 => Kind::Epoll,
        441 => Kind::EpollTimespec,
        95 | 260 => Kind::Child,
        101 | 115 => Kind::Sleep,
        426 => Kind::Opaque,
        _ => Kind::Other,
    }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64")))]
fn native_kind(_number: i64) -> Kind {
    Kind::Opaque
}

fn i386_kind(number: i64) -> Kind {
    match number {
        3 | 145 | 313 | 315 => Kind::Read, // read, readv, splice, tee
        168 | 309 | 414 => Kind::Poll,     // poll, ppoll, ppoll_time64
        142 | 308 | 413 => Kind::Select,   // _newselect, pselect6, pselect6_time64
        256 | 319 | 441 => Kind::Epoll,    // epoll_wait, epoll_pwait, epoll_pwait2
        162 | 267 | 407 => Kind::Sleep,    // nanosleep, clock_nanosleep, clock_nanosleep_time64
        // select with its arguments in memory, and io_uring_enter.
        82 | 426 => Kind::Opaque,
        _ => Kind::Other,
    }
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

    #[test]
    fn the_flags_of_an_open_file_are_octal() {
        assert!(is_nonblocking("pos:\t0\nflags:\t04000\nmnt_id:\t14\n"));
        assert!(is_nonblocking("pos:\t0\nflags:\t02004000\n"));
        assert!(!is_nonblocking("pos:\t0\nflags:\t02000000\n"));
        assert!(!is_nonblocking(""));
    }

    #[test]
    fn the_proxys_own_calls_are_of_the_native_table() {
        assert_eq!(Table::of(std::process::id().cast_signed()), Table::Native);
    }
}
