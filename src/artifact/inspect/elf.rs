//! Reads the parts of an ELF file that the kernel and a loader read: the header, the program headers, and the dynamic
//! section with its strings and versions. It does not read section headers, which neither of them needs.
//!
//! `object` knows the format: it has a type for each structure, for both classes and both byte
//! orders. This module decides what to read and where: block by block from a file of any size, within
//! a budget of bytes that no file exceeds, whatever it says about itself. `object` could do
//! the reading too, but it refuses files that the kernel accepts, and its `ReadCache` allocates as much
//! as a header asks for.
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

use object::elf as abi;
use object::pod::{Pod, from_bytes};
use object::read::elf::{Dyn, FileHeader, NoteIterator, ProgramHeader};
use object::{Endian, Endianness};

use super::Inspection;
use super::libraries;
use super::target::TargetSystem;
use crate::error::{Defect, Host, Libc, NonProgram, X86Level};

/// What an ELF file says about itself.
#[derive(Debug, Clone, Default)]
pub(super) struct Elf {
    pub(super) machine: Machine,
    file_type: abi::FileType,
    system: abi::OsAbi,
    entry: u64,
    /// Its loader.
    pub(super) interpreter: Option<PathBuf>,
    flags_1: abi::DynamicFlags1,
    /// The shared libraries that it needs, in order.
    pub(super) needed: Vec<OsString>,
    /// Its own name, if it is a library.
    pub(super) soname: Option<OsString>,
    /// The search path for its libraries in the old form, which the libraries inherit.
    pub(super) rpath: Option<Vec<u8>>,
    /// The search path for its libraries.
    pub(super) runpath: Option<Vec<u8>>,
    /// The versions that it needs: the library and the name of the version.
    pub(super) versions_needed: Vec<(OsString, String)>,
    /// The versions that it provides; a library may have none.
    pub(super) versions: Vec<String>,
    /// The x86-64 level that its note requires.
    pub(super) x86_level: Option<X86Level>,
    /// It ends before its section headers, which are not needed to run it.
    ends_early: bool,
}

/// What a file is built for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Machine {
    pub(super) class: Class,
    order: Endianness,
    /// The number of the architecture.
    pub(super) number: u16,
}

/// The size of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Class {
    Bits32,
    #[default]
    Bits64,
}

/// Why a file cannot be read as ELF.
#[derive(Debug)]
pub(super) enum Fault {
    /// It does not begin with the magic number of ELF.
    NotElf,
    /// It contradicts itself.
    Damaged(String),
    /// The system cannot read it.
    Unreadable(io::Error),
}

/// The kernel refuses program headers that are larger than this.
const MAX_HEADER_BYTES: u64 = 65_536;
/// What one file may cost, in bytes: each block read from it, each structure taken from a block, and each
/// name kept. Every loop below reads as it goes, so the budget also ends the loops. Of some 2,800 programs
/// and libraries on a Debian machine, the most expensive one costs 77,353.
const BUDGET_BYTES: u64 = 1 << 20;
const BLOCK_BYTES: u64 = 4096;
/// What a name costs besides its own bytes: the memory of its entry.
const NAME_BYTES: u64 = 64;
const MAX_NAME_BYTES: usize = 65_536;
/// Far above what linkers write; the proxy ignores any further ones.
const MAX_NEEDED: usize = 4096;

impl Elf {
    /// Reads a file of this machine.
    pub(super) fn open(path: &Path) -> Result<Self, Fault> {
        // Checked before it is opened: opening a pipe would block.
        let metadata = std::fs::metadata(path).map_err(Fault::Unreadable)?;
        if !metadata.is_file() {
            return Err(Fault::Unreadable(io::Error::other("it is not a regular file")));
        }
        let file = File::open(path).map_err(Fault::Unreadable)?;
        Reader::new(&file, metadata.len()).elf()
    }

