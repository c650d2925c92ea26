//! ELF files, as far as the kernel and a loader read them: the header, the program headers, and the
//! dynamic section with its strings and versions. Section headers, which neither of them needs, are
//! not read.
//!
//! Ours rather than a package's: what is wanted of the format is small, has to be read page by page
//! from a file of any size, and has to survive files that lie.
//!
//! Source: elf(5); the System V ABI, "Object Files"; the LSB, "Symbol Versioning"; Linux,
//! `fs/binfmt_elf.c`.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::Inspection;
use super::libraries;
use super::target::TargetSystem;
use crate::error::{Defect, Host, Libc, NonProgram};

/// What an ELF file says about itself.
#[derive(Debug, Clone, Default)]
pub(super) struct Elf {
    pub(super) machine: Machine,
    file_type: u16,
    system: u8,
    entry: u64,
    /// The loader that it names.
    pub(super) interpreter: Option<PathBuf>,
    has_dynamic: bool,
    flags_1: u64,
    /// The shared libraries that it asks for, in order.
    pub(super) needed: Vec<OsString>,
    /// The name by which it is asked for, if it is a library.
    pub(super) soname: Option<OsString>,
    /// Where its libraries are, in the old form, which those that it loads inherit.
    pub(super) rpath: Option<Vec<u8>>,
    /// Where its own libraries are.
    pub(super) runpath: Option<Vec<u8>>,
    /// The versions that it must find: the library, and the version's name.
    pub(super) versions_needed: Vec<(OsString, String)>,
    /// The versions that it has; none for a library without any.
    pub(super) versions: Vec<String>,
    /// The level of x86-64 that its note asks for, 1 to 4; 0 without one.
    pub(super) x86_level: u8,
    /// It ends before the section headers that it should have, which nobody needs to run it.
    ends_early: bool,
}

/// What a file is built for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Machine {
    /// 1 for 32 bits, 2 for 64.
    pub(super) class: u8,
    /// 1 for little-endian, 2 for big-endian.
    order: u8,
    /// The number of the architecture.
    pub(super) number: u16,
}

/// Why a file cannot be read as ELF.
#[derive(Debug)]
pub(super) enum Fault {
    /// It does not begin as ELF does.
    NotElf,
    /// It contradicts itself.
    Damaged(String),
    /// The system says so.
    Unreadable(io::Error),
}

const ET_REL: u16 = 1;
const ET_EXEC: u16 = 2;
const ET_DYN: u16 = 3;
const ET_CORE: u16 = 4;
const PT_LOAD: u32 = 1;
const PT_DYNAMIC: u32 = 2;
const PT_INTERP: u32 = 3;
const PT_GNU_PROPERTY: u32 = 0x6474_e553;
const NT_GNU_PROPERTY_TYPE_0: u32 = 5;
const GNU_PROPERTY_X86_ISA_1_NEEDED: u32 = 0xc000_8002;
const EM_386: u16 = 3;
const EM_ARM: u16 = 40;
const EM_X86_64: u16 = 62;
const EM_AARCH64: u16 = 183;
const EM_RISCV: u16 = 243;
const DF_1_NODEFLIB: u64 = 0x800;
const DF_1_PIE: u64 = 0x0800_0000;
const VER_FLG_BASE: u16 = 1;
const VER_FLG_WEAK: u16 = 2;

/// The kernel reads no more program headers than fit into this.
const MAX_HEADER_BYTES: u64 = 65_536;
/// Bounds for what is read of a file that may lie, far above what linkers write.
const MAX_DYNAMIC: u64 = 65_536;
const MAX_NEEDED: usize = 4096;
const MAX_VERSIONS: usize = 16_384;
const MAX_STRING: usize = 65_536;
const MAX_BLOCKS: usize = 4096;
const BLOCK_BYTES: u64 = 4096;

impl Elf {
    /// Reads a file of this machine.
    pub(super) fn open(path: &Path) -> Result<Self, Fault> {
        // Asked before it is opened: a pipe would be waited for.
        let metadata = std::fs::metadata(path).map_err(Fault::Unreadable)?;
        if !metadata.is_file() {
            return Err(Fault::Unreadable(io::Error::other("it is no regular file")));
        }
        let file = File::open(path).map_err(Fault::Unreadable)?;
        Reader { file: &file, length: metadata.len(), machine: Machine::default(), blocks: HashMap::new() }.elf()
    }

