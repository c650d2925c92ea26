//! Recognises what a file is, by its content and never by its name.

use crate::error::{ArchiveFormat, Foreign, Language};
use crate::text::excerpt;

/// So many bytes of a file are enough to recognise it.
pub const HEAD_BYTES: usize = 4096;

/// What a file is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// An ELF file, not necessarily a program.
    Elf,
    /// A file that begins with `#!`.
    Script,
    /// An archive of a supported format.
    Archive(ArchiveFormat),
    /// Text without `#!`: its language, if recognised, and its first line.
    Source(Option<Language>, String),
    /// A script after a byte-order mark, which hides its `#!` from the kernel.
    MarkedScript,
    /// A known format that Linux does not execute.
    Foreign(Foreign),
    /// Base64 text, with a description of the decoded content.
    Encoded(String),
    /// An empty file, or white space.
    Empty,
    /// Any other data, with a description.
    Unknown(String),
}

impl Kind {
    /// Recognises a file by its first bytes, of which [`HEAD_BYTES`] are enough.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        let head = &bytes[..bytes.len().min(HEAD_BYTES)];
        if let Some(format) = Self::by_magic(bytes) {
            return format;
        }
        if let Some(text) = text(head) {
            return Self::of_text(text, bytes.len() < HEAD_BYTES);
        }
        let magic: Vec<String> = head.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        Self::Unknown(format!("data that begins with the bytes {}", magic.join(" ")))
    }

    /// Recognises formats by the fixed bytes at their beginning.
    fn by_magic(bytes: &[u8]) -> Option<Self> {
        let head = &bytes[..bytes.len().min(HEAD_BYTES)];
        if bytes.starts_with(b"\x7fELF") {
            return Some(Self::Elf);
        }
        if bytes.starts_with(b"#!") {
            return Some(Self::Script);
        }
        if bytes.starts_with(b"\xef\xbb\xbf#!") {
            return Some(Self::MarkedScript);
        }
        if head.trim_ascii().is_empty() {
            return Some(Self::Empty);
        }
        if head.iter().all(|byte| *byte == 0) {
            return Some(Self::Foreign(Foreign::Zeros));
        }
        // Before archives: a jar is a zip.
        if let Some(foreign) = Foreign::of(head) {
            return Some(Self::Foreign(foreign));
        }
        ArchiveFormat::of(bytes).map(Self::Archive)
    }

    fn of_text(text: &str, whole: bool) -> Self {
        if let Some(foreign) = Foreign::of_text(text) {
            return Self::Foreign(foreign);
        }
        if let Some(inside) = encoded(text, whole) {
            return Self::Encoded(inside);
        }
        let first_line = text.trim_start_matches('\u{feff}').lines().find(|line| !line.trim().is_empty());
        let first_line = excerpt(first_line.unwrap_or_default().trim().as_bytes());
        Self::Source(Language::of(text), first_line)
    }

    /// A description with its article.
    #[must_use]
    pub fn in_words(&self) -> String {
        match self {
            Self::Elf => "an ELF file".into(),
            Self::Script => "a script".into(),
            Self::Archive(format) => format!("a {format} archive"),
            Self::Source(Some(language), _) => format!("{language} source text"),
            Self::Source(None, _) => "text".into(),
            Self::MarkedScript => "a script behind a byte-order mark".into(),
            Self::Foreign(foreign) => foreign.to_string(),
            Self::Encoded(inside) => format!("base64 of {inside}"),
            Self::Empty => "nothing".into(),
            Self::Unknown(seen) => seen.clone(),
        }
    }
}

/// The head as text, if it is text. It may end inside a character.
fn text(head: &[u8]) -> Option<&str> {
    if head.contains(&0) {
        return None;
    }
    match std::str::from_utf8(head) {
        Ok(text) => Some(text),
        Err(error) if error.error_len().is_none() => std::str::from_utf8(&head[..error.valid_up_to()]).ok(),
        Err(_) => None,
    }
}

/// Shorter text does not count as base64: a word such as `abcd` is valid base64, too.
const MIN_ENCODED_BYTES: usize = 24;

