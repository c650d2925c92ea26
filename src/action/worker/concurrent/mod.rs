//! A worker whose process speaks version 2: several activations in flight, each with a reply, a time
//! limit and a log of its own.
//!
//! Decides what becomes of activations. `protocol/multiplex.rs` knows their frames. The process is started,
//! stopped and reaped as that of any other worker.
//!
//! # Theory of operation
//! One loop owns the conversation. It waits for the next [`Event`] and handles it: it takes activations
//! from the queue while the process can take more, gives each frame to its activation (`frames.rs`), and
//! watches the callers, the time limits and the process. Nothing in the loop waits for a caller or for the
//! process. It waits only for the log: as in every version, an answer leaves when its log and its
//! sentinels are out.
//!
//! An activation stays in flight until the process ends it by a frame. If its caller leaves or gets an error
//! before that, the process is asked to cancel it, where it promised to listen. It then has
//! [`ActionSettings::stop_grace`](crate::config::ActionSettings) to end it. Without that promise, an
//! activation whose caller has left may take its whole time limit. A process that does not end an activation
//! in time is *retiring*: it gets no more activations, and is killed when no caller waits for one of its
//! activations. With nothing else in flight and no promise to listen, it is killed at once.
//!
//! The chunks that a slow caller has not taken are buffered, up to a limit. An activation alone in its process
//! is then slowed down: the proxy stops reading what it writes. Among others it is asked to pause when a
//! quarter of the buffer is full. If it still writes when half of the buffer is full, the proxy stops reading
//! for a moment, so that the process sees the request. If its caller falls a whole buffer behind, it fails,
//! so that it cannot block the others.

mod end;
mod frames;
mod in_flight;

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use tokio::time::{Instant, Sleep};

use crate::error::{Error, RunError, TimeLimit};
use crate::logs::Logs;
use crate::process::Process;
use crate::protocol::answer::Gathered;
use crate::protocol::conversation::Conversation;
use crate::protocol::multiplex::{Event as Frame, Multiplex, Step, Taken, stray};
use crate::time::Countdown;

use super::super::Phase;
use super::super::job::{Job, Message, Reply};
use super::super::queue::{Capacity, Next};
use super::{Running, Worker, time_is_up, time_limit};
pub(super) use in_flight::Pending;
use in_flight::{Backpressure, Caller, InFlight, State, poll_callers};

/// What happens next in a conversation.
enum Event {
    /// The process wrote a frame, on this line.
    Frame(Frame, Bytes),
    /// The process wrote a frame over the limit.
    FrameTooLong,
    /// Bytes moved to or from the process.
    Moved,
    /// The process has exited, or its result channel has ended.
    ProcessGone,
    /// The queue has something to do.
    Queue(Next),
    /// A caller has left, or has taken what was buffered for it.
    CallersChanged,
    /// A point in time has come at which a state has to be checked.
    TimeReached,
    /// A part of every countdown has passed.
    PartPassed,
    /// The action begins to stop, or stops faster.
    PhaseChanged,
}

/// Why a conversation ends.
enum End {
    /// Nothing is in flight and no message will come.
    Idle,
    /// The process, or its result channel, is gone.
    ProcessGone,
    /// The process is replaced, for this reason. No caller waits for it.
    Retired(String),
    /// The process wrote a frame over the limit.
    FrameTooLong,
    /// The action stops before its activations have ended.
    Stopped,
}

/// How long the proxy does not read from a process that writes on after a request to pause. It happens once
/// a pause, so that a process that writes without a break comes to read the request.
const PAUSE_GRACE: Duration = Duration::from_millis(50);

impl Worker {
    /// Runs these activations and any from the queue, until there is no process, or no message will come.
    pub(super) async fn run_concurrently(
        &mut self,
        pending: Vec<Pending>,
        phase: &mut watch::Receiver<Phase>,
        logs: &mut Logs,
    ) {
        let mut pending = VecDeque::from(pending);
        loop {
            self.reap_exited(logs).await;
            if self.running.is_none() {
                let Some(first) = pending.front_mut() else { return };
                first.fresh = true;
                let (begun, deadline) = (first.begun, first.job.deadline);
                let log = logs.open_concurrent();
                match self.restart_within_limit(begun, deadline, phase, logs).await {
                    Ok(running) => {
                        // The log is opened again with the activation's label.
                        log.withdraw(logs);
                        self.running = Some(running);
                    }
                    Err(error) => {
                        self.log_failure(Some(&error), logs);
                        log.end(logs).await;
                        let Some(Pending { job, .. }) = pending.pop_front() else { return };
                        drop(job.permit);
                        job.reply.send(Err(error));
                        continue;
                    }
                }
            }
            match self.running.take() {
                Some(Running { process, conversation: Conversation::Multiplex(multiplex), .. }) => {
                    self.converse(process, multiplex, &mut pending, phase, logs).await;
                }
                other => {
                    // The new process speaks another version.
                    self.running = other;
                    self.pool.speaks_frames.store(false, Ordering::Relaxed);
                    for Pending { job, .. } in pending {
                        self.run_one(job, phase, logs).await;
                    }
                    return;
                }
            }
            if pending.is_empty() {
                return;
            }
        }
    }

