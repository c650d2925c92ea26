//! The checks of version 2: ids, chunks, and the promises of a handshake.
//!
//! A check cannot make an unknown action take its time, stream or wait. It tries each promise with the arguments
//! that it has. If they show nothing, the check passes and says so. They always show the fault that matters: an
//! action that crashes on a frame which it promised to understand, or does not do what the frame asks.

use std::time::{Duration, Instant};

use crate::artifact::inspect::flush_hint;
use crate::process::{ExitStatus, orphans};
use crate::protocol::Protocol;
use crate::protocol::multiplex::Promises;
use crate::text::millis;

use super::CheckRun;
use super::activate::LATE_OUTPUT_GRACE;
use super::finding::{Finding, HeldUntil, Output, Promise};
use super::process::Running;
use super::report::{Check, Name, Verdict};
use super::transcript::{Received, Transcript};

/// What activations do while no other is in flight.
#[derive(Debug, Default)]
pub(super) struct Baseline {
    /// How long one of a sequence took, on average.
    pub(super) took: Option<Duration>,
    /// How many of a sequence had an answer with `error`.
    pub(super) failures: usize,
    /// The most chunks that one of them had.
    pub(super) chunks: usize,
    /// How many had several chunks that all came together with the last frame.
    pub(super) at_once: usize,
    /// How many had chunks.
    pub(super) streamed: usize,
    /// A chunk to show.
    pub(super) sample: Vec<u8>,
}

/// Ids such as a process with a long life gets: one of several digits, and one of more than 32 bits. Truncated,
/// neither equals an id that was sent before.
const LARGE_IDS: [u64; 2] = [1_000_003, 4_294_967_999];
/// An activation that takes less is too short to show what happens beside it or in the middle of it.
pub(super) const MIN_MEASURABLE: Duration = Duration::from_millis(50);
/// How long an activation runs before it is cancelled.
const CANCEL_DELAY: Duration = Duration::from_millis(50);
/// How long a process may take to read a frame.
const MAX_REACTION: Duration = Duration::from_secs(2);
/// How long chunks that were written before the process read `pause` may take to arrive.
const IN_TRANSIT: Duration = Duration::from_millis(50);
/// How long an activation must send no chunk to count as paused, and how long the check waits for that.
const QUIET: Duration = Duration::from_millis(250);
const MAX_UNTIL_QUIET: Duration = Duration::from_secs(1);

