//! A worker whose process speaks version 2: several activations in flight, each with a reply, a limit
//! of time and a log of its own.
//!
//! Decides what becomes of activations; what their frames look like is known to
//! `protocol/multiplex.rs`. The process is started, stopped and mourned as every other one.
//!
//! # Theory of operation
//! One loop owns the conversation. It takes activations from the queue while the process has a place for
//! them, hands each frame to the reply it belongs to, and watches the callers, the clock and the
//! process. Nobody waits for anybody else in it, but for the log: an answer leaves when its log and its
//! sentinels are out, as in every version.
//!
//! A [`Flight`] keeps its place in the process until the process has ended it by a frame. Where its
//! caller leaves, or is told an error, before that, the process hears of it if it wants to. It may then
//! take [`ActionSettings::stop_grace`](crate::config::ActionSettings) to end it, or as long as the
//! activation's own time where it did not promise to listen and merely its caller has left. If it does
//! not, it is *condemned*: it gets nothing more, and is killed when none of its activations is waited
//! for any more. With nothing else in flight and no promise to listen, there is nothing to wait for.
//!
//! What a slow caller has not taken is held, up to a bound. Baseline in its process, an activation is then
//! slowed down by not reading what it writes. Among others it is asked to pause when a quarter of the
//! bound is held; one that is a whole bound behind fails, so that it stops nobody else. One that writes on
//! after half of it is given a moment to see that it was asked.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::activation::{Activation, Answer};
use crate::error::{Error, RunError, TimeLimit};
use crate::logs::Logs;
use crate::process::{Process, stop};
use crate::protocol::answer::{self, Gathered};
use crate::protocol::conversation::Conversation;
use crate::protocol::detect::exit_report;
use crate::protocol::multiplex::{Ended, Event, Multiplex, Step, Taken, Ticket, stray};
use crate::time::Countdown;

use super::super::Place;
use super::super::queue::{Capacity, Next};
use super::super::response_stream::StreamItem;
use super::{Job, Message, Phase, Reply, Running, Worker, time_is_up, time_limit, wait_for_end, without_answer};

/// An activation that was taken from the queue and is not in flight yet.
pub(super) struct Waiting {
    job: Job,
    begun: Instant,
    /// A process was started for it.
    fresh: bool,
}

impl Waiting {
    pub(super) fn new(job: Job) -> Self {
        Self { job, begun: Instant::now(), fresh: false }
    }
}

/// An activation in flight.
struct Flight {
    ticket: Ticket,
    activation: Activation,
    deadline: Option<Instant>,
    limit: TimeLimit,
    begun: Instant,
    /// When its deadline is over; its run timeout is counted.
    ends: Option<Instant>,
    countdown: Countdown,
    state: State,
    audience: Caller,
    pace: Backpressure,
    label: Option<Arc<str>>,
    fresh: bool,
}

/// Who is told of an activation: its caller, and the reader of its log.
#[derive(Default)]
struct Caller {
    /// Gone with whoever waited.
    caller: Option<(Reply, Place)>,
    /// Chunks for a caller who wants one body.
    gathered: Gathered,
    /// What is kept of its log.
    log: Vec<u8>,
}

/// How fast it may write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Backpressure {
    /// As fast as it can.
    Free,
    /// Its caller is slow.
    HeldUp,
    /// It was asked to pause.
    Paused,
    /// The process was given the time to see that, too.
    Rested,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Somebody waits for it.
    Open,
    /// Its caller has left. It goes on for as long as it may.
    Left,
    /// Its caller has left and the process was told so; it has until then.
    Cancelled { until: Instant },
    /// Its caller was told an error, and its log has ended; the process has until then.
    Over { until: Instant },
}

/// How an activation comes to its end.
enum Outcome {
    Answer(Answer),
    Failed(Bytes),
    End,
    Error(Error),
}

/// Why a conversation is left.
enum End {
    /// Nothing is in flight and nothing will come.
    Quiet,
    /// The process, or its result channel, is gone.
    Gone,
    /// It is to be replaced, for this reason, and nobody waits for anything of it.
    Condemned(String),
    /// A frame over the bound.
    TooLong,
    /// What is in flight is cut.
    Cut,
}

