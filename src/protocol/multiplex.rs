//! Version 2 of the protocol: frames, with several activations in flight over one pair of pipes.
//!
//! Knows frames, ids and bounds; knows no caller and no pid. What a frame means for a caller is the
//! worker's to decide (`action/worker/concurrent.rs`).
//!
//! # Theory of operation
//! One [`Multiplex`] holds one conversation. [`Multiplex::begin`] assigns the next id to an activation
//! and queues its `run` frame; [`Multiplex::step`] moves bytes in both directions; [`Multiplex::take`]
//! says what the next frame means, as an [`Event`]. The ledger behind it holds the ids in flight. An id
//! leaves the ledger only with a `result`, `error` or `end` frame. An activation whose caller has left,
//! or got an error, stays in flight until the process has ended it: only then is it certain that no more
//! frames of it come, and a process never has more in flight than it asked for.
//!
//! So a frame can belong to the wrong activation only if the process writes the wrong id. A frame without
//! an id belongs to the only activation in flight, where at most one is. There a frame too many could pass
//! for the next activation's, as in version 1, so the rules of version 1 hold: a line that came before the
//! activation was read is a stray, and the process is not trusted with another activation after it.
//!
//! One pipe carries all streams, so a slow caller must not keep the proxy from reading while other
//! callers wait. If one activation is in flight at most, the worker slows it down by not reading. Among
//! others it asks the process to `pause` the activation, if the handshake promised that; otherwise the
//! activation fails once its caller is a whole buffer behind. The worker decides which of the three it is;
//! this module makes the frames.
//!
//! The bytes that wait to be written are bounded: at most a `run` and a `cancel` for each activation in
//! flight, and a `pause` with its `resume` only while few bytes wait.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;

use crate::activation::{Activation, Answer};
use crate::error::BadAnswer;
use crate::logs::Logs;
use crate::process::Process;
use crate::process::spawn::ResultChannel;
use crate::text::excerpt;

use super::answer::{self, Gathered};
use super::frame;
use super::ledger::Ledger;
use super::line::Fill;
use super::link::{Link, Received, Transfer};
use super::pipe_loop::NoAnswer;

pub use super::handshake::Promises;
pub use super::ledger::{Ended, Event};

/// How many bytes a line may have besides the payload of its frame.
const FRAME_OVERHEAD: u64 = 1024;
/// While more bytes than this wait to be written, no `pause` is sent.
const MAX_UNWRITTEN: u64 = 64 * 1024;

/// The conversation with a process that is ready.
#[derive(Debug)]
pub struct Multiplex {
    link: Link,
    promises: Promises,
    ledger: Ledger,
    outbox: Outbox,
    limit_bytes: u64,
}

/// Frames on their way to the process.
#[derive(Debug, Default)]
struct Outbox {
    frames: VecDeque<Vec<u8>>,
    /// How many bytes of the first frame are written.
    sent: usize,
    /// How many bytes were ever queued, and written.
    queued: u64,
    written: u64,
}

/// An activation in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket {
    /// Its id in this conversation.
    pub id: u64,
    /// How many bytes were queued before its frame.
    queued_before: u64,
}

/// What [`Multiplex::take`] found.
#[derive(Debug)]
pub enum Taken {
    /// What a frame means, and its line.
    Frame(Event, Bytes),
    /// A frame over the limit. Its activation is unknown, so the process must be stopped.
    TooLong,
}

/// What [`Multiplex::step`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// It moved bytes.
    Moved,
    /// The result channel has ended, or the process reads no more.
    Gone,
}

impl Multiplex {
    /// Begins a conversation over this link.
    #[must_use]
    pub fn new(link: Link, promises: Promises) -> Self {
        Self {
            link,
            promises,
            ledger: Ledger::new(promises.concurrency),
            outbox: Outbox::default(),
            limit_bytes: u64::MAX,
        }
    }

