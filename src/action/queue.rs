//! The queue of an action: one queue in front of its workers.
//!
//! Whatever is sent to an action lies here, in order, until a worker takes it. Knows who is free and
//! who has a process; knows nothing of processes, and never waits.
//!
//! # Theory of operation
//! A message calls one free worker, the first in line that has a process, else the first that has
//! none: so no more processes are started than there are activations at the same time. Whoever comes
//! to the queue takes the message in front, called or not. A worker without a process, while
//! another has one, is told to start its own first and leaves the message where it is: it goes to
//! whoever is ready first, and a process that does not start takes no activation with it.
//!
//! A worker whose process has places left comes back for more, also while it is busy for a moment. So nobody
//! without a process is called instead of it; when it takes its last one, others are called for the rest.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};

use crate::error::{Error, RunError};

use super::job::{Job, Message};
use super::worker::WorkerPool;
use super::{ActionConfig, Shared};

/// One queue and the slots of those who work it off.
#[derive(Debug)]
pub(super) struct Queue(Mutex<Inner>);

#[derive(Debug)]
struct Inner {
    waiting: VecDeque<Message>,
    slots: Vec<WorkerSlot>,
    closed: bool,
}

/// What the queue knows about a worker.
#[derive(Debug)]
struct WorkerSlot {
    has_process: bool,
    /// When it came last, that had places for more than one.
    takes_several: bool,
    /// It is away, and comes back at once, unless it [steps back](Queue::mark_unavailable).
    will_return: bool,
    state: State,
}

#[derive(Debug)]
enum State {
    /// It is at work, or on its way to the queue.
    Busy,
    /// It waits to be called.
    Idle(Waker),
}

/// What a worker is to do.
#[derive(Debug)]
pub(super) enum Next {
    /// This, to its end.
    Message(Message),
    /// Start a process, and come back.
    Start,
    /// Nothing any more.
    Close,
}

/// What a worker can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Capacity {
    /// It has a process, or needs none.
    One,
    /// The same, with places for more than one.
    Several,
    /// It has none, and would have to start one.
    Start,
    /// It has none and is not to start one.
    Nothing,
}

impl Queue {
    /// An empty queue with so many slots.
    pub(super) fn new(slots: usize) -> Self {
        let slot = |_| WorkerSlot { has_process: false, takes_several: false, will_return: false, state: State::Busy };
        Self(Mutex::new(Inner { waiting: VecDeque::new(), slots: (0..slots).map(slot).collect(), closed: false }))
    }

    /// Puts a message behind all others and calls a worker for it. Gives it back when the queue is
    /// closed.
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
            // Not called: it came for another reason, and what lies there is for somebody else.
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
            // Nobody was called for the rest while it was to come back.
            if returned && !returns && !inner.waiting.is_empty() {
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

    /// Puts an activation in front of all others, for who has a process. Gives it back when nobody has
    /// one, or nothing is taken any more: then it is for the one that had it to start another.
    pub(super) fn requeue_front(&self, job: Job) -> Result<(), Job> {
        let mut inner = self.inner();
        if inner.closed || !inner.slots.iter().any(|slot| slot.has_process) {
            return Err(job);
        }
        inner.waiting.push_front(Message::Run(job));
        wake_one(inner);
        Ok(())
    }

    /// Whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.inner().waiting.is_empty()
    }

    /// Whether nothing waits and nothing will come.
    pub(super) fn is_closed_and_empty(&self) -> bool {
        let inner = self.inner();
        inner.closed && inner.waiting.is_empty()
    }

    /// A worker that is away has a permit again, and comes back for whatever there is.
    pub(super) fn expect_return(&self, slot: usize) {
        let slot = &mut self.inner().slots[slot];
        slot.will_return = slot.has_process && matches!(slot.state, State::Busy);
    }

    /// A worker takes nothing for now, although it waited to be called or was: others are called for
    /// what lies there.
    pub(super) fn mark_unavailable(&self, slot: usize) {
        let mut inner = self.inner();
        inner.slots[slot].state = State::Busy;
        inner.slots[slot].has_process = false;
        inner.slots[slot].will_return = false;
        if !inner.waiting.is_empty() {
            wake_one(inner);
        }
    }

    /// Throws away what nobody waits for any more.
    pub(super) fn drop_abandoned(&self) {
        let mut inner = self.inner();
        let (kept, gone) = std::mem::take(&mut inner.waiting).into_iter().partition(Message::is_awaited);
        inner.waiting = kept;
        drop(inner);
        // What is thrown away gives its permit back.
        drop::<VecDeque<_>>(gone);
    }

    /// Takes nothing any more. What lies there is still worked off.
    pub(super) fn close(&self) {
        self.shut(|_| VecDeque::new());
    }

    /// Takes nothing any more, and throws away what lies there: whoever waits for it learns that.
    pub(super) fn clear(&self) {
        self.shut(std::mem::take);
    }

    fn shut(&self, thrown_away: impl FnOnce(&mut VecDeque<Message>) -> VecDeque<Message>) {
        let mut inner = self.inner();
        inner.closed = true;
        let gone = thrown_away(&mut inner.waiting);
        let wakers: Vec<_> = inner.slots.iter_mut().filter_map(WorkerSlot::take_waker).collect();
        drop(inner);
        drop(gone);
        wakers.into_iter().for_each(Waker::wake);
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().expect("no holder of the queue panics")
    }
}

/// Calls the free worker that is ready soonest, once the queue is free again.
fn wake_one(mut inner: MutexGuard<'_, Inner>) {
    let returns = inner.slots.iter().any(|slot| slot.will_return);
    let free = |slot: &&mut WorkerSlot| matches!(slot.state, State::Idle(_)) && (slot.has_process || !returns);
    // The first of several minima is taken.
    let waker =
        inner.slots.iter_mut().filter(free).min_by_key(|slot| !slot.has_process).and_then(WorkerSlot::take_waker);
    drop(inner);
    if let Some(waker) = waker {
        waker.wake();
    }
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

/// A permit among the activations that were accepted, given back when it is dropped.
#[derive(Debug)]
pub(super) struct QueuePermit(pub(super) Arc<AtomicUsize>);

impl QueuePermit {
    /// A permit, and whether others are before it.
    pub(super) fn take(shared: &Shared, pool: &WorkerPool) -> Result<(Self, bool), Error> {
        let ActionConfig { workers, queue, .. } = shared.config;
        let at_once = workers.saturating_mul(pool.concurrency.load(Ordering::Relaxed));
        let permit = Self(shared.open.clone());
        let before = shared.open.fetch_add(1, Ordering::Relaxed);
        // So many are worked on, the others wait.
        if before >= queue.saturating_add(at_once) {
            return Err(Error::Run(RunError::QueueFull { limit: queue }));
        }
        Ok((permit, before > 0))
    }
}

impl Drop for QueuePermit {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;