impl Worker {
    /// Works on these and whatever comes, until there is no process any more, or nothing will come.
    pub(super) async fn run_concurrently(
        &mut self,
        waiting: Vec<Waiting>,
        phase: &mut watch::Receiver<Phase>,
        logs: &mut Logs,
    ) {
        let mut waiting = VecDeque::from(waiting);
        loop {
            self.forget_the_dead(logs).await;
            if self.running.is_none() {
                let Some(first) = waiting.front_mut() else { return };
                first.fresh = true;
                let (begun, deadline) = (first.begun, first.job.deadline);
                logs.begin();
                match self.restart_within(begun, deadline, phase, logs).await {
                    Ok(running) => self.running = Some(running),
                    Err(error) => {
                        let Some(Waiting { job, .. }) = waiting.pop_front() else { return };
                        self.close_log(logs, Some(&error)).await;
                        drop(job.place);
                        job.reply.send(Err(error));
                        continue;
                    }
                }
            }
            match self.running.take() {
                Some(Running { process, conversation: Conversation::Multiplex(multiplex), .. }) => {
                    self.converse(process, multiplex, &mut waiting, phase, logs).await;
                }
                other => {
                    // This time it speaks another version.
                    self.running = other;
                    self.pool.speaks_frames.store(false, Ordering::Relaxed);
                    for Waiting { job, .. } in waiting {
                        self.run_alone(job, phase, logs).await;
                    }
                    return;
                }
            }
            if waiting.is_empty() {
                return;
            }
        }
    }

    /// Starts a process within the time of the activation that needs it.
    async fn restart_within(
        &self,
        begun: Instant,
        deadline: Option<Instant>,
        phase: &mut watch::Receiver<Phase>,
        logs: &mut Logs,
    ) -> Result<Running, Error> {
        let run_timeout = self.shared.config.settings.run_timeout.0;
        let (limit, ends) = time_limit(begun, deadline, run_timeout);
        let outcome = tokio::select! {
            biased;
            started = self.restart(ends, logs) => return started,
            () = time_is_up(limit, ends, run_timeout) => Error::Run(RunError::TimeOut { limit, after: begun.elapsed() }),
            _ = phase.wait_for(|phase| *phase >= Phase::Cutting) => Error::Run(RunError::CutOff { after: begun.elapsed() }),
        };
        logs.detach();
        Err(outcome)
    }

    /// One conversation to its end.
    async fn converse(
        &mut self,
        process: Process,
        multiplex: Multiplex,
        waiting: &mut VecDeque<Waiting>,
        phase: &mut watch::Receiver<Phase>,
        logs: &mut Logs,
    ) {
        let mut concurrent = Concurrent {
            worker: self,
            logs,
            multiplex,
            flights: Vec::new(),
            condemned: None,
            pressed: false,
            rests_until: None,
        };
        let end = concurrent.serve(&process, waiting, phase).await;
        concurrent.worker.pool.queue.mark_unavailable(concurrent.worker.post);
        let in_flight = concurrent.flights.len();
        match end {
            End::Quiet => {
                let conversation = Conversation::Multiplex(concurrent.multiplex);
                self.running = Some(Running { process, conversation, silent: false });
            }
            End::Gone => concurrent.mourn(&process, waiting).await,
            End::Condemned(reason) => {
                stop::kill_and_reap(&process).await;
                concurrent.logs.detach();
                concurrent.worker.pool.backoff().stopped(reason);
                concurrent.finish_all(|_| None).await;
            }
            End::TooLong => {
                stop::kill_and_reap(&process).await;
                concurrent.logs.detach();
                let limit_bytes = concurrent.worker.shared.config.settings.max_result.0;
                let error = || match in_flight {
                    0 | 1 => Error::Run(RunError::AnswerTooLong { limit_bytes }),
                    in_flight => Error::Run(RunError::FrameTooLong { limit_bytes, in_flight }),
                };
                concurrent.worker.pool.backoff().stopped(error().to_string());
                concurrent.finish_all(|_| Some(error())).await;
            }
            End::Cut => {
                stop::kill_and_reap(&process).await;
                concurrent.logs.detach();
                concurrent
                    .finish_all(|flight| Some(Error::Run(RunError::CutOff { after: flight.begun.elapsed() })))
                    .await;
                for Waiting { job, begun, .. } in waiting.drain(..) {
                    concurrent.logs.begin();
                    let error = Error::Run(RunError::CutOff { after: begun.elapsed() });
                    concurrent.worker.close_log(concurrent.logs, Some(&error)).await;
                    job.reply.send(Err(error));
                }
            }
        }
        tracing::debug!(in_flight, "left the conversation");
    }
}