    /// Starts a process within the time limit of the activation that needs it.
    async fn restart_within_limit(
        &self,
        begun: Instant,
        deadline: Option<Instant>,
        phase: &mut watch::Receiver<Phase>,
        logs: &mut Logs,
    ) -> Result<Running, Error> {
        let run_timeout = self.shared.config.settings.run_timeout.0;
        let (limit, ends) = time_limit(begun, deadline, run_timeout);
        let error = tokio::select! {
            biased;
            started = self.restart(ends, logs) => return started,
            () = time_is_up(limit, ends, run_timeout) => Error::Run(RunError::TimeOut { limit, after: begun.elapsed() }),
            _ = phase.wait_for(|phase| *phase >= Phase::Stopping) => Error::Run(RunError::CutOff { after: begun.elapsed() }),
        };
        logs.detach();
        Err(error)
    }

    /// Holds one conversation to its end.
    async fn converse(
        &mut self,
        process: Process,
        multiplex: Multiplex,
        pending: &mut VecDeque<Pending>,
        phase: &mut watch::Receiver<Phase>,
        logs: &mut Logs,
    ) {
        let mut concurrent = Concurrent {
            worker: self,
            logs,
            multiplex,
            pending,
            in_flight: Vec::new(),
            closing: false,
            retiring: None,
            yields_to_callers: false,
            reads_resume_at: None,
        };
        let end = concurrent.serve(&process, phase).await;
        concurrent.worker.pool.queue.mark_unavailable(concurrent.worker.slot);
        let in_flight = concurrent.in_flight.len();
        if let End::Idle = end {
            let conversation = Conversation::Multiplex(concurrent.multiplex);
            self.running = Some(Running { process, conversation, channel_ended: false });
        } else {
            concurrent.close(end, &process).await;
        }
        tracing::debug!(in_flight, "left the conversation");
    }
}

/// One conversation and its activations.
struct Concurrent<'a> {
    worker: &'a mut Worker,
    logs: &'a mut Logs,
    multiplex: Multiplex,
    pending: &'a mut VecDeque<Pending>,
    in_flight: Vec<InFlight>,
    /// No message will come.
    closing: bool,
    /// The process gets no more activations and is replaced, for this reason.
    retiring: Option<String>,
    /// Much is buffered, so callers get the time to take it.
    yields_to_callers: bool,
    /// The process is not read until then.
    reads_resume_at: Option<Instant>,
}

/// The timers of a conversation.
struct Timers<'a> {
    /// Rings when a state has to be checked.
    alarm: Pin<&'a mut Sleep>,
    /// Ends with each part of a run timeout.
    part_end: Pin<&'a mut Sleep>,
    part: Duration,
}

impl Timers<'_> {
    fn start_part(&mut self) {
        self.part_end.as_mut().reset(Instant::now() + self.part);
    }
}

