//! The task that owns one process of an action, its conversation and its logs.
//!
//! One activation at a time, each to its end. A process that died is started again for the next
//! activation, so that one crash costs one activation. Where there are several workers, a process
//! that cannot be started costs none, as long as another one lives.

mod concurrent;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use crate::activation::{Activation, Answer};
use crate::error::{BadAnswer, Error, ExitReport, RunError, TimeLimit};
use crate::logs::{Logs, Sentinels};
use crate::memory_budget::MemoryBudget;
use crate::process::spawn::ResultChannel;
use crate::process::stop::KillOnDrop;
use crate::process::{Launch, Pipes, Process, Reaper, start, stop};
use crate::protocol::conversation::Conversation;
use crate::protocol::detect::{self, detect, exit_report};
use crate::protocol::pipe_loop::NoAnswer;
use crate::protocol::{Protocol, single_shot};
use crate::time;

use super::queue::{Capacity, Next};
use super::response_stream::{StreamItem, StreamSender};
use super::{Place, Shared, WorkerPool};
use crate::artifact::inspect::{self, TargetSystem};
use concurrent::Waiting;

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
    pub(super) place: Place,
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
    ResponseStream(StreamSender),
}

impl Reply {
    /// Whether nobody waits for it any more.
    pub(super) fn is_closed(&self) -> bool {
        match self {
            Self::Whole(reply) => reply.is_closed(),
            Self::ResponseStream(feed) => feed.is_closed(),
        }
    }