    pub(super) fn excludes_default_folders(&self) -> bool {
        self.flags_1 & DF_1_NODEFLIB != 0
    }

    /// What it is besides a program, if it is one at all.
    fn no_program(&self) -> Option<NonProgram> {
        match self.file_type {
            ET_REL => Some(NonProgram::ObjectFile),
            ET_CORE => Some(NonProgram::CoreDump),
            // A program has somewhere to begin. Older linkers give libraries an entry as well, and
            // only programs are marked as such by the newer ones.
            ET_DYN if self.flags_1 & DF_1_PIE != 0 => None,
            ET_DYN if self.entry == 0 => Some(NonProgram::SharedLibrary),
            ET_DYN if self.interpreter.is_none() && !self.needed.is_empty() => Some(NonProgram::SharedLibrary),
            ET_EXEC | ET_DYN => None,
            _ => Some(NonProgram::Unknown),
        }
    }

    /// What it is, in words.
    fn what(&self) -> String {
        let form = match self.no_program() {
            Some(is) => format!("ELF, {}", is.noun()),
            None => "ELF executable".into(),
        };
        let linking = match &self.interpreter {
            Some(loader) => match Libc::of_loader(loader) {
                Some(libc) => format!(", dynamically linked ({libc})"),
                None => ", dynamically linked".into(),
            },
            None if self.no_program().is_some() => String::new(),
            None => ", statically linked".into(),
        };
        format!("{form}, {}{linking}", self.machine.name())
    }

    /// Another system that it was built for.
    ///
    /// Source: the registry of `EI_OSABI`; Go's linker sets it for each of these.
    fn other_system(&self) -> Option<&'static str> {
        Some(match self.system {
            2 => "NetBSD",
            6 => "Solaris",
            9 => "FreeBSD",
            12 => "OpenBSD",
            _ => return None,
        })
    }
}

/// Looks at an ELF file of that target. `host` is where it lies on this machine.
pub(super) fn inspect(path: &Path, host: &Path, target: &TargetSystem) -> Inspection {
    let elf = match Elf::open(host) {
        Ok(elf) => elf,
        Err(Fault::Unreadable(error)) => {
            return Inspection::of_defect("ELF file", Defect::Unreadable { reason: error.to_string() });
        }
        Err(Fault::NotElf) => {
            return Inspection::of_defect("ELF file", Defect::Damaged { reason: "its header is cut off".into() });
        }
        Err(Fault::Damaged(reason)) => return Inspection::of_defect("ELF file", Defect::Damaged { reason }),
    };
    let mut inspection = Inspection::new(elf.what());
    if elf.ends_early {
        inspection.defects.push(Defect::EndsEarly);
    }
    if let Some(is) = elf.no_program() {
        inspection.defects.push(Defect::NotProgram { is });
        return inspection;
    }
    if let Some(system) = elf.other_system() {
        inspection.defects.push(Defect::OtherSystem { system });
        return inspection;
    }
    let wrong = match target.machine {
        Some(image) => (!elf.machine.runs_on(image)).then(|| (Host::Image, image.name())),
        None => (!elf.machine.runs_here()).then(|| (Host::ThisMachine, std::env::consts::ARCH.to_owned())),
    };
    if let Some((host, here)) = wrong {
        inspection.defects.push(Defect::WrongMachine { built: elf.machine.name(), host, here });
        return inspection;
    }
    match &elf.interpreter {
        Some(loader) => {
            let loader = loader.clone();
            let mut found = libraries::inspect(path, elf, &loader, target);
            inspection.defects.append(&mut found.defects);
            inspection.libraries = found.libraries;
        }
        None if !elf.needed.is_empty() => inspection.defects.push(Defect::Damaged {
            reason: "it needs shared libraries and names no loader that would load them".into(),
        }),
        None => {}
    }
    inspection
}

