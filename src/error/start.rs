//! Actions that do not become ready.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::{ExitReport, exit_report, quoted};
use crate::process::spawn::ResultChannel;
use crate::text::{excerpt, millis};

/// Why the action does not become ready.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the fields are the facts that the sentence of each cause is made of")]
pub enum StartError {
    /// The kernel refused to execute it.
    #[error("cannot start the action `{}`: {}", .path.display(), refusal(.reason))]
    CannotStart {
        path: PathBuf,
        #[source]
        reason: io::Error,
    },

    /// A variable, or all variables and arguments together, are larger than the kernel accepts.
    #[error("cannot start the action: {0}")]
    TooLarge(Box<Oversized>),

    /// It exited before it was ready.
    #[error("the action {}", .stage.sentence(.exit))]
    ExitedBeforeReady { exit: ExitReport, stage: Stage },

    /// It is running but has not become ready.
    #[error("the action was not ready within {}: it {awaited}{}", millis(*.limit), quoted("; the end of its stderr: ", .tail))]
    NotReady { limit: Duration, awaited: Awaited, tail: String },

    /// Its first line is not the handshake or acknowledgement that was asked for.
    #[error(
        "the action's first line on {channel} is not its {}: expected `{expected}`, got {}",
        announcement(.expected),
        excerpt(.line.as_bytes())
    )]
    WrongFirstLine { expected: &'static str, line: String, channel: ResultChannel },

    /// One of its lines was meant as a handshake or acknowledgement, but is none.
    #[error("the {} of the action is malformed: {near}", announcement(.near.expected))]
    NearlyHandshake { near: NearHandshake },

    /// A member of its handshake has a type or value that cannot be used.
    #[error("`{member}` of the action's handshake must be {expected}, got {found}: {}", excerpt(.line.as_bytes()))]
    BadHandshake { member: &'static str, expected: &'static str, found: String, line: String },

    /// Its handshake asks for a version that the proxy does not support.
    #[error(
        "the action's handshake asks for version {version} of the native protocol, but the proxy supports versions 1 and 2"
    )]
    UnsupportedVersion { version: String },

    /// A command line has begun a line before it got one.
    #[error("the command prompts: it printed {} and waits for input on the same line", excerpt(.prompt.as_bytes()))]
    Prompt { prompt: String },

    /// It waits for input without having sent the handshake that was asked for.
    #[error("the action waits for input but has not sent the handshake of protocol {version}")]
    NoHandshake { version: Version },
}

/// What is larger than the kernel accepts at the start of a program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Oversized {
    /// The largest variable.
    pub variable: String,
    /// The member of the activation that it was made from, in version 0.
    pub member: Option<String>,
    /// Its size, with its name and the `=`.
    pub bytes: usize,
    /// The size of all variables and arguments, if that is the problem and not this variable alone.
    pub total_bytes: Option<usize>,
}

impl Oversized {
    /// The longest string that Linux accepts as a variable or argument, without its NUL, with memory pages of 4 KiB.
    ///
    /// Source: execve(2), `MAX_ARG_STRLEN`.
    pub const MAX_STRING: usize = 131_071;

    /// What to do about it.
    #[must_use]
    pub(crate) fn hint(&self) -> &'static str {
        if self.member.is_some() {
            "pass large data in the arguments (`value`), which the action reads on stdin"
        } else {
            "pass large data in the arguments of an activation, which arrive on stdin, or in a file of the archive"
        }
    }
}

/// A line that was meant as a handshake or acknowledgement, with what is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NearHandshake {
    /// The line as it has to be.
    pub expected: &'static str,
    /// The line that came.
    pub line: Vec<u8>,
    /// What is wrong.
    pub fault: HandshakeFault,
}

/// Why a line that was meant as a handshake is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "their sentences say it")]
pub enum HandshakeFault {
    ByteOrderMark,
    Utf16,
    TextBefore,
    TextAfter,
    Wrapped,
    Name,
    Broken,
    NotJson,
    NoNewline,
    NotFlushed,
    OnStderr,
}

