//! Processes that outlive whoever started them, and the programs that a process consists of.
//!
//! Source: proc(5), `/proc/PID/stat`, `/proc/PID/exe`; `PR_SET_CHILD_SUBREAPER(2const)`.

#![expect(clippy::disallowed_methods, reason = "orphans are ended by signals")]

use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use rustix::process::{Pid, Signal, getpid, kill_process, set_child_subreaper};

/// A process that lives on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Orphan {
    /// Its pid.
    pub pid: Pid,
    /// The name it shows.
    pub name: String,
}

/// Makes this process the parent of every descendant that loses its own, also of one that has left
/// its process group and session as daemons do.
///
/// # Errors
/// When the kernel does not know how.
pub fn adopt_orphans() -> io::Result<()> {
    Ok(set_child_subreaper(Some(getpid()))?)
}

/// The living children of this process: once those that it started itself have ended, the orphans
/// that it has adopted.
#[must_use]
pub fn orphans() -> Vec<Orphan> {
    children_of(getpid().as_raw_nonzero().get())
}

/// Kills processes. What they leave behind is adopted in turn.
pub fn kill(orphans: &[Orphan]) {
    for survivor in orphans {
        let _ = kill_process(survivor.pid, Signal::KILL);
    }
}

/// The programs that a process and its descendants execute, the process's own first.
#[must_use]
pub fn programs(pid: Pid) -> Vec<PathBuf> {
    with_descendants(pid).filter_map(|pid| fs::read_link(format!("/proc/{pid}/exe")).ok()).collect()
}

/// How long a process, its living descendants and those that they have seen to their end were at work.
#[must_use]
pub fn time_at_work(pid: Pid) -> Duration {
    let stats =
        with_descendants(pid).filter_map(|pid| Stat::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?));
    TICK * stats.map(|stat| stat.ticks).sum::<u32>()
}

/// A process and its living descendants, itself first; each is looked at before its children are looked for.
fn with_descendants(pid: Pid) -> impl Iterator<Item = i32> {
    let mut pids = vec![pid.as_raw_nonzero().get()];
    let mut looked_at = None;
    std::iter::from_fn(move || {
        if let Some(pid) = looked_at.take() {
            pids.extend(children_of(pid).iter().map(|child| child.pid.as_raw_nonzero().get()));
        }
        looked_at = pids.pop();
        looked_at
    })
}

fn children_of(parent: i32) -> Vec<Orphan> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    pids.filter_map(|pid| {
        let stat = Stat::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)?;
        let lives = !matches!(stat.state, 'Z' | 'X');
        (lives && stat.parent == parent).then_some(Orphan { pid: Pid::from_raw(pid)?, name: stat.name })
    })
    .collect()
}

/// What the kernel counts time at work in, for whoever asks it: `USER_HZ`, on every architecture that
/// this is built for.
const TICK: Duration = Duration::from_millis(10);
/// The member `utime` of `/proc/PID/stat`, as counted from `state`; `stime`, `cutime` and `cstime` follow.
const UTIME: usize = 11;

/// The beginning of `/proc/PID/stat`: `pid (name) state parent …`. The name may hold anything.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    name: String,
    state: char,
    parent: i32,
    /// At work in user and system mode, with the children that it has waited for.
    ticks: u32,
}

impl Stat {
    fn parse(text: &str) -> Option<Self> {
        let (before, behind) = text.rsplit_once(") ")?;
        let (_, name) = before.split_once(" (")?;
        let fields: Vec<_> = behind.split(' ').collect();
        Some(Self {
            name: name.to_owned(),
            state: fields.first()?.chars().next()?,
            parent: fields.get(1)?.parse().ok()?,
            ticks: fields.get(UTIME..UTIME + 4)?.iter().filter_map(|ticks| ticks.parse::<u32>().ok()).sum(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_may_hold_anything() {
        let stat = |name: &str| Stat::parse(&format!("7 ({name}) S 1 7 7 0 -1 0 9 9 9 9 5 6 7 8 20"));
        for name in ["sleep", "a) R 5 (b", "", "(("] {
            assert_eq!(stat(name), Some(Stat { name: name.into(), state: 'S', parent: 1, ticks: 26 }), "{name:?}");
        }
        assert_eq!(Stat::parse("7 (sleep"), None);
    }

    #[test]
    fn the_programs_of_this_process_begin_with_its_own() {
        assert_eq!(programs(getpid()).first(), Some(&std::env::current_exe().unwrap()));
    }
}