/// One conversation and all who take part in it.
struct Concurrent<'a> {
    worker: &'a mut Worker,
    logs: &'a mut Logs,
    multiplex: Multiplex,
    flights: Vec<Flight>,
    /// The process gets nothing more, for this reason.
    condemned: Option<String>,
    /// Somebody is to be given the time to take what is held.
    pressed: bool,
    /// Nothing is read until then.
    rests_until: Option<Instant>,
}

/// How long a process that was asked to pause and writes on is not read, once, so that it comes to see
/// what it was asked: whoever writes as fast as it can may read last.
const REST: Duration = Duration::from_millis(50);

/// How often the channel of a process that was killed is read. Its pipe holds less; but what has left
/// the process's group may go on writing.
const LAST_READS: usize = 1024;

impl Concurrent<'_> {
    async fn serve(
        &mut self,
        process: &Process,
        waiting: &mut VecDeque<Waiting>,
        phase: &mut watch::Receiver<Phase>,
    ) -> End {
        let pool = self.worker.pool.clone();
        let part = Countdown::new(self.worker.shared.config.settings.run_timeout.0).part();
        let mut exited = std::pin::pin!(process.exited());
        let mut alarm = std::pin::pin!(tokio::time::sleep(Duration::ZERO));
        let mut tick = std::pin::pin!(tokio::time::sleep(Duration::ZERO));
        let mut closing = false;
        loop {
            while self.reads()
                && let Some(taken) = self.multiplex.take()
            {
                let Taken::Frame(event, line) = taken else { return End::TooLong };
                self.handle(event, &line).await;
                // A process may write faster than we can read: everybody else goes on all the same.
                tokio::task::consume_budget().await;
                if std::mem::take(&mut self.pressed) {
                    // Callers take what is held for them.
                    tokio::task::yield_now().await;
                    self.look_after_callers();
                }
            }
            closing |= *phase.borrow_and_update() > Phase::Serving;
            if *phase.borrow() >= Phase::Cutting && !(self.flights.is_empty() && waiting.is_empty()) {
                return End::Cut;
            }
            let mut begun = false;
            while self.has_room()
                && let Some(next) = waiting.pop_front()
            {
                begun = true;
                if self.flights.is_empty() {
                    tick.as_mut().reset(Instant::now() + part);
                }
                if let Err(next) = self.begin(next).await {
                    waiting.push_front(next);
                    break;
                }
            }
            if begun && self.condemned.is_none() {
                // It may have answered meanwhile.
                continue;
            }
            if let Some(reason) = &self.condemned
                && !self.flights.iter().any(Flight::is_awaited)
            {
                return End::Condemned(reason.clone());
            }
            if closing && self.flights.is_empty() && waiting.is_empty() {
                return End::Quiet;
            }
            if self.condemned.is_some() {
                // What comes to the queue is for others.
                pool.queue.mark_unavailable(self.worker.post);
            }
            let is_over = self.condemned.is_some();
            let until = self.flights.iter().filter(|flight| flight.is_awaited() || !is_over);
            let until = until.filter_map(Flight::until).chain(self.rests_until).min();
            if let Some(until) = until
                && alarm.deadline() != until
            {
                alarm.as_mut().reset(until);
            }
            let reads = self.reads();
            let takes = !closing && waiting.is_empty() && self.has_room();
            let means = if self.flights.len() + 1 < self.concurrency() { Capacity::Places } else { Capacity::Process };
            let low = self.low_bytes();
            tokio::select! {
                step = self.multiplex.step(reads) => if step == Step::Gone {
                    return End::Gone;
                },
                next = pool.queue.next(self.worker.post, means), if takes => match next {
                    Next::Message(Message::Run(job)) => {
                        if let Some(job) = job.claim(&self.worker.shared.config.room) {
                            waiting.push_back(Waiting::new(job));
                        }
                    }
                    Next::Message(Message::Refuse(reply)) => {
                        self.logs.begin();
                        self.logs.end().await;
                        self.log_goes_on();
                        let _ = reply.send(());
                    }
                    Next::Message(Message::Say(sentence)) => self.logs.say(&sentence),
                    Next::Close => closing = true,
                    Next::Start => {}
                },
                _ = &mut exited => return End::Gone,
                () = std::future::poll_fn(|context| poll_callers(&mut self.flights, low, context)) => {
                    self.look_after_callers();
                }
                () = &mut alarm, if until.is_some() => self.look_at_the_clock(false).await,
                () = &mut tick, if !self.flights.is_empty() => {
                    tick.as_mut().reset(Instant::now() + part);
                    self.look_at_the_clock(true).await;
                }
                _ = phase.changed() => {}
                () = self.logs.pump() => unreachable!("a pump never ends"),
            }
        }
    }

    fn concurrency(&self) -> usize {
        self.multiplex.promises().concurrency
    }

    fn has_room(&self) -> bool {
        self.flights.len() < self.concurrency() && self.condemned.is_none()
    }

    /// Whether to read, and to take frames that were read already. An activation that is alone in its
    /// process is slowed down by not doing so.
    fn reads(&self) -> bool {
        if self.concurrency() > 1 {
            return self.rests_until.is_none();
        }
        !self.flights.iter().any(|flight| flight.is_held_up() && flight.is_fed())
    }

    fn buffer_bytes(&self) -> usize {
        self.worker.shared.config.settings.stream_buffer.bytes()
    }

    /// When so little is held, an activation goes on.
    fn low_bytes(&self) -> usize {
        if self.concurrency() == 1 { self.buffer_bytes() / 2 } else { self.buffer_bytes() / 8 }
    }

    /// Sends an activation. Gives it back when the process must not have it.
    async fn begin(&mut self, waiting: Waiting) -> Result<(), Waiting> {
        if self.concurrency() == 1 {
            // What came before it answers nothing.
            self.multiplex.read_strays();
            while let Some(Taken::Frame(event, line)) = self.multiplex.take() {
                self.handle(event, &line).await;
            }
            if let Some(partial) = self.multiplex.take_partial() {
                self.logs.say(&stray(&partial, "and is not ended"));
            }
            if self.multiplex.has_strayed() && self.worker.shared.config.settings.replaces_strayed() {
                self.logs.begin();
                self.logs.say("pipeloop: the action is started anew, since it wrote a line too many (PIPELOOP_STRAY)");
                self.condemned = Some("it wrote a line too many".into());
                return Err(waiting);
            }
        }
        let Waiting { job, begun, fresh } = waiting;
        let Job { activation, deadline, reply, place, claimed: _ } = job;
        let run_timeout = self.worker.shared.config.settings.run_timeout.0;
        let (limit, ends) = time_limit(begun, deadline, run_timeout);
        self.logs.begin();
        let label = self.logs.label(&activation);
        let ticket = self.multiplex.begin(&activation);
        self.flights.push(Flight {
            ticket,
            activation,
            deadline,
            limit,
            begun,
            ends: (limit == TimeLimit::Deadline).then_some(ends),
            countdown: Countdown::from_mid_part(run_timeout),
            state: State::Open,
            audience: Caller { caller: Some((reply, place)), ..Caller::default() },
            pace: Backpressure::Free,
            label,
            fresh,
        });
        self.attribute();
        Ok(())
    }

    /// What is printed is only one's if there is no other.
    fn attribute(&mut self) {
        let label = match &self.flights[..] {
            [only] => only.label.as_ref(),
            _ => None,
        };
        self.logs.attribute(label);
    }

    /// With others in flight, what is printed goes out as it comes, to the next sentinel.
    fn log_goes_on(&mut self) {
        if self.flights.iter().any(Flight::logs) {
            self.logs.begin();
        }
        self.attribute();
    }

    async fn handle(&mut self, event: Event, line: &[u8]) {
        match event {
            Event::Chunk(id, chunk) => self.chunk(id, chunk).await,
            Event::Log(id, text) => {
                self.log(id, &text);
                self.logs.relieve().await;
            }
            Event::Ended(id, ended) => {
                let Some(at) = self.position(id) else { return };
                let outcome = match ended {
                    Ended::Result(answer) => Outcome::Answer(answer),
                    Ended::Error(error) => Outcome::Failed(error),
                    Ended::End => Outcome::End,
                    Ended::Bad(problem) => Outcome::Error(Error::Run(RunError::BadAnswer { problem, exit: None })),
                };
                self.worker.pool.backoff().answered();
                let flight = self.flights.swap_remove(at);
                if self.has_room() && self.concurrency() > 1 {
                    self.worker.pool.queue.returns(self.worker.post);
                }
                self.finish(flight, outcome).await;
            }
            Event::Malformed(id, problem) => {
                let line = String::from_utf8_lossy(line).into_owned();
                self.fail(id, Error::Run(RunError::BadFrame { problem, line })).await;
            }
            Event::Stray(reason) => {
                self.logs.say(&stray(line, &reason));
                self.logs.relieve().await;
            }
        }
    }

    fn position(&self, id: u64) -> Option<usize> {
        self.flights.iter().position(|flight| flight.ticket.id == id)
    }

    async fn chunk(&mut self, id: u64, chunk: Bytes) {
        let limit_bytes = self.worker.shared.config.settings.max_result.0;
        let buffer_bytes = self.buffer_bytes();
        let concurrency = self.concurrency();
        let Some(at) = self.position(id) else { return };
        let flight = &mut self.flights[at];
        match &flight.audience.caller {
            // Nobody wants it any more.
            None => {}
            Some((Reply::Whole(_), _)) => {
                let fits = flight.audience.gathered.add(&chunk, limit_bytes);
                if !fits {
                    self.fail(id, Error::Run(RunError::AnswerTooLong { limit_bytes })).await;
                }
            }
            Some((Reply::ResponseStream(feed), _)) => {
                let held_bytes = feed.push(StreamItem::Chunk(chunk));
                self.pressed |= held_bytes > buffer_bytes / 8;
                if concurrency == 1 {
                    flight.pace = if held_bytes >= buffer_bytes { Backpressure::HeldUp } else { Backpressure::Free };
                } else if held_bytes > buffer_bytes && flight.is_held_up() {
                    let limit_bytes = buffer_bytes as u64;
                    self.fail(id, Error::Run(RunError::Overrun { limit_bytes })).await;
                } else if held_bytes > buffer_bytes / 2 && flight.pace == Backpressure::Paused {
                    flight.pace = Backpressure::Rested;
                    self.rests_until = Some(Instant::now() + REST);
                } else if held_bytes > buffer_bytes / 4 && !flight.is_held_up() {
                    // It may not listen; then it is noted all the same, and told when it is too late.
                    flight.pace = if self.multiplex.pause(id) { Backpressure::Paused } else { Backpressure::HeldUp };
                }
            }
        }
    }

    fn log(&mut self, id: u64, text: &str) {
        let Some(at) = self.position(id) else { return };
        let alone = self.concurrency() == 1;
        let flight = &mut self.flights[at];
        let lines = self.logs.lines_of(text, flight.label.as_deref());
        let most = self.worker.shared.config.settings.log_backlog.bytes();
        if alone || !flight.logs() {
            self.logs.feed_frames(&lines);
        } else {
            flight.audience.log.extend_from_slice(&lines);
            if flight.audience.log.len() > most {
                // More than can be held: it goes to the log before it is whole.
                self.logs.feed_frames(&std::mem::take(&mut flight.audience.log));
            }
        }
    }

    /// An activation has left the process.
    async fn finish(&mut self, flight: Flight, outcome: Outcome) {
        if flight.logs() {
            self.conclude(flight.audience, flight.label, outcome).await;
        } else {
            // Its caller was told, and its log has ended.
            self.attribute();
        }
    }

    /// Ends the log of an activation, and then tells its caller how it came out.
    async fn conclude(&mut self, audience: Caller, label: Option<Arc<str>>, outcome: Outcome) {
        let Caller { caller, gathered, log } = audience;
        if !log.is_empty() {
            // Right before the sentinel.
            self.logs.feed_frames(&log);
        }
        let error = match &outcome {
            Outcome::Error(error) => Some(error),
            _ => None,
        };
        if label.is_some() && error.is_some() {
            self.logs.attribute(label.as_ref());
        }
        self.worker.close_log(self.logs, error).await;
        self.log_goes_on();
        if let Some((reply, place)) = caller {
            drop(place);
            outcome.send(reply, gathered);
        }
    }

    /// An activation has not left the process, and its caller is told all the same.
    async fn fail(&mut self, id: u64, error: Error) {
        let grace = self.grace();
        let Some(at) = self.position(id) else { return };
        let flight = &mut self.flights[at];
        match flight.state {
            State::Over { .. } => return,
            State::Cancelled { .. } => {}
            State::Open | State::Left => self.multiplex.cancel(id),
        }
        flight.state = State::Over { until: Instant::now() + grace };
        let why = format!("{error}");
        let (audience, label) = (std::mem::take(&mut flight.audience), flight.label.clone());
        self.conclude(audience, label, Outcome::Error(error)).await;
        if grace.is_zero() {
            self.condemned = Some(why);
        }
    }

    /// How long the process may take to end what nobody waits for.
    fn grace(&self) -> Duration {
        let others = self.flights.iter().filter(|flight| flight.is_awaited()).count() > 1;
        if self.multiplex.promises().cancel || others {
            self.worker.shared.config.settings.stop_grace.0
        } else {
            Duration::ZERO
        }
    }

    /// Somebody has left, or has taken what was held.
    fn look_after_callers(&mut self) {
        let (low, promises) = (self.low_bytes(), self.multiplex.promises());
        let until = Instant::now() + self.worker.shared.config.settings.stop_grace.0;
        for flight in &mut self.flights {
            let Some((reply, _)) = &flight.audience.caller else { continue };
            if reply.is_closed() {
                flight.audience.caller = None;
                flight.audience.gathered = Gathered::default();
                flight.pace = Backpressure::Free;
                if promises.cancel {
                    self.multiplex.cancel(flight.ticket.id);
                    flight.state = State::Cancelled { until };
                } else {
                    flight.state = State::Left;
                }
            } else if let Reply::ResponseStream(feed) = reply
                && flight.is_held_up()
                && feed.held_bytes() <= low
            {
                let pace = std::mem::replace(&mut flight.pace, Backpressure::Free);
                if matches!(pace, Backpressure::Paused | Backpressure::Rested) {
                    self.multiplex.resume(flight.ticket.id);
                }
            }
        }
    }

    /// Whose time is over?
    async fn look_at_the_clock(&mut self, counts: bool) {
        let now = Instant::now();
        self.rests_until = self.rests_until.filter(|until| *until > now);
        let mut over = Vec::new();
        for flight in &mut self.flights {
            if counts {
                flight.countdown.count(flight.countdown.part());
            }
            match flight.state {
                State::Open | State::Left => {
                    let by_count = flight.limit == TimeLimit::RunTimeout && flight.countdown.is_over();
                    if by_count || flight.ends.is_some_and(|ends| ends <= now) {
                        over.push((flight.ticket.id, flight.limit, flight.begun));
                    }
                }
                State::Cancelled { until } | State::Over { until } => {
                    if until <= now && self.condemned.is_none() {
                        self.condemned = Some("it did not end an activation that nobody waits for any more".into());
                    }
                }
            }
        }
        for (id, limit, begun) in over {
            self.fail(id, Error::Run(RunError::TimeOut { limit, after: begun.elapsed() })).await;
        }
    }

    /// The process is gone: what it said before that counts, what it never read is another's to do.
    async fn mourn(&mut self, process: &Process, waiting: &mut VecDeque<Waiting>) {
        let ended = wait_for_end(process).await;
        // First, or one that lives on, and writes as fast as it is read, is read for ever.
        stop::kill_and_reap(process).await;
        'last_words: for _ in 0..LAST_READS {
            while let Some(taken) = self.multiplex.take() {
                let Taken::Frame(event, line) = taken else { break 'last_words };
                self.handle(event, &line).await;
            }
            if !self.multiplex.read_rest() {
                break;
            }
        }
        let partial = self.multiplex.partial().to_vec();
        let alone = self.flights.len() == 1;
        // The youngest is put in front first, so that the oldest comes to stand before it.
        let mut flights = std::mem::take(&mut self.flights);
        flights.sort_by_key(|flight| std::cmp::Reverse(flight.ticket.id));
        for flight in flights {
            let untouched = ended && !flight.fresh && flight.state == State::Open;
            if untouched && partial.is_empty() && self.multiplex.is_untouched(flight.ticket) {
                let Flight { activation, deadline, begun, audience, .. } = flight;
                let (reply, place) = audience.caller.expect("an open one has a caller");
                let job = Job { activation, deadline, reply, place, claimed: None };
                let job = match self.worker.pool.queue.requeue_front(job) {
                    Ok(()) => continue,
                    Err(job) => job,
                };
                waiting.push_front(Waiting { job, begun, fresh: false });
            } else {
                self.flights.push(flight);
            }
        }
        self.logs.detach();
        let exit = ended.then(|| exit_report(process, self.logs));
        let channel = self.multiplex.channel();
        // With others in flight nobody can tell whose line it was.
        let partial = if alone { partial } else { Vec::new() };
        let error = || without_answer(exit.clone(), &partial, channel);
        let how = error();
        self.worker.pool.backoff().died(how.detail().unwrap_or_else(|| how.to_string()));
        self.finish_all(|_| Some(error())).await;
    }

    /// Ends all that is in flight, the oldest first.
    async fn finish_all(&mut self, mut error: impl FnMut(&Flight) -> Option<Error>) {
        let mut flights = std::mem::take(&mut self.flights);
        flights.sort_by_key(|flight| flight.ticket.id);
        for flight in flights {
            let outcome = match error(&flight).filter(|_| flight.state == State::Open) {
                Some(error) => Outcome::Error(error),
                None => Outcome::End,
            };
            self.finish(flight, outcome).await;
        }
    }
}

