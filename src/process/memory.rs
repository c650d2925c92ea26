//! How much memory there is for us, and how often the kernel killed a process of our control group for want of memory.
//!
//! Such a kill looks like any other SIGKILL; only the group's counter tells. A process and its
//! children are in our own group unless they move, so the counter is read before a process is
//! started and after it ended.
//!
//! Source: Linux, `Documentation/admin-guide/cgroup-v2.rst`, `memory.events`, and
//! `cgroup-v1/memory.rst`, `memory.oom_control`.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// The kills of our control group since it exists; nothing where it does not tell.
#[must_use]
pub fn oom_kills() -> Option<u64> {
    // Opened once: our group stays the same, and this is asked at each start.
    static COUNTER: OnceLock<Option<File>> = OnceLock::new();
    let file = COUNTER.get_or_init(open).as_ref()?;
    let mut text = [0; 512];
    let length = file.read_at(&mut text, 0).ok()?;
    count(std::str::from_utf8(&text[..length]).ok()?)
}

/// How many bytes this process and its actions may use: the limit of our control group, or what the machine
/// has. Nothing where neither tells.
#[must_use]
pub fn limit() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let files = candidates(&groups, Path::new("/sys/fs/cgroup"), "memory.max", "memory.limit_in_bytes");
    // No limit is a word in the second version and a number beyond any memory in the first.
    let of_groups = files.iter().filter_map(|path| fs::read_to_string(path).ok()?.trim().parse().ok());
    of_groups.chain(total(&fs::read_to_string("/proc/meminfo").unwrap_or_default())).min()
}

/// What the machine has, of `/proc/meminfo`.
fn total(meminfo: &str) -> Option<u64> {
    let kib = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix("kB"))?;
    kib.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// The line `oom_kill 3`, which both versions have.
fn count(events: &str) -> Option<u64> {
    events.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

fn open() -> Option<File> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let files = candidates(&groups, Path::new("/sys/fs/cgroup"), "memory.events", "memory.oom_control");
    files.into_iter().find_map(|path| {
        let file = File::open(&path).ok()?;
        // Kernels before 4.13 have the file of the first version without the count.
        fs::read_to_string(&path).ok().as_deref().and_then(count)?;
        Some(file)
    })
}

/// Where a file of our group may be, by its names in both versions. A container may be shown its group's path from the host's root while
/// its group is mounted as the root, so both are looked at.
fn candidates(groups: &str, mount: &Path, second: &str, first: &str) -> Vec<PathBuf> {
    let mut candidates = Vec::new();
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let (mounts, file): (&[&str], _) = match controllers {
            "" => (&["", "unified"], second),
            _ if controllers.split(',').any(|controller| controller == "memory") => (&["memory"], first),
            _ => continue,
        };
        let below = path.trim_start_matches('/');
        for folder in mounts {
            candidates.extend([mount.join(folder).join(below).join(file), mount.join(folder).join(file)]);
        }
    }
    candidates
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_are_read() {
        assert_eq!(count("low 0\nhigh 0\nmax 12\noom 1\noom_kill 3\noom_group_kill 0\n"), Some(3));
        assert_eq!(count("oom_kill_disable 0\nunder_oom 0\noom_kill 7\n"), Some(7));
        assert_eq!(count("oom_kill_disable 0\nunder_oom 0\n"), None);
    }

    #[test]
    fn the_machine_tells_what_it_has() {
        assert_eq!(total("MemTotal:       16384 kB\nMemFree: 1 kB\n"), Some(16 << 20));
        assert_eq!(total("MemFree: 1 kB\n"), None);
        assert!(limit().is_some_and(|limit| limit > 1 << 20));
    }

    #[test]
    fn the_group_is_found_in_each_layout() {
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