    /// Answers with a result, or with the reason why there is none.
    pub(super) fn send(self, outcome: Result<Answer, Error>) {
        match self {
            // Whoever waited may have left.
            Self::Whole(reply) => drop(reply.send(outcome)),
            Self::ResponseStream(feed) => {
                feed.push(outcome.map_or_else(StreamItem::Broken, StreamItem::Result));
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
    pub(super) fn claim(self, room: &MemoryBudget) -> Option<Self> {
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
        if let Err(error) = room.begin(&self.activation.held) {
            // Its answer would come on top of what nobody takes. It has not begun, and may come again.
            self.reply.send(Err(error));
            return None;
        }
        Some(self)
    }
}

#[cfg(test)]
impl Job {
    /// An activation, and the other end of its reply.
    pub(super) fn for_tests(arguments: &str) -> (Self, oneshot::Receiver<Result<Answer, Error>>) {
        let (reply, waiting) = oneshot::channel();
        let reply = Reply::Whole(reply);
        let activation = Activation::of_arguments(arguments.as_bytes()).expect("arguments");
        (Self { activation, deadline: None, reply, place: Place(Arc::new(1.into())), claimed: None }, waiting)
    }
}

/// How far an orderly end has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    /// It has not begun.
    Serving,
    /// What is in flight may finish.
    Draining,
    /// What is in flight is stopped.
    Cutting,
    /// Everything is killed.
    Killing,
}

/// How long a process whose result channel has ended may take to end itself.
const LAST_BREATH: Duration = Duration::from_millis(500);
/// The platform cuts a container off at the deadline; the answer that explains it must be there
/// before. At most this much earlier, and never more than a tenth of the time there is.
const DEADLINE_MARGIN: Duration = Duration::from_millis(100);

pub(super) struct Worker {
    pub(super) shared: Arc<Shared>,
    pub(super) pool: Arc<WorkerPool>,
    /// Its place at the queue.
    pub(super) post: usize,
    pub(super) running: Option<Running>,
}

/// A process that is ready.
pub(super) struct Running {
    pub(super) process: Process,
    pub(super) conversation: Conversation,
    /// Its result channel has ended: it is dead, or as good as.
    pub(super) silent: bool,
}

impl Worker {
    pub(super) fn new(shared: Arc<Shared>, pool: Arc<WorkerPool>, post: usize) -> Self {
        Self { shared, pool, post, running: None }
    }

    /// Starts the process and waits until it is ready. Version 0 has nothing to start.
    pub(super) async fn ready(mut self, logs: &mut Logs) -> Result<Self, Error> {
        if self.pool.protocol != Protocol::SingleShot {
            self.running = Some(self.start(logs).await?);
        }
        Ok(self)
    }

    /// Works until the queue is closed or the proxy ends.
    pub(super) async fn serve(mut self, mut logs: Logs) {
        let pool = self.pool.clone();
        let mut phase = self.shared.phase.subscribe();
        while *phase.borrow_and_update() == Phase::Serving {
            if self.has_multiplex() {
                self.run_concurrently(Vec::new(), &mut phase, &mut logs).await;
                if pool.queue.is_closed_and_empty() {
                    break;
                }
                continue;
            }
            let next = tokio::select! {
                biased;
                next = pool.queue.next(self.post, self.means()) => next,
                () = self.idle(&mut logs) => continue,
            };
            match next {
                Next::Message(Message::Run(job)) => self.run(job, &mut phase, &mut logs).await,
                Next::Message(Message::Refuse(reply)) => {
                    logs.begin();
                    logs.end().await;
                    let _ = reply.send(());
                }
                Next::Message(Message::Say(sentence)) => logs.say(&sentence),
                Next::Start => tokio::select! {
                    biased;
                    () = self.prepare(&mut logs) => {}
                    _ = phase.changed() => {}
                },
                Next::Close => break,
            }
        }
        self.end(&mut logs).await;
    }

    /// Stops the process.
    pub(super) async fn end(mut self, logs: &mut Logs) {
        if let Some(running) = self.running.take() {
            self.stop(running, logs).await;
        }
        logs.pass_on().await;
    }

    /// What it can do with an activation.
    pub(super) fn means(&self) -> Capacity {
        if self.pool.protocol == Protocol::SingleShot || self.running.as_ref().is_some_and(|running| !running.silent) {
            Capacity::Process
        } else if self.pool.backoff().may_start() {
            Capacity::Start
        } else {
            Capacity::Nothing
        }
    }

    fn has_multiplex(&self) -> bool {
        let speaks_frames = |running: &Running| {
            matches!(running.conversation, Conversation::Multiplex(_))
                && !running.silent
                && running.process.exit().is_none()
        };
        self.running.as_ref().is_some_and(speaks_frames)
    }

    fn pause_left(&self) -> Option<Duration> {
        self.pool.backoff().pause_left()
    }

    /// Starts a process for activations that wait, none of which is lost if that fails.
    async fn prepare(&mut self, logs: &mut Logs) {
        self.forget_the_dead(logs).await;
        if !self.pool.backoff().may_start() {
            return;
        }
        while let Some(left) = self.pause_left() {
            pause(left, logs).await;
        }
        if self.pool.queue.is_empty() {
            // Others were faster.
            return;
        }
        match self.start(logs).await {
            Ok(running) => self.running = Some(running),
            Err(error) => {
                tell(logs, &error);
                self.pool.backoff().died(error.to_string());
            }
        }
    }

    /// Between activations: the log is read, stray answers are dropped, a death is noticed.
    async fn idle(&mut self, logs: &mut Logs) {
        match &mut self.running {
            Some(running) if !running.silent => {
                running.conversation.idle(logs).await;
                running.silent = true;
            }
            _ => logs.pump().await,
        }
    }

    /// One activation from its first log line to its sentinels.
    async fn run(&mut self, job: Job, phase: &mut watch::Receiver<Phase>, logs: &mut Logs) {
        let Some(job) = job.claim(&self.shared.config.room) else { return };
        if self.pool.speaks_frames.load(Ordering::Relaxed) {
            self.run_concurrently(vec![Waiting::new(job)], phase, logs).await;
        } else {
            self.run_alone(job, phase, logs).await;
        }
    }

    /// The same where one activation is in flight at a time.
    pub(super) async fn run_alone(&mut self, job: Job, phase: &mut watch::Receiver<Phase>, logs: &mut Logs) {
        let Job { activation, deadline, reply, place, claimed: _ } = job;
        logs.begin();
        if let Some(label) = logs.label(&activation) {
            logs.attribute(Some(&label));
        }
        let outcome = self.answer(activation, deadline, phase, logs).await;
        self.close_log(logs, outcome.as_ref().err()).await;
        drop(place);
        reply.send(outcome);
    }

    /// Ends the log of an activation.
    pub(super) async fn close_log(&self, logs: &mut Logs, error: Option<&Error>) {
        // On a terminal whoever calls is the author, and prints the error as well.
        if let Some(error) = error
            && self.shared.config.sentinels == Sentinels::Write
        {
            // What the action said about it comes first.
            logs.drain();
            tell(logs, error);
        }
        logs.end().await;
    }

    async fn answer(
        &mut self,
        mut activation: Activation,
        deadline: Option<Instant>,
        phase: &mut watch::Receiver<Phase>,
        logs: &mut Logs,
    ) -> Result<Answer, Error> {
        let begun = Instant::now();
        let run_timeout = self.shared.config.settings.run_timeout.0;
        let (limit, ends) = time_limit(begun, deadline, run_timeout);
        let outcome = {
            let attempt = self.attempt(&mut activation, ends, logs);
            tokio::select! {
                biased;
                outcome = attempt => Some(outcome),
                () = time_is_up(limit, ends, run_timeout) => None,
                _ = phase.wait_for(|phase| *phase >= Phase::Cutting) => Some(Err(Error::Run(RunError::CutOff { after: begun.elapsed() }))),
            }
        };
        let outcome = outcome.unwrap_or_else(|| Err(Error::Run(RunError::TimeOut { limit, after: begun.elapsed() })));
        if let Err(error @ Error::Run(RunError::TimeOut { .. } | RunError::CutOff { .. })) = &outcome {
            // The conversation was left in the middle: nobody could tell whose the next line is.
            if let Some(running) = self.running.take() {
                stop::kill_and_reap(&running.process).await;
                self.pool.backoff().stopped(error.to_string());
            }
            logs.detach();
        }
        outcome
    }

    /// One activation. Its limit of time is looked after by whoever asks; here it only decides
    /// whether a pause can be waited for.
    async fn attempt(&mut self, activation: &mut Activation, ends: Instant, logs: &mut Logs) -> Result<Answer, Error> {
        if self.pool.protocol == Protocol::SingleShot {
            return self.attempt_single_shot(activation, logs).await;
        }
        let mut fresh = false;
        loop {
            self.forget_the_dead(logs).await;
            if self.running.is_none() {
                fresh = true;
                self.running = Some(self.restart(ends, logs).await?);
            }
            let limit_bytes = self.shared.config.settings.max_result.0;
            let running = self.running.as_mut().expect("it was started above");
            let answer = running.conversation.interact(activation, limit_bytes, &running.process, logs).await;
            match answer {
                Ok(answer) => {
                    self.pool.backoff().answered();
                    return Ok(answer);
                }
                Err(NoAnswer::TooLong) => {
                    let running = self.running.take().expect("it answered");
                    self.bury(running, logs).await;
                    let error = Error::Run(RunError::AnswerTooLong { limit_bytes });
                    self.pool.backoff().stopped(error.to_string());
                    return Err(error);
                }
                Err(NoAnswer::Bad(problem)) => {
                    self.pool.backoff().answered();
                    return Err(Error::Run(RunError::BadAnswer { problem, exit: None }));
                }
                Err(NoAnswer::Strayed) => {
                    logs.say("pipeloop: the action is started anew, since it wrote a line too many (PIPELOOP_STRAY)");
                    let running = self.running.take().expect("it has strayed");
                    self.bury(running, logs).await;
                }
                Err(NoAnswer::Gone { partial, untouched }) => {
                    let running = self.running.take().expect("it was spoken with");
                    let channel = running.conversation.channel();
                    // A process that died before this activation could reach it takes nothing with
                    // it. One that was started for it and did so is told.
                    if untouched && !fresh && wait_for_end(&running.process).await {
                        self.bury_the_dead(running, logs).await;
                        continue;
                    }
                    let error = gone(&running.process, partial, channel, logs).await;
                    self.pool.backoff().died(error.detail().unwrap_or_else(|| error.to_string()));
                    return Err(error);
                }
            }
        }
    }

    /// Starts a process in place of one that has ended, as soon as that may be.
    pub(super) async fn restart(&self, ends: Instant, logs: &mut Logs) -> Result<Running, Error> {
        loop {
            let left = self.pool.backoff().pause_for(ends)?;
            let Some(left) = left else { break };
            pause(left, logs).await;
        }
        self.start(logs).await.inspect_err(|error| self.pool.backoff().died(error.to_string()))
    }

    async fn attempt_single_shot(&mut self, activation: &mut Activation, logs: &mut Logs) -> Result<Answer, Error> {
        let launch = single_shot::launch(&self.pool.launch, activation);
        // However this ends, nothing of the process is left behind.
        let (guard, pipes) = spawn(&launch, ResultChannel::Stdout, &self.shared.reaper, logs)?;
        let process = guard.process();
        let limit_bytes = self.shared.config.settings.max_result.0;
        let answer = single_shot::interact(process, pipes, activation, limit_bytes, logs).await;
        let result = match answer {
            Ok(answer) => Ok(answer),
            Err(single_shot::NoAnswer::TooLong) => Err(Error::Run(RunError::AnswerTooLong { limit_bytes })),
            Err(single_shot::NoAnswer::Bad(problem)) => Err(unusable(process, problem, logs).await),
        };
        logs.detach();
        result
    }

    /// Starts the process and waits until it is ready.
    async fn start(&self, logs: &mut Logs) -> Result<Running, Error> {
        let config = &self.shared.config;
        let rules = detect::Rules {
            protocol: self.pool.protocol,
            wait_for_ack: config.wait_for_ack,
            init_timeout: config.settings.init_timeout.0,
            start_grace: config.settings.start_grace.0,
        };
        let (guard, pipes) = spawn(&self.pool.launch, ResultChannel::Descriptor3, &self.shared.reaper, logs)?;
        match detect(guard.process(), pipes, &rules, logs).await {
            Ok(detect::Ready { mut conversation, evidence }) => {
                match &mut conversation {
                    Conversation::PipeLoop(pipe_loop) if config.settings.replaces_strayed() => {
                        pipe_loop.report_strays();
                    }
                    Conversation::PipeLoop(_) => {}
                    Conversation::Multiplex(multiplex) => {
                        multiplex.bound(config.settings.max_result.0);
                        self.pool.learn(multiplex.promises().concurrency);
                    }
                }
                let process = guard.release();
                tracing::info!(
                    pid = process.pid.as_raw_nonzero().get(),
                    protocol = conversation.protocol().name(),
                    ?evidence,
                    "ready"
                );
                Ok(Running { process, conversation, silent: false })
            }
            Err(error) => {
                stop::kill_and_reap(guard.process()).await;
                logs.detach();
                Err(error)
            }
        }
    }

    /// Lets go of a process that is known to have ended.
    pub(super) async fn forget_the_dead(&mut self, logs: &mut Logs) {
        let dead = |running: &mut Running| running.silent || running.process.exit().is_some();
        if let Some(running) = self.running.take_if(dead) {
            self.bury_the_dead(running, logs).await;
        }
    }

    /// A process that ended while no activation was with it.
    async fn bury_the_dead(&self, running: Running, logs: &mut Logs) {
        let channel = running.conversation.channel();
        let process = self.bury(running, logs).await;
        let how = without_answer(process.exit().map(|_| exit_report(&process, logs)), b"", channel);
        self.pool.backoff().died(how.to_string());
    }

    /// Kills what is left of a process and its group, and takes its last words.
    async fn bury(&self, running: Running, logs: &mut Logs) -> Process {
        let Running { process, conversation, .. } = running;
        stop::kill_and_reap(&process).await;
        drop(conversation);
        logs.detach();
        process
    }

    /// Stops a process in order.
    async fn stop(&self, running: Running, logs: &mut Logs) {
        let Running { process, mut conversation, .. } = running;
        let grace = self.shared.config.settings.stop_grace.0;
        let mut phase = self.shared.phase.subscribe();
        if let Conversation::Multiplex(multiplex) = &mut conversation {
            // Its frame is told half of the grace, as its input's end is.
            tokio::select! {
                () = multiplex.send_stop(grace / 2) => {}
                _ = phase.wait_for(|phase| *phase == Phase::Killing) => {}
                () = logs.pump() => unreachable!("a pump never ends"),
            }
        }
        // Its input ends; its result channel stays open, so that a last flush is no error.
        let _results = conversation.into_results();
        tokio::select! {
            () = stop::stop(&process, grace) => {}
            () = async {
                let _ = phase.wait_for(|phase| *phase == Phase::Killing).await;
            } => stop::kill_and_reap(&process).await,
            () = logs.pump() => unreachable!("a pump never ends"),
        }
        logs.detach();
    }
}

/// Starts a process that is killed unless it is taken over.
pub(crate) fn spawn(
    launch: &Launch,
    channel: ResultChannel,
    reaper: &Reaper,
    logs: &mut Logs,
) -> Result<(KillOnDrop, Pipes), Error> {
    logs.stderr.forget_tail();
    let (process, pipes) = start(launch, channel, reaper)
        .map_err(|reason| inspect::cannot_start(&launch.program, &TargetSystem::of(launch), reason))?;
    Ok((KillOnDrop::new(process), pipes))
}

/// Lets a pause pass, with an eye on the log.
async fn pause(left: Duration, logs: &mut Logs) {
    tokio::select! {
        () = tokio::time::sleep(left) => {}
        () = logs.pump() => unreachable!("a pump never ends"),
    }
}

/// A process left in the middle of an activation: waits for its end, kills what is left of it and
/// says why.
pub(crate) async fn gone(process: &Process, partial: Vec<u8>, channel: ResultChannel, logs: &mut Logs) -> Error {
    let ended = wait_for_end(process).await;
    stop::kill_and_reap(process).await;
    logs.detach();
    without_answer(ended.then(|| exit_report(process, logs)), &partial, channel)
}

/// Why a process gives no answer: how it ended, and in the middle of which line; or it lives on, and has
/// closed its channel.
pub(super) fn without_answer(exit: Option<ExitReport>, partial: &[u8], channel: ResultChannel) -> Error {
    let Some(exit) = exit else { return Error::Run(RunError::ChannelClosed { channel }) };
    if partial.is_empty() {
        return Error::Run(RunError::ExitedBeforeAnswer { exit });
    }
    let line = String::from_utf8_lossy(partial).into_owned();
    Error::Run(RunError::BadAnswer { problem: BadAnswer::Unterminated { line }, exit: Some(exit) })
}

/// An answer of a process of its own that is unusable: how it ended is part of why.
pub(crate) async fn unusable(process: &Process, problem: BadAnswer, logs: &mut Logs) -> Error {
    wait_for_end(process).await;
    logs.stderr.drain();
    Error::Run(RunError::BadAnswer { problem, exit: Some(exit_report(process, logs)) })
}

/// Says an error and its hint in the log, for the action's author.
pub(super) fn tell(logs: &mut Logs, error: &Error) {
    let detail = error.detail().unwrap_or_else(|| error.to_string());
    logs.say(&format!("error[{}]: {detail}", error.code()));
    if let Some(hint) = error.hint() {
        logs.say(&format!("hint: {hint}"));
    }
}

/// Which limit ends an activation, and when.
pub(super) fn time_limit(now: Instant, deadline: Option<Instant>, run_timeout: Duration) -> (TimeLimit, Instant) {
    let by_timeout = now + run_timeout;
    match deadline {
        Some(deadline) if deadline < by_timeout => {
            let margin = DEADLINE_MARGIN.min(deadline.saturating_duration_since(now) / 10);
            (TimeLimit::Deadline, deadline - margin)
        }
        _ => (TimeLimit::RunTimeout, by_timeout),
    }
}

/// Waits for the limit that [`time_limit`] found.
pub(super) async fn time_is_up(limit: TimeLimit, ends: Instant, run_timeout: Duration) {
    match limit {
        // A point in time, whatever we did meanwhile.
        TimeLimit::Deadline => tokio::time::sleep_until(ends).await,
        TimeLimit::RunTimeout => time::sleep(run_timeout).await,
    }
}

/// Gives a process that seems to be gone the time to be so. Whether it is.
pub(crate) async fn wait_for_end(process: &Process) -> bool {
    let _ = time::timeout(LAST_BREATH, process.exited()).await;
    process.exit().is_some()
}
