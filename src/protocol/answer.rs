//! What counts as an answer: one JSON object or array, on one line.

use bytes::Bytes;
use serde_json::value::RawValue;

use crate::activation::{Answer, type_of};
use crate::error::BadAnswer;

/// Checks one line of the result channel.
///
/// # Errors
/// What is wrong with it, with the line itself.
pub fn check(line: Bytes) -> Result<Answer, BadAnswer> {
    let lossy = |line: &[u8]| String::from_utf8_lossy(line).into_owned();
    let not_json = |reason: String| BadAnswer::NotJson { line: lossy(&line), reason };
    let text = std::str::from_utf8(&line)
        .map_err(|error| not_json(format!("invalid UTF-8 at byte {}", error.valid_up_to() + 1)))?;
    let raw: &RawValue = serde_json::from_str(text).map_err(|error| not_json(column(&error)))?;
    match raw.get().as_bytes().first() {
        Some(b'{' | b'[') => Ok(line),
        _ => Err(BadAnswer::WrongType { found: type_of(raw.get()), line: lossy(&line) }),
    }
}

/// A parser's reason without the line number, which is always 1.
fn column(error: &serde_json::Error) -> String {
    error.to_string().replace(" at line 1 column ", " at column ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_and_arrays_are_answers_and_stay_as_they_are() {
        for line in [r#"{"a":1.00,"a":"\u00e9"}"#, "[]", " {} "] {
            assert_eq!(check(Bytes::from(line)).unwrap(), line);
        }
    }

    #[test]
    fn anything_else_is_told_apart() {
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