    pub(super) fn excludes_default_directories(&self) -> bool {
        self.flags_1.contains(abi::DF_1_NODEFLIB)
    }

    /// What it is, if it is not a program.
    fn non_program(&self) -> Option<NonProgram> {
        match self.file_type {
            abi::ET_REL => Some(NonProgram::ObjectFile),
            abi::ET_CORE => Some(NonProgram::CoreDump),
            // Newer linkers mark programs. A program has an entry point, but older linkers give one to libraries, too.
            abi::ET_DYN if self.flags_1.contains(abi::DF_1_PIE) => None,
            abi::ET_DYN if self.entry == 0 => Some(NonProgram::SharedLibrary),
            abi::ET_DYN if self.interpreter.is_none() && !self.needed.is_empty() => Some(NonProgram::SharedLibrary),
            abi::ET_EXEC | abi::ET_DYN => None,
            _ => Some(NonProgram::Unknown),
        }
    }

    /// A description.
    fn description(&self) -> String {
        let form = match self.non_program() {
            Some(is) => format!("ELF, {}", is.noun()),
            None => "ELF executable".into(),
        };
        let linking = match &self.interpreter {
            Some(loader) => match Libc::of_loader(loader) {
                Some(libc) => format!(", dynamically linked ({libc})"),
                None => ", dynamically linked".into(),
            },
            None if self.non_program().is_some() => String::new(),
            None => ", statically linked".into(),
        };
        format!("{form}, {}{linking}", self.machine.name())
    }

    /// The system that it is built for, if it is not Linux.
    ///
    /// Source: the registry of `EI_OSABI`; Go's linker sets it for each of these.
    fn other_system(&self) -> Option<&'static str> {
        Some(match self.system {
            abi::ELFOSABI_NETBSD => "NetBSD",
            abi::ELFOSABI_SOLARIS => "Solaris",
            abi::ELFOSABI_FREEBSD => "FreeBSD",
            abi::ELFOSABI_OPENBSD => "OpenBSD",
            _ => return None,
        })
    }
}

/// Inspects an ELF file of the target system. `host` is its path on this machine.
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
    let mut inspection = Inspection::new(elf.description());
    if elf.ends_early {
        inspection.defects.push(Defect::EndsEarly);
    }
    if let Some(is) = elf.non_program() {
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
    /// Whether this machine's kernel may execute it. A kernel for 64 bits may or may not execute 32-bit programs of the
    /// same family, so they count as executable.
    fn runs_here(self) -> bool {
        let number = match std::env::consts::ARCH {
            "x86_64" => abi::EM_X86_64,
            "aarch64" => abi::EM_AARCH64,
            "riscv64" => abi::EM_RISCV,
            _ => return true,
        };
        self.runs_on(Self { class: Class::Bits64, order: Endianness::Little, number: number.0 })
    }

    /// Whether a machine that runs programs for `other` may execute it.
    fn runs_on(self, other: Self) -> bool {
        let related = match abi::Machine(other.number) {
            abi::EM_X86_64 => abi::EM_386,
            abi::EM_AARCH64 => abi::EM_ARM,
            number => number,
        };
        self.order == other.order && (self.number == other.number || self.number == related.0)
    }

    /// Its name, as compilers and `uname` use it.
    ///
    /// Source: the registry of `e_machine`.
    pub(super) fn name(self) -> String {
        let wide = self.class == Class::Bits64;
        match abi::Machine(self.number) {
            abi::EM_SPARC => "sparc".into(),
            abi::EM_386 => "x86 (32 bits)".into(),
            abi::EM_68K => "m68k".into(),
            abi::EM_MIPS if wide => "mips64".into(),
            abi::EM_MIPS => "mips".into(),
            abi::EM_PPC => "powerpc".into(),
            abi::EM_PPC64 if self.order.is_little_endian() => "ppc64le".into(),
            abi::EM_PPC64 => "ppc64".into(),
            abi::EM_S390 => "s390x".into(),
            abi::EM_ARM => "arm (32 bits)".into(),
            abi::EM_SPARCV9 => "sparc64".into(),
            abi::EM_X86_64 if wide => "x86_64".into(),
            abi::EM_X86_64 => "x86_64 (x32)".into(),
            abi::EM_AARCH64 => "aarch64".into(),
            abi::EM_RISCV if wide => "riscv64".into(),
            abi::EM_RISCV => "riscv32".into(),
            abi::EM_BPF => "BPF".into(),
            abi::EM_LOONGARCH => "loongarch64".into(),
            other => format!("machine number {other}"),
        }
    }
}

