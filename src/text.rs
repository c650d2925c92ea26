//! Words and excerpts for messages: pure functions for everything that a person reads.

use std::fmt::Write;
use std::time::Duration;

/// How many characters of foreign text a message quotes at most.
const EXCERPT_CHARS: usize = 200;

/// Quotes foreign bytes in backticks: lossy UTF-8 with control characters escaped. A long text is cut, and
/// its length is given.
#[must_use]
pub fn excerpt(bytes: &[u8]) -> String {
    // A character has at most four bytes. Cutting first avoids decoding a huge line.
    let head = &bytes[..bytes.len().min(EXCERPT_CHARS * 4)];
    let text = String::from_utf8_lossy(head);
    let mut quoted = String::with_capacity(EXCERPT_CHARS + 32);
    quoted.push('`');
    let mut characters = text.chars();
    for character in characters.by_ref().take(EXCERPT_CHARS) {
        if character.is_control() {
            quoted.extend(character.escape_default());
        } else {
            quoted.push(character);
        }
    }
    let cut = characters.next().is_some() || head.len() < bytes.len();
    quoted.push('`');
    if cut {
        // Writing to a string cannot fail.
        let _ = write!(quoted, " … ({} bytes)", bytes.len());
    }
    quoted
}

/// A duration as people write it: `4 ms`, `1.5 s`, `2 min`.
#[must_use]
pub fn millis(duration: Duration) -> String {
    let ms = duration.as_millis();
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..120_000 if ms.is_multiple_of(1_000) => format!("{} s", ms / 1_000),
        1_000..120_000 => format!("{:.1} s", duration.as_secs_f64()),
        _ => format!("{} min", ms / 60_000),
    }
}

/// Lists names in backticks, and says how many more there are.
#[must_use]
pub fn listing(names: &[String], more: usize) -> String {
    if names.is_empty() {
        return "nothing".into();
    }
    let quoted: Vec<_> = names.iter().map(|name| excerpt(name.as_bytes())).collect();
    match more {
        0 => quoted.join(", "),
        _ => format!("{} and {more} more", quoted.join(", ")),
    }
}

/// A word as a shell takes it.
#[must_use]
pub fn shell_word(word: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "/._-+=:,@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_excerpt_is_escaped_and_cut() {
        assert_eq!(excerpt(b"ready"), "`ready`");
        assert_eq!(excerpt(b"a\tb\x1b[0m"), "`a\\tb\\u{1b}[0m`");
        assert_eq!(excerpt("é".repeat(3).as_bytes()), "`ééé`");
        let long = excerpt("x".repeat(1000).as_bytes());
        assert!(long.ends_with("x` … (1000 bytes)"), "{long}");
        assert_eq!(long.matches('x').count(), EXCERPT_CHARS);
        // A cut inside a character does not panic, and the length is given.
        assert!(excerpt("日".repeat(500).as_bytes()).ends_with("(1500 bytes)"));
    }

    #[test]
    fn a_duration_is_rounded_for_people() {
        assert_eq!(millis(Duration::from_micros(4_300)), "4 ms");
        assert_eq!(millis(Duration::from_millis(1_500)), "1.5 s");
        assert_eq!(millis(Duration::from_mins(1)), "60 s");
        assert_eq!(millis(Duration::from_mins(10)), "10 min");
    }

    #[test]
    fn a_listing_names_some_and_counts_the_rest() {
        assert_eq!(listing(&[], 0), "nothing");
        assert_eq!(listing(&["a".into(), "b/c".into()], 3), "`a`, `b/c` and 3 more");
    }
}
