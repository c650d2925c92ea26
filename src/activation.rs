//! One activation and its answer: plain data, sliced from the request body and never rebuilt.
//!
//! JSON text passes through unchanged: numbers, key order, duplicate keys and escapes stay as the sender
//! wrote them. Only raw newlines between tokens become spaces, since a message is one line.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::error::{Error, JsonType, RequestError, RequestKind};

/// An activation as a caller sent it: `{"value":…, other members}`.
#[derive(Debug, Default)]
pub struct Activation {
    /// The whole body, with space for the newline that ends a message.
    body: Vec<u8>,
    /// The range of `value` in `body`; empty if the request has none.
    value: Range<usize>,
    /// `deadline`, in milliseconds since the epoch.
    pub deadline_epoch_ms: Option<u64>,
}

/// An answer: one JSON object or array on one line, without the newline.
pub type Answer = Bytes;

/// The arguments of an activation without any.
const NO_ARGUMENTS: &[u8] = b"{}\n";

impl Activation {
    /// Parses the body of a run request.
    ///
    /// # Errors
    /// [`RequestError::EmptyBody`], [`RequestError::NotJson`], [`RequestError::NotAnObject`], and
    /// [`RequestError::BadArguments`] if `value` is neither an object nor an array.
    pub fn parse(mut body: Vec<u8>) -> Result<Self, Error> {
        let object = Object::parse(&body).map_err(|bad| bad.in_body_of(RequestKind::Run))?;
        let mut value = 0..0;
        let mut deadline_epoch_ms = None;
        for (name, raw) in object.members {
            match &*name {
                "value" => value = span(&body, raw),
                "deadline" => deadline_epoch_ms = epoch_ms(raw.get()),
                _ => {}
            }
        }
        if value.is_empty() || &body[value.clone()] == b"null" {
            value = 0..0;
        } else if !matches!(body[value.start], b'{' | b'[') {
            return Err(Error::Request(RequestError::BadArguments));
        }
        join_lines(&mut body);
        Ok(Self { body, value, deadline_epoch_ms })
    }

    /// An activation with these arguments and no other member.
    ///
    /// # Errors
    /// As [`Activation::parse`].
    pub fn of_arguments(arguments: &[u8]) -> Result<Self, Error> {
        let mut body = Vec::with_capacity(arguments.len() + 16);
        body.extend_from_slice(b"{\"value\":");
        body.extend_from_slice(arguments);
        body.extend_from_slice(b"}");
        Self::parse(body)
    }

    /// The arguments as a message: one JSON object or array and LF. `{}` if the request has none.
    pub fn arguments_line(&mut self) -> &[u8] {
        if self.value.is_empty() {
            return NO_ARGUMENTS;
        }
        // `value` is a member of an object, so a byte follows it, and no later step needs that byte.
        // Overwriting it saves a copy of a payload that may be large.
        self.body[self.value.end] = b'\n';
        &self.body[self.value.start..=self.value.end]
    }

    /// The arguments as text, without the newline: `argv[1]` of version 0.
    #[must_use]
    pub fn arguments(&self) -> &[u8] {
        if self.value.is_empty() { &NO_ARGUMENTS[..2] } else { &self.body[self.value.clone()] }
    }

    /// The whole activation as a message: `{"value":…,"activation_id":…}` and LF.
    pub fn whole_line(&mut self) -> &[u8] {
        self.body.truncate(self.body.trim_ascii_end().len());
        self.body.push(b'\n');
        &self.body
    }

    /// The activation as a frame of version 2: `{"run":ID,"value":…,"context":{…},"deadline_ms":…}`
    /// and LF. `context` holds every other member unchanged. There is no `deadline_ms` if the
    /// request has no deadline.
    #[must_use]
    pub fn run_frame(&self, id: u64) -> Vec<u8> {
        let mut frame = Vec::with_capacity(self.body.len() + 80);
        frame.extend_from_slice(format!("{{\"run\":{id},\"value\":").as_bytes());
        frame.extend_from_slice(self.arguments());
        frame.extend_from_slice(b",\"context\":{");
        // Parsed without the arguments, which may be large.
        let mut rest = Vec::with_capacity(self.body.len() - self.value.len() + 4);
        rest.extend_from_slice(&self.body[..self.value.start]);
        if self.value.is_empty() {
            rest.extend_from_slice(&self.body[self.value.end..]);
        } else {
            rest.extend_from_slice(b"null");
            rest.extend_from_slice(&self.body[self.value.end..]);
        }
        let mut comma = false;
        for member in raw_members(&rest) {
            if std::mem::replace(&mut comma, true) {
                frame.push(b',');
            }
            frame.extend_from_slice(member);
        }
        frame.push(b'}');
        if let Some(deadline) = self.deadline_epoch_ms {
            frame.extend_from_slice(format!(",\"deadline_ms\":{deadline}").as_bytes());
        }
        frame.extend_from_slice(b"}\n");
        frame
    }

