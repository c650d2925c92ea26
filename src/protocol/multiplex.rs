//! Version 2 of the protocol: frames, with several activations in flight over one pair of pipes.
//!
//! Knows frames, ids and bounds; knows no caller, no time and no pid. What a frame means for whoever
//! waits is the worker's (`action/worker/concurrent.rs`).
//!
//! # Theory of operation
//! One [`Multiplex`] holds one conversation. [`Multiplex::begin`] gives an activation the next number
//! and queues its `run` frame; [`Multiplex::step`] moves bytes in both directions; [`Multiplex::take`]
//! says what the next frame means, as an [`Event`]. The `Ledger` behind it is pure: a list of numbers
//! in flight. A number is given once in the life of a process. It leaves the list with the first
//! `result`, `error` or `end` of its own, and with nothing else: also an activation whose caller left,
//! or was told an error, keeps its place until the process has ended it, for only then is it certain
//! that nothing more of it comes, and a process never has more in flight than it asked for.
//!
//! So a frame is another activation's only if the process writes another one's number. What has none
//! belongs, where at most one activation is in flight, to that one. There a frame too many could be
//! taken for the next one's, as in version 1, and there the rules of version 1 hold: what came before
//! the activation was read is a stray, and a process that has written one is not trusted with another.
//!
//! One pipe carries all streams, so it cannot be left unread because of one slow caller while others
//! wait. Baseline in flight an activation is slowed down by not reading; among others it is asked to
//! `pause`, if the process promised to listen to that; else it fails once its caller is a whole buffer
//! behind. Which of the three it is, the worker decides; the frames for it are made here.
//!
//! What is written to the process cannot grow without bound: a `run` for each place, a `cancel` for each
//! of them, and `pause`, with its `resume`, only while little else waits to be written.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;

use crate::activation::{Activation, Answer};
use crate::error::BadAnswer;
use crate::logs::Logs;
use crate::process::Process;
use crate::process::adaptive_yield::AdaptiveYield;
use crate::text::excerpt;

use super::answer::{self, Gathered};
use super::frame::{self, Id, Kind};
use super::line::{Fill, LineReader, LineWriter};
use super::pipe_loop::{Channel, Kept, NoAnswer, Reading};

/// What a handshake of version 2 promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Promises {
    /// How many activations it takes at once.
    pub concurrency: usize,
    /// It wants to hear of activations that nobody waits for any more.
    pub cancel: bool,
    /// It stops writing for an activation while it is asked to.
    pub pause: bool,
    /// It wants to hear of the end before its input ends.
    pub stop: bool,
}

/// More at once would be a mistake.
pub const MAX_CONCURRENT: usize = 1024;
/// What a frame may take beside its payload.
const FRAME_BYTES: u64 = 1024;
/// A chunk up to this size is copied out of the buffer that it came in: kept for a slow caller, it
/// would keep all of that.
const COPY_BELOW: usize = 256 * 1024;
/// With so many bytes unwritten, a process is not asked to pause.
const MAX_UNWRITTEN: u64 = 64 * 1024;

/// The conversation with a process that is ready.
#[derive(Debug)]
pub struct Multiplex {
    stdin: LineWriter,
    results: LineReader,
    channel: Channel,
    promises: Promises,
    ledger: Ledger,
    /// Frames on their way out; of the first one `sent` bytes are out.
    outbox: VecDeque<Vec<u8>>,
    sent: usize,
    /// Bytes that were ever queued, and written.
    queued: u64,
    written: u64,
    /// Where the frame of the last activation begins.
    last_from: u64,
    limit_bytes: u64,
    /// How far the only activation in flight has been read.
    reading: Reading,
    courtesy: AdaptiveYield,
    strayed: bool,
    kept: Kept,
}

/// An activation in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket {
    /// Its number in this conversation.
    pub id: u64,
    /// Where its frame begins, in bytes since the conversation's beginning.
    from: u64,
}

/// What a frame means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A part of the answer of this activation.
    Chunk(u64, Bytes),
    /// A line for its log.
    Log(u64, String),
    /// It has ended, in this way.
    Ended(u64, Ended),
    /// A frame of this activation that is none. It has not ended.
    Broken(u64, String),
    /// It belongs to none, for this reason.
    Stray(String),
}

