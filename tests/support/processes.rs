//! Processes as `/proc` shows them.

use std::fs;

/// A process, as far as the tests look at one.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) pid: i32,
    pub(crate) parent: i32,
    pub(crate) group: i32,
    pub(crate) state: char,
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
