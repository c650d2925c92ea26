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

use super::activate::{SECOND_THOUGHTS, is_cut_off};
use super::answers::precise;
use super::arguments::{Seen, mark_in};
use super::dialogue::{Dialogue, Flight, Rest, Talk};
use super::finding::{self, Finding, FrameFault, Promise};
use super::report::{Check, Name, Verdict};
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
const TAKEN: &str = "it was taken as one";
/// The most that are sent at once, whatever was promised.
const AT_ONCE: usize = 8;
/// Numbers that a process comes to that lives long: of several digits, and of more than 32 bits. Cut
/// off, they are none that was sent before.
const LATE_NUMBERS: [u64; 2] = [1_000_003, 4_294_967_999];
/// An activation that takes less tells nothing about what happens beside it or in the middle of it.
const TELLING: Duration = Duration::from_millis(50);
/// How long an activation may go before it is cancelled.
const HEAD_START: Duration = Duration::from_millis(50);
/// How long a process may take to look at a frame.
const LOOK: Duration = Duration::from_secs(2);
const LOOK_STEP: Duration = Duration::from_millis(10);
/// How long what was written before a process knew that it is to pause may be on its way.
const ON_ITS_WAY: Duration = Duration::from_millis(50);
/// For how long no chunk may come before an activation counts as paused, and for how long that is awaited.
const QUIET: Duration = Duration::from_millis(250);
const UNTIL_QUIET: Duration = Duration::from_secs(1);

