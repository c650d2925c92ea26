//! Processes as `/proc` shows them.

use std::{fs, io};

use crate::wait::eventually;

/// A line of the process table.
#[derive(Debug, Clone)]
pub struct ProcessEntry {
    /// Its process id.
    pub pid: i32,
    /// The process id of its parent.
    pub parent: i32,
    /// Its process group.
    pub group: i32,
    /// Its state: `R`, `S`, `T`, or `Z` if it has ended and was not reaped.
    pub state: char,
}

/// The resources that a process holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResourceUsage {
    /// Open descriptors.
    pub descriptors: usize,
    /// Resident memory.
    pub memory_kib: u64,
    /// The largest resident memory since its start.
    pub peak_kib: u64,
    /// Children, including those that wait to be reaped.
    pub children: usize,
}

/// The resources that a process holds now.
///
/// Source: proc(5), `/proc/PID/status`, `VmRSS` and `VmHWM`.
///
/// # Panics
/// If the process does not run, or belongs to another user.
pub fn resource_usage(pid: i32) -> ResourceUsage {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process runs");
    let kib = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let number = line.and_then(|line| line.split_ascii_whitespace().next()?.parse().ok());
        number.unwrap_or_else(|| panic!("no {name} in {status}"))
    };
    ResourceUsage {
        descriptors: fs::read_dir(format!("/proc/{pid}/fd")).expect("the process belongs to this user").count(),
        memory_kib: kib("VmRSS:"),
        peak_kib: kib("VmHWM:"),
        children: all().iter().filter(|process| process.parent == pid).count(),
    }
}

/// The resources of a process once they are the same in this many samples in a row, taken 2 ms apart.
///
/// # Panics
/// If they do not settle in time.
pub fn settled_usage(pid: i32, samples: u32) -> ResourceUsage {
    let compared = |usage: ResourceUsage| (usage.descriptors, usage.children, usage.memory_kib);
    let mut last = resource_usage(pid);
    let mut alike = 0;
    eventually("the resources of the process settle", || {
        let now = resource_usage(pid);
        alike = if compared(now) == compared(last) { alike + 1 } else { 0 };
        last = now;
        (alike > samples).then_some(now)
    })
}

/// The child of a process that runs a program of this name.
pub fn child_named(parent: i32, name: &str) -> Option<i32> {
    let is_named =
        |pid: &i32| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim_end() == name);
    children(parent).into_iter().find(is_named)
}

/// Every process, including those that have ended and wait to be reaped.
///
/// # Panics
/// If `/proc` cannot be read.
pub fn all() -> Vec<ProcessEntry> {
    table().expect("/proc can be read")
}

/// The same.
///
/// # Errors
/// If `/proc` cannot be read.
pub(crate) fn table() -> io::Result<Vec<ProcessEntry>> {
    let entries = fs::read_dir("/proc")?.flatten();
    Ok(entries.filter_map(|entry| process_entry(entry.file_name().to_str()?.parse().ok()?)).collect())
}

/// Every process that has not ended. A process that waits to be reaped has ended.
pub fn living() -> Vec<ProcessEntry> {
    all().into_iter().filter(is_living).collect()
}

/// How many children of a process have ended and wait to be reaped.
pub fn zombies(parent: i32) -> usize {
    all().iter().filter(|process| process.parent == parent && process.state == 'Z').count()
}

/// Whether a process lives.
pub fn lives(pid: i32) -> bool {
    process_entry(pid).is_some_and(|process| is_living(&process))
}

/// The living children of a process.
pub fn children(parent: i32) -> Vec<i32> {
    living().into_iter().filter(|process| process.parent == parent).map(|process| process.pid).collect()
}

/// The living members of a process group.
pub fn group(group: i32) -> Vec<ProcessEntry> {
    living().into_iter().filter(|process| process.group == group).collect()
}

/// Waits until no member of these process groups lives.
///
/// # Panics
/// If one of them lives on.
#[track_caller]
pub fn await_end_of_groups(groups: &[i32]) {
    for leader in groups {
        eventually("the process group ends", || group(*leader).is_empty().then_some(()));
    }
}

/// How many bytes a process has written since its start.
///
/// # Panics
/// If the process does not live, or belongs to another user.
pub fn written_bytes(pid: i32) -> u64 {
    let io = fs::read_to_string(format!("/proc/{pid}/io")).expect("the process lives and belongs to this user");
    let line = io.lines().find_map(|line| line.strip_prefix("wchar: ")).expect("the kernel counts");
    line.parse().expect("a number")
}

fn is_living(process: &ProcessEntry) -> bool {
    !matches!(process.state, 'Z' | 'X')
}

/// Source: proc(5), `/proc/PID/stat`: pid (comm) state ppid pgrp. The name may hold anything.
fn process_entry(pid: i32) -> Option<ProcessEntry> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, behind_name) = stat.rsplit_once(") ")?;
    let mut fields = behind_name.split(' ');
    Some(ProcessEntry {
        pid,
        state: fields.next()?.chars().next()?,
        parent: fields.next()?.parse().ok()?,
        group: fields.next()?.parse().ok()?,
    })
}
