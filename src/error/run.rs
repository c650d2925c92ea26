//! Activations that have no result.

use std::fmt;
use std::time::Duration;

use super::{ExitReport, JsonType, exit_report, quoted};
use crate::process::spawn::ResultChannel;
use crate::text::{excerpt, millis};

/// Why an activation has no result.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the fields are the facts that the sentence of each cause is made of")]
pub enum RunError {
    /// The answer is not one JSON object or array on one line. The caller gets the text that platforms
    /// compare, and how the process failed, if it did; the log gets the problem.
    #[error("{BAD_ANSWER}{}", .exit.as_ref().map_or_else(String::new, failure))]
    BadAnswer { problem: BadAnswer, exit: Option<ExitReport> },

    /// The action exited during the activation.
    #[error("the action {exit}, before it answered{}", quoted(": ", &.exit.stderr_tail))]
    ExitedBeforeAnswer { exit: ExitReport },

    /// The action closed its result channel and kept running.
    #[error("the action closed {channel} before it answered but kept running; it was stopped")]
    ChannelClosed { channel: ResultChannel },

    /// The answer exceeds its limit.
    #[error("the action's answer is too long: at most {limit_bytes} bytes are accepted; the action was stopped")]
    AnswerTooLong { limit_bytes: u64 },

    /// The action waits for the next activation and can no longer answer this one.
    #[error("the action read the activation and waits for the next one, but {}", .silence.sentence(*.channel))]
    NeverAnswered {
        silence: Silence,
        channel: ResultChannel,
        /// How its programs flush their output.
        flush: String,
    },

    /// The activation ran out of time.
    #[error("the action did not answer {limit} and was stopped after {}", millis(*.after))]
    TimeOut { limit: TimeLimit, after: Duration },

    /// The activation's deadline passed while it was queued.
    #[error("the activation's deadline passed while it was queued; it was not started")]
    Expired,

    /// The action fails again and again, so that the proxy pauses before the next start.
    #[error("the action failed {crashes} times in a row and is not restarted for {}; the last failure: {last}", millis(*.retry_in))]
    CrashLoop { crashes: u32, last: String, retry_in: Duration },

    /// The action, of version 2, wrote a line that is not a frame for this activation.
    #[error("the action wrote a frame {problem}: {}", excerpt(.line.as_bytes()))]
    BadFrame { problem: String, line: String },

    /// The caller of a stream read so slowly that it fell behind by a whole buffer.
    #[error(
        "the caller reads more slowly than the action writes and fell behind by {limit_bytes} bytes; its stream was ended so that other activations of the process do not wait"
    )]
    Overrun { limit_bytes: u64 },

    /// A frame exceeds its limit, and it may belong to any activation in flight.
    #[error(
        "the action wrote a frame of more than {limit_bytes} bytes while {in_flight} activations were in flight; it was stopped, and all of them failed"
    )]
    FrameTooLong { limit_bytes: u64, in_flight: usize },

    /// The proxy shut down before the activation ended.
    #[error("the proxy shut down and the action did not answer in time; it was stopped after {}", millis(*.after))]
    CutOff { after: Duration },

    /// The queue is full.
    #[error("the queue is full: {limit} activations are waiting")]
    QueueFull { limit: usize },

    /// The action has exited, and the settings forbid a restart.
    #[error("the action has ended and is not restarted: {last}")]
    NotRestarted { last: String },
}

/// What is wrong with an answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "as for the errors")]
pub enum BadAnswer {
    /// Not JSON: the line and the parser's reason.
    #[error("the action's answer is not JSON ({reason}): {}", excerpt(.line.as_bytes()))]
    NotJson { line: String, reason: String },
    /// JSON, and neither object nor array.
    #[error("the action's answer is {found}, not an object or array: {}", excerpt(.line.as_bytes()))]
    WrongType { line: String, found: JsonType },
    /// A second line follows the first.
    #[error(
        "the action's answer spans more than one line: {} and {}",
        excerpt(.first.as_bytes()),
        excerpt(.second.as_bytes())
    )]
    TwoLines { first: String, second: String },
    /// The process ended without a line.
    #[error("the action ended without an answer")]
    Nothing,
    /// The process ended in the middle of a line.
    #[error("the action ended in the middle of its answer, without a newline: {}", excerpt(.line.as_bytes()))]
    Unterminated { line: String },
}

/// What came in place of an answer that can never come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Silence {
    /// An empty line.
    EmptyLine,
    /// A line without its end.
    Unfinished {
        /// The line.
        line: String,
        /// Whether a CR stands in place of the LF.
        carriage_return: bool,
    },
    /// Nothing. It may be in a buffer of the process.
    Nothing,
}

