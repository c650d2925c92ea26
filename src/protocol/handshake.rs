//! Handshakes and acknowledgements: what a line that announces a protocol says.
//!
//! Parses one line and checks it against the protocol that was asked for. When a handshake is awaited,
//! and what decides in its absence, is [`super::detect`]'s.

use serde_json::value::RawValue;

use crate::activation::Object;
use crate::error::{Error, StartError};
use crate::process::spawn::ResultChannel;

use super::Protocol;
use super::detect::Evidence;
use super::pipe_loop::Sends;

/// What a handshake must look like, for messages.
pub(super) const HANDSHAKE: &str = r#"{"openwhisk":1}"#;
pub(super) const HANDSHAKE_2: &str = r#"{"openwhisk":2}"#;
/// What an acknowledgement must look like, for messages.
pub(super) const ACK: &str = r#"{"ok":true}"#;

/// What a handshake of version 2 promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Promises {
    /// How many activations it takes at once.
    pub concurrency: usize,
    /// It wants to hear of activations that nobody waits for any more.
    pub cancel: bool,
    /// It stops writing for an activation while it is asked to.
    pub pause: bool,
    /// It wants to hear of the end before its input ends.
    pub stop: bool,
}

/// More at once would be a mistake.
pub const MAX_CONCURRENT: usize = 1024;

/// Whether a line is a handshake, of whatever version.
#[must_use]
pub fn is_handshake(line: &[u8]) -> bool {
    Hello::parse(line).is_some_and(|hello| hello.version.is_some())
}

/// What the evidence says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Version1 { channel: ResultChannel, sends: Sends },
    Version2 { channel: ResultChannel, promises: Promises },
    ActionLoop(Evidence),
}

/// The handshake without which a protocol that was asked for by name does not begin.
pub(super) fn demanded(protocol: Protocol) -> Option<&'static str> {
    match protocol {
        Protocol::PipeLoop => Some(HANDSHAKE),
        Protocol::Streams => Some(HANDSHAKE_2),
        Protocol::SingleShot | Protocol::ActionLoop | Protocol::Auto => None,
    }
}

pub(super) fn wrong_first_line(expected: &'static str, line: &[u8], channel: ResultChannel) -> Error {
    let line = String::from_utf8_lossy(line).into_owned();
    Error::Start(StartError::WrongFirstLine { expected, line, channel: channel.name() })
}

/// A handshake or acknowledgement. Members that are not known are ignored, so that it can grow; of
/// those that are, `null` is as if it were left out.
pub(super) struct Hello<'a> {
    line: &'a [u8],
    /// The version of the protocol.
    pub(super) version: Option<&'a RawValue>,
    /// Whether whole activations are wanted in place of bare arguments.
    context: Option<&'a RawValue>,
    /// What version 2 promises.
    concurrency: Option<&'a RawValue>,
    cancel: Option<&'a RawValue>,
    pause: Option<&'a RawValue>,
    stop: Option<&'a RawValue>,
    /// The dialect's acknowledgement.
    ok: Option<&'a RawValue>,
}

impl<'a> Hello<'a> {
    /// `None` for a line that is neither handshake nor acknowledgement.
    pub(super) fn parse(line: &'a [u8]) -> Option<Self> {
        // A log line is passed over without being parsed.
        if !line.starts_with(b"{") {
            return None;
        }
        let mut hello = Self {
            line,
            version: None,
            context: None,
            concurrency: None,
            cancel: None,
            pause: None,
            stop: None,
            ok: None,
        };
        for (name, raw) in Object::parse("handshake", line).ok()?.members {
            let known = match &*name {
                "openwhisk" => &mut hello.version,
                "context" => &mut hello.context,
                "concurrency" => &mut hello.concurrency,
                "cancel" => &mut hello.cancel,
                "pause" => &mut hello.pause,
                "stop" => &mut hello.stop,
                "ok" => &mut hello.ok,
                _ => continue,
            };
            *known = Some(raw).filter(|raw| raw.get() != "null");
        }
        (hello.version.is_some() || hello.ok.is_some()).then_some(hello)
    }

    pub(super) fn acknowledges(&self) -> bool {
        self.ok.is_some_and(|ok| ok.get() == "true")
    }

    /// What it says, if `protocol`, which was asked for, lets it say that.
    pub(super) fn verdict(&self, channel: ResultChannel, protocol: Protocol) -> Result<Verdict, Error> {
        let version = self.version.map_or("", RawValue::get);
        match (version, demanded(protocol)) {
            ("1", Some(handshake @ HANDSHAKE_2)) | ("2", Some(handshake @ HANDSHAKE)) => {
                Err(wrong_first_line(handshake, self.line, channel))
            }
            ("1", _) => {
                let sends = if self.flag("context", self.context)? { Sends::Activation } else { Sends::Arguments };
                Ok(Verdict::Version1 { channel, sends })
            }
            ("2", _) => Ok(Verdict::Version2 { channel, promises: self.promises()? }),
            _ if version.trim_start_matches('-').bytes().all(|byte| byte.is_ascii_digit()) => {
                Err(Error::Start(StartError::UnsupportedVersion { version: crate::text::excerpt(version.as_bytes()) }))
            }
            _ => Err(self.bad("openwhisk", "a version, which is a whole number", version)),
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
                .ok_or_else(|| self.bad("concurrency", "a whole number from 1 to 1024", raw.get()))?,
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
            other => Err(self.bad(member, "`true` or `false`", other)),
        }
    }

