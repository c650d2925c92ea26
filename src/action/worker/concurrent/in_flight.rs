//! One activation in flight: its state, its caller, and how it ends.

use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::time::Instant;

use crate::activation::{Activation, Answer};
use crate::error::{Error, TimeLimit};
use crate::logs::ConcurrentLog;
use crate::memory_budget::Reservation;
use crate::protocol::answer::{self, Gathered};
use crate::protocol::multiplex::Ticket;
use crate::time::Countdown;

use super::super::super::job::{Job, Reply};
use super::super::super::queue::QueuePermit;
use super::super::super::response_stream::StreamItem;

/// An activation that was taken from the queue and is not in flight yet.
pub(in super::super) struct Pending {
    pub(super) job: Job,
    pub(super) begun: Instant,
    /// Whether a process was started for it.
    pub(super) fresh: bool,
}

impl Pending {
    pub(in super::super) fn new(job: Job) -> Self {
        Self { job, begun: Instant::now(), fresh: false }
    }
}

/// An activation in flight.
pub(super) struct InFlight {
    pub(super) ticket: Ticket,
    /// Kept for another process, in case this one dies without reading it.
    pub(super) activation: Activation,
    /// The memory of the activation's body.
    pub(super) reservation: Reservation,
    pub(super) deadline: Option<Instant>,
    pub(super) limit: TimeLimit,
    pub(super) begun: Instant,
    /// When its time is over, if its limit is a deadline.
    pub(super) ends: Option<Instant>,
    /// Its run timeout.
    pub(super) countdown: Countdown,
    pub(super) state: State,
    /// Its caller, until that has its answer or leaves.
    pub(super) caller: Option<Caller>,
    /// Its log, until that has ended.
    pub(super) log: Option<ConcurrentLog>,
    pub(super) label: Option<Arc<str>>,
    pub(super) backpressure: Backpressure,
    /// Whether the process was started for it.
    pub(super) fresh: bool,
}

/// The caller of an activation.
pub(super) struct Caller {
    pub(super) reply: Reply,
    pub(super) permit: QueuePermit,
    /// Chunks so far, for a caller that wants one body.
    pub(super) gathered: Gathered,
}

/// Whether an activation is slowed down because its caller reads slowly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Backpressure {
    /// It may write as fast as it can.
    Free,
    /// Its caller is slow. Alone in its process, it is not read.
    Slowed,
    /// The process was asked to pause it.
    Paused,
    /// The same, and the process has had its [grace](super::PAUSE_GRACE).
    PauseGraceUsed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// Its caller waits for it.
    Open,
    /// Its caller has left. It may go on for as long as its time limit allows.
    Left,
    /// Its caller has left, and the process was asked to cancel it before this time.
    Cancelled { until: Instant },
    /// Its caller has an error, and its log has ended. The process must end it before this time.
    Failed { until: Instant },
}

/// How an activation ends.
pub(super) enum Outcome {
    /// With a result.
    Answer(Answer),
    /// The action reports a failure.
    ActionError(Bytes),
    /// Without a result: the chunks are the answer.
    End,
    /// The proxy reports an error.
    Error(Error),
}

impl InFlight {
    /// Whether the process still has to finish it.
    pub(super) fn is_awaited(&self) -> bool {
        matches!(self.state, State::Open | State::Left)
    }

    /// Whether it may write less than it could.
    pub(super) fn is_slowed(&self) -> bool {
        self.backpressure != Backpressure::Free
    }

    /// Whether its caller takes a stream.
    pub(super) fn is_streamed(&self) -> bool {
        matches!(&self.caller, Some(Caller { reply: Reply::Stream(_), .. }))
    }

    /// When its state has to be checked again.
    pub(super) fn until(&self) -> Option<Instant> {
        match self.state {
            State::Open | State::Left => self.ends,
            State::Cancelled { until } | State::Failed { until } => Some(until),
        }
    }
}

impl Outcome {
    /// The error of the proxy, if it is one.
    pub(super) fn error(&self) -> Option<&Error> {
        match self {
            Self::Error(error) => Some(error),
            Self::Answer(_) | Self::ActionError(_) | Self::End => None,
        }
    }

    /// Gives the permit back, and answers the caller.
    pub(super) fn send(self, caller: Caller) {
        let Caller { reply, permit, gathered } = caller;
        drop(permit);
        match (reply, self) {
            (reply, Self::Answer(answer)) => reply.send(Ok(answer)),
            (reply, Self::Error(error)) => reply.send(Err(error)),
            (reply @ Reply::Whole(_), Self::ActionError(error)) => reply.send(Ok(answer::failure(&error))),
            (reply @ Reply::Whole(_), Self::End) => reply.send(Ok(gathered.into_answer())),
            (Reply::Stream(sender), Self::ActionError(error)) => {
                sender.push(StreamItem::Failed(error));
            }
            (Reply::Stream(sender), Self::End) => {
                sender.push(StreamItem::End);
            }
        }
    }
}

/// Ready when a caller has left, or has taken enough of what was buffered for it.
pub(super) fn poll_callers(in_flight: &mut [InFlight], low_bytes: usize, context: &mut Context<'_>) -> Poll<()> {
    let mut changed = false;
    for activation in in_flight {
        let low_bytes = activation.is_slowed().then_some(low_bytes);
        changed |= match activation.caller.as_mut().map(|caller| &mut caller.reply) {
            None => false,
            Some(Reply::Whole(reply)) => reply.poll_closed(context).is_ready(),
            Some(Reply::Stream(sender)) => sender.poll_change(low_bytes, context).is_ready(),
        };
    }
    if changed { Poll::Ready(()) } else { Poll::Pending }
}
