//! The checks of version 2: numbers, and what a handshake promises.
//!
//! An unknown action cannot be told to take its time, to stream or to wait. So each promise is tried
//! with the arguments that there are, and what cannot be told from that is said to be so: it passes,
//! with words. What does show is the fault that matters: an action that does not survive a frame
//! which it promised to understand, or does not do what it says there.

use std::ops::Range;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::activation::{Activation, Answer};
use crate::error::{Error, RunError};
use crate::process::{ExitStatus, orphans};
use crate::protocol::conversation::Conversation;
use crate::protocol::multiplex::{Multiplex, Promises};
use crate::text::{excerpt, millis};

use super::activate::{LATE_OUTPUT_GRACE, is_cut_off};
use super::answers::precise;
use super::arguments::{Echo, mark_echo};
use super::finding::{self, Finding, FrameFault, Promise};
use super::report::{Check, Name, Verdict};
use super::transcript::{Peer, Received, SentActivation, Transcript};
use super::{Answered, CheckRun, Failure, Running};
use crate::action::worker::{gone, wait_for_end};

/// How activations went that were alone in flight.
#[derive(Debug, Default)]
pub(super) struct Baseline {
    /// How long one of those in a row took, on average.
    pub(super) took: Option<Duration>,
    /// How many of those in a row failed, by their own word.
    pub(super) failures: usize,
    /// The most chunks that one of them had.
    chunks: usize,
    /// How many of them had several chunks, all of which came together with the end.
    at_once: usize,
    /// How many of them had chunks.
    streamed: usize,
    /// A chunk, to be shown.
    sample: Vec<u8>,
}

/// Why a conversation is one of version 2.
const CHECKED_VERSION: &str = "it was taken as one";
/// The most that are sent at once, whatever was promised.
const MAX_AT_ONCE: usize = 8;
/// Numbers that a process comes to that lives long: of several digits, and of more than 32 bits. Cut
/// off, they are none that was sent before.
const LARGE_IDS: [u64; 2] = [1_000_003, 4_294_967_999];
/// An activation that takes less tells nothing about what happens beside it or in the middle of it.
const MIN_MEASURABLE: Duration = Duration::from_millis(50);
/// How long an activation may go before it is cancelled.
const CANCEL_DELAY: Duration = Duration::from_millis(50);
/// How long a process may take to look at a frame.
const MAX_REACTION: Duration = Duration::from_secs(2);
const REACTION_POLL: Duration = Duration::from_millis(10);
/// How long what was written before a process knew that it is to pause may be on its way.
const IN_TRANSIT: Duration = Duration::from_millis(50);
/// For how long no chunk may come before an activation counts as paused, and for how long that is awaited.
const QUIET: Duration = Duration::from_millis(250);
const MAX_UNTIL_QUIET: Duration = Duration::from_secs(1);

