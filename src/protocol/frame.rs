//! Frames: what a process of version 2 writes, a JSON object on one line each.
//!
//! Takes one line apart and says what is wrong with it. Knows neither which activations are in
//! flight nor what a frame means for them: that is the ledger's, in [`super::multiplex`].

use bytes::Bytes;
use serde_json::value::RawValue;

use crate::activation::{Object, type_of};
use crate::error::{Error, RequestError};

/// One frame. JSON is sliced from the line as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// What `id` says; nothing when it was left out.
    pub id: Option<Id>,
    /// What the frame brings, or why it brings nothing.
    pub kind: Result<Kind, String>,
}

/// Whose frame it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Id {
    /// The activation of this number.
    Number(u64),
    /// No number that the proxy has ever given.
    Other,
}

/// What a frame brings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// `chunk`: a part of the answer, any JSON.
    Chunk(Bytes),
    /// `result`: the answer, which is yet to be looked at.
    Result(Bytes),
    /// `error`: the activation failed, any JSON.
    Error(Bytes),
    /// `end`: there is nothing besides the chunks.
    End,
    /// `log`: a line of the activation's log.
    Log(String),
}

/// The members of which a frame has exactly one.
const KINDS: [&str; 5] = ["chunk", "result", "error", "end", "log"];

/// Takes one line of the result channel apart.
///
/// # Errors
/// What is wrong with a line that is no JSON object: it cannot say whose it is.
pub fn parse(line: &Bytes) -> Result<Frame, String> {
    let object = Object::parse("frame", line).map_err(|error| match error {
        Error::Request(RequestError::NotJson { reason, .. }) => {
            format!("not JSON ({})", reason.replace(" at line 1 column ", " at column "))
        }
        Error::Request(RequestError::NotAnObject { found, .. }) => format!("{found}, not an object"),
        other => other.to_string(),
    })?;
    let mut id = None;
    let mut kind: Option<(&str, &RawValue)> = None;
    let mut second = None;
    for (name, raw) in object.members {
        if name == "id" {
            id = parse_id(raw.get());
        } else if let Some(name) = KINDS.into_iter().find(|known| *known == name) {
            // Of two members of one name the later one counts, as everywhere.
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
        "end" => return Err(format!("whose `end` is {}, not `true`", type_of(raw.get()))),
        // Whatever somebody logs is worth reading.
        _ => Kind::Log(crate::activation::as_text(raw)),
    })
}

/// `null` is as if it were left out, as in a handshake.
fn parse_id(raw: &str) -> Option<Id> {
    match raw {
        "null" => None,
        // `1.0`, `"1"` and `01` (which is no JSON) are no ids of ours.
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
    fn json_is_sliced_as_it_came() {
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
        // The later one counts.
        check(r#"{"id":1,"id":2,"chunk":1,"chunk":2}"#, number(2), Kind::Chunk("2".into()));
        for other in [r#"{"id":"1","end":true}"#, r#"{"id":1.0,"end":true}"#, r#"{"id":-1,"end":true}"#] {
            check(other, Some(Id::Other), Kind::End);
        }
    }

    #[test]
    fn what_is_no_frame_is_told_apart() {
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
