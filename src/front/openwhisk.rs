//! The OpenWhisk contract: `POST /init` and `POST /run`.
//!
//! Every answer has a `Content-Length`, unless its caller asked for a stream (`stream.rs`). Every answer other
//! than 200 is `{"error": …}` with that one member. 503 means "shutting down" and nothing else: the platform
//! then runs the activation elsewhere.
//!
//! Source: apache/openwhisk, `docs/actions-new.md`; the invoker's container client.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::time::Duration;

use bytes::Bytes;
use hyper::body::Incoming;
use hyper::header::{ALLOW, HeaderValue, RETRY_AFTER};
use hyper::{Method, Request, StatusCode};
use serde_json::value::RawValue;

use crate::action::{Action, DEFAULT_MAIN, Init};
use crate::activation::{Activation, Object, as_text};
use crate::artifact::Code;
use crate::error::{
    Error, JsonType, ProxyError, RequestError, RequestKind, RunError, StartError, UploadError, VariableSource,
};
use crate::protocol::Protocol;
use crate::server::{BodyBound, Front, Reply, StreamFormat, discard, json, read_body};

use super::stream::streamed;

/// Texts that existing test suites and images compare literally.
///
/// Source: apache/openwhisk-runtime-go, `openwhisk/initHandler.go`.
mod fixed {
    pub(super) const NO_BINARY: &str = "The action failed to generate or locate a binary. See logs for details.";
    pub(super) const CANNOT_START: &str = "Cannot start action. Check logs for details.";
}

/// The answer to a successful init.
const OK: &[u8] = b"{\"ok\":true}\n";

/// The front for OpenWhisk's invoker.
#[derive(Debug)]
pub struct OpenWhisk {
    /// The action that it serves.
    pub action: Action,
    /// The maximum length of an init's body.
    pub max_init_body: u64,
    /// The maximum length of a run's body.
    pub max_body: u64,
    /// How long a caller may stall in the middle of a body.
    pub caller_timeout: Duration,
    /// Whether the caller of a failed init gets a fixed text and only the log has the reason:
    /// `OW_LOG_INIT_ERROR`.
    pub log_init_error: bool,
    /// How long the answer of an init or run that failed waits for its log to be written.
    pub failure_delay: Duration,
}

impl Front for OpenWhisk {
    async fn answer(&self, request: Request<Incoming>) -> Reply {
        let (head, body) = request.into_parts();
        match head.uri.path() {
            "/run" if head.method == Method::POST => {
                let format = StreamFormat::from_accept(&head.headers);
                match self.run(body, format).await {
                    Ok(reply) => reply,
                    Err(error) => {
                        self.wait_for_log(&error).await;
                        refusal(&error)
                    }
                }
            }
            "/init" if head.method == Method::POST => match self.init(body).await {
                Ok(()) => json(StatusCode::OK, Bytes::from_static(OK)),
                Err(error) => {
                    self.wait_for_log(&error).await;
                    self.init_refusal(&error)
                }
            },
            "/run" | "/init" => {
                discard(body, self.caller_timeout).await;
                let message = format!("{} takes POST, not {}", head.uri.path(), head.method);
                let mut reply = error_reply(StatusCode::METHOD_NOT_ALLOWED, &message);
                reply.headers_mut().insert(ALLOW, HeaderValue::from_static("POST"));
                reply
            }
            path => {
                discard(body, self.caller_timeout).await;
                let message = format!("there is nothing at {path}; this is an action: POST /init, POST /run");
                error_reply(StatusCode::NOT_FOUND, &message)
            }
        }
    }

    fn takes_fast_path(&self, path: &str, length: usize) -> bool {
        path == "/run" && length as u64 <= self.max_body
    }

    async fn answer_fast(&self, body: Vec<u8>) -> Result<Bytes, Error> {
        let memory_budget = self.action.memory_budget();
        self.action.check_run()?;
        memory_budget.check_announced(body.len() as u64)?;
        let mut reservation = memory_budget.reserve();
        reservation.try_grow_to(body.len())?;
        match Activation::parse(body) {
            Ok(activation) => match self.action.run(activation, reservation).await {
                Ok(answer) => Ok(memory_budget.count_answer(answer)),
                Err(error) => {
                    self.wait_for_log(&error).await;
                    Err(error)
                }
            },
            Err(error) => {
                self.action.refuse().await;
                Err(error)
            }
        }
    }

