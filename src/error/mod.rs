//! The catalogue of what can go wrong: a stable code, a sentence and a hint for each cause.
//!
//! One variant per cause that a reader could act on, with the facts as fields. A sentence says
//! what happened, where and why, in that order, on one line; the hint says what to do and names a
//! command or a setting. Whoever calls gets the sentence, the log gets the detail as well.
//!
//! Nothing here knows how an error is reported: a front turns it into a status, `cli/output.rs`
//! into `error[PL0xx]: …`. `docs/errors.md` lists the codes.

pub mod catalog;
mod defect;
mod exit_report;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::process::ExitStatus;
use crate::text::{excerpt, listing, millis};

/// Writes `code` and `CODES` from one table, so that neither can forget what the other has: `code`
/// is an exhaustive `match`, and `CODES` is what the documentation is held to. Behind the semicolon
/// stand causes that have the codes of another table.
macro_rules! codes {
    ($(#[$doc:meta])* $type:ty, $($cause:pat => $code:literal,)+ $(; $($wrapper:pat => $inner:expr,)+)?) => {
        impl $type {
            /// Every code, in the order of the causes.
            pub const CODES: &'static [&'static str] = &[$($code),+];

            $(#[$doc])*
            #[must_use]
            pub fn code(&self) -> &'static str {
                match self {
                    $($cause => $code,)+
                    $($($wrapper => $inner,)+)?
                }
            }
        }
    };
}
pub(crate) use codes;
pub use defect::{Defect, Foreign, Language, Libc, MissingLibrary, Severity};

/// Anything that keeps an action from being initialised or an activation from being answered, by stage.
#[derive(Debug)]
pub enum Error {
    /// What is wrong with what the caller sent, or why it is refused.
    Request(RequestError),
    /// Why what was uploaded cannot be an action.
    Upload(UploadError),
    /// Why the action does not become ready.
    Start(StartError),
    /// Why an activation has no result.
    Run(RunError),
    /// What the proxy itself cannot do.
    Proxy(ProxyError),
}

