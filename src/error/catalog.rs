//! `docs/errors.md` as data: for each code its sentence, its meaning, a way to get it and a cure.
//!
//! The document is the only source and part of the binary, so that `pipeloop explain` prints the documentation.

use std::collections::HashSet;
use std::sync::OnceLock;

use serde::Serialize;

/// One section of the document. Texts are one line of Markdown each: literals stand in backticks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// `PL` and three digits.
    pub code: &'static str,
    /// What its heading says.
    pub title: &'static str,
    /// The sentence, with an example of its facts.
    pub says: String,
    /// When it occurs, and with which status.
    pub means: String,
    /// A way to see it.
    pub to_get_it: String,
    /// What to do.
    pub cure: String,
}

const DOCUMENT: &str = include_str!("../../docs/errors.md");

/// Every entry, in the order of the document.
#[must_use]
pub fn entries() -> &'static [Entry] {
    static ENTRIES: OnceLock<Vec<Entry>> = OnceLock::new();
    ENTRIES.get_or_init(|| parse(DOCUMENT))
}

/// The entry of a code as people type it: `PL012`, `pl12`, `12`, `PL0012`.
///
/// # Errors
/// The entries nearest to the typed text, possibly none: by number, or by the words of their titles.
pub fn find(typed: &str) -> Result<&'static Entry, Vec<&'static Entry>> {
    let typed = typed.trim().to_lowercase();
    let digits = typed.strip_prefix("pl").unwrap_or(&typed);
    let Some(number) = digits.parse::<u32>().ok().filter(|_| digits.bytes().all(|byte| byte.is_ascii_digit())) else {
        return Err(entitled(&typed));
    };
    let distance = |entry: &Entry| entry.number().abs_diff(number);
    let mut near: Vec<_> = entries().iter().collect();
    // Stable, so that of two that are equally near the smaller one comes first.
    near.sort_by_key(|entry| distance(entry));
    match near.first() {
        Some(entry) if distance(entry) == 0 => Ok(entry),
        _ => {
            near.truncate(MAX_NEAR);
            near.retain(|entry| distance(entry) <= NEAR);
            Err(near)
        }
    }
}

/// How many entries are named for a code that does not exist, and how far from it they may be.
const MAX_NEAR: usize = 3;
const NEAR: u32 = 10;

/// Entries whose titles contain one of these words.
fn entitled(words: &str) -> Vec<&'static Entry> {
    // Articles would find everything.
    let words: HashSet<_> = words.split(|c: char| !c.is_alphanumeric()).filter(|word| word.len() > 3).collect();
    let holds = |entry: &&Entry| {
        let title = entry.title.to_lowercase();
        words.iter().any(|word| title.contains(word))
    };
    entries().iter().filter(holds).take(MAX_NEAR).collect()
}

impl Entry {
    fn number(&self) -> u32 {
        self.code[2..].parse().expect("a code is PL and digits, which `parse` has seen")
    }
}

fn parse(document: &'static str) -> Vec<Entry> {
    document.split("\n## ").skip(1).filter_map(parse_section).collect()
}

/// `PL012: title`, then items that begin with `- **Name:**` and may take more than one line.
fn parse_section(section: &'static str) -> Option<Entry> {
    let (heading, body) = section.split_once('\n')?;
    let (code, title) = heading.split_once(": ")?;
    code.strip_prefix("PL").filter(|digits| digits.parse::<u16>().is_ok())?;
    let item = |name: &str| {
        let (_, rest) = body.split_once(&format!("- **{name}:**"))?;
        let end = rest.find("\n- **").or_else(|| rest.find("\n# ")).unwrap_or(rest.len());
        Some(rest[..end].split_whitespace().collect::<Vec<_>>().join(" "))
    };
    Some(Entry {
        code,
        title: title.trim(),
        says: item("Says")?,
        means: item("Means")?,
        to_get_it: item("To get it")?,
        cure: item("Cure")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifact::inspect::Defect;
    use crate::check::Finding;
    use crate::error::Error;
    use std::collections::BTreeSet;

    /// `codes` holds the code of every variant, by the macro that writes the `match`: a variant
    /// without a code does not compile, and a code without an entry fails here.
    #[test]
    fn every_code_has_its_entry_and_every_entry_its_code() {
        let codes = [Error::CODES, Defect::CODES, Finding::CODES].concat();
        let in_source: BTreeSet<_> = codes.iter().copied().collect();
        assert_eq!(in_source.len(), codes.len(), "no two causes share a code");
        let in_document: Vec<_> = entries().iter().map(|entry| entry.code).collect();
        assert!(in_document.is_sorted(), "the document is in the order of codes: {in_document:?}");
        assert_eq!(
            in_document.into_iter().collect::<BTreeSet<_>>(),
            in_source,
            "docs/errors.md (left), source (right)"
        );
    }

    #[test]
    fn no_section_of_the_document_is_left_out() {
        assert_eq!(entries().len(), DOCUMENT.matches("\n## ").count());
        for entry in entries() {
            for text in [entry.title, &entry.says, &entry.means, &entry.to_get_it, &entry.cure] {
                assert!(!text.is_empty() && !text.contains("**"), "{}: {text:?}", entry.code);
            }
        }
    }

    #[test]
    fn codes_are_found_as_people_type_them() {
        for typed in ["PL012", "pl012", "12", "pl12", "PL0012", " PL012 ", "012"] {
            assert_eq!(find(typed).map(|entry| entry.code), Ok("PL012"), "{typed:?}");
        }
    }

    #[test]
    fn near_codes_are_suggested() {
        let near = |typed: &str| find(typed).unwrap_err().iter().map(|entry| entry.code).collect::<Vec<_>>();
        assert_eq!(near("PL009"), ["PL010", "PL011", "PL012"]);
        assert!(near("handshake").contains(&"PL055"), "{:?}", near("handshake"));
        for nothing in ["PL999", "xyz", "", "+12", "PL", "99999999999"] {
            assert_eq!(near(nothing), [""; 0], "{nothing:?}");
        }
    }
}