    fn refuse(&self, error: &Error) -> Reply {
        refusal(error)
    }
}

impl OpenWhisk {
    async fn run(&self, body: Incoming, format: Option<StreamFormat>) -> Result<Reply, Error> {
        let bound = BodyBound {
            request: RequestKind::Run,
            limit_bytes: self.max_body,
            setting: "PIPELOOP_MAX_BODY",
            caller_timeout: self.caller_timeout,
            memory_budget: self.action.memory_budget(),
        };
        if let Err(error) = self.action.check_run() {
            discard(body, self.caller_timeout).await;
            return Err(error);
        }
        let activation = match read_body(body, &bound).await {
            Ok((body, reservation)) => Activation::parse(body).map(|activation| (activation, reservation)),
            // The body was not read, so the activation has no log either.
            Err(error @ Error::Request(RequestError::MemoryFull { .. })) => return Err(error),
            Err(error) => Err(error),
        };
        match activation {
            Ok((activation, reservation)) => match format {
                None => {
                    let answer = self.action.run(activation, reservation).await?;
                    Ok(json(StatusCode::OK, self.action.memory_budget().count_answer(answer)))
                }
                // The reply waits for the first item: until then the outcome may be an error with a status.
                Some(format) => self.action.stream(activation, reservation).await.map(|items| streamed(format, items)),
            },
            Err(error) => {
                self.action.refuse().await;
                Err(error)
            }
        }
    }

    async fn init(&self, body: Incoming) -> Result<(), Error> {
        let bound = BodyBound {
            request: RequestKind::Init,
            limit_bytes: self.max_init_body,
            setting: "PIPELOOP_MAX_INIT_BODY",
            caller_timeout: self.caller_timeout,
            memory_budget: self.action.memory_budget(),
        };
        if let Err(error) = self.action.check_init() {
            discard(body, self.caller_timeout).await;
            return Err(error);
        }
        let (body, _reservation) = read_body(body, &bound).await?;
        self.action.init(parse_init(&body)?).await
    }

    /// Waits before the answer of an init or run that failed. At any status but 200 the platform reads the log
    /// once, waits for no sentinel, and destroys the container; the container engine may still be writing.
    ///
    /// Source: apache/openwhisk, `DockerContainer.scala`.
    async fn wait_for_log(&self, error: &Error) {
        if has_reached_action(error) && !self.failure_delay.is_zero() {
            tokio::time::sleep(self.failure_delay).await;
        }
    }

    /// The reply to a failed init.
    fn init_refusal(&self, error: &Error) -> Reply {
        if self.log_init_error {
            match InitStep::of(error) {
                Some(InitStep::Place) => return error_reply(StatusCode::BAD_GATEWAY, fixed::NO_BINARY),
                Some(InitStep::Start) => return error_reply(StatusCode::BAD_GATEWAY, fixed::CANNOT_START),
                None => {}
            }
        }
        refusal(error)
    }
}