    /// The platform's name for the activation: `activation_id`.
    #[must_use]
    pub fn label(&self) -> Option<String> {
        let object = Object::parse(&self.body).ok()?;
        let (_, raw) = object.members.into_iter().rfind(|(name, _)| name == "activation_id")?;
        serde_json::from_str(raw.get()).ok()
    }

    /// Every member but `value`, for the environment of a process that serves one activation:
    /// strings as they are, anything else as its JSON text. `null` is left out.
    #[must_use]
    pub fn context(&self) -> Vec<(String, String)> {
        let Ok(object) = Object::parse(&self.body) else { return Vec::new() };
        object
            .members
            .into_iter()
            .filter(|(name, raw)| name != "value" && raw.get() != "null")
            .map(|(name, raw)| (name.into_owned(), as_text(raw)))
            .collect()
    }

    /// The time left until the deadline. `None` if the request has none, or a past one, which says nothing
    /// about this activation.
    #[must_use]
    pub fn time_to_deadline(&self) -> Option<Duration> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
        Duration::from_millis(self.deadline_epoch_ms?).checked_sub(now).filter(|left| !left.is_zero())
    }
}

/// A JSON object as its members in order, borrowed from its text.
///
/// Of two members with the same name the later one counts, as for nearly every JSON parser. Callers
/// that walk the members in order get this by assigning.
pub(crate) struct Object<'a> {
    pub(crate) members: Vec<(Cow<'a, str>, &'a RawValue)>,
}

impl<'a> Object<'a> {
    /// Parses a text that has to be one JSON object.
    pub(crate) fn parse(body: &'a [u8]) -> Result<Self, BadObject> {
        let not_json = |reason| BadObject::NotJson { reason };
        let text = std::str::from_utf8(body)
            .map_err(|error| not_json(format!("invalid UTF-8 at byte {}", error.valid_up_to() + 1)))?;
        match text.trim_ascii_start().as_bytes().first() {
            None => return Err(BadObject::Empty),
            Some(b'{') => {}
            // The type is only known of well-formed JSON.
            Some(_) => {
                return Err(match serde_json::from_str::<&RawValue>(text) {
                    Ok(raw) => BadObject::OtherType { found: JsonType::of(raw.get()) },
                    Err(error) => not_json(error.to_string()),
                });
            }
        }
        let mut deserializer = serde_json::Deserializer::from_str(text);
        deserializer
            .deserialize_map(Members)
            .and_then(|object| deserializer.end().map(|()| object))
            .map_err(|error| not_json(error.to_string()))
    }
}

/// Why a text is not one JSON object.
#[derive(Debug)]
pub(crate) enum BadObject {
    /// Nothing, or only white space.
    Empty,
    /// Not JSON: the parser's reason.
    NotJson { reason: String },
    /// JSON of another type.
    OtherType { found: JsonType },
}

impl BadObject {
    /// As an error of the body of a request.
    pub(crate) fn in_body_of(self, request: RequestKind) -> RequestError {
        match self {
            Self::Empty => RequestError::EmptyBody { request },
            Self::NotJson { reason } => RequestError::NotJson { request, reason },
            Self::OtherType { found } => RequestError::NotAnObject { request, found },
        }
    }
}

/// Every member of an object but `value`, each from the quote of its name to its end.
fn raw_members(body: &[u8]) -> Vec<&[u8]> {
    let Ok(object) = Object::parse(body) else { return Vec::new() };
    let mut members = Vec::with_capacity(object.members.len());
    let mut from = 0;
    for (name, raw) in object.members {
        let value = span(body, raw);
        // The text before a name is a comma and white space, or the opening brace.
        let quote = memchr::memchr(b'"', &body[from..value.start]).map(|at| from + at);
        if let Some(quote) = quote.filter(|_| name != "value") {
            members.push(&body[quote..value.end]);
        }
        from = value.end;
    }
    members
}

struct Members;

impl<'de> Visitor<'de> for Members {
    type Value = Object<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut members = Vec::with_capacity(8);
        while let Some(Name(name)) = map.next_key()? {
            members.push((name, map.next_value()?));
        }
        Ok(Object { members })
    }
}

/// A member's name, borrowed if it holds no escapes.
struct Name<'a>(Cow<'a, str>);

