//! Faults that only a check can find, because no single activation fails by them.

use std::fmt;
use std::time::Duration;

use crate::error::codes;
use crate::process::ExitStatus;
use crate::process::orphans::Orphan;
use crate::process::spawn::ResultChannel;
use crate::text::{excerpt, listing, millis};

/// A promise of the protocol that an action breaks.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "the fields are the facts that the sentence of each is made of")]
pub enum Finding {
    /// Output came only at the end of the input, or of the activation.
    NotFlushed { output: Output, until: HeldUntil, line: Vec<u8>, hint: String },
    /// Lines on the result channel that are not answers.
    Stray { channel: ResultChannel, line: Vec<u8> },
    /// Unicode does not come back as it was sent.
    Unicode { reason: String },
    /// It does not exit at the end of its input, or not with status 0.
    EndOfFile { ended: Option<ExitStatus>, within: Duration },
    /// It does not exit on SIGTERM.
    Terminate { within: Duration },
    /// It leaves processes behind.
    LeftBehind { orphans: Vec<Orphan> },
    /// A frame that belongs to no activation in flight.
    Frame { fault: FrameFault, line: Vec<u8> },
    /// It does not do what its handshake promises.
    Promise { promise: Promise, seen: String },
}

/// Output that an action held back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the name is all there is to say")]
pub enum Output {
    Answer,
    Handshake,
    Chunks,
}

/// How long output was held back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the time is that since the activation was sent")]
pub enum HeldUntil {
    /// Until the input had ended.
    EndOfInput,
    /// Until the last frame of the activation.
    EndOfActivation { after: Duration },
}

/// Why a frame belongs to no activation, or to the wrong one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are numbers of activations")]
pub enum FrameFault {
    /// It has no id, and several may be in flight.
    NoId,
    /// Its id was never sent.
    UnknownId { last_sent: Option<u64> },
    /// It comes after the last frame of its activation.
    AfterEnd { id: Option<u64> },
    /// It holds the arguments of another activation.
    MixedUp { id: u64 },
}

/// A promise in a handshake of version 2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the name of the member of the handshake is all there is to say")]
pub enum Promise {
    Concurrency(usize),
    Cancel,
    Pause,
    Stop,
}

codes! {
    /// The stable code, as for [`crate::error::Error`].
    Finding,
    Finding::NotFlushed { .. } => "PL094",
    Finding::Stray { .. } => "PL095",
    Finding::Unicode { .. } => "PL096",
    Finding::EndOfFile { .. } => "PL097",
    Finding::Terminate { .. } => "PL098",
    Finding::LeftBehind { .. } => "PL099",
    Finding::Frame { .. } => "PL103",
    Finding::Promise { .. } => "PL104",
}

/// How many orphans the message names.
const MAX_NAMED: usize = 5;

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotFlushed { output, until, line, .. } => {
                write!(f, "the {output} came only {until}: {}", excerpt(line))
            }
            Self::Stray { channel, line } => {
                write!(f, "there is something other than answers on {}: {}", channel.name(), excerpt(line))
            }
            Self::Unicode { reason } => write!(f, "Unicode does not come back as it was sent: {reason}"),
            Self::EndOfFile { ended: None, within } => {
                write!(f, "it did not exit within {} after the end of its input, and was killed", millis(*within))
            }
            Self::EndOfFile { ended: Some(status), .. } => write!(f, "it {status} at the end of its input"),
            Self::Terminate { within } => {
                write!(f, "it did not exit within {} after SIGTERM, and was killed", millis(*within))
            }
            Self::LeftBehind { orphans } => {
                let names: Vec<_> = orphans.iter().take(MAX_NAMED).map(|orphan| orphan.name.clone()).collect();
                let more = orphans.len() - names.len();
                write!(f, "processes outlive it: {}", listing(&names, more))
            }
            Self::Frame { fault, line } => {
                match fault {
                    FrameFault::NoId => f.write_str("a frame has no `id`, and several may be in flight")?,
                    FrameFault::UnknownId { last_sent: Some(last_sent) } => {
                        write!(
                            f,
                            "a frame has an `id` of no activation in flight; {last_sent} was the last that was sent"
                        )?;
                    }
                    FrameFault::UnknownId { last_sent: None } => f.write_str("a frame came before any activation")?,
                    FrameFault::AfterEnd { id: Some(id) } => {
                        write!(f, "a frame for activation {id} came after its last one")?;
                    }
                    FrameFault::AfterEnd { id: None } => f.write_str("a frame came while nothing was in flight")?,
                    FrameFault::MixedUp { id } => {
                        write!(f, "a frame for activation {id} holds the arguments of another")?;
                    }
                }
                write!(f, ": {}", excerpt(line))
            }
            Self::Promise { promise, seen } => write!(f, "its handshake promises `{promise}`, but {seen}"),
        }
    }
}

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Answer => "answer",
            Self::Handshake => "handshake",
            Self::Chunks => "chunks",
        })
    }
}