impl CheckRun<'_> {
    /// Settles the checks of promises that the handshake does not make.
    pub(super) fn skip_unpromised(&mut self) {
        let Some(promises) = self.promises() else {
            let seen = match self.report.protocol {
                Some(Protocol::PipeLoop) => "not in version 1",
                Some(Protocol::Filter) => "not for a filter",
                _ => "not in the dialect",
            };
            for name in Name::OF_VERSION_2 {
                self.settle(Check::new(name, Verdict::NotApplicable, seen));
            }
            return;
        };
        let members = [
            (Name::Concurrency, promises.concurrency > 1),
            (Name::Cancel, promises.cancel),
            (Name::Pause, promises.pause),
            (Name::Stop, promises.stop),
        ];
        for (name, promised) in members {
            if !promised {
                self.settle(Check::new(name, Verdict::NotApplicable, "not promised"));
            }
        }
    }

    fn promises(&mut self) -> Option<Promises> {
        let running = self.running.as_mut()?;
        running.conversation.as_multiplex().map(|multiplex| multiplex.promises())
    }

    /// The checks of version 2, for an action that answers one activation at a time.
    pub(super) async fn check_promises(&mut self) {
        if self.report.protocol != Some(Protocol::Streams) {
            return;
        }
        if self.one_activation_each {
            for name in Name::OF_VERSION_2 {
                if !self.is_settled(name) && name != Name::Stop {
                    self.settle(Check::new(name, Verdict::NotReached, "the process answers only once"));
                }
            }
            return;
        }
        if !self.is_settled(Name::Ids) {
            self.check_large_ids().await;
        }
        if !self.is_settled(Name::Concurrency) {
            self.check_concurrency().await;
        }
        self.judge_chunks();
        if !self.is_settled(Name::Cancel) {
            self.check_cancel().await;
        }
        if !self.is_settled(Name::Pause) {
            self.check_pause().await;
        }
        if !self.is_settled(Name::Ids) {
            self.judge_ids();
        }
    }

    /// Sends large ids, and waits for late frames.
    async fn check_large_ids(&mut self) {
        let arguments = self.arguments.base();
        for number in LARGE_IDS {
            if let Err(failure) = self.ensure_running().await {
                return self.fail(Name::Ids, &failure);
            }
            let running = self.running.as_mut().expect("it runs");
            if let Some(multiplex) = running.conversation.as_multiplex() {
                multiplex.number_from(number);
            }
            if let Err(failure) = self.activate(Name::Ids, &arguments).await {
                return self.fail(Name::Ids, &failure);
            }
        }
        let Ok(Some(mut running)) = self.take_multiplex().await else { return };
        let mut transcript = Transcript::default();
        self.receive(&mut running, &mut transcript, LATE_OUTPUT_GRACE, |_| false).await;
        self.running = Some(running);
        self.record_strays(transcript);
    }

    fn judge_ids(&mut self) {
        let check = if let Some((fault, line)) = self.unexpected.first() {
            self.failure(Name::Ids, Finding::Frame { fault: *fault, line: line.to_vec() })
        } else {
            let [.., longest] = LARGE_IDS;
            Check::passed(
                Name::Ids,
                format!("each frame names its activation, and each activation has one last frame; up to id {longest}"),
            )
        };
        self.settle(check);
    }

    /// Whether chunks came as they were written.
    fn judge_chunks(&mut self) {
        let name = Name::Chunks;
        let Baseline { took, chunks, at_once, streamed, .. } = self.baseline;
        let took = took.unwrap_or_default();
        let check = if streamed == 0 {
            Check::new(name, Verdict::NotApplicable, "no chunks: it does not stream with these arguments")
        } else if at_once < streamed || chunks < 2 {
            Check::passed(name, format!("up to {chunks}, before the last frame"))
        } else if took < MIN_MEASURABLE * 2 {
            Check::passed(name, format!("up to {chunks}; too quick to tell whether they wait for the last frame"))
        } else {
            let programs = self.running.as_ref().map(|running| orphans::programs(running.guard.process().pid));
            let finding = Finding::NotFlushed {
                output: Output::Chunks,
                until: HeldUntil::EndOfActivation { after: took },
                line: std::mem::take(&mut self.baseline.sample),
                hint: flush_hint(&programs.unwrap_or_default(), &self.launch),
            };
            Check::warning(name, finding)
        };
        self.settle(check);
    }

    /// Cancels an activation in its middle, and another right after it was sent.
    async fn check_cancel(&mut self) {
        let name = Name::Cancel;
        let arguments = self.arguments.base();
        let grace = self.plan.settings.stop_grace.0;
        let mut slowest = None;
        for head_start in [CANCEL_DELAY, Duration::ZERO] {
            let Some(mut running) = self.take_multiplex_for(name).await else { return };
            let mut transcript = Transcript::default();
            if let Err(failure) = self.send(&mut running, &mut transcript, &arguments) {
                return self.fail(name, &failure);
            }
            let mut received = self.receive(&mut running, &mut transcript, head_start, Transcript::all_ended).await;
            let in_time = !transcript.all_ended();
            let cancelled = Instant::now();
            if !matches!(received, Received::Closed | Received::TooLong) {
                let id = transcript.activations[0].ticket.id;
                running.multiplex().cancel(id);
                received = self.receive(&mut running, &mut transcript, grace, Transcript::all_ended).await;
            }
            let took = cancelled.elapsed();
            if received == Received::Complete {
                // The frame may come too late by now, and the process has to survive that.
                received = self.await_reaction(&mut running, &mut transcript, LATE_OUTPUT_GRACE..MAX_REACTION).await;
            }
            self.forward_log().await;
            if received != Received::Complete {
                let seen = format!("a cancelled activation had not ended {} later", millis(grace));
                let failure = self.blame(received, &transcript, running, Promise::Cancel, seen).await;
                return self.fail(name, &failure);
            }
            self.running = Some(running);
            // If stray frames came before `cancel` too, only the check of ids reports them.
            if let (Some((fault, line)), true) = (transcript.unexpected.first(), self.unexpected.is_empty()) {
                let check = self.failure(name, Finding::Frame { fault: *fault, line: line.to_vec() });
                return self.settle(check);
            }
            if in_time {
                let whole = transcript.activations[0].took().unwrap_or_default();
                slowest = slowest.max(Some((took, whole)));
            }
            self.record_strays(transcript);
        }
        if let Err(failure) = self.activate(name, &arguments).await {
            return self.fail(name, &failure);
        }
        let baseline = self.baseline.took.unwrap_or_default();
        let check = match slowest {
            None => Check::passed(name, "ended before it could read `cancel`; the next one is answered"),
            Some((took, whole)) if baseline >= MIN_MEASURABLE * 4 && whole >= baseline * 3 / 4 => {
                let seen = format!(
                    "a cancelled activation went on for {}, and took {} in all; without `cancel` it takes {}",
                    millis(took),
                    millis(whole),
                    millis(baseline)
                );
                Check::warning(name, Finding::Promise { promise: Promise::Cancel, seen })
            }
            Some((took, _)) => {
                Check::passed(name, "the cancelled activation ends; the next one is answered").took(took)
            }
        };
        self.settle(check);
    }

    /// Pauses an activation that streams, and resumes it.
    async fn check_pause(&mut self) {
        let name = Name::Pause;
        let arguments = self.arguments.base();
        let Some(mut running) = self.take_multiplex_for(name).await else { return };
        let mut transcript = Transcript::default();
        if let Err(failure) = self.send(&mut running, &mut transcript, &arguments) {
            return self.fail(name, &failure);
        }
        let (activation_timeout, id, started) =
            (self.activation_timeout(), transcript.activations[0].ticket.id, Instant::now());
        let streams = |transcript: &Transcript| transcript.all_ended() || transcript.activations[0].chunks > 0;
        let mut received = self.receive(&mut running, &mut transcript, activation_timeout, streams).await;
        let in_time = !transcript.all_ended();
        if received == Received::Complete {
            running.multiplex().pause(id);
            // A slow stream has long gaps between its chunks too.
            let quiet = QUIET.max(started.elapsed() * 3).min(MAX_REACTION);
            received = self.await_reaction(&mut running, &mut transcript, IN_TRANSIT..QUIET).await;
            if in_time && received == Received::Complete {
                match self.wait_for_quiet(&mut running, &mut transcript, quiet).await {
                    Ok(quiet) => received = quiet,
                    Err(seen) => {
                        self.kill_and_reap(running.guard.process()).await;
                        let check = self.failure(name, Finding::Promise { promise: Promise::Pause, seen });
                        return self.settle(check);
                    }
                }
            }
        }
        let seen = match (in_time, transcript.all_ended()) {
            (false, _) => "ended before it could read `pause`; the next one is answered",
            (true, true) => "ended before `resume`; the next one is answered",
            (true, false) => "no chunk came between `pause` and `resume`; the next one is answered",
        };
        if received == Received::Complete {
            running.multiplex().resume(id);
            received = self.receive(&mut running, &mut transcript, activation_timeout, Transcript::all_ended).await;
        }
        if received == Received::Complete {
            received = self.await_reaction(&mut running, &mut transcript, LATE_OUTPUT_GRACE..MAX_REACTION).await;
        }
        self.forward_log().await;
        if received != Received::Complete {
            let seen = format!("it did not go on within {} after `resume`", millis(activation_timeout));
            let failure = self.blame(received, &transcript, running, Promise::Pause, seen).await;
            return self.fail(name, &failure);
        }
        self.running = Some(running);
        self.record_strays(transcript);
        if let Err(failure) = self.activate(name, &arguments).await {
            return self.fail(name, &failure);
        }
        self.settle(Check::passed(name, seen));
    }

    /// Waits until no more chunks come; otherwise says how many came after `pause`.
    async fn wait_for_quiet(
        &mut self,
        running: &mut Running,
        transcript: &mut Transcript,
        quiet: Duration,
    ) -> Result<Received, String> {
        let count = |transcript: &Transcript| transcript.activations[0].chunks;
        let (asked, before) = (Instant::now(), count(transcript));
        loop {
            let (now, elapsed) = (count(transcript), asked.elapsed());
            // One chunk may have been on its way when the activation ended.
            let goes_on = if transcript.all_ended() { now > before + 1 } else { elapsed > MAX_UNTIL_QUIET };
            if goes_on {
                let late = now - before;
                return Err(format!("{late} chunks came in the {} after it had time to read `pause`", millis(elapsed)));
            }
            if transcript.all_ended() {
                return Ok(Received::Complete);
            }
            let progress = |transcript: &Transcript| transcript.all_ended() || count(transcript) > now;
            match self.receive(running, transcript, quiet, progress).await {
                Received::Complete => {}
                Received::TimedOut => return Ok(Received::Complete),
                gone => return Ok(gone),
            }
        }
    }

    /// Sends `stop` like the server: right before the end of the input.
    pub(super) async fn check_stop(&mut self) {
        let name = Name::Stop;
        if self.is_settled(name) {
            return;
        }
        let Some(mut running) = self.take_multiplex_for(name).await else { return };
        let within = self.plan.settings.stop_grace.0 / 2;
        self.log_capture.during(running.multiplex().send_stop(within)).await;
        let Running { guard, conversation } = running;
        let _results = conversation.into_results();
        let (ended, took) = self.wait_for_exit(guard.process()).await;
        self.forward_log().await;
        let finding = |seen| Finding::Promise { promise: Promise::Stop, seen };
        let check = match ended.map(|exit| exit.status) {
            Some(ExitStatus::Exited(0)) => Check::passed(name, "exited with status 0").took(took),
            Some(status) => self.failure(name, finding(format!("it {status} when `stop` came"))),
            None => {
                let seen = format!("it did not exit within {} after `stop` and the end of its input", millis(within));
                self.failure(name, finding(seen))
            }
        };
        self.settle(check);
        if ended.is_some() {
            self.judge_orphans().await;
        }
        self.kill_and_reap(guard.process()).await;
    }
}
