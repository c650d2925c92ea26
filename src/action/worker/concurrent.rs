//! A worker whose process speaks version 2: several activations in flight, each with a reply, a limit
//! of time and a log of its own.
//!
//! Decides what becomes of activations; what their frames look like is known to
//! `protocol/multiplex.rs`. The process is started, stopped and mourned as every other one.
//!
//! # Theory of operation
//! One loop owns the conversation. It takes activations from the queue while the process has a permit for
//! them, hands each frame to the reply it belongs to, and watches the callers, the clock and the
//! process. Nobody waits for anybody else in it, but for the log: an answer leaves when its log and its
//! sentinels are out, as in every version.
//!
//! A [`InFlight`] keeps its permit in the process until the process has ended it by a frame. Where its
//! caller leaves, or is told an error, before that, the process hears of it if it wants to. It may then
//! take [`ActionSettings::stop_grace`](crate::config::ActionSettings) to end it, or as long as the
//! activation's own time where it did not promise to listen and merely its caller has left. If it does
//! not, it is *retiring*: it gets nothing more, and is killed when none of its activations is waited
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
use crate::logs::{ConcurrentLog, Logs};
use crate::memory_budget::Reservation;
use crate::process::{Process, stop};
use crate::protocol::answer::{self, Gathered};
use crate::protocol::conversation::Conversation;
use crate::protocol::detect::ending;
use crate::protocol::multiplex::{Ended, Event, Multiplex, Step, Taken, Ticket, stray};
use crate::time::Countdown;

use super::super::Phase;
use super::super::job::{Job, Message, Reply};
use super::super::queue::{Capacity, Next, QueuePermit};
use super::super::response_stream::StreamItem;
use super::{Running, Worker, no_answer_error, time_is_up, time_limit, wait_for_exit};

/// An activation that was taken from the queue and is not in flight yet.
pub(super) struct Pending {
    job: Job,
    begun: Instant,
    /// A process was started for it.
    fresh: bool,
}

impl Pending {
    pub(super) fn new(job: Job) -> Self {
        Self { job, begun: Instant::now(), fresh: false }
    }
}

/// An activation in flight.
struct InFlight {
    ticket: Ticket,
    activation: Activation,
    /// The memory of the activation's body.
    reservation: Reservation,
    deadline: Option<Instant>,
    limit: TimeLimit,
    begun: Instant,
    /// When its deadline is over; its run timeout is counted.
    ends: Option<Instant>,
    countdown: Countdown,
    state: State,
    caller_state: Caller,
    backpressure: Backpressure,
    /// Its log, until that has ended.
    log: Option<ConcurrentLog>,
    label: Option<Arc<str>>,
    fresh: bool,
}

/// Who is told of an activation.
#[derive(Default)]
struct Caller {
    /// Gone with whoever waited.
    caller: Option<(Reply, QueuePermit)>,
    /// Chunks for a caller who wants one body.
    gathered: Gathered,
}

/// How fast it may write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Backpressure {
    /// As fast as it can.
    Free,
    /// Its caller is slow.
    Slowed,
    /// It was asked to pause.
    Paused,
    /// The process was given the time to see that, too.
    PauseGraceUsed,
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
    Failed { until: Instant },
}

/// How an activation comes to its end.
enum Outcome {
    Answer(Answer),
    ActionError(Bytes),
    End,
    Error(Error),
}

/// Why a conversation is left.
enum End {
    /// Nothing is in flight and nothing will come.
    Idle,
    /// The process, or its result channel, is gone.
    ProcessGone,
    /// It is to be replaced, for this reason, and nobody waits for anything of it.
    Retired(String),
    /// A frame over the bound.
    FrameTooLong,
    /// What is in flight is cut.
    Stopped,
}

