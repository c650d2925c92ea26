//! Handshakes and acknowledgements: lines that announce a protocol.
//!
//! Parses one line and checks it against the configured protocol. [`super::detect`] waits for such lines
//! and decides what counts in their absence.

use serde_json::value::RawValue;

use crate::activation::Object;
use crate::error::{Error, HandshakeFault, NearHandshake, StartError};
use crate::process::spawn::ResultChannel;

use super::Protocol;
use super::pipe_loop::Payload;

/// The shortest handshake of version 1, for messages.
const HANDSHAKE_1: &str = r#"{"openwhisk":1}"#;
/// The shortest handshake of version 2, for messages.
const HANDSHAKE_2: &str = r#"{"openwhisk":2}"#;
/// An acknowledgement, for messages.
pub(super) const ACK: &str = r#"{"ok":true}"#;

/// What a handshake of version 2 promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Promises {
    /// How many activations the process takes at once.
    pub concurrency: usize,
    /// It wants a `cancel` for an activation whose caller has gone.
    pub cancel: bool,
    /// It stops writing for an activation between `pause` and `resume`.
    pub pause: bool,
    /// It wants a `stop` before its input ends.
    pub stop: bool,
}

/// The largest `concurrency` that a handshake may declare. A larger number would be a mistake.
pub const MAX_CONCURRENT: usize = 1024;

/// Whether a line is a handshake of any version.
#[must_use]
pub fn is_handshake(line: &[u8]) -> bool {
    Handshake::parse(line).is_some_and(|handshake| handshake.version.is_some())
}

/// The version that a handshake announces, with what it asks for and promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Announced {
    /// Version 1.
    Version1(Payload),
    /// Version 2.
    Version2(Promises),
}

/// The handshake that a protocol requires when it is configured by name.
pub(super) fn required_handshake(protocol: Protocol) -> Option<&'static str> {
    match protocol {
        Protocol::PipeLoop => Some(HANDSHAKE_1),
        Protocol::Streams => Some(HANDSHAKE_2),
        Protocol::SingleShot | Protocol::ActionLoop | Protocol::Filter | Protocol::Auto => None,
    }
}

/// Recognises a line that was meant as a handshake, but is none.
///
/// The name has to be the first member of an object, and its value has to begin with a digit: a log line that only
/// mentions the name is none of them.
#[must_use]
pub fn nearly_handshake(line: &[u8]) -> Option<NearHandshake> {
    /// The longest line that is looked at.
    const MAX_LINE: usize = 1024;
    const NAME: &[u8] = b"openwhisk";
    if line.len() > MAX_LINE {
        return None;
    }
    // A character of UTF-16 that is in ASCII has a byte of 0.
    let text: Vec<u8> = line.iter().copied().filter(|byte| *byte != 0).collect();
    let at = memchr::memmem::find(&text.to_ascii_lowercase(), NAME)?;
    // Quotes of several languages and of typography (U+2018 to U+201D), and white space.
    let is_quote = |byte: &u8| matches!(byte, b'"' | b'\'' | b'`' | b'\\' | b' ' | b'\t' | 0xe2 | 0x80 | 0x98..=0x9d);
    let quotes = |bytes: &[u8]| bytes.iter().take_while(|byte| is_quote(byte)).count();
    let before = &text[..at];
    let before = &before[..before.len() - before.iter().rev().take_while(|byte| is_quote(byte)).count()];
    let after = &text[at + NAME.len()..];
    let after = &after[quotes(after)..];
    let after = after.strip_prefix(b"=>").or_else(|| after.strip_prefix(b":")).or_else(|| after.strip_prefix(b"="))?;
    let value = &after[quotes(after)..];
    let digits = value.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let ends = value.get(digits).is_none_or(|byte| is_quote(byte) || matches!(byte, b',' | b'}'));
    if digits == 0 || !ends {
        return None;
    }
    let expected = if &value[..digits] == b"2" { HANDSHAKE_2 } else { HANDSHAKE_1 };
    let is_json = Object::parse(&text).is_ok();
    let fault = match before.strip_suffix(b"{") {
        _ if text.len() < line.len() => HandshakeFault::Utf16,
        None if before.is_empty() => HandshakeFault::Broken,
        None => return None,
        Some([0xef, 0xbb, 0xbf]) => HandshakeFault::ByteOrderMark,
        Some([]) if &text[at..at + NAME.len()] != NAME => HandshakeFault::Name,
        // A later member of a JSON log line.
        _ if is_json => return None,
        Some([]) => match serde_json::Deserializer::from_slice(&text).into_iter::<serde::de::IgnoredAny>().next()? {
            Ok(_) => HandshakeFault::TextAfter,
            Err(error) if error.is_eof() => HandshakeFault::Broken,
            Err(_) => HandshakeFault::NotJson,
        },
        Some(before) if before.iter().all(|byte| is_quote(byte) || *byte == b'[') => HandshakeFault::Wrapped,
        Some(_) => HandshakeFault::TextBefore,
    };
    Some(NearHandshake { expected, line: line.to_vec(), fault })
}

