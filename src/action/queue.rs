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
use std::sync::{Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};

use super::worker::{Job, Message};

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
    has_places: bool,
    /// It is away, and comes back at once, unless it [steps back](Queue::mark_unavailable).
    returns: bool,
    state: State,
}

#[derive(Debug)]
enum State {
    /// It is at work, or on its way to the queue.
    Away,
    /// It waits to be called.
    Free(Waker),
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
    Process,
    /// The same, with places for more than one.
    Places,
    /// It has none, and would have to start one.
    Start,
    /// It has none and is not to start one.
    Nothing,
}

impl Queue {
    /// An empty queue with so many slots.
    pub(super) fn new(slots: usize) -> Self {
        let slot = |_| WorkerSlot { has_process: false, has_places: false, returns: false, state: State::Away };
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
        call(inner);
        Ok(())
    }

    /// Waits, at a slot, until there is something to do.
    pub(super) async fn next(&self, slot: usize, capacity: Capacity) -> Next {
        std::future::poll_fn(|context| self.poll_next(slot, capacity, context)).await
    }

    fn poll_next(&self, slot: usize, capacity: Capacity, context: &Context<'_>) -> Poll<Next> {
        let mut inner = self.inner();
        let has_process = matches!(capacity, Capacity::Process | Capacity::Places);
        inner.slots[slot].has_process = has_process;
        inner.slots[slot].has_places = capacity == Capacity::Places;
        let closed = inner.closed;
        if let State::Free(waker) = &mut inner.slots[slot].state
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
            inner.slots[slot].state = State::Away;
            let returns = capacity == Capacity::Places;
            let returned = std::mem::replace(&mut inner.slots[slot].returns, returns);
            // Nobody was called for the rest while it was to come back.
            if returned && !returns && !inner.waiting.is_empty() {
                call(inner);
            }
            return Poll::Ready(Next::Message(message));
        } else if inner.closed {
            return Poll::Ready(Next::Close);
        }
        inner.slots[slot].state = State::Free(context.waker().clone());
        inner.slots[slot].returns = false;
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
        call(inner);
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

    /// A worker that is away has a place again, and comes back for whatever there is.
    pub(super) fn returns(&self, slot: usize) {
        let slot = &mut self.inner().slots[slot];
        slot.returns = slot.has_process && matches!(slot.state, State::Away);
    }

    /// A worker takes nothing for now, although it waited to be called or was: others are called for
    /// what lies there.
    pub(super) fn mark_unavailable(&self, slot: usize) {
        let mut inner = self.inner();
        inner.slots[slot].state = State::Away;
        inner.slots[slot].has_process = false;
        inner.slots[slot].returns = false;
        if !inner.waiting.is_empty() {
            call(inner);
        }
    }

    /// Throws away what nobody waits for any more.
    pub(super) fn drop_abandoned(&self) {
        let mut inner = self.inner();
        let (kept, gone) = std::mem::take(&mut inner.waiting).into_iter().partition(Message::is_awaited);
        inner.waiting = kept;
        drop(inner);
        // What is thrown away gives its place back.
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
        let wakers: Vec<_> = inner.slots.iter_mut().filter_map(WorkerSlot::call).collect();
        drop(inner);
        drop(gone);
        wakers.into_iter().for_each(Waker::wake);
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().expect("no holder of the queue panics")
    }
}

/// Calls the free worker that is ready soonest, once the queue is free again.
fn call(mut inner: MutexGuard<'_, Inner>) {
    let returns = inner.slots.iter().any(|slot| slot.returns);
    let free = |slot: &&mut WorkerSlot| matches!(slot.state, State::Free(_)) && (slot.has_process || !returns);
    // The first of several minima is taken.
    let waker = inner.slots.iter_mut().filter(free).min_by_key(|slot| !slot.has_process).and_then(WorkerSlot::call);
    drop(inner);
    if let Some(waker) = waker {
        waker.wake();
    }
}

