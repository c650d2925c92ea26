//! A transcript of frames: the activations sent to a process of version 2, what came back for each, and when.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::activation::Activation;
use crate::logs::Logs;
use crate::process::Process;
use crate::protocol::answer::{self, Gathered};
use crate::protocol::frame::{self, Id, Kind};
use crate::protocol::multiplex::{Ended, Event, Multiplex, Step, Taken, Ticket};

use super::activate::{LATE_OUTPUT_GRACE, is_cut_off};
use super::finding::FrameFault;

/// The frames that came back for some activations, and other output beside them.
#[derive(Debug, Default)]
pub(super) struct Transcript {
    pub(super) activations: Vec<SentActivation>,
    /// Frames that belong to no activation in flight, and why.
    pub(super) unexpected: Vec<(FrameFault, Bytes)>,
    /// Lines that are not frames, and what is wrong with each.
    pub(super) non_frames: Vec<(String, Bytes)>,
    /// The first frame without a known member, and what is wrong with it.
    pub(super) malformed: Option<(String, Bytes)>,
    /// The times of lines that may have been the last frame of an activation, but named none.
    unattributed_ends: Vec<Instant>,
    bytes: u64,
}

/// An activation that was sent.
#[derive(Debug)]
pub(super) struct SentActivation {
    pub(super) ticket: Ticket,
    pub(super) started: Instant,
    /// When its first frame came.
    pub(super) first: Option<Instant>,
    /// When its first chunk came. Frames that were read together have the same time.
    pub(super) first_chunk: Option<Instant>,
    /// How many chunks it had.
    pub(super) chunks: usize,
    /// The chunks, one per line.
    pub(super) lines: Vec<u8>,
    pub(super) ended: Option<(Instant, Ended)>,
}

/// Why receiving stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Received {
    /// The expected frames have come.
    Complete,
    /// They have not come in time.
    TimedOut,
    /// The process has exited, or has closed its result channel.
    Closed,
    /// The output is longer than an answer may be.
    TooLong,
}

impl Transcript {
    /// Records output that came while nothing was in flight.
    pub(super) fn collect_strays(&mut self, multiplex: &mut Multiplex, sent_ids: &BTreeSet<u64>) {
        multiplex.read_strays();
        let several = multiplex.promises().concurrency > 1;
        while let Some(Taken::Frame(event, line)) = multiplex.take() {
            self.record(Instant::now(), event, line, sent_ids, several);
        }
        if let Some(partial) = multiplex.take_partial() {
            push_bounded(&mut self.non_frames, ("that is not ended".into(), partial.into()));
        }
    }

    /// Sends an activation.
    pub(super) fn send(&mut self, multiplex: &mut Multiplex, sent_ids: &mut BTreeSet<u64>, activation: &Activation) {
        let started = Instant::now();
        let ticket = multiplex.begin(activation);
        sent_ids.insert(ticket.id);
        self.activations.push(SentActivation {
            ticket,
            started,
            first: None,
            first_chunk: None,
            chunks: 0,
            lines: Vec::new(),
            ended: None,
        });
    }

    /// Receives until `is_complete`, or for `within`. Records output that has come already in any case.
    pub(super) async fn receive(
        &mut self,
        peer: Peer<'_>,
        limit_bytes: u64,
        within: Duration,
        is_complete: impl Fn(&Self) -> bool,
    ) -> Received {
        let Peer { multiplex, sent_ids, process, logs } = peer;
        let deadline = Instant::now() + within;
        let mut gone = false;
        loop {
            let at = Instant::now();
            while let Some(taken) = multiplex.take() {
                tokio::task::consume_budget().await;
                let Taken::Frame(event, line) = taken else { return Received::TooLong };
                if let Event::Log(_, text) = &event {
                    let lines = logs.format_lines(text, None);
                    logs.append_lines(&lines);
                }
                let several = multiplex.promises().concurrency > 1;
                self.record(at, event, line, sent_ids, several);
                if Instant::now() >= deadline && !is_complete(self) {
                    // A process that never stops writing must not keep the check from its limit.
                    return Received::TimedOut;
                }
            }
            if is_complete(self) {
                return Received::Complete;
            }
            if self.bytes > limit_bytes {
                return Received::TooLong;
            }
            if gone {
                if multiplex.read_rest() {
                    continue;
                }
                return Received::Closed;
            }
            let until = self.unattributed_since().map_or(deadline, |since| deadline.min(since + LATE_OUTPUT_GRACE));
            tokio::select! {
                step = multiplex.step(true) => gone = step == Step::Gone,
                _ = process.exited() => gone = true,
                never = logs.pump() => match never {},
                () = tokio::time::sleep_until(until.into()) => return Received::TimedOut,
            }
        }
    }