/// A line that has not ended, or came at the wrong time or place, if it is or was meant as a handshake.
pub(super) fn misplaced_handshake(line: &[u8], fault: HandshakeFault) -> Option<NearHandshake> {
    let handshake = Handshake::parse(line);
    let expected = match &handshake {
        Some(Handshake { version: Some(version), .. }) if version.get() == "2" => HANDSHAKE_2,
        Some(Handshake { version: Some(_), .. }) => HANDSHAKE_1,
        _ => return nearly_handshake(line),
    };
    Some(NearHandshake { expected, line: line.to_vec(), fault })
}

/// As [`misplaced_handshake`], for an acknowledgement.
pub(super) fn misplaced_acknowledgement(line: &[u8], fault: HandshakeFault) -> Option<NearHandshake> {
    let acknowledges = Handshake::parse(line).is_some_and(|handshake| handshake.acknowledges());
    acknowledges.then(|| NearHandshake { expected: ACK, line: line.to_vec(), fault })
}

/// The error for a line that is not the required handshake or acknowledgement.
pub(super) fn wrong_first_line(expected: &'static str, line: &[u8], channel: ResultChannel) -> Error {
    if let Some(near) = nearly_handshake(line)
        && expected != ACK
    {
        return Error::Start(StartError::NearlyHandshake { near: NearHandshake { expected, ..near } });
    }
    let line = String::from_utf8_lossy(line).into_owned();
    Error::Start(StartError::WrongFirstLine { expected, line, channel })
}

/// A handshake or an acknowledgement. Unknown members are ignored, so that later versions can add some. A
/// known member that is `null` counts as left out.
pub(super) struct Handshake<'a> {
    line: &'a [u8],
    /// `openwhisk`: the version of the protocol.
    pub(super) version: Option<&'a RawValue>,
    /// `context`: whether the process wants whole activations in place of bare arguments.
    context: Option<&'a RawValue>,
    /// The promises of version 2.
    concurrency: Option<&'a RawValue>,
    cancel: Option<&'a RawValue>,
    pause: Option<&'a RawValue>,
    stop: Option<&'a RawValue>,
    /// `ok`: the actionloop dialect's acknowledgement.
    ok: Option<&'a RawValue>,
}

impl<'a> Handshake<'a> {
    /// Parses a line. `None` if it is neither a handshake nor an acknowledgement.
    pub(super) fn parse(line: &'a [u8]) -> Option<Self> {
        // White space around JSON means nothing.
        let line = line.trim_ascii();
        // Most log lines need not be parsed.
        if !line.starts_with(b"{") {
            return None;
        }
        let mut handshake = Self {
            line,
            version: None,
            context: None,
            concurrency: None,
            cancel: None,
            pause: None,
            stop: None,
            ok: None,
        };
        for (name, raw) in Object::parse(line).ok()?.members {
            let known = match &*name {
                "openwhisk" => &mut handshake.version,
                "context" => &mut handshake.context,
                "concurrency" => &mut handshake.concurrency,
                "cancel" => &mut handshake.cancel,
                "pause" => &mut handshake.pause,
                "stop" => &mut handshake.stop,
                "ok" => &mut handshake.ok,
                _ => continue,
            };
            *known = Some(raw).filter(|raw| raw.get() != "null");
        }
        (handshake.version.is_some() || handshake.ok.is_some()).then_some(handshake)
    }

    /// Whether this is an acknowledgement: `"ok":true`.
    pub(super) fn acknowledges(&self) -> bool {
        self.ok.is_some_and(|ok| ok.get() == "true")
    }

    /// The version that the handshake announces on `channel`, if the configured `protocol` allows it.
    pub(super) fn announced(&self, channel: ResultChannel, protocol: Protocol) -> Result<Announced, Error> {
        let version = self.version.map_or("", RawValue::get);
        match (version, required_handshake(protocol)) {
            ("1", Some(handshake @ HANDSHAKE_2)) | ("2", Some(handshake @ HANDSHAKE_1)) => {
                Err(wrong_first_line(handshake, self.line, channel))
            }
            ("1", _) => {
                let payload =
                    if self.flag("context", self.context)? { Payload::Activation } else { Payload::Arguments };
                Ok(Announced::Version1(payload))
            }
            ("2", _) => Ok(Announced::Version2(self.promises()?)),
            _ if version.trim_start_matches('-').bytes().all(|byte| byte.is_ascii_digit()) => {
                Err(Error::Start(StartError::UnsupportedVersion { version: crate::text::excerpt(version.as_bytes()) }))
            }
            _ => Err(self.bad_member("openwhisk", "a version, which is a whole number", version)),
        }
    }

