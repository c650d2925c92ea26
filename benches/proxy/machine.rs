//! Facts of the system: cores, the memory and processor time of a process, the kind of a binary.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Outcome;

/// The cores that this program may use, in the kernel's notation: `0-3,8`.
pub(crate) fn allowed_cores() -> Outcome<String> {
    field("/proc/self/status", "Cpus_allowed_list").ok_or_else(|| "/proc/self/status names no cores".into())
}

/// Confines this program, and with it everything it starts from now on.
///
/// By `taskset`, since the standard library has no call for it; this program has one thread.
pub(crate) fn confine_to(cores: &str) -> Outcome {
    let done = Command::new("taskset")
        .args(["-p", "-c", cores, &std::process::id().to_string()])
        .output()
        .map_err(|error| format!("cannot run taskset (package util-linux), try `--pin free`: {error}"))?;
    if !done.status.success() {
        return Err(format!("taskset: {}", String::from_utf8_lossy(&done.stderr)).into());
    }
    Ok(())
}

/// The first of some cores.
pub(crate) fn first_core(cores: &str) -> &str {
    cores.split([',', '-']).next().expect("splitting gives at least one part")
}

/// One line about this machine.
pub(crate) fn description() -> String {
    let model = field("/proc/cpuinfo", "model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned());
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cores = allowed_cores().unwrap_or_default();
    format!("{model}, cores {cores}, Linux {}", kernel.trim())
}

/// Memory of a process, in kibibytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Memory {
    /// Pages that are there.
    pub(crate) resident: f64,
    /// The same, with pages that are shared counted in part.
    pub(crate) proportional: f64,
    /// The most that were ever there.
    pub(crate) peak: f64,
}

impl Memory {
    pub(crate) fn of(pid: i32) -> Outcome<Self> {
        let read = |file: &str, name: &str| {
            let path = format!("/proc/{pid}/{file}");
            let value = field(&path, name).ok_or_else(|| format!("{path} has no {name}"))?;
            let kibibytes = value.trim_end_matches("kB").trim().parse::<f64>();
            kibibytes.map_err(|error| format!("{path}: {name}: {error}"))
        };
        Ok(Self {
            resident: read("status", "VmRSS")?,
            proportional: read("smaps_rollup", "Pss")?,
            peak: read("status", "VmHWM")?,
        })
    }
}

/// Processor time that all threads of a process have used, in microseconds. `None` where the
/// kernel does not report it.
pub(crate) fn processor_time(pid: i32) -> Option<f64> {
    let mut nanoseconds = 0;
    for thread in fs::read_dir(format!("/proc/{pid}/task")).ok()? {
        let schedstat = fs::read_to_string(thread.ok()?.path().join("schedstat")).ok()?;
        nanoseconds += schedstat.split(' ').next()?.parse::<u64>().ok()?;
    }
    Some(nanoseconds as f64 / 1000.0)
}

/// What a file is that can be executed.
#[derive(Debug)]
pub(crate) struct Binary {
    pub(crate) path: PathBuf,
    pub(crate) bytes: u64,
    /// Needs no interpreter, that is, no shared library. `None` when it is no 64-bit ELF.
    pub(crate) is_static: Option<bool>,
    /// Has no symbol table.
    pub(crate) is_stripped: Option<bool>,
}

impl Binary {
    /// Looks at a program, found as the kernel or a shell would find it.
    pub(crate) fn of(program: &str) -> Option<Self> {
        let candidates: Vec<PathBuf> = if program.contains('/') {
            vec![program.into()]
        } else {
            std::env::split_paths(&std::env::var_os("PATH")?).map(|directory| directory.join(program)).collect()
        };
        let path = candidates.into_iter().find(|path| path.is_file())?;
        let content = fs::read(&path).ok()?;
        let elf = elf_tables(&content);
        Some(Self {
            path,
            bytes: content.len() as u64,
            is_static: elf.as_ref().map(|elf| !elf.segments.contains(&PT_INTERP)),
            is_stripped: elf.as_ref().map(|elf| !elf.sections.contains(&SHT_SYMTAB)),
        })
    }

    /// In words, for the table.
    pub(crate) fn kind(&self) -> String {
        match (self.is_static, self.is_stripped) {
            (Some(is_static), Some(is_stripped)) => format!(
                "{}, {}",
                if is_static { "static" } else { "dynamic" },
                if is_stripped { "stripped" } else { "with symbols" }
            ),
            _ => "no 64-bit ELF binary".to_owned(),
        }
    }
}

/// Source: elf(5).
const PT_INTERP: usize = 3;
const SHT_SYMTAB: usize = 2;

/// The types of the segments and of the sections of an ELF file.
struct ElfTables {
    segments: Vec<usize>,
    sections: Vec<usize>,
}

fn elf_tables(content: &[u8]) -> Option<ElfTables> {
    // 64 bits, least significant byte first: the machines that there are.
    if !content.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let number = |at: usize, size: usize| {
        let bytes = content.get(at..at + size)?;
        usize::try_from(bytes.iter().rev().fold(0_u64, |number, byte| number << 8 | u64::from(*byte))).ok()
    };
    let types = |table: usize, entry_size: usize, count: usize, type_at: usize| {
        (0..count).map(|index| number(table + index * entry_size + type_at, 4)).collect::<Option<_>>()
    };
    Some(ElfTables {
        segments: types(number(0x20, 8)?, number(0x36, 2)?, number(0x38, 2)?, 0)?,
        sections: types(number(0x28, 8)?, number(0x3a, 2)?, number(0x3c, 2)?, 4)?,
    })
}

/// The value of a line `name: value`.
fn field(path: impl AsRef<Path>, name: &str) -> Option<String> {
    let content = fs::read_to_string(path).ok()?;
    content.lines().find_map(|line| {
        let (before, value) = line.split_once(':')?;
        (before.trim() == name).then(|| value.trim().to_owned())
    })
}