    fn bad(&self, member: &'static str, expected: &'static str, found: &str) -> Error {
        let line = String::from_utf8_lossy(self.line).into_owned();
        Error::Start(StartError::BadHandshake { member, expected, found: crate::text::excerpt(found.as_bytes()), line })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_2_promises_what_can_be_kept() {
        let promises =
            |line: &str| match Hello::parse(line.as_bytes()).unwrap().verdict(ResultChannel::Stdout, Protocol::Auto) {
                Ok(Verdict::Version2 { promises, .. }) => Ok(promises),
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
        for nonsense in
            ["0", "1025", "-1", "1.5", "1e3", "1e9", "99999999999999999999", r#""many""#, "true", "[]", "{}"]
        {
            let (code, sentence) = promises(&format!(r#"{{"openwhisk":2,"concurrency":{nonsense}}}"#)).unwrap_err();
            assert_eq!(code, "PL056");
            let expected = format!(
                "`concurrency` of the action's handshake must be a whole number from 1 to 1024, got `{nonsense}`"
            );
            assert!(sentence.starts_with(&expected), "{sentence}");
        }
        for member in ["cancel", "pause", "stop"] {
            for nonsense in ["1", r#""true""#, "{}"] {
                let (code, sentence) = promises(&format!(r#"{{"openwhisk":2,"{member}":{nonsense}}}"#)).unwrap_err();
                assert!(code == "PL056" && sentence.starts_with(&format!("`{member}` ")), "{sentence}");
            }
        }
    }

    #[test]
    fn a_protocol_by_name_wants_its_own_handshake() {
        let code = |version: u8, protocol: Protocol| {
            let line = format!(r#"{{"openwhisk":{version}}}"#);
            Hello::parse(line.as_bytes())
                .unwrap()
                .verdict(ResultChannel::Stdout, protocol)
                .map_err(|error| error.code())
                .err()
        };
        assert_eq!(code(2, Protocol::PipeLoop), Some("PL053"));
        assert_eq!(code(1, Protocol::Streams), Some("PL053"));
        assert_eq!(code(9, Protocol::Streams), Some("PL054"));
        assert_eq!((code(1, Protocol::PipeLoop), code(2, Protocol::Streams)), (None, None));
    }

    #[test]
    fn handshakes_may_grow() {
        let verdict = |line: &str| {
            Hello::parse(line.as_bytes()).map(|hello| hello.verdict(ResultChannel::Stdout, Protocol::Auto))
        };
        let arguments = Verdict::Version1 { channel: ResultChannel::Stdout, sends: Sends::Arguments };
        let activation = Verdict::Version1 { channel: ResultChannel::Stdout, sends: Sends::Activation };
        assert_eq!(verdict(r#"{"openwhisk":1}"#).unwrap().unwrap(), arguments);
        assert_eq!(verdict(r#"{ "openwhisk" : 1 , "name":"x"}"#).unwrap().unwrap(), arguments);
        assert_eq!(verdict(r#"{"openwhisk":1,"context":true}"#).unwrap().unwrap(), activation);
        assert_eq!(verdict(r#"{"openwhisk":9}"#).unwrap().unwrap_err().code(), "PL054");
        assert_eq!(verdict(r#"{"openwhisk":1,"context":null}"#).unwrap().unwrap(), arguments);
        for wrong in [
            r#"{"openwhisk":"1"}"#,
            r#"{"openwhisk":1.5}"#,
            r#"{"openwhisk":[1]}"#,
            r#"{"openwhisk":true}"#,
            r#"{"openwhisk":1,"context":"yes"}"#,
            r#"{"openwhisk":1,"context":1}"#,
        ] {
            let error = verdict(wrong).unwrap().unwrap_err();
            assert_eq!(error.code(), "PL056", "{wrong}");
            assert!(error.to_string().ends_with(&format!(": `{wrong}`")), "{error}");
        }
        // Members of a version that is not known here may be of any type.
        assert_eq!(verdict(r#"{"openwhisk":9,"context":"yes"}"#).unwrap().unwrap_err().code(), "PL054");
        assert!(verdict(r#"{"hello":"world"}"#).is_none());
        assert!(verdict(r#"{"context":"yes"}"#).is_none());
        assert!(verdict(r#"{"openwhisk":null}"#).is_none());
        assert!(verdict(r#"{"openwhisk":1"#).is_none());
        assert!(verdict("ready").is_none());
        assert!(verdict("{}").is_none());
    }
}