/// Reads a file block by block, each at most once, within a budget.
struct Reader<'a> {
    file: &'a dyn FileExt,
    length: u64,
    order: Endianness,
    blocks: HashMap<u64, Box<[u8]>>,
    budget: u64,
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

impl<'a> Reader<'a> {
    fn new(file: &'a dyn FileExt, length: u64) -> Self {
        Self { file, length, order: Endianness::Little, blocks: HashMap::new(), budget: BUDGET_BYTES }
    }

    fn elf(mut self) -> Result<Elf, Fault> {
        let ident = self.bytes(0, self.length.min(6))?;
        if !ident.starts_with(&abi::ELFMAG) {
            return Err(Fault::NotElf);
        }
        // The kernel checks only the machine. Invalid values count as the common ones.
        if ident.get(5) == Some(&abi::ELFDATA2MSB.0) {
            self.order = Endianness::Big;
        }
        if ident.get(4) == Some(&abi::ELFCLASS32.0) {
            self.elf_of_class::<abi::FileHeader32<_>>()
        } else {
            self.elf_of_class::<abi::FileHeader64<_>>()
        }
    }

    fn elf_of_class<F: FileHeader<Endian = Endianness>>(mut self) -> Result<Elf, Fault> {
        let order = self.order;
        if self.length < size_of::<F>() as u64 {
            return damaged("its ELF header is cut off");
        }
        let header: F = self.read(0)?;
        let class = if F::is_type_64_sized() { Class::Bits64 } else { Class::Bits32 };
        let mut elf = Elf {
            machine: Machine { class, order, number: header.e_machine(order).0 },
            file_type: header.e_type(order),
            system: header.e_ident().os_abi,
            entry: header.e_entry(order).into(),
            ..Elf::default()
        };
        let sections_bytes = u64::from(header.e_shentsize(order)) * u64::from(header.e_shnum(order));
        elf.ends_early = header.e_shoff(order).into().saturating_add(sections_bytes) > self.length;
        if matches!(elf.file_type, abi::ET_REL | abi::ET_CORE) {
            return Ok(elf);
        }
        let (at, count) = (header.e_phoff(order).into(), u64::from(header.e_phnum(order)));
        let (size, expected) = (u64::from(header.e_phentsize(order)), size_of::<F::ProgramHeader>() as u64);
        if count == 0 {
            return damaged("it has no program headers");
        }
        if size != expected || count * size > MAX_HEADER_BYTES {
            return damaged(format!("it has {count} program headers of {size} bytes, where {expected} are expected"));
        }
        if at.saturating_add(count * size) > self.length {
            return damaged(format!("its program headers lie beyond its end, the file has {} bytes", self.length));
        }
        self.segments::<F>(&mut elf, at, count)?;
        Ok(elf)
    }

