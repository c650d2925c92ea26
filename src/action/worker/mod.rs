//! The task that owns one process of an action, its conversation and its logs.
//!
//! Here is what every worker has in common: it waits at the queue, and starts, stops and reaps its process.
//! `one_at_a_time.rs` runs one activation after the other; `concurrent` holds several in flight, in version
//! 2. Knows no HTTP.
//!
//! # Theory of operation
//! A worker runs each activation to its end. If the process dies, the worker starts it again for the next
//! activation, so one crash costs one activation. With several workers, a process that cannot be started
//! costs no activation as long as another one lives.

mod concurrent;
mod one_at_a_time;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::artifact::Artifact;
use crate::artifact::inspect;
use crate::error::{BadAnswer, Error, ExitReport, RunError, TimeLimit};
use crate::logs::{Logs, Sentinels};
use crate::process::spawn::ResultChannel;
use crate::process::stop::KillOnDrop;
use crate::process::{Launch, Pipes, Process, Reaper, start, stop};
use crate::protocol::Protocol;
use crate::protocol::conversation::Conversation;
use crate::protocol::detect::{self, detect, exit_report};
use crate::protocol::pipe_loop::IdleEnd;
use crate::protocol::silence::TakesLong;
use crate::time;

use super::backoff::CrashBackoff;
use super::init::unannounced;
use super::job::{Job, Message};
use super::queue::{Capacity, Next, Queue};
use super::{Phase, Shared};
use concurrent::Pending;

/// How long a process may take to exit after its result channel has ended.
const EXIT_GRACE: Duration = Duration::from_millis(500);
/// How long before the deadline an activation ends, at most. The platform cuts the container off at the
/// deadline, and the error that explains it must arrive before. Never more than a tenth of the time left.
const DEADLINE_MARGIN: Duration = Duration::from_millis(100);

/// What the workers of an action have in common.
#[derive(Debug)]
pub(super) struct WorkerPool {
    pub(super) queue: Queue,
    pub(super) artifact: Artifact,
    pub(super) launch: Launch,
    pub(super) protocol: Protocol,
    pub(super) backoff: Mutex<CrashBackoff>,
    /// Whether the last process that shook hands speaks version 2.
    pub(super) speaks_frames: AtomicBool,
    /// Whether a process has announced its protocol after it counted as ready.
    pub(super) announces: AtomicBool,
}

/// The log's sentence before a process that strayed is replaced.
const STRAYED: &str = "pipeloop: the proxy restarts the action because it wrote an extra line (PIPELOOP_STRAY)";

/// The log's sentence before a process that announced its protocol too late is replaced.
const ANNOUNCED_LATE: &str = "pipeloop: the proxy restarts the action because its handshake came after its first activation had been sent; from now on it waits for the handshake";

/// One worker of an action.
pub(super) struct Worker {
    pub(super) shared: Arc<Shared>,
    pub(super) pool: Arc<WorkerPool>,
    /// Its slot at the queue.
    pub(super) slot: usize,
    pub(super) running: Option<Running>,
    /// Whether the activation in flight takes long.
    pub(super) takes_long: TakesLong,
}

/// A process that is ready.
pub(super) struct Running {
    pub(super) process: Process,
    pub(super) conversation: Conversation,
    /// Its result channel has ended, so it is of no more use.
    pub(super) channel_ended: bool,
}

impl WorkerPool {
    fn backoff(&self) -> MutexGuard<'_, CrashBackoff> {
        self.backoff.lock().expect("no holder of the backoff panics")
    }

    /// Records that a process speaks version 2, with this concurrency.
    fn record_handshake(&self, concurrency: usize) {
        self.speaks_frames.store(true, Ordering::Relaxed);
        self.queue.set_concurrency(concurrency);
    }
}

impl Worker {
    pub(super) fn new(shared: Arc<Shared>, pool: Arc<WorkerPool>, slot: usize) -> Self {
        Self { shared, pool, slot, running: None, takes_long: TakesLong::default() }
    }

    /// Starts the process and waits until it is ready. Version 0 has nothing to start.
    pub(super) async fn ready(mut self, logs: &mut Logs) -> Result<Self, Error> {
        if self.pool.protocol != Protocol::SingleShot {
            self.running = Some(self.start(logs).await?);
        }
        Ok(self)
    }