impl CheckRun<'_> {
    /// Settles at once what the handshake did not promise.
    pub(super) fn note_promises(&mut self) {
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
    pub(super) async fn keeps_its_promises(&mut self) {
        if self.report.protocol != Some("2") {
            return;
        }
        if self.one_each {
            for name in Name::OF_VERSION_2 {
                if !self.is_settled(name) && name != Name::Stop {
                    self.settle(Check::new(name, Verdict::NotReached, "its process answers only once"));
                }
            }
            return;
        }
        if !self.is_settled(Name::Ids) {
            self.sends_late_numbers_back().await;
        }
        if !self.is_settled(Name::Concurrency) {
            self.takes_several_at_once().await;
        }
        self.judge_chunks();
        if !self.is_settled(Name::Cancel) {
            self.heeds_cancel().await;
        }
        if !self.is_settled(Name::Pause) {
            self.heeds_pause().await;
        }
        if !self.is_settled(Name::Ids) {
            self.judge_misfits();
        }
    }

    /// Sends numbers as they come late in the life of a process, and listens for what comes late.
    async fn sends_late_numbers_back(&mut self) {
        let arguments = self.arguments.plain();
        for number in LATE_NUMBERS {
            if let Err(trouble) = self.ensure_running().await {
                return self.fail(Name::Ids, &trouble);
            }
            let running = self.running.as_mut().expect("it runs");
            if let Some(multiplex) = running.conversation.as_multiplex() {
                multiplex.number_from(number);
            }
            if let Err(trouble) = self.activate(Name::Ids, &arguments).await {
                return self.fail(Name::Ids, &trouble);
            }
        }
        let Ok(Some(mut running)) = self.take_streams().await else { return };
        let mut dialogue = Dialogue::default();
        self.listen(&mut running, &mut dialogue, SECOND_THOUGHTS, |_| false).await;
        self.running = Some(running);
        self.note_beside(dialogue);
    }

    fn judge_misfits(&mut self) {
        let check = if let Some((fault, line)) = self.misfits.first() {
            self.failure(Name::Ids, Finding::Frame { fault: *fault, line: line.to_vec() })
        } else {
            let [.., longest] = LATE_NUMBERS;
            Check::passed(
                Name::Ids,
                format!("each frame is its activation's, each has one end; up to number {longest}"),
            )
        };
        self.settle(check);
    }

    /// Sends as many as were promised, within reason.
    async fn takes_several_at_once(&mut self) {
        let name = Name::Concurrency;
        let Some(mut running) = self.take_streams_for(name).await else { return };
        let promised = running.multiplex().promises().concurrency;
        let count = promised.min(AT_ONCE);
        let promise = Promise::Concurrency(promised);
        let pid = running.guard.process().pid;
        let worked_before = orphans::cpu_time(pid);
        let mut dialogue = Dialogue::default();
        let begun = Instant::now();
        for number in 0..count {
            let arguments = self.arguments.numbered(number);
            if let Err(trouble) = self.send(&mut running, &mut dialogue, &arguments) {
                return self.fail(name, &trouble);
            }
        }
        let rest = self.listen(&mut running, &mut dialogue, self.patience(), Dialogue::is_over).await;
        let took = begun.elapsed();
        let worked = orphans::cpu_time(pid).saturating_sub(worked_before);
        self.hear().await;
        if rest != Rest::Enough {
            let seen = format!("of {count} at once {} had not ended after {}", dialogue.open(), millis(took));
            let trouble = self.blame(rest, &dialogue, running, promise, seen).await;
            return self.fail(name, &trouble);
        }
        self.running = Some(running);
        let check = match self.judge_several(&dialogue.flights, promise) {
            Err(trouble) => {
                self.note_beside(dialogue);
                return self.fail(name, &trouble);
            }
            Ok(own) => {
                let (check, side_by_side) = self.judge_order(&dialogue.flights, promise, took, worked);
                check.unwrap_or_else(|| Check::passed(name, format!("{count} at once, {own}; {side_by_side}")))
            }
        };
        self.note_beside(dialogue);
        self.settle(check.took(took));
    }

    /// Whether each of several got what is its own.
    fn judge_several(&self, flights: &[Flight], promise: Promise) -> Result<&'static str, Failure> {
        let mut own = 0;
        let mut failed = Vec::new();
        for (number, flight) in flights.iter().enumerate() {
            match flight.answer() {
                Some(Err(problem)) => {
                    return Err(Failure::Error(Error::Run(RunError::BadAnswer { problem, exit: None })));
                }
                Some(Ok(answer)) if is_failure(&answer) => failed.push(answer),
                _ => {}
            }
            let text = flight.text();
            match mark_in(&text, number) {
                Seen::Intact => own += 1,
                Seen::Nothing => {}
                Seen::Mangled(_) => {
                    let fault = FrameFault::Foreign { id: flight.ticket.id };
                    return Err(Failure::Finding(Finding::Frame { fault, line: text }));
                }
            }
        }
        if let Some(answer) = failed.first()
            && self.alone.failures == 0
        {
            let seen = format!(
                "{} of {} at once failed, and none of those that were alone: {}",
                failed.len(),
                flights.len(),
                excerpt(answer)
            );
            return Err(Failure::Finding(Finding::Promise { promise, seen }));
        }
        Ok(if own == flights.len() { "each got its own answer" } else { "all answered" })
    }

    /// Whether they went side by side: a warning if they certainly did not, and what can be said.
    fn judge_order(
        &self,
        flights: &[Flight],
        promise: Promise,
        took: Duration,
        worked: Duration,
    ) -> (Option<Check>, String) {
        let count = u32::try_from(flights.len()).unwrap_or(u32::MAX);
        let Some(alone) = self.alone.took else { return (None, "nothing to compare with".into()) };
        let in_turn = took >= alone * count * 3 / 4;
        if overlap(flights) || (alone >= TELLING && !in_turn) {
            return (None, "side by side".into());
        }
        if alone < TELLING {
            return (None, format!("one takes {}, too quick to tell their order", precise(alone)));
        }
        if worked > took / 10 {
            // They may wait for a core, and not for each other. On a busy machine that is a small part.
            return (None, "it was at work all the time".into());
        }
        let seen = format!(
            "it takes one after the other: {count} at once took {}, one alone {}, and it was at work for {} of that",
            millis(took),
            millis(alone),
            millis(worked)
        );
        (Some(Check::warning(Name::Concurrency, Finding::Promise { promise, seen })), String::new())
    }

    /// Whether chunks came as they were written.
    fn judge_chunks(&mut self) {
        let name = Name::Chunks;
        let Baseline { took, chunks, at_once, streamed, .. } = self.alone;
        let took = took.unwrap_or_default();
        let check = if streamed == 0 {
            Check::new(name, Verdict::NotApplicable, "none came: it does not stream with these arguments")
        } else if at_once < streamed || chunks < 2 {
            Check::passed(name, format!("up to {chunks}, and they come before the end"))
        } else if took < TELLING * 2 {
            Check::passed(name, format!("up to {chunks}; it is too quick to tell whether they wait for the end"))
        } else {
            let programs = self.running.as_ref().map(|running| orphans::programs(running.guard.process().pid));
            let finding = Finding::NotFlushed {
                what: "chunks",
                when: format!("together with the end, {} after the activation was sent", millis(took)),
                line: std::mem::take(&mut self.alone.sample),
                cure: finding::flush_cure(&programs.unwrap_or_default(), &self.launch.program),
            };
            Check::warning(name, finding)
        };
        self.settle(check);
    }

    /// Cancels an activation that has begun, and one that has hardly.
    async fn heeds_cancel(&mut self) {
        let name = Name::Cancel;
        let arguments = self.arguments.plain();
        let grace = self.plan.settings.stop_grace.0;
        let mut slowest = None;
        for head_start in [HEAD_START, Duration::ZERO] {
            let Some(mut running) = self.take_streams_for(name).await else { return };
            let mut dialogue = Dialogue::default();
            if let Err(trouble) = self.send(&mut running, &mut dialogue, &arguments) {
                return self.fail(name, &trouble);
            }
            let mut rest = self.listen(&mut running, &mut dialogue, head_start, Dialogue::is_over).await;
            let in_time = !dialogue.is_over();
            let cancelled = Instant::now();
            if !matches!(rest, Rest::Gone | Rest::TooLong) {
                let id = dialogue.flights[0].ticket.id;
                running.multiplex().cancel(id);
                rest = self.listen(&mut running, &mut dialogue, grace, Dialogue::is_over).await;
            }
            let took = cancelled.elapsed();
            if rest == Rest::Enough {
                // What comes for it now comes too late; and the process has to survive it.
                rest = self.let_it_look(&mut running, &mut dialogue, SECOND_THOUGHTS..LOOK).await;
            }
            self.hear().await;
            if rest != Rest::Enough {
                let seen = format!("an activation that was cancelled had not ended {} later", millis(grace));
                let trouble = self.blame(rest, &dialogue, running, Promise::Cancel, seen).await;
                return self.fail(name, &trouble);
            }
            self.running = Some(running);
            // One that writes too much anyway is told that once.
            if let (Some((fault, line)), true) = (dialogue.misfits.first(), self.misfits.is_empty()) {
                let check = self.failure(name, Finding::Frame { fault: *fault, line: line.to_vec() });
                return self.settle(check);
            }
            if in_time {
                let whole = dialogue.flights[0].took().unwrap_or_default();
                slowest = slowest.max(Some((took, whole)));
            }
            self.note_beside(dialogue);
        }
        if let Err(trouble) = self.activate(name, &arguments).await {
            return self.fail(name, &trouble);
        }
        let alone = self.alone.took.unwrap_or_default();
        let check = match slowest {
            None => Check::passed(name, "ended before it could hear of it; the next one is answered"),
            Some((took, whole)) if alone >= TELLING * 4 && whole >= alone * 3 / 4 => {
                let seen = format!(
                    "an activation that was cancelled went on for {}, and took {} in all; without that it takes {}",
                    millis(took),
                    millis(whole),
                    millis(alone)
                );
                Check::warning(name, Finding::Promise { promise: Promise::Cancel, seen })
            }
            Some((took, _)) => Check::passed(name, "ends what it is to end; the next one is answered").took(took),
        };
        self.settle(check);
    }

    /// Pauses an activation that streams, and has it go on.
    async fn heeds_pause(&mut self) {
        let name = Name::Pause;
        let arguments = self.arguments.plain();
        let Some(mut running) = self.take_streams_for(name).await else { return };
        let mut dialogue = Dialogue::default();
        if let Err(trouble) = self.send(&mut running, &mut dialogue, &arguments) {
            return self.fail(name, &trouble);
        }
        let (patience, id, begun) = (self.patience(), dialogue.flights[0].ticket.id, Instant::now());
        let streams = |dialogue: &Dialogue| dialogue.is_over() || dialogue.flights[0].chunks > 0;
        let mut rest = self.listen(&mut running, &mut dialogue, patience, streams).await;
        let in_time = !dialogue.is_over();
        if rest == Rest::Enough {
            running.multiplex().pause(id);
            // A stream that is slow by itself is quiet for a while, too.
            let quiet = QUIET.max(begun.elapsed() * 3).min(LOOK);
            rest = self.let_it_look(&mut running, &mut dialogue, ON_ITS_WAY..QUIET).await;
            if in_time && rest == Rest::Enough {
                match self.wait_for_quiet(&mut running, &mut dialogue, quiet).await {
                    Ok(quiet) => rest = quiet,
                    Err(seen) => {
                        self.bury(running.guard.process()).await;
                        let check = self.failure(name, Finding::Promise { promise: Promise::Pause, seen });
                        return self.settle(check);
                    }
                }
            }
        }
        let seen = match (in_time, dialogue.is_over()) {
            (false, _) => "ended before it could hear of it; the next one is answered",
            (true, true) => "ended before that could be seen; the next one is answered",
            (true, false) => "no chunk came until it was to go on; the next one is answered",
        };
        if rest == Rest::Enough {
            running.multiplex().resume(id);
            rest = self.listen(&mut running, &mut dialogue, patience, Dialogue::is_over).await;
        }
        if rest == Rest::Enough {
            rest = self.let_it_look(&mut running, &mut dialogue, SECOND_THOUGHTS..LOOK).await;
        }
        self.hear().await;
        if rest != Rest::Enough {
            let seen = format!("it did not go on within {} after it was to resume", millis(patience));
            let trouble = self.blame(rest, &dialogue, running, Promise::Pause, seen).await;
            return self.fail(name, &trouble);
        }
        self.running = Some(running);
        self.note_beside(dialogue);
        if let Err(trouble) = self.activate(name, &arguments).await {
            return self.fail(name, &trouble);
        }
        self.settle(Check::passed(name, seen));
    }

    /// Waits until no chunk comes any more; or says how many came that should not have.
    async fn wait_for_quiet(
        &mut self,
        running: &mut Running,
        dialogue: &mut Dialogue,
        quiet: Duration,
    ) -> Result<Rest, String> {
        let count = |dialogue: &Dialogue| dialogue.flights[0].chunks;
        let (asked, before) = (Instant::now(), count(dialogue));
        loop {
            let (now, elapsed) = (count(dialogue), asked.elapsed());
            // One may have been on its way when it ended.
            let goes_on = if dialogue.is_over() { now > before + 1 } else { elapsed > UNTIL_QUIET };
            if goes_on {
                let late = now - before;
                return Err(format!(
                    "{late} chunks came in the {} after it was to pause and could know it",
                    millis(elapsed)
                ));
            }
            if dialogue.is_over() {
                return Ok(Rest::Enough);
            }
            let progress = |dialogue: &Dialogue| dialogue.is_over() || count(dialogue) > now;
            match self.listen(running, dialogue, quiet, progress).await {
                Rest::Enough => {}
                Rest::TimeUp => return Ok(Rest::Enough),
                gone => return Ok(gone),
            }
        }
    }

    /// Tells a process that its end is near, as the server does: right before the end of its input.
    pub(super) async fn ends_when_it_is_told(&mut self) {
        let name = Name::Stop;
        if self.is_settled(name) {
            return;
        }
        let Some(mut running) = self.take_streams_for(name).await else { return };
        let within = self.plan.settings.stop_grace.0 / 2;
        self.log_capture.during(running.multiplex().send_stop(within)).await;
        let Running { guard, conversation } = running;
        let _results = conversation.into_results();
        let (ended, took) = self.wait_for_exit(guard.process()).await;
        self.hear().await;
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
        self.bury(guard.process()).await;
    }

    /// One activation, alone in flight.
    pub(super) async fn activate_streams(&mut self, name: Name, activation: Activation) -> Result<Answered, Failure> {
        // As the server does: a process that ended before an activation could reach it takes nothing
        // with it.
        for fresh in [false, true] {
            let Some(mut running) = self.take_streams().await? else {
                // It has changed its mind about the protocol.
                return self.activate_pipe_loop(activation).await;
            };
            let mut dialogue = Dialogue::default();
            self.begin(&mut running, &mut dialogue, &activation);
            let rest = self.listen(&mut running, &mut dialogue, self.patience(), Dialogue::is_over).await;
            let flight = &dialogue.flights[0];
            match (rest, flight.answer()) {
                (Rest::Enough, Some(answer)) => {
                    let took = flight.took().expect("it has ended");
                    self.running = Some(running);
                    self.note_pace(name, flight);
                    self.note_beside(dialogue);
                    return match answer {
                        Ok(answer) => Ok(Answered { answer, took }),
                        Err(problem) => Err(Failure::Error(Error::Run(RunError::BadAnswer { problem, exit: None }))),
                    };
                }
                (Rest::Gone, _) if !fresh && self.is_untouched(&mut running, flight).await => {
                    self.bury(running.guard.process()).await;
                }
                _ => {
                    let after = flight.begun.elapsed();
                    return Err(match self.explain(rest, &dialogue, running).await {
                        Ok(trouble) => trouble,
                        Err(running) if flight.chunks > 0 => {
                            self.bury(running.guard.process()).await;
                            Failure::Endless { after, chunks: flight.chunks }
                        }
                        Err(running) => self.look_behind(after, running).await,
                    });
                }
            }
        }
        unreachable!("a fresh process that is gone is told")
    }

    async fn is_untouched(&self, running: &mut Running, flight: &Flight) -> bool {
        running.multiplex().is_untouched(flight.ticket) && wait_for_end(running.guard.process()).await
    }

    /// The running process if it speaks version 2, started if it has to be.
    async fn take_streams(&mut self) -> Result<Option<Running>, Failure> {
        self.ensure_running().await?;
        let speaks = |running: &mut Running| matches!(running.conversation, Conversation::Multiplex(_));
        Ok(self.running.take_if(speaks))
    }

    /// The same for a check, which is settled if there is none. What is heard from then on is its own.
    async fn take_streams_for(&mut self, name: Name) -> Option<Running> {
        match self.take_streams().await {
            Ok(Some(running)) => {
                self.log_capture.forget();
                return Some(running);
            }
            Ok(None) => self.settle(Check::new(name, Verdict::NotReached, "")),
            Err(trouble) => self.fail(name, &trouble),
        }
        None
    }

    fn begin(&mut self, running: &mut Running, dialogue: &mut Dialogue, activation: &Activation) {
        let multiplex = running.multiplex();
        multiplex.bound(self.plan.settings.max_result.0);
        if dialogue.flights.is_empty() {
            dialogue.hear_strays(multiplex, &self.given);
        }
        dialogue.send(multiplex, &mut self.given, activation);
    }

    fn send(&mut self, running: &mut Running, dialogue: &mut Dialogue, arguments: &Value) -> Result<(), Failure> {
        let text = arguments.to_string();
        let activation = Activation::of_arguments(text.as_bytes()).map_err(Failure::Error)?;
        self.begin(running, dialogue, &activation);
        Ok(())
    }

    async fn listen(
        &mut self,
        running: &mut Running,
        dialogue: &mut Dialogue,
        within: Duration,
        enough: impl Fn(&Dialogue) -> bool,
    ) -> Rest {
        let Running { guard, conversation } = running;
        let multiplex = conversation.as_multiplex().expect(TAKEN);
        let talk = Talk { multiplex, given: &self.given, process: guard.process(), logs: &mut self.logs };
        let limit_bytes = self.plan.settings.max_result.0;
        self.log_capture.during(dialogue.listen(talk, limit_bytes, within, enough)).await
    }

    /// Listens until a process has certainly seen what it was sent, and a little longer.
    async fn let_it_look(&mut self, running: &mut Running, dialogue: &mut Dialogue, within: Range<Duration>) -> Rest {
        let begun = Instant::now();
        loop {
            match self.listen(running, dialogue, LOOK_STEP, |_| false).await {
                Rest::TimeUp => {}
                other => return other,
            }
            let waits = running.conversation.waits_for_input(running.guard.process());
            let elapsed = begun.elapsed();
            if elapsed >= within.end || (elapsed >= within.start && waits != Some(false)) {
                return Rest::Enough;
            }
        }
    }

    /// Why something has not ended, with the process buried; the process, if nothing shows why.
    async fn explain(&mut self, rest: Rest, dialogue: &Dialogue, mut running: Running) -> Result<Failure, Running> {
        let trouble = match rest {
            Rest::TooLong => {
                Failure::Error(Error::Run(RunError::AnswerTooLong { limit_bytes: self.plan.settings.max_result.0 }))
            }
            Rest::Gone => {
                let partial = running.multiplex().partial().to_vec();
                let channel = running.conversation.channel();
                let why = gone(running.guard.process(), partial, channel, &mut self.logs);
                Failure::Error(self.log_capture.during(why).await)
            }
            Rest::Enough | Rest::TimeUp => {
                let alone = running.multiplex().promises().concurrency == 1;
                match what_was_lost(dialogue, alone) {
                    Some(trouble) => trouble,
                    None => return Err(running),
                }
            }
        };
        self.bury(running.guard.process()).await;
        Ok(trouble)
    }

    /// Why something has not ended: if nothing shows why, then a promise is not kept.
    async fn blame(
        &mut self,
        rest: Rest,
        dialogue: &Dialogue,
        running: Running,
        promise: Promise,
        seen: String,
    ) -> Failure {
        match self.explain(rest, dialogue, running).await {
            Ok(trouble) => trouble,
            Err(running) => {
                self.bury(running.guard.process()).await;
                Failure::Finding(Finding::Promise { promise, seen })
            }
        }
    }

    /// Keeps what came beside answers.
    fn note_beside(&mut self, dialogue: Dialogue) {
        let Dialogue { misfits, noise, hollow, .. } = dialogue;
        self.misfits.extend(misfits);
        self.strays.extend(noise.into_iter().chain(hollow).map(|(_, line)| line.to_vec()));
    }

    fn note_pace(&mut self, name: Name, flight: &Flight) {
        if name == Name::Sequence && flight.chunks > 0 {
            self.alone.streamed += 1;
            self.alone.chunks = self.alone.chunks.max(flight.chunks);
            self.alone.at_once += usize::from(flight.came_at_once());
            self.alone.sample = flight.lines.split(|byte| *byte == b'\n').next().unwrap_or_default().to_vec();
        }
    }
}

