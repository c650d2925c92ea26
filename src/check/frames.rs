//! One activation of version 2: sent in a frame, with a transcript of the frames that come back.

use std::ops::Range;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::action::worker::{kill_and_explain, wait_for_exit};
use crate::activation::Activation;
use crate::error::{Error, RunError};
use crate::protocol::conversation::Conversation;
use crate::protocol::multiplex::Multiplex;

use super::activate::is_cut_off;
use super::finding::{Finding, FrameFault, Promise};
use super::process::Running;
use super::report::{Check, Name, Verdict};
use super::settle::Failure;
use super::transcript::{Peer, Received, SentActivation, Transcript};
use super::{Answered, CheckRun};

/// Why a conversation is one of version 2: [`CheckRun::take_multiplex`] checked it.
const CHECKED_VERSION: &str = "take_multiplex has checked the version";
const REACTION_POLL: Duration = Duration::from_millis(10);

impl CheckRun<'_> {
    /// One activation while no other is in flight.
    pub(super) async fn activate_multiplex(&mut self, name: Name, activation: Activation) -> Result<Answered, Failure> {
        // Like the server: if a process exits before it reads an activation, a new process gets it.
        for fresh in [false, true] {
            let Some(mut running) = self.take_multiplex().await? else {
                // The new process speaks another protocol than the first.
                return self.activate_pipe_loop(name, activation).await;
            };
            let mut transcript = Transcript::default();
            self.begin(&mut running, &mut transcript, &activation);
            let received =
                self.receive(&mut running, &mut transcript, self.activation_timeout(), Transcript::all_ended).await;
            let sent = &transcript.activations[0];
            match (received, sent.answer()) {
                (Received::Complete, Some(answer)) => {
                    let took = sent.took().expect("it has ended");
                    self.running = Some(running);
                    self.record_chunks(name, sent);
                    self.record_strays(transcript);
                    return match answer {
                        Ok(answer) => Ok(Answered { answer, took }),
                        Err(problem) => Err(Failure::Error(Error::Run(RunError::BadAnswer { problem, exit: None }))),
                    };
                }
                (Received::Closed, _) if !fresh && self.is_untouched(&mut running, sent).await => {
                    self.kill_and_reap(running.guard.process()).await;
                }
                _ => {
                    let after = sent.started.elapsed();
                    return Err(match self.diagnose(received, &transcript, running).await {
                        Ok(failure) => failure,
                        Err(running) if sent.chunks > 0 => {
                            self.kill_and_reap(running.guard.process()).await;
                            Failure::Endless { after, chunks: sent.chunks }
                        }
                        Err(running) => self.diagnose_silence(after, running).await,
                    });
                }
            }
        }
        unreachable!("the second process is not replaced")
    }

    pub(super) async fn is_untouched(&self, running: &mut Running, sent: &SentActivation) -> bool {
        running.multiplex().is_untouched(sent.ticket) && wait_for_exit(running.guard.process()).await
    }

    /// The process, started if none runs; `None` if it does not speak version 2.
    pub(super) async fn take_multiplex(&mut self) -> Result<Option<Running>, Failure> {
        self.ensure_running().await?;
        let speaks = |running: &mut Running| matches!(running.conversation, Conversation::Multiplex(_));
        Ok(self.running.take_if(speaks))
    }

    /// The same for a check, which is settled if there is no such process. The log that follows is this check's.
    pub(super) async fn take_multiplex_for(&mut self, name: Name) -> Option<Running> {
        match self.take_multiplex().await {
            Ok(Some(running)) => {
                self.log_capture.clear();
                return Some(running);
            }
            Ok(None) => self.settle(Check::new(name, Verdict::NotReached, "")),
            Err(failure) => self.fail(name, &failure),
        }
        None
    }

    pub(super) fn begin(&mut self, running: &mut Running, transcript: &mut Transcript, activation: &Activation) {
        let multiplex = running.multiplex();
        multiplex.bound(self.plan.settings.max_result.0);
        if transcript.activations.is_empty() {
            transcript.collect_strays(multiplex, &self.sent_ids);
        }
        transcript.send(multiplex, &mut self.sent_ids, activation);
    }

    pub(super) fn send(
        &mut self,
        running: &mut Running,
        transcript: &mut Transcript,
        arguments: &Value,
    ) -> Result<(), Failure> {
        let text = arguments.to_string();
        let activation = Activation::of_arguments(text.as_bytes()).map_err(Failure::Error)?;
        self.begin(running, transcript, &activation);
        Ok(())
    }

    pub(super) async fn receive(
        &mut self,
        running: &mut Running,
        transcript: &mut Transcript,
        within: Duration,
        is_complete: impl Fn(&Transcript) -> bool,
    ) -> Received {
        let Running { guard, conversation } = running;
        let multiplex = conversation.as_multiplex().expect(CHECKED_VERSION);
        let peer = Peer { multiplex, sent_ids: &self.sent_ids, process: guard.process(), logs: &mut self.logs };
        let limit_bytes = self.plan.settings.max_result.0;
        self.log_capture.during(transcript.receive(peer, limit_bytes, within, is_complete)).await
    }

    /// Receives until the process has certainly read its input, and a little longer.
    pub(super) async fn await_reaction(
        &mut self,
        running: &mut Running,
        transcript: &mut Transcript,
        within: Range<Duration>,
    ) -> Received {
        let started = Instant::now();
        loop {
            match self.receive(running, transcript, REACTION_POLL, |_| false).await {
                Received::TimedOut => {}
                other => return other,
            }
            let waits = running.conversation.waits_for_input(running.guard.process());
            let elapsed = started.elapsed();
            if elapsed >= within.end || (elapsed >= within.start && waits != Some(false)) {
                return Received::Complete;
            }
        }
    }

    /// Why an activation has not ended, after killing the process; the process itself, if nothing shows why.
    pub(super) async fn diagnose(
        &mut self,
        received: Received,
        transcript: &Transcript,
        mut running: Running,
    ) -> Result<Failure, Running> {
        let failure = match received {
            Received::TooLong => {
                Failure::Error(Error::Run(RunError::AnswerTooLong { limit_bytes: self.plan.settings.max_result.0 }))
            }
            Received::Closed => {
                let partial = running.multiplex().partial().to_vec();
                let channel = running.conversation.channel();
                let why = kill_and_explain(running.guard.process(), partial, channel, &mut self.logs);
                Failure::Error(self.log_capture.during(why).await)
            }
            Received::Complete | Received::TimedOut => {
                let one_at_a_time = running.multiplex().promises().concurrency == 1;
                match unrecognised_answer(transcript, one_at_a_time) {
                    Some(failure) => failure,
                    None => return Err(running),
                }
            }
        };
        self.kill_and_reap(running.guard.process()).await;
        Ok(failure)
    }

    /// Why an activation has not ended. If nothing shows why, the action breaks a promise.
    pub(super) async fn blame(
        &mut self,
        received: Received,
        transcript: &Transcript,
        running: Running,
        promise: Promise,
        seen: String,
    ) -> Failure {
        match self.diagnose(received, transcript, running).await {
            Ok(failure) => failure,
            Err(running) => {
                self.kill_and_reap(running.guard.process()).await;
                Failure::Finding(Finding::Promise { promise, seen })
            }
        }
    }

    /// Keeps the output that came beside answers.
    pub(super) fn record_strays(&mut self, transcript: Transcript) {
        let Transcript { unexpected, non_frames, malformed, .. } = transcript;
        self.unexpected.extend(unexpected);
        self.strays.extend(non_frames.into_iter().chain(malformed).map(|(_, line)| line.to_vec()));
    }

    pub(super) fn record_chunks(&mut self, name: Name, sent: &SentActivation) {
        if name == Name::Sequence && sent.chunks > 0 {
            self.baseline.streamed += 1;
            self.baseline.chunks = self.baseline.chunks.max(sent.chunks);
            self.baseline.at_once += usize::from(sent.came_at_once());
            self.baseline.sample = sent.lines.split(|byte| *byte == b'\n').next().unwrap_or_default().to_vec();
        }
    }
}

