//! Actions that do not become ready.

use std::path::PathBuf;
use std::time::Duration;

use super::{Ending, exit_report, quoted};
use crate::text::{excerpt, millis};

/// Why the action does not become ready.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the fields are the facts that the sentence of each cause is made of")]
pub enum StartError {
    /// The kernel refused to execute it.
    #[error("cannot start the action `{}`: {reason}", .path.display())]
    CannotStart { path: PathBuf, reason: String, hint: &'static str },

    /// It ended before it was ready.
    #[error("the action {}", .stage.sentence(.ending))]
    EndedAtStart { ending: Ending, stage: Stage },

    /// It is alive and has not become ready.
    #[error("the action was not ready within {}: it {awaited}{}", millis(*.limit), quoted("; the last it said: ", .tail))]
    NotReady { limit: Duration, awaited: &'static str, tail: String },

    /// Its first line is not the handshake or acknowledgement that was asked for.
    #[error(
        "the action's first line on {channel} is not its handshake: expected `{expected}`, got {}",
        excerpt(.line.as_bytes())
    )]
    WrongFirstLine { expected: &'static str, line: String, channel: &'static str },

    /// A member of its handshake has a type or value that cannot be used.
    #[error("`{member}` of the action's handshake must be {expected}, got {found}: {}", excerpt(.line.as_bytes()))]
    BadHandshake { member: &'static str, expected: &'static str, found: String, line: String },

    /// Its handshake names a version that is not spoken here.
    #[error(
        "the action's handshake names version {version} of the native protocol, this proxy shakes hands on versions 1 and 2"
    )]
    UnsupportedVersion { version: String },

    /// It waits for input without having sent the handshake that was asked for.
    #[error("the action waits for input and has not sent the handshake of protocol {protocol}")]
    NoHandshake { protocol: &'static str },
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

impl StartError {
    /// What to do about it, when there is something to do that the sentence does not say.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::CannotStart { hint, .. } => (*hint).into(),
            Self::EndedAtStart { ending, stage } => return exit_report::hint(ending, Some(stage)),
            Self::NotReady { .. } => "if it only needs more time, raise `PIPELOOP_INIT_TIMEOUT`".into(),
            Self::WrongFirstLine { .. } => "print the handshake before anything else on that channel, and logs on stderr; with `PIPELOOP_PROTOCOL=auto` earlier lines are taken as logs".into(),
            Self::BadHandshake { .. } => r#"print `{"openwhisk":1}`, or `{"openwhisk":1,"context":true}` to get whole activations, or `{"openwhisk":2,"concurrency":8}`; a log line with a member `openwhisk` belongs on stderr"#.into(),
            Self::UnsupportedVersion { .. } => "this release speaks versions 1 and 2, the actionloop dialect, and version 0, which has no handshake and is asked for with `PIPELOOP_PROTOCOL=0`".into(),
            Self::NoHandshake { .. } => "print it at start and flush the output; without a handshake, set `PIPELOOP_PROTOCOL` to `actionloop` or `auto`".into(),
        })
    }
}

impl Stage {
    fn sentence(&self, ending: &Ending) -> String {
        let tail = quoted(": ", &ending.tail);
        match self {
            Self::BeforeReady => format!("{ending}, before it was ready{tail}"),
            Self::AfterLine { line } => format!(
                "{ending}, before it was ready; its first line was no handshake: {}{}",
                excerpt(line.as_bytes()),
                quoted("; its last words: ", &ending.tail)
            ),
            Self::ChannelClosed => format!("closed its result channel before it was ready, and {ending}{tail}"),
        }
    }
}