/// How an activation ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// With a result.
    Result(Answer),
    /// With an error of its own, which is any JSON.
    Error(Bytes),
    /// With its chunks.
    End,
    /// With a result that is none.
    Bad(BadAnswer),
}

/// What [`Multiplex::take`] found.
#[derive(Debug)]
pub enum Taken {
    /// A frame, and its line.
    Frame(Event, Bytes),
    /// A frame over the bound has begun. Nobody can tell whose; the process must be stopped.
    TooLong,
}

/// Whether the other side is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Bytes were moved.
    Moved,
    /// Its result channel has ended, or it reads no more.
    Gone,
}

impl Multiplex {
    /// A conversation over these pipes.
    #[must_use]
    pub fn new(stdin: LineWriter, results: LineReader, channel: Channel, promises: Promises) -> Self {
        Self {
            stdin,
            results,
            channel,
            promises,
            ledger: Ledger::new(promises.concurrency),
            outbox: VecDeque::new(),
            sent: 0,
            queued: 0,
            written: 0,
            last_from: 0,
            limit_bytes: u64::MAX,
            reading: Reading::default(),
            courtesy: AdaptiveYield::UNTRIED,
            strayed: false,
            kept: Kept::default(),
        }
    }

    /// Bounds the payload of a frame.
    pub fn bound(&mut self, limit_bytes: u64) {
        self.limit_bytes = limit_bytes;
    }

    /// What its handshake promised.
    #[must_use]
    pub fn promises(&self) -> Promises {
        self.promises
    }

    /// Where frames come from.
    #[must_use]
    pub fn channel(&self) -> Channel {
        self.channel
    }

    /// Keeps the first strays from now on, beside telling them in the log.
    pub fn keep_strays(&mut self) {
        self.kept.begin();
    }

    /// Takes the strays that were kept.
    pub fn take_strays(&mut self) -> Vec<Vec<u8>> {
        self.kept.take()
    }

    /// Whether it has written something without a number that was nobody's: it may do so again, at a
    /// moment at which that cannot be told from an answer.
    #[must_use]
    pub fn has_strayed(&self) -> bool {
        self.strayed
    }

    /// Whether the process has read everything and waits for more; `None` where nobody can tell.
    #[must_use]
    pub fn waits_for_input(&self, process: &Process) -> Option<bool> {
        if !self.outbox.is_empty() {
            return Some(false);
        }
        self.stdin.is_waited_for(process)
    }

    /// Reads what has come by now. To be called before [`Multiplex::begin`], and its events taken,
    /// where one is in flight at most: whatever came before answers nothing.
    pub fn look_for_strays(&mut self) {
        let _ = self.results.try_fill();
    }

    /// Takes the beginning of a line that came before [`Multiplex::begin`] with nothing in flight.
    pub fn take_partial(&mut self) -> Option<Vec<u8>> {
        let partial = self.results.take_rest();
        if partial.trim_ascii().is_empty() {
            return None;
        }
        self.keep_stray(&partial);
        Some(partial)
    }

    /// Gives the next activation this number, as if so many had gone before: for a check, which cannot
    /// wait for them.
    pub fn number_from(&mut self, id: u64) {
        self.ledger.next = self.ledger.next.max(id);
    }

    /// Gives an activation its number and sends it. There must be a place for it.
    pub fn begin(&mut self, activation: &Activation) -> Ticket {
        let ticket = Ticket { id: self.ledger.begin(), from: self.queued };
        self.last_from = self.queued;
        self.reading = Reading::default();
        self.queue(activation.run_frame(ticket.id));
        self.write_now();
        if self.promises.concurrency == 1 && self.outbox.is_empty() && self.courtesy.yield_if_due() {
            let something = self.read_rest();
            self.courtesy.brought(something);
        }
        ticket
    }

    /// Says that nobody waits for this activation any more, if the process wants to hear it.
    pub fn cancel(&mut self, id: u64) {
        if self.promises.cancel {
            self.queue(format!("{{\"cancel\":{id}}}\n").into_bytes());
            self.write_now();
        }
    }

    /// Asks it to write nothing more for this activation for now. Whether that was sent.
    pub fn pause(&mut self, id: u64) -> bool {
        let sends = self.promises.pause && self.queued - self.written <= MAX_UNWRITTEN;
        if sends {
            self.queue(format!("{{\"pause\":{id}}}\n").into_bytes());
            self.write_now();
        }
        sends
    }