/// What is wrong with what the caller sent, or why it is refused.
#[derive(Debug)]
#[expect(missing_docs, reason = "the fields are the facts that the sentence of each cause is made of")]
pub enum RequestError {
    /// The head of a request breaks the rules of HTTP.
    NotHttp { reason: String },
    /// The head of a request is over its bounds.
    HeadTooLarge { limit_bytes: usize, limit_headers: usize },
    /// A request came in HTTP/2.
    Http2,
    /// A request expects what is not offered here.
    UnmetExpectation { expectation: String },
    /// The body of a request is no JSON.
    NotJson { request: &'static str, reason: String },
    /// The body of a request is JSON, and not an object.
    NotAnObject { request: &'static str, found: &'static str },
    /// The body of a request is empty.
    EmptyBody { request: &'static str },
    /// The body of a request is over its bound.
    BodyTooLarge { request: &'static str, limit_bytes: u64, setting: &'static str },
    /// The body of a request ends too early or breaks the rules of HTTP.
    BrokenBody { request: &'static str, reason: String },
    /// The caller stopped sending in the middle of a request.
    BodyStalled { waited: Duration },
    /// A member of the body has a type that cannot be used.
    BadMember { member: &'static str, expected: &'static str, found: &'static str },
    /// Init came without code or without `main`.
    NoCode,
    /// `value` of an activation is neither object nor array.
    BadArguments,
    /// Init came after a successful one.
    AlreadyInitialised,
    /// Init came while another is under way.
    InitUnderWay,
    /// Run came before init.
    NotInitialised,
    /// `binary` is true and the code is no base64.
    BadBase64 { reason: String },
    /// A variable of init's `env` cannot be in an environment.
    BadVariable { name: String },
    /// Init's `env` names a protocol that does not exist.
    UnknownProtocol { name: String },
    /// Callers hold as much memory already as they may.
    MemoryFull { held_bytes: u64, limit_bytes: u64 },
}

/// Why what was uploaded cannot be an action.
#[derive(Debug)]
#[expect(missing_docs, reason = "the fields are the facts that the sentence of each cause is made of")]
pub enum UploadError {
    /// It cannot work, which was seen without starting it: all that was found, the worst first.
    /// Without a path it is the code as it was uploaded.
    Unfit { path: Option<PathBuf>, defects: Vec<Defect> },
    /// The compiler made no executable of it.
    Compile { compiler: PathBuf, problem: BadCompile, tail: String },
    /// The archive cannot be read to its end.
    ArchiveDamaged { format: &'static str, reason: String },
    /// An entry is written in a way that cannot be read here.
    ArchiveUnsupported { format: &'static str, reason: String, hint: &'static str },
    /// The archive has no `exec` at its root.
    ArchiveWithoutExec { instead: Instead, holds: Vec<String>, more: usize },
    /// The folder given on the command line has no `exec`.
    FolderWithoutExec { path: PathBuf, holds: Vec<String>, more: usize },
    /// An entry would land outside the action's folder.
    ArchiveEscapes { entry: Option<usize>, path: String, target: Option<String> },
    /// An entry is neither file, folder nor link.
    ArchiveEntryKind { entry: Option<usize>, path: String, kind: &'static str },
    /// The archive unpacks, or the folder comes, to more bytes than allowed.
    ArchiveTooLarge { what: &'static str, limit_bytes: u64 },
    /// The archive or folder has more entries than allowed.
    ArchiveTooManyEntries { what: &'static str, limit: usize },
    /// It was built for another execution environment than `OW_EXECUTION_ENV` names, or does not say for which.
    WrongEnvironment { expected: String, found: Option<String> },
    /// A file of the action cannot be written.
    Unwritable { path: PathBuf, reason: io::Error },
    /// What the command line names cannot be read.
    NoSuchAction { path: PathBuf, reason: io::Error },
}

/// Why the action does not become ready.
#[derive(Debug)]
#[expect(missing_docs, reason = "the fields are the facts that the sentence of each cause is made of")]
pub enum StartError {
    /// The kernel refused to execute it.
    CannotStart { path: PathBuf, reason: String, hint: &'static str },
    /// It ended before it was ready.
    EndedAtStart { ending: Ending, stage: Stage },
    /// It is alive and has not become ready.
    NotReady { limit: Duration, awaited: &'static str, tail: String },
    /// Its first line is not the handshake or acknowledgement that was asked for.
    WrongFirstLine { expected: &'static str, line: String, channel: &'static str },
    /// A member of its handshake has a type or value that cannot be used.
    BadHandshake { member: &'static str, expected: &'static str, found: String, line: String },
    /// Its handshake names a version that is not spoken here.
    UnsupportedVersion { version: String },
    /// It waits for input without having sent the handshake that was asked for.
    NoHandshake { protocol: &'static str },
}

/// Why an activation has no result.
#[derive(Debug)]
#[expect(missing_docs, reason = "the fields are the facts that the sentence of each cause is made of")]
pub enum RunError {
    /// The answer is not one JSON object or array on one line.
    BadAnswer { problem: BadAnswer, ending: Option<Ending> },
    /// The action ended while it was working on the activation.
    Died { ending: Ending },
    /// The action closed its result channel and lives on.
    ChannelClosed { channel: &'static str },
    /// The answer is over its bound.
    AnswerTooLong { limit_bytes: u64 },
    /// The activation's time is over.
    TimeOut { limit: TimeLimit, after: Duration },
    /// The activation's deadline passed while it waited for others.
    Expired,
    /// The action dies again and again, and is given a pause.
    CrashLoop { crashes: u32, last: String, retry_in: Duration },
    /// The action, which speaks version 2, wrote for this activation what is no frame.
    BadFrame { problem: String, line: String },
    /// The caller of a stream read so slowly that it fell behind by a whole buffer.
    Overrun { limit_bytes: u64 },
    /// A frame is over its bound, and it may be any activation's.
    FrameTooLong { limit_bytes: u64, in_flight: usize },
    /// The proxy ended before the activation did.
    Cut { after: Duration },
    /// Too many activations wait already.
    QueueFull { limit: usize },
    /// The action has ended, and is not to be started again.
    NotRestarted { last: String },
}

/// What the proxy itself cannot do.
#[derive(Debug)]
#[expect(missing_docs, reason = "the fields are the facts that the sentence of each cause is made of")]
pub enum ProxyError {
    /// The proxy is shutting down.
    ShuttingDown,
    /// The proxy cannot listen where it was told to.
    CannotListen { address: String, reason: io::Error },
    /// A setting has a value that cannot be used.
    BadSetting { setting: &'static str, reason: String },
    /// Something the operating system refused in the middle of the work.
    System { doing: &'static str, reason: io::Error },
}

/// What an archive has in place of a file `exec` at its root.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "as for the errors")]
pub enum Instead {
    /// Nothing of that name.
    Nothing,
    /// One in a folder, most often because the folder was packed and not what is in it.
    Below { folder: String },
    /// A folder of that name.
    Folder,
    /// A link to what the archive does not hold.
    DeadLink { target: String },
}

/// How a process came to its end, for a reader.
#[derive(Debug, Clone)]
pub struct Ending {
    /// Its exit status, when it could be learnt.
    pub status: Option<ExitStatus>,
    /// From its start to its end.
    pub lived: Duration,
    /// The last lines of its standard error, possibly empty.
    pub tail: Box<str>,
    /// As much of its standard error as is kept, of which the tail is the end.
    pub said: Box<str>,
    /// How many processes of the container the kernel killed meanwhile, for want of memory.
    pub oom_kills: u32,
}

/// How far a process had come when it ended at start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stage {
    /// Nothing was heard of it on the channel of its handshake.
    BeforeReady,
    /// It had printed a line that is no handshake: the first one.
    AfterLine {
        /// The line.
        line: String,
    },
    /// It had closed its result channel.
    ChannelClosed,
}

/// What is wrong with an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "as for the errors")]
pub enum BadAnswer {
    /// Not JSON: the line and the parser's reason.
    NotJson { line: String, reason: String },
    /// JSON, and neither object nor array.
    WrongType { line: String, found: &'static str },
    /// A second line stands behind the first.
    TwoLines { first: String, second: String },
    /// The process ended without a line.
    Nothing,
    /// The process ended in the middle of a line.
    Unterminated { line: String },
}

/// Why a compiler made no executable.
#[derive(Debug)]
#[expect(missing_docs, reason = "as for the errors")]
pub enum BadCompile {
    /// The kernel refused to execute it.
    CannotStart(io::Error),
    /// It ended, and not with status 0.
    Failed { status: Option<ExitStatus> },
    /// It did not end.
    TooSlow { limit: Duration },
    /// It left no file `exec`.
    NoExec,
    /// The `exec` that it left is nothing that can be executed.
    NotExecutable,
}

/// Which limit ended an activation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimeLimit {
    /// The `deadline` that came with the activation.
    Deadline,
    /// `PIPELOOP_RUN_TIMEOUT`.
    RunTimeout,
}

/// The text that a platform's test suites compare for an unusable answer.
///
/// Source: apache/openwhisk, `BasicActionRunnerTests.scala`; apache/openwhisk-runtime-docker,
/// `actionproxy.py`.
pub const BAD_ANSWER: &str = "The action did not return a dictionary or array.";

codes! {
    /// The stable code, `PL` and three digits: 01x and 02x requests, 03x and 04x uploads, 05x starts,
    /// 06x activations, 07x and 08x what an inspection finds, 09x the proxy itself, 10x frames of version 2.
    Error,
    Error::Request(RequestError::NotJson { .. }) => "PL010",
    Error::Request(RequestError::NotAnObject { .. }) => "PL011",
    Error::Request(RequestError::EmptyBody { .. }) => "PL012",
    Error::Request(RequestError::BodyTooLarge { .. }) => "PL013",
    Error::Request(RequestError::BodyStalled { .. }) => "PL014",
    Error::Request(RequestError::BrokenBody { .. }) => "PL024",
    Error::Request(RequestError::BadMember { .. }) => "PL015",
    Error::Request(RequestError::NoCode) => "PL016",
    Error::Request(RequestError::BadArguments) => "PL017",
    Error::Request(RequestError::AlreadyInitialised) => "PL018",
    Error::Request(RequestError::InitUnderWay) => "PL019",
    Error::Request(RequestError::NotInitialised) => "PL020",
    Error::Request(RequestError::BadBase64 { .. }) => "PL021",
    Error::Request(RequestError::UnknownProtocol { .. }) => "PL022",
    Error::Request(RequestError::BadVariable { .. }) => "PL023",
    Error::Request(RequestError::NotHttp { .. }) => "PL025",
    Error::Request(RequestError::HeadTooLarge { .. }) => "PL026",
    Error::Request(RequestError::Http2) => "PL027",
    Error::Request(RequestError::UnmetExpectation { .. }) => "PL028",
    Error::Upload(UploadError::Compile { .. }) => "PL033",
    Error::Upload(UploadError::ArchiveDamaged { .. }) => "PL034",
    Error::Upload(UploadError::ArchiveWithoutExec { .. }) => "PL035",
    Error::Upload(UploadError::ArchiveEscapes { .. }) => "PL036",
    Error::Upload(UploadError::ArchiveEntryKind { .. }) => "PL037",
    Error::Upload(UploadError::ArchiveTooLarge { .. }) => "PL038",
    Error::Upload(UploadError::ArchiveTooManyEntries { .. }) => "PL039",
    Error::Upload(UploadError::Unwritable { .. }) => "PL040",
    Error::Upload(UploadError::NoSuchAction { .. }) => "PL041",
    Error::Upload(UploadError::FolderWithoutExec { .. }) => "PL042",
    Error::Upload(UploadError::ArchiveUnsupported { .. }) => "PL043",
    Error::Start(StartError::CannotStart { .. }) => "PL050",
    Error::Start(StartError::EndedAtStart { .. }) => "PL051",
    Error::Start(StartError::NotReady { .. }) => "PL052",
    Error::Start(StartError::WrongFirstLine { .. }) => "PL053",
    Error::Start(StartError::UnsupportedVersion { .. }) => "PL054",
    Error::Start(StartError::NoHandshake { .. }) => "PL055",
    Error::Start(StartError::BadHandshake { .. }) => "PL056",
    Error::Upload(UploadError::WrongEnvironment { .. }) => "PL057",
    Error::Run(RunError::BadAnswer { .. }) => "PL060",
    Error::Run(RunError::Died { .. }) => "PL061",
    Error::Run(RunError::ChannelClosed { .. }) => "PL062",
    Error::Run(RunError::AnswerTooLong { .. }) => "PL063",
    Error::Run(RunError::TimeOut { .. }) => "PL064",
    Error::Run(RunError::QueueFull { .. }) => "PL065",
    Error::Proxy(ProxyError::ShuttingDown) => "PL066",
    Error::Run(RunError::Cut { .. }) => "PL067",
    Error::Run(RunError::Expired) => "PL068",
    Error::Run(RunError::CrashLoop { .. }) => "PL069",
    Error::Run(RunError::BadFrame { .. }) => "PL100",
    Error::Run(RunError::Overrun { .. }) => "PL101",
    Error::Run(RunError::FrameTooLong { .. }) => "PL102",
    Error::Request(RequestError::MemoryFull { .. }) => "PL105",
    Error::Proxy(ProxyError::CannotListen { .. }) => "PL090",
    Error::Proxy(ProxyError::BadSetting { .. }) => "PL091",
    Error::Proxy(ProxyError::System { .. }) => "PL092",
    Error::Run(RunError::NotRestarted { .. }) => "PL093",
    ;
    // Each defect has its own.
    Error::Upload(UploadError::Unfit { defects, .. }) => defects.first().expect("there is a defect").code(),
}

impl Error {
    /// What to do about it, when there is something to do that the sentence does not say.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Request(RequestError::NotHttp { .. }) => "speak HTTP/1.1 without TLS to this port, for example `curl http://…`".into(),
            Self::Request(RequestError::HeadTooLarge { .. }) => "send what is long as a body, and fewer or shorter headers".into(),
            Self::Request(RequestError::Http2) => "speak HTTP/1.1, for example with `curl --http1.1`".into(),
            Self::Request(RequestError::UnmetExpectation { .. }) => "leave `Expect` out, or send `Expect: 100-continue`".into(),
            Self::Request(RequestError::NotJson { request: "run", .. }) | Self::Request(RequestError::EmptyBody { request: "run" }) => {
                r#"send the activation as a JSON object, for example `{"value":{"name":"Mike"}}`"#.into()
            }
            Self::Request(RequestError::NotJson { .. }) | Self::Request(RequestError::EmptyBody { .. }) => {
                r#"send `{"value":{"main":"main","code":"…","binary":false}}`"#.into()
            }
            Self::Request(RequestError::BodyTooLarge { setting, .. }) => {
                format!("raise `{setting}` if bodies of this size are meant to be accepted")
            }
            Self::Request(RequestError::BadBase64 { .. }) => {
                "encode the code with the standard alphabet and padding, as `base64 -w0` does; text goes without it and with `\"binary\":false`".into()
            }
            Self::Request(RequestError::UnknownProtocol { .. }) => {
                "set `PIPELOOP_PROTOCOL` to `0`, `1`, `2`, `actionloop` or `auto`".into()
            }
            Self::Request(RequestError::NotInitialised) => "post the code to `/init` first".into(),
            Self::Upload(UploadError::Unfit { defects, .. }) => {
                let mut hints: Vec<_> = defects.iter().map(Defect::hint).collect();
                hints.dedup();
                hints.join("; ")
            }
            Self::Upload(UploadError::Compile { problem, .. }) => problem.hint().into(),
            Self::Upload(UploadError::ArchiveUnsupported { hint, .. }) => (*hint).into(),
            Self::Upload(UploadError::ArchiveDamaged { .. }) => "make the archive again and compare its size before and after the upload".into(),
            Self::Upload(UploadError::ArchiveWithoutExec { instead, .. }) => instead.hint(),
            Self::Upload(UploadError::FolderWithoutExec { .. }) => "name the program `exec`, or give the program itself instead of its folder".into(),
            Self::Upload(UploadError::ArchiveEscapes { .. }) => "make the archive from inside the folder that holds `exec`, with links that stay in it; a Python environment has such links when it is made with `python3 -m venv --copies`".into(),
            Self::Upload(UploadError::ArchiveTooLarge { .. }) => "raise `PIPELOOP_MAX_UNPACKED` if actions of this size are meant to be accepted".into(),
            Self::Upload(UploadError::ArchiveTooManyEntries { .. }) => "raise `PIPELOOP_MAX_ENTRIES` if actions of so many files are meant to be accepted".into(),
            Self::Upload(UploadError::WrongEnvironment { found: Some(_), .. }) => "build it again with the compiler of this image, or run it in the image that it was built for".into(),
            Self::Upload(UploadError::WrongEnvironment { found: None, .. }) => "build it with the compiler of this image, which writes `exec.env`; where actions are not to be held to it, unset `OW_EXECUTION_ENV`".into(),
            Self::Upload(UploadError::Unwritable { .. }) => "choose a folder that can be written with `--workdir` (`PIPELOOP_WORKDIR`)".into(),
            Self::Start(StartError::CannotStart { hint, .. }) => (*hint).to_owned(),
            Self::Start(StartError::NotReady { .. }) => "if it only needs more time, raise `PIPELOOP_INIT_TIMEOUT`".into(),
            Self::Start(StartError::WrongFirstLine { .. }) => "print the handshake before anything else on that channel, and logs on stderr; with `PIPELOOP_PROTOCOL=auto` earlier lines are taken as logs".into(),
            Self::Start(StartError::UnsupportedVersion { .. }) => "this release speaks versions 1 and 2, the actionloop dialect, and version 0, which has no handshake and is asked for with `PIPELOOP_PROTOCOL=0`".into(),
            Self::Start(StartError::BadHandshake { .. }) => r#"print `{"openwhisk":1}`, or `{"openwhisk":1,"context":true}` to get whole activations, or `{"openwhisk":2,"concurrency":8}`; a log line with a member `openwhisk` belongs on stderr"#.into(),
            Self::Start(StartError::NoHandshake { .. }) => "print it at start and flush the output; without a handshake, set `PIPELOOP_PROTOCOL` to `actionloop` or `auto`".into(),
            Self::Run(RunError::BadAnswer { problem: BadAnswer::TwoLines { .. }, .. }) => {
                "write each answer on one line (no pretty-printing), and logs on stderr".into()
            }
            // What a shell could not find or execute says more than the answer that is missing.
            Self::Run(RunError::BadAnswer { ending: Some(ending), .. }) if ending.lacks_program() => return exit_report::hint(ending, None),
            Self::Run(RunError::BadAnswer { .. }) => {
                "answer each activation with one JSON object or array on one line, and flush it; logs belong on stderr".into()
            }
            Self::Start(StartError::EndedAtStart { ending, stage }) => return exit_report::hint(ending, Some(stage)),
            Self::Run(RunError::Died { ending }) => return exit_report::hint(ending, None),
            Self::Run(RunError::ChannelClosed { .. }) => "keep the channel open for as long as the action serves".into(),
            Self::Run(RunError::AnswerTooLong { .. }) => "return less, or raise `PIPELOOP_MAX_RESULT`".into(),
            Self::Run(RunError::TimeOut { limit: TimeLimit::Deadline, .. }) => {
                "give the action a longer time limit on the platform, or make it faster; an answer that was never flushed looks like this too".into()
            }
            Self::Run(RunError::TimeOut { limit: TimeLimit::RunTimeout, .. }) => {
                "raise `PIPELOOP_RUN_TIMEOUT`, or make the action faster; an answer that was never flushed looks like this too".into()
            }
            Self::Run(RunError::BadFrame { .. }) => r#"write one JSON object a line, with `id` and one of `chunk`, `result`, `error`, `end` and `log`, such as `{"id":1,"result":{}}`; logs belong on stderr"#.into(),
            Self::Run(RunError::Overrun { .. }) => r#"promise `"pause":true` in the handshake and stop writing while asked to; or raise `PIPELOOP_STREAM_BUFFER`; or read faster"#.into(),
            Self::Run(RunError::FrameTooLong { .. }) => "write smaller frames, or raise `PIPELOOP_MAX_RESULT`".into(),
            Self::Run(RunError::Cut { .. }) => "raise `PIPELOOP_DRAIN_GRACE` and the grace of whoever stops the container, or make the action faster".into(),
            Self::Run(RunError::QueueFull { .. }) => "try again later, or raise `PIPELOOP_QUEUE`".into(),
            Self::Request(RequestError::MemoryFull { .. }) => "try again later, send less at once, read answers faster, or raise `PIPELOOP_MAX_MEMORY`".into(),
            Self::Run(RunError::Expired) => "send fewer activations at once, or give them a longer time limit on the platform".into(),
            Self::Run(RunError::CrashLoop { .. }) => "mend what it dies of; whatever works again ends the pauses at once".into(),
            Self::Run(RunError::NotRestarted { .. }) => "`PIPELOOP_RESTART` is `never`: start another container, or set it to `always`".into(),
            Self::Proxy(ProxyError::CannotListen { .. }) => "choose another port with `--port` (`PIPELOOP_PORT`)".into(),
            _ => return None,
        })
    }
}

impl fmt::Display for Error {
    #[allow(clippy::too_many_lines)] // One line a cause: splitting it would hide the catalogue.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Request(RequestError::NotHttp { reason }) => write!(f, "the request is not valid HTTP/1.1: {reason}"),
            Self::Request(RequestError::HeadTooLarge { limit_bytes, limit_headers }) => write!(
                f,
                "the head of the request is too large: at most {limit_bytes} bytes and {limit_headers} headers are accepted"
            ),
            Self::Request(RequestError::Http2) => f.write_str("the request is in HTTP/2, which is not spoken here"),
            Self::Request(RequestError::UnmetExpectation { expectation }) => {
                write!(f, "the request expects {}, which is not offered here", excerpt(expectation.as_bytes()))
            }
            Self::Request(RequestError::NotJson { request, reason }) => {
                write!(f, "the body of {request} is not valid JSON: {reason}")
            }
            Self::Request(RequestError::NotAnObject { request, found }) => {
                write!(f, "the body of {request} must be a JSON object, got {found}")
            }
            Self::Request(RequestError::EmptyBody { request }) => write!(f, "the body of {request} is empty"),
            Self::Request(RequestError::BodyTooLarge { request, limit_bytes, .. }) => {
                write!(f, "the body of {request} is too large: at most {limit_bytes} bytes are accepted")
            }
            Self::Request(RequestError::BrokenBody { request, reason }) => {
                write!(f, "the body of {request} cannot be read to its end: {reason}")
            }
            Self::Request(RequestError::BodyStalled { waited }) => {
                write!(f, "the request stopped arriving: nothing came for {}", millis(*waited))
            }
            Self::Request(RequestError::BadMember { member, expected, found }) => {
                write!(f, "`{member}` must be {expected}, got {found}")
            }
            Self::Request(RequestError::NoCode) => f.write_str("Missing main/no code to execute."),
            Self::Request(RequestError::BadArguments) => {
                f.write_str("The action did not receive a dictionary or array as an argument.")
            }
            Self::Request(RequestError::AlreadyInitialised) => {
                f.write_str("Cannot initialize the action more than once.")
            }
            Self::Request(RequestError::InitUnderWay) => f.write_str("another init is under way"),
            Self::Request(RequestError::NotInitialised) => f.write_str("no action has been initialised yet"),
            Self::Request(RequestError::BadBase64 { reason }) => {
                write!(f, "`code` is marked as binary and is not valid base64: {reason}")
            }
            Self::Request(RequestError::BadVariable { name }) => write!(
                f,
                "`env` holds a variable that cannot be set, with an empty name, `=` in its name or NUL: {}",
                excerpt(name.as_bytes())
            ),
            Self::Request(RequestError::UnknownProtocol { name }) => {
                write!(f, "`PIPELOOP_PROTOCOL` in `env` names no protocol: {}", excerpt(name.as_bytes()))
            }
            Self::Upload(UploadError::Unfit { path, defects }) => {
                match path {
                    Some(path) => write!(f, "cannot start the action `{}`: ", path.display())?,
                    None => f.write_str("the uploaded code cannot be an action: ")?,
                }
                let clauses: Vec<_> = defects.iter().map(Defect::to_string).collect();
                f.write_str(&clauses.join("; "))
            }
            Self::Upload(UploadError::Compile { compiler, problem, tail }) => {
                write!(f, "the compiler `{}` {problem}", compiler.display())?;
                if tail.is_empty() { Ok(()) } else { write!(f, ": `{tail}`") }
            }
            Self::Upload(UploadError::ArchiveUnsupported { format, reason, .. }) => {
                write!(f, "the {format} archive cannot be read here: {reason}")
            }
            Self::Upload(UploadError::ArchiveDamaged { format, reason }) => {
                write!(f, "the {format} archive is damaged or incomplete: {reason}")
            }
            Self::Upload(UploadError::ArchiveWithoutExec { instead, holds, more }) => {
                write!(f, "the archive has no file `exec` at its root{instead}; it holds {}", listing(holds, *more))
            }
            Self::Upload(UploadError::FolderWithoutExec { path, holds, more }) => {
                write!(f, "the folder `{}` has no file `exec`; it holds {}", path.display(), listing(holds, *more))
            }
            Self::Upload(UploadError::ArchiveEscapes { entry, path, target }) => {
                let path = excerpt(path.as_bytes());
                let number =
                    entry.map_or_else(|| "the folder's entry".into(), |entry| format!("archive entry {entry},"));
                match target {
                    None => {
                        let number = number.trim_end_matches(',');
                        write!(f, "{number} would be written outside the action's folder: {path}")
                    }
                    Some(target) => {
                        write!(f, "{number} {path}, links outside the action's folder: {}", excerpt(target.as_bytes()))
                    }
                }
            }
            Self::Upload(UploadError::ArchiveEntryKind { entry, path, kind }) => {
                match entry {
                    Some(entry) => write!(f, "archive entry {entry}")?,
                    None => f.write_str("an entry of the folder")?,
                }
                write!(f, " is a {kind}, not a file, folder or link: {}", excerpt(path.as_bytes()))
            }
            Self::Upload(UploadError::ArchiveTooLarge { what, limit_bytes }) => {
                write!(f, "the {what} to more than the {limit_bytes} bytes that are accepted")
            }
            Self::Upload(UploadError::ArchiveTooManyEntries { what, limit }) => {
                write!(f, "the {what} has more than the {limit} entries that are accepted")
            }
            Self::Upload(UploadError::WrongEnvironment { expected, found: Some(found) }) => write!(
                f,
                "the action was built for the execution environment {}, as its `exec.env` says, and this one is {}",
                excerpt(found.as_bytes()),
                excerpt(expected.as_bytes())
            ),
            Self::Upload(UploadError::WrongEnvironment { expected, found: None }) => write!(
                f,
                "the action has no file `exec.env` beside its `exec` that would say that it was built for this execution environment, {}",
                excerpt(expected.as_bytes())
            ),
            Self::Upload(UploadError::Unwritable { path, reason }) => {
                write!(f, "cannot write the action to `{}`: {reason}", path.display())
            }
            Self::Upload(UploadError::NoSuchAction { path, reason }) => {
                write!(f, "cannot read the action `{}`: {reason}", path.display())
            }
            Self::Start(StartError::CannotStart { path, reason, .. }) => {
                write!(f, "cannot start the action `{}`: {reason}", path.display())
            }
            Self::Start(StartError::EndedAtStart { ending, stage }) => match stage {
                Stage::BeforeReady => write!(f, "the action {ending}, before it was ready{}", ending.quoted_tail()),
                Stage::AfterLine { line } => write!(
                    f,
                    "the action {ending}, before it was ready; its first line was no handshake: {}{}",
                    excerpt(line.as_bytes()),
                    if ending.tail.is_empty() { String::new() } else { format!("; its last words: `{}`", ending.tail) }
                ),
                Stage::ChannelClosed => {
                    write!(
                        f,
                        "the action closed its result channel before it was ready, and {ending}{}",
                        ending.quoted_tail()
                    )
                }
            },
            Self::Start(StartError::NotReady { limit, awaited, tail }) => {
                write!(f, "the action was not ready within {}: it {awaited}", millis(*limit))?;
                if tail.is_empty() { Ok(()) } else { write!(f, "; the last it said: `{tail}`") }
            }
            Self::Start(StartError::WrongFirstLine { expected, line, channel }) => {
                write!(
                    f,
                    "the action's first line on {channel} is not its handshake: expected `{expected}`, got {}",
                    excerpt(line.as_bytes())
                )
            }
            Self::Start(StartError::BadHandshake { member, expected, found, line }) => {
                write!(
                    f,
                    "`{member}` of the action's handshake must be {expected}, got {found}: {}",
                    excerpt(line.as_bytes())
                )
            }
            Self::Start(StartError::UnsupportedVersion { version }) => {
                write!(
                    f,
                    "the action's handshake names version {version} of the native protocol, this proxy shakes hands on versions 1 and 2"
                )
            }
            Self::Start(StartError::NoHandshake { protocol }) => {
                write!(f, "the action waits for input and has not sent the handshake of protocol {protocol}")
            }
            Self::Run(RunError::BadAnswer { ending, .. }) => {
                // Nothing but the fixed text, unless the process failed: then that is the news.
                f.write_str(BAD_ANSWER)?;
                match ending {
                    Some(ending) if !ending.is_success() => write!(f, " It {ending}{}", ending.quoted_tail()),
                    _ => Ok(()),
                }
            }
            Self::Run(RunError::Died { ending }) => {
                write!(f, "the action {ending}, before it answered{}", ending.quoted_tail())
            }
            Self::Run(RunError::ChannelClosed { channel }) => {
                write!(f, "the action closed {channel} before it answered, and lives on; it was stopped")
            }
            Self::Run(RunError::AnswerTooLong { limit_bytes }) => {
                write!(
                    f,
                    "the action's answer is too long: at most {limit_bytes} bytes are accepted; the action was stopped"
                )
            }
            Self::Run(RunError::TimeOut { limit, after }) => match limit {
                TimeLimit::Deadline => {
                    write!(
                        f,
                        "the action did not answer by the activation's deadline and was stopped after {}",
                        millis(*after)
                    )
                }
                TimeLimit::RunTimeout => {
                    write!(
                        f,
                        "the action did not answer within the run timeout and was stopped after {}",
                        millis(*after)
                    )
                }
            },
            Self::Run(RunError::QueueFull { limit }) => write!(f, "as many activations wait already as may: {limit}"),
            Self::Request(RequestError::MemoryFull { held_bytes, limit_bytes }) => write!(
                f,
                "bodies and answers take {held_bytes} bytes already, at most {limit_bytes} are accepted at once"
            ),
            Self::Proxy(ProxyError::ShuttingDown) => f.write_str("the proxy is shutting down"),
            Self::Run(RunError::Expired) => {
                f.write_str("the activation's deadline passed while it waited for others, and it was never begun")
            }
            Self::Run(RunError::CrashLoop { crashes, last, retry_in }) => {
                write!(
                    f,
                    "the action died {crashes} times in a row and is not started again for {}; the last time: {last}",
                    millis(*retry_in)
                )
            }
            Self::Run(RunError::NotRestarted { last }) => {
                write!(f, "the action has ended and is not started again: {last}")
            }
            Self::Run(RunError::BadFrame { problem, line }) => {
                write!(f, "the action wrote a frame {problem}: {}", excerpt(line.as_bytes()))
            }
            Self::Run(RunError::Overrun { limit_bytes }) => {
                write!(
                    f,
                    "the caller reads more slowly than the action writes, and fell behind by {limit_bytes} bytes; other activations of the process were not to wait for it"
                )
            }
            Self::Run(RunError::FrameTooLong { limit_bytes, in_flight }) => {
                write!(
                    f,
                    "the action wrote a frame of more than {limit_bytes} bytes while {in_flight} activations were in flight; it was stopped, and all of them with it"
                )
            }
            Self::Run(RunError::Cut { after }) => {
                write!(
                    f,
                    "the proxy was told to end and the action did not answer in time; it was stopped after {}",
                    millis(*after)
                )
            }
            Self::Proxy(ProxyError::CannotListen { address, reason }) => {
                write!(f, "cannot listen on {address}: {reason}")
            }
            Self::Proxy(ProxyError::BadSetting { setting, reason }) => {
                write!(f, "`{setting}` cannot be used: {reason}")
            }
            Self::Proxy(ProxyError::System { doing, reason }) => write!(f, "cannot {doing}: {reason}"),
        }
    }
}

impl std::error::Error for Error {}

impl Error {
    /// The sentence with its hint, for a caller who sees nothing else. Texts that platforms compare
    /// stay to the letter.
    #[must_use]
    pub fn for_caller(&self) -> String {
        match self {
            Self::Request(RequestError::NoCode)
            | Self::Request(RequestError::AlreadyInitialised)
            | Self::Request(RequestError::BadArguments)
            | Self::Run(RunError::BadAnswer { .. })
            | Self::Proxy(ProxyError::ShuttingDown) => self.to_string(),
            _ => match self.hint() {
                Some(hint) => format!("{self} (hint: {hint})"),
                None => self.to_string(),
            },
        }
    }

    /// What the action's author should read in the log beside the sentence, when there is more:
    /// the offending line of an unusable answer.
    #[must_use]
    pub fn detail(&self) -> Option<String> {
        let Self::Run(RunError::BadAnswer { problem, ending }) = self else { return None };
        let mut detail = problem.to_string();
        if let Some(ending) = ending {
            detail = format!("{detail}; it {ending}");
        }
        Some(detail)
    }
}

impl Instead {
    fn hint(&self) -> String {
        match self {
            Self::Below { folder } => format!(
                "pack what is in the folder, not the folder: `cd {folder} && zip -r ../action.zip .`, or `tar -czf action.tar.gz -C {folder} .`"
            ),
            Self::DeadLink { .. } => {
                "pack what the link leads to as well; `zip` without `-y` packs the file in place of the link".into()
            }
            Self::Nothing | Self::Folder => {
                "name the program `exec` and put it at the top of the archive, not into a folder: `zip action.zip exec`"
                    .into()
            }
        }
    }
}

impl fmt::Display for Instead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => Ok(()),
            Self::Below { folder } => write!(f, ", but one in the folder {}", excerpt(folder.as_bytes())),
            Self::Folder => f.write_str(", but a folder of that name"),
            Self::DeadLink { target } => {
                write!(f, ", but a link to {}, which is no file in it", excerpt(target.as_bytes()))
            }
        }
    }
}

impl fmt::Display for BadAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotJson { line, reason } => {
                write!(f, "the action's answer is not JSON ({reason}): {}", excerpt(line.as_bytes()))
            }
            Self::WrongType { line, found } => {
                write!(f, "the action's answer is {found}, not an object or array: {}", excerpt(line.as_bytes()))
            }
            Self::TwoLines { first, second } => write!(
                f,
                "the action's answer takes more than one line: {} and {}",
                excerpt(first.as_bytes()),
                excerpt(second.as_bytes())
            ),
            Self::Nothing => f.write_str("the action ended without an answer"),
            Self::Unterminated { line } => {
                write!(
                    f,
                    "the action ended in the middle of its answer, without a newline: {}",
                    excerpt(line.as_bytes())
                )
            }
        }
    }
}

impl BadCompile {
    fn hint(&self) -> &'static str {
        match self {
            Self::CannotStart(_) => {
                "name a program that this image can execute with `PIPELOOP_COMPILER` (`OW_COMPILER`)"
            }
            Self::Failed { .. } => "mend the source; the action's log has all that the compiler said",
            Self::TooSlow { .. } => {
                "if it only needs more time, raise `PIPELOOP_INIT_TIMEOUT`, or upload what the compiler makes of the source"
            }
            Self::NoExec => {
                "the action's log has all that the compiler said; it is called as `COMPILER MAIN SRC BIN` and has to leave an executable `BIN/exec`"
            }
            Self::NotExecutable => "the compiler has to leave an ELF executable or a script with a `#!` line",
        }
    }
}

impl fmt::Display for BadCompile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CannotStart(reason) => write!(f, "cannot be started: {reason}"),
            Self::Failed { status: Some(status) } => write!(f, "{status}"),
            Self::Failed { status: None } => f.write_str("ended, nobody knows how"),
            Self::TooSlow { limit } => write!(f, "was not done within {} and was stopped", millis(*limit)),
            Self::NoExec => f.write_str("left no file `exec`"),
            Self::NotExecutable => f.write_str("left an `exec` that is neither an ELF executable nor a script"),
        }
    }
}

impl Ending {
    /// Whether the process ended by itself with status 0.
    #[must_use]
    pub fn is_success(&self) -> bool {
        matches!(self.status, Some(ExitStatus::Exited(0)))
    }

    /// Whether its exit status is a shell's word for a program that is missing or cannot be executed.
    fn lacks_program(&self) -> bool {
        matches!(self.status, Some(ExitStatus::Exited(126 | 127)))
    }

    fn quoted_tail(&self) -> String {
        if self.tail.is_empty() { String::new() } else { format!(": `{}`", self.tail) }
    }
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.status {
            Some(status) => write!(f, "{status} after {}", millis(self.lived))?,
            None => write!(f, "ended after {}", millis(self.lived))?,
        }
        match self.oom_kills {
            0 => Ok(()),
            // Its own end may be another one's, such as a child's.
            _ if !matches!(self.status, Some(ExitStatus::Signalled(9))) => {
                f.write_str(" (the kernel killed a process of this container meanwhile: out of memory)")
            }
            _ => f.write_str(" (by the kernel: out of memory)"),
        }
    }
}
