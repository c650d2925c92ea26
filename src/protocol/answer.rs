//! Checks and builds answers. An answer is one JSON object or array, on one line.

use bytes::Bytes;
use serde_json::value::RawValue;

use crate::activation::Answer;
use crate::error::{BadAnswer, JsonType};

/// Checks one line of the result channel.
///
/// # Errors
/// What is wrong with the line, and the line itself.
pub fn check(line: Bytes) -> Result<Answer, BadAnswer> {
    let lossy = |line: &[u8]| String::from_utf8_lossy(line).into_owned();
    let not_json = |reason: String| BadAnswer::NotJson { line: lossy(&line), reason };
    let text = std::str::from_utf8(&line)
        .map_err(|error| not_json(format!("invalid UTF-8 at byte {}", error.valid_up_to() + 1)))?;
    let raw: &RawValue = serde_json::from_str(text).map_err(|error| not_json(column(&error)))?;
    match raw.get().as_bytes().first() {
        Some(b'{' | b'[') => Ok(line),
        _ => Err(BadAnswer::WrongType { found: JsonType::of(raw.get()), line: lossy(&line) }),
    }
}

/// The error for two lines where one was expected: the proxy cannot know which of them is the answer.
pub(super) fn two_lines(first: &[u8], second: &[u8]) -> BadAnswer {
    let text = |line| String::from_utf8_lossy(line).into_owned();
    BadAnswer::TwoLines { first: text(first), second: text(second) }
}

/// The chunks of an answer for a caller that wants one body. One buffer holds them all, because chunks
/// may be tiny and many.
#[derive(Debug, Default)]
pub struct Gathered {
    /// One line for each chunk; no chunk holds a raw newline.
    lines: Vec<u8>,
    /// Whether a chunk is no string.
    has_non_string: bool,
}

impl Gathered {
    /// Adds a chunk, unless that exceeds the limit. Returns whether it was added.
    pub fn add(&mut self, chunk: &[u8], limit_bytes: u64) -> bool {
        if (self.lines.len() + chunk.len() + 1) as u64 > limit_bytes {
            return false;
        }
        self.lines.extend_from_slice(chunk);
        self.lines.push(b'\n');
        self.has_non_string |= !chunk.starts_with(b"\"");
        true
    }

    /// Builds the body of an answer without a result: `{"body":…}` with the joined text if all chunks are
    /// strings, else `{"chunks":[…]}`. Escapes stay as they arrived.
    #[must_use]
    pub fn into_answer(self) -> Answer {
        let (head, tail): (&[u8], &[u8]) =
            if self.has_non_string { (b"{\"chunks\":[", b"]}") } else { (b"{\"body\":\"", b"\"}") };
        let mut body = Vec::with_capacity(self.lines.len() + head.len() + tail.len());
        body.extend_from_slice(head);
        let mut rest = &self.lines[..];
        while let Some(length) = memchr::memchr(b'\n', rest) {
            if self.has_non_string {
                if body.len() > head.len() {
                    body.push(b',');
                }
                body.extend_from_slice(&rest[..length]);
            } else {
                body.extend_from_slice(&rest[1..length - 1]);
            }
            rest = &rest[length + 1..];
        }
        body.extend_from_slice(tail);
        body.into()
    }
}

/// Builds the body of an activation that failed by an `error` frame: `{"error":…}`, as an action of any
/// version reports a failure.
#[must_use]
pub fn failure(error: &[u8]) -> Answer {
    let mut body = Vec::with_capacity(error.len() + 10);
    body.extend_from_slice(b"{\"error\":");
    body.extend_from_slice(error);
    body.extend_from_slice(b"}");
    body.into()
}

/// A parser's reason without the line number, which is always 1.
fn column(error: &serde_json::Error) -> String {
    error.to_string().replace(" at line 1 column ", " at column ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_and_arrays_are_answers_and_stay_unchanged() {
        for line in [r#"{"a":1.00,"a":"\u00e9"}"#, "[]", " {} "] {
            assert_eq!(check(Bytes::from(line)).unwrap(), line);
        }
    }

    #[test]
    fn chunks_are_joined_as_text_or_listed() {
        let check = |chunks: &[&'static str], body: &str| {
            let mut gathered = Gathered::default();
            for chunk in chunks {
                assert!(gathered.add(chunk.as_bytes(), 100));
            }
            assert_eq!(gathered.into_answer(), body);
        };
        check(&[], r#"{"body":""}"#);
        check(&[r#""one ""#, r#""tw\u00f6\n""#], r#"{"body":"one tw\u00f6\n"}"#);
        // Two halves of one character.
        check(&[r#""\ud83d""#, r#""\ude00""#], r#"{"body":"\ud83d\ude00"}"#);
        check(&[r#""a""#, "1.00", "{}", "null"], r#"{"chunks":["a",1.00,{},null]}"#);
        let mut gathered = Gathered::default();
        assert!(gathered.add(b"12345", 10) && !gathered.add(b"12345", 10));
    }

    #[test]
    fn anything_else_is_an_error_that_says_why() {
        let problem = |line: &'static [u8]| check(Bytes::from_static(line)).unwrap_err().to_string();
        assert_eq!(problem(b"5"), "the action's answer is a number, not an object or array: `5`");
        assert_eq!(problem(b"\"ok\""), "the action's answer is a string, not an object or array: `\"ok\"`");
        assert_eq!(problem(b"null"), "the action's answer is null, not an object or array: `null`");
        assert_eq!(problem(b"ready"), "the action's answer is not JSON (expected value at column 1): `ready`");
        assert_eq!(problem(b"{} {}"), "the action's answer is not JSON (trailing characters at column 4): `{} {}`");
        assert!(problem(b"{\"a\":\"\xff\"}").contains("invalid UTF-8 at byte 7"));
        assert!(problem(b"{\"a\":NaN}").contains("expected value at column 6"));
    }
}
