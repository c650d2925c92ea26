//! Frames: the lines that a process of version 2 writes, each one JSON object.
//!
//! Parses one line and says what is wrong with it. Knows neither which activations are in flight nor
//! what a frame means for them: that is [`super::ledger`]'s.

use bytes::Bytes;
use serde_json::value::RawValue;

use crate::activation::{BadObject, Object};
use crate::error::JsonType;

/// One frame. Its JSON is sliced from the line and unchanged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// The member `id`; `None` when it was left out.
    pub id: Option<Id>,
    /// What the frame carries, or why it is malformed.
    pub kind: Result<Kind, String>,
}

/// Which activation a frame is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Id {
    /// The activation of this number.
    Number(u64),
    /// An id that the proxy never assigns.
    Other,
}

/// What a frame carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// `chunk`: a part of the answer, any JSON.
    Chunk(Bytes),
    /// `result`: the answer, not checked yet.
    Result(Bytes),
    /// `error`: the activation failed, any JSON.
    Error(Bytes),
    /// `end`: the chunks are the whole answer.
    End,
    /// `log`: a line of the activation's log.
    Log(String),
}

/// The members of which a frame must have exactly one.
const KINDS: [&str; 5] = ["chunk", "result", "error", "end", "log"];

/// Parses one line of the result channel.
///
/// # Errors
/// Why the line is no JSON object. Such a line has no id.
pub fn parse(line: &Bytes) -> Result<Frame, String> {
    let object = Object::parse(line).map_err(|bad| match bad {
        BadObject::NotJson { reason } => format!("not JSON ({})", reason.replace(" at line 1 column ", " at column ")),
        BadObject::OtherType { found } => format!("{found}, not an object"),
        BadObject::Empty => "that is empty".into(),
    })?;
    let mut id = None;
    let mut kind: Option<(&str, &RawValue)> = None;
    let mut second = None;
    for (name, raw) in object.members {
        if name == "id" {
            id = parse_id(raw.get());
        } else if let Some(name) = KINDS.into_iter().find(|known| *known == name) {
            // Of two members with one name the later counts, as everywhere.
            match kind {
                Some((first, _)) if first != name => second = Some((first, name)),
                _ => kind = Some((name, raw)),
            }
        }
    }
    let kind = match (kind, second) {
        (_, Some((first, second))) => Err(format!("with both `{first}` and `{second}`")),
        (None, None) => Err(format!("with none of `{}`", KINDS.join("`, `"))),
        (Some((name, raw)), None) => kind_of(name, raw, line),
    };
    Ok(Frame { id, kind })
}

fn kind_of(name: &str, raw: &RawValue, line: &Bytes) -> Result<Kind, String> {
    let json = || line.slice_ref(raw.get().as_bytes());
    Ok(match name {
        "chunk" => Kind::Chunk(json()),
        "result" => Kind::Result(json()),
        "error" => Kind::Error(json()),
        "end" if raw.get() == "true" => Kind::End,
        "end" => return Err(format!("whose `end` is {}, not `true`", JsonType::of(raw.get()))),
        // A log frame may hold any JSON.
        _ => Kind::Log(crate::activation::as_text(raw)),
    })
}

/// Parses an id. `null` counts as left out, as in a handshake.
fn parse_id(raw: &str) -> Option<Id> {
    match raw {
        "null" => None,
        // The proxy never assigns `1.0` or `"1"`.
        _ => Some(raw.parse().map_or(Id::Other, Id::Number)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(line: &'static str) -> Frame {
        parse(&Bytes::from_static(line.as_bytes())).expect(line)
    }

    #[test]
    fn json_is_sliced_unchanged() {
        let number = |id| Some(Id::Number(id));
        let check = |line, id, kind| assert_eq!(frame(line), Frame { id, kind: Ok(kind) });
        check(
            r#"{"id":1,"chunk": {"b":1.00,"b":"\u00e9"} }"#,
            number(1),
            Kind::Chunk(r#"{"b":1.00,"b":"\u00e9"}"#.into()),
        );
        check(r#"{"chunk":null}"#, None, Kind::Chunk("null".into()));
        check(r#"{"result":[1],"id":18446744073709551615}"#, number(u64::MAX), Kind::Result("[1]".into()));
        check(r#"{"id":null,"error":"no"}"#, None, Kind::Error("\"no\"".into()));
        check(r#"{"id":2,"end":true,"more":{"chunk":1}}"#, number(2), Kind::End);
        check(r#"{"id":2,"log":"a\nb"}"#, number(2), Kind::Log("a\nb".into()));
        check(r#"{"log":{"a":1}}"#, None, Kind::Log(r#"{"a":1}"#.into()));
        // The later member counts.
        check(r#"{"id":1,"id":2,"chunk":1,"chunk":2}"#, number(2), Kind::Chunk("2".into()));
        for other in [r#"{"id":"1","end":true}"#, r#"{"id":1.0,"end":true}"#, r#"{"id":-1,"end":true}"#] {
            check(other, Some(Id::Other), Kind::End);
        }
    }

    #[test]
    fn a_malformed_frame_is_an_error_that_says_why() {
        let problem = |line: &'static str| frame(line).kind.unwrap_err();
        assert_eq!(problem(r#"{"id":1,"chunk":1,"end":true}"#), "with both `chunk` and `end`");
        assert_eq!(problem(r#"{"id":1,"chnk":1}"#), "with none of `chunk`, `result`, `error`, `end`, `log`");
        assert_eq!(problem(r#"{"end":false}"#), "whose `end` is a boolean, not `true`");
        let no_object = |line: &'static [u8]| parse(&Bytes::from_static(line)).unwrap_err();
        assert_eq!(no_object(b"ready"), "not JSON (expected value at column 1)");
        assert_eq!(no_object(b"{\"a\":"), "not JSON (EOF while parsing a value at column 5)");
        assert_eq!(no_object(b"[1]"), "an array, not an object");
        assert!(no_object(b"{\"a\":\"\xff\"}").contains("invalid UTF-8 at byte 7"));
    }
}