/// A description of what base64 text decodes to, if that may be an action.
fn encoded(text: &str, whole: bool) -> Option<String> {
    let mut letters: Vec<u8> = text.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    if letters.len() < MIN_ENCODED_BYTES {
        return None;
    }
    if !whole {
        letters.truncate(letters.len() / 4 * 4);
    }
    let decoded = base64_simd::STANDARD.decode_to_vec(&letters).ok()?;
    let inside = Kind::of(&decoded);
    // A long word is valid base64, too, but decodes to unknown data.
    matches!(
        inside,
        Kind::Elf | Kind::Script | Kind::Archive(_) | Kind::Foreign(_) | Kind::Source(..) | Kind::Encoded(_)
    )
    .then(|| inside.in_words())
}

impl Foreign {
    /// Recognises a format by its first bytes.
    ///
    /// Source: the specifications of the formats; file(1), `magic`.
    fn of(head: &[u8]) -> Option<Self> {
        let begins = |magic: &[u8]| head.starts_with(magic);
        Some(match head {
            // A universal binary has its small number of architectures where a Java class has its version, 45 or more.
            [0xca, 0xfe, 0xba, 0xbe, 0, 0, 0, count, ..] if *count < 40 => Self::MachO,
            [0xca, 0xfe, 0xba, 0xbe, ..] => Self::JavaClass,
            [0xcf | 0xce, 0xfa, 0xed, 0xfe, ..] | [0xfe, 0xed, 0xfa, 0xcf | 0xce, ..] => Self::MachO,
            // It begins as a PE executable and is a shell script, too.
            _ if APE_MAGICS.iter().any(|magic| begins(magic)) => Self::Ape,
            // `MZ`, with a new header, or at least a NUL byte.
            [b'M', b'Z', rest @ ..] if is_windows(rest, head) => Self::Windows,
            [0, b'a', b's', b'm', ..] => Self::WebAssembly,
            [b'7', b'z', 0xbc, 0xaf, 0x27, 0x1c, ..] => Self::SevenZip,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Self::Xz,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            [b'B', b'Z', b'h', b'1'..=b'9', 0x31, 0x41, 0x59, 0x26, 0x53, 0x59, ..] => Self::Bzip2,
            [0xff, 0xfe, _, 0, ..] | [0xfe, 0xff, 0, _, ..] => Self::Utf16,
            [_, _, b'\r', b'\n', 0, ..] if is_python_bytecode(head) => Self::PythonBytecode,
            _ if begins(b"Rar!\x1a\x07") => Self::Rar,
            _ if begins(b"%PDF-") => Self::Pdf,
            _ if head.get(257..262) == Some(b"ustar") => Self::Tar,
            _ => return None,
        })
    }

    fn of_text(text: &str) -> Option<Self> {
        let start = text.trim_start_matches('\u{feff}').trim_start();
        if start.starts_with("version https://git-lfs.github.com/spec/") {
            return Some(Self::LfsPointer);
        }
        let lower = start.get(..start.len().min(512)).unwrap_or(start).to_ascii_lowercase();
        let is_page = ["<!doctype html", "<html", "<head", "<body"].iter().any(|tag| lower.starts_with(tag))
            || (lower.starts_with("<?xml") && lower.contains("<html"));
        is_page.then_some(Self::Html)
    }
}

/// How programs of Cosmopolitan begin, the same file for several systems.
///
/// Source: Cosmopolitan, `ape/specification.md`.
const APE_MAGICS: [&[u8]; 3] = [b"MZqFpD='", b"jartsr='", b"APEDBG='"];

fn is_windows(rest: &[u8], head: &[u8]) -> bool {
    // The offset of the new header is at 0x3c.
    let at = head.get(0x3c..0x40).map(|bytes| u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]));
    let new = at.and_then(|at| head.get(usize::try_from(at).ok()?..)?.get(..2));
    // Text may begin with MZ, too, but has no NUL byte.
    matches!(new, Some(b"PE" | b"NE" | b"LE" | b"LX")) || rest.contains(&0)
}

fn is_python_bytecode(head: &[u8]) -> bool {
    // The magic number of Python 3, 3000 or more, then CR LF, then flags.
    u16::from_le_bytes([head[0], head[1]]) >= 3000
}

/// How many lines are read to guess a language.
const MAX_LINES: usize = 200;
const JAVASCRIPT_BEGINNINGS: &[&str] = &[
    "function ",
    "async function ",
    "const ",
    "let ",
    "var ",
    "export ",
    "import {",
    "import * ",
    "'use strict'",
    "\"use strict\"",
    "console.log(",
    "(function",
];
const SHELL_WORDS: &[&str] = &[
    "echo", "set", "export", "if", "fi", "done", "while", "for", "exec", "cd", "read", "case", "esac", "source",
    "printf", "cat", "jq",
];