impl WorkerSlot {
    fn call(&mut self) -> Option<Waker> {
        match std::mem::replace(&mut self.state, State::Away) {
            State::Free(waker) => {
                self.returns = self.has_places;
                Some(waker)
            }
            State::Away => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    /// A worker that counts how often it is called.
    struct Worker {
        calls: Arc<Calls>,
        slot: usize,
        capacity: Capacity,
    }

    #[derive(Default)]
    struct Calls(AtomicUsize);

    impl Wake for Calls {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    impl Worker {
        fn new(slot: usize, capacity: Capacity) -> Self {
            Self { calls: Arc::default(), slot, capacity }
        }

        fn come(&self, queue: &Queue) -> Poll<Next> {
            let waker = Waker::from(self.calls.clone());
            queue.poll_next(self.slot, self.capacity, &Context::from_waker(&waker))
        }

        fn waits(&self, queue: &Queue) {
            let next = self.come(queue);
            assert!(next.is_pending(), "{}: {next:?}", self.slot);
        }

        /// Takes the message in front, which must be this one.
        fn takes(&self, queue: &Queue, expected: &str) {
            let next = self.come(queue);
            match next {
                Poll::Ready(Next::Message(Message::Say(said))) => assert_eq!(said, expected),
                Poll::Ready(Next::Message(Message::Run(job))) => {
                    assert_eq!(job.activation.arguments(), expected.as_bytes());
                }
                other => panic!("{}: {other:?}", self.slot),
            }
        }

        fn starts(&self, queue: &Queue) {
            let next = self.come(queue);
            assert!(matches!(next, Poll::Ready(Next::Start)), "{}: {next:?}", self.slot);
        }

        fn calls(&self) -> usize {
            self.calls.0.swap(0, Ordering::Relaxed)
        }
    }

    fn say(queue: &Queue, text: &str) {
        queue.send(Message::Say(text.to_owned())).expect("the queue is open");
    }

    /// Sends an activation; its caller waits for as long as what is returned lives.
    fn run(queue: &Queue, arguments: &str) -> impl Sized {
        let (job, waiting) = Job::for_tests(arguments);
        queue.send(Message::Run(job)).expect("the queue is open");
        waiting
    }

    #[test]
    fn messages_are_taken_in_order_by_whoever_comes() {
        let queue = Queue::new(2);
        let (first, second) = (Worker::new(0, Capacity::Process), Worker::new(1, Capacity::Process));
        for text in ["a", "b", "c"] {
            say(&queue, text);
        }
        first.takes(&queue, "a");
        second.takes(&queue, "b");
        first.takes(&queue, "c");
        first.waits(&queue);
    }

    #[test]
    fn one_free_worker_is_called_for_each_message() {
        let queue = Queue::new(3);
        let workers = [0, 1, 2].map(|slot| Worker::new(slot, Capacity::Process));
        for worker in &workers {
            worker.waits(&queue);
        }
        say(&queue, "a");
        assert_eq!(workers.each_ref().map(Worker::calls), [1, 0, 0]);
        say(&queue, "b");
        assert_eq!(workers.each_ref().map(Worker::calls), [0, 1, 0]);
        // Who was not called leaves it to them, whatever else woke it.
        workers[2].waits(&queue);
        workers[1].takes(&queue, "a");
        workers[0].takes(&queue, "b");
    }

    #[test]
    fn a_worker_with_a_process_is_called_first() {
        let queue = Queue::new(2);
        let (without, with) = (Worker::new(0, Capacity::Start), Worker::new(1, Capacity::Process));
        without.waits(&queue);
        with.waits(&queue);
        let _first = run(&queue, r#"{"n":1}"#);
        assert_eq!((without.calls(), with.calls()), (0, 1));
        let _second = run(&queue, r#"{"n":2}"#);
        assert_eq!((without.calls(), with.calls()), (1, 0));
        // It starts a process, and the activation stays where it is.
        without.starts(&queue);
        with.takes(&queue, r#"{"n":1}"#);
        with.takes(&queue, r#"{"n":2}"#);
        let started = Worker::new(0, Capacity::Process);
        started.waits(&queue);
    }

    #[test]
    fn without_any_process_an_activation_is_taken_before_one_is_started() {
        let queue = Queue::new(2);
        let (first, second) = (Worker::new(0, Capacity::Start), Worker::new(1, Capacity::Start));
        first.waits(&queue);
        second.waits(&queue);
        let _job = run(&queue, r#"{"n":1}"#);
        first.takes(&queue, r#"{"n":1}"#);
    }

    #[test]
    fn who_may_not_start_leaves_activations_to_who_has_a_process() {
        let queue = Queue::new(2);
        let (dead, mut lives) = (Worker::new(0, Capacity::Nothing), Worker::new(1, Capacity::Process));
        lives.waits(&queue);
        let _first = run(&queue, r#"{"n":1}"#);
        lives.takes(&queue, r#"{"n":1}"#);
        let _second = run(&queue, r#"{"n":2}"#);
        dead.waits(&queue);
        // The last one is dead as well: somebody has to say so.
        lives.capacity = Capacity::Nothing;
        lives.takes(&queue, r#"{"n":2}"#);
        // What needs no process is anybody's.
        say(&queue, "a");
        dead.takes(&queue, "a");
    }

    #[test]
    fn a_worker_with_places_left_is_not_passed_over_for_one_without_a_process() {
        let queue = Queue::new(2);
        let (mut concurrent, without) = (Worker::new(0, Capacity::Places), Worker::new(1, Capacity::Start));
        concurrent.waits(&queue);
        without.waits(&queue);
        let _jobs = [r#"{"n":1}"#, r#"{"n":2}"#, r#"{"n":3}"#, r#"{"n":4}"#].map(|arguments| run(&queue, arguments));
        // It is on its way for the first, and comes back for the others.
        assert_eq!((concurrent.calls(), without.calls()), (1, 0));
        concurrent.takes(&queue, r#"{"n":1}"#);
        concurrent.takes(&queue, r#"{"n":2}"#);
        assert_eq!(without.calls(), 0);
        // Its last place: the rest is for others.
        concurrent.capacity = Capacity::Process;
        concurrent.takes(&queue, r#"{"n":3}"#);
        assert_eq!(without.calls(), 1);
        without.starts(&queue);
        // They were slower, for it has a place again.
        queue.returns(0);
        concurrent.takes(&queue, r#"{"n":4}"#);
        without.waits(&queue);
        queue.returns(0);
        let _fifth = run(&queue, r#"{"n":5}"#);
        assert_eq!(without.calls(), 0);
        concurrent.takes(&queue, r#"{"n":5}"#);
    }

    #[test]
    fn who_takes_one_of_two_calls_nobody_for_the_other() {
        let queue = Queue::new(3);
        let workers =
            [Worker::new(0, Capacity::Process), Worker::new(1, Capacity::Start), Worker::new(2, Capacity::Start)];
        for worker in &workers {
            worker.waits(&queue);
        }
        let _jobs = [run(&queue, r#"{"n":1}"#), run(&queue, r#"{"n":2}"#)];
        workers[0].takes(&queue, r#"{"n":1}"#);
        assert_eq!(workers.each_ref().map(Worker::calls), [1, 1, 0]);
    }

    #[test]
    fn a_worker_that_was_to_come_back_and_does_not_leaves_what_lies_there_to_others() {
        let queue = Queue::new(2);
        let (concurrent, without) = (Worker::new(0, Capacity::Places), Worker::new(1, Capacity::Start));
        concurrent.waits(&queue);
        without.waits(&queue);
        let _first = run(&queue, r#"{"n":1}"#);
        concurrent.takes(&queue, r#"{"n":1}"#);
        let _second = run(&queue, r#"{"n":2}"#);
        assert_eq!(without.calls(), 0);
        queue.mark_unavailable(0);
        assert_eq!(without.calls(), 1);
        without.takes(&queue, r#"{"n":2}"#);
    }

    #[test]
    fn what_is_handed_over_comes_first_and_only_to_who_has_a_process() {
        let queue = Queue::new(2);
        let (dead, lives) = (Worker::new(0, Capacity::Process), Worker::new(1, Capacity::Process));
        let job = |arguments| Job::for_tests(arguments).0;
        dead.waits(&queue);
        queue.mark_unavailable(0);
        assert!(queue.requeue_front(job("{}")).is_err(), "nobody has a process");
        lives.waits(&queue);
        let _last = run(&queue, r#"{"n":3}"#);
        for arguments in [r#"{"n":2}"#, r#"{"n":1}"#] {
            queue.requeue_front(job(arguments)).expect("somebody has a process");
        }
        assert_eq!(lives.calls(), 1);
        for expected in [r#"{"n":1}"#, r#"{"n":2}"#, r#"{"n":3}"#] {
            lives.takes(&queue, expected);
        }
        queue.close();
        assert!(queue.requeue_front(job("{}")).is_err(), "nothing is taken any more");
    }

    #[test]
    fn a_closed_desk_is_worked_off_and_a_cleared_one_is_not() {
        for clear in [false, true] {
            let queue = Queue::new(2);
            let (first, second) = (Worker::new(0, Capacity::Process), Worker::new(1, Capacity::Process));
            first.waits(&queue);
            second.waits(&queue);
            let _job = run(&queue, r#"{"n":1}"#);
            assert_eq!((first.calls(), second.calls()), (1, 0));
            if clear {
                queue.clear();
            } else {
                queue.close();
            }
            assert_eq!(second.calls(), 1, "it is called to hear that nothing comes");
            assert!(queue.send(Message::Say("late".into())).is_err());
            if !clear {
                first.takes(&queue, r#"{"n":1}"#);
            }
            assert!(matches!(first.come(&queue), Poll::Ready(Next::Close)));
            assert!(matches!(second.come(&queue), Poll::Ready(Next::Close)));
        }
    }

    #[test]
    fn what_nobody_waits_for_is_thrown_away_when_asked() {
        let queue = Queue::new(1);
        let left = run(&queue, r#"{"n":1}"#);
        let _waits = run(&queue, r#"{"n":2}"#);
        say(&queue, "a");
        drop(left);
        queue.drop_abandoned();
        let worker = Worker::new(0, Capacity::Process);
        worker.takes(&queue, r#"{"n":2}"#);
        worker.takes(&queue, "a");
        assert!(queue.is_empty());
    }
}