    fn segments<F: FileHeader<Endian = Endianness>>(
        &mut self,
        elf: &mut Elf,
        at: u64,
        count: u64,
    ) -> Result<(), Fault> {
        let order = self.order;
        let mut segments = Vec::new();
        let mut dynamic = None;
        for index in 0..count {
            let header: F::ProgramHeader = self.read(at + index * size_of::<F::ProgramHeader>() as u64)?;
            let (offset, file_bytes) = header.file_range(order);
            let end = offset.saturating_add(file_bytes);
            match header.p_type(order) {
                abi::PT_LOAD => {
                    if file_bytes > header.p_memsz(order).into() {
                        return damaged("a segment takes more of the file than of the memory");
                    }
                    if end > self.length {
                        return damaged(format!(
                            "it is cut off: its segments end at byte {end}, the file has {} bytes",
                            self.length
                        ));
                    }
                    segments.push(Segment { offset, address: header.p_vaddr(order).into(), file_bytes });
                }
                abi::PT_INTERP if elf.interpreter.is_none() => {
                    // As the kernel requires: a NUL at its end, and not longer than a path may be.
                    let name = (2..=4096).contains(&file_bytes).then(|| self.bytes(offset, file_bytes)).transpose()?;
                    let Some(name) = name.filter(|name| name.ends_with(&[0])) else {
                        return damaged("the name of its loader is no path");
                    };
                    let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
                    elf.interpreter = Some(OsString::from_vec(name.to_vec()).into());
                }
                abi::PT_DYNAMIC => dynamic = Some((offset, file_bytes)),
                // A loader ignores a note that it does not understand.
                abi::PT_GNU_PROPERTY if elf.machine.number == abi::EM_X86_64.0 && F::is_type_64_sized() => {
                    elf.x86_level = self.x86_level(offset, end.min(self.length));
                }
                _ => {}
            }
        }
        if segments.is_empty() {
            return damaged("nothing in it would be loaded into memory");
        }
        if let Some((offset, bytes)) = dynamic {
            self.dynamic::<F>(elf, &segments, offset, bytes)?;
        }
        Ok(())
    }

    /// The x86-64 level that the first note of properties requires.
    ///
    /// Source: the psABI of x86-64, "Program Property"; glibc, `_dl_process_property_note`.
    fn x86_level(&mut self, at: u64, end: u64) -> Option<X86Level> {
        let order = self.order;
        let bytes = self.bytes(at, end.checked_sub(at)?).ok()?;
        let mut notes = NoteIterator::<abi::FileHeader64<_>>::new(order, 8, &bytes).ok()?.flatten();
        let mut properties = notes.find_map(|note| note.gnu_properties(order))?.flatten();
        let level = properties.find(|property| {
            property.pr_type() == abi::GNU_PROPERTY_X86_ISA_1_NEEDED && property.pr_data().len() == 4
        })?;
        // A bit for each level; the highest one counts.
        let bits = level.data_u32(order).ok()? & 0b1111;
        Some(match u32::BITS - bits.leading_zeros() {
            0 => return None,
            1 => X86Level::V1,
            2 => X86Level::V2,
            3 => X86Level::V3,
            _ => X86Level::V4,
        })
    }