fn any(lines: &[&str], test: impl Fn(&str) -> bool) -> bool {
    lines.iter().any(|line| test(line))
}

impl Language {
    /// Guesses the language of source text by lines that occur in no other language.
    #[must_use]
    pub fn of(text: &str) -> Option<Self> {
        let text = text.trim_start_matches('\u{feff}');
        if text.trim_start().starts_with("<?php") || text.trim_start().starts_with("<?=") {
            return Some(Self::Php);
        }
        let lines: Vec<_> = text.lines().map(str::trim_end).take(MAX_LINES).collect();
        Self::compiled(&lines).or_else(|| Self::interpreted(&lines))
    }

    fn compiled(lines: &[&str]) -> Option<Self> {
        let begins = |words: &[&str]| any(lines, |line| words.iter().any(|word| line.starts_with(word)));
        let contains = |words: &[&str]| any(lines, |line| words.iter().any(|word| line.contains(word)));
        let is_package = |line: &str| line.strip_prefix("package ").is_some_and(|name| !name.contains(';'));
        Some(if any(lines, is_package) && begins(&["func ", "import ", "type ", "var ", "const "]) {
            Self::Go
        } else if begins(&["#include"]) {
            let is_cpp = begins(&["using namespace", "template<", "template <", "class ", "namespace "])
                || contains(&["std::", "#include <iostream>", "#include <string>", "#include <vector>"]);
            if is_cpp { Self::Cpp } else { Self::C }
        } else if begins(&["fn main", "pub fn ", "use std::", "extern crate ", "async fn ", "impl ", "#[derive("])
            || (begins(&["use ", "mod ", "fn "]) && contains(&["let mut ", "-> Result<", "println!("]))
        {
            Self::Rust
        } else if begins(&["using System"])
            || (begins(&["namespace "]) && contains(&["static void Main", "public class "]))
        {
            Self::CSharp
        } else if contains(&["public class ", "public static void main", "public static JsonObject main"])
            || begins(&["import java.", "import javax.", "import com.google.gson"])
        {
            Self::Java
        } else if begins(&["import Foundation"]) || (begins(&["func "]) && contains(&["-> [String", "let "])) {
            Self::Swift
        } else if begins(&["main :: IO", "import qualified ", "import Data.", "import System.IO", "module Main"]) {
            Self::Haskell
        } else {
            return None;
        })
    }

    fn interpreted(lines: &[&str]) -> Option<Self> {
        let begins = |words: &[&str]| any(lines, |line| words.iter().any(|word| line.starts_with(word)));
        let contains = |words: &[&str]| any(lines, |line| words.iter().any(|word| line.contains(word)));
        let is_python = |line: &str| {
            let opens = ["def ", "class ", "async def ", "if __name__"];
            line.ends_with(':') && opens.iter().any(|word| line.trim_start().starts_with(word))
                || line.starts_with("from ") && line.contains(" import ")
                || line.starts_with("print(") && !line.ends_with(';')
                || line.starts_with("import ") && !line.contains([';', '"', '\'', '{', '*'])
        };
        let is_shell = |line: &str| {
            let word = line.trim_start().split([' ', ';', '\t']).next().unwrap_or_default();
            SHELL_WORDS.contains(&word) || word.ends_with("()")
        };
        Some(
            if begins(&["use strict;", "use warnings;", "my $", "my %", "my @", "package ", "our $"])
                || (begins(&["sub "]) && contains(&["$_", "my $"]))
            {
                Self::Perl
            } else if any(lines, is_python) {
                Self::Python
            } else if begins(&["require '", "require \"", "require_relative ", "puts ", "module "])
                || (begins(&["def "]) && lines.contains(&"end"))
            {
                Self::Ruby
            } else if begins(&["interface ", "type ", "export interface ", "export type "])
                || contains(&["): Promise<", ": string", ": number", ": any"])
            {
                Self::TypeScript
            } else if begins(JAVASCRIPT_BEGINNINGS) || contains(&["=> {", "require('", "require(\"", "exports."]) {
                Self::JavaScript
            } else if any(lines, is_shell) {
                Self::Shell
            } else {
                return None;
            },
        )
    }
}