impl Silence {
    fn sentence(&self, channel: ResultChannel) -> String {
        match self {
            Self::EmptyLine => "it printed an empty line in place of its answer".into(),
            Self::Unfinished { line, carriage_return: false } => {
                format!("its answer does not end with a newline: {}", excerpt(line.as_bytes()))
            }
            Self::Unfinished { line, carriage_return: true } => {
                format!("its answer ends with CR and not with a newline (LF): {}", excerpt(line.as_bytes()))
            }
            Self::Nothing => format!("it wrote no answer on {channel}, or did not flush it"),
        }
    }
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

impl RunError {
    /// What to do about it, when there is something to do that the sentence does not say.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::BadAnswer { problem: BadAnswer::TwoLines { .. }, .. } => {
                "write each answer on one line (no pretty-printing, as with `jq -c`), and logs on stderr".into()
            }
            // The rest is on the next lines.
            Self::BadAnswer { problem: BadAnswer::NotJson { reason, .. }, .. } if reason.starts_with("EOF ") => {
                "write each answer on one line (no pretty-printing, as with `jq -c`), and logs on stderr".into()
            }
            // What a shell could not find or execute says more than the answer that is missing.
            Self::BadAnswer { exit: Some(exit), .. } if exit.lacks_program() => {
                return exit_report::hint(exit, None);
            }
            Self::BadAnswer { .. } => {
                "answer each activation with one JSON object or array on one line, and flush it; logs belong on stderr".into()
            }
            Self::ExitedBeforeAnswer { exit } => return exit_report::hint(exit, None),
            Self::ChannelClosed { .. } => "keep the channel open for as long as the action serves".into(),
            Self::AnswerTooLong { .. } => "return less, or raise `PIPELOOP_MAX_RESULT`".into(),
            Self::NeverAnswered { silence: Silence::EmptyLine, .. } => "print an object for each line, also where there is nothing to say: `{}`; in a shell, look at what fails inside of `$(…)`".into(),
            Self::NeverAnswered { silence: Silence::Unfinished { .. }, .. } => r"end each answer with LF (`\n`), and flush it".into(),
            Self::NeverAnswered { silence: Silence::Nothing, channel: ResultChannel::Descriptor3, flush } => {
                format!(r#"an action without a handshake answers on descriptor 3; to answer on stdout, print `{{"openwhisk":1}}` first; {flush}"#)
            }
            Self::NeverAnswered { silence: Silence::Nothing, flush, .. } => flush.clone(),
            Self::TimeOut { limit: TimeLimit::Deadline, .. } => {
                "give the action a longer time limit on the platform, or make it faster; an answer that was not flushed looks like this too".into()
            }
            Self::TimeOut { limit: TimeLimit::RunTimeout, .. } => {
                "raise `PIPELOOP_RUN_TIMEOUT`, or make the action faster; an answer that was not flushed looks like this too".into()
            }
            Self::Expired => "send fewer activations at once, or give them a longer time limit on the platform".into(),
            Self::CrashLoop { .. } => "fix the cause, which the logs of the failed activations show; the first answer ends the pauses".into(),
            Self::BadFrame { .. } => r#"write one JSON object a line, with `id` and one of `chunk`, `result`, `error`, `end` and `log`, such as `{"id":1,"result":{}}`; logs belong on stderr"#.into(),
            Self::Overrun { .. } => r#"promise `"pause":true` in the handshake and stop writing when asked to; or raise `PIPELOOP_STREAM_BUFFER`; or read faster"#.into(),
            Self::FrameTooLong { .. } => "write smaller frames, or raise `PIPELOOP_MAX_RESULT`".into(),
            Self::CutOff { .. } => "raise `PIPELOOP_DRAIN_GRACE` and the platform's own grace period, or make the action faster".into(),
            Self::QueueFull { .. } => "try again later, or raise `PIPELOOP_QUEUE`".into(),
            Self::NotRestarted { .. } => "`PIPELOOP_RESTART` is `never`: start another container, or set it to `always`".into(),
        })
    }

    /// The sentence without anything that the activation wrote: no line of its log and no part of its answer.
    #[must_use]
    pub fn without_output(&self) -> String {
        match self {
            Self::BadAnswer { problem, exit: Some(exit) } => format!("{}; it {exit}", problem.without_output()),
            Self::BadAnswer { problem, exit: None } => problem.without_output().into(),
            Self::ExitedBeforeAnswer { exit } => format!("the action {exit}, before it answered"),
            Self::BadFrame { .. } => "the action wrote a line that is not a frame for its activation".into(),
            Self::NeverAnswered { .. } => {
                "the action read an activation and waits for the next one without an answer".into()
            }
            Self::ChannelClosed { .. }
            | Self::AnswerTooLong { .. }
            | Self::TimeOut { .. }
            | Self::Expired
            | Self::CrashLoop { .. }
            | Self::Overrun { .. }
            | Self::FrameTooLong { .. }
            | Self::CutOff { .. }
            | Self::QueueFull { .. }
            | Self::NotRestarted { .. } => self.to_string(),
        }
    }

    /// What the action's author should read in the log in place of the sentence, when there is more:
    /// the offending line of an unusable answer.
    #[must_use]
    pub fn detail(&self) -> Option<String> {
        match self {
            Self::BadAnswer { problem, exit: None } => Some(problem.to_string()),
            Self::BadAnswer { problem, exit: Some(exit) } => Some(format!("{problem}; it {exit}")),
            _ => None,
        }
    }
}

impl BadAnswer {
    fn without_output(&self) -> &'static str {
        match self {
            Self::NotJson { .. } => "the action's answer is not JSON",
            Self::WrongType { .. } => "the action's answer is not an object or array",
            Self::TwoLines { .. } => "the action's answer spans more than one line",
            Self::Nothing => "the action ended without an answer",
            Self::Unterminated { .. } => "the action ended in the middle of its answer, without a newline",
        }
    }
}

impl fmt::Display for TimeLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Deadline => "by the activation's deadline",
            Self::RunTimeout => "within the run timeout",
        })
    }
}

/// What follows the fixed text: nothing, unless the process failed.
fn failure(exit: &ExitReport) -> String {
    if exit.is_success() { String::new() } else { format!(" It {exit}{}", quoted(": ", &exit.stderr_tail)) }
}
