//! The check of `concurrency`: several activations at once, each with its own answer.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::activation::Answer;
use crate::error::{Error, RunError};
use crate::process::orphans;
use crate::text::{excerpt, millis};

use super::CheckRun;
use super::answers::precise;
use super::arguments::{Echo, mark_echo};
use super::finding::{Finding, FrameFault, Promise};
use super::promises::MIN_MEASURABLE;
use super::report::{Check, Name};
use super::settle::Failure;
use super::transcript::{Received, SentActivation, Transcript};

/// The most activations that are sent at once, also if the handshake promises more.
const MAX_AT_ONCE: usize = 8;

impl CheckRun<'_> {
    /// Sends as many activations as the handshake promises, up to [`MAX_AT_ONCE`].
    pub(super) async fn check_concurrency(&mut self) {
        let name = Name::Concurrency;
        let Some(mut running) = self.take_multiplex_for(name).await else { return };
        let promised = running.multiplex().promises().concurrency;
        let count = promised.min(MAX_AT_ONCE);
        let promise = Promise::Concurrency(promised);
        let pid = running.guard.process().pid;
        let cpu_time_before = orphans::cpu_time(pid);
        let mut transcript = Transcript::default();
        let started = Instant::now();
        for number in 0..count {
            let arguments = self.arguments.numbered(number);
            if let Err(failure) = self.send(&mut running, &mut transcript, &arguments) {
                return self.fail(name, &failure);
            }
        }
        let received =
            self.receive(&mut running, &mut transcript, self.activation_timeout(), Transcript::all_ended).await;
        let took = started.elapsed();
        let cpu_time = orphans::cpu_time(pid).saturating_sub(cpu_time_before);
        self.forward_log().await;
        if received != Received::Complete {
            let seen = format!("of {count} at once {} had not ended after {}", transcript.open_count(), millis(took));
            let failure = self.blame(received, &transcript, running, promise, seen).await;
            return self.fail(name, &failure);
        }
        self.running = Some(running);
        let check = match self.judge_answers(&transcript.activations, promise) {
            Err(failure) => {
                self.record_strays(transcript);
                return self.fail(name, &failure);
            }
            Ok(own) => {
                let (check, side_by_side) = self.judge_overlap(&transcript.activations, promise, took, cpu_time);
                check.unwrap_or_else(|| Check::passed(name, format!("{count} at once, {own}; {side_by_side}")))
            }
        };
        self.record_strays(transcript);
        self.settle(check.took(took));
    }

    /// Whether each of several activations got its own answer.
    fn judge_answers(&self, activations: &[SentActivation], promise: Promise) -> Result<&'static str, Failure> {
        let mut own = 0;
        let mut failed = Vec::new();
        for (number, sent) in activations.iter().enumerate() {
            match sent.answer() {
                Some(Err(problem)) => {
                    return Err(Failure::Error(Error::Run(RunError::BadAnswer { problem, exit: None })));
                }
                Some(Ok(answer)) if is_failure(&answer) => failed.push(answer),
                _ => {}
            }
            let text = sent.text();
            match mark_echo(&text, number) {
                Echo::Intact => own += 1,
                Echo::Absent => {}
                Echo::Mangled(_) => {
                    let fault = FrameFault::MixedUp { id: sent.ticket.id };
                    return Err(Failure::Finding(Finding::Frame { fault, line: text }));
                }
            }
        }
        if let Some(answer) = failed.first()
            && self.baseline.failures == 0
        {
            let seen = format!(
                "{} of {} at once failed, and no single one did: {}",
                failed.len(),
                activations.len(),
                excerpt(answer)
            );
            return Err(Failure::Finding(Finding::Promise { promise, seen }));
        }
        Ok(if own == activations.len() { "each got its own answer" } else { "all answered" })
    }

    /// Whether they ran concurrently: a warning if they certainly did not, and the observation.
    fn judge_overlap(
        &self,
        activations: &[SentActivation],
        promise: Promise,
        took: Duration,
        cpu_time: Duration,
    ) -> (Option<Check>, String) {
        let count = u32::try_from(activations.len()).unwrap_or(u32::MAX);
        let Some(baseline) = self.baseline.took else { return (None, "nothing to compare with".into()) };
        let in_turn = took >= baseline * count * 3 / 4;
        if overlap(activations) || (baseline >= MIN_MEASURABLE && !in_turn) {
            return (None, "concurrently".into());
        }
        if baseline < MIN_MEASURABLE {
            return (None, format!("one takes {}, too quick to tell their order", precise(baseline)));
        }
        if cpu_time > took / 10 {
            // They may wait for a core and not for each other; on a busy machine they get a small part of one.
            return (None, "busy all the time".into());
        }
        let seen = format!(
            "it runs one after the other: {count} at once took {}, a single one {}, and it used the CPU for {} of that",
            millis(took),
            millis(baseline),
            millis(cpu_time)
        );
        (Some(Check::warning(Name::Concurrency, Finding::Promise { promise, seen })), String::new())
    }
}

/// Whether two of them overlap: one sent its first frame before another ended, and ended after it.
fn overlap(activations: &[SentActivation]) -> bool {
    let spans: Vec<_> = activations.iter().filter_map(|sent| Some((sent.first?, sent.ended.as_ref()?.0))).collect();
    spans.iter().any(|(_, ended)| spans.iter().any(|(first, later)| first < ended && ended < later))
}

/// Whether an answer has a member `error`.
pub(super) fn is_failure(answer: &Answer) -> bool {
    serde_json::from_slice::<Value>(answer).is_ok_and(|answer| answer.get("error").is_some())
}