    /// Asks it to go on after a pause.
    pub fn resume(&mut self, id: u64) {
        self.queue(format!("{{\"resume\":{id}}}\n").into_bytes());
        self.write_now();
    }

    /// Says that its input is about to end, and how long it has then, if it wants to hear it. Waits no
    /// longer than that for a process that does not read.
    pub async fn say_stop(&mut self, grace: Duration) {
        if !self.promises.stop {
            return;
        }
        self.queue(format!("{{\"stop\":{{\"grace_ms\":{}}}}}\n", grace.as_millis()).into_bytes());
        let written = async {
            while !self.outbox.is_empty() {
                if self.step(false).await == Step::Gone {
                    return;
                }
            }
        };
        let _ = crate::time::timeout(grace, written).await;
    }

    /// Whether it is certain that the process never read a byte of this activation. To be asked only
    /// when the process reads no more.
    #[must_use]
    pub fn is_untouched(&self, ticket: Ticket) -> bool {
        self.stdin.unread().is_some_and(|unread| ticket.from >= self.written.saturating_sub(unread))
    }

    /// Moves some bytes, reading only if that is wanted. Cancelling it loses nothing.
    pub async fn step(&mut self, reads: bool) -> Step {
        if reads && self.results.has_ended() {
            // Seen by a read that did not wait.
            return Step::Gone;
        }
        let whole = self.last_frame_bytes();
        let Self { stdin, results, outbox, sent, reading, .. } = self;
        let unwritten = outbox.front().map_or(&[][..], |frame| &frame[*sent..]);
        let alone = self.promises.concurrency == 1;
        // With one in flight at most, this is its frame as long as it is not written, or was just now.
        let frame_written = if unwritten.is_empty() { whole } else { *sent };
        tokio::select! {
            fill = results.fill_after(|pending| if alone { reading.look(stdin, frame_written, pending) }), if reads => {
                match fill {
                    Ok(Fill::Some | Fill::WouldBlock) => Step::Moved,
                    Ok(Fill::End) | Err(_) => Step::Gone,
                }
            }
            written = stdin.write(unwritten), if !unwritten.is_empty() => match written {
                Ok(count) => {
                    self.wrote(count);
                    self.write_now();
                    Step::Moved
                }
                Err(_) => Step::Gone,
            },
            else => std::future::pending().await,
        }
    }

    /// Reads once what there is by now, of a process that may have ended. Whether there was something;
    /// its events are to be taken before it is asked again.
    pub fn read_rest(&mut self) -> bool {
        let whole = self.last_frame_bytes();
        let alone = self.promises.concurrency == 1;
        let (reading, stdin) = (&mut self.reading, &self.stdin);
        let fill = self.results.try_fill_after(|pending| {
            if alone {
                reading.look(stdin, whole, pending);
            }
        });
        matches!(fill, Ok(Fill::Some))
    }

    /// How long the frame of the last activation is, with what was queued behind it.
    fn last_frame_bytes(&self) -> usize {
        usize::try_from(self.queued - self.last_from).unwrap_or(usize::MAX)
    }

    /// What was written of a frame that was never ended.
    #[must_use]
    pub fn partial(&self) -> &[u8] {
        self.results.partial()
    }

    /// Takes the next frame that is there in whole.
    pub fn take(&mut self) -> Option<Taken> {
        let limit_bytes = self.limit_bytes.saturating_add(FRAME_BYTES);
        let before = self.results.pending_len();
        let Some(line) = self.results.next_line() else {
            return (self.results.pending_len() as u64 > limit_bytes).then_some(Taken::TooLong);
        };
        if line.len() as u64 > limit_bytes {
            return Some(Taken::TooLong);
        }
        let mut event = self.ledger.judge(&line, self.limit_bytes);
        if self.reading.stray_bytes > 0 {
            let length = before - self.results.pending_len();
            self.reading.stray_bytes = self.reading.stray_bytes.saturating_sub(length);
            if let Event::Ended(id, _) = event {
                self.ledger.restore(id);
            }
            event = Event::Stray("before the activation was read".into());
        }
        if let Event::Ended(_, ended) = &mut event
            && self.may_be_an_earlier_ones(&line)
            && let Some(second) = self.results.next_line()
        {
            // As in version 1: which of them is meant, nobody can say.
            *ended = Ended::Bad(answer::two_lines(&line, &second));
            self.keep_stray(&second);
        }
        if let Event::Stray(_) = event {
            self.keep_stray(&line);
        }
        Some(Taken::Frame(event, line))
    }