impl fmt::Display for HeldUntil {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::EndOfInput => f.write_str("after the end of its input"),
            Self::EndOfActivation { after } => {
                write!(f, "together with the last frame, {} after the activation was sent", millis(*after))
            }
        }
    }
}

/// As it stands in the handshake.
impl fmt::Display for Promise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Concurrency(count) => write!(f, "\"concurrency\":{count}"),
            Self::Cancel => f.write_str("\"cancel\":true"),
            Self::Pause => f.write_str("\"pause\":true"),
            Self::Stop => f.write_str("\"stop\":true"),
        }
    }
}

impl Finding {
    /// How to fix it.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::NotFlushed { hint, .. } => hint.clone(),
            Self::Stray { .. } => "print logs on stderr, also those of child processes (`command >&2`); or write the handshake and the answers to descriptor 3, so that stdout is a log".into(),
            Self::Unicode { .. } => "read and write UTF-8 in every locale: `sys.stdin.reconfigure(encoding=\"utf-8\")`, `binmode(STDOUT, \":utf8\")`, `Encoding.default_external = \"UTF-8\"`".into(),
            Self::EndOfFile { ended: None, .. } => "leave the loop when there is no next line, and let no thread or child process keep the program alive".into(),
            Self::EndOfFile { ended: Some(_), .. } => "leave the loop when there is no next line, and exit with status 0".into(),
            Self::Terminate { .. } => "do not ignore SIGTERM; a handler has to exit".into(),
            Self::LeftBehind { .. } => "wait for child processes before the program exits, and start no daemons: on a platform they would run beside the next activation".into(),
            Self::Frame { fault: FrameFault::NoId, .. } => r#"copy the id of the `run` frame into every frame, `chunk` and `log` too: `{"id":7,"result":{}}`; or leave `concurrency` out of the handshake"#.into(),
            Self::Frame { fault: FrameFault::UnknownId { .. }, .. } => "send the `id` back unchanged: a whole number of up to 64 bits, not a string or a float, and no id of its own".into(),
            Self::Frame { fault: FrameFault::AfterEnd { .. }, .. } => "end each activation with exactly one of `result`, `error` and `end`, and write nothing for it after that, also when a `cancel` comes late".into(),
            Self::Frame { fault: FrameFault::MixedUp { .. }, .. } => "keep the id and the arguments of an activation together, in variables of its own thread or task; a global, or a variable of the reading loop, belongs to another activation by then".into(),
            Self::Promise { promise: Promise::Concurrency(_), .. } => "start a thread, task or process for each `run` frame and go on reading; or promise a smaller `concurrency`, and start several processes with `PIPELOOP_WORKERS`".into(),
            Self::Promise { promise: Promise::Cancel, .. } => "go on reading while activations run, and end the one that a `cancel` names, with `error` or `end`; ignore ids that have ended; or leave `cancel` out of the handshake".into(),
            Self::Promise { promise: Promise::Pause, .. } => "write nothing for an id between its `pause` and its `resume` (or `cancel`), and go on then; ignore ids that have ended; or leave `pause` out of the handshake".into(),
            Self::Promise { promise: Promise::Stop, .. } => "leave the loop when `stop` comes or when the input ends, and exit with status 0; or leave `stop` out of the handshake".into(),
        }
    }
}
