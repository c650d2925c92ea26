//! A conversation with a kept process, of whichever version.
//!
//! For whoever has one activation at a time and does not care how it is spoken about: a check, and
//! the first activation of a process whose protocol is not known before.

use crate::activation::{Activation, Answer};
use crate::logs::Logs;
use crate::process::Process;

use super::line::LineReader;
use super::multiplex::Multiplex;
use super::pipe_loop::{NoAnswer, PipeLoop};
use crate::error::Channel;

/// The conversation with a process that is ready.
#[derive(Debug)]
pub enum Conversation {
    /// Version 1 or the dialect.
    PipeLoop(PipeLoop),
    /// Version 2.
    Multiplex(Multiplex),
}

macro_rules! either {
    ($self:expr, $conversation:ident => $do:expr) => {
        match $self {
            Conversation::PipeLoop($conversation) => $do,
            Conversation::Multiplex($conversation) => $do,
        }
    };
}

impl Conversation {
    /// Sends one activation and waits for its answer, as [`PipeLoop::interact`] does.
    ///
    /// # Errors
    /// [`NoAnswer`].
    pub async fn interact(
        &mut self,
        activation: &mut Activation,
        limit_bytes: u64,
        process: &Process,
        logs: &mut Logs,
    ) -> Result<Answer, NoAnswer> {
        either!(self, conversation => conversation.interact(activation, limit_bytes, process, logs).await)
    }

    /// Watches it while nothing is in flight. Returns when the result channel has ended.
    pub async fn idle(&mut self, logs: &mut Logs) {
        either!(self, conversation => conversation.idle(logs).await);
    }

    /// The conversation of version 2, if it is one.
    pub fn as_multiplex(&mut self) -> Option<&mut Multiplex> {
        match self {
            Self::Multiplex(multiplex) => Some(multiplex),
            Self::PipeLoop(_) => None,
        }
    }

    /// Keeps the first strays from now on, beside telling them in the log.
    pub fn keep_strays(&mut self) {
        either!(self, conversation => conversation.keep_strays());
    }

    /// Takes the strays that were kept.
    pub fn take_strays(&mut self) -> Vec<Vec<u8>> {
        either!(self, conversation => conversation.take_strays())
    }

    /// Whether the process has read everything and waits for more; `None` where nobody can tell.
    #[must_use]
    pub fn waits_for_input(&self, process: &Process) -> Option<bool> {
        either!(self, conversation => conversation.waits_for_input(process))
    }

    /// Where results come from.
    #[must_use]
    pub fn channel(&self) -> Channel {
        either!(self, conversation => conversation.channel())
    }

    /// The protocol as it is called in `PIPELOOP_PROTOCOL`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::PipeLoop(pipe_loop) => pipe_loop.name(),
            Self::Multiplex(_) => "2",
        }
    }

    /// Lets go of the process: closing its input asks it to end.
    #[must_use]
    pub fn into_results(self) -> LineReader {
        either!(self, conversation => conversation.into_results())
    }
}