impl Running {
    /// What is said to it, once [`CheckRun::take_streams`] has given it out.
    fn multiplex(&mut self) -> &mut Multiplex {
        self.conversation.as_multiplex().expect(TAKEN)
    }
}

/// Why no answer was recognised, of what came instead.
fn what_was_lost(dialogue: &Dialogue, alone: bool) -> Option<Failure> {
    let bad_frame = |(problem, line): &(String, bytes::Bytes)| {
        let line = String::from_utf8_lossy(line).into_owned();
        Failure::Error(Error::Run(RunError::BadFrame { problem: problem.clone(), line }))
    };
    let misfit = |(fault, line): &(FrameFault, bytes::Bytes)| {
        Failure::Finding(Finding::Frame { fault: *fault, line: line.to_vec() })
    };
    let is_unknown = |(fault, _): &&(FrameFault, _)| !matches!(fault, FrameFault::Behind { .. });
    // Nothing came for those that are open: what looks like one too many for another may have been it.
    let last = dialogue.flights.last().map(|flight| flight.ticket.id);
    let behind = |(_, line): &(FrameFault, bytes::Bytes)| misfit(&(FrameFault::Unknown { given: last }, line.clone()));
    let noise = dialogue.noise.first().filter(|(_, line)| alone || is_cut_off(line));
    dialogue
        .hollow
        .as_ref()
        .map(bad_frame)
        .or_else(|| dialogue.misfits.iter().find(is_unknown).map(misfit))
        .or_else(|| noise.map(bad_frame))
        .or_else(|| dialogue.misfits.first().map(behind))
}

/// Whether one of them said something before another, which had come to its end later, had ended.
fn overlap(flights: &[Flight]) -> bool {
    let spans: Vec<_> = flights.iter().filter_map(|flight| Some((flight.first?, flight.ended.as_ref()?.0))).collect();
    spans.iter().any(|(_, ended)| spans.iter().any(|(first, later)| first < ended && ended < later))
}

/// Whether an action says in its answer that it failed.
pub(super) fn is_failure(answer: &Answer) -> bool {
    serde_json::from_slice::<Value>(answer).is_ok_and(|answer| answer.get("error").is_some())
}
