//! Requests that the proxy refuses before they reach the action.

use std::fmt;
use std::time::Duration;

use crate::text::{excerpt, millis};

/// What is wrong with what the caller sent, or why it is refused.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the fields are the facts that the sentence of each cause is made of")]
pub enum RequestError {
    /// The head of a request breaks the rules of HTTP.
    #[error("the request is not valid HTTP/1.1: {reason}")]
    NotHttp { reason: String },

    /// A request has no `Host`, or several.
    #[error("the request is not valid HTTP/1.1: it has {} `Host` header{}", if *.count == 0 { "no".into() } else { .count.to_string() }, if *.count == 0 { "" } else { "s" })]
    NotOneHost { count: usize },

    /// The head of a request exceeds its limits.
    #[error(
        "the head of the request is too large: at most {limit_bytes} bytes and {limit_headers} headers are accepted"
    )]
    HeadTooLarge { limit_bytes: usize, limit_headers: usize },

    /// A request came in HTTP/2.
    #[error("the request uses HTTP/2, which the proxy does not support")]
    Http2,

    /// `Expect` names something that the proxy does not support.
    #[error("the request expects {}, which the proxy does not support", excerpt(.expectation.as_bytes()))]
    UnmetExpectation { expectation: String },

    /// The body came in a transfer coding that the proxy does not support.
    #[error("the body has the transfer coding {}, and the proxy supports only `chunked`", excerpt(.coding.as_bytes()))]
    TransferCoding { coding: String },

    /// The body of a request is not JSON.
    #[error("the body of {request} is not valid JSON: {reason}")]
    NotJson { request: RequestKind, reason: String },

    /// The body of a request is JSON but not an object.
    #[error("the body of {request} must be a JSON object, got {found}")]
    NotAnObject { request: RequestKind, found: JsonType },

    /// The body of a request is empty.
    #[error("the body of {request} is empty")]
    EmptyBody { request: RequestKind },

    /// The body of a request exceeds its limit.
    #[error("the body of {request} is too large: at most {limit_bytes} bytes are accepted")]
    BodyTooLarge { request: RequestKind, limit_bytes: u64, setting: &'static str },

    /// The body of a request ends too early or breaks the rules of HTTP.
    #[error("the body of {request} is incomplete or malformed: {reason}")]
    BrokenBody { request: RequestKind, reason: String },

    /// The caller stopped sending in the middle of a request.
    #[error("the request stopped arriving: no data for {}", millis(*.waited))]
    BodyStalled { waited: Duration },

    /// A member of the body has a type that cannot be used.
    #[error("`{member}` must be {expected}, got {found}")]
    BadMember { member: &'static str, expected: &'static str, found: JsonType },

    /// Init came without code or without `main`. The text is OpenWhisk's.
    #[error("Missing main/no code to execute.")]
    NoCode,

    /// `value` of an activation is neither object nor array. The text is OpenWhisk's.
    #[error("The action did not receive a dictionary or array as an argument.")]
    BadArguments,

    /// Init came after a successful one. The text is OpenWhisk's.
    #[error("Cannot initialize the action more than once.")]
    AlreadyInitialised,

    /// Init came while another is in progress.
    #[error("another init is in progress")]
    InitUnderWay,

    /// An activation came before a successful init.
    #[error("no action has been initialised yet")]
    NotInitialised,

    /// `binary` is true and the code is not base64.
    #[error("`code` is marked as binary and is not valid base64: {reason}")]
    BadBase64 { reason: String },

    /// No process can have a variable of init's `env`, or one made from a member of an activation in version 0.
    #[error("{of} that cannot be set ({}): {}", .of.problem(), excerpt(.name.as_bytes()))]
    BadVariable { name: String, of: VariableSource },

    /// Init's `env` names a protocol that does not exist.
    #[error("`PIPELOOP_PROTOCOL` in `env` is not a protocol: {}", excerpt(.name.as_bytes()))]
    UnknownProtocol { name: String },

    /// Bodies and answers of all callers have used up the memory budget.
    #[error("the memory budget is full: bodies and answers hold {held_bytes} bytes, at most {limit_bytes} are allowed")]
    MemoryFull { held_bytes: u64, limit_bytes: u64 },
}

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequestKind {
    /// `/init`.
    Init,
    /// `/run`.
    Run,
}

