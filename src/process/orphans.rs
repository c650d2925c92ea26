//! Processes that outlive their parent, and what a process and its descendants execute.
//!
//! Source: proc(5), `/proc/PID/stat`, `/proc/PID/exe`; `PR_SET_CHILD_SUBREAPER(2const)`.

#![expect(clippy::disallowed_methods, reason = "orphans are ended by signals")]

use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use rustix::process::{Pid, Signal, getpid, kill_process, set_child_subreaper};

/// A process that has outlived its parent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Orphan {
    /// Its pid.
    pub pid: Pid,
    /// Its command name.
    pub name: String,
}

/// Makes this process the parent of every descendant that loses its parent, including one that has
/// left its process group and session, as daemons do.
///
/// # Errors
/// When the kernel does not support it.
pub fn adopt_orphans() -> io::Result<()> {
    Ok(set_child_subreaper(Some(getpid()))?)
}

/// The living children of this process. Once the children that it started itself have ended, these are
/// the orphans that it has adopted.
#[must_use]
pub fn orphans() -> Vec<Orphan> {
    children_of(getpid().as_raw_nonzero().get())
}

/// Kills orphans. This process then adopts their children.
pub fn kill(orphans: &[Orphan]) {
    for orphan in orphans {
        let _ = kill_process(orphan.pid, Signal::KILL);
    }
}

/// The programs that a process and its descendants execute, the process's own first.
#[must_use]
pub fn programs(pid: Pid) -> Vec<PathBuf> {
    with_descendants(pid).filter_map(|pid| fs::read_link(format!("/proc/{pid}/exe")).ok()).collect()
}

/// The CPU time of a process, its living descendants and the children that they have waited for.
#[must_use]
pub fn cpu_time(pid: Pid) -> Duration {
    let stats = with_descendants(pid).filter_map(Stat::of);
    TICK * stats.map(|stat| stat.ticks).sum::<u32>()
}

/// A process and its living descendants, the process first. Each pid is yielded before its children are
/// searched for.
fn with_descendants(pid: Pid) -> impl Iterator<Item = i32> {
    let mut pids = vec![pid.as_raw_nonzero().get()];
    let mut current = None;
    std::iter::from_fn(move || {
        if let Some(pid) = current.take() {
            pids.extend(children_of(pid).iter().map(|child| child.pid.as_raw_nonzero().get()));
        }
        current = pids.pop();
        current
    })
}

fn children_of(parent: i32) -> Vec<Orphan> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    pids.filter_map(|pid| {
        let stat = Stat::of(pid)?;
        (!stat.has_ended() && stat.parent == parent).then_some(Orphan { pid: Pid::from_raw(pid)?, name: stat.name })
    })
    .collect()
}

/// The unit of CPU time in `/proc`: `USER_HZ` on every supported architecture.
const TICK: Duration = Duration::from_millis(10);
/// The index of `utime` in `/proc/PID/stat`, counted from `state`; `stime`, `cutime` and `cstime` follow.
const UTIME: usize = 11;
/// The index of `starttime`, counted in the same way.
const START_TIME: usize = 19;

/// The beginning of `/proc/PID/stat`: `pid (name) state parent …`. The name may hold anything.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Stat {
    name: String,
    state: char,
    parent: i32,
    /// CPU time in user and system mode, including the children that it has waited for.
    ticks: u32,
    /// When it was started, in ticks since the system was; 0 if the line ends before.
    pub(super) start_time: u64,
}

impl Stat {
    /// Of a process that is there.
    pub(super) fn of(pid: i32) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    /// Whether it has exited, and was not waited for.
    pub(super) fn has_ended(&self) -> bool {
        matches!(self.state, 'Z' | 'X')
    }

    fn parse(text: &str) -> Option<Self> {
        let (before, after) = text.rsplit_once(") ")?;
        let (_, name) = before.split_once(" (")?;
        let fields: Vec<_> = after.split(' ').collect();
        Some(Self {
            name: name.to_owned(),
            state: fields.first()?.chars().next()?,
            parent: fields.get(1)?.parse().ok()?,
            ticks: fields.get(UTIME..UTIME + 4)?.iter().filter_map(|ticks| ticks.parse::<u32>().ok()).sum(),
            start_time: fields.get(START_TIME).and_then(|ticks| ticks.parse().ok()).unwrap_or(0),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_name_may_hold_anything() {
        let stat = |name: &str| Stat::parse(&format!("7 ({name}) S 1 7 7 0 -1 0 9 9 9 9 5 6 7 8 20"));
        for name in ["sleep", "a) R 5 (b", "", "(("] {
            assert_eq!(
                stat(name),
                Some(Stat { name: name.into(), state: 'S', parent: 1, ticks: 26, start_time: 0 }),
                "{name:?}"
            );
        }
        assert_eq!(Stat::parse("7 (sleep"), None);
    }

    #[test]
    fn the_programs_of_a_process_begin_with_its_own() {
        assert_eq!(programs(getpid()).first(), Some(&std::env::current_exe().unwrap()));
    }
}