impl<'de> serde::Deserialize<'de> for Name<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NameVisitor;
        impl<'de> Visitor<'de> for NameVisitor {
            type Value = Name<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a name")
            }
            fn visit_borrowed_str<E>(self, name: &'de str) -> Result<Self::Value, E> {
                Ok(Name(Cow::Borrowed(name)))
            }
            fn visit_str<E>(self, name: &str) -> Result<Self::Value, E> {
                Ok(Name(Cow::Owned(name.to_owned())))
            }
        }
        deserializer.deserialize_str(NameVisitor)
    }
}

/// A member's value for an environment variable: a string as it is, anything else as JSON text. Half of a surrogate
/// pair, which only JSON can express, becomes U+FFFD.
pub(crate) fn as_text(raw: &RawValue) -> String {
    if !raw.get().starts_with('"') {
        return raw.get().to_owned();
    }
    serde_json::from_str::<String>(raw.get())
        .or_else(|_| serde_json::from_str(&without_lone_surrogates(raw.get())))
        .unwrap_or_else(|_| raw.get().to_owned())
}

/// Replaces each escape of a lone surrogate in the text of a JSON string.
fn without_lone_surrogates(text: &str) -> String {
    let unit = |text: &str| u16::from_str_radix(text.strip_prefix("\\u")?.get(..4)?, 16).ok();
    let mut replaced = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        replaced.push_str(&rest[..at]);
        rest = &rest[at..];
        let length = match unit(rest) {
            Some(0xd800..=0xdbff) if matches!(unit(&rest[6..]), Some(0xdc00..=0xdfff)) => 12,
            Some(0xd800..=0xdfff) => {
                replaced.push('\u{fffd}');
                rest = &rest[6..];
                continue;
            }
            Some(_) => 6,
            // An escape of two characters, such as `\\`.
            None => 2,
        };
        replaced.push_str(&rest[..length]);
        rest = &rest[length..];
    }
    replaced + rest
}

/// The range in `body` of a value that is borrowed from it.
fn span(body: &[u8], raw: &RawValue) -> Range<usize> {
    let start = raw.get().as_ptr() as usize - body.as_ptr() as usize;
    start..start + raw.get().len()
}

/// Parses `deadline`, which is a number or a string of digits.
fn epoch_ms(raw: &str) -> Option<u64> {
    raw.trim_matches('"').parse().ok()
}