impl Machine {
    /// Whether this machine's kernel executes it, as far as that is certain: a kernel for 64 bits may
    /// or may not execute programs for 32 of the same family.
    fn runs_here(self) -> bool {
        let number = match std::env::consts::ARCH {
            "x86_64" => EM_X86_64,
            "aarch64" => EM_AARCH64,
            "riscv64" => EM_RISCV,
            _ => return true,
        };
        self.runs_on(Self { class: 2, order: 1, number })
    }

    /// The same for a machine that runs programs like that one.
    fn runs_on(self, other: Self) -> bool {
        let related = match other.number {
            EM_X86_64 => EM_386,
            EM_AARCH64 => EM_ARM,
            number => number,
        };
        self.order == other.order && (self.number == other.number || self.number == related)
    }

    /// Its name as compilers and `uname` have it.
    ///
    /// Source: the registry of `e_machine`.
    pub(super) fn name(self) -> String {
        let wide = self.class == 2;
        match self.number {
            2 => "sparc".into(),
            EM_386 => "x86 (32 bits)".into(),
            4 => "m68k".into(),
            8 if wide => "mips64".into(),
            8 => "mips".into(),
            20 => "powerpc".into(),
            21 if self.order == 1 => "ppc64le".into(),
            21 => "ppc64".into(),
            22 => "s390x".into(),
            EM_ARM => "arm (32 bits)".into(),
            43 => "sparc64".into(),
            EM_X86_64 if wide => "x86_64".into(),
            EM_X86_64 => "x86_64 (x32)".into(),
            EM_AARCH64 => "aarch64".into(),
            EM_RISCV if wide => "riscv64".into(),
            EM_RISCV => "riscv32".into(),
            247 => "BPF".into(),
            258 => "loongarch64".into(),
            other => format!("machine number {other}"),
        }
    }
}

/// Reads a file block by block, each at most once.
struct Reader<'a> {
    file: &'a File,
    length: u64,
    machine: Machine,
    blocks: HashMap<u64, Box<[u8]>>,
}

/// A part of the file that is mapped into memory.
struct Segment {
    offset: u64,
    address: u64,
    file_bytes: u64,
}

fn damaged<T>(reason: impl Into<String>) -> Result<T, Fault> {
    Err(Fault::Damaged(reason.into()))
}