/// The type of a JSON text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "their names say it")]
pub enum JsonType {
    Object,
    Array,
    String,
    Boolean,
    Null,
    Number,
}

/// Where a variable of the action comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VariableSource {
    /// `env` of an init.
    Init,
    /// A member of an activation, in version 0.
    Activation,
}

impl VariableSource {
    /// Why a variable cannot be set.
    fn problem(self) -> &'static str {
        match self {
            Self::Init => "an empty name, `=` in its name, or NUL",
            Self::Activation => "NUL in its name or value",
        }
    }
}

impl fmt::Display for VariableSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Init => "`env` contains a variable",
            Self::Activation => "the activation has a member for a variable",
        })
    }
}

impl RequestError {
    /// What to do about it, when there is something to do that the sentence does not say.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NotHttp { .. } => "speak HTTP/1.1 without TLS to this port, for example `curl http://…`".into(),
            Self::NotOneHost { .. } => "send one `Host` header, as every HTTP library does".into(),
            Self::HeadTooLarge { .. } => "send long data in the body, and fewer or shorter headers".into(),
            Self::Http2 => "speak HTTP/1.1, for example with `curl --http1.1`".into(),
            Self::UnmetExpectation { .. } => "leave `Expect` out, or send `Expect: 100-continue`".into(),
            Self::TransferCoding { .. } => "send the body unencoded, in chunks or with a `Content-Length`".into(),
            Self::NotJson { request: RequestKind::Run, .. } | Self::EmptyBody { request: RequestKind::Run } => {
                r#"send the activation as a JSON object, for example `{"value":{"name":"Mike"}}`"#.into()
            }
            Self::NotJson { request: RequestKind::Init, .. } | Self::EmptyBody { request: RequestKind::Init } => {
                r#"send `{"value":{"main":"main","code":"…","binary":false}}`"#.into()
            }
            Self::BodyTooLarge { setting, .. } => {
                format!("raise `{setting}` to accept bodies of this size")
            }
            Self::BadBase64 { .. } => {
                "encode the code with the standard alphabet and padding, as `base64 -w0` does; send text unencoded, with `\"binary\":false`".into()
            }
            Self::UnknownProtocol { .. } => {
                "set `PIPELOOP_PROTOCOL` to `0`, `1`, `2`, `actionloop` or `auto`".into()
            }
            Self::NotInitialised => "post the code to `/init` first".into(),
            Self::MemoryFull { .. } => {
                "try again later, send less at once, read answers faster, or raise `PIPELOOP_MAX_MEMORY`".into()
            }
            Self::NotAnObject { .. }
            | Self::BrokenBody { .. }
            | Self::BodyStalled { .. }
            | Self::BadMember { .. }
            | Self::NoCode
            | Self::BadArguments
            | Self::AlreadyInitialised
            | Self::InitUnderWay
            | Self::BadVariable { .. } => return None,
        })
    }
}

impl fmt::Display for RequestKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Init => "init",
            Self::Run => "run",
        })
    }
}

impl JsonType {
    /// The type of a well-formed JSON text, by its first byte.
    #[must_use]
    pub fn of(json: &str) -> Self {
        match json.trim_ascii_start().as_bytes().first() {
            Some(b'{') => Self::Object,
            Some(b'[') => Self::Array,
            Some(b'"') => Self::String,
            Some(b't' | b'f') => Self::Boolean,
            Some(b'n') => Self::Null,
            _ => Self::Number,
        }
    }
}

/// With its article.
impl fmt::Display for JsonType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Object => "an object",
            Self::Array => "an array",
            Self::String => "a string",
            Self::Boolean => "a boolean",
            Self::Null => "null",
            Self::Number => "a number",
        })
    }
}
