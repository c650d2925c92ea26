//! The queue of an action: one queue in front of its workers.
//!
//! Everything that is sent to an action waits here, in order, until a worker takes it. Knows which workers
//! are idle and which have a process; knows nothing of processes themselves, and never waits. It also
//! counts the activations that were accepted and refuses more than its limit.
//!
//! # Theory of operation
//! A message wakes one idle worker: the first in the list that has a process, else the first that has
//! none. So no more processes are started than there are activations at the same time. A worker that
//! comes to the queue takes the message in front, whether or not it was woken. A worker without a process
//! leaves an activation in the queue while another worker has one, and starts its own process first. The
//! activation goes to the first worker that is ready, and a process that does not start takes no
//! activation with it.
//!
//! A worker whose process takes more than one activation comes back for more at once. Until then no worker
//! without a process is woken in its place. When it takes the last activation that it can, others are
//! woken for the rest.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};

use crate::error::{Error, RunError};

use super::job::{Job, Message};

/// One queue and the slots of its workers.
#[derive(Debug)]
pub(super) struct Queue {
    inner: Mutex<Inner>,
    /// How many activations hold a permit.
    accepted: Arc<AtomicUsize>,
    workers: usize,
    /// How many activations one process takes at once.
    concurrency: AtomicUsize,
    /// How many activations may wait.
    limit: usize,
}

#[derive(Debug)]
struct Inner {
    waiting: VecDeque<Message>,
    slots: Vec<WorkerSlot>,
    closed: bool,
}

/// What an accepted activation holds until it is answered. Dropping it gives it back.
#[derive(Debug)]
pub(super) struct QueuePermit(Arc<AtomicUsize>);

/// An activation was accepted.
#[derive(Debug)]
pub(super) struct Accepted {
    pub(super) permit: QueuePermit,
    /// Whether others were accepted before it and are not answered yet.
    pub(super) waits: bool,
}

/// What the queue knows about a worker.
#[derive(Debug)]
struct WorkerSlot {
    has_process: bool,
    /// When it last came, its process took more than one activation.
    takes_several: bool,
    /// It is busy and comes back at once, unless it [becomes unavailable](Queue::mark_unavailable).
    will_return: bool,
    state: State,
}

#[derive(Debug)]
enum State {
    /// It works, or is on its way to the queue.
    Busy,
    /// It waits to be woken.
    Idle(Waker),
}

/// What a worker does next.
#[derive(Debug)]
pub(super) enum Next {
    /// Handles this message, to its end.
    Message(Message),
    /// Starts a process, and comes back.
    Start,
    /// Stops, since no message will come.
    Close,
}

/// What a worker can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Capacity {
    /// It has a process, or needs none, and takes one activation.
    One,
    /// The same, and it takes more than one.
    Several,
    /// It has no process and may start one.
    Start,
    /// It has no process and may not start one.
    Nothing,
}

impl Queue {
    /// An empty queue for so many workers, in which so many activations may wait.
    pub(super) fn new(workers: usize, limit: usize) -> Self {
        let slot = |_| WorkerSlot { has_process: false, takes_several: false, will_return: false, state: State::Busy };
        let inner = Inner { waiting: VecDeque::new(), slots: (0..workers).map(slot).collect(), closed: false };
        Self { inner: Mutex::new(inner), accepted: Arc::default(), workers, concurrency: AtomicUsize::new(1), limit }
    }

    /// Sets how many activations one process takes at once.
    pub(super) fn set_concurrency(&self, concurrency: usize) {
        self.concurrency.store(concurrency, Ordering::Relaxed);
    }

    /// Accepts an activation. If the queue is full, jobs whose callers have left are dropped first.
    ///
    /// # Errors
    /// [`RunError::QueueFull`].
    pub(super) fn accept(&self) -> Result<Accepted, Error> {
        self.try_accept().or_else(|_| {
            self.drop_abandoned();
            self.try_accept()
        })
    }

    fn try_accept(&self) -> Result<Accepted, Error> {
        let running = self.workers.saturating_mul(self.concurrency.load(Ordering::Relaxed));
        let before = self.accepted.fetch_add(1, Ordering::Relaxed);
        let permit = QueuePermit(self.accepted.clone());
        if before >= self.limit.saturating_add(running) {
            return Err(Error::Run(RunError::QueueFull { limit: self.limit }));
        }
        Ok(Accepted { permit, waits: before > 0 })
    }

    /// Puts a message behind all others and wakes a worker for it.
    ///
    /// # Errors
    /// Returns the message when the queue is closed.
    pub(super) fn send(&self, message: Message) -> Result<(), Message> {
        let mut inner = self.inner();
        if inner.closed {
            return Err(message);
        }
        inner.waiting.push_back(message);
        wake_one(inner);
        Ok(())
    }

    /// Waits, at a slot, until there is something to do.
    pub(super) async fn next(&self, slot: usize, capacity: Capacity) -> Next {
        std::future::poll_fn(|context| self.poll_next(slot, capacity, context)).await
    }