    /// Sets the limit for the payload of a frame.
    pub fn bound(&mut self, limit_bytes: u64) {
        self.limit_bytes = limit_bytes;
    }

    /// What the handshake promised.
    #[must_use]
    pub fn promises(&self) -> Promises {
        self.promises
    }

    /// Both pipe ends.
    pub(super) fn link(&self) -> &Link {
        &self.link
    }

    /// As [`Multiplex::link`].
    pub(super) fn link_mut(&mut self) -> &mut Link {
        &mut self.link
    }

    /// Gives up the conversation and keeps the link.
    pub(super) fn into_link(self) -> Link {
        self.link
    }

    /// Where frames come from.
    #[must_use]
    pub fn channel(&self) -> ResultChannel {
        self.link.channel()
    }

    /// Whether the process has written a line without an id that belongs to no activation. It may do so
    /// again, at a moment at which such a line passes for an answer.
    #[must_use]
    pub fn has_strayed(&self) -> bool {
        self.link.has_strayed()
    }

    /// Whether the process has read everything and waits for more; `None` where `/proc` does not show it.
    #[must_use]
    pub fn waits_for_input(&self, process: &Process) -> Option<bool> {
        if !self.outbox.is_empty() {
            return Some(false);
        }
        self.link.waits_for_input(process)
    }

    /// Reads what is in the result channel. Where at most one activation is in flight, the caller must call
    /// this and take the events before [`Multiplex::begin`]: frames that came before answer nothing.
    pub fn read_strays(&mut self) {
        let _ = self.link.try_read();
    }

    /// Takes the beginning of a line that came while no activation was in flight.
    pub fn take_partial(&mut self) -> Option<Vec<u8>> {
        let partial = self.link.take_partial()?;
        self.record_stray(&partial);
        Some(partial)
    }

    /// Assigns at least this id to the next activation. A check uses it to try large ids.
    pub fn number_from(&mut self, id: u64) {
        self.ledger.skip_to(id);
    }

    /// Assigns an id to an activation and sends it. Fewer than the promised number must be in flight.
    pub fn begin(&mut self, activation: &Activation) -> Ticket {
        let ticket = Ticket { id: self.ledger.begin(), queued_before: self.outbox.queued };
        if self.promises.concurrency == 1 {
            self.link.begin_activation();
        }
        self.outbox.push(activation.run_frame(ticket.id));
        self.write_now();
        if self.promises.concurrency == 1
            && self.outbox.is_empty()
            && let Some(fill) = self.link.try_read_after_yield()
        {
            self.link.record_yield(matches!(fill, Ok(Fill::Some)));
        }
        ticket
    }

    /// Sends `cancel` for an activation whose caller has gone, if the process wants it.
    pub fn cancel(&mut self, id: u64) {
        if self.promises.cancel {
            self.outbox.push(format!("{{\"cancel\":{id}}}\n").into_bytes());
            self.write_now();
        }
    }

    /// Sends `pause` for this activation, if the process promised to pause and few bytes wait to be written.
    /// Returns whether it was sent.
    pub fn pause(&mut self, id: u64) -> bool {
        let sends = self.promises.pause && self.outbox.unwritten_bytes() <= MAX_UNWRITTEN;
        if sends {
            self.outbox.push(format!("{{\"pause\":{id}}}\n").into_bytes());
            self.write_now();
        }
        sends
    }

    /// Sends `resume` for this activation.
    pub fn resume(&mut self, id: u64) {
        self.outbox.push(format!("{{\"resume\":{id}}}\n").into_bytes());
        self.write_now();
    }

    /// Sends `stop` with the grace period, if the process wants it. Waits at most that long for a process
    /// that does not read.
    pub async fn send_stop(&mut self, grace: Duration) {
        if !self.promises.stop {
            return;
        }
        self.outbox.push(format!("{{\"stop\":{{\"grace_ms\":{}}}}}\n", grace.as_millis()).into_bytes());
        let written = async {
            while !self.outbox.is_empty() {
                if self.step(false).await == Step::Gone {
                    return;
                }
            }
        };
        let _ = crate::time::timeout(grace, written).await;
    }