    /// Whether a last frame and the line behind it, which is there in whole, both say nothing of whose they
    /// are: then the first could be one too many from before this activation was read. The kernel shows that
    /// only to whoever looks in time.
    fn may_be_an_earlier_ones(&self, line: &Bytes) -> bool {
        let nobodys = |line: &Bytes| frame::parse(line).map_or(true, |frame| frame.id.is_none());
        if self.promises.concurrency > 1 {
            return false;
        }
        let mut lines = self.results.pending().split_inclusive(|byte| *byte == b'\n');
        let second = lines.find(|line| !line.trim_ascii().is_empty()).filter(|line| line.ends_with(b"\n"));
        second.is_some_and(|second| nobodys(line) && nobodys(&Bytes::copy_from_slice(second)))
    }

    /// Sends one activation, and waits for its answer as one body: for whoever has one at a time.
    ///
    /// # Errors
    /// [`NoAnswer`], after any of which but [`NoAnswer::Bad`] the process must be stopped.
    pub async fn interact(
        &mut self,
        activation: &Activation,
        limit_bytes: u64,
        process: &Process,
        logs: &mut Logs,
    ) -> Result<Answer, NoAnswer> {
        self.bound(limit_bytes);
        self.look_for_strays();
        self.drop_strays(logs);
        let ticket = self.begin(activation);
        let mut gathered = Gathered::default();
        let mut gone = false;
        loop {
            while let Some(taken) = self.take() {
                let Taken::Frame(event, line) = taken else { return Err(NoAnswer::TooLong) };
                // However fast it writes, time is looked at.
                tokio::task::consume_budget().await;
                logs.relieve().await;
                let unusable = |reason| {
                    let line = String::from_utf8_lossy(&line).into_owned();
                    Err(NoAnswer::Bad(BadAnswer::NotJson { line, reason }))
                };
                match event {
                    Event::Chunk(_, chunk) => {
                        if !gathered.add(&chunk, limit_bytes) {
                            return Err(NoAnswer::TooLong);
                        }
                    }
                    Event::Log(_, text) => {
                        let lines = logs.lines_of(&text, None);
                        logs.feed_frames(&lines);
                    }
                    Event::Ended(_, Ended::Result(answer)) => return Ok(answer),
                    Event::Ended(_, Ended::Error(error)) => return Ok(answer::failure(&error)),
                    Event::Ended(_, Ended::End) => return Ok(gathered.into_answer()),
                    Event::Ended(_, Ended::Bad(problem)) => return Err(NoAnswer::Bad(problem)),
                    Event::Broken(_, problem) => return unusable(format!("a frame {problem}")),
                    Event::Stray(reason) => logs.say(&stray(&line, &reason)),
                }
            }
            if gone {
                if self.read_rest() {
                    continue;
                }
                let untouched = self.is_untouched(ticket);
                return Err(NoAnswer::Gone { partial: self.partial().to_vec(), untouched });
            }
            tokio::select! {
                step = self.step(true) => gone = step == Step::Gone,
                _ = process.exited() => gone = true,
                () = logs.pump() => unreachable!("a pump never ends"),
            }
        }
    }

    /// Watches the conversation while nothing is in flight: drops what answers nothing. Returns when
    /// the result channel has ended.
    pub async fn idle(&mut self, logs: &mut Logs) {
        loop {
            tokio::select! {
                step = self.step(true) => if step == Step::Gone {
                    return;
                },
                () = logs.pump() => unreachable!("a pump never ends"),
            }
            self.drop_strays(logs);
        }
    }

    fn drop_strays(&mut self, logs: &mut Logs) {
        while let Some(Taken::Frame(event, line)) = self.take() {
            if let Event::Stray(reason) = event {
                logs.say(&stray(&line, &reason));
            }
        }
        if let Some(partial) = self.take_partial() {
            logs.say(&stray(&partial, "and is not ended"));
        }
    }

    /// Lets go of the process: closing its input asks it to end.
    #[must_use]
    pub fn into_results(self) -> LineReader {
        self.results
    }

