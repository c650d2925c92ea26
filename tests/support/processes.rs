//! Processes as `/proc` shows them.

use std::fs;

use super::eventually;

/// A process, as far as the tests look at one.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) pid: i32,
    pub(crate) parent: i32,
    pub(crate) group: i32,
    pub(crate) state: char,
}

/// What a process holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Holdings {
    /// Open descriptors.
    pub(crate) descriptors: usize,
    /// Memory that is resident.
    pub(crate) memory_kib: u64,
    /// The most memory that ever was.
    pub(crate) peak_kib: u64,
    /// Children, those included that wait to be reaped.
    pub(crate) children: usize,
}

/// What a process holds now.
///
/// Source: proc(5), `/proc/PID/status`, `VmRSS` and `VmHWM`.
pub(crate) fn holdings(pid: i32) -> Holdings {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let kib = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let number = line.and_then(|line| line.split_ascii_whitespace().next()?.parse().ok());
        number.unwrap_or_else(|| panic!("no {name} in {status}"))
    };
    Holdings {
        descriptors: fs::read_dir(format!("/proc/{pid}/fd")).expect("it is ours").count(),
        memory_kib: kib("VmRSS:"),
        peak_kib: kib("VmHWM:"),
        children: all().iter().filter(|process| process.parent == pid).count(),
    }
}

/// What a process holds once that stays the same for so many looks, 2 ms apart.
pub(crate) fn settled(pid: i32, looks: u32) -> Holdings {
    let held = |holdings: Holdings| (holdings.descriptors, holdings.children, holdings.memory_kib);
    let mut last = holdings(pid);
    let mut alike = 0;
    eventually("what it holds settles", || {
        let now = holdings(pid);
        alike = if held(now) == held(last) { alike + 1 } else { 0 };
        last = now;
        (alike > looks).then_some(now)
    })
}

/// The child of a process that runs a program.
pub(crate) fn child_named(parent: i32, name: &str) -> Option<i32> {
    let is_named =
        |pid: &i32| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim_end() == name);
    children(parent).into_iter().find(is_named)
}

/// Every process there is, those included that have ended and wait to be reaped.
pub(crate) fn all() -> Vec<Seen> {
    let numbers = fs::read_dir("/proc").expect("/proc is there").flatten();
    numbers.filter_map(|entry| seen(entry.file_name().to_str()?.parse().ok()?)).collect()
}

/// Every process that has not ended. What is dead and waits to be reaped is not counted.
pub(crate) fn living() -> Vec<Seen> {
    all().into_iter().filter(|process| !matches!(process.state, 'Z' | 'X')).collect()
}

/// The children of a process that have ended and wait to be reaped.
pub(crate) fn zombies(parent: i32) -> usize {
    all().iter().filter(|process| process.parent == parent && process.state == 'Z').count()
}

/// Whether a process lives.
pub(crate) fn lives(pid: i32) -> bool {
    seen(pid).is_some_and(|process| !matches!(process.state, 'Z' | 'X'))
}

/// The children of a process that live.
pub(crate) fn children(parent: i32) -> Vec<i32> {
    living().into_iter().filter(|process| process.parent == parent).map(|process| process.pid).collect()
}

/// The members of a process group that live.
pub(crate) fn group(group: i32) -> Vec<Seen> {
    living().into_iter().filter(|process| process.group == group).collect()
}

/// Waits until nothing of these process groups lives any more.
pub(crate) fn nothing_is_left_of(groups: &[i32]) {
    for leader in groups {
        eventually("nothing is left", || group(*leader).is_empty().then_some(()));
    }
}

/// Source: proc(5), `/proc/PID/stat`: pid (comm) state ppid pgrp. The name may hold anything.
fn seen(pid: i32) -> Option<Seen> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, behind_name) = stat.rsplit_once(") ")?;
    let mut fields = behind_name.split(' ');
    Some(Seen {
        pid,
        state: fields.next()?.chars().next()?,
        parent: fields.next()?.parse().ok()?,
        group: fields.next()?.parse().ok()?,
    })
}

/// How many bytes a process has written so far.
pub(crate) fn written_bytes(pid: i32) -> u64 {
    let io = std::fs::read_to_string(format!("/proc/{pid}/io")).expect("it lives, and is ours");
    let line = io.lines().find_map(|line| line.strip_prefix("wchar: ")).expect("the kernel counts");
    line.parse().expect("a number")
}