impl Worker {
    /// Works on these and whatever comes, until there is no process any more, or nothing will come.
    pub(super) async fn run_concurrently(
        &mut self,
        waiting: Vec<Pending>,
        phase: &mut watch::Receiver<Phase>,
        logs: &mut Logs,
    ) {
        let mut waiting = VecDeque::from(waiting);
        loop {
            self.reap_exited(logs).await;
            if self.running.is_none() {
                let Some(first) = waiting.front_mut() else { return };
                first.fresh = true;
                let (begun, deadline) = (first.begun, first.job.deadline);
                let log = logs.open_concurrent();
                match self.restart_within(begun, deadline, phase, logs).await {
                    Ok(running) => {
                        log.withdraw(logs);
                        self.running = Some(running);
                    }
                    Err(error) => {
                        self.log_failure(Some(&error), logs);
                        log.end(logs).await;
                        let Some(Pending { job, .. }) = waiting.pop_front() else { return };
                        drop(job.permit);
                        job.reply.send(Err(error));
                        continue;
                    }
                }
            }
            match self.running.take() {
                Some(Running { process, conversation: Conversation::Multiplex(multiplex), .. }) => {
                    self.serve_connection(process, multiplex, &mut waiting, phase, logs).await;
                }
                other => {
                    // This time it speaks another version.
                    self.running = other;
                    self.pool.speaks_frames.store(false, Ordering::Relaxed);
                    for Pending { job, .. } in waiting {
                        self.run_one(job, phase, logs).await;
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
            _ = phase.wait_for(|phase| *phase >= Phase::Stopping) => Error::Run(RunError::Cut { after: begun.elapsed() }),
        };
        logs.detach();
        Err(outcome)
    }

    /// One conversation to its end.
    async fn serve_connection(
        &mut self,
        process: Process,
        multiplex: Multiplex,
        waiting: &mut VecDeque<Pending>,
        phase: &mut watch::Receiver<Phase>,
        logs: &mut Logs,
    ) {
        let mut concurrent = Concurrent {
            worker: self,
            logs,
            multiplex,
            in_flight: Vec::new(),
            retiring: None,
            yields_to_callers: false,
            reads_resume_at: None,
        };
        let end = concurrent.serve(&process, waiting, phase).await;
        concurrent.worker.pool.queue.mark_unavailable(concurrent.worker.slot);
        let in_flight = concurrent.in_flight.len();
        match end {
            End::Idle => {
                let conversation = Conversation::Multiplex(concurrent.multiplex);
                self.running = Some(Running { process, conversation, channel_ended: false });
            }
            End::ProcessGone => concurrent.handle_exit_in_flight(&process, waiting).await,
            End::Retired(reason) => {
                stop::kill_and_reap(&process).await;
                concurrent.logs.detach();
                concurrent.worker.pool.backoff().record_stop(reason);
                concurrent.finish_all(|_| None).await;
            }
            End::FrameTooLong => {
                stop::kill_and_reap(&process).await;
                concurrent.logs.detach();
                let limit_bytes = concurrent.worker.shared.config.settings.max_result.0;
                let error = || match in_flight {
                    0 | 1 => Error::Run(RunError::AnswerTooLong { limit_bytes }),
                    in_flight => Error::Run(RunError::FrameTooLong { limit_bytes, in_flight }),
                };
                concurrent.worker.pool.backoff().record_stop(error().to_string());
                concurrent.finish_all(|_| Some(error())).await;
            }
            End::Stopped => {
                stop::kill_and_reap(&process).await;
                concurrent.logs.detach();
                concurrent.finish_all(|flight| Some(Error::Run(RunError::Cut { after: flight.begun.elapsed() }))).await;
                for Pending { job, begun, .. } in waiting.drain(..) {
                    let mut log = concurrent.logs.open(None);
                    let error = Error::Run(RunError::Cut { after: begun.elapsed() });
                    concurrent.worker.log_failure(Some(&error), &mut log);
                    log.end().await;
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
    in_flight: Vec<InFlight>,
    /// The process gets nothing more, for this reason.
    retiring: Option<String>,
    /// Somebody is to be given the time to take what is held.
    yields_to_callers: bool,
    /// Nothing is read until then.
    reads_resume_at: Option<Instant>,
}

/// How long a process that was asked to pause and writes on is not read, once, so that it comes to see
/// what it was asked: whoever writes as fast as it can may read last.
const PAUSE_GRACE: Duration = Duration::from_millis(50);

/// How often the channel of a process that was killed is read. Its pipe holds less; but what has left
/// the process's group may go on writing.
const LAST_READS: usize = 1024;

impl Concurrent<'_> {
    async fn serve(
        &mut self,
        process: &Process,
        waiting: &mut VecDeque<Pending>,
        phase: &mut watch::Receiver<Phase>,
    ) -> End {
        let pool = self.worker.pool.clone();
        let part = Countdown::new(self.worker.shared.config.settings.run_timeout.0).part();
        let mut exited = std::pin::pin!(process.exited());
        let mut alarm = std::pin::pin!(tokio::time::sleep(Duration::ZERO));
        let mut tick = std::pin::pin!(tokio::time::sleep(Duration::ZERO));
        let mut closing = false;
        loop {
            while self.may_read()
                && let Some(taken) = self.multiplex.take()
            {
                let Taken::Frame(event, line) = taken else { return End::FrameTooLong };
                self.handle(event, &line).await;
                // A process may write faster than we can read: everybody else goes on all the same.
                tokio::task::consume_budget().await;
                if std::mem::take(&mut self.yields_to_callers) {
                    // Callers take what is held for them.
                    tokio::task::yield_now().await;
                    self.check_callers();
                }
            }
            closing |= *phase.borrow_and_update() > Phase::Serving;
            if *phase.borrow() >= Phase::Stopping && !(self.in_flight.is_empty() && waiting.is_empty()) {
                return End::Stopped;
            }
            let mut begun = false;
            while self.has_capacity()
                && let Some(next) = waiting.pop_front()
            {
                begun = true;
                if self.in_flight.is_empty() {
                    tick.as_mut().reset(Instant::now() + part);
                }
                if let Err(next) = self.begin(next).await {
                    waiting.push_front(next);
                    break;
                }
            }
            if begun && self.retiring.is_none() {
                // It may have answered meanwhile.
                continue;
            }
            if let Some(reason) = &self.retiring
                && !self.in_flight.iter().any(InFlight::is_awaited)
            {
                return End::Retired(reason.clone());
            }
            if closing && self.in_flight.is_empty() && waiting.is_empty() {
                return End::Idle;
            }
            if self.retiring.is_some() {
                // What comes to the queue is for others.
                pool.queue.mark_unavailable(self.worker.slot);
            }
            let is_over = self.retiring.is_some();
            let until = self.in_flight.iter().filter(|flight| flight.is_awaited() || !is_over);
            let until = until.filter_map(InFlight::until).chain(self.reads_resume_at).min();
            if let Some(until) = until
                && alarm.deadline() != until
            {
                alarm.as_mut().reset(until);
            }
            let reads = self.may_read();
            let takes = !closing && waiting.is_empty() && self.has_capacity();
            let capacity =
                if self.in_flight.len() + 1 < self.concurrency() { Capacity::Several } else { Capacity::One };
            let low = self.low_bytes();
            tokio::select! {
                step = self.multiplex.step(reads) => if step == Step::Gone {
                    return End::ProcessGone;
                },
                next = pool.queue.next(self.worker.slot, capacity), if takes => match next {
                    Next::Message(Message::Run(job)) => {
                        if let Some(job) = job.claim(&self.worker.shared.config.memory_budget) {
                            waiting.push_back(Pending::new(job));
                        }
                    }
                    Next::Message(Message::Refuse(reply)) => {
                        self.logs.open(None).end().await;
                        self.attribute();
                        let _ = reply.send(());
                    }
                    Next::Message(Message::Say(sentence)) => self.logs.say(&sentence),
                    Next::Close => closing = true,
                    Next::Start => {}
                },
                _ = &mut exited => return End::ProcessGone,
                () = std::future::poll_fn(|context| poll_callers(&mut self.in_flight, low, context)) => {
                    self.check_callers();
                }
                () = &mut alarm, if until.is_some() => self.check_time_limits(false).await,
                () = &mut tick, if !self.in_flight.is_empty() => {
                    tick.as_mut().reset(Instant::now() + part);
                    self.check_time_limits(true).await;
                }
                _ = phase.changed() => {}
                never = self.logs.pump() => match never {},
            }
        }
    }

    fn concurrency(&self) -> usize {
        self.multiplex.promises().concurrency
    }

    fn has_capacity(&self) -> bool {
        self.in_flight.len() < self.concurrency() && self.retiring.is_none()
    }

    /// Whether to read, and to take frames that were read already. An activation that is alone in its
    /// process is slowed down by not doing so.
    fn may_read(&self) -> bool {
        if self.concurrency() > 1 {
            return self.reads_resume_at.is_none();
        }
        !self.in_flight.iter().any(|flight| flight.is_slowed() && flight.is_streamed())
    }

    fn buffer_bytes(&self) -> usize {
        self.worker.shared.config.settings.stream_buffer.bytes()
    }

    /// When so little is held, an activation goes on.
    fn low_bytes(&self) -> usize {
        if self.concurrency() == 1 { self.buffer_bytes() / 2 } else { self.buffer_bytes() / 8 }
    }

    /// Sends an activation. Gives it back when the process must not have it.
    async fn begin(&mut self, waiting: Pending) -> Result<(), Pending> {
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
                self.logs.open_concurrent().withdraw(self.logs);
                self.logs.say("pipeloop: the action is started anew, since it wrote a line too many (PIPELOOP_STRAY)");
                self.retiring = Some("it wrote a line too many".into());
                return Err(waiting);
            }
        }
        let Pending { job, begun, fresh } = waiting;
        let Job { activation, deadline, reply, permit, reservation, claim: _ } = job;
        let run_timeout = self.worker.shared.config.settings.run_timeout.0;
        let (limit, ends) = time_limit(begun, deadline, run_timeout);
        let log = self.logs.open_concurrent();
        let label = self.logs.label(&activation);
        let ticket = self.multiplex.begin(&activation);
        self.in_flight.push(InFlight {
            ticket,
            activation,
            reservation,
            deadline,
            limit,
            begun,
            ends: (limit == TimeLimit::Deadline).then_some(ends),
            countdown: Countdown::from_mid_part(run_timeout),
            state: State::Open,
            caller_state: Caller { caller: Some((reply, permit)), gathered: Gathered::default() },
            log: Some(log),
            backpressure: Backpressure::Free,
            label,
            fresh,
        });
        self.attribute();
        Ok(())
    }

    /// What is printed is only one's if there is no other.
    fn attribute(&mut self) {
        let label = match &self.in_flight[..] {
            [only] => only.label.as_ref(),
            _ => None,
        };
        self.logs.set_label(label);
    }

    async fn handle(&mut self, event: Event, line: &[u8]) {
        match event {
            Event::Chunk(id, chunk) => self.chunk(id, chunk).await,
            Event::Log(id, text) => {
                self.log(id, &text);
                self.logs.wait_for_space().await;
            }
            Event::Ended(id, ended) => {
                let Some(at) = self.position(id) else { return };
                let outcome = match ended {
                    Ended::Result(answer) => Outcome::Answer(answer),
                    Ended::Error(error) => Outcome::ActionError(error),
                    Ended::End => Outcome::End,
                    Ended::Bad(problem) => Outcome::Error(Error::Run(RunError::BadAnswer { problem, ending: None })),
                };
                self.worker.pool.backoff().record_answer();
                let flight = self.in_flight.swap_remove(at);
                if self.has_capacity() && self.concurrency() > 1 {
                    self.worker.pool.queue.expect_return(self.worker.slot);
                }
                self.finish(flight, outcome).await;
            }
            Event::Malformed(id, problem) => {
                let line = String::from_utf8_lossy(line).into_owned();
                self.fail(id, Error::Run(RunError::BadFrame { problem, line })).await;
            }
            Event::Stray(reason) => {
                self.logs.say(&stray(line, &reason));
                self.logs.wait_for_space().await;
            }
        }
    }

    fn position(&self, id: u64) -> Option<usize> {
        self.in_flight.iter().position(|flight| flight.ticket.id == id)
    }

    async fn chunk(&mut self, id: u64, chunk: Bytes) {
        let limit_bytes = self.worker.shared.config.settings.max_result.0;
        let buffer_bytes = self.buffer_bytes();
        let concurrency = self.concurrency();
        let Some(at) = self.position(id) else { return };
        let flight = &mut self.in_flight[at];
        match &flight.caller_state.caller {
            // Nobody wants it any more.
            None => {}
            Some((Reply::Whole(_), _)) => {
                let fits = flight.caller_state.gathered.add(&chunk, limit_bytes);
                if !fits {
                    self.fail(id, Error::Run(RunError::AnswerTooLong { limit_bytes })).await;
                }
            }
            Some((Reply::Stream(sender), _)) => {
                let buffered_bytes = sender.push(StreamItem::Chunk(chunk));
                self.yields_to_callers |= buffered_bytes > buffer_bytes / 8;
                if concurrency == 1 {
                    flight.backpressure =
                        if buffered_bytes >= buffer_bytes { Backpressure::Slowed } else { Backpressure::Free };
                } else if buffered_bytes > buffer_bytes && flight.is_slowed() {
                    let limit_bytes = buffer_bytes as u64;
                    self.fail(id, Error::Run(RunError::Overrun { limit_bytes })).await;
                } else if buffered_bytes > buffer_bytes / 2 && flight.backpressure == Backpressure::Paused {
                    flight.backpressure = Backpressure::PauseGraceUsed;
                    self.reads_resume_at = Some(Instant::now() + PAUSE_GRACE);
                } else if buffered_bytes > buffer_bytes / 4 && !flight.is_slowed() {
                    // It may not listen; then it is noted all the same, and told when it is too late.
                    flight.backpressure =
                        if self.multiplex.pause(id) { Backpressure::Paused } else { Backpressure::Slowed };
                }
            }
        }
    }

    fn log(&mut self, id: u64, text: &str) {
        let Some(at) = self.position(id) else { return };
        let alone = self.concurrency() == 1;
        let flight = &mut self.in_flight[at];
        let lines = self.logs.format_lines(text, flight.label.as_deref());
        let most = self.worker.shared.config.settings.log_backlog.bytes();
        match &mut flight.log {
            Some(log) if !alone => log.keep_lines(&lines, most, self.logs),
            _ => self.logs.append_lines(&lines),
        }
    }

    /// An activation has left the process.
    async fn finish(&mut self, flight: InFlight, outcome: Outcome) {
        if let Some(log) = flight.log {
            self.end_log_and_reply(flight.caller_state, log, flight.label, outcome).await;
        } else {
            // Its caller was first_reply, and its log has ended.
            self.attribute();
        }
    }

    /// Ends the log of an activation, and then tells its caller how it came out.
    async fn end_log_and_reply(
        &mut self,
        caller_state: Caller,
        mut log: ConcurrentLog,
        label: Option<Arc<str>>,
        outcome: Outcome,
    ) {
        let Caller { caller, gathered } = caller_state;
        log.write_lines(self.logs);
        let error = match &outcome {
            Outcome::Error(error) => Some(error),
            _ => None,
        };
        if label.is_some() && error.is_some() {
            self.logs.set_label(label.as_ref());
        }
        self.worker.log_failure(error, self.logs);
        log.end(self.logs).await;
        self.attribute();
        if let Some((reply, permit)) = caller {
            drop(permit);
            outcome.send(reply, gathered);
        }
    }

    /// An activation has not left the process, and its caller is told all the same.
    async fn fail(&mut self, id: u64, error: Error) {
        let grace = self.end_grace();
        let Some(at) = self.position(id) else { return };
        let flight = &mut self.in_flight[at];
        let Some(log) = flight.log.take() else { return };
        if matches!(flight.state, State::Open | State::Left) {
            self.multiplex.cancel(id);
        }
        flight.state = State::Failed { until: Instant::now() + grace };
        let why = format!("{error}");
        let (caller_state, label) = (std::mem::take(&mut flight.caller_state), flight.label.clone());
        self.end_log_and_reply(caller_state, log, label, Outcome::Error(error)).await;
        if grace.is_zero() {
            self.retiring = Some(why);
        }
    }

    /// How long the process may take to end what nobody waits for.
    fn end_grace(&self) -> Duration {
        let others = self.in_flight.iter().filter(|flight| flight.is_awaited()).count() > 1;
        if self.multiplex.promises().cancel || others {
            self.worker.shared.config.settings.stop_grace.0
        } else {
            Duration::ZERO
        }
    }

    /// Somebody has left, or has taken what was held.
    fn check_callers(&mut self) {
        let (low, promises) = (self.low_bytes(), self.multiplex.promises());
        let until = Instant::now() + self.worker.shared.config.settings.stop_grace.0;
        for flight in &mut self.in_flight {
            let Some((reply, _)) = &flight.caller_state.caller else { continue };
            if reply.is_closed() {
                flight.caller_state.caller = None;
                flight.caller_state.gathered = Gathered::default();
                flight.backpressure = Backpressure::Free;
                if promises.cancel {
                    self.multiplex.cancel(flight.ticket.id);
                    flight.state = State::Cancelled { until };
                } else {
                    flight.state = State::Left;
                }
            } else if let Reply::Stream(sender) = reply
                && flight.is_slowed()
                && sender.buffered_bytes() <= low
            {
                let backpressure = std::mem::replace(&mut flight.backpressure, Backpressure::Free);
                if matches!(backpressure, Backpressure::Paused | Backpressure::PauseGraceUsed) {
                    self.multiplex.resume(flight.ticket.id);
                }
            }
        }
    }

    /// Whose time is over?
    async fn check_time_limits(&mut self, counts: bool) {
        let now = Instant::now();
        self.reads_resume_at = self.reads_resume_at.filter(|until| *until > now);
        let mut over = Vec::new();
        for flight in &mut self.in_flight {
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
                State::Cancelled { until } | State::Failed { until } => {
                    if until <= now && self.retiring.is_none() {
                        self.retiring = Some("it did not end an activation that nobody waits for any more".into());
                    }
                }
            }
        }
        for (id, limit, begun) in over {
            self.fail(id, Error::Run(RunError::TimeOut { limit, after: begun.elapsed() })).await;
        }
    }

    /// The process is gone: what it said before that counts, what it never read is another's to do.
    async fn handle_exit_in_flight(&mut self, process: &Process, waiting: &mut VecDeque<Pending>) {
        let ended = wait_for_exit(process).await;
        // First, or one that lives on, and writes as fast as it is read, is read for ever.
        stop::kill_and_reap(process).await;
        'rest: for _ in 0..LAST_READS {
            while let Some(taken) = self.multiplex.take() {
                let Taken::Frame(event, line) = taken else { break 'rest };
                self.handle(event, &line).await;
            }
            if !self.multiplex.read_rest() {
                break;
            }
        }
        let partial = self.multiplex.partial().to_vec();
        let alone = self.in_flight.len() == 1;
        // The youngest is put in front first, so that the oldest comes to stand before it.
        let mut in_flight = std::mem::take(&mut self.in_flight);
        in_flight.sort_by_key(|flight| std::cmp::Reverse(flight.ticket.id));
        for flight in in_flight {
            let untouched = ended && !flight.fresh && flight.state == State::Open;
            if untouched && partial.is_empty() && self.multiplex.is_untouched(flight.ticket) {
                let InFlight { activation, reservation, deadline, begun, caller_state, log, .. } = flight;
                // Another process runs it, and its log is there.
                log.expect("an open one has a log").withdraw(self.logs);
                let (reply, permit) = caller_state.caller.expect("an open one has a caller");
                let job = Job { activation, deadline, reply, permit, reservation, claim: None };
                let job = match self.worker.pool.queue.requeue_front(job) {
                    Ok(()) => continue,
                    Err(job) => job,
                };
                waiting.push_front(Pending { job, begun, fresh: false });
            } else {
                self.in_flight.push(flight);
            }
        }
        self.logs.detach();
        let ending = ended.then(|| ending(process, self.logs));
        let channel = self.multiplex.channel().name();
        // With others in flight nobody can tell whose line it was.
        let partial = if alone { partial } else { Vec::new() };
        let error = || no_answer_error(ending.clone(), &partial, channel);
        let how = error();
        self.worker.pool.backoff().record_crash(how.detail().unwrap_or_else(|| how.to_string()));
        self.finish_all(|_| Some(error())).await;
    }

    /// Ends all that is in flight, the oldest first.
    async fn finish_all(&mut self, mut error: impl FnMut(&InFlight) -> Option<Error>) {
        let mut in_flight = std::mem::take(&mut self.in_flight);
        in_flight.sort_by_key(|flight| flight.ticket.id);
        for flight in in_flight {
            let outcome = match error(&flight).filter(|_| flight.state == State::Open) {
                Some(error) => Outcome::Error(error),
                None => Outcome::End,
            };
            self.finish(flight, outcome).await;
        }
    }
}

impl InFlight {
    /// Whether the process is to finish it.
    fn is_awaited(&self) -> bool {
        matches!(self.state, State::Open | State::Left)
    }

    /// Whether it may write less than it could.
    fn is_slowed(&self) -> bool {
        self.backpressure != Backpressure::Free
    }

    /// Whether its caller takes pieces.
    fn is_streamed(&self) -> bool {
        matches!(&self.caller_state.caller, Some((Reply::Stream(_), _)))
    }

    /// The point in time at which something has to happen.
    fn until(&self) -> Option<Instant> {
        match self.state {
            State::Open | State::Left => self.ends,
            State::Cancelled { until } | State::Failed { until } => Some(until),
        }
    }
}

impl Outcome {
    fn send(self, reply: Reply, gathered: Gathered) {
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

/// Ready when a caller has left, or has taken what was held for it.
fn poll_callers(in_flight: &mut [InFlight], low_bytes: usize, context: &mut Context<'_>) -> Poll<()> {
    let mut changed = false;
    for flight in in_flight {
        let low_bytes = flight.is_slowed().then_some(low_bytes);
        changed |= match &mut flight.caller_state.caller {
            None => false,
            Some((Reply::Whole(reply), _)) => reply.poll_closed(context).is_ready(),
            Some((Reply::Stream(sender), _)) => sender.poll_change(low_bytes, context).is_ready(),
        };
    }
    if changed { Poll::Ready(()) } else { Poll::Pending }
}
