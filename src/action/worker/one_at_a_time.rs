//! A worker with one activation in flight at a time: versions 0 and 1, the actionloop dialect, and the first
//! activation of a process whose version is not known yet.
//!
//! An answer is its own activation's because a conversation that was left in the middle is never used again.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::activation::{Activation, Answer};
use crate::artifact::inspect::flush_hint;
use crate::error::{Error, RunError};
use crate::logs::Logs;
use crate::process::spawn::ResultChannel;
use crate::process::{orphans, stop};
use crate::protocol::pipe_loop::NoAnswer;
use crate::protocol::{Protocol, single_shot};

use super::super::Phase;
use super::super::job::Job;
use super::{Worker, kill_and_explain, spawn, time_is_up, time_limit, unusable_answer, wait_for_exit};

/// An activation that lasts longer than this takes long: whether an answer can come is looked at from then on.
const TAKES_LONG: Duration = Duration::from_millis(100);

impl Worker {
    /// Runs one activation, from its first log line to its sentinels, and then answers its caller.
    pub(super) async fn run_one(&mut self, job: Job, phase: &mut watch::Receiver<Phase>, logs: &mut Logs) {
        let Job { activation, deadline, reply, permit, reservation, claim: _ } = job;
        let label = logs.label(&activation);
        let mut log = logs.open(label.as_ref());
        let outcome = self.run_within_limit(activation, deadline, phase, &mut log).await;
        drop(reservation);
        self.log_failure(outcome.as_ref().err(), &mut log);
        log.end().await;
        drop(permit);
        reply.send(outcome);
    }

    /// Runs an activation within its time limit, and until the action stops.
    async fn run_within_limit(
        &mut self,
        mut activation: Activation,
        deadline: Option<Instant>,
        phase: &mut watch::Receiver<Phase>,
        logs: &mut Logs,
    ) -> Result<Answer, Error> {
        let begun = Instant::now();
        let run_timeout = self.shared.config.settings.run_timeout.0;
        let (limit, ends) = time_limit(begun, deadline, run_timeout);
        let takes_long = self.takes_long.clone();
        takes_long.set(false);
        // Most activations are over before the first of these limits, so that they need no other timer.
        let at_first = TAKES_LONG.min(ends.saturating_duration_since(begun));
        let time_is_up = async {
            tokio::time::sleep(at_first).await;
            takes_long.set(true);
            // The attempt is polled once more, and sees it.
            tokio::task::yield_now().await;
            time_is_up(limit, ends, run_timeout.saturating_sub(at_first)).await;
        };
        let cut_short = tokio::select! {
            biased;
            outcome = self.attempt(&mut activation, ends, logs) => return outcome,
            () = time_is_up => RunError::TimeOut { limit, after: begun.elapsed() },
            _ = phase.wait_for(|phase| *phase >= Phase::Stopping) => RunError::CutOff { after: begun.elapsed() },
        };
        let error = Error::Run(cut_short);
        // The conversation was left in the middle, so the next line could be this activation's.
        if let Some(running) = self.running.take() {
            stop::kill_and_reap(&running.process).await;
            self.pool.backoff().record_stop(error.to_string());
        }
        logs.detach();
        Err(error)
    }

    /// Runs an activation without a time limit. `ends` only decides whether there is time for a pause of the
    /// backoff.
    async fn attempt(&mut self, activation: &mut Activation, ends: Instant, logs: &mut Logs) -> Result<Answer, Error> {
        if self.pool.protocol == Protocol::SingleShot {
            return self.attempt_single_shot(activation, logs).await;
        }
        let mut fresh = false;
        loop {
            self.reap_exited(logs).await;
            if self.running.is_none() {
                fresh = true;
                self.running = Some(self.restart(ends, logs).await?);
            }
            let limit_bytes = self.shared.config.settings.max_result.0;
            let running = self.running.as_mut().expect("it was started above");
            let answer = running.conversation.interact(activation, limit_bytes, &running.process, logs).await;
            match answer {
                Ok(answer) => {
                    self.pool.backoff().record_answer();
                    return Ok(answer);
                }
                Err(NoAnswer::TooLong) => {
                    let running = self.running.take().expect("it answered");
                    self.kill_and_reap(running, logs).await;
                    let error = Error::Run(RunError::AnswerTooLong { limit_bytes });
                    self.pool.backoff().record_stop(error.to_string());
                    return Err(error);
                }
                Err(NoAnswer::Silent(silence)) => {
                    let running = self.running.take().expect("it was sent the activation");
                    let channel = running.conversation.channel();
                    let flush = flush_hint(&orphans::programs(running.process.pid), &self.pool.launch);
                    self.kill_and_reap(running, logs).await;
                    let error = Error::Run(RunError::NeverAnswered { silence, channel, flush });
                    self.pool.backoff().record_stop(error.without_output());
                    return Err(error);
                }
                Err(NoAnswer::Bad(problem)) => {
                    self.pool.backoff().record_answer();
                    return Err(Error::Run(RunError::BadAnswer { problem, exit: None }));
                }
                Err(NoAnswer::Strayed) => {
                    logs.say(super::STRAYED);
                    let running = self.running.take().expect("it has strayed");
                    self.kill_and_reap(running, logs).await;
                }
                Err(NoAnswer::Announced { was_read }) => {
                    let running = self.running.take().expect("it announced its protocol");
                    if was_read {
                        // It got the activation in a form that it does not understand. A process reads no activation
                        // before its handshake, so another process may get it.
                        logs.say(super::ANNOUNCED_LATE);
                        self.pool.announces.store(true, Ordering::Relaxed);
                        self.kill_and_reap(running, logs).await;
                    } else {
                        self.switch(running, logs).await?;
                    }
                }
                Err(NoAnswer::Gone { partial, untouched }) => {
                    let running = self.running.take().expect("it was sent the activation");
                    let channel = running.conversation.channel();
                    // The process died before it read the activation, so another process gets it. A
                    // process that was started for it and dies is an error.
                    if untouched && !fresh && wait_for_exit(&running.process).await {
                        self.handle_exit(running, logs).await;
                        continue;
                    }
                    let error = kill_and_explain(&running.process, partial, channel, logs).await;
                    self.pool.backoff().record_crash(error.without_output());
                    return Err(error);
                }
            }
        }
    }

    async fn attempt_single_shot(&mut self, activation: &mut Activation, logs: &mut Logs) -> Result<Answer, Error> {
        let launch = single_shot::launch(&self.pool.launch, activation, self.pool.artifact.command.is_none())?;
        // The guard kills what is left of the process, however this function ends.
        let (guard, pipes) = spawn(&launch, ResultChannel::Stdout, &self.shared.reaper, logs)
            .map_err(|error| single_shot::name_member(error, activation))?;
        let process = guard.process();
        let limit_bytes = self.shared.config.settings.max_result.0;
        let answer = single_shot::interact(process, pipes, activation, limit_bytes, logs).await;
        let result = match answer {
            Ok(answer) => Ok(answer),
            Err(single_shot::NoAnswer::TooLong) => Err(Error::Run(RunError::AnswerTooLong { limit_bytes })),
            Err(single_shot::NoAnswer::Bad(problem)) => Err(unusable_answer(process, problem, logs).await),
        };
        logs.detach();
        result
    }
}