    fn keep_stray(&mut self, line: &[u8]) {
        self.strayed |= self.promises.concurrency == 1 && self.ledger.next > 1;
        self.kept.add(line);
    }

    fn queue(&mut self, frame: Vec<u8>) {
        self.queued += frame.len() as u64;
        self.outbox.push_back(frame);
    }

    /// Writes what fits now. That nobody reads is seen by the next step.
    fn write_now(&mut self) {
        while let Some(frame) = self.outbox.front() {
            match self.stdin.try_write(&frame[self.sent..]) {
                Ok(0) | Err(_) => return,
                Ok(count) => self.wrote(count),
            }
        }
    }

    fn wrote(&mut self, count: usize) {
        self.written += count as u64;
        self.sent += count;
        if self.outbox.front().is_some_and(|frame| self.sent == frame.len()) {
            self.outbox.pop_front();
            self.sent = 0;
        }
    }
}

/// The sentence for a line that is nobody's.
#[must_use]
pub fn stray(line: &[u8], reason: &str) -> String {
    format!("pipeloop: dropped a line that answers no activation, {reason}: {}", excerpt(line))
}

/// Which activations are in flight, and so what a frame means.
#[derive(Debug)]
struct Ledger {
    concurrency: usize,
    next: u64,
    open: Vec<u64>,
}

impl Ledger {
    fn new(concurrency: usize) -> Self {
        Self { concurrency, next: 1, open: Vec::new() }
    }

    fn begin(&mut self) -> u64 {
        debug_assert!(self.open.len() < self.concurrency, "more in flight than declared");
        let id = self.next;
        self.next += 1;
        self.open.push(id);
        id
    }

    /// Takes an end back that came too early to be one.
    fn restore(&mut self, id: u64) {
        self.open.push(id);
    }

