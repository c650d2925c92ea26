//! A worker with one activation in flight at a time.

use tokio::sync::watch;
use tokio::time::Instant;

use crate::activation::{Activation, Answer};
use crate::error::{Error, RunError};
use crate::logs::Logs;
use crate::process::spawn::ResultChannel;
use crate::process::stop;
use crate::protocol::pipe_loop::NoAnswer;
use crate::protocol::{Protocol, single_shot};

use super::super::Phase;
use super::super::job::Job;
use super::{Worker, kill_and_explain, spawn, time_is_up, time_limit, unusable_answer, wait_for_exit};

impl Worker {
    /// The same where one activation is in flight at a time.
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
        let outcome = {
            let attempt = self.attempt(&mut activation, ends, logs);
            tokio::select! {
                biased;
                outcome = attempt => Some(outcome),
                () = time_is_up(limit, ends, run_timeout) => None,
                _ = phase.wait_for(|phase| *phase >= Phase::Stopping) => Some(Err(Error::Run(RunError::Cut { after: begun.elapsed() }))),
            }
        };
        let outcome = outcome.unwrap_or_else(|| Err(Error::Run(RunError::TimeOut { limit, after: begun.elapsed() })));
        if let Err(error @ (Error::Run(RunError::TimeOut { .. }) | Error::Run(RunError::Cut { .. }))) = &outcome {
            // The conversation was left in the middle: nobody could tell whose the next line is.
            if let Some(running) = self.running.take() {
                stop::kill_and_reap(&running.process).await;
                self.pool.backoff().record_stop(error.to_string());
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
                Err(NoAnswer::Bad(problem)) => {
                    self.pool.backoff().record_answer();
                    return Err(Error::Run(RunError::BadAnswer { problem, ending: None }));
                }
                Err(NoAnswer::Strayed) => {
                    logs.say(super::STRAYED);
                    let running = self.running.take().expect("it has strayed");
                    self.kill_and_reap(running, logs).await;
                }
                Err(NoAnswer::Gone { partial, untouched }) => {
                    let running = self.running.take().expect("it was spoken with");
                    let channel = running.conversation.channel().name();
                    // A process that died before this activation could reach it takes nothing with
                    // it. One that was started for it and did so is told.
                    if untouched && !fresh && wait_for_exit(&running.process).await {
                        self.handle_exit(running, logs).await;
                        continue;
                    }
                    let error = kill_and_explain(&running.process, partial, channel, logs).await;
                    self.pool.backoff().record_crash(error.detail().unwrap_or_else(|| error.to_string()));
                    return Err(error);
                }
            }
        }
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
            Err(single_shot::NoAnswer::Bad(problem)) => Err(unusable_answer(process, problem, logs).await),
        };
        logs.detach();
        result
    }
}
