//! One activation of a check, and the diagnosis of one that fails.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::activation::Activation;
use crate::artifact::inspect::flush_hint;
use crate::error::{BadAnswer, Error, RunError, Silence, StartError};
use crate::process::orphans;
use crate::process::spawn::ResultChannel;
use crate::protocol::detect::Unannounced;
use crate::protocol::line::Fill;
use crate::protocol::pipe_loop::NoAnswer;
use crate::protocol::{Protocol, answer, handshake, single_shot};

use super::finding::{Finding, HeldUntil, Output};
use super::process::Running;
use super::report::Name;
use super::settle::{Failure, Meanwhile};
use super::{Answered, CheckRun};
use crate::action::worker::{kill_and_explain, spawn, unusable_answer, wait_for_exit};

/// How long the rest of an answer, or an answer after a line that is none, may take to come.
pub(super) const LATE_OUTPUT_GRACE: Duration = Duration::from_millis(200);

impl CheckRun<'_> {
    /// One activation: its answer, or why there is none.
    pub(super) async fn activate(&mut self, name: Name, arguments: &Value) -> Result<Answered, Failure> {
        self.log_capture.clear();
        if self.one_activation_each
            && let Some(running) = self.running.take()
        {
            self.kill_and_reap(running.guard.process()).await;
        }
        let text = arguments.to_string();
        let activation = Activation::of_arguments(text.as_bytes()).map_err(Failure::Error)?;
        let answered = if self.plan.settings.protocol == Protocol::SingleShot {
            self.activate_single_shot(activation).await
        } else if self.report.protocol == Some(Protocol::Streams) {
            self.activate_multiplex(name, activation).await
        } else {
            self.activate_pipe_loop(name, activation).await
        };
        self.forward_log().await;
        if let Ok(Answered { took, .. }) = &answered {
            self.report.activations.push((name, *took));
        }
        answered
    }

    pub(super) async fn activate_pipe_loop(
        &mut self,
        name: Name,
        mut activation: Activation,
    ) -> Result<Answered, Failure> {
        // Like the server: if a process exits before it reads an activation, a new process gets it.
        let mut fresh = false;
        loop {
            self.ensure_running().await?;
            let Running { guard, mut conversation } = self.running.take().expect("it runs");
            let (limit_bytes, activation_timeout) = (self.plan.settings.max_result.0, self.activation_timeout());
            let started = Instant::now();
            let interaction = conversation.interact(&mut activation, limit_bytes, guard.process(), &mut self.logs);
            let outcome = self.log_capture.during(tokio::time::timeout(activation_timeout, interaction)).await;
            let took = started.elapsed();
            match outcome {
                Ok(Err(NoAnswer::Announced { was_read })) => {
                    self.announces = true;
                    if was_read {
                        self.kill_and_reap(guard.process()).await;
                        self.start().await.map_err(Failure::Error)?;
                    } else {
                        let conversation = match conversation.switch(&mut self.logs) {
                            Ok(conversation) => conversation,
                            Err(error) => {
                                self.kill_and_reap(guard.process()).await;
                                return Err(Failure::Error(error));
                            }
                        };
                        self.running = Some(Running { guard, conversation });
                    }
                    self.note_announced();
                    if self.report.protocol == Some(Protocol::Streams) {
                        return Box::pin(self.activate_multiplex(name, activation)).await;
                    }
                }
                Ok(Ok(answer)) => {
                    self.strays.append(&mut conversation.take_strays());
                    self.running = Some(Running { guard, conversation });
                    return Ok(Answered { answer, took });
                }
                Ok(Err(NoAnswer::Bad(problem))) => {
                    return Err(self.diagnose_bad_answer(problem, Running { guard, conversation }).await);
                }
                Ok(Err(NoAnswer::Silent(Silence::Nothing))) => {
                    return Err(self.diagnose_silence(took, Running { guard, conversation }).await);
                }
                Ok(Err(NoAnswer::Silent(silence))) => {
                    let channel = conversation.channel();
                    self.kill_and_reap(guard.process()).await;
                    let error = RunError::NeverAnswered { silence, channel, flush: String::new() };
                    return Err(Failure::Error(Error::Run(error)));
                }
                Ok(Err(NoAnswer::Strayed)) => unreachable!("this conversation keeps its strays"),
                Ok(Err(NoAnswer::TooLong)) => {
                    self.kill_and_reap(guard.process()).await;
                    return Err(Failure::Error(Error::Run(RunError::AnswerTooLong { limit_bytes })));
                }
                Ok(Err(NoAnswer::Gone { untouched: true, .. })) if !fresh && wait_for_exit(guard.process()).await => {
                    self.kill_and_reap(guard.process()).await;
                    fresh = true;
                }
                Ok(Err(NoAnswer::Gone { partial, .. })) => {
                    let channel = conversation.channel();
                    let why = kill_and_explain(guard.process(), partial, channel, &mut self.logs);
                    return Err(Failure::Error(self.log_capture.during(why).await));
                }
                Err(_) => return Err(self.diagnose_silence(took, Running { guard, conversation }).await),
            }
        }
    }

    pub(super) async fn activate_single_shot(&mut self, activation: Activation) -> Result<Answered, Failure> {
        let launch = single_shot::launch(&self.launch, &activation, self.unannounced == Unannounced::ActionLoop)
            .map_err(Failure::Error)?;
        let (guard, pipes) = spawn(&launch, ResultChannel::Stdout, &self.reaper, &mut self.logs)
            .map_err(|error| Failure::Error(single_shot::name_member(error, &activation)))?;
        let process = guard.process();
        let (limit_bytes, activation_timeout) = (self.plan.settings.max_result.0, self.activation_timeout());
        let started = Instant::now();
        let interaction = single_shot::interact(process, pipes, &activation, limit_bytes, &mut self.logs);
        let outcome = self.log_capture.during(tokio::time::timeout(activation_timeout, interaction)).await;
        let took = started.elapsed();
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
                Err(Failure::Error(unusable_answer(process, problem, &mut self.logs).await))
            }
            Err(_) => Err(Failure::Silence { after: took, meanwhile: Meanwhile::HadNotExited }),
        };
        self.kill_and_reap(process).await;
        answered
    }

    /// Diagnoses an unusable answer: other lines beside it show whether it is an answer at all.
    pub(super) async fn diagnose_bad_answer(&mut self, problem: BadAnswer, mut running: Running) -> Failure {
        let channel = running.conversation.channel();
        let more = async {
            let _ = tokio::time::timeout(LATE_OUTPUT_GRACE, running.conversation.idle(&mut self.logs)).await;
        };
        self.log_capture.during(more).await;
        let mut lines = match &problem {
            BadAnswer::NotJson { line, .. } => vec![line.clone().into_bytes()],
            BadAnswer::TwoLines { first, second } => {
                vec![first.clone().into_bytes(), second.clone().into_bytes()]
            }
            _ => Vec::new(),
        };
        lines.append(&mut running.conversation.take_strays());
        self.running = Some(running);
        let broken_up = lines.first().is_some_and(|line| is_cut_off(line));
        let is_answer = |line: &Vec<u8>| answer::check(line.clone().into()).is_ok();
        match lines.iter().find(|line| !is_answer(line)) {
            // One line is an answer, and another is not even the beginning of one.
            Some(line) if !broken_up && lines.iter().any(is_answer) => {
                Failure::Finding(Finding::Stray { channel, line: line.clone() })
            }
            _ => Failure::Error(Error::Run(RunError::BadAnswer { problem, exit: None })),
        }
    }

    /// Diagnoses a missing answer: output that comes when the input ends was held back.
    pub(super) async fn diagnose_silence(&mut self, after: Duration, running: Running) -> Failure {
        let Running { guard, conversation } = running;
        let process = guard.process();
        if conversation.waits_for_input(process) == Some(false) {
            self.kill_and_reap(process).await;
            return Failure::Silence { after, meanwhile: Meanwhile::WasAtWork };
        }
        let programs = orphans::programs(process.pid);
        let on_descriptor_3 = conversation.channel() == ResultChannel::Descriptor3;
        self.forward_log().await;
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
                        return Some(results.take_rest()).filter(|received| !received.is_empty());
                    }
                }
            };
            tokio::select! {
                line = tokio::time::timeout(within, held_back) => line.ok().flatten(),
                never = self.logs.pump() => match never {},
            }
        };
        let held_back = self.log_capture.during(held_back).await;
        if on_descriptor_3 {
            // Its result channel ends before its stdout.
            self.wait_for_exit(process).await;
        }
        self.kill_and_reap(process).await;

        if on_descriptor_3 && let Some(failure) = self.nearly_handshake() {
            return failure;
        }
        let hint = || flush_hint(&programs, &self.launch);
        if let Some(line) = held_back {
            return Failure::Finding(Finding::NotFlushed {
                output: Output::Answer,
                until: HeldUntil::EndOfInput,
                line,
                hint: hint(),
            });
        }
        if on_descriptor_3 {
            if let Some(line) = on_stdout {
                return Failure::NoHandshake { line };
            }
            if let Some(line) = self.log_capture.stdout.lines().find(|line| handshake::is_handshake(line)) {
                return Failure::Finding(Finding::NotFlushed {
                    output: Output::Handshake,
                    until: HeldUntil::EndOfInput,
                    line: line.to_vec(),
                    hint: hint(),
                });
            }
            if let Some(line) = self.log_capture.stdout.lines().find(is_answer) {
                return Failure::NoHandshake { line: line.to_vec() };
            }
        }
        Failure::Silence { after, meanwhile: Meanwhile::WaitedForInput }
    }

    /// A line of the log that was meant as a handshake.
    fn nearly_handshake(&self) -> Option<Failure> {
        let near = self.log_capture.stdout.lines().find_map(handshake::nearly_handshake)?;
        Some(Failure::Error(Error::Start(StartError::NearlyHandshake { near })))
    }
}

/// Whether a line is the beginning of an object or array that goes on elsewhere.
pub(super) fn is_cut_off(line: &[u8]) -> bool {
    let begins = matches!(line.trim_ascii_start().first(), Some(b'{' | b'['));
    begins && serde_json::from_slice::<serde::de::IgnoredAny>(line).is_err_and(|error| error.is_eof())
}
