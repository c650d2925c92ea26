//! How the proxy talks to the executable: the protocols, from the handshake to the last answer.
//!
//! Knows lines, JSON and processes; knows no HTTP, no status code and no queue.
//!
//! - [`mod@line`]: pipe ends that carry lines, with their bounds
//! - [`link`]: both pipe ends of one process
//! - [`handshake`]: parses handshakes and acknowledgements
//! - [`detect`]: waits until a process is ready, and finds out which protocol it speaks
//! - [`pipe_loop`]: version 1, the actionloop dialect and filters, one kept process
//! - [`multiplex`]: version 2, one kept process, several activations at once
//! - [`ledger`]: which activations are in flight there
//! - [`frame`]: parses the lines that such a process writes
//! - [`silence`]: sees that an answer can never come
//! - [`conversation`]: a kept process of either version
//! - [`single_shot`]: version 0, one process for each activation
//! - [`answer`]: checks and builds answers

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
pub mod silence;
pub mod single_shot;

use std::fmt;
use std::str::FromStr;

/// A protocol, as `PIPELOOP_PROTOCOL` sets it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Protocol {
    /// `0`: one process for each activation, which gets the arguments and prints the result as the last
    /// line of stdout.
    SingleShot,
    /// `1`: one kept process with a handshake; one line in, one line out.
    PipeLoop,
    /// `2`: one kept process with a handshake; frames, several activations at once.
    Streams,
    /// `actionloop`: as 1 without a handshake; whole activations in, results on descriptor 3.
    ActionLoop,
    /// `filter`: one kept process that answers each line of arguments with a line, without a handshake.
    Filter,
    /// `auto`: 1, 2 or actionloop, whichever the process shows first. For a command line, filter in place of actionloop.
    #[default]
    Auto,
}

impl Protocol {
    /// Every protocol.
    pub const ALL: [Self; 6] =
        [Self::SingleShot, Self::PipeLoop, Self::Streams, Self::ActionLoop, Self::Filter, Self::Auto];

    /// Its name in `PIPELOOP_PROTOCOL`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::SingleShot => "0",
            Self::PipeLoop => "1",
            Self::Streams => "2",
            Self::ActionLoop => "actionloop",
            Self::Filter => "filter",
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
