//! What is sent to a worker: activations with their replies.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::activation::{Activation, Answer};
use crate::error::{Error, RunError};
use crate::memory_budget::MemoryBudget;

use super::queue::QueuePermit;
use super::response_stream::{StreamItem, StreamSender};

/// A deadline, and who came first of those who look after it.
pub(super) type Claim = (Instant, Arc<AtomicBool>);

/// What is sent to a worker.
#[derive(Debug)]
pub(super) enum Message {
    /// An activation.
    Run(Job),
    /// An activation that cannot be begun.
    Refuse(oneshot::Sender<()>),
    /// A sentence for the log.
    Say(String),
}

/// An activation and who waits for its answer.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) activation: Activation,
    pub(super) deadline: Option<Instant>,
    pub(super) reply: Reply,
    pub(super) permit: QueuePermit,
    /// For one that waits with a deadline: set by whoever comes first, the worker that begins it or
    /// its caller at that deadline.
    pub(super) claimed: Option<Arc<AtomicBool>>,
}

/// Where an answer goes.
#[derive(Debug)]
pub(super) enum Reply {
    /// To somebody who wants it whole.
    Whole(oneshot::Sender<Result<Answer, Error>>),
    /// To somebody who takes it in pieces.
    Stream(StreamSender),
}

impl Reply {
    /// Whether nobody waits for it any more.
    pub(super) fn is_closed(&self) -> bool {
        match self {
            Self::Whole(reply) => reply.is_closed(),
            Self::Stream(sender) => sender.is_closed(),
        }
    }

    /// Answers with a result, or with the reason why there is none.
    pub(super) fn send(self, outcome: Result<Answer, Error>) {
        match self {
            // Whoever waited may have left.
            Self::Whole(reply) => drop(reply.send(outcome)),
            Self::Stream(sender) => {
                sender.push(outcome.map_or_else(StreamItem::Broken, StreamItem::Result));
            }
        }
    }
}

impl Message {
    /// Whether somebody still waits for what it brings.
    pub(super) fn is_awaited(&self) -> bool {
        match self {
            Self::Run(job) => {
                let told = job.claimed.as_ref().is_some_and(|claimed| claimed.load(Ordering::Acquire));
                !told && !job.reply.is_closed()
            }
            Self::Refuse(_) | Self::Say(_) => true,
        }
    }
}

impl Job {
    /// Takes it on. Nothing comes back if nobody needs it any more, who is told so then.
    pub(super) fn claim(self, budget: &MemoryBudget) -> Option<Self> {
        let given_up = self.claimed.as_ref().is_some_and(|claimed| claimed.swap(true, Ordering::AcqRel));
        if given_up || self.reply.is_closed() {
            // Its caller left or was told before it began.
            return None;
        }
        if self.deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            // The same, seen from here first. It takes nothing with it.
            self.reply.send(Err(Error::Run(RunError::Expired)));
            return None;
        }
        if let Err(error) = budget.check_begin(&self.activation.reservation) {
            // Its answer would come on top of what nobody takes. It has not begun, and may come again.
            self.reply.send(Err(error));
            return None;
        }
        Some(self)
    }
}

/// What a worker tells first. While no worker has claimed the activation its deadline is watched here.
pub(super) async fn first_reply<T>(claim: Option<Claim>, first: impl Future<Output = T>) -> Result<T, Error> {
    let mut first = std::pin::pin!(first);
    if let Some((deadline, claimed)) = claim {
        tokio::select! {
            biased;
            first = &mut first => return Ok(first),
            () = tokio::time::sleep_until(deadline) => {
                if !claimed.swap(true, Ordering::AcqRel) {
                    return Err(Error::Run(RunError::Expired));
                }
            }
        }
    }
    Ok(first.await)
}

#[cfg(test)]
impl Job {
    /// An activation, and the other end of its reply.
    pub(super) fn for_tests(arguments: &str) -> (Self, oneshot::Receiver<Result<Answer, Error>>) {
        let (reply, waiting) = oneshot::channel();
        let reply = Reply::Whole(reply);
        let activation = Activation::of_arguments(arguments.as_bytes()).expect("arguments");
        (Self { activation, deadline: None, reply, permit: QueuePermit(Arc::new(1.into())), claimed: None }, waiting)
    }
}