/// What a process has to do to be ready, by the protocol that was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Awaited {
    /// Send the handshake of this version.
    Handshake(Version),
    /// Acknowledge.
    Acknowledgement,
    /// Send a handshake or acknowledge.
    HandshakeOrAcknowledgement,
    /// Send a handshake, as an earlier process of the action did.
    HandshakeAgain,
    /// Send a handshake or wait for input.
    HandshakeOrInput,
    /// Wait for input.
    Input,
}

/// A version of the protocol that begins with a handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "their names say it")]
pub enum Version {
    V1,
    V2,
}

/// How far a process had come when it exited during its start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stage {
    /// It had sent nothing on the channel of its handshake.
    BeforeReady,
    /// It had printed a line that is not a handshake: the first one.
    AfterLine {
        /// The line.
        line: String,
    },
    /// It had sent a line that was meant as a handshake.
    AfterNearHandshake(NearHandshake),
    /// It had not sent the acknowledgement that was asked for.
    BeforeAcknowledgement,
    /// It had closed its result channel.
    ChannelClosed,
}

impl StartError {
    /// What to do about it, when there is something to do that the sentence does not say.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::CannotStart { reason, .. } if is_bad_format(reason) => "build it for this machine's architecture".into(),
            Self::CannotStart { .. } => "`pipeloop run ACTION` shows the same on a laptop".into(),
            Self::TooLarge(oversized) => oversized.hint().into(),
            Self::ExitedBeforeReady { exit, stage } => return exit_report::hint(exit, Some(stage)),
            Self::NotReady { .. } => "if it only needs more time, raise `PIPELOOP_INIT_TIMEOUT`".into(),
            Self::WrongFirstLine { .. } => "print the handshake before anything else on that channel, and logs on stderr; with `PIPELOOP_PROTOCOL=auto` earlier lines count as logs".into(),
            Self::NearlyHandshake { near } => near.hint(),
            Self::BadHandshake { .. } => r#"print `{"openwhisk":1}`, or `{"openwhisk":1,"context":true}` to get whole activations, or `{"openwhisk":2,"concurrency":8}`; a log line with a member `openwhisk` belongs on stderr"#.into(),
            Self::UnsupportedVersion { .. } => "this release supports versions 1 and 2, the actionloop dialect, and version 0, which has no handshake: set `PIPELOOP_PROTOCOL=0` for it".into(),
            Self::Prompt { .. } => "start the program in the way that a pipeline would, without its prompt; `--stdout pipe` helps if it prompts only on a terminal".into(),
            Self::NoHandshake { .. } => "print it at start and flush the output; without a handshake, set `PIPELOOP_PROTOCOL` to `actionloop` or `auto`".into(),
        })
    }
}

impl fmt::Display for Oversized {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { variable, member, bytes, total_bytes } = self;
        let variable = excerpt(variable.as_bytes());
        let what = match member {
            Some(member) => {
                format!("the member {} of the activation, as the variable {variable},", excerpt(member.as_bytes()))
            }
            None => format!("the variable {variable}"),
        };
        match total_bytes {
            None => {
                let limit = Self::MAX_STRING;
                write!(f, "{what} has {bytes} bytes with its name, and Linux accepts at most {limit}")
            }
            Some(total) => write!(
                f,
                "its variables and arguments come to {total} bytes, which is more than Linux accepts; {what} has {bytes} of them"
            ),
        }
    }
}

impl NearHandshake {
    /// How to print the line.
    #[must_use]
    pub fn hint(&self) -> String {
        let how = match self.fault {
            HandshakeFault::ByteOrderMark => {
                "write UTF-8 without a byte-order mark: in .NET `new UTF8Encoding(false)`, in Python `utf-8` and not `utf-8-sig`"
            }
            HandshakeFault::Utf16 => "set the encoding of standard output to UTF-8 without a byte-order mark",
            HandshakeFault::TextBefore => "end what is printed before it with a newline, or print it on stderr",
            HandshakeFault::TextAfter => "print nothing else on its line",
            HandshakeFault::Wrapped => {
                "print the object itself, not as a text or a member of something else, and check the quotes of the shell"
            }
            HandshakeFault::Name => "write the name in lower case",
            HandshakeFault::Broken => "print the whole object on one line, without pretty-printing",
            HandshakeFault::NotJson => {
                "names in JSON have double quotes: print the text as it is, or use `json.dumps`, `JSON.stringify` or the like, not `print` of an object"
            }
            HandshakeFault::NoNewline => "end the line with LF (`\\n`), and flush it",
            HandshakeFault::NotFlushed => {
                "flush the output right after the line: in Python `print(…, flush=True)`, in C `fflush(stdout)`"
            }
            HandshakeFault::OnStderr => "print it on stdout; stderr is for logs",
        };
        format!("{how}; the line is `{}`", self.expected)
    }
}