/// Parses the body of an init: `{"value":{"name","main","code","binary","env"}}`.
///
/// # Errors
/// What is wrong with the body or one of its members.
pub fn parse_init(body: &[u8]) -> Result<Init, Error> {
    let outer = parse_object(body)?;
    let mut value = None;
    for (name, raw) in outer.members {
        if name == "value" && raw.get() != "null" {
            value = Some(raw);
        }
    }
    let mut init = Init { code: None, main: DEFAULT_MAIN.into(), environment: Vec::new(), protocol: None };
    let Some(value) = value else { return Ok(init) };
    if !value.get().starts_with('{') {
        return Err(bad_member("value", "an object", value));
    }
    let inner = parse_object(value.get().as_bytes())?;
    let (mut code, mut binary) = (String::new(), false);
    for (name, raw) in inner.members {
        if raw.get() == "null" {
            continue;
        }
        match &*name {
            "code" => code = parse(raw).ok_or_else(|| bad_member("code", "a string", raw))?,
            "binary" => binary = parse(raw).ok_or_else(|| bad_member("binary", "a boolean", raw))?,
            "main" => init.main = parse(raw).ok_or_else(|| bad_member("main", "a string", raw))?,
            "env" => init.environment = environment(raw)?,
            _ => {}
        }
    }
    if init.main.is_empty() {
        init.main = DEFAULT_MAIN.into();
    }
    if !code.is_empty() {
        let code = code.into_bytes();
        init.code = Some(if binary { Code::Encoded(code) } else { Code::Text(code) });
    }
    // This is a setting of the proxy that travels with the action. The action itself has no use for it.
    if let Some(at) = init.environment.iter().rposition(|(name, _)| name == "PIPELOOP_PROTOCOL") {
        let (_, name) = &init.environment[at];
        let name = name.to_string_lossy();
        init.protocol = Some(
            name.parse::<Protocol>()
                .map_err(|_| Error::Request(RequestError::UnknownProtocol { name: name.into_owned() }))?,
        );
        init.environment.retain(|(name, _)| name != "PIPELOOP_PROTOCOL");
    }
    Ok(init)
}

/// `env` of init: strings as they are, other values as their JSON text.
fn environment(raw: &RawValue) -> Result<Vec<(OsString, OsString)>, Error> {
    if !raw.get().starts_with('{') {
        return Err(bad_member("env", "an object", raw));
    }
    let object = parse_object(raw.get().as_bytes())?;
    let mut variables = Vec::with_capacity(object.members.len());
    for (name, raw) in object.members {
        let value = as_text(raw);
        // The kernel separates names and values with these bytes.
        if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
            return Err(Error::Request(RequestError::BadVariable {
                name: name.into_owned(),
                of: VariableSource::Init,
            }));
        }
        variables.push((name.into_owned().into(), OsString::from_vec(value.into_bytes())));
    }
    Ok(variables)
}

fn parse_object(body: &[u8]) -> Result<Object<'_>, RequestError> {
    Object::parse(body).map_err(|bad| bad.in_body_of(RequestKind::Init))
}

fn parse<T: serde::de::DeserializeOwned>(raw: &RawValue) -> Option<T> {
    serde_json::from_str(raw.get()).ok()
}

fn bad_member(member: &'static str, expected: &'static str, raw: &RawValue) -> Error {
    Error::Request(RequestError::BadMember { member, expected, found: JsonType::of(raw.get()) })
}

/// The steps of an init for whose failure the platform has fixed texts.
enum InitStep {
    Place,
    Start,
}

impl InitStep {
    fn of(error: &Error) -> Option<Self> {
        match error {
            // Inspection of a placed file is the first part of its start.
            Error::Upload(UploadError::Unusable { path: Some(_), .. } | UploadError::WrongEnvironment { .. })
            | Error::Start(_) => Some(Self::Start),
            // Only the command line names a path; an init cannot.
            Error::Upload(
                UploadError::NoSuchAction { .. }
                | UploadError::NoSuchCommand { .. }
                | UploadError::DirectoryWithoutExec { .. },
            )
            | Error::Request(_)
            | Error::Run(_)
            | Error::Proxy(_) => None,
            Error::Upload(_) => Some(Self::Place),
        }
    }
}