/// Turns raw newlines into spaces. In valid JSON they are only between tokens.
fn join_lines(body: &mut [u8]) {
    let mut from = 0;
    while let Some(at) = memchr::memchr2(b'\n', b'\r', &body[from..]) {
        from += at;
        body[from] = b' ';
        from += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(body: &str, arguments: &str) {
        let mut activation = Activation::parse(body.into()).expect(body);
        assert_eq!(String::from_utf8_lossy(activation.arguments()), arguments);
        assert_eq!(String::from_utf8_lossy(activation.arguments_line()), format!("{arguments}\n"));
    }

    #[test]
    fn arguments_pass_unchanged() {
        check(r#"{"value":{"name":"Mike"}}"#, r#"{"name":"Mike"}"#);
        check(r#"{"value":[1,2]}"#, "[1,2]");
        check(
            r#"{"a":1,"value":{"b":1.00,"b":2,"\u00e9":"\ud83d\ude00"},"z":0}"#,
            r#"{"b":1.00,"b":2,"\u00e9":"\ud83d\ude00"}"#,
        );
        check("{\"value\":{\n\"a\"\r\n:1}}", "{ \"a\"  :1}");
        check("{}", "{}");
        check(r#"{"value":null}"#, "{}");
        check(r#"{"value":{"a":1},"value":{"a":2}}"#, r#"{"a":2}"#);
        check(r#"{"\u0076alue":{"a":1}}"#, r#"{"a":1}"#);
    }

    #[test]
    fn a_whole_activation_is_one_line() {
        let mut activation = Activation::parse("{\"value\":{},\n\"activation_id\":\"7\"}\n \n".into()).unwrap();
        assert_eq!(activation.whole_line(), b"{\"value\":{}, \"activation_id\":\"7\"}\n");
        assert_eq!(activation.whole_line(), b"{\"value\":{}, \"activation_id\":\"7\"}\n");
    }

    #[test]
    fn a_run_frame_holds_every_member_unchanged() {
        let check = |body: &str, frame: &str| {
            let activation = Activation::parse(body.into()).expect(body);
            assert_eq!(String::from_utf8_lossy(&activation.run_frame(7)), format!("{frame}\n"), "{body}");
        };
        check("{}", r#"{"run":7,"value":{},"context":{}}"#);
        check(r#"{"value":null,"a":1}"#, r#"{"run":7,"value":{},"context":{"a":1}}"#);
        check(
            "{ \"a\" : 1.00,\n\"value\":{\"b\":1,\"b\":2} , \"\\u00e9\":\"\\u00e9\", \"deadline\":\"5\" }",
            r#"{"run":7,"value":{"b":1,"b":2},"context":{"a" : 1.00,"\u00e9":"\u00e9","deadline":"5"},"deadline_ms":5}"#,
        );
        check(
            r#"{"value":[1],"value":[2],"deadline":9}"#,
            r#"{"run":7,"value":[2],"context":{"deadline":9},"deadline_ms":9}"#,
        );
    }

    #[test]
    fn malformed_activations_are_refused() {
        let code = |body: &[u8]| Activation::parse(body.into()).unwrap_err().code();
        assert_eq!(code(b""), "PL012");
        assert_eq!(code(b" \n"), "PL012");
        assert_eq!(code(b"{"), "PL010");
        assert_eq!(code(b"{}x"), "PL010");
        assert_eq!(code(b"\xff"), "PL010");
        assert_eq!(code(b"[]"), "PL011");
        assert_eq!(code(b"nul"), "PL010");
        for value in ["1", "\"text\"", "true"] {
            assert_eq!(code(format!(r#"{{"value":{value}}}"#).as_bytes()), "PL017");
        }
    }

    #[test]
    fn context_is_every_other_member_as_text() {
        let activation =
            Activation::parse(r#"{"value":{},"deadline":"5","n":7,"o":{"a":1},"s":"a\nb=\u00e9","x":null}"#.into())
                .unwrap();
        let expected = [("deadline", "5"), ("n", "7"), ("o", r#"{"a":1}"#), ("s", "a\nb=é")];
        assert_eq!(activation.context(), expected.map(|(name, text)| (name.to_owned(), text.to_owned())));
    }

    #[test]
    fn lone_surrogates_in_a_variable_are_replaced() {
        let check = |json: &str, expected| {
            assert_eq!(as_text(&RawValue::from_string(json.to_owned()).unwrap()), expected, "{json}");
        };
        check(r#""a\ud800b""#, "a\u{fffd}b");
        check(r#""\uDC00\ud83d\ude00\uD83D\n\"""#, "\u{fffd}\u{1f600}\u{fffd}\n\"");
        check(r#""\\ud800 \ud800\ud800 \u00e9é""#, "\\ud800 \u{fffd}\u{fffd} éé");
        check(r#"{"a":"\ud800"}"#, r#"{"a":"\ud800"}"#);
    }

    #[test]
    fn deadlines_count_only_in_the_future() {
        let left = |body: &str| Activation::parse(body.into()).unwrap().time_to_deadline();
        assert_eq!(left(r#"{"deadline":"1000"}"#), None);
        assert_eq!(left(r#"{"deadline":"soon"}"#), None);
        assert_eq!(left("{}"), None);
        assert!(left(r#"{"deadline":99999999999999}"#).is_some());
        assert!(left(r#"{"deadline":"99999999999999"}"#).is_some());
    }

    proptest! {
        /// Whatever JSON a caller sends, the action reads the same value on exactly one line.
        #[test]
        fn any_value_arrives_on_one_line(
            keys in prop::collection::vec(("[^\"\\\\\u{0}-\u{1f}]{0,8}", "[ -~é日\n\r\t\"]{0,20}", any::<i64>()), 0..6),
            pretty in any::<bool>(),
        ) {
            let value: serde_json::Value = keys
                .into_iter()
                .map(|(key, text, number)| (key, serde_json::json!([text, number])))
                .collect::<serde_json::Map<_, _>>()
                .into();
            let whole = serde_json::json!({"activation_id": "x", "value": value});
            let body = if pretty { serde_json::to_vec_pretty(&whole) } else { serde_json::to_vec(&whole) }.unwrap();
            let mut activation = Activation::parse(body).unwrap();
            let line = activation.whole_line().to_vec();
            prop_assert_eq!(memchr::memchr(b'\n', &line), Some(line.len() - 1));
            prop_assert_eq!(&serde_json::from_slice::<serde_json::Value>(&line).unwrap(), &whole);
            let line = activation.arguments_line().to_vec();
            prop_assert_eq!(memchr::memchr(b'\n', &line), Some(line.len() - 1));
            prop_assert_eq!(serde_json::from_slice::<serde_json::Value>(&line).unwrap(), value);
        }
    }
}