impl CheckRun<'_> {
    /// Settles at once what the handshake did not promise.
    pub(super) fn skip_unpromised(&mut self) {
        let Some(promises) = self.promises() else {
            let seen = format!(
                "not in {}",
                match self.report.protocol {
                    Some("1") => "version 1",
                    _ => "the dialect",
                }
            );
            for name in Name::OF_VERSION_2 {
                self.settle(Check::new(name, Verdict::NotApplicable, seen.as_str()));
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

    /// The checks of what a handshake of version 2 promises. It answers one at a time.
    pub(super) async fn check_promises(&mut self) {
        if self.report.protocol != Some("2") {
            return;
        }
        if self.one_activation_each {
            for name in Name::OF_VERSION_2 {
                if !self.is_settled(name) && name != Name::Stop {
                    self.settle(Check::new(name, Verdict::NotReached, "its process answers only once"));
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

    /// Sends numbers as they come late in the life of a process, and listens for what comes late.
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
                format!("each frame is its activation's, each has one end; up to number {longest}"),
            )
        };
        self.settle(check);
    }

    /// Sends as many as were promised, within reason.
    async fn check_concurrency(&mut self) {
        let name = Name::Concurrency;
        let Some(mut running) = self.take_multiplex_for(name).await else { return };
        let promised = running.multiplex().promises().concurrency;
        let count = promised.min(MAX_AT_ONCE);
        let promise = Promise::Concurrency(promised);
        let pid = running.guard.process().pid;
        let cpu_time_before = orphans::time_at_work(pid);
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
        let cpu_time = orphans::time_at_work(pid).saturating_sub(cpu_time_before);
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

    /// Whether each of several got what is its own.
    fn judge_answers(&self, activations: &[SentActivation], promise: Promise) -> Result<&'static str, Failure> {
        let mut own = 0;
        let mut failed = Vec::new();
        for (number, sent) in activations.iter().enumerate() {
            match sent.answer() {
                Some(Err(problem)) => {
                    return Err(Failure::Error(Error::Run(RunError::BadAnswer { problem, ending: None })));
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
                "{} of {} at once failed, and none of those that were alone: {}",
                failed.len(),
                activations.len(),
                excerpt(answer)
            );
            return Err(Failure::Finding(Finding::Promise { promise, seen }));
        }
        Ok(if own == activations.len() { "each got its own answer" } else { "all answered" })
    }

    /// Whether they went side by side: a warning if they certainly did not, and what can be said.
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
            return (None, "side by side".into());
        }
        if baseline < MIN_MEASURABLE {
            return (None, format!("one takes {}, too quick to tell their order", precise(baseline)));
        }
        if cpu_time > took / 10 {
            // They may wait for a core, and not for each other. On a busy machine that is a small part.
            return (None, "it was at work all the time".into());
        }
        let seen = format!(
            "it takes one after the other: {count} at once took {}, one alone {}, and it was at work for {} of that",
            millis(took),
            millis(baseline),
            millis(cpu_time)
        );
        (Some(Check::warning(Name::Concurrency, Finding::Promise { promise, seen })), String::new())
    }

    /// Whether chunks came as they were written.
    fn judge_chunks(&mut self) {
        let name = Name::Chunks;
        let Baseline { took, chunks, at_once, streamed, .. } = self.baseline;
        let took = took.unwrap_or_default();
        let check = if streamed == 0 {
            Check::new(name, Verdict::NotApplicable, "none came: it does not stream with these arguments")
        } else if at_once < streamed || chunks < 2 {
            Check::passed(name, format!("up to {chunks}, and they come before the end"))
        } else if took < MIN_MEASURABLE * 2 {
            Check::passed(name, format!("up to {chunks}; it is too quick to tell whether they wait for the end"))
        } else {
            let programs = self.running.as_ref().map(|running| orphans::programs(running.guard.process().pid));
            let finding = Finding::NotFlushed {
                what: "chunks",
                when: format!("together with the end, {} after the activation was sent", millis(took)),
                line: std::mem::take(&mut self.baseline.sample),
                cure: finding::flush_cure(&programs.unwrap_or_default(), &self.launch.program),
            };
            Check::warning(name, finding)
        };
        self.settle(check);
    }

    /// Cancels an activation that has begun, and one that has hardly.
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
                // What comes for it now comes too late; and the process has to survive it.
                received = self.await_reaction(&mut running, &mut transcript, LATE_OUTPUT_GRACE..MAX_REACTION).await;
            }
            self.forward_log().await;
            if received != Received::Complete {
                let seen = format!("an activation that was cancelled had not ended {} later", millis(grace));
                let failure = self.blame(received, &transcript, running, Promise::Cancel, seen).await;
                return self.fail(name, &failure);
            }
            self.running = Some(running);
            // One that writes too much anyway is told that once.
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
            None => Check::passed(name, "ended before it could hear of it; the next one is answered"),
            Some((took, whole)) if baseline >= MIN_MEASURABLE * 4 && whole >= baseline * 3 / 4 => {
                let seen = format!(
                    "an activation that was cancelled went on for {}, and took {} in all; without that it takes {}",
                    millis(took),
                    millis(whole),
                    millis(baseline)
                );
                Check::warning(name, Finding::Promise { promise: Promise::Cancel, seen })
            }
            Some((took, _)) => Check::passed(name, "ends what it is to end; the next one is answered").took(took),
        };
        self.settle(check);
    }

    /// Pauses an activation that streams, and has it go on.
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
            // A stream that is slow by itself is quiet for a while, too.
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
            (false, _) => "ended before it could hear of it; the next one is answered",
            (true, true) => "ended before that could be seen; the next one is answered",
            (true, false) => "no chunk came until it was to go on; the next one is answered",
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
            let seen = format!("it did not go on within {} after it was to resume", millis(activation_timeout));
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

    /// Waits until no chunk comes any more; or says how many came that should not have.
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
            // One may have been on its way when it ended.
            let goes_on = if transcript.all_ended() { now > before + 1 } else { elapsed > MAX_UNTIL_QUIET };
            if goes_on {
                let late = now - before;
                return Err(format!(
                    "{late} chunks came in the {} after it was to pause and could know it",
                    millis(elapsed)
                ));
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

    /// Tells a process that its end is near, as the server does: right before the end of its input.
    pub(super) async fn check_stop(&mut self) {
        let name = Name::Stop;
        if self.is_settled(name) {
            return;
        }
        let Some(mut running) = self.take_multiplex_for(name).await else { return };
        let within = self.plan.settings.stop_grace.0 / 2;
        self.log_capture.during(running.multiplex().say_stop(within)).await;
        let Running { guard, conversation } = running;
        let _results = conversation.into_results();
        let (ended, took) = self.wait_for_exit(guard.process()).await;
        self.forward_log().await;
        let finding = |seen| Finding::Promise { promise: Promise::Stop, seen };
        let check = match ended.map(|exit| exit.status) {
            Some(ExitStatus::Exited(0)) => Check::passed(name, "ended with status 0").took(took),
            Some(status) => self.failure(name, finding(format!("it {status} when `stop` came"))),
            None => {
                let seen = format!("it did not end within {} after `stop` and the end of its input", millis(within));
                self.failure(name, finding(seen))
            }
        };
        self.settle(check);
        if ended.is_some() {
            self.judge_orphans().await;
        }
        self.kill_and_reap(guard.process()).await;
    }

    /// One activation, alone in flight.
    pub(super) async fn activate_multiplex(&mut self, name: Name, activation: Activation) -> Result<Answered, Failure> {
        // As the server does: a process that ended before an activation could reach it takes nothing
        // with it.
        for fresh in [false, true] {
            let Some(mut running) = self.take_multiplex().await? else {
                // It has changed its mind about the protocol.
                return self.activate_pipe_loop(activation).await;
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
                        Err(problem) => Err(Failure::Error(Error::Run(RunError::BadAnswer { problem, ending: None }))),
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
        unreachable!("a fresh process that is gone is told")
    }

    async fn is_untouched(&self, running: &mut Running, sent: &SentActivation) -> bool {
        running.multiplex().is_untouched(sent.ticket) && wait_for_end(running.guard.process()).await
    }

    /// The running process if it speaks version 2, started if it has to be.
    async fn take_multiplex(&mut self) -> Result<Option<Running>, Failure> {
        self.ensure_running().await?;
        let speaks = |running: &mut Running| matches!(running.conversation, Conversation::Multiplex(_));
        Ok(self.running.take_if(speaks))
    }

    /// The same for a check, which is settled if there is none. What is heard from then on is its own.
    async fn take_multiplex_for(&mut self, name: Name) -> Option<Running> {
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

    fn begin(&mut self, running: &mut Running, transcript: &mut Transcript, activation: &Activation) {
        let multiplex = running.multiplex();
        multiplex.bound(self.plan.settings.max_result.0);
        if transcript.activations.is_empty() {
            transcript.collect_strays(multiplex, &self.sent_ids);
        }
        transcript.send(multiplex, &mut self.sent_ids, activation);
    }

    fn send(&mut self, running: &mut Running, transcript: &mut Transcript, arguments: &Value) -> Result<(), Failure> {
        let text = arguments.to_string();
        let activation = Activation::of_arguments(text.as_bytes()).map_err(Failure::Error)?;
        self.begin(running, transcript, &activation);
        Ok(())
    }

    async fn receive(
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

    /// Listens until a process has certainly seen what it was sent, and a little longer.
    async fn await_reaction(
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

    /// Why something has not ended, with the process buried; the process, if nothing shows why.
    async fn diagnose(
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
                let channel = running.conversation.channel_name();
                let why = gone(running.guard.process(), partial, channel, &mut self.logs);
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

    /// Why something has not ended: if nothing shows why, then a promise is not kept.
    async fn blame(
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

    /// Keeps what came beside answers.
    fn record_strays(&mut self, transcript: Transcript) {
        let Transcript { unexpected, non_frames, malformed, .. } = transcript;
        self.unexpected.extend(unexpected);
        self.strays.extend(non_frames.into_iter().chain(malformed).map(|(_, line)| line.to_vec()));
    }

    fn record_chunks(&mut self, name: Name, sent: &SentActivation) {
        if name == Name::Sequence && sent.chunks > 0 {
            self.baseline.streamed += 1;
            self.baseline.chunks = self.baseline.chunks.max(sent.chunks);
            self.baseline.at_once += usize::from(sent.came_at_once());
            self.baseline.sample = sent.lines.split(|byte| *byte == b'\n').next().unwrap_or_default().to_vec();
        }
    }
}

impl Running {
    /// What is said to it, once [`CheckRun::take_streams`] has given it out.
    fn multiplex(&mut self) -> &mut Multiplex {
        self.conversation.as_multiplex().expect(CHECKED_VERSION)
    }
}

/// Why no answer was recognised, of what came instead.
fn unrecognised_answer(transcript: &Transcript, one_at_a_time: bool) -> Option<Failure> {
    let bad_frame = |(problem, line): &(String, bytes::Bytes)| {
        let line = String::from_utf8_lossy(line).into_owned();
        Failure::Error(Error::Run(RunError::BadFrame { problem: problem.clone(), line }))
    };
    let unexpected_frame = |(fault, line): &(FrameFault, bytes::Bytes)| {
        Failure::Finding(Finding::Frame { fault: *fault, line: line.to_vec() })
    };
    let is_unknown = |(fault, _): &&(FrameFault, _)| !matches!(fault, FrameFault::AfterEnd { .. });
    // Nothing came for those that are open: what looks like one too many for another may have been it.
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

/// Whether one of them said something before another, which had come to its end later, had ended.
fn overlap(activations: &[SentActivation]) -> bool {
    let spans: Vec<_> = activations.iter().filter_map(|sent| Some((sent.first?, sent.ended.as_ref()?.0))).collect();
    spans.iter().any(|(_, ended)| spans.iter().any(|(first, later)| first < ended && ended < later))
}

/// Whether an action says in its answer that it failed.
pub(super) fn is_failure(answer: &Answer) -> bool {
    serde_json::from_slice::<Value>(answer).is_ok_and(|answer| answer.get("error").is_some())
}