    fn judge(&mut self, line: &Bytes, limit_bytes: u64) -> Event {
        let only = (self.concurrency == 1).then(|| self.open.first().copied()).flatten();
        let frame = match frame::parse(line) {
            Ok(frame) => frame,
            Err(problem) => {
                return match only {
                    Some(id) => Event::Broken(id, format!("that is {problem}")),
                    None => Event::Stray(format!("since it is {problem}")),
                };
            }
        };
        let id = match (frame.id, only) {
            (Some(Id::Number(id)), _) if self.open.contains(&id) => id,
            (Some(Id::Number(id)), _) if id > 0 && id < self.next => {
                return Event::Stray(format!("for {id} has ended"));
            }
            (Some(_), _) => return Event::Stray("for its `id` was never given".into()),
            (None, Some(id)) => id,
            (None, None) if self.concurrency == 1 => return Event::Stray("for none is in flight".into()),
            (None, None) => return Event::Stray("for it has no `id`".into()),
        };
        let ended = match frame.kind {
            Err(problem) => return Event::Broken(id, problem),
            Ok(Kind::Chunk(json)) if json.len() < COPY_BELOW => return Event::Chunk(id, Bytes::copy_from_slice(&json)),
            Ok(Kind::Chunk(json)) => return Event::Chunk(id, json),
            Ok(Kind::Log(text)) => return Event::Log(id, text),
            Ok(Kind::Result(json)) if json.len() as u64 > limit_bytes => {
                return Event::Broken(id, format!("whose `result` has more than {limit_bytes} bytes"));
            }
            Ok(Kind::Result(json)) => match answer::check(json) {
                Ok(answer) => Ended::Result(answer),
                Err(problem) => Ended::Bad(problem),
            },
            Ok(Kind::Error(json)) => Ended::Error(json),
            Ok(Kind::End) => Ended::End,
        };
        self.open.retain(|open| *open != id);
        Event::Ended(id, ended)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::pipe::{pipe, watch};
    use proptest::prelude::*;

    /// What happens in a conversation.
    #[derive(Debug, Clone)]
    enum Move {
        /// An activation comes, if there is a place.
        Begin,
        /// The process writes a frame of this kind for the activation of this number, or without one.
        Write(Option<u64>, u8),
        /// The process writes what is no frame.
        Noise(&'static str),
    }

    fn moves() -> impl Strategy<Value = Vec<Move>> {
        let number = prop_oneof![1 => Just(None), 9 => (0_u64..12).prop_map(Some)];
        let noise = prop::sample::select(&[
            "ready",
            "[]",
            "{",
            "5",
            "{\"id\":\"1\",\"end\":true}",
            "{\"id\":1.0,\"end\":true}",
        ]);
        let one = prop_oneof![
            3 => Just(Move::Begin),
            6 => (number, 0_u8..7).prop_map(|(number, kind)| Move::Write(number, kind)),
            1 => noise.prop_map(Move::Noise),
        ];
        prop::collection::vec(one, 0..60)
    }

    const FRAMES: [(&str, bool); 7] = [
        ("\"chunk\":1", false),
        ("\"log\":\"text\"", false),
        ("\"chnk\":1", false),
        ("\"result\":{}", true),
        ("\"result\":5", true),
        ("\"error\":null", true),
        ("\"end\":true", true),
    ];

    proptest! {
        /// Whatever a process writes, a frame is its own activation's or nobody's, and each activation
        /// ends once.
        #[test]
        fn a_frame_is_its_own_activations_or_nobodys(concurrency in 1_usize..5, moves in moves()) {
            let mut ledger = Ledger::new(concurrency);
            // The oracle: what became of each number that was given.
            let mut open: Vec<bool> = Vec::new();
            for step in moves {
                let in_flight = |open: &[bool]| -> Vec<u64> {
                    (1..).zip(open).filter(|(_, open)| **open).map(|(id, _)| id).collect()
                };
                let flights = in_flight(&open);
                match step {
                    Move::Begin if flights.len() < concurrency => {
                        open.push(true);
                        prop_assert_eq!(ledger.begin(), open.len() as u64);
                    }
                    Move::Begin => {}
                    Move::Write(number, kind) => {
                        let (member, ends) = FRAMES[usize::from(kind)];
                        let line = match number {
                            Some(number) => format!("{{\"id\":{number},{member}}}"),
                            None => format!("{{{member}}}"),
                        };
                        let whose = match number {
                            Some(number) => Some(number).filter(|number| flights.contains(number)),
                            None if concurrency == 1 => flights.first().copied(),
                            None => None,
                        };
                        let seen = match ledger.judge(&line.into(), 1000) {
                            Event::Chunk(id, _) => (Some(id), kind == 0),
                            Event::Log(id, _) => (Some(id), kind == 1),
                            Event::Broken(id, _) => (Some(id), kind == 2),
                            Event::Ended(id, ended) => (Some(id), match ended {
                                Ended::Result(_) => kind == 3,
                                Ended::Bad(_) => kind == 4,
                                Ended::Error(_) => kind == 5,
                                Ended::End => kind == 6,
                            }),
                            Event::Stray(_) => (None, true),
                        };
                        prop_assert_eq!(seen, (whose, true));
                        if let Some(id) = whose && ends {
                            open[usize::try_from(id).unwrap() - 1] = false;
                        }
                    }
                    Move::Noise(line) => {
                        let event = ledger.judge(&Bytes::from_static(line.as_bytes()), 1000);
                        let fails = concurrency == 1 && !flights.is_empty() && !line.starts_with("{\"");
                        prop_assert_eq!(matches!(event, Event::Broken(..)), fails, "{:?}", event);
                        prop_assert!(fails || matches!(event, Event::Stray(_)));
                    }
                }
                ledger.open.sort_unstable();
                prop_assert_eq!(&ledger.open, &in_flight(&open));
            }
        }
    }

    /// One activation as its process answers it: frames before its last one, and that.
    #[derive(Debug, Clone)]
    struct Script {
        /// Whether each of them is a chunk, a log, none at all, or what answers nobody.
        frames: Vec<u8>,
        last: u8,
        /// What comes behind its end.
        behind: u8,
    }

    fn scripts() -> impl Strategy<Value = Vec<Script>> {
        let script = (prop::collection::vec(0_u8..6, 0..6), 0_u8..4, 0_u8..3);
        let script = script.prop_map(|(frames, last, behind)| Script { frames, last, behind });
        prop::collection::vec(script, 1..10)
    }

    /// What a process says, and what the proxy is to make of it.
    struct Said {
        line: String,
        /// Whose it is, and as what; nothing for what is nobody's.
        means: Option<(u64, String)>,
        ends: bool,
    }

    /// The lines of one activation, in order. With one in flight its number is left out now and then.
    fn said(script: &Script, id: u64, alone: bool) -> Vec<Said> {
        let own = |at: usize| if alone && at % 2 == 1 { String::new() } else { format!("\"id\":{id},") };
        let mut all = Vec::new();
        for (at, kind) in script.frames.iter().enumerate() {
            let (line, means) = match kind {
                0 | 1 => {
                    let chunk = format!("\"{}\"", "x".repeat(at * 700));
                    (format!("{{{}\"chunk\":{chunk}}}", own(at)), Some(format!("chunk {chunk}")))
                }
                2 => (format!("{{{}\"log\":\"{at}\"}}", own(at)), Some(format!("log {at}"))),
                3 => (format!("{{\"id\":{id},\"chnk\":{at}}}"), Some("broken".to_owned())),
                4 => (format!("{{\"id\":{},\"end\":true}}", id + 1000), None),
                // No frame at all: it can only be meant for one that is alone.
                _ => ("ready".to_owned(), alone.then(|| "broken".to_owned())),
            };
            all.push(Said { line, means: means.map(|means| (id, means)), ends: false });
        }
        let (last, means) = match script.last {
            0 => (format!("\"result\":{{\"n\":{id}}}"), format!("result {{\"n\":{id}}}")),
            1 => ("\"error\":null".to_owned(), "error null".to_owned()),
            2 => ("\"end\":true".to_owned(), "end".to_owned()),
            _ => ("\"result\":7".to_owned(), "bad".to_owned()),
        };
        let line = format!("{{{}{last}}}", own(script.frames.len()));
        all.push(Said { line: line.clone(), means: Some((id, means)), ends: true });
        for behind in 0..script.behind {
            let line =
                if behind == 0 { format!("{{\"id\":{id},{last}}}") } else { format!("{{\"id\":{id},\"chunk\":1}}") };
            all.push(Said { line, means: None, ends: false });
        }
        all
    }

    /// What an event tells, of whom.
    fn told(event: &Event) -> Option<(u64, String)> {
        let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
        Some(match event {
            Event::Chunk(id, chunk) => (*id, format!("chunk {}", text(chunk))),
            Event::Log(id, line) => (*id, format!("log {line}")),
            Event::Broken(id, _) => (*id, "broken".to_owned()),
            Event::Ended(id, Ended::Result(answer)) => (*id, format!("result {}", text(answer))),
            Event::Ended(id, Ended::Error(error)) => (*id, format!("error {}", text(error))),
            Event::Ended(id, Ended::End) => (*id, "end".to_owned()),
            Event::Ended(id, Ended::Bad(_)) => (*id, "bad".to_owned()),
            Event::Stray(_) => return None,
        })
    }

    /// A whole conversation over pipes: frames of all activations in flight in this order, cut into pieces of
    /// these lengths.
    async fn converse(concurrency: usize, scripts: &[Script], order: &[usize], cuts: &[usize]) {
        let (stdin, results) = (pipe().unwrap(), pipe().unwrap());
        let (writer, reader) = (LineWriter::new(watch(stdin.1).unwrap()), LineReader::new(watch(results.0).unwrap()));
        let mut heard = LineReader::new(watch(stdin.0).unwrap());
        let promises = Promises { concurrency, cancel: false, pause: false, stop: false };
        let mut multiplex = Multiplex::new(writer, reader, Channel::Stdout, promises);
        let (mut order, mut cuts) = (order.iter().cycle(), cuts.iter().cycle());
        let mut scripts = scripts.iter();
        // The process: what it has yet to say of each, and what it has said and not written.
        let mut talks: Vec<VecDeque<Said>> = Vec::new();
        let mut unwritten: VecDeque<u8> = VecDeque::new();
        // What was told, and what should have been: of each number in order, and of nobody.
        let (mut seen, mut expected) = (Vec::new(), Vec::new());
        let (mut strays, mut expected_strays) = (0, 0);
        let mut open = 0;
        loop {
            // What one that is alone has written so far answers nothing: all of it has to be there by then.
            while open < concurrency
                && (concurrency > 1 || unwritten.is_empty() && talks.is_empty())
                && let Some(script) = scripts.next()
            {
                multiplex.look_for_strays();
                while let Some(Taken::Frame(event, _)) = multiplex.take() {
                    assert_eq!(told(&event), None, "before anything was sent");
                    strays += 1;
                }
                let ticket = multiplex.begin(&Activation::of_arguments(b"{}").unwrap());
                heard.fill().await.unwrap();
                let run = heard.next_line().expect("it is sent at once");
                assert!(run.starts_with(format!("{{\"run\":{},", ticket.id).as_bytes()), "{run:?}");
                talks.push(said(script, ticket.id, concurrency == 1).into());
                open += 1;
            }
            if !talks.is_empty() {
                let at = order.next().unwrap() % talks.len();
                let said = talks[at].pop_front().expect("those that are over are gone");
                unwritten.extend(said.line.bytes().chain([b'\n']));
                match said.means {
                    Some(means) => expected.push((means.0, means.1, said.ends)),
                    None => expected_strays += 1,
                }
                talks.retain(|talk| !talk.is_empty());
            }
            let length =
                if talks.is_empty() { unwritten.len() } else { cuts.next().unwrap() % 3000 }.min(unwritten.len());
            let piece: Vec<u8> = unwritten.drain(..length).collect();
            let mut rest = &piece[..];
            while !rest.is_empty() {
                rest = &rest[rustix::io::write(&results.1, &rest[..rest.len().min(4096)]).unwrap()..];
                let step = tokio::time::timeout(Duration::from_secs(10), multiplex.step(true)).await;
                assert_eq!(step.expect("what is there is read"), Step::Moved);
                while let Some(taken) = multiplex.take() {
                    let Taken::Frame(event, _) = taken else { panic!("nothing is too long") };
                    open -= usize::from(matches!(event, Event::Ended(..)));
                    match told(&event) {
                        Some(event) => seen.push(event),
                        None => strays += 1,
                    }
                }
            }
            if talks.is_empty() && unwritten.is_empty() && scripts.len() == 0 {
                break;
            }
        }
        // The process is gone, and whoever looks is told.
        drop(results.1);
        while tokio::time::timeout(Duration::from_secs(10), multiplex.step(true)).await.expect("told") != Step::Gone {}
        assert!(multiplex.take().is_none() && multiplex.partial().is_empty());
        let ends = expected.iter().filter(|(_, _, ends)| *ends).count();
        let expected: Vec<_> = expected.into_iter().map(|(id, means, _)| (id, means)).collect();
        assert_eq!(seen, expected);
        assert_eq!((strays, open), (expected_strays, 0));
        assert_eq!(u64::try_from(ends).unwrap(), multiplex.ledger.next - 1, "each has ended, once");
        assert!(multiplex.ledger.open.is_empty());
    }

    proptest! {
        /// However the frames of several activations alternate, and wherever they are cut, each activation gets
        /// its own in order and one end, what is nobody's is dropped, and nobody waits for what has come.
        #[test]
        fn a_conversation_does_not_depend_on_how_its_frames_arrive(
            concurrency in 1_usize..5,
            scripts in scripts(),
            order in prop::collection::vec(0_usize..60, 1..40),
            cuts in prop::collection::vec(0_usize..3000, 1..40),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(converse(concurrency, &scripts, &order, &cuts));
        }
    }

    #[test]
    fn an_end_that_was_seen_in_passing_is_told() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (stdin, results) = (pipe().unwrap(), pipe().unwrap());
            let (writer, reader) =
                (LineWriter::new(watch(stdin.1).unwrap()), LineReader::new(watch(results.0).unwrap()));
            let promises = Promises { concurrency: 1, cancel: false, pause: false, stop: false };
            let mut multiplex = Multiplex::new(writer, reader, Channel::Stdout, promises);
            // The process closes its result channel, and lives on.
            drop(results.1);
            multiplex.look_for_strays();
            let step = tokio::time::timeout(Duration::from_secs(10), multiplex.step(true)).await;
            assert_eq!(step.expect("it is not waited for"), Step::Gone);
        });
    }

    #[test]
    fn a_result_over_the_bound_is_no_end() {
        let mut ledger = Ledger::new(2);
        let id = ledger.begin();
        let event = ledger.judge(&Bytes::from_static(b"{\"id\":1,\"result\":[1,2,3]}"), 6);
        assert_eq!(event, Event::Broken(id, "whose `result` has more than 6 bytes".into()));
        let event = ledger.judge(&Bytes::from_static(b"{\"id\":1,\"result\":[1,2]}"), 6);
        assert_eq!(event, Event::Ended(id, Ended::Result("[1,2]".into())));
    }
}