impl Concurrent<'_> {
    async fn serve(&mut self, process: &Process, phase: &mut watch::Receiver<Phase>) -> End {
        let mut exited = std::pin::pin!(process.exited());
        let mut timers = Timers {
            alarm: std::pin::pin!(tokio::time::sleep(Duration::ZERO)),
            part_end: std::pin::pin!(tokio::time::sleep(Duration::ZERO)),
            part: Countdown::new(self.worker.shared.config.settings.run_timeout.0).part(),
        };
        loop {
            let event = if let Some(event) = self.next_frame() {
                event
            } else {
                let phase_now = *phase.borrow_and_update();
                if let Some(end) = self.due_end(phase_now) {
                    return end;
                }
                if self.begin_pending(&mut timers).await {
                    // The process may have answered in the meantime.
                    continue;
                }
                self.next_event(exited.as_mut(), &mut timers, phase).await
            };
            if let Some(end) = self.handle(event).await {
                return end;
            }
        }
    }

    /// The next frame that was read already, if frames may be taken now.
    fn next_frame(&mut self) -> Option<Event> {
        if !self.may_read() {
            return None;
        }
        Some(match self.multiplex.take()? {
            Taken::Frame(frame, line) => Event::Frame(frame, line),
            Taken::TooLong => Event::FrameTooLong,
        })
    }

    /// Why the conversation ends now, if it does.
    fn due_end(&mut self, phase: Phase) -> Option<End> {
        self.closing |= phase >= Phase::Stopping;
        let is_idle = self.in_flight.is_empty() && self.pending.is_empty();
        if phase >= Phase::Stopping && !is_idle {
            return Some(End::Stopped);
        }
        if let Some(reason) = &self.retiring
            && !self.in_flight.iter().any(InFlight::is_awaited)
        {
            return Some(End::Retired(reason.clone()));
        }
        (self.closing && is_idle).then_some(End::Idle)
    }

    /// Sends pending activations while the process can take more. Returns whether there was one.
    async fn begin_pending(&mut self, timers: &mut Timers<'_>) -> bool {
        let mut begun = false;
        while self.has_capacity()
            && let Some(next) = self.pending.pop_front()
        {
            begun = true;
            if self.in_flight.is_empty() {
                timers.start_part();
            }
            if let Err(next) = self.begin(next).await {
                self.pending.push_front(next);
                break;
            }
        }
        begun
    }

    /// Waits for the next event. Cancelling it loses nothing.
    async fn next_event(
        &mut self,
        exited: Pin<&mut impl Future>,
        timers: &mut Timers<'_>,
        phase: &mut watch::Receiver<Phase>,
    ) -> Event {
        let is_retiring = self.retiring.is_some();
        if is_retiring {
            // Other workers take what comes to the queue.
            self.worker.pool.queue.mark_unavailable(self.worker.slot);
        }
        let awaited = self.in_flight.iter().filter(|activation| activation.is_awaited() || !is_retiring);
        let check_at = awaited.filter_map(InFlight::until).chain(self.reads_resume_at).min();
        if let Some(check_at) = check_at
            && timers.alarm.deadline() != check_at
        {
            timers.alarm.as_mut().reset(check_at);
        }
        let reads = self.may_read();
        let takes = !self.closing && self.pending.is_empty() && self.has_capacity();
        let capacity = if self.in_flight.len() + 1 < self.concurrency() { Capacity::Several } else { Capacity::One };
        let low_bytes = self.low_bytes();
        let is_busy = !self.in_flight.is_empty();
        tokio::select! {
            step = self.multiplex.step(reads) => match step {
                Step::Moved => Event::Moved,
                Step::Gone => Event::ProcessGone,
            },
            next = self.worker.pool.queue.next(self.worker.slot, capacity), if takes => Event::Queue(next),
            _ = exited => Event::ProcessGone,
            () = std::future::poll_fn(|context| poll_callers(&mut self.in_flight, low_bytes, context)) => {
                Event::CallersChanged
            }
            () = timers.alarm.as_mut(), if check_at.is_some() => Event::TimeReached,
            () = timers.part_end.as_mut(), if is_busy => {
                timers.start_part();
                Event::PartPassed
            }
            _ = phase.changed() => Event::PhaseChanged,
            never = self.logs.pump() => match never {},
        }
    }

    /// Handles an event. Returns the end of the conversation if the event is its end.
    async fn handle(&mut self, event: Event) -> Option<End> {
        match event {
            Event::Frame(frame, line) => {
                self.handle_frame(frame, &line).await;
                // A process may write faster than the proxy can read. Other tasks get their share.
                tokio::task::consume_budget().await;
                if std::mem::take(&mut self.yields_to_callers) {
                    tokio::task::yield_now().await;
                    self.check_callers();
                }
            }
            Event::FrameTooLong => return Some(End::FrameTooLong),
            Event::ProcessGone => return Some(End::ProcessGone),
            Event::Queue(next) => self.handle_next(next).await,
            Event::CallersChanged => self.check_callers(),
            Event::TimeReached => self.check_time_limits().await,
            Event::PartPassed => {
                for activation in &mut self.in_flight {
                    activation.countdown.count(activation.countdown.part());
                }
                self.check_time_limits().await;
            }
            // The loop looks at both.
            Event::Moved | Event::PhaseChanged => {}
        }
        None
    }

    async fn handle_next(&mut self, next: Next) {
        match next {
            Next::Message(Message::Run(job)) => {
                if let Some(job) = job.claim(&self.worker.shared.config.memory_budget) {
                    self.pending.push_back(Pending::new(job));
                }
            }
            Next::Message(Message::Refuse(reply)) => {
                self.logs.open(None).end().await;
                self.label_output();
                let _ = reply.send(());
            }
            Next::Message(Message::Say(sentence)) => self.logs.say(&sentence),
            Next::Close => self.closing = true,
            // It has a process.
            Next::Start => {}
        }
    }

    fn concurrency(&self) -> usize {
        self.multiplex.promises().concurrency
    }

    fn has_capacity(&self) -> bool {
        self.in_flight.len() < self.concurrency() && self.retiring.is_none()
    }

    /// Whether to read, and to take frames that were read already. Not reading slows down an activation that
    /// is alone in its process.
    fn may_read(&self) -> bool {
        if self.concurrency() > 1 {
            return self.reads_resume_at.is_none();
        }
        !self.in_flight.iter().any(|activation| activation.is_slowed() && activation.is_streamed())
    }

    fn buffer_bytes(&self) -> usize {
        self.worker.shared.config.settings.stream_buffer.bytes()
    }

    /// With so few bytes buffered, a slowed activation goes on.
    fn low_bytes(&self) -> usize {
        if self.concurrency() == 1 { self.buffer_bytes() / 2 } else { self.buffer_bytes() / 8 }
    }

    /// Sends an activation.
    ///
    /// # Errors
    /// Returns the activation if the process must not get it.
    async fn begin(&mut self, pending: Pending) -> Result<(), Pending> {
        if self.concurrency() == 1 {
            // A frame without an id that was written before the activation is not its answer.
            self.multiplex.read_strays();
            while let Some(Taken::Frame(frame, line)) = self.multiplex.take() {
                self.handle_frame(frame, &line).await;
            }
            if let Some(partial) = self.multiplex.take_partial() {
                self.logs.say(&stray(&partial, "and is not ended"));
            }
            if self.multiplex.has_strayed() && self.worker.shared.config.settings.replaces_strayed() {
                // The sentence belongs to this activation, whose log the next process ends.
                self.logs.open_concurrent().withdraw(self.logs);
                self.logs.say(super::STRAYED);
                self.retiring = Some("it wrote an extra line".into());
                return Err(pending);
            }
        }
        let Pending { job, begun, fresh } = pending;
        let Job { activation, deadline, reply, permit, reservation, claim: _ } = job;
        let run_timeout = self.worker.shared.config.settings.run_timeout.0;
        let (limit, ends) = time_limit(begun, deadline, run_timeout);
        let log = self.logs.open_concurrent();
        let label = self.logs.label(&activation);
        // Before the process gets the activation: what it prints for it must not carry the label of another one.
        let is_only = self.in_flight.is_empty();
        self.logs.set_exclusive(is_only);
        self.logs.set_label(label.as_ref().filter(|_| is_only));
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
            caller: Some(Caller { reply, permit, gathered: Gathered::default() }),
            log: Some(log),
            label,
            backpressure: Backpressure::Free,
            fresh,
        });
        Ok(())
    }

    /// Output belongs to an activation only if no other is in flight.
    fn label_output(&mut self) {
        self.logs.set_exclusive(self.in_flight.len() <= 1);
        let label = match &self.in_flight[..] {
            [only] => only.label.as_ref(),
            _ => None,
        };
        self.logs.set_label(label);
    }

    /// Cancels activations whose callers have left, and resumes those whose callers have caught up.
    fn check_callers(&mut self) {
        let (low_bytes, promises) = (self.low_bytes(), self.multiplex.promises());
        let until = Instant::now() + self.worker.shared.config.settings.stop_grace.0;
        for activation in &mut self.in_flight {
            let Some(Caller { reply, .. }) = &activation.caller else { continue };
            if reply.is_closed() {
                activation.caller = None;
                activation.backpressure = Backpressure::Free;
                if promises.cancel {
                    self.multiplex.cancel(activation.ticket.id);
                    activation.state = State::Cancelled { until };
                } else {
                    activation.state = State::Left;
                }
            } else if let Reply::Stream(sender) = reply
                && activation.is_slowed()
                && sender.buffered_bytes() <= low_bytes
            {
                let backpressure = std::mem::replace(&mut activation.backpressure, Backpressure::Free);
                if matches!(backpressure, Backpressure::Paused | Backpressure::PauseGraceUsed) {
                    self.multiplex.resume(activation.ticket.id);
                }
            }
        }
    }

    /// Fails activations whose time is over, and retires a process that ignores a request to cancel.
    async fn check_time_limits(&mut self) {
        let now = Instant::now();
        self.reads_resume_at = self.reads_resume_at.filter(|until| *until > now);
        let mut over = Vec::new();
        for activation in &self.in_flight {
            match activation.state {
                State::Open | State::Left => {
                    let is_counted_down = activation.limit == TimeLimit::RunTimeout && activation.countdown.is_over();
                    if is_counted_down || activation.ends.is_some_and(|ends| ends <= now) {
                        over.push((activation.ticket.id, activation.limit, activation.begun));
                    }
                }
                State::Cancelled { until } | State::Failed { until } => {
                    if until <= now && self.retiring.is_none() {
                        self.retiring = Some("it did not end an activation whose caller waits no more".into());
                    }
                }
            }
        }
        for (id, limit, begun) in over {
            self.fail(id, Error::Run(RunError::TimeOut { limit, after: begun.elapsed() })).await;
        }
    }
}