    /// Records a line under its activation, or under what is wrong with it.
    fn record(&mut self, at: Instant, event: Event, line: Bytes, sent_ids: &BTreeSet<u64>, several: bool) {
        match event {
            Event::Chunk(id, chunk) => {
                self.bytes += chunk.len() as u64 + 1;
                self.with_sent(id, at, |sent| {
                    sent.first_chunk.get_or_insert(at);
                    sent.chunks += 1;
                    sent.lines.extend_from_slice(&chunk);
                    sent.lines.push(b'\n');
                });
            }
            Event::Log(id, _) => self.with_sent(id, at, |_| {}),
            Event::Ended(id, ended) => self.with_sent(id, at, |sent| sent.ended = Some((at, ended))),
            Event::Malformed(_, problem) => {
                push_bounded(&mut self.unattributed_ends, at);
                match frame::parse(&line) {
                    Ok(_) => self.malformed = self.malformed.take().or(Some((problem, line))),
                    Err(_) => push_bounded(&mut self.non_frames, (problem, line)),
                }
            }
            Event::Stray(_) => match frame::parse(&line) {
                Err(problem) => {
                    if is_cut_off(&line) {
                        push_bounded(&mut self.unattributed_ends, at);
                    }
                    push_bounded(&mut self.non_frames, (format!("that is {problem}"), line));
                }
                Ok(frame) => {
                    let last = sent_ids.last().copied();
                    let fault = match frame.id {
                        None if several => FrameFault::NoId,
                        None => FrameFault::AfterEnd { id: last },
                        Some(Id::Number(id)) if sent_ids.contains(&id) => FrameFault::AfterEnd { id: Some(id) },
                        Some(_) => FrameFault::UnknownId { last_sent: last },
                    };
                    let after_end = matches!(fault, FrameFault::AfterEnd { .. });
                    let goes_on = matches!(frame.kind, Ok(Kind::Chunk(_) | Kind::Log(_)));
                    if !after_end && !goes_on {
                        push_bounded(&mut self.unattributed_ends, at);
                    }
                    match frame.kind {
                        Err(problem) if !after_end => self.malformed = self.malformed.take().or(Some((problem, line))),
                        _ => push_bounded(&mut self.unexpected, (fault, line)),
                    }
                }
            },
        }
    }

    fn with_sent(&mut self, id: u64, at: Instant, record: impl FnOnce(&mut SentActivation)) {
        if let Some(sent) = self.activations.iter_mut().find(|sent| sent.ticket.id == id) {
            sent.first.get_or_insert(at);
            record(sent);
        }
    }

    /// Whether every activation has ended.
    pub(super) fn all_ended(&self) -> bool {
        self.open_count() == 0
    }

    /// How many activations have not ended.
    pub(super) fn open_count(&self) -> usize {
        self.activations.iter().filter(|sent| sent.ended.is_none()).count()
    }

    /// When the last line came of as many possible ends as there are open activations.
    fn unattributed_since(&self) -> Option<Instant> {
        let open = self.open_count();
        (open > 0).then(|| self.unattributed_ends.get(open - 1).copied()).flatten()
    }
}

/// Keeps the first of many, because a process may write stray lines without end.
fn push_bounded<T>(kept: &mut Vec<T>, next: T) {
    const MAX_KEPT: usize = 16;
    if kept.len() < MAX_KEPT {
        kept.push(next);
    }
}

/// The process on the other side.
pub(super) struct Peer<'a> {
    pub(super) multiplex: &'a mut Multiplex,
    /// Every id that it was sent.
    pub(super) sent_ids: &'a BTreeSet<u64>,
    pub(super) process: &'a Process,
    pub(super) logs: &'a mut Logs,
}

impl SentActivation {
    /// How long it took, if it has ended.
    pub(super) fn took(&self) -> Option<Duration> {
        self.ended.as_ref().map(|(at, _)| at.duration_since(self.started))
    }

    /// The answer as one body, or what is wrong with it.
    pub(super) fn answer(&self) -> Option<Result<Bytes, crate::error::BadAnswer>> {
        Some(match &self.ended.as_ref()?.1 {
            Ended::Result(answer) => Ok(answer.clone()),
            Ended::Error(error) => Ok(answer::failure(error)),
            Ended::Bad(problem) => Err(problem.clone()),
            Ended::End => {
                let mut gathered = Gathered::default();
                for chunk in self.lines.split(|byte| *byte == b'\n').take(self.chunks) {
                    gathered.add(chunk, u64::MAX);
                }
                Ok(gathered.into_answer())
            }
        })
    }

    /// Its chunks and its result, to search in.
    pub(super) fn text(&self) -> Vec<u8> {
        let mut text = self.lines.clone();
        if let Some((_, Ended::Result(last) | Ended::Error(last))) = &self.ended {
            text.extend_from_slice(last);
        }
        text
    }

    /// Whether several chunks came, and all of them together with the end.
    pub(super) fn came_at_once(&self) -> bool {
        let end = self.ended.as_ref().map(|(at, _)| *at);
        self.chunks > 1 && self.first_chunk == end
    }
}
