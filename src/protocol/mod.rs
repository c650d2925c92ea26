//! How we talk to the executable: which protocol, from the first sign of life to the last answer.
//!
//! Knows lines, JSON and processes; knows no HTTP, no status and no queue.
//!
//! - [`mod@line`]: framing and bounds
//! - [`detect`]: from a started process to a conversation, or to the reason why there is none
//! - [`pipe_loop`]: version 1 and the actionloop dialect, one kept process
//! - [`multiplex`]: version 2, one kept process, several activations at once
//! - [`frame`]: what such a process writes
//! - [`conversation`]: any of the two
//! - [`single_shot`]: version 0, a process for each activation

pub mod answer;
pub mod conversation;
pub mod detect;
pub mod frame;
pub mod handshake;
pub mod ledger;
pub mod line;
pub mod link;
pub mod multiplex;
pub mod pipe_loop;
pub mod single_shot;

use std::fmt;
use std::str::FromStr;

/// The protocol that was asked for: `PIPELOOP_PROTOCOL`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Protocol {
    /// `0`: a process for each activation, arguments in, the last line of stdout out.
    SingleShot,
    /// `1`: one kept process, a handshake, a line in, a line out.
    PipeLoop,
    /// `2`: one kept process, a handshake, frames, several activations at once.
    Streams,
    /// `actionloop`: as 1 without handshake, whole activations in, results on descriptor 3.
    ActionLoop,
    /// `auto`: 1, 2 or actionloop, by what the process does first.
    #[default]
    Auto,
}

impl Protocol {
    /// Every protocol.
    pub const ALL: [Self; 5] = [Self::SingleShot, Self::PipeLoop, Self::Streams, Self::ActionLoop, Self::Auto];

    /// Its name in `PIPELOOP_PROTOCOL`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::SingleShot => "0",
            Self::PipeLoop => "1",
            Self::Streams => "2",
            Self::ActionLoop => "actionloop",
            Self::Auto => "auto",
        }
    }
}

impl FromStr for Protocol {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|protocol| protocol.name() == name);
        found.ok_or_else(|| format!("expected one of {}", Self::ALL.map(Self::name).join(", ")))
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