    /// Whether it is certain that the process read no byte of this activation. Must be called only once the
    /// process reads no more.
    #[must_use]
    pub fn is_untouched(&self, ticket: Ticket) -> bool {
        self.link.unread().is_some_and(|unread| ticket.queued_before >= self.outbox.written.saturating_sub(unread))
    }

    /// Moves some bytes. Reads only if `reads` says so. Cancelling it loses nothing.
    pub async fn step(&mut self, reads: bool) -> Step {
        match self.link.transfer(self.outbox.unwritten(), reads).await {
            Transfer::Read => {}
            Transfer::Wrote(count) => self.outbox.advance(count),
            Transfer::Gone => return Step::Gone,
        }
        self.write_now();
        Step::Moved
    }

    /// Reads once without waiting, also from a process that has exited. Returns whether there were bytes;
    /// the caller must take the events before the next call.
    pub fn read_rest(&mut self) -> bool {
        matches!(self.link.try_read(), Ok(Fill::Some))
    }

    /// The beginning of a frame whose end has not come.
    #[must_use]
    pub fn partial(&self) -> &[u8] {
        self.link.partial()
    }

    /// Takes the next whole frame.
    pub fn take(&mut self) -> Option<Taken> {
        let limit_bytes = self.limit_bytes.saturating_add(FRAME_OVERHEAD);
        let Some(Received { line, is_stray }) = self.link.next_line() else {
            return (self.link.pending().len() as u64 > limit_bytes).then_some(Taken::TooLong);
        };
        if line.len() as u64 > limit_bytes {
            return Some(Taken::TooLong);
        }
        let mut event = self.ledger.classify(&line, self.limit_bytes);
        if is_stray {
            if let Event::Ended(id, _) = event {
                self.ledger.reopen(id);
            }
            event = Event::Stray("before the activation was read".into());
        }
        if let Event::Ended(_, ended) = &mut event
            && self.may_be_a_frame_too_many(&line)
            && let Some(second) = self.link.next_line()
        {
            // As in version 1, the proxy cannot know which of them is the answer.
            *ended = Ended::Bad(answer::two_lines(&line, &second.line));
            self.record_stray(&second.line);
        }
        match event {
            Event::Ended(..) => self.link.end_activation(),
            Event::Stray(_) => self.record_stray(&line),
            Event::Chunk(..) | Event::Log(..) | Event::Malformed(..) => {}
        }
        Some(Taken::Frame(event, line))
    }

    /// Whether neither a last frame nor the whole line after it has an id. Then the first may be a frame too
    /// many that was written before the process read this activation, and that [`Link`] did not see in time.
    fn may_be_a_frame_too_many(&self, line: &Bytes) -> bool {
        let has_no_id = |line: &Bytes| frame::parse(line).map_or(true, |frame| frame.id.is_none());
        if self.promises.concurrency > 1 {
            return false;
        }
        let mut lines = self.link.pending().split_inclusive(|byte| *byte == b'\n');
        let second = lines.find(|line| !line.trim_ascii().is_empty()).filter(|line| line.ends_with(b"\n"));
        second.is_some_and(|second| has_no_id(line) && has_no_id(&Bytes::copy_from_slice(second)))
    }