    /// Runs activations until the queue is closed or the action stops.
    pub(super) async fn serve(mut self, mut logs: Logs) {
        let pool = self.pool.clone();
        let mut phase = self.shared.phase.subscribe();
        while *phase.borrow_and_update() < Phase::Stopping {
            if self.has_multiplex() {
                self.run_concurrently(Vec::new(), &mut phase, &mut logs).await;
                if pool.queue.is_closed_and_empty() {
                    break;
                }
                continue;
            }
            let next = tokio::select! {
                biased;
                next = pool.queue.next(self.slot, self.capacity()) => next,
                () = self.idle(&mut logs) => continue,
            };
            match next {
                Next::Message(Message::Run(job)) => self.run(job, &mut phase, &mut logs).await,
                Next::Message(Message::Refuse(reply)) => {
                    logs.open(None).end().await;
                    let _ = reply.send(());
                }
                Next::Message(Message::Say(sentence)) => logs.say(&sentence),
                Next::Start => tokio::select! {
                    biased;
                    () = self.start_for_waiting(&mut logs) => {}
                    _ = phase.wait_for(|phase| *phase >= Phase::Stopping) => {}
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
        logs.flush_rest().await;
    }

    /// What it can do with an activation.
    pub(super) fn capacity(&self) -> Capacity {
        if self.pool.protocol == Protocol::SingleShot
            || self.running.as_ref().is_some_and(|running| !running.channel_ended)
        {
            Capacity::One
        } else if self.pool.backoff().may_start() {
            Capacity::Start
        } else {
            Capacity::Nothing
        }
    }

    fn has_multiplex(&self) -> bool {
        let speaks_frames = |running: &Running| {
            matches!(running.conversation, Conversation::Multiplex(_))
                && !running.channel_ended
                && running.process.exit().is_none()
        };
        self.running.as_ref().is_some_and(speaks_frames)
    }

    fn pause_left(&self) -> Option<Duration> {
        self.pool.backoff().pause_left()
    }

    /// Starts a process for waiting activations. They stay in the queue, so a failure loses none of them.
    async fn start_for_waiting(&mut self, logs: &mut Logs) {
        self.reap_exited(logs).await;
        if !self.pool.backoff().may_start() {
            return;
        }
        while let Some(left) = self.pause_left() {
            pause(left, logs).await;
        }
        if self.pool.queue.is_empty() {
            // Other workers took them in the meantime.
            return;
        }
        match self.start(logs).await {
            Ok(running) => self.running = Some(running),
            Err(error) => {
                log_error(logs, &error);
                self.pool.backoff().record_crash(error.to_string());
            }
        }
    }

    /// Between activations: reads the log, drops stray answers, and returns when the process is gone.
    async fn idle(&mut self, logs: &mut Logs) {
        match &mut self.running {
            Some(running) if !running.channel_ended => match running.conversation.idle(logs).await {
                IdleEnd::ChannelEnded => running.channel_ended = true,
                IdleEnd::Announced => {
                    let running = self.running.take().expect("it was idle");
                    if let Err(error) = self.switch(running, logs).await {
                        log_error(logs, &error);
                    }
                }
            },
            _ => match logs.pump().await {},
        }
    }

    /// Runs one job, and what comes with it in version 2.
    async fn run(&mut self, job: Job, phase: &mut watch::Receiver<Phase>, logs: &mut Logs) {
        let Some(job) = job.claim(&self.shared.config.memory_budget) else { return };
        if self.pool.speaks_frames.load(Ordering::Relaxed) {
            self.run_concurrently(vec![Pending::new(job)], phase, logs).await;
        } else {
            self.run_one(job, phase, logs).await;
        }
    }

    /// Writes into the log of an activation why it failed, if it did.
    pub(super) fn log_failure(&self, error: Option<&Error>, logs: &mut Logs) {
        // On a terminal the caller is the action's author, and prints the error itself.
        if let Some(error) = error
            && self.shared.config.sentinels == Sentinels::Write
        {
            // What the action wrote about it comes first.
            logs.drain();
            log_error(logs, error);
        }
    }

    /// Starts a process in place of one that has ended, after the pause of the backoff.
    ///
    /// # Errors
    /// As [`CrashBackoff::pause_for`], and every reason why a process does not start.
    pub(super) async fn restart(&self, ends: Instant, logs: &mut Logs) -> Result<Running, Error> {
        loop {
            let left = self.pool.backoff().pause_for(ends)?;
            let Some(left) = left else { break };
            pause(left, logs).await;
        }
        self.start(logs).await.inspect_err(|error| self.pool.backoff().record_crash(error.to_string()))
    }

    /// Begins the conversation that a process has announced since it counted as ready.
    ///
    /// # Errors
    /// As for a handshake during the start. The process is stopped then.
    async fn switch(&mut self, running: Running, logs: &mut Logs) -> Result<(), Error> {
        self.pool.announces.store(true, Ordering::Relaxed);
        let Running { process, conversation, channel_ended } = running;
        match conversation.switch(logs) {
            Ok(mut conversation) => {
                self.prepare(&mut conversation);
                tracing::info!(protocol = conversation.protocol().name(), "announced its protocol");
                self.running = Some(Running { process, conversation, channel_ended });
                Ok(())
            }
            Err(error) => {
                stop::kill_and_reap(&process).await;
                logs.detach();
                self.pool.backoff().record_crash(error.to_string());
                Err(error)
            }
        }
    }

    /// Applies the settings to a conversation that begins.
    fn prepare(&self, conversation: &mut Conversation) {
        let settings = &self.shared.config.settings;
        match conversation {
            Conversation::PipeLoop(pipe_loop) => {
                pipe_loop.give_up_silent(self.takes_long.clone());
                if settings.replaces_strayed() {
                    pipe_loop.report_strays();
                }
            }
            Conversation::Multiplex(multiplex) => {
                multiplex.bound(settings.max_result.0);
                self.pool.record_handshake(multiplex.promises().concurrency);
            }
        }
    }

    /// Starts the process and waits until it is ready.
    async fn start(&self, logs: &mut Logs) -> Result<Running, Error> {
        let config = &self.shared.config;
        let rules = detect::Rules {
            protocol: self.pool.protocol,
            unannounced: unannounced(self.pool.artifact.command.as_deref()),
            wait_for_ack: config.wait_for_ack,
            init_timeout: config.settings.init_timeout.0,
            start_grace: config.settings.start_grace.0,
            announces: self.pool.announces.load(Ordering::Relaxed),
        };
        let (guard, pipes) = spawn(&self.pool.launch, ResultChannel::Descriptor3, &self.shared.reaper, logs)?;
        match detect(guard.process(), pipes, &rules, logs).await {
            Ok(detect::Ready { mut conversation, evidence }) => {
                self.prepare(&mut conversation);
                let process = guard.release();
                tracing::info!(
                    pid = process.pid.as_raw_nonzero().get(),
                    protocol = conversation.protocol().name(),
                    ?evidence,
                    "ready"
                );
                Ok(Running { process, conversation, channel_ended: false })
            }
            Err(error) => {
                stop::kill_and_reap(guard.process()).await;
                logs.detach();
                Err(error)
            }
        }
    }

    /// Reaps the process if it has exited, or its result channel has ended.
    pub(super) async fn reap_exited(&mut self, logs: &mut Logs) {
        let has_ended = |running: &mut Running| running.channel_ended || running.process.exit().is_some();
        if let Some(running) = self.running.take_if(has_ended) {
            self.handle_exit(running, logs).await;
        }
    }

    /// Handles the end of a process that had no activation.
    async fn handle_exit(&self, running: Running, logs: &mut Logs) {
        let channel = running.conversation.channel();
        let process = self.kill_and_reap(running, logs).await;
        let crash = no_answer_error(process.exit().map(|_| exit_report(&process, logs)), b"", channel);
        self.pool.backoff().record_crash(crash.without_output());
    }

    /// Kills what is left of a process and its group, and reads the rest of its output.
    async fn kill_and_reap(&self, running: Running, logs: &mut Logs) -> Process {
        let Running { process, conversation, .. } = running;
        stop::kill_and_reap(&process).await;
        drop(conversation);
        logs.detach();
        process
    }

    /// Stops a process gracefully.
    async fn stop(&self, running: Running, logs: &mut Logs) {
        let Running { process, mut conversation, .. } = running;
        let grace = self.shared.config.settings.stop_grace.0;
        let mut phase = self.shared.phase.subscribe();
        if let Conversation::Multiplex(multiplex) = &mut conversation {
            // The stop frame gets half of the grace; the end of its input gets the other half.
            tokio::select! {
                () = multiplex.send_stop(grace / 2) => {}
                _ = phase.wait_for(|phase| *phase == Phase::Killing) => {}
                never = logs.pump() => match never {},
            }
        }
        // This ends its input. Its result channel stays open, so that a last flush does not fail.
        let _results = conversation.into_results();
        tokio::select! {
            () = stop::stop(&process, grace) => {}
            () = async {
                let _ = phase.wait_for(|phase| *phase == Phase::Killing).await;
            } => stop::kill_and_reap(&process).await,
            never = logs.pump() => match never {},
        }
        logs.detach();
    }
}

/// Starts a process. The guard kills it unless it is released.
pub(crate) fn spawn(
    launch: &Launch,
    channel: ResultChannel,
    reaper: &Reaper,
    logs: &mut Logs,
) -> Result<(KillOnDrop, Pipes), Error> {
    logs.stderr.forget_tail();
    let (process, mut pipes) =
        start(launch, channel, reaper).map_err(|reason| inspect::cannot_start(launch, reason))?;
    if let Some(reason) = pipes.no_terminal.take() {
        logs.say(&format!(
            "pipeloop: the action's standard output is a pipe, since no terminal can be had: {reason}; a program that does not flush its answers does not work so"
        ));
    }
    Ok((KillOnDrop::new(process), pipes))
}

/// Waits, and moves the log meanwhile.
async fn pause(left: Duration, logs: &mut Logs) {
    tokio::select! {
        () = tokio::time::sleep(left) => {}
        never = logs.pump() => match never {},
    }
}

/// Waits for the exit of a process that ended in the middle of an activation, kills what is left of it, and
/// returns why there is no answer.
pub(crate) async fn kill_and_explain(
    process: &Process,
    partial: Vec<u8>,
    channel: ResultChannel,
    logs: &mut Logs,
) -> Error {
    let exited = wait_for_exit(process).await;
    stop::kill_and_reap(process).await;
    logs.detach();
    no_answer_error(exited.then(|| exit_report(process, logs)), &partial, channel)
}

/// Why a process gives no answer: how it ended and in the middle of which line, or that it lives on and
/// has closed its result channel.
pub(super) fn no_answer_error(exit: Option<ExitReport>, partial: &[u8], channel: ResultChannel) -> Error {
    let Some(exit) = exit else { return Error::Run(RunError::ChannelClosed { channel }) };
    if partial.is_empty() {
        return Error::Run(RunError::ExitedBeforeAnswer { exit });
    }
    let line = String::from_utf8_lossy(partial).into_owned();
    Error::Run(RunError::BadAnswer { problem: BadAnswer::Unterminated { line }, exit: Some(exit) })
}

/// The error for a bad answer of a process that ran one activation. It says how the process ended.
pub(crate) async fn unusable_answer(process: &Process, problem: BadAnswer, logs: &mut Logs) -> Error {
    wait_for_exit(process).await;
    logs.stderr.drain();
    Error::Run(RunError::BadAnswer { problem, exit: Some(exit_report(process, logs)) })
}

/// Writes an error and its hint to the log, for the action's author.
pub(super) fn log_error(logs: &mut Logs, error: &Error) {
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
        // A point in time, which comes whether or not the proxy was running.
        TimeLimit::Deadline => tokio::time::sleep_until(ends).await,
        TimeLimit::RunTimeout => time::sleep(run_timeout).await,
    }
}

/// Gives a process that seems to end the time to exit. Returns whether it did.
pub(crate) async fn wait_for_exit(process: &Process) -> bool {
    let _ = time::timeout(EXIT_GRACE, process.exited()).await;
    process.exit().is_some()
}
