//! Log lines as JSON objects: `PIPELOOP_LOG_FORMAT=json`.
//!
//! One object for each line that the action printed, with the time at which the proxy read it. Knows no
//! sentinels: those stay plain lines, since log readers look for them as they are.

use std::fmt::Write;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// The longest line in one object. A longer one becomes several.
const MAX_LINE: usize = 64 * 1024;

/// Splits one stream into lines.
#[derive(Debug)]
pub(super) struct Lines {
    /// `stdout` or `stderr`.
    stream: &'static str,
    /// The activation that the lines belong to, if that is known.
    pub(super) label: Option<Arc<str>>,
    /// A line that has no end yet.
    unfinished: Vec<u8>,
}

impl Lines {
    pub(super) fn new(stream: &'static str) -> Self {
        Self { stream, label: None, unfinished: Vec::new() }
    }

    /// Adds output, and returns the lines that it completes, as objects.
    pub(super) fn append(&mut self, mut bytes: &[u8]) -> Vec<u8> {
        let mut encoded = Vec::new();
        while let Some(newline) = memchr::memchr(b'\n', bytes) {
            let (line, rest) = bytes.split_at(newline);
            bytes = &rest[1..];
            if self.unfinished.is_empty() {
                self.line(line, &mut encoded);
            } else {
                self.unfinished.extend_from_slice(line);
                self.finish(&mut encoded);
            }
        }
        self.unfinished.extend_from_slice(bytes);
        if self.unfinished.len() > MAX_LINE {
            self.finish(&mut encoded);
        }
        encoded
    }

    /// Encodes a sentence of the proxy on this stream.
    pub(super) fn sentence(&self, label: Option<&str>, sentence: &str, encoded: &mut Vec<u8>) {
        object(self.stream, label, sentence.as_bytes(), encoded);
    }

    /// Ends the unfinished line, if there is one.
    pub(super) fn finish(&mut self, encoded: &mut Vec<u8>) {
        if !self.unfinished.is_empty() {
            let line = std::mem::take(&mut self.unfinished);
            self.line(&line, encoded);
        }
    }

    fn line(&self, line: &[u8], encoded: &mut Vec<u8>) {
        if line.len() > MAX_LINE {
            // Between characters, if it is text.
            let mut rest = line;
            while !rest.is_empty() {
                let mut end = rest.len().min(MAX_LINE);
                while end < rest.len() && end > MAX_LINE - 4 && rest[end] & 0xc0 == 0x80 {
                    end -= 1;
                }
                object(self.stream, self.label.as_deref(), &rest[..end], encoded);
                rest = &rest[end..];
            }
        } else {
            object(self.stream, self.label.as_deref(), line, encoded);
        }
    }
}

/// One object and LF: `{"time":…,"stream":…,"activation":…,"line":…}`. Bytes that are not UTF-8
/// become U+FFFD.
pub(super) fn object(stream: &str, label: Option<&str>, line: &[u8], encoded: &mut Vec<u8>) {
    let text = |text: &str| serde_json::to_string(text).expect("text can always be written");
    let label = label.map_or("null".into(), text);
    let line = text(&String::from_utf8_lossy(line.strip_suffix(b"\r").unwrap_or(line)));
    let time = timestamp(SystemTime::now());
    encoded.extend_from_slice(
        format!("{{\"time\":\"{time}\",\"stream\":\"{stream}\",\"activation\":{label},\"line\":{line}}}\n").as_bytes(),
    );
}

/// A point in time by RFC 3339, in UTC, with milliseconds.
fn timestamp(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, seconds) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    // Years start in March here, so that a leap day is the last day of a year.
    //
    // Source: Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", `civil_from_days`.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let mut text = String::with_capacity(24);
    let (hour, minute, second) = (seconds / 3_600, seconds / 60 % 60, seconds % 60);
    let millis = since.subsec_millis();
    let _ = write!(text, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z");
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn times_are_rfc_3339() {
        // Checked against `date -u -d @SECONDS +%FT%TZ`.
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00.007Z"),
            (951_782_400, "2000-02-29T00:00:00.007Z"),
            (951_868_799, "2000-02-29T23:59:59.007Z"),
            (1_709_251_199, "2024-02-29T23:59:59.007Z"),
            (1_735_689_599, "2024-12-31T23:59:59.007Z"),
            (4_107_542_400, "2100-03-01T00:00:00.007Z"),
        ] {
            assert_eq!(timestamp(UNIX_EPOCH + Duration::from_millis(seconds * 1_000 + 7)), expected);
        }
    }

    #[test]
    fn lines_are_joined_and_long_ones_split() {
        let texts = |encoded: &[u8]| -> Vec<String> {
            let lines = encoded.split_inclusive(|byte| *byte == b'\n');
            let line =
                |line| serde_json::from_slice::<serde_json::Value>(line).unwrap()["line"].as_str().unwrap().to_owned();
            lines.map(line).collect()
        };
        let mut lines = Lines::new("stderr");
        assert!(lines.append(b"half").is_empty());
        assert_eq!(texts(&lines.append(b" a line\r\n\nnext \xff\nun")), ["half a line", "", "next \u{fffd}"]);
        let mut rest = Vec::new();
        lines.finish(&mut rest);
        assert_eq!(texts(&rest), ["un"]);
        let long = "é".repeat(MAX_LINE);
        let encoded = lines.append(format!("x{long}\n").as_bytes());
        assert_eq!(texts(&encoded).concat(), format!("x{long}"));
        assert!(texts(&encoded).iter().all(|text| text.len() <= MAX_LINE));
    }
}