    /// Sends one activation and waits for its answer as one body. No other may be in flight.
    ///
    /// # Errors
    /// [`NoAnswer`]. After any but [`NoAnswer::Bad`] the process must be stopped.
    pub async fn interact(
        &mut self,
        activation: &Activation,
        limit_bytes: u64,
        process: &Process,
        logs: &mut Logs,
    ) -> Result<Answer, NoAnswer> {
        self.bound(limit_bytes);
        self.read_strays();
        self.drop_strays(logs);
        let ticket = self.begin(activation);
        let mut gathered = Gathered::default();
        let mut gone = false;
        loop {
            while let Some(taken) = self.take() {
                let Taken::Frame(event, line) = taken else { return Err(NoAnswer::TooLong) };
                // A process that writes without pause must not keep timers from running.
                tokio::task::consume_budget().await;
                logs.wait_for_space().await;
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
                        let lines = logs.format_lines(&text, None);
                        logs.append_lines(&lines);
                    }
                    Event::Ended(_, Ended::Result(answer)) => return Ok(answer),
                    Event::Ended(_, Ended::Error(error)) => return Ok(answer::failure(&error)),
                    Event::Ended(_, Ended::End) => return Ok(gathered.into_answer()),
                    Event::Ended(_, Ended::Bad(problem)) => return Err(NoAnswer::Bad(problem)),
                    Event::Malformed(_, problem) => return unusable(format!("a frame {problem}")),
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
                never = logs.pump() => match never {},
            }
        }
    }

    /// Watches the conversation while no activation is in flight, and drops frames. Returns when the result
    /// channel has ended.
    pub async fn idle(&mut self, logs: &mut Logs) {
        loop {
            tokio::select! {
                step = self.step(true) => if step == Step::Gone {
                    return;
                },
                never = logs.pump() => match never {},
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

    fn record_stray(&mut self, line: &[u8]) {
        let distrust = self.promises.concurrency == 1 && self.ledger.last_assigned() > 0;
        self.link.record_stray(line, distrust);
    }

    /// Writes what fits now. The next step reports an error.
    fn write_now(&mut self) {
        while !self.outbox.is_empty() {
            match self.link.try_write(self.outbox.unwritten()) {
                Ok(0) | Err(_) => return,
                Ok(count) => self.outbox.advance(count),
            }
        }
    }
}

impl Outbox {
    fn push(&mut self, frame: Vec<u8>) {
        self.queued += frame.len() as u64;
        self.frames.push_back(frame);
    }

    fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// The unwritten rest of the first frame.
    fn unwritten(&self) -> &[u8] {
        self.frames.front().map_or(&[], |frame| &frame[self.sent..])
    }

    /// How many bytes of all frames wait to be written.
    fn unwritten_bytes(&self) -> u64 {
        self.queued - self.written
    }

    /// Notes that `count` bytes of the first frame were written.
    fn advance(&mut self, count: usize) {
        self.written += count as u64;
        self.sent += count;
        if self.frames.front().is_some_and(|frame| self.sent == frame.len()) {
            self.frames.pop_front();
            self.sent = 0;
        }
    }
}

/// The log line for a line that answers no activation.
#[must_use]
pub fn stray(line: &[u8], reason: &str) -> String {
    format!("pipeloop: dropped a line that answers no activation, {reason}: {}", excerpt(line))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::pipe::{pipe, watch};
    use crate::protocol::line::{LineReader, LineWriter};
    use proptest::prelude::*;

    /// How a process answers one activation: frames before the last one, and that one.
    #[derive(Debug, Clone)]
    struct Script {
        /// The kind of each: a chunk, a log, a malformed frame or a stray.
        frames: Vec<u8>,
        last: u8,
        /// How many frames come after its end.
        after_end: u8,
    }

    fn scripts() -> impl Strategy<Value = Vec<Script>> {
        let script = (prop::collection::vec(0_u8..6, 0..6), 0_u8..4, 0_u8..3);
        let script = script.prop_map(|(frames, last, after_end)| Script { frames, last, after_end });
        prop::collection::vec(script, 1..10)
    }

    /// A line that a process writes, and what the proxy must make of it.
    struct Written {
        line: String,
        /// Its activation and meaning; `None` for a stray.
        meaning: Option<(u64, String)>,
        ends: bool,
    }

    /// The lines of one activation, in order. If one is in flight at most, every other line has no id.
    fn lines_of(script: &Script, id: u64, alone: bool) -> Vec<Written> {
        let own = |at: usize| if alone && at % 2 == 1 { String::new() } else { format!("\"id\":{id},") };
        let mut all = Vec::new();
        for (at, kind) in script.frames.iter().enumerate() {
            let (line, meaning) = match kind {
                0 | 1 => {
                    let chunk = format!("\"{}\"", "x".repeat(at * 700));
                    (format!("{{{}\"chunk\":{chunk}}}", own(at)), Some(format!("chunk {chunk}")))
                }
                2 => (format!("{{{}\"log\":\"{at}\"}}", own(at)), Some(format!("log {at}"))),
                3 => (format!("{{\"id\":{id},\"chnk\":{at}}}"), Some("malformed".to_owned())),
                4 => (format!("{{\"id\":{},\"end\":true}}", id + 1000), None),
                // A line that is no frame counts only for an activation that is alone.
                _ => ("ready".to_owned(), alone.then(|| "malformed".to_owned())),
            };
            all.push(Written { line, meaning: meaning.map(|meaning| (id, meaning)), ends: false });
        }
        let (last, meaning) = match script.last {
            0 => (format!("\"result\":{{\"n\":{id}}}"), format!("result {{\"n\":{id}}}")),
            1 => ("\"error\":null".to_owned(), "error null".to_owned()),
            2 => ("\"end\":true".to_owned(), "end".to_owned()),
            _ => ("\"result\":7".to_owned(), "bad".to_owned()),
        };
        let line = format!("{{{}{last}}}", own(script.frames.len()));
        all.push(Written { line: line.clone(), meaning: Some((id, meaning)), ends: true });
        for position in 0..script.after_end {
            let line =
                if position == 0 { format!("{{\"id\":{id},{last}}}") } else { format!("{{\"id\":{id},\"chunk\":1}}") };
            all.push(Written { line, meaning: None, ends: false });
        }
        all
    }

    /// The activation and meaning of an event.
    fn meaning_of(event: &Event) -> Option<(u64, String)> {
        let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
        Some(match event {
            Event::Chunk(id, chunk) => (*id, format!("chunk {}", text(chunk))),
            Event::Log(id, line) => (*id, format!("log {line}")),
            Event::Malformed(id, _) => (*id, "malformed".to_owned()),
            Event::Ended(id, Ended::Result(answer)) => (*id, format!("result {}", text(answer))),
            Event::Ended(id, Ended::Error(error)) => (*id, format!("error {}", text(error))),
            Event::Ended(id, Ended::End) => (*id, "end".to_owned()),
            Event::Ended(id, Ended::Bad(_)) => (*id, "bad".to_owned()),
            Event::Stray(_) => return None,
        })
    }

    /// A whole conversation over pipes: frames of all activations in flight in this order, cut into parts of
    /// these lengths.
    async fn converse(concurrency: usize, scripts: &[Script], order: &[usize], cuts: &[usize]) {
        let (stdin, results) = (pipe().unwrap(), pipe().unwrap());
        let (writer, reader) = (LineWriter::new(watch(stdin.1).unwrap()), LineReader::new(watch(results.0).unwrap()));
        let mut process_stdin = LineReader::new(watch(stdin.0).unwrap());
        let promises = Promises { concurrency, cancel: false, pause: false, stop: false };
        let mut multiplex = Multiplex::new(Link::new(writer, reader, ResultChannel::Stdout), promises);
        let (mut order, mut cuts) = (order.iter().cycle(), cuts.iter().cycle());
        let mut scripts = scripts.iter();
        // The process: the lines that are left of each activation, and the bytes that it has yet to write.
        let mut remaining: Vec<VecDeque<Written>> = Vec::new();
        let mut unwritten: VecDeque<u8> = VecDeque::new();
        // The events, and those expected: of activations in order, and strays.
        let (mut seen, mut expected) = (Vec::new(), Vec::new());
        let (mut strays, mut expected_strays) = (0, 0);
        let mut open = 0;
        loop {
            // Where at most one is in flight, strays must have arrived before the next begins.
            while open < concurrency
                && (concurrency > 1 || unwritten.is_empty() && remaining.is_empty())
                && let Some(script) = scripts.next()
            {
                multiplex.read_strays();
                while let Some(Taken::Frame(event, _)) = multiplex.take() {
                    assert_eq!(meaning_of(&event), None, "before anything was sent");
                    strays += 1;
                }
                let ticket = multiplex.begin(&Activation::of_arguments(b"{}").unwrap());
                process_stdin.fill().await.unwrap();
                let run = process_stdin.next_line().expect("it is sent at once");
                assert!(run.starts_with(format!("{{\"run\":{},", ticket.id).as_bytes()), "{run:?}");
                remaining.push(lines_of(script, ticket.id, concurrency == 1).into());
                open += 1;
            }
            if !remaining.is_empty() {
                let at = order.next().unwrap() % remaining.len();
                let written = remaining[at].pop_front().expect("finished ones were removed");
                unwritten.extend(written.line.bytes().chain([b'\n']));
                match written.meaning {
                    Some((id, meaning)) => expected.push((id, meaning, written.ends)),
                    None => expected_strays += 1,
                }
                remaining.retain(|lines| !lines.is_empty());
            }
            let length =
                if remaining.is_empty() { unwritten.len() } else { cuts.next().unwrap() % 3000 }.min(unwritten.len());
            let part: Vec<u8> = unwritten.drain(..length).collect();
            let mut rest = &part[..];
            while !rest.is_empty() {
                rest = &rest[rustix::io::write(&results.1, &rest[..rest.len().min(4096)]).unwrap()..];
                let step = tokio::time::timeout(Duration::from_secs(10), multiplex.step(true)).await;
                assert_eq!(step.expect("the bytes are read"), Step::Moved);
                while let Some(taken) = multiplex.take() {
                    let Taken::Frame(event, _) = taken else { panic!("no frame is too long") };
                    open -= usize::from(matches!(event, Event::Ended(..)));
                    match meaning_of(&event) {
                        Some(event) => seen.push(event),
                        None => strays += 1,
                    }
                }
            }
            if remaining.is_empty() && unwritten.is_empty() && scripts.len() == 0 {
                break;
            }
        }
        // The end of the result channel is reported.
        drop(results.1);
        while tokio::time::timeout(Duration::from_secs(10), multiplex.step(true)).await.expect("the end is reported")
            != Step::Gone
        {}
        assert!(multiplex.take().is_none() && multiplex.partial().is_empty());
        let ends = expected.iter().filter(|(_, _, ends)| *ends).count();
        let expected: Vec<_> = expected.into_iter().map(|(id, meaning, _)| (id, meaning)).collect();
        assert_eq!(seen, expected);
        assert_eq!((strays, open), (expected_strays, 0));
        assert_eq!(u64::try_from(ends).unwrap(), multiplex.ledger.last_assigned(), "each has ended, once");
        assert_eq!(multiplex.ledger.in_flight(), 0);
    }

    proptest! {
        /// However the frames of several activations alternate, and wherever they are cut: each activation gets
        /// its own frames in order and ends once, strays are dropped, and no frame waits that has arrived.
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
    fn an_end_seen_while_reading_strays_is_reported() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (stdin, results) = (pipe().unwrap(), pipe().unwrap());
            let (writer, reader) =
                (LineWriter::new(watch(stdin.1).unwrap()), LineReader::new(watch(results.0).unwrap()));
            let promises = Promises { concurrency: 1, cancel: false, pause: false, stop: false };
            let mut multiplex = Multiplex::new(Link::new(writer, reader, ResultChannel::Stdout), promises);
            // The process closes its result channel, and lives on.
            drop(results.1);
            multiplex.read_strays();
            let step = tokio::time::timeout(Duration::from_secs(10), multiplex.step(true)).await;
            assert_eq!(step.expect("the end is not waited for"), Step::Gone);
        });
    }
}
