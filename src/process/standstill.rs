//! Sees from outside that a process can only wait for input: nothing of it can write any more until it is sent
//! something.
//!
//! [`wait_state`](super::wait_state) asks whether some thread waits for input. This asks for a proof: every thread of the
//! process and of its descendants waits for the input, for nothing else and without a time limit, or for the end of a
//! child; no timer is set; and no other process has the result channel open. A process in an event loop, with a thread
//! that does something else, or with a child that lives elsewhere, is never at a standstill.
//!
//! Source: proc(5), `/proc/PID/task/TID/syscall` and `status`, `/proc/PID/timers`, `/proc/PID/fd`.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::OwnedFd;

use rustix::process::{Pid, getpid};

use super::orphans::Stat;
use super::pipe::{is_terminal, unread};
use super::wait_state::{SystemCall, Table, is_only_input, is_wait_for_child, pipe_name};

/// How many threads one look reads at most.
const MAX_THREADS: usize = 64;

/// How often the threads of a process have been switched in and out, if it is at a standstill now. If the number is the
/// same later, the process has not run in between.
///
/// `stdin` is the proxy's end of its input pipe, `results` that of its result channel.
#[must_use]
pub fn standstill(pid: Pid, stdin: &OwnedFd, results: &OwnedFd) -> Option<u64> {
    // Something is to be read by the process, or by the proxy.
    if unread(stdin, false) > 0 || unread(results, is_terminal(results)) > 0 {
        return None;
    }
    let input = pipe_name(stdin)?;
    let (mut switches, mut threads_seen) = (0, 0);
    let mut pids = vec![pid.as_raw_nonzero().get()];
    let mut tree = BTreeSet::from([getpid().as_raw_nonzero().get()]);
    while let Some(pid) = pids.pop() {
        tree.insert(pid);
        if Stat::of(pid)?.has_ended() {
            continue;
        }
        if !fs::read(format!("/proc/{pid}/timers")).unwrap_or_default().is_empty() {
            return None;
        }
        let table = Table::of(pid);
        let mut children = Vec::new();
        let mut waits_for_child = false;
        for thread in fs::read_dir(format!("/proc/{pid}/task")).ok()? {
            threads_seen += 1;
            if threads_seen > MAX_THREADS {
                return None;
            }
            let thread = thread.ok()?.path();
            let call = SystemCall::parse(&fs::read_to_string(thread.join("syscall")).ok()?)?;
            if is_wait_for_child(&call, table) {
                waits_for_child = true;
            } else if !is_only_input(&call, table, pid, &input) {
                return None;
            }
            switches += Status::parse(&fs::read_to_string(thread.join("status")).ok()?)?.sleeping()?;
            let listed = fs::read_to_string(thread.join("children")).ok()?;
            children.extend(listed.split_ascii_whitespace().filter_map(|pid| pid.parse::<i32>().ok()));
        }
        // A parent that waits for the input itself may have children only that have ended.
        if !waits_for_child && children.iter().filter_map(|child| Stat::of(*child)).any(|child| !child.has_ended()) {
            return None;
        }
        pids.extend(children);
    }
    (!is_open_elsewhere(&channel_name(results)?, &tree)).then_some(switches)
}

/// What the status of a thread says.
struct Status {
    state: char,
    /// The signals that have a handler, bit 0 for signal 1.
    caught: u64,
    switches: u64,
}

impl Status {
    fn parse(text: &str) -> Option<Self> {
        let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        let number = |name: &str| field(name)?.parse::<u64>().ok();
        Some(Self {
            state: field("State:")?.chars().next()?,
            caught: u64::from_str_radix(field("SigCgt:")?, 16).ok()?,
            switches: number("voluntary_ctxt_switches:")? + number("nonvoluntary_ctxt_switches:")?,
        })
    }

    /// The number of switches of a thread that sleeps, and that no alarm is likely to wake. The kernel shows no alarm;
    /// a handler for it shows that one may be set. Programs that clean up after any signal catch both of these.
    fn sleeping(&self) -> Option<u64> {
        /// The bits of `SIGALRM` and `SIGVTALRM`.
        const ALARM: u64 = 1 << 13;
        const VIRTUAL_ALARM: u64 = 1 << 25;
        let has_alarm = self.caught & (ALARM | VIRTUAL_ALARM) == ALARM;
        (self.state == 'S' && !has_alarm).then_some(self.switches)
    }
}

/// The name that a process sees of the other end of a pipe or terminal.
fn channel_name(results: &OwnedFd) -> Option<String> {
    if is_terminal(results) {
        return rustix::pty::ptsname(results, Vec::new()).ok()?.into_string().ok();
    }
    pipe_name(results)
}

/// Whether a process other than these may have the result channel open. One whose descriptors cannot be read may have.
fn is_open_elsewhere(channel: &str, tree: &BTreeSet<i32>) -> bool {
    let Ok(entries) = fs::read_dir("/proc") else { return true };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| !tree.contains(pid)).any(|pid| {
        let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fd")) else {
            return may_descend(pid, tree);
        };
        descriptors.flatten().any(|entry| fs::read_link(entry.path()).is_ok_and(|target| target.as_os_str() == channel))
    })
}

/// Whether a process whose descriptors cannot be read may come from the action: it is younger than the proxy. None of a
/// laptop's older processes do.
fn may_descend(pid: i32, tree: &BTreeSet<i32>) -> bool {
    let started = |pid: i32| Stat::of(pid).map(|stat| stat.start_time);
    let Some(theirs) = started(pid) else { return false };
    tree.iter().filter_map(|pid| started(*pid)).min().is_none_or(|oldest| theirs >= oldest)
}