    fn promises(&self) -> Result<Promises, Error> {
        let concurrency = match self.concurrency {
            None => 1,
            Some(raw) => raw
                .get()
                .parse()
                .ok()
                .filter(|count| (1..=MAX_CONCURRENT).contains(count))
                .ok_or_else(|| self.bad_member("concurrency", "a whole number from 1 to 1024", raw.get()))?,
        };
        Ok(Promises {
            concurrency,
            cancel: self.flag("cancel", self.cancel)?,
            pause: self.flag("pause", self.pause)?,
            stop: self.flag("stop", self.stop)?,
        })
    }

    fn flag(&self, member: &'static str, raw: Option<&RawValue>) -> Result<bool, Error> {
        match raw.map_or("false", RawValue::get) {
            "true" => Ok(true),
            "false" => Ok(false),
            other => Err(self.bad_member(member, "`true` or `false`", other)),
        }
    }

    fn bad_member(&self, member: &'static str, expected: &'static str, found: &str) -> Error {
        let line = String::from_utf8_lossy(self.line).into_owned();
        Error::Start(StartError::BadHandshake { member, expected, found: crate::text::excerpt(found.as_bytes()), line })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn promises_of_version_2_are_checked() {
        let promises = |line: &str| match Handshake::parse(line.as_bytes())
            .unwrap()
            .announced(ResultChannel::Stdout, Protocol::Auto)
        {
            Ok(Announced::Version2(promises)) => Ok(promises),
            Ok(other) => panic!("{other:?}"),
            Err(error) => Err((error.code(), error.to_string())),
        };
        let none = Promises { concurrency: 1, cancel: false, pause: false, stop: false };
        assert_eq!(promises(r#"{"openwhisk":2}"#), Ok(none));
        assert_eq!(promises(r#"{"openwhisk":2,"concurrency":null,"more":[]}"#), Ok(none));
        assert_eq!(
            promises(r#"{"openwhisk":2,"concurrency":1024,"cancel":true,"pause":true,"stop":true}"#),
            Ok(Promises { concurrency: 1024, cancel: true, pause: true, stop: true })
        );
        for value in ["0", "1025", "-1", "1.5", "1e3", "1e9", "99999999999999999999", r#""many""#, "true", "[]", "{}"] {
            let (code, sentence) = promises(&format!(r#"{{"openwhisk":2,"concurrency":{value}}}"#)).unwrap_err();
            assert_eq!(code, "PL056");
            let expected =
                format!("`concurrency` of the action's handshake must be a whole number from 1 to 1024, got `{value}`");
            assert!(sentence.starts_with(&expected), "{sentence}");
        }
        for member in ["cancel", "pause", "stop"] {
            for value in ["1", r#""true""#, "{}"] {
                let (code, sentence) = promises(&format!(r#"{{"openwhisk":2,"{member}":{value}}}"#)).unwrap_err();
                assert!(code == "PL056" && sentence.starts_with(&format!("`{member}` ")), "{sentence}");
            }
        }
    }

    #[test]
    fn a_line_that_is_nearly_a_handshake_is_recognised() {
        use HandshakeFault::{Broken, ByteOrderMark, Name, NotJson, TextAfter, TextBefore, Utf16, Wrapped};
        let utf16 = |text: &str, swap: bool| -> Vec<u8> {
            let units = text.encode_utf16();
            units.flat_map(|unit| if swap { unit.to_be_bytes() } else { unit.to_le_bytes() }).collect()
        };
        for (line, fault) in [
            (&b"{'openwhisk': 1}"[..], NotJson),
            (b"{openwhisk:1}", NotJson),
            (b"{ openwhisk: 2 }", NotJson),
            (b"{\"openwhisk\"=>1}", NotJson),
            ("{\u{201c}openwhisk\u{201d}: 1}".as_bytes(), NotJson),
            (b"{\"openwhisk\":1,}", NotJson),
            (b"\xef\xbb\xbf{\"openwhisk\":1}", ByteOrderMark),
            (&utf16("\u{feff}{\"openwhisk\":1}", false), Utf16),
            (&utf16("{\"openwhisk\":1}", true), Utf16),
            (b"Welcome! {\"openwhisk\":1}", TextBefore),
            (b"\x1b[2J{\"openwhisk\":1}", TextBefore),
            (b"{\"openwhisk\":1} # ready", TextAfter),
            (b"{\"openwhisk\":1};", TextAfter),
            (b"'{\"openwhisk\":1}'", Wrapped),
            (br#""{\"openwhisk\":1}""#, Wrapped),
            (b"[{\"openwhisk\":1}]", Wrapped),
            (b"{\"OpenWhisk\":1}", Name),
            (b"{\"openwhisk\": 1", Broken),
            (b"  \"openwhisk\": 1", Broken),
        ] {
            assert!(!is_handshake(line), "{}", line.escape_ascii());
            let near = nearly_handshake(line).unwrap_or_else(|| panic!("{}", line.escape_ascii()));
            assert_eq!(near.fault, fault, "{}", line.escape_ascii());
            let expected = if line.contains(&b'2') && fault == NotJson { HANDSHAKE_2 } else { HANDSHAKE_1 };
            assert_eq!(near.expected, expected, "{}", line.escape_ascii());
        }
        for log in [
            "openwhisk",
            "the openwhisk: 1 of many",
            "openwhisk: 1.2.3 is running",
            r#"{"level":"info","handshake":{"openwhisk":1}}"#,
            r#"{"level":"info","openwhisk":"yes"}"#,
            r#"{"message":"sent {\"openwhisk\":1}"}"#,
            "{'openwhisk': 'yes'}",
            "openwhisk=on",
        ] {
            assert_eq!(nearly_handshake(log.as_bytes()), None, "{log}");
        }
    }

    #[test]
    fn a_protocol_set_by_name_accepts_only_its_own_handshake() {
        let code = |version: u8, protocol: Protocol| {
            let line = format!(r#"{{"openwhisk":{version}}}"#);
            Handshake::parse(line.as_bytes())
                .unwrap()
                .announced(ResultChannel::Stdout, protocol)
                .map_err(|error| error.code())
                .err()
        };
        assert_eq!(code(2, Protocol::PipeLoop), Some("PL053"));
        assert_eq!(code(1, Protocol::Streams), Some("PL053"));
        assert_eq!(code(9, Protocol::Streams), Some("PL054"));
        assert_eq!((code(1, Protocol::PipeLoop), code(2, Protocol::Streams)), (None, None));
    }

    #[test]
    fn unknown_members_of_a_handshake_are_ignored() {
        let announced = |line: &str| {
            Handshake::parse(line.as_bytes())
                .map(|handshake| handshake.announced(ResultChannel::Stdout, Protocol::Auto))
        };
        let arguments = Announced::Version1(Payload::Arguments);
        let activation = Announced::Version1(Payload::Activation);
        assert_eq!(announced(r#"{"openwhisk":1}"#).unwrap().unwrap(), arguments);
        assert_eq!(announced(r#"{ "openwhisk" : 1 , "name":"x"}"#).unwrap().unwrap(), arguments);
        assert_eq!(announced(" \t{\"openwhisk\":1}\r").unwrap().unwrap(), arguments);
        assert_eq!(announced(r#"{"openwhisk":1,"context":true}"#).unwrap().unwrap(), activation);
        assert_eq!(announced(r#"{"openwhisk":9}"#).unwrap().unwrap_err().code(), "PL054");
        assert_eq!(announced(r#"{"openwhisk":1,"context":null}"#).unwrap().unwrap(), arguments);
        for wrong in [
            r#"{"openwhisk":"1"}"#,
            r#"{"openwhisk":1.5}"#,
            r#"{"openwhisk":[1]}"#,
            r#"{"openwhisk":true}"#,
            r#"{"openwhisk":1,"context":"yes"}"#,
            r#"{"openwhisk":1,"context":1}"#,
        ] {
            let error = announced(wrong).unwrap().unwrap_err();
            assert_eq!(error.code(), "PL056", "{wrong}");
            assert!(error.to_string().ends_with(&format!(": `{wrong}`")), "{error}");
        }
        // In an unknown version a known member may have any type.
        assert_eq!(announced(r#"{"openwhisk":9,"context":"yes"}"#).unwrap().unwrap_err().code(), "PL054");
        assert!(announced(r#"{"hello":"world"}"#).is_none());
        assert!(announced(r#"{"context":"yes"}"#).is_none());
        assert!(announced(r#"{"openwhisk":null}"#).is_none());
        assert!(announced(r#"{"openwhisk":1"#).is_none());
        assert!(announced("ready").is_none());
        assert!(announced("{}").is_none());
    }
}
