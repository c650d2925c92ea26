//! A conversation with a kept process, of either version.
//!
//! For callers that have one activation at a time, whatever the protocol: a check, and the first
//! activation of a process whose protocol is not known yet.

use crate::activation::{Activation, Answer};
use crate::error::Error;
use crate::logs::Logs;
use crate::process::Process;
use crate::process::spawn::ResultChannel;

use super::Protocol;
use super::handshake::Announced;
use super::line::LineReader;
use super::link::Link;
use super::multiplex::Multiplex;
use super::pipe_loop::{IdleEnd, NoAnswer, PipeLoop};

/// The conversation with a process that is ready.
#[derive(Debug)]
pub enum Conversation {
    /// Version 1 or the actionloop dialect.
    PipeLoop(PipeLoop),
    /// Version 2.
    Multiplex(Multiplex),
}

macro_rules! either {
    ($self:expr, $conversation:ident => $body:expr) => {
        match $self {
            Conversation::PipeLoop($conversation) => $body,
            Conversation::Multiplex($conversation) => $body,
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

    /// Begins the conversation that a process has announced.
    pub(super) fn announced(link: Link, announced: Announced) -> Self {
        match announced {
            Announced::Version1(payload) => Self::PipeLoop(PipeLoop::new(link, payload)),
            Announced::Version2(promises) => Self::Multiplex(Multiplex::new(link, promises)),
        }
    }

    /// Watches the process while no activation is in flight. Returns when the result channel has ended, or when the
    /// process has announced its protocol.
    pub async fn idle(&mut self, logs: &mut Logs) -> IdleEnd {
        match self {
            Self::PipeLoop(pipe_loop) => pipe_loop.idle(logs).await,
            Self::Multiplex(multiplex) => {
                multiplex.idle(logs).await;
                IdleEnd::ChannelEnded
            }
        }
    }

    /// Begins the conversation that the process has announced since it counted as ready.
    ///
    /// # Errors
    /// As for a handshake during the start. The process must be stopped then.
    pub fn switch(self, logs: &mut Logs) -> Result<Self, Error> {
        match self {
            Self::PipeLoop(pipe_loop) => pipe_loop.switch(logs),
            multiplex @ Self::Multiplex(_) => Ok(multiplex),
        }
    }

    /// The conversation of version 2, if it is one.
    pub fn as_multiplex(&mut self) -> Option<&mut Multiplex> {
        match self {
            Self::Multiplex(multiplex) => Some(multiplex),
            Self::PipeLoop(_) => None,
        }
    }

    /// From now on keeps the first strays, which are logged in any case.
    pub fn keep_strays(&mut self) {
        either!(self, conversation => conversation.link_mut().keep_strays());
    }

    /// Takes the strays that were kept.
    pub fn take_strays(&mut self) -> Vec<Vec<u8>> {
        either!(self, conversation => conversation.link_mut().take_strays())
    }

    /// Whether the process has read everything and waits for more; `None` where `/proc` does not show it.
    #[must_use]
    pub fn waits_for_input(&self, process: &Process) -> Option<bool> {
        match self {
            Self::PipeLoop(pipe_loop) => pipe_loop.link().waits_for_input(process),
            Self::Multiplex(multiplex) => multiplex.waits_for_input(process),
        }
    }

    /// Where results come from.
    #[must_use]
    pub fn channel(&self) -> ResultChannel {
        either!(self, conversation => conversation.link().channel())
    }

    /// The protocol that the process speaks.
    #[must_use]
    pub fn protocol(&self) -> Protocol {
        match self {
            Self::PipeLoop(pipe_loop) => pipe_loop.protocol(),
            Self::Multiplex(_) => Protocol::Streams,
        }
    }

    /// Closes the input of the process, which asks it to end, and returns its result channel.
    #[must_use]
    pub fn into_results(self) -> LineReader {
        either!(self, conversation => conversation.into_link().into_results())
    }
}
