//! One activation of a check, and a closer look at one that is not answered as it should be.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::activation::Activation;
use crate::error::{BadAnswer, Error, RunError};
use crate::process::orphans;
use crate::process::spawn::ResultChannel;
use crate::protocol::line::Fill;
use crate::protocol::pipe_loop::NoAnswer;
use crate::protocol::{Protocol, answer, handshake, single_shot};

use super::finding::{self, Finding};
use super::report::Name;
use super::{Answered, CheckRun, Failure, Running};
use crate::action::worker::{gone, spawn, unusable, wait_for_end};

/// When something comes that was held back until then.
const AT_THE_END: &str = "when the input had ended";
/// How long the rest of an answer, or the answer behind a line that is none, is waited for.
pub(super) const SECOND_THOUGHTS: Duration = Duration::from_millis(200);

impl CheckRun<'_> {
    /// One activation, answered as it should be, or the reason why not.
    pub(super) async fn activate(&mut self, name: Name, arguments: &Value) -> Result<Answered, Failure> {
        self.log_capture.forget();
        if self.one_each
            && let Some(running) = self.running.take()
        {
            self.bury(running.guard.process()).await;
        }
        let text = arguments.to_string();
        let activation = Activation::of_arguments(text.as_bytes()).map_err(Failure::Error)?;
        let answered = if self.plan.settings.protocol == Protocol::SingleShot {
            self.activate_single_shot(activation).await
        } else if self.report.protocol == Some("2") {
            self.activate_streams(name, activation).await
        } else {
            self.activate_pipe_loop(activation).await
        };
        self.hear().await;
        if let Ok(Answered { took, .. }) = &answered {
            self.report.activations.push((name, *took));
        }
        answered
    }

    pub(super) async fn activate_pipe_loop(&mut self, mut activation: Activation) -> Result<Answered, Failure> {
        // As the server does: a process that ended before an activation could reach it takes nothing
        // with it.
        for fresh in [false, true] {
            self.ensure_running().await?;
            let Running { guard, mut conversation } = self.running.take().expect("it runs");
            let (limit_bytes, patience) = (self.plan.settings.max_result.0, self.patience());
            let begun = Instant::now();
            let interaction = conversation.interact(&mut activation, limit_bytes, guard.process(), &mut self.logs);
            let outcome = self.log_capture.during(tokio::time::timeout(patience, interaction)).await;
            let took = begun.elapsed();
            match outcome {
                Ok(Ok(answer)) => {
                    self.strays.append(&mut conversation.take_strays());
                    self.running = Some(Running { guard, conversation });
                    return Ok(Answered { answer, took });
                }
                Ok(Err(NoAnswer::Bad(problem))) => {
                    return Err(self.look_beside(problem, Running { guard, conversation }).await);
                }
                Ok(Err(NoAnswer::Strayed)) => unreachable!("strays are kept here, and not reported"),
                Ok(Err(NoAnswer::TooLong)) => {
                    self.bury(guard.process()).await;
                    return Err(Failure::Error(Error::Run(RunError::AnswerTooLong { limit_bytes })));
                }
                Ok(Err(NoAnswer::Gone { untouched: true, .. })) if !fresh && wait_for_end(guard.process()).await => {
                    self.bury(guard.process()).await;
                }
                Ok(Err(NoAnswer::Gone { partial, .. })) => {
                    let channel = conversation.channel();
                    let why = gone(guard.process(), partial, channel, &mut self.logs);
                    return Err(Failure::Error(self.log_capture.during(why).await));
                }
                Err(_) => return Err(self.look_behind(took, Running { guard, conversation }).await),
            }
        }
        unreachable!("a fresh process that is gone is told")
    }

    pub(super) async fn activate_single_shot(&mut self, activation: Activation) -> Result<Answered, Failure> {
        let launch = single_shot::launch(&self.launch, &activation);
        let (guard, pipes) =
            spawn(&launch, ResultChannel::Stdout, &self.reaper, &mut self.logs).map_err(Failure::Error)?;
        let process = guard.process();
        let (limit_bytes, patience) = (self.plan.settings.max_result.0, self.patience());
        let begun = Instant::now();
        let interaction = single_shot::interact(process, pipes, &activation, limit_bytes, &mut self.logs);
        let outcome = self.log_capture.during(tokio::time::timeout(patience, interaction)).await;
        let took = begun.elapsed();
        let answered = match outcome {
            Ok(Ok(answer)) => {
                let (ended, _) = self.wait_for_exit(process).await;
                self.lingered |= ended.is_none();
                Ok(Answered { answer, took })
            }
            Ok(Err(single_shot::NoAnswer::TooLong)) => {
                Err(Failure::Error(Error::Run(RunError::AnswerTooLong { limit_bytes })))
            }
            Ok(Err(single_shot::NoAnswer::Bad(problem))) => {
                Err(Failure::Error(unusable(process, problem, &mut self.logs).await))
            }
            Err(_) => Err(Failure::Silence { after: took, meanwhile: "its process had not ended by then" }),
        };
        self.bury(process).await;
        answered
    }

    /// An answer is unusable: what comes beside it tells whether it is one at all.
    pub(super) async fn look_beside(&mut self, problem: BadAnswer, mut running: Running) -> Failure {
        let channel = running.conversation.channel();
        let more = async {
            let _ = tokio::time::timeout(SECOND_THOUGHTS, running.conversation.idle(&mut self.logs)).await;
        };
        self.log_capture.during(more).await;
        let mut lines = match &problem {
            BadAnswer::NotJson { line, .. } => vec![line.clone().into_bytes()],
            BadAnswer::TwoLines { first, second } => vec![first.clone().into_bytes(), second.clone().into_bytes()],
            _ => Vec::new(),
        };
        lines.append(&mut running.conversation.take_strays());
        self.running = Some(running);
        let broken_up = lines.first().is_some_and(|line| is_cut_off(line));
        let is_answer = |line: &Vec<u8>| answer::check(line.clone().into()).is_ok();
        match lines.iter().find(|line| !is_answer(line)) {
            // Something of the two is an answer, and something is not even the beginning of one.
            Some(line) if !broken_up && lines.iter().any(is_answer) => {
                Failure::Finding(Finding::Stray { channel, line: line.clone() })
            }
            _ => Failure::Error(Error::Run(RunError::BadAnswer { problem, exit: None })),
        }
    }

    /// Nothing came in time: what comes when the input ends tells whether it was held back.
    pub(super) async fn look_behind(&mut self, after: Duration, running: Running) -> Failure {
        let Running { guard, conversation } = running;
        let process = guard.process();
        if conversation.waits_for_input(process) == Some(false) {
            self.bury(process).await;
            return Failure::Silence { after, meanwhile: "it was still at work then" };
        }
        let programs = orphans::programs(process.pid);
        let on_descriptor_3 = conversation.channel() == ResultChannel::Descriptor3;
        self.hear().await;
        let is_answer = |line: &&[u8]| answer::check(line.trim_ascii().to_vec().into()).is_ok();
        let on_stdout = self.log_capture.stdout.lines().find(is_answer).map(<[u8]>::to_vec);

        let mut results = conversation.into_results();
        let within = self.plan.settings.stop_grace.0 / 2;
        let held_back = async {
            let held_back = async {
                loop {
                    if let Some(line) = results.next_line() {
                        return Some(line.to_vec());
                    }
                    if !matches!(results.fill().await, Ok(Fill::Some)) {
                        return Some(results.take_rest()).filter(|rest| !rest.is_empty());
                    }
                }
            };
            tokio::select! {
                line = tokio::time::timeout(within, held_back) => line.ok().flatten(),
                () = self.logs.pump() => unreachable!("a pump never ends"),
            }
        };
        let held_back = self.log_capture.during(held_back).await;
        if on_descriptor_3 {
            // The end of its result channel comes before that of its stdout.
            self.wait_for_exit(process).await;
        }
        self.bury(process).await;

        let cure = || finding::flush_cure(&programs, &self.launch.program);
        if let Some(line) = held_back {
            return Failure::Finding(Finding::NotFlushed {
                what: "answer",
                when: AT_THE_END.into(),
                line,
                cure: cure(),
            });
        }
        if on_descriptor_3 {
            if let Some(line) = on_stdout {
                return Failure::NoHandshake { line };
            }
            if let Some(line) = self.log_capture.stdout.lines().find(|line| handshake::is_handshake(line)) {
                return Failure::Finding(Finding::NotFlushed {
                    what: "handshake",
                    when: AT_THE_END.into(),
                    line: line.to_vec(),
                    cure: cure(),
                });
            }
            if let Some(line) = self.log_capture.stdout.lines().find(is_answer) {
                return Failure::NoHandshake { line: line.to_vec() };
            }
        }
        Failure::Silence { after, meanwhile: "nothing came when its input ended either" }
    }
}

/// Whether a line is the beginning of an object or array that goes on elsewhere.
pub(super) fn is_cut_off(line: &[u8]) -> bool {
    let begins = matches!(line.trim_ascii_start().first(), Some(b'{' | b'['));
    begins && serde_json::from_slice::<serde::de::IgnoredAny>(line).is_err_and(|error| error.is_eof())
}