impl Reader<'_> {
    fn elf(mut self) -> Result<Elf, Fault> {
        let ident = self.bytes(0, 16.min(self.length))?;
        if !ident.starts_with(b"\x7fELF") {
            return Err(Fault::NotElf);
        }
        if ident.len() < 16 || self.length < 20 {
            return damaged("its ELF header is cut off");
        }
        // The kernel believes the machine alone. What does not exist is taken for what is common.
        let class = if ident[4] == 1 { 1 } else { 2 };
        let order = if ident[5] == 2 { 2 } else { 1 };
        let system = ident[7];
        self.machine = Machine { class, order, number: 0 };
        self.machine.number = self.u16(18)?;
        let header_bytes = if class == 2 { 64 } else { 52 };
        if self.length < header_bytes {
            return damaged("its ELF header is cut off");
        }
        let mut elf = Elf { machine: self.machine, file_type: self.u16(16)?, system, ..Elf::default() };
        let word = self.word_bytes();
        elf.entry = self.word(24)?;
        let (headers_at, sections_at) = (self.word(24 + word)?, self.word(24 + 2 * word)?);
        // Behind them the flags and the header's own size.
        let sizes_at = 24 + 3 * word + 6;
        let (header_size, headers) = (u64::from(self.u16(sizes_at)?), u64::from(self.u16(sizes_at + 2)?));
        let (section_size, sections) = (u64::from(self.u16(sizes_at + 4)?), u64::from(self.u16(sizes_at + 6)?));
        elf.ends_early = sections_at.saturating_add(section_size * sections) > self.length;
        if matches!(elf.file_type, ET_REL | ET_CORE) {
            return Ok(elf);
        }
        let expected = if class == 2 { 56 } else { 32 };
        if headers == 0 {
            return damaged("it has no program headers");
        }
        if header_size != expected || headers * header_size > MAX_HEADER_BYTES {
            return damaged(format!(
                "it has {headers} program headers of {header_size} bytes, where {expected} are expected"
            ));
        }
        if headers_at.saturating_add(headers * header_size) > self.length {
            return damaged(format!("its program headers lie beyond its end, the file has {} bytes", self.length));
        }
        self.segments(&mut elf, headers_at, header_size, headers)?;
        Ok(elf)
    }

    fn segments(&mut self, elf: &mut Elf, at: u64, size: u64, count: u64) -> Result<(), Fault> {
        let mut segments = Vec::new();
        let mut dynamic = None;
        for index in 0..count {
            let at = at + index * size;
            let kind = self.u32(at)?;
            // `p_flags` stands second in 64 bits and near the end in 32.
            let word = self.word_bytes();
            let fields = at + if word == 8 { 8 } else { 4 };
            let (offset, address) = (self.word(fields)?, self.word(fields + word)?);
            let (file_bytes, memory_bytes) = (self.word(fields + 3 * word)?, self.word(fields + 4 * word)?);
            let end = offset.saturating_add(file_bytes);
            match kind {
                PT_LOAD => {
                    if file_bytes > memory_bytes {
                        return damaged("a segment takes more of the file than of the memory");
                    }
                    if end > self.length {
                        return damaged(format!(
                            "it is cut off: its segments end at byte {end}, the file has {} bytes",
                            self.length
                        ));
                    }
                    segments.push(Segment { offset, address, file_bytes });
                }
                PT_INTERP if elf.interpreter.is_none() => {
                    // The kernel's bounds: a NUL at its end and no longer than a path may be.
                    let name = (2..=4096).contains(&file_bytes).then(|| self.bytes(offset, file_bytes)).transpose()?;
                    let Some(name) = name.filter(|name| name.ends_with(&[0])) else {
                        return damaged("the name of its loader is no path");
                    };
                    let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
                    elf.interpreter = Some(OsString::from_vec(name.to_vec()).into());
                }
                PT_DYNAMIC => dynamic = Some((offset, file_bytes)),
                // A loader passes over what it does not understand of it.
                PT_GNU_PROPERTY if self.machine.number == EM_X86_64 && word == 8 => {
                    elf.x86_level = self.x86_level(offset, end.min(self.length)).unwrap_or(0);
                }
                _ => {}
            }
        }
        if segments.is_empty() {
            return damaged("nothing in it would be loaded into memory");
        }
        if let Some((offset, bytes)) = dynamic {
            elf.has_dynamic = true;
            self.dynamic(elf, &segments, offset, bytes)?;
        }
        Ok(())
    }

    /// The level of x86-64 that the first note of properties asks for.
    ///
    /// Source: the psABI of x86-64, "Program Property"; glibc, `_dl_process_property_note`.
    fn x86_level(&mut self, mut at: u64, end: u64) -> Result<u8, Fault> {
        while at.saturating_add(16) <= end {
            let (name, bytes) = (u64::from(self.u32(at)?), u64::from(self.u32(at + 4)?));
            let kind = self.u32(at + 8)?;
            let mut property = at + 12 + name.next_multiple_of(4);
            let end_of_note = property.saturating_add(bytes).min(end);
            if kind == NT_GNU_PROPERTY_TYPE_0 && self.bytes(at + 12, 4)? == b"GNU\0" {
                while property + 12 <= end_of_note {
                    if self.u32(property)? == GNU_PROPERTY_X86_ISA_1_NEEDED && self.u32(property + 4)? == 4 {
                        // A bit for each level, of which the highest counts.
                        let bits = self.u32(property + 8)? & 0b1111;
                        return Ok(u8::try_from(u32::BITS - bits.leading_zeros()).expect("there are four"));
                    }
                    property += 8 + u64::from(self.u32(property + 4)?).next_multiple_of(8);
                }
                return Ok(0);
            }
            at = end_of_note.next_multiple_of(8);
        }
        Ok(0)
    }

    /// The dynamic section: pairs of a tag and a value, up to tag 0.
    fn dynamic(&mut self, elf: &mut Elf, segments: &[Segment], at: u64, bytes: u64) -> Result<(), Fault> {
        let word = self.word_bytes();
        let (mut needed, mut soname, mut rpath, mut runpath) = (Vec::new(), None, None, None);
        let (mut strings, mut strings_bytes) = (None, 0);
        let (mut need_at, mut needs, mut defined_at, mut defined) = (None, 0, None, 0);
        for index in 0..(bytes / (2 * word)).min(MAX_DYNAMIC) {
            let tag = self.word(at + index * 2 * word)?;
            let value = self.word(at + index * 2 * word + word)?;
            match tag {
                0 => break,
                1 if needed.len() < MAX_NEEDED => needed.push(value),
                5 => strings = Some(value),
                10 => strings_bytes = value,
                14 => soname = Some(value),
                15 => rpath = Some(value),
                29 => runpath = Some(value),
                0x6fff_fffb => elf.flags_1 = value,
                0x6fff_fffc => defined_at = Some(value),
                0x6fff_fffd => defined = value,
                0x6fff_fffe => need_at = Some(value),
                0x6fff_ffff => needs = value,
                _ => {}
            }
        }
        let Some(strings) = strings else {
            return if needed.is_empty() { Ok(()) } else { damaged("its dynamic section has no strings") };
        };
        let Some(start) = offset_of(segments, strings) else {
            // A static program that places itself may do without; what has libraries may not.
            return if needed.is_empty() {
                Ok(())
            } else {
                damaged("the strings of its dynamic section lie nowhere in it")
            };
        };
        let strings = Strings { start, end: start.saturating_add(strings_bytes).min(self.length) };
        for value in needed {
            elf.needed.push(OsString::from_vec(self.string(&strings, value)?));
        }
        elf.soname = soname.map(|value| self.string(&strings, value)).transpose()?.map(OsString::from_vec);
        elf.rpath = rpath.map(|value| self.string(&strings, value)).transpose()?;
        elf.runpath = runpath.map(|value| self.string(&strings, value)).transpose()?;
        if let Some(at) = need_at.and_then(|address| offset_of(segments, address)) {
            elf.versions_needed = self.versions_needed(&strings, at, needs)?;
        }
        if let Some(at) = defined_at.and_then(|address| offset_of(segments, address)) {
            elf.versions = self.versions(&strings, at, defined)?;
        }
        Ok(())
    }

    /// `DT_VERNEED`: a chain of libraries, each with a chain of versions.
    fn versions_needed(
        &mut self,
        strings: &Strings,
        mut at: u64,
        count: u64,
    ) -> Result<Vec<(OsString, String)>, Fault> {
        let mut versions = Vec::new();
        for _ in 0..count.min(MAX_NEEDED as u64) {
            let library = u64::from(self.u32(at + 4)?);
            let library = OsString::from_vec(self.string(strings, library)?);
            let mut entry = at.saturating_add(self.u32(at + 8)?.into());
            for _ in 0..self.u16(at + 2)? {
                // One that is weak is looked for and not insisted on.
                if self.u16(entry + 4)? & VER_FLG_WEAK == 0 {
                    let name = u64::from(self.u32(entry + 8)?);
                    let name = String::from_utf8_lossy(&self.string(strings, name)?).into_owned();
                    versions.push((library.clone(), name));
                }
                let next = self.u32(entry + 12)?;
                if next == 0 || versions.len() >= MAX_VERSIONS {
                    break;
                }
                entry = entry.saturating_add(next.into());
            }
            let next = self.u32(at + 12)?;
            if next == 0 || versions.len() >= MAX_VERSIONS {
                break;
            }
            at = at.saturating_add(next.into());
        }
        Ok(versions)
    }

    /// `DT_VERDEF`: a chain of versions, of which the first name is theirs.
    fn versions(&mut self, strings: &Strings, mut at: u64, count: u64) -> Result<Vec<String>, Fault> {
        let mut versions = Vec::new();
        for _ in 0..count.min(MAX_VERSIONS as u64) {
            // The base version is the library's own name.
            if self.u16(at + 2)? & VER_FLG_BASE == 0 {
                let entry = at.saturating_add(self.u32(at + 12)?.into());
                let name = u64::from(self.u32(entry)?);
                versions.push(String::from_utf8_lossy(&self.string(strings, name)?).into_owned());
            }
            let next = self.u32(at + 16)?;
            if next == 0 {
                break;
            }
            at = at.saturating_add(next.into());
        }
        Ok(versions)
    }

    fn string(&mut self, strings: &Strings, offset: u64) -> Result<Vec<u8>, Fault> {
        let mut at = strings.start.saturating_add(offset);
        let mut string = Vec::new();
        while at < strings.end && string.len() < MAX_STRING {
            let block = self.block(at / BLOCK_BYTES)?;
            let inside = usize::try_from(at % BLOCK_BYTES).expect("a block is small");
            let rest = &block[inside.min(block.len())..];
            match memchr::memchr(0, rest) {
                Some(end) => {
                    string.extend_from_slice(&rest[..end]);
                    return Ok(string);
                }
                None if rest.is_empty() => break,
                None => string.extend_from_slice(rest),
            }
            at = strings.start.saturating_add(offset).saturating_add(string.len() as u64);
        }
        damaged("a name in its dynamic section does not end")
    }

    fn word_bytes(&self) -> u64 {
        if self.machine.class == 2 { 8 } else { 4 }
    }

    fn word(&mut self, at: u64) -> Result<u64, Fault> {
        if self.machine.class == 1 {
            return self.u32(at).map(u64::from);
        }
        let bytes = self.array(at)?;
        Ok(if self.machine.order == 1 { u64::from_le_bytes(bytes) } else { u64::from_be_bytes(bytes) })
    }

    fn u32(&mut self, at: u64) -> Result<u32, Fault> {
        let bytes = self.array(at)?;
        Ok(if self.machine.order == 1 { u32::from_le_bytes(bytes) } else { u32::from_be_bytes(bytes) })
    }

    fn u16(&mut self, at: u64) -> Result<u16, Fault> {
        let bytes = self.array(at)?;
        Ok(if self.machine.order == 1 { u16::from_le_bytes(bytes) } else { u16::from_be_bytes(bytes) })
    }

    fn array<const N: usize>(&mut self, at: u64) -> Result<[u8; N], Fault> {
        let bytes = self.bytes(at, N as u64)?;
        Ok(bytes.try_into().expect("as many bytes were asked for"))
    }

    fn bytes(&mut self, at: u64, count: u64) -> Result<Vec<u8>, Fault> {
        let end = at.saturating_add(count);
        if end > self.length || count > MAX_HEADER_BYTES {
            return damaged("it refers to what lies beyond its end");
        }
        let mut bytes = Vec::new();
        let mut at = at;
        while at < end {
            let block = self.block(at / BLOCK_BYTES)?;
            let inside = usize::try_from(at % BLOCK_BYTES).expect("a block is small");
            let wanted = usize::try_from(end - at).expect("it was checked above");
            let rest = &block[inside.min(block.len())..];
            let piece = &rest[..rest.len().min(wanted)];
            if piece.is_empty() {
                return damaged("it became shorter while it was read");
            }
            bytes.extend_from_slice(piece);
            at += piece.len() as u64;
        }
        Ok(bytes)
    }

    fn block(&mut self, number: u64) -> Result<&[u8], Fault> {
        if !self.blocks.contains_key(&number) {
            if self.blocks.len() >= MAX_BLOCKS {
                return damaged("its headers are scattered over too much of it");
            }
            let at = number.saturating_mul(BLOCK_BYTES);
            let mut block =
                vec![0; BLOCK_BYTES.min(self.length.saturating_sub(at)).try_into().expect("a block is small")];
            let mut read = 0;
            while read < block.len() {
                match self.file.read_at(&mut block[read..], at + read as u64) {
                    Ok(0) => break,
                    Ok(count) => read += count,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(Fault::Unreadable(error)),
                }
            }
            block.truncate(read);
            self.blocks.insert(number, block.into());
        }
        Ok(&self.blocks[&number])
    }
}

/// Where the strings of a dynamic section stand in the file.
struct Strings {
    start: u64,
    end: u64,
}

/// Where an address of the memory lies in the file.
fn offset_of(segments: &[Segment], address: u64) -> Option<u64> {
    let segment =
        segments.iter().find(|segment| address >= segment.address && address - segment.address < segment.file_bytes)?;
    segment.offset.checked_add(address - segment.address)
}