impl Flight {
    /// Whether its log has not ended.
    fn logs(&self) -> bool {
        !matches!(self.state, State::Over { .. })
    }

    /// Whether the process is to finish it.
    fn is_awaited(&self) -> bool {
        matches!(self.state, State::Open | State::Left)
    }

    /// Whether it may write less than it could.
    fn is_held_up(&self) -> bool {
        self.pace != Backpressure::Free
    }

    /// Whether its caller takes pieces.
    fn is_fed(&self) -> bool {
        matches!(&self.audience.caller, Some((Reply::ResponseStream(_), _)))
    }

    /// The point in time at which something has to happen.
    fn until(&self) -> Option<Instant> {
        match self.state {
            State::Open | State::Left => self.ends,
            State::Cancelled { until } | State::Over { until } => Some(until),
        }
    }
}

impl Outcome {
    fn send(self, reply: Reply, gathered: Gathered) {
        match (reply, self) {
            (reply, Self::Answer(answer)) => reply.send(Ok(answer)),
            (reply, Self::Error(error)) => reply.send(Err(error)),
            (reply @ Reply::Whole(_), Self::Failed(error)) => reply.send(Ok(answer::failure(&error))),
            (reply @ Reply::Whole(_), Self::End) => reply.send(Ok(gathered.into_answer())),
            (Reply::ResponseStream(feed), Self::Failed(error)) => {
                feed.push(StreamItem::Failed(error));
            }
            (Reply::ResponseStream(feed), Self::End) => {
                feed.push(StreamItem::End);
            }
        }
    }
}

/// Ready when a caller has left, or has taken what was held for it.
fn poll_callers(flights: &mut [Flight], low_bytes: usize, context: &mut Context<'_>) -> Poll<()> {
    let mut changed = false;
    for flight in flights {
        let low_bytes = flight.is_held_up().then_some(low_bytes);
        changed |= match &mut flight.audience.caller {
            None => false,
            Some((Reply::Whole(reply), _)) => reply.poll_closed(context).is_ready(),
            Some((Reply::ResponseStream(feed), _)) => feed.poll_change(low_bytes, context).is_ready(),
        };
    }
    if changed { Poll::Ready(()) } else { Poll::Pending }
}
