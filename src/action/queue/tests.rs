//! Stand-ins for workers, without processes, that come to the queue in some order.

use super::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Wake;

/// A worker that counts how often it is woken.
struct Worker {
    wakes: Arc<Wakes>,
    slot: usize,
    capacity: Capacity,
}

#[derive(Default)]
struct Wakes(AtomicUsize);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl Worker {
    fn new(slot: usize, capacity: Capacity) -> Self {
        Self { wakes: Arc::default(), slot, capacity }
    }

    fn come(&self, queue: &Queue) -> Poll<Next> {
        let waker = Waker::from(self.wakes.clone());
        queue.poll_next(self.slot, self.capacity, &Context::from_waker(&waker))
    }

    fn waits(&self, queue: &Queue) {
        let next = self.come(queue);
        assert!(next.is_pending(), "{}: {next:?}", self.slot);
    }

    /// Takes the message in front, which must be the expected one.
    fn takes(&self, queue: &Queue, expected: &str) {
        let next = self.come(queue);
        match next {
            Poll::Ready(Next::Message(Message::Say(sentence))) => assert_eq!(sentence, expected),
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

    fn wakes(&self) -> usize {
        self.wakes.0.swap(0, Ordering::Relaxed)
    }
}

fn say(queue: &Queue, text: &str) {
    queue.send(Message::Say(text.to_owned())).expect("the queue is open");
}

/// Sends an activation. Its caller waits until the returned value is dropped.
fn run(queue: &Queue, arguments: &str) -> impl Sized {
    let (job, answer) = Job::for_tests(arguments, queue.accept().expect("the queue has space"));
    queue.send(Message::Run(job)).expect("the queue is open");
    answer
}

#[test]
fn workers_take_messages_in_order() {
    let queue = Queue::new(2, 100);
    let (first, second) = (Worker::new(0, Capacity::One), Worker::new(1, Capacity::One));
    for text in ["a", "b", "c"] {
        say(&queue, text);
    }
    first.takes(&queue, "a");
    second.takes(&queue, "b");
    first.takes(&queue, "c");
    first.waits(&queue);
}

#[test]
fn each_message_wakes_one_idle_worker() {
    let queue = Queue::new(3, 100);
    let workers = [0, 1, 2].map(|slot| Worker::new(slot, Capacity::One));
    for worker in &workers {
        worker.waits(&queue);
    }
    say(&queue, "a");
    assert_eq!(workers.each_ref().map(Worker::wakes), [1, 0, 0]);
    say(&queue, "b");
    assert_eq!(workers.each_ref().map(Worker::wakes), [0, 1, 0]);
    // A worker that the queue did not wake leaves the messages to those that it did.
    workers[2].waits(&queue);
    workers[1].takes(&queue, "a");
    workers[0].takes(&queue, "b");
}

#[test]
fn a_worker_with_a_process_is_woken_first() {
    let queue = Queue::new(2, 100);
    let (without, with) = (Worker::new(0, Capacity::Start), Worker::new(1, Capacity::One));
    without.waits(&queue);
    with.waits(&queue);
    let _first = run(&queue, r#"{"n":1}"#);
    assert_eq!((without.wakes(), with.wakes()), (0, 1));
    let _second = run(&queue, r#"{"n":2}"#);
    assert_eq!((without.wakes(), with.wakes()), (1, 0));
    // It starts a process, and the activation stays in the queue.
    without.starts(&queue);
    with.takes(&queue, r#"{"n":1}"#);
    with.takes(&queue, r#"{"n":2}"#);
    let started = Worker::new(0, Capacity::One);
    started.waits(&queue);
}

#[test]
fn without_any_process_an_activation_is_taken_before_one_is_started() {
    let queue = Queue::new(2, 100);
    let (first, second) = (Worker::new(0, Capacity::Start), Worker::new(1, Capacity::Start));
    first.waits(&queue);
    second.waits(&queue);
    let _job = run(&queue, r#"{"n":1}"#);
    first.takes(&queue, r#"{"n":1}"#);
}

#[test]
fn a_worker_that_may_not_start_leaves_activations_to_one_with_a_process() {
    let queue = Queue::new(2, 100);
    let (dead, mut alive) = (Worker::new(0, Capacity::Nothing), Worker::new(1, Capacity::One));
    alive.waits(&queue);
    let _first = run(&queue, r#"{"n":1}"#);
    alive.takes(&queue, r#"{"n":1}"#);
    let _second = run(&queue, r#"{"n":2}"#);
    dead.waits(&queue);
    // The last process is gone too, so any worker takes the activation and reports that.
    alive.capacity = Capacity::Nothing;
    alive.takes(&queue, r#"{"n":2}"#);
    // Any worker takes a message that needs no process.
    say(&queue, "a");
    dead.takes(&queue, "a");
}

#[test]
fn a_worker_that_takes_several_comes_before_one_without_a_process() {
    let queue = Queue::new(2, 100);
    let (mut concurrent, without) = (Worker::new(0, Capacity::Several), Worker::new(1, Capacity::Start));
    concurrent.waits(&queue);
    without.waits(&queue);
    let _jobs = [r#"{"n":1}"#, r#"{"n":2}"#, r#"{"n":3}"#, r#"{"n":4}"#].map(|arguments| run(&queue, arguments));
    // It was woken for the first, and comes back for the others.
    assert_eq!((concurrent.wakes(), without.wakes()), (1, 0));
    concurrent.takes(&queue, r#"{"n":1}"#);
    concurrent.takes(&queue, r#"{"n":2}"#);
    assert_eq!(without.wakes(), 0);
    // It can take only one more, so others are woken for the rest.
    concurrent.capacity = Capacity::One;
    concurrent.takes(&queue, r#"{"n":3}"#);
    assert_eq!(without.wakes(), 1);
    without.starts(&queue);
    // It has finished one, and comes back before the other worker is ready.
    queue.expect_return(0);
    concurrent.takes(&queue, r#"{"n":4}"#);
    without.waits(&queue);
    queue.expect_return(0);
    let _fifth = run(&queue, r#"{"n":5}"#);
    assert_eq!(without.wakes(), 0);
    concurrent.takes(&queue, r#"{"n":5}"#);
}

#[test]
fn taking_one_job_wakes_no_second_worker() {
    let queue = Queue::new(3, 100);
    let workers = [Worker::new(0, Capacity::One), Worker::new(1, Capacity::Start), Worker::new(2, Capacity::Start)];
    for worker in &workers {
        worker.waits(&queue);
    }
    let _jobs = [run(&queue, r#"{"n":1}"#), run(&queue, r#"{"n":2}"#)];
    workers[0].takes(&queue, r#"{"n":1}"#);
    assert_eq!(workers.each_ref().map(Worker::wakes), [1, 1, 0]);
}

#[test]
fn a_worker_that_does_not_come_back_leaves_its_messages_to_others() {
    let queue = Queue::new(2, 100);
    let (concurrent, without) = (Worker::new(0, Capacity::Several), Worker::new(1, Capacity::Start));
    concurrent.waits(&queue);
    without.waits(&queue);
    let _first = run(&queue, r#"{"n":1}"#);
    concurrent.takes(&queue, r#"{"n":1}"#);
    let _second = run(&queue, r#"{"n":2}"#);
    assert_eq!(without.wakes(), 0);
    queue.mark_unavailable(0);
    assert_eq!(without.wakes(), 1);
    without.takes(&queue, r#"{"n":2}"#);
}

#[test]
fn a_requeued_job_goes_first_and_only_to_a_worker_with_a_process() {
    let queue = Queue::new(2, 100);
    let (dead, alive) = (Worker::new(0, Capacity::One), Worker::new(1, Capacity::One));
    let job = |arguments| Job::for_tests(arguments, queue.accept().expect("the queue has space")).0;
    dead.waits(&queue);
    queue.mark_unavailable(0);
    assert!(queue.requeue_front(job("{}")).is_err(), "no worker has a process");
    alive.waits(&queue);
    let _last = run(&queue, r#"{"n":3}"#);
    for arguments in [r#"{"n":2}"#, r#"{"n":1}"#] {
        queue.requeue_front(job(arguments)).expect("a worker has a process");
    }
    assert_eq!(alive.wakes(), 1);
    for expected in [r#"{"n":1}"#, r#"{"n":2}"#, r#"{"n":3}"#] {
        alive.takes(&queue, expected);
    }
    queue.close();
    assert!(queue.requeue_front(job("{}")).is_err(), "the queue is closed");
}

#[test]
fn a_closed_queue_is_worked_off_and_a_cleared_one_is_not() {
    for clear in [false, true] {
        let queue = Queue::new(2, 100);
        let (first, second) = (Worker::new(0, Capacity::One), Worker::new(1, Capacity::One));
        first.waits(&queue);
        second.waits(&queue);
        let _job = run(&queue, r#"{"n":1}"#);
        assert_eq!((first.wakes(), second.wakes()), (1, 0));
        if clear {
            queue.clear();
        } else {
            queue.close();
        }
        assert_eq!(second.wakes(), 1, "it is woken to learn that no message will come");
        assert!(queue.send(Message::Say("late".into())).is_err());
        if !clear {
            first.takes(&queue, r#"{"n":1}"#);
        }
        assert!(matches!(first.come(&queue), Poll::Ready(Next::Close)));
        assert!(matches!(second.come(&queue), Poll::Ready(Next::Close)));
    }
}

#[test]
fn abandoned_jobs_are_dropped_on_request() {
    let queue = Queue::new(1, 100);
    let abandoned = run(&queue, r#"{"n":1}"#);
    let _answer = run(&queue, r#"{"n":2}"#);
    say(&queue, "a");
    drop(abandoned);
    queue.drop_abandoned();
    let worker = Worker::new(0, Capacity::One);
    worker.takes(&queue, r#"{"n":2}"#);
    worker.takes(&queue, "a");
    assert!(queue.is_empty());
}

#[test]
fn permits_bound_the_jobs_of_all_workers_and_the_queue() {
    let queue = Queue::new(2, 1);
    let permits: Vec<_> = (0..3).map(|_| queue.accept().expect("two run and one waits")).collect();
    assert_eq!(permits.iter().map(|accepted| accepted.waits).collect::<Vec<_>>(), [false, true, true]);
    assert!(matches!(queue.accept(), Err(Error::Run(RunError::QueueFull { limit: 1 }))));
    queue.set_concurrency(2);
    let more: Vec<_> = (0..2).map(|_| queue.accept().expect("four run and one waits")).collect();
    queue.accept().expect_err("the queue is full");
    drop((permits, more));
    assert!(!queue.accept().expect("all permits were given back").waits);
}

#[test]
fn a_full_queue_drops_abandoned_jobs_first() {
    let queue = Queue::new(1, 0);
    let answer = run(&queue, r#"{"n":1}"#);
    queue.accept().expect_err("one job waits");
    drop(answer);
    queue.accept().expect("its caller has left");
    assert!(queue.is_empty());
}
