//! A job: an activation on its way to a worker, with its reply and everything that it occupies.
//!
//! A job holds a permit of the queue and a reservation of memory. Both are given back by dropping the job,
//! so a path that loses a job frees them too. Knows no worker and no process.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::activation::{Activation, Answer};
use crate::error::{Error, RunError};
use crate::memory_budget::{MemoryBudget, Reservation};

use super::queue::{Accepted, QueuePermit};
use super::response_stream::{StreamItem, StreamSender};

/// What is sent to a worker.
#[derive(Debug)]
pub(super) enum Message {
    /// An activation to run.
    Run(Job),
    /// An activation that is refused. Only its log, which is empty, is written.
    Refuse(oneshot::Sender<()>),
    /// A sentence for the log.
    Say(String),
}

/// An activation, its reply, and what it occupies until it is answered.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) activation: Activation,
    pub(super) deadline: Option<Instant>,
    pub(super) reply: Reply,
    pub(super) permit: QueuePermit,
    /// The memory of the activation's body.
    pub(super) reservation: Reservation,
    /// For a job that waits with a deadline.
    pub(super) claim: Option<Claim>,
}

/// Where an answer goes.
#[derive(Debug)]
pub(super) enum Reply {
    /// To a caller that wants it whole.
    Whole(oneshot::Sender<Result<Answer, Error>>),
    /// To a caller that takes it item by item.
    Stream(StreamSender),
}

/// Decides once between the worker that begins a job and its caller, at whose deadline it expires.
#[derive(Debug, Clone, Default)]
pub(super) struct Claim(Arc<AtomicBool>);

/// The deadline of a job that waits in the queue. Its caller watches it.
#[derive(Debug)]
pub(super) struct QueueDeadline {
    at: Instant,
    claim: Claim,
}

impl Message {
    /// Whether anyone still needs it.
    pub(super) fn is_awaited(&self) -> bool {
        match self {
            Self::Run(job) => {
                let expired = job.claim.as_ref().is_some_and(Claim::is_taken);
                !expired && !job.reply.is_closed()
            }
            Self::Refuse(_) | Self::Say(_) => true,
        }
    }
}

impl Job {
    /// A job for the queue. If it has to wait there and has a deadline, its caller gets that to watch.
    pub(super) fn new(
        activation: Activation,
        reservation: Reservation,
        reply: Reply,
        accepted: Accepted,
    ) -> (Self, Option<QueueDeadline>) {
        let Accepted { permit, waits } = accepted;
        let deadline = activation.time_to_deadline().map(|left| Instant::now() + left);
        let queue_deadline = deadline.filter(|_| waits).map(|at| QueueDeadline { at, claim: Claim::default() });
        let claim = queue_deadline.as_ref().map(|deadline| deadline.claim.clone());
        (Self { activation, deadline, reply, permit, reservation, claim }, queue_deadline)
    }

    /// Claims the job for a worker. Returns nothing if it must not begin: its caller has left, or has an
    /// error for an answer by now.
    pub(super) fn claim(self, budget: &MemoryBudget) -> Option<Self> {
        let expired = self.claim.as_ref().is_some_and(|claim| !claim.take());
        if expired || self.reply.is_closed() {
            return None;
        }
        if self.deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            // The deadline passed, and this worker sees it before the caller does.
            self.reply.send(Err(Error::Run(RunError::Expired)));
            return None;
        }
        if let Err(error) = budget.check_begin(&self.reservation) {
            // Answers that their callers do not take fill the memory; this one would need even more. The
            // activation has not begun, so the caller may send it again.
            self.reply.send(Err(error));
            return None;
        }
        Some(self)
    }
}

impl Reply {
    /// Whether its caller has left.
    pub(super) fn is_closed(&self) -> bool {
        match self {
            Self::Whole(reply) => reply.is_closed(),
            Self::Stream(sender) => sender.is_closed(),
        }
    }

    /// Answers with a result, or with the reason why there is none.
    pub(super) fn send(self, outcome: Result<Answer, Error>) {
        match self {
            // The caller may have left.
            Self::Whole(reply) => drop(reply.send(outcome)),
            Self::Stream(sender) => {
                sender.push(outcome.map_or_else(StreamItem::Broken, StreamItem::Result));
            }
        }
    }
}

impl Claim {
    /// Takes the claim. Returns whether it was free.
    fn take(&self) -> bool {
        !self.0.swap(true, Ordering::AcqRel)
    }

    fn is_taken(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// Waits for the first part of a reply, or for the deadline as long as no worker has claimed the job.
///
/// # Errors
/// [`RunError::Expired`].
pub(super) async fn first_reply<T>(
    deadline: Option<QueueDeadline>,
    reply: impl Future<Output = T>,
) -> Result<T, Error> {
    let mut reply = std::pin::pin!(reply);
    if let Some(QueueDeadline { at, claim }) = deadline {
        tokio::select! {
            biased;
            reply = &mut reply => return Ok(reply),
            () = tokio::time::sleep_until(at) => {
                if claim.take() {
                    return Err(Error::Run(RunError::Expired));
                }
            }
        }
    }
    Ok(reply.await)
}

#[cfg(test)]
impl Job {
    /// A job with these arguments, and the other end of its reply.
    pub(super) fn for_tests(arguments: &str, accepted: Accepted) -> (Self, oneshot::Receiver<Result<Answer, Error>>) {
        let (reply, answer) = oneshot::channel();
        let activation = Activation::of_arguments(arguments.as_bytes()).expect("arguments");
        (Self::new(activation, Reservation::default(), Reply::Whole(reply), accepted).0, answer)
    }
}

#[cfg(test)]
mod tests {
    use super::super::queue::Queue;
    use super::*;

    #[test]
    fn dropping_a_job_gives_its_permit_and_its_memory_back() {
        let (queue, budget) = (Queue::new(1, 0), MemoryBudget::new(Some(10_000)));
        let (reply, _answer) = oneshot::channel();
        let accepted = queue.accept().expect("the first one is accepted");
        let mut reservation = budget.reserve();
        reservation.try_grow_to(10_000).expect("a lone request is admitted");
        let activation = Activation::of_arguments(b"{}").expect("arguments");
        let (job, _) = Job::new(activation, reservation, Reply::Whole(reply), accepted);
        assert!(queue.accept().is_err() && budget.check_announced(1).is_err());
        drop(job);
        assert!(queue.accept().is_ok() && budget.check_announced(1).is_ok());
    }

    #[test]
    fn a_job_is_claimed_by_a_worker_or_expires_but_never_both() {
        let claim = Claim::default();
        assert!(!claim.is_taken());
        assert!(claim.take() && claim.is_taken() && !claim.take());
    }
}
