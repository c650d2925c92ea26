//! The proxy's memory limit, and the out-of-memory kills in its control group.
//!
//! Such a kill looks like any other SIGKILL; only the group's counter shows the difference. A process
//! and its children are in the proxy's group unless they move, so the proxy reads the counter before it
//! starts a process and after the process has ended.
//!
//! Source: Linux, `Documentation/admin-guide/cgroup-v2.rst`, `memory.events`, and
//! `cgroup-v1/memory.rst`, `memory.oom_control`.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// The out-of-memory kills in the proxy's control group since the group was made; `None` where the
/// kernel does not count them.
#[must_use]
pub fn oom_kills() -> Option<u64> {
    // Opened once: the group stays the same, and every start of a process reads the counter.
    static COUNTER: OnceLock<Option<File>> = OnceLock::new();
    let file = COUNTER.get_or_init(open).as_ref()?;
    let mut text = [0; 512];
    let length = file.read_at(&mut text, 0).ok()?;
    count(std::str::from_utf8(&text[..length]).ok()?)
}

/// How many bytes the proxy and its actions may use: the limit of the control group or the memory of the
/// machine, whichever is smaller. `None` where neither can be read.
#[must_use]
pub fn limit() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let files = candidates(&groups, Path::new("/sys/fs/cgroup"), "memory.max", "memory.limit_in_bytes");
    // Version 2 writes "no limit" as a word, version 1 as a number beyond any memory.
    let of_groups = files.iter().filter_map(|path| fs::read_to_string(path).ok()?.trim().parse().ok());
    of_groups.chain(total(&fs::read_to_string("/proc/meminfo").unwrap_or_default())).min()
}

/// The memory of the machine, from `/proc/meminfo`.
fn total(meminfo: &str) -> Option<u64> {
    let kib = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix("kB"))?;
    kib.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// Parses the line `oom_kill 3`, which both versions of control groups have.
fn count(events: &str) -> Option<u64> {
    events.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

fn open() -> Option<File> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let files = candidates(&groups, Path::new("/sys/fs/cgroup"), "memory.events", "memory.oom_control");
    files.into_iter().find_map(|path| {
        let file = File::open(&path).ok()?;
        // Kernels before 4.13 have version 1's file without the count.
        fs::read_to_string(&path).ok().as_deref().and_then(count)?;
        Some(file)
    })
}

/// Where a file of the proxy's group may be; the file has one name in each version. The kernel may show a
/// container the path of its group from the host's root while that group is mounted as the root, so both
/// places count.
fn candidates(groups: &str, mount: &Path, version_2: &str, version_1: &str) -> Vec<PathBuf> {
    let mut candidates = Vec::new();
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let (mounts, file): (&[&str], _) = match controllers {
            "" => (&["", "unified"], version_2),
            _ if controllers.split(',').any(|controller| controller == "memory") => (&["memory"], version_1),
            _ => continue,
        };
        let group = path.trim_start_matches('/');
        for mounted_at in mounts {
            let root = mount.join(mounted_at);
            candidates.extend([root.join(group).join(file), root.join(file)]);
        }
    }
    candidates
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kills_are_counted_in_both_versions() {
        assert_eq!(count("low 0\nhigh 0\nmax 12\noom 1\noom_kill 3\noom_group_kill 0\n"), Some(3));
        assert_eq!(count("oom_kill_disable 0\nunder_oom 0\noom_kill 7\n"), Some(7));
        assert_eq!(count("oom_kill_disable 0\nunder_oom 0\n"), None);
    }

    #[test]
    fn the_memory_of_the_machine_is_read() {
        assert_eq!(total("MemTotal:       16384 kB\nMemFree: 1 kB\n"), Some(16 << 20));
        assert_eq!(total("MemFree: 1 kB\n"), None);
        assert!(limit().is_some_and(|limit| limit > 1 << 20));
    }

    #[test]
    fn the_control_group_is_found_in_each_layout() {
        let check = |groups: &str, expected: &[&str]| {
            let found = candidates(groups, Path::new("/c"), "memory.events", "memory.oom_control");
            assert_eq!(found, expected.iter().map(PathBuf::from).collect::<Vec<_>>(), "{groups:?}");
        };
        check(
            "0::/docker/ab\n",
            &[
                "/c/docker/ab/memory.events",
                "/c/memory.events",
                "/c/unified/docker/ab/memory.events",
                "/c/unified/memory.events",
            ],
        );
        check("5:cpu,memory:/ab\n3:pids:/ab\n", &["/c/memory/ab/memory.oom_control", "/c/memory/memory.oom_control"]);
        check("nonsense\n", &[]);
    }
}