impl Running {
    /// Its side of version 2. Only for a process from [`CheckRun::take_multiplex`].
    pub(super) fn multiplex(&mut self) -> &mut Multiplex {
        self.conversation.as_multiplex().expect(CHECKED_VERSION)
    }
}

/// What came in place of an answer that was recognised, as a failure.
fn unrecognised_answer(transcript: &Transcript, one_at_a_time: bool) -> Option<Failure> {
    let bad_frame = |(problem, line): &(String, bytes::Bytes)| {
        let line = String::from_utf8_lossy(line).into_owned();
        Failure::Error(Error::Run(RunError::BadFrame { problem: problem.clone(), line }))
    };
    let unexpected_frame = |(fault, line): &(FrameFault, bytes::Bytes)| {
        Failure::Finding(Finding::Frame { fault: *fault, line: line.to_vec() })
    };
    let is_unknown = |(fault, _): &&(FrameFault, _)| !matches!(fault, FrameFault::AfterEnd { .. });
    // An open activation got nothing, so a frame after the end of another may have been meant for it.
    let last = transcript.activations.last().map(|sent| sent.ticket.id);
    let after_end = |(_, line): &(FrameFault, bytes::Bytes)| {
        unexpected_frame(&(FrameFault::UnknownId { last_sent: last }, line.clone()))
    };
    let non_frames = transcript.non_frames.first().filter(|(_, line)| one_at_a_time || is_cut_off(line));
    transcript
        .malformed
        .as_ref()
        .map(bad_frame)
        .or_else(|| transcript.unexpected.iter().find(is_unknown).map(unexpected_frame))
        .or_else(|| non_frames.map(bad_frame))
        .or_else(|| transcript.unexpected.first().map(after_end))
}