    fn poll_next(&self, slot: usize, capacity: Capacity, context: &Context<'_>) -> Poll<Next> {
        let mut inner = self.inner();
        let has_process = matches!(capacity, Capacity::One | Capacity::Several);
        inner.slots[slot].has_process = has_process;
        inner.slots[slot].takes_several = capacity == Capacity::Several;
        let closed = inner.closed;
        if let State::Idle(waker) = &mut inner.slots[slot].state
            && !closed
        {
            // It was not woken by the queue. The message in front is for a worker that was.
            waker.clone_from(context.waker());
            return Poll::Pending;
        }
        let others_may = !has_process && inner.slots.iter().any(|slot| slot.has_process);
        if others_may && matches!(inner.waiting.front(), Some(Message::Run(_))) {
            if capacity == Capacity::Start {
                return Poll::Ready(Next::Start);
            }
        } else if let Some(message) = inner.waiting.pop_front() {
            inner.slots[slot].state = State::Busy;
            let returns = capacity == Capacity::Several;
            let returned = std::mem::replace(&mut inner.slots[slot].will_return, returns);
            // While it was expected back, no worker was woken for the rest.
            if inner.closed && inner.waiting.is_empty() {
                // Nothing will come for the others either.
                wake_all(inner);
            } else if returned && !returns && !inner.waiting.is_empty() {
                wake_one(inner);
            }
            return Poll::Ready(Next::Message(message));
        } else if inner.closed {
            return Poll::Ready(Next::Close);
        }
        inner.slots[slot].state = State::Idle(context.waker().clone());
        inner.slots[slot].will_return = false;
        Poll::Pending
    }

    /// Puts a job in front of all others, for a worker that has a process.
    ///
    /// # Errors
    /// Returns the job when no worker has a process, or the queue is closed. Its worker then has to start
    /// another process.
    pub(super) fn requeue_front(&self, job: Job) -> Result<(), Job> {
        let mut inner = self.inner();
        if inner.closed || !inner.slots.iter().any(|slot| slot.has_process) {
            return Err(job);
        }
        inner.waiting.push_front(Message::Run(job));
        wake_one(inner);
        Ok(())
    }

    /// Whether no message waits.
    pub(super) fn is_empty(&self) -> bool {
        self.inner().waiting.is_empty()
    }

    /// Whether no message waits and none will come.
    pub(super) fn is_closed_and_empty(&self) -> bool {
        let inner = self.inner();
        inner.closed && inner.waiting.is_empty()
    }

    /// A busy worker can take an activation again, and will come back for the next message.
    pub(super) fn expect_return(&self, slot: usize) {
        let slot = &mut self.inner().slots[slot];
        slot.will_return = slot.has_process && matches!(slot.state, State::Busy);
    }

    /// A worker takes no message for now, even if it was woken for one. Others are woken in its place.
    pub(super) fn mark_unavailable(&self, slot: usize) {
        let mut inner = self.inner();
        inner.slots[slot].state = State::Busy;
        inner.slots[slot].has_process = false;
        inner.slots[slot].will_return = false;
        if !inner.waiting.is_empty() {
            wake_one(inner);
        }
    }

    /// Drops jobs whose callers have left.
    pub(super) fn drop_abandoned(&self) {
        let mut inner = self.inner();
        let (kept, abandoned) = std::mem::take(&mut inner.waiting).into_iter().partition(Message::is_awaited);
        inner.waiting = kept;
        drop(inner);
        // Dropping them gives their permits back.
        drop::<VecDeque<_>>(abandoned);
    }

    /// Takes no more messages. Those that wait are still handled.
    pub(super) fn close(&self) {
        self.shut(|_| VecDeque::new());
    }

    /// Takes no more messages, and drops those that wait. Their callers learn it by their replies.
    pub(super) fn clear(&self) {
        self.shut(std::mem::take);
    }

    fn shut(&self, take_dropped: impl FnOnce(&mut VecDeque<Message>) -> VecDeque<Message>) {
        let mut inner = self.inner();
        inner.closed = true;
        let dropped = take_dropped(&mut inner.waiting);
        wake_all(inner);
        drop(dropped);
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no holder of the queue panics")
    }
}

/// Wakes the idle worker that is ready soonest, after releasing the lock.
fn wake_one(mut inner: MutexGuard<'_, Inner>) {
    let returns = inner.slots.iter().any(|slot| slot.will_return);
    let idle = |slot: &&mut WorkerSlot| matches!(slot.state, State::Idle(_)) && (slot.has_process || !returns);
    // Of several minima, `min_by_key` takes the first.
    let waker =
        inner.slots.iter_mut().filter(idle).min_by_key(|slot| !slot.has_process).and_then(WorkerSlot::take_waker);
    drop(inner);
    if let Some(waker) = waker {
        waker.wake();
    }
}

/// Wakes all idle workers, after releasing the lock.
fn wake_all(mut inner: MutexGuard<'_, Inner>) {
    let wakers: Vec<_> = inner.slots.iter_mut().filter_map(WorkerSlot::take_waker).collect();
    drop(inner);
    wakers.into_iter().for_each(Waker::wake);
}

impl WorkerSlot {
    fn take_waker(&mut self) -> Option<Waker> {
        match std::mem::replace(&mut self.state, State::Busy) {
            State::Idle(waker) => {
                self.will_return = self.takes_several;
                Some(waker)
            }
            State::Busy => None,
        }
    }
}

impl Drop for QueuePermit {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;