/// The status of each error. Exhaustive, so that a new cause cannot be forgotten.
fn status(error: &Error) -> StatusCode {
    match error {
        Error::Request(error) => match error {
            // What the caller can fix by sending something else.
            RequestError::NotJson { .. }
            | RequestError::NotHttp { .. }
            | RequestError::NotOneHost { .. }
            | RequestError::BrokenBody { .. }
            | RequestError::NotAnObject { .. }
            | RequestError::EmptyBody { .. }
            | RequestError::BadMember { .. }
            | RequestError::BadVariable { .. }
            | RequestError::BadBase64 { .. }
            | RequestError::UnknownProtocol { .. } => StatusCode::BAD_REQUEST,
            RequestError::BodyTooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            RequestError::HeadTooLarge { .. } => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            RequestError::UnmetExpectation { .. } => StatusCode::EXPECTATION_FAILED,
            RequestError::TransferCoding { .. } => StatusCode::NOT_IMPLEMENTED,
            RequestError::Http2 => StatusCode::HTTP_VERSION_NOT_SUPPORTED,
            RequestError::BodyStalled { .. } => StatusCode::REQUEST_TIMEOUT,
            RequestError::NoCode | RequestError::AlreadyInitialised | RequestError::InitUnderWay => {
                StatusCode::FORBIDDEN
            }
            // As the Docker skeleton answers.
            RequestError::BadArguments => StatusCode::NOT_FOUND,
            RequestError::NotInitialised => StatusCode::INTERNAL_SERVER_ERROR,
            RequestError::MemoryFull { .. } => StatusCode::TOO_MANY_REQUESTS,
        },
        // What the author of the action can fix.
        Error::Upload(error) => match error {
            UploadError::Unusable { .. }
            | UploadError::Compile { .. }
            | UploadError::ArchiveDamaged { .. }
            | UploadError::ArchiveUnsupported { .. }
            | UploadError::ArchiveWithoutExec { .. }
            | UploadError::DirectoryWithoutExec { .. }
            | UploadError::ArchiveEscapes { .. }
            | UploadError::ArchiveDriveLetter { .. }
            | UploadError::ArchiveEntryKind { .. }
            | UploadError::ArchiveTooLarge { .. }
            | UploadError::ArchiveTooManyEntries { .. }
            | UploadError::NoSuchAction { .. }
            | UploadError::NoSuchCommand { .. }
            | UploadError::WrongEnvironment { .. } => StatusCode::BAD_GATEWAY,
            // What the operator can fix.
            UploadError::Unwritable { .. } => StatusCode::INTERNAL_SERVER_ERROR,
        },
        Error::Start(error) => match error {
            StartError::CannotStart { .. }
            | StartError::TooLarge(_)
            | StartError::ExitedBeforeReady { .. }
            | StartError::NotReady { .. }
            | StartError::WrongFirstLine { .. }
            | StartError::NearlyHandshake { .. }
            | StartError::BadHandshake { .. }
            | StartError::UnsupportedVersion { .. }
            | StartError::Prompt { .. }
            | StartError::NoHandshake { .. } => StatusCode::BAD_GATEWAY,
        },
        Error::Run(error) => match error {
            RunError::BadAnswer { .. }
            | RunError::ExitedBeforeAnswer { .. }
            | RunError::ChannelClosed { .. }
            | RunError::AnswerTooLong { .. }
            | RunError::TimeOut { .. }
            | RunError::NeverAnswered { .. }
            // Not 503: the platform would run it again elsewhere, and it has had its effects.
            | RunError::CutOff { .. }
            | RunError::Expired
            | RunError::CrashLoop { .. }
            | RunError::BadFrame { .. }
            | RunError::Overrun { .. }
            | RunError::FrameTooLong { .. }
            | RunError::NotRestarted { .. } => StatusCode::BAD_GATEWAY,
            RunError::QueueFull { .. } => StatusCode::TOO_MANY_REQUESTS,
        },
        Error::Proxy(error) => match error {
            ProxyError::ShuttingDown => StatusCode::SERVICE_UNAVAILABLE,
            // What the operator can fix.
            ProxyError::CannotListen { .. } | ProxyError::BadSetting { .. } | ProxyError::System { .. } => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
        },
    }
}

/// Whether an error is about an init or run that the action was given, so that it may have a log.
fn has_reached_action(error: &Error) -> bool {
    match error {
        Error::Run(RunError::QueueFull { .. } | RunError::Expired) | Error::Request(_) | Error::Proxy(_) => false,
        Error::Run(_) | Error::Upload(_) | Error::Start(_) => true,
    }
}

/// The reply for an error: its message for the caller, with the status of its cause.
fn refusal(error: &Error) -> Reply {
    let status = status(error);
    let mut reply = error_reply(status, &error.for_caller());
    if status == StatusCode::TOO_MANY_REQUESTS {
        reply.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    reply
}

fn error_reply(status: StatusCode, message: &str) -> Reply {
    let mut body = serde_json::json!({ "error": message }).to_string();
    body.push('\n');
    json(status, body.into())
}
