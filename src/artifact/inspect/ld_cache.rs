//! Reads `/etc/ld.so.cache`, in which `ldconfig` records the paths of libraries.
//!
//! Source: glibc, `sysdeps/generic/dl-cache.h`: the format since 2.2, alone or after the old one.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use memchr::memchr;

/// A cache. It is empty if the file does not exist or cannot be read, since the loader goes on then, too.
#[derive(Debug, Default)]
pub(super) struct Cache {
    bytes: Vec<u8>,
    entries: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    flags: u32,
    name: u32,
    path: u32,
    /// Bits for the features that the processor must have, or the number of a directory of `glibc-hwcaps`.
    features: u64,
}

const MAGIC: &[u8] = b"glibc-ld.so.cache1.1";
const OLD_MAGIC: &[u8] = b"ld.so-1.7.0";
const HEADER_BYTES: usize = 48;
const ENTRY_BYTES: usize = 24;
/// Far above what a desktop has.
const MAX_BYTES: u64 = 64 << 20;
/// The features are the number of a directory of `glibc-hwcaps`, which is part of the path as well.
const IN_HWCAPS_DIRECTORY: u64 = 1 << 62;

impl Cache {
    pub(super) fn read(path: &Path) -> Self {
        let mut bytes = Vec::new();
        let read = File::open(path).and_then(|file| file.take(MAX_BYTES).read_to_end(&mut bytes));
        if read.is_err() { Self::default() } else { Self::parse(bytes) }
    }

    fn parse(mut bytes: Vec<u8>) -> Self {
        if bytes.starts_with(OLD_MAGIC) {
            // Twelve bytes of magic, the number of entries, and entries of twelve bytes.
            let start = u32_at(&bytes, 12)
                .and_then(|count| (count as usize).checked_mul(12)?.checked_add(16)?.checked_next_multiple_of(8));
            match start {
                Some(start) if start < bytes.len() => drop(bytes.drain(..start)),
                _ => return Self::default(),
            }
        }
        if !bytes.starts_with(MAGIC) {
            return Self::default();
        }
        let count = u32_at(&bytes, MAGIC.len()).unwrap_or(0) as usize;
        let table = bytes.get(HEADER_BYTES..).unwrap_or_default();
        let entries = table.chunks_exact(ENTRY_BYTES).take(count).map(|entry| {
            let field = |at| u32_at(entry, at).expect("the chunk is long enough");
            Entry {
                flags: field(0),
                name: field(4),
                path: field(8),
                features: u64::from(field(20)) << 32 | u64::from(field(16)),
            }
        });
        let entries = entries.collect();
        Self { bytes, entries }
    }

    /// The path of a library for the architecture that `flags` names. Of several the best one, the one with the lowest
    /// `rank` of its directory of `glibc-hwcaps`; without a rank the processor cannot use it.
    pub(super) fn find(
        &self,
        name: &[u8],
        flags: Option<u32>,
        rank: impl Fn(&str) -> Option<usize>,
    ) -> Option<PathBuf> {
        let candidates = self
            .entries
            .iter()
            .filter(|entry| self.string(entry.name) == Some(name) && flags.is_none_or(|flags| entry.flags == flags));
        let ranked = candidates.filter_map(|entry| {
            let path = std::str::from_utf8(self.string(entry.path)?).ok()?;
            let rank = match entry.features {
                0 => usize::MAX,
                features if features & IN_HWCAPS_DIRECTORY != 0 => rank(hwcaps_directory(path)?)?,
                // Older entries for features of the processor are not supported.
                _ => return None,
            };
            Some((rank, path))
        });
        ranked.min_by_key(|(rank, _)| *rank).map(|(_, path)| path.into())
    }

    fn string(&self, at: u32) -> Option<&[u8]> {
        let rest = self.bytes.get(at as usize..)?;
        Some(&rest[..memchr(0, rest)?])
    }
}

/// `x86-64-v3` of `/usr/lib/glibc-hwcaps/x86-64-v3/libz.so.1`.
fn hwcaps_directory(path: &str) -> Option<&str> {
    path.split_once("/glibc-hwcaps/")?.1.split('/').next()
}

/// Reads a number in this machine's byte order, in which its `ldconfig` wrote it.
fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().expect("four bytes")))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A cache as `ldconfig` writes it, from flags, features, name and path.
    fn cache(entries: &[(u32, u64, &str, &str)]) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(u32::try_from(entries.len()).unwrap().to_ne_bytes());
        bytes.resize(HEADER_BYTES, 0);
        let mut strings = Vec::new();
        let base = HEADER_BYTES + entries.len() * ENTRY_BYTES;
        for (flags, features, name, path) in entries {
            bytes.extend(flags.to_ne_bytes());
            for text in [name, path] {
                bytes.extend(u32::try_from(base + strings.len()).unwrap().to_ne_bytes());
                strings.extend(text.bytes().chain([0]));
            }
            bytes.extend([0; 4]);
            bytes.extend(features.to_le_bytes());
        }
        bytes.extend(strings);
        bytes
    }

    #[test]
    fn the_best_entry_for_the_architecture_is_found() {
        let hwcaps = 1 << 62;
        let bytes = cache(&[
            (0x803, 0, "libz.so.1", "/lib32/libz.so.1"),
            (0x303, 0, "libz.so.1", "/lib/libz.so.1"),
            (0x303, hwcaps, "libz.so.1", "/lib/glibc-hwcaps/x86-64-v3/libz.so.1"),
            (0x303, hwcaps | 1, "libz.so.1", "/lib/glibc-hwcaps/x86-64-v4/libz.so.1"),
        ]);
        let mut old = OLD_MAGIC.to_vec();
        old.push(0);
        old.extend(1_u32.to_ne_bytes());
        old.extend([0; 12]);
        old.resize(old.len().next_multiple_of(8), 0);
        old.extend(&bytes);
        for bytes in [bytes, old] {
            let cache = Cache::parse(bytes);
            let find = |name: &str, flags, known: &[&str]| {
                cache.find(name.as_bytes(), flags, |directory| known.iter().position(|known| *known == directory))
            };
            assert_eq!(find("libz.so.1", Some(0x303), &[]).unwrap(), Path::new("/lib/libz.so.1"));
            let v3 = find("libz.so.1", Some(0x303), &["x86-64-v3"]).unwrap();
            assert_eq!(v3, Path::new("/lib/glibc-hwcaps/x86-64-v3/libz.so.1"));
            assert_eq!(find("libz.so.1", Some(0x803), &[]).unwrap(), Path::new("/lib32/libz.so.1"));
            assert_eq!(find("libz.so", Some(0x303), &[]), None);
            assert_eq!(find("libz.so.1", Some(0x3), &[]), None);
        }
    }

    #[test]
    fn a_damaged_cache_counts_as_empty() {
        let whole = cache(&[(0x303, 0, "libz.so.1", "/lib/libz.so.1")]);
        for cut in 0..whole.len() {
            assert_eq!(Cache::parse(whole[..cut].to_vec()).find(b"libz.so.1", None, |_| None), None, "cut at {cut}");
        }
        let mut lies = whole;
        lies[MAGIC.len()..MAGIC.len() + 4].fill(0xff);
        Cache::parse(lies).find(b"libz.so.1", None, |_| None);
    }
}