    /// The dynamic section: pairs of a tag and a value, up to tag 0.
    fn dynamic<F: FileHeader<Endian = Endianness>>(
        &mut self,
        elf: &mut Elf,
        segments: &[Segment],
        at: u64,
        bytes: u64,
    ) -> Result<(), Fault> {
        let entry_bytes = size_of::<F::Dyn>() as u64;
        let (mut needed, mut soname, mut rpath, mut runpath) = (Vec::new(), None, None, None);
        let (mut strings, mut strings_bytes) = (None, 0);
        let (mut need_at, mut needs, mut defined_at, mut defined) = (None, 0, None, 0);
        for index in 0..bytes / entry_bytes {
            let entry: F::Dyn = self.read(at.saturating_add(index * entry_bytes))?;
            let value = entry.val(self.order);
            match entry.tag(self.order) {
                abi::DT_NULL => break,
                abi::DT_NEEDED if needed.len() < MAX_NEEDED => needed.push(value),
                abi::DT_STRTAB => strings = Some(value),
                abi::DT_STRSZ => strings_bytes = value,
                abi::DT_SONAME => soname = Some(value),
                abi::DT_RPATH => rpath = Some(value),
                abi::DT_RUNPATH => runpath = Some(value),
                abi::DT_FLAGS_1 => elf.flags_1 = abi::DynamicFlags1(value),
                abi::DT_VERDEF => defined_at = Some(value),
                abi::DT_VERDEFNUM => defined = value,
                abi::DT_VERNEED => need_at = Some(value),
                abi::DT_VERNEEDNUM => needs = value,
                _ => {}
            }
        }
        let Some(strings) = strings else {
            return if needed.is_empty() { Ok(()) } else { damaged("its dynamic section has no strings") };
        };
        let Some(start) = offset_of(segments, strings) else {
            // A static position-independent program needs no strings, but one with libraries does.
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
        let order = self.order;
        let mut versions = Vec::new();
        for _ in 0..count {
            let need: abi::Verneed<Endianness> = self.read(at)?;
            let library = OsString::from_vec(self.string(strings, need.vn_file.get(order).into())?);
            let mut aux_at = at.saturating_add(need.vn_aux.get(order).into());
            for _ in 0..need.vn_cnt.get(order) {
                let aux: abi::Vernaux<Endianness> = self.read(aux_at)?;
                // The loader does not require a weak version.
                if !aux.vna_flags.get(order).contains(abi::VER_FLG_WEAK) {
                    let name = self.string(strings, aux.vna_name.get(order).into())?;
                    self.spend(library.len() as u64)?;
                    versions.push((library.clone(), String::from_utf8_lossy(&name).into_owned()));
                }
                match aux.vna_next.get(order) {
                    0 => break,
                    next => aux_at = aux_at.saturating_add(next.into()),
                }
            }
            match need.vn_next.get(order) {
                0 => break,
                next => at = at.saturating_add(next.into()),
            }
        }
        Ok(versions)
    }

    /// `DT_VERDEF`: a chain of versions. The first name of each is its own.
    fn versions(&mut self, strings: &Strings, mut at: u64, count: u64) -> Result<Vec<String>, Fault> {
        let order = self.order;
        let mut versions = Vec::new();
        for _ in 0..count {
            let definition: abi::Verdef<Endianness> = self.read(at)?;
            // The base version is the library's own name.
            if !definition.vd_flags.get(order).contains(abi::VER_FLG_BASE) {
                let aux: abi::Verdaux<Endianness> =
                    self.read(at.saturating_add(definition.vd_aux.get(order).into()))?;
                let name = self.string(strings, aux.vda_name.get(order).into())?;
                versions.push(String::from_utf8_lossy(&name).into_owned());
            }
            match definition.vd_next.get(order) {
                0 => break,
                next => at = at.saturating_add(next.into()),
            }
        }
        Ok(versions)
    }

    fn string(&mut self, strings: &Strings, offset: u64) -> Result<Vec<u8>, Fault> {
        let mut at = strings.start.saturating_add(offset);
        let mut string = Vec::new();
        while at < strings.end && string.len() < MAX_NAME_BYTES {
            let rest = self.rest_of_block(at)?;
            if let Some(end) = memchr::memchr(0, rest) {
                string.extend_from_slice(&rest[..end]);
                self.spend(NAME_BYTES + string.len() as u64)?;
                return Ok(string);
            }
            if rest.is_empty() {
                break;
            }
            string.extend_from_slice(rest);
            at += rest.len() as u64;
        }
        damaged("a name in its dynamic section does not end")
    }

    fn read<T: Pod>(&mut self, at: u64) -> Result<T, Fault> {
        let bytes = self.bytes(at, size_of::<T>() as u64)?;
        let (structure, _) = from_bytes(&bytes).expect("as many bytes were asked for, and none has to be aligned");
        Ok(*structure)
    }

    fn bytes(&mut self, at: u64, count: u64) -> Result<Vec<u8>, Fault> {
        let end = at.saturating_add(count);
        if end > self.length {
            return damaged("it refers to what lies beyond its end");
        }
        self.spend(count)?;
        let mut bytes = Vec::new();
        let mut at = at;
        while at < end {
            let rest = self.rest_of_block(at)?;
            let chunk = &rest[..rest.len().min(usize::try_from(end - at).expect("it is within the budget"))];
            if chunk.is_empty() {
                return damaged("it became shorter while it was read");
            }
            bytes.extend_from_slice(chunk);
            at += chunk.len() as u64;
        }
        Ok(bytes)
    }

    /// The rest of the block that contains a byte, from that byte on; empty after the end of the file.
    fn rest_of_block(&mut self, at: u64) -> Result<&[u8], Fault> {
        let inside = usize::try_from(at % BLOCK_BYTES).expect("a block is small");
        Ok(self.block(at / BLOCK_BYTES)?.get(inside..).unwrap_or_default())
    }

    fn block(&mut self, number: u64) -> Result<&[u8], Fault> {
        if !self.blocks.contains_key(&number) {
            self.spend(BLOCK_BYTES)?;
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

    fn spend(&mut self, bytes: u64) -> Result<(), Fault> {
        match self.budget.checked_sub(bytes) {
            Some(rest) => {
                self.budget = rest;
                Ok(())
            }
            None => damaged(format!("its headers and names take more than {BUDGET_BYTES} bytes")),
        }
    }
}

/// The range of the file with the strings of the dynamic section.
struct Strings {
    start: u64,
    end: u64,
}

/// The offset in the file of an address in memory.
fn offset_of(segments: &[Segment], address: u64) -> Option<u64> {
    let segment =
        segments.iter().find(|segment| address >= segment.address && address - segment.address < segment.file_bytes)?;
    segment.offset.checked_add(address - segment.address)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// A file in memory that counts the bytes that are read.
    struct Counted {
        bytes: Vec<u8>,
        read: Cell<u64>,
    }

    impl FileExt for Counted {
        fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
            let rest = self.bytes.get(usize::try_from(at).expect("it is in memory")..).unwrap_or_default();
            let count = rest.len().min(buffer.len());
            buffer[..count].copy_from_slice(&rest[..count]);
            self.read.set(self.read.get() + count as u64);
            Ok(count)
        }

        fn write_at(&self, _: &[u8], _: u64) -> io::Result<usize> {
            Err(io::ErrorKind::Unsupported.into())
        }
    }

    /// Where the parts of the hostile files begin.
    const DYNAMIC: usize = 4096;
    const STRINGS: usize = 128 << 10;
    const VERSIONS: usize = 256 << 10;

    /// A library for 64 bits, little-endian, all of it loaded at address 0, with these pairs in its dynamic section.
    fn library(length: usize, dynamic: &[(abi::DynamicTag, u64)]) -> Vec<u8> {
        let mut file = vec![0; length];
        put(&mut file, 0, b"\x7fELF\x02\x01\x01");
        put(&mut file, 16, &[3, 0, 62, 0]);
        put(&mut file, 32, &64_u64.to_le_bytes());
        put(&mut file, 54, &[56, 0, 2, 0]);
        let dynamic_bytes = dynamic.len() * 16;
        for (at, kind, offset, bytes) in [(64, 1_u32, 0, length), (120, 2, DYNAMIC, dynamic_bytes)] {
            put(&mut file, at, &kind.to_le_bytes());
            for (index, value) in [offset, offset, offset, bytes, bytes].into_iter().enumerate() {
                put(&mut file, at + 8 + 8 * index, &(value as u64).to_le_bytes());
            }
        }
        for (index, (tag, value)) in dynamic.iter().enumerate() {
            put(&mut file, DYNAMIC + 16 * index, &tag.0.to_le_bytes());
            put(&mut file, DYNAMIC + 16 * index + 8, &value.to_le_bytes());
        }
        file
    }

    fn put(file: &mut [u8], at: usize, bytes: &[u8]) {
        file[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// The pairs with the offsets of names and needed versions.
    fn tables(strings_bytes: u64) -> Vec<(abi::DynamicTag, u64)> {
        vec![
            (abi::DT_STRTAB, STRINGS as u64),
            (abi::DT_STRSZ, strings_bytes),
            (abi::DT_VERNEED, VERSIONS as u64),
            (abi::DT_VERNEEDNUM, u64::MAX),
        ]
    }

    /// Writes an entry of `DT_VERNEED` with this number of versions.
    fn put_need(file: &mut [u8], at: usize, count: u16, versions: u32, next: u32) {
        put(file, at + 2, &count.to_le_bytes());
        put(file, at + 8, &versions.to_le_bytes());
        put(file, at + 12, &next.to_le_bytes());
    }

    fn read(bytes: Vec<u8>) -> (Result<Elf, Fault>, u64) {
        let (length, file) = (bytes.len() as u64, Counted { bytes, read: Cell::new(0) });
        (Reader::new(&file, length).elf(), file.read.get())
    }

    #[track_caller]
    fn exhausts_the_budget(bytes: Vec<u8>) {
        let (elf, read) = read(bytes);
        let reason = format!("{:?}", elf.expect_err("it is more than the budget"));
        assert!(reason.contains("take more than 1048576 bytes"), "{reason}");
        assert!(read <= BUDGET_BYTES, "{read}");
    }

    #[test]
    fn headers_scattered_over_a_file_are_read_within_the_budget() {
        let mut file = library(64 << 20, &tables(1));
        let step = 64 << 10;
        for at in (VERSIONS..file.len() - step).step_by(step) {
            put_need(&mut file, at, 0, 0, u32::try_from(step).expect("it is small"));
        }
        exhausts_the_budget(file);
    }

    #[test]
    fn a_dynamic_section_without_an_end_is_read_within_the_budget() {
        exhausts_the_budget(library(4 << 20, &vec![(abi::DT_DEBUG, 0); 200_000]));
    }

    #[test]
    fn a_chain_of_versions_that_many_libraries_share_is_read_within_the_budget() {
        let mut file = library(2 << 20, &tables(1));
        let versions = VERSIONS + (128 << 10);
        for index in 0..4096 {
            let at = VERSIONS + 16 * index;
            put_need(&mut file, at, u16::MAX, u32::try_from(versions - at).expect("it is small"), 16);
        }
        for index in 0..usize::from(u16::MAX) {
            put(&mut file, versions + 16 * index + 4, &abi::VER_FLG_WEAK.0.to_le_bytes());
            put(&mut file, versions + 16 * index + 12, &16_u32.to_le_bytes());
        }
        exhausts_the_budget(file);
    }

    #[test]
    fn a_long_name_that_is_needed_often_exceeds_the_budget() {
        let long = 60_000;
        let mut dynamic = tables(long + 1);
        dynamic.truncate(2);
        dynamic.extend(std::iter::repeat_n((abi::DT_NEEDED, 0), MAX_NEEDED));
        let mut file = library(256 << 10, &dynamic);
        file[STRINGS..STRINGS + usize::try_from(long).expect("it is small")].fill(b'x');
        exhausts_the_budget(file);
    }

    #[test]
    fn a_library_that_needs_a_thousand_others_is_read_within_the_budget() {
        let mut dynamic = tables(32_000);
        dynamic.truncate(2);
        dynamic.extend((0..1000).map(|index| (abi::DT_NEEDED, index * 32)));
        let mut file = library(100 << 20, &dynamic);
        for index in 0..1000 {
            put(&mut file, STRINGS + 32 * index, format!("liblong-name-{index:04}.so.1\0").as_bytes());
        }
        let (elf, read) = read(file);
        assert_eq!(elf.expect("it is within the budget").needed.len(), 1000);
        assert!(read <= 64 << 10, "{read}");
    }
}
