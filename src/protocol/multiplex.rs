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

/// What a frame may take beside its payload.
const FRAME_BYTES: u64 = 1024;
/// With so many bytes unwritten, a process is not asked to pause.
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
    /// Its number in this conversation.
    pub id: u64,
    /// Where its frame begins, in bytes since the conversation's beginning.
    from: u64,
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
    /// A conversation over this link.
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

    /// Bounds the payload of a frame.
    pub fn bound(&mut self, limit_bytes: u64) {
        self.limit_bytes = limit_bytes;
    }

    /// What its handshake promised.
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

    /// Whether it has written something without a number that was nobody's: it may do so again, at a
    /// moment at which that cannot be told from an answer.
    #[must_use]
    pub fn has_strayed(&self) -> bool {
        self.link.has_strayed()
    }

    /// Whether the process has read everything and waits for more; `None` where nobody can tell.
    #[must_use]
    pub fn waits_for_input(&self, process: &Process) -> Option<bool> {
        if !self.outbox.is_empty() {
            return Some(false);
        }
        self.link.waits_for_input(process)
    }

    /// Reads what has come by now. To be called before [`Multiplex::begin`], and its events taken,
    /// where one is in flight at most: whatever came before answers nothing.
    pub fn look_for_strays(&mut self) {
        let _ = self.link.try_read();
    }

    /// Takes the beginning of a line that came before [`Multiplex::begin`] with nothing in flight.
    pub fn take_partial(&mut self) -> Option<Vec<u8>> {
        let partial = self.link.take_partial()?;
        self.record_stray(&partial);
        Some(partial)
    }

    /// Gives the next activation this number, as if so many had gone before: for a check, which cannot
    /// wait for them.
    pub fn number_from(&mut self, id: u64) {
        self.ledger.next = self.ledger.next.max(id);
    }

    /// Gives an activation its number and sends it. There must be a place for it.
    pub fn begin(&mut self, activation: &Activation) -> Ticket {
        let ticket = Ticket { id: self.ledger.begin(), from: self.outbox.queued };
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

    /// Says that nobody waits for this activation any more, if the process wants to hear it.
    pub fn cancel(&mut self, id: u64) {
        if self.promises.cancel {
            self.outbox.push(format!("{{\"cancel\":{id}}}\n").into_bytes());
            self.write_now();
        }
    }

    /// Asks it to write nothing more for this activation for now. Whether that was sent.
    pub fn pause(&mut self, id: u64) -> bool {
        let sends = self.promises.pause && self.outbox.unwritten_bytes() <= MAX_UNWRITTEN;
        if sends {
            self.outbox.push(format!("{{\"pause\":{id}}}\n").into_bytes());
            self.write_now();
        }
        sends
    }

    /// Asks it to go on after a pause.
    pub fn resume(&mut self, id: u64) {
        self.outbox.push(format!("{{\"resume\":{id}}}\n").into_bytes());
        self.write_now();
    }

    /// Says that its input is about to end, and how long it has then, if it wants to hear it. Waits no
    /// longer than that for a process that does not read.
    pub async fn say_stop(&mut self, grace: Duration) {
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

    /// Whether it is certain that the process never read a byte of this activation. To be asked only
    /// when the process reads no more.
    #[must_use]
    pub fn is_untouched(&self, ticket: Ticket) -> bool {
        self.link.unread().is_some_and(|unread| ticket.from >= self.outbox.written.saturating_sub(unread))
    }

    /// Moves some bytes, reading only if that is wanted. Cancelling it loses nothing.
    pub async fn step(&mut self, reads: bool) -> Step {
        match self.link.transfer(self.outbox.unwritten(), reads).await {
            Transfer::Read => {}
            Transfer::Wrote(count) => self.outbox.advance(count),
            Transfer::Gone => return Step::Gone,
        }
        self.write_now();
        Step::Moved
    }

    /// Reads once what there is by now, of a process that may have ended. Whether there was something;
    /// its events are to be taken before it is asked again.
    pub fn read_rest(&mut self) -> bool {
        matches!(self.link.try_read(), Ok(Fill::Some))
    }

    /// What was written of a frame that was never ended.
    #[must_use]
    pub fn partial(&self) -> &[u8] {
        self.link.partial()
    }

    /// Takes the next frame that is there in whole.
    pub fn take(&mut self) -> Option<Taken> {
        let limit_bytes = self.limit_bytes.saturating_add(FRAME_BYTES);
        let Some(Received { line, is_stray }) = self.link.next_line() else {
            return (self.link.pending().len() as u64 > limit_bytes).then_some(Taken::TooLong);
        };
        if line.len() as u64 > limit_bytes {
            return Some(Taken::TooLong);
        }
        let mut event = self.ledger.judge(&line, self.limit_bytes);
        if is_stray {
            if let Event::Ended(id, _) = event {
                self.ledger.restore(id);
            }
            event = Event::Stray("before the activation was read".into());
        }
        if let Event::Ended(_, ended) = &mut event
            && self.may_be_an_earlier_ones(&line)
            && let Some(second) = self.link.next_line()
        {
            // As in version 1: which of them is meant, nobody can say.
            *ended = Ended::Bad(answer::two_lines(&line, &second.line));
            self.record_stray(&second.line);
        }
        match event {
            Event::Ended(..) => self.link.end_activation(),
            Event::Stray(_) => self.record_stray(&line),
            Event::Chunk(..) | Event::Log(..) | Event::Broken(..) => {}
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
        let mut lines = self.link.pending().split_inclusive(|byte| *byte == b'\n');
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

    fn record_stray(&mut self, line: &[u8]) {
        let distrust = self.promises.concurrency == 1 && self.ledger.next > 1;
        self.link.record_stray(line, distrust);
    }

    /// Writes what fits now. That nobody reads is seen by the next step.
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

    /// What is unwritten of the first frame.
    fn unwritten(&self) -> &[u8] {
        self.frames.front().map_or(&[], |frame| &frame[self.sent..])
    }

    /// How many bytes are unwritten of all frames.
    fn unwritten_bytes(&self) -> u64 {
        self.queued - self.written
    }

    /// Notes that so many bytes of the first frame were written.
    fn advance(&mut self, count: usize) {
        self.written += count as u64;
        self.sent += count;
        if self.frames.front().is_some_and(|frame| self.sent == frame.len()) {
            self.frames.pop_front();
            self.sent = 0;
        }
    }
}

/// The sentence for a line that is nobody's.
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

    /// What happens in a conversation.
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
        let mut multiplex = Multiplex::new(Link::new(writer, reader, ResultChannel::Stdout), promises);
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
            let mut multiplex = Multiplex::new(Link::new(writer, reader, ResultChannel::Stdout), promises);
            // The process closes its result channel, and lives on.
            drop(results.1);
            multiplex.look_for_strays();
            let step = tokio::time::timeout(Duration::from_secs(10), multiplex.step(true)).await;
            assert_eq!(step.expect("it is not waited for"), Step::Gone);
        });
    }
}