impl fmt::Display for NearHandshake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fault = match self.fault {
            HandshakeFault::ByteOrderMark => "it begins with a byte-order mark",
            HandshakeFault::Utf16 => "it is in UTF-16",
            HandshakeFault::TextBefore => "other text is before it on the line",
            HandshakeFault::TextAfter => "other text is after it on the line",
            HandshakeFault::Wrapped => "it is inside of quotes or another JSON text",
            HandshakeFault::Name => "the name is not in lower case",
            HandshakeFault::Broken => "the line holds only a part of it",
            HandshakeFault::NotJson => "it is not JSON",
            HandshakeFault::NoNewline => "the newline at its end is missing",
            HandshakeFault::NotFlushed => "it came only after the end of its input",
            HandshakeFault::OnStderr => "it came on stderr",
        };
        let line: Vec<u8> = self.line.iter().copied().filter(|byte| *byte != 0).collect();
        write!(f, "expected `{}`, got {}: {fault}", self.expected, excerpt(&line))
    }
}

/// What an expected line is.
fn announcement(expected: &str) -> &'static str {
    if expected.contains("openwhisk") { "handshake" } else { "acknowledgement" }
}

impl fmt::Display for Awaited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Handshake(version) => {
                write!(f, r#"has not sent its handshake `{{"openwhisk":{version}}}` on stdout"#)
            }
            Self::Acknowledgement => f.write_str(r#"has not sent its acknowledgement `{"ok":true}` on descriptor 3"#),
            Self::HandshakeOrAcknowledgement => {
                f.write_str(r#"has sent neither a handshake nor the acknowledgement `{"ok":true}` on descriptor 3"#)
            }
            Self::HandshakeAgain => f.write_str("has not sent the handshake that it sent at an earlier start"),
            Self::Input => f.write_str("is not waiting for input"),
            Self::HandshakeOrInput => f.write_str("has not sent a handshake and is not waiting for input"),
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V1 => "1",
            Self::V2 => "2",
        })
    }
}

impl Stage {
    fn sentence(&self, exit: &ExitReport) -> String {
        let tail = quoted(": ", &exit.stderr_tail);
        match self {
            Self::BeforeReady => format!("{exit}, before it was ready{tail}"),
            Self::AfterLine { line } => format!(
                "{exit}, before it was ready; its first line was not a handshake: {}{}",
                excerpt(line.as_bytes()),
                quoted("; the end of its stderr: ", &exit.stderr_tail)
            ),
            Self::AfterNearHandshake(near) => format!(
                "{exit}, before it was ready; its {} was malformed: {near}{}",
                announcement(near.expected),
                quoted("; the end of its stderr: ", &exit.stderr_tail)
            ),
            Self::BeforeAcknowledgement => format!(
                r#"{exit}, before it was ready: it had not sent its acknowledgement `{{"ok":true}}` on descriptor 3{}"#,
                quoted("; the end of its stderr: ", &exit.stderr_tail)
            ),
            Self::ChannelClosed => format!("closed its result channel before it was ready, and {exit}{tail}"),
        }
    }
}

/// The kernel found no format that it can execute.
fn is_bad_format(reason: &io::Error) -> bool {
    reason.raw_os_error() == Some(rustix::io::Errno::NOEXEC.raw_os_error())
}

fn refusal(reason: &io::Error) -> String {
    if is_bad_format(reason) {
        "exec format error: it is not an executable for this machine".into()
    } else {
        reason.to_string()
    }
}
