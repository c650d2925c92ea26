//! What is said with a process of version 2 while it is checked: whose each frame is, and when it came.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::activation::Activation;
use crate::logs::Logs;
use crate::process::Process;
use crate::protocol::answer::{self, Gathered};
use crate::protocol::frame::{self, Id, Kind};
use crate::protocol::multiplex::{Ended, Event, Multiplex, Step, Taken, Ticket};

use super::activate::{SECOND_THOUGHTS, is_cut_off};
use super::finding::FrameFault;

/// What came back for some activations, and what came beside it.
#[derive(Debug, Default)]
pub(super) struct Dialogue {
    pub(super) flights: Vec<Flight>,
    /// Frames that are nobody's, and why.
    pub(super) misfits: Vec<(FrameFault, Bytes)>,
    /// Lines that are no frame, and what is wrong with each.
    pub(super) noise: Vec<(String, Bytes)>,
    /// The first object that brings nothing, and what is wrong with it.
    pub(super) hollow: Option<(String, Bytes)>,
    /// When something came that may be the end of an activation, had it been told whose.
    lost: Vec<Instant>,
    bytes: u64,
}

/// An activation that was sent.
#[derive(Debug)]
pub(super) struct Flight {
    pub(super) ticket: Ticket,
    pub(super) begun: Instant,
    /// When its first frame came.
    pub(super) first: Option<Instant>,
    /// When its first chunk came. What came together came at the same time.
    pub(super) first_chunk: Option<Instant>,
    /// How many chunks it had.
    pub(super) chunks: usize,
    /// All of them, a line each.
    pub(super) lines: Vec<u8>,
    pub(super) ended: Option<(Instant, Ended)>,
}

/// Why nothing more is listened to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rest {
    /// What was waited for has come.
    Enough,
    /// It has not come in time.
    TimeUp,
    /// The process is gone, or its result channel.
    Gone,
    /// More has come than an answer may hold.
    TooLong,
}

impl Dialogue {
    /// Hears what has come while nothing was in flight.
    pub(super) fn hear_strays(&mut self, multiplex: &mut Multiplex, given: &BTreeSet<u64>) {
        multiplex.read_strays();
        let several = multiplex.promises().concurrency > 1;
        while let Some(Taken::Frame(event, line)) = multiplex.take() {
            self.note(Instant::now(), event, line, given, several);
        }
        if let Some(partial) = multiplex.take_partial() {
            keep(&mut self.noise, ("that is not ended".into(), partial.into()));
        }
    }

    /// Sends an activation.
    pub(super) fn send(&mut self, multiplex: &mut Multiplex, given: &mut BTreeSet<u64>, activation: &Activation) {
        let begun = Instant::now();
        let ticket = multiplex.begin(activation);
        given.insert(ticket.id);
        self.flights.push(Flight {
            ticket,
            begun,
            first: None,
            first_chunk: None,
            chunks: 0,
            lines: Vec::new(),
            ended: None,
        });
    }

    /// Listens until `enough` says so, or for so long. Hears what has come in any case.
    pub(super) async fn listen(
        &mut self,
        talk: Talk<'_>,
        limit_bytes: u64,
        within: Duration,
        enough: impl Fn(&Self) -> bool,
    ) -> Rest {
        let Talk { multiplex, given, process, logs } = talk;
        let deadline = Instant::now() + within;
        let mut gone = false;
        loop {
            let at = Instant::now();
            while let Some(taken) = multiplex.take() {
                tokio::task::consume_budget().await;
                let Taken::Frame(event, line) = taken else { return Rest::TooLong };
                if let Event::Log(_, text) = &event {
                    let lines = logs.lines_of(text, None);
                    logs.feed_frames(&lines);
                }
                let several = multiplex.promises().concurrency > 1;
                self.note(at, event, line, given, several);
                if Instant::now() >= deadline && !enough(self) {
                    // Whoever writes without end is not listened to without end.
                    return Rest::TimeUp;
                }
            }
            if enough(self) {
                return Rest::Enough;
            }
            if self.bytes > limit_bytes {
                return Rest::TooLong;
            }
            if gone {
                if multiplex.read_rest() {
                    continue;
                }
                return Rest::Gone;
            }
            let until = self.is_lost_since().map_or(deadline, |lost| deadline.min(lost + SECOND_THOUGHTS));
            tokio::select! {
                step = multiplex.step(true) => gone = step == Step::Gone,
                _ = process.exited() => gone = true,
                () = logs.pump() => unreachable!("a pump never ends"),
                () = tokio::time::sleep_until(until.into()) => return Rest::TimeUp,
            }
        }
    }

    /// Notes what a line means.
    fn note(&mut self, at: Instant, event: Event, line: Bytes, given: &BTreeSet<u64>, several: bool) {
        match event {
            Event::Chunk(id, chunk) => {
                self.bytes += chunk.len() as u64 + 1;
                self.of(id, at, |flight| {
                    flight.first_chunk.get_or_insert(at);
                    flight.chunks += 1;
                    flight.lines.extend_from_slice(&chunk);
                    flight.lines.push(b'\n');
                });
            }
            Event::Log(id, _) => self.of(id, at, |_| {}),
            Event::Ended(id, ended) => self.of(id, at, |flight| flight.ended = Some((at, ended))),
            Event::Malformed(_, problem) => {
                keep(&mut self.lost, at);
                match frame::parse(&line) {
                    Ok(_) => self.hollow = self.hollow.take().or(Some((problem, line))),
                    Err(_) => keep(&mut self.noise, (problem, line)),
                }
            }
            Event::Stray(_) => match frame::parse(&line) {
                Err(problem) => {
                    if is_cut_off(&line) {
                        keep(&mut self.lost, at);
                    }
                    keep(&mut self.noise, (format!("that is {problem}"), line));
                }
                Ok(frame) => {
                    let last = given.last().copied();
                    let fault = match frame.id {
                        None if several => FrameFault::NoId,
                        None => FrameFault::Behind { id: last },
                        Some(Id::Number(id)) if given.contains(&id) => FrameFault::Behind { id: Some(id) },
                        Some(_) => FrameFault::Unknown { given: last },
                    };
                    let behind = matches!(fault, FrameFault::Behind { .. });
                    let goes_on = matches!(frame.kind, Ok(Kind::Chunk(_) | Kind::Log(_)));
                    if !behind && !goes_on {
                        keep(&mut self.lost, at);
                    }
                    match frame.kind {
                        Err(problem) if !behind => self.hollow = self.hollow.take().or(Some((problem, line))),
                        _ => keep(&mut self.misfits, (fault, line)),
                    }
                }
            },
        }
    }

    fn of(&mut self, id: u64, at: Instant, note: impl FnOnce(&mut Flight)) {
        if let Some(flight) = self.flights.iter_mut().find(|flight| flight.ticket.id == id) {
            flight.first.get_or_insert(at);
            note(flight);
        }
    }

    /// Whether every activation has ended.
    pub(super) fn is_over(&self) -> bool {
        self.open() == 0
    }

    /// How many activations have not ended.
    pub(super) fn open(&self) -> usize {
        self.flights.iter().filter(|flight| flight.ended.is_none()).count()
    }

    /// Since when there is, for each activation that is open, an end that may have been meant for it.
    fn is_lost_since(&self) -> Option<Instant> {
        let open = self.open();
        (open > 0).then(|| self.lost.get(open - 1).copied()).flatten()
    }
}

/// Keeps the first of many: a process may write what is nobody's without end.
fn keep<T>(kept: &mut Vec<T>, next: T) {
    const MAX_KEPT: usize = 16;
    if kept.len() < MAX_KEPT {
        kept.push(next);
    }
}

/// A process that is spoken with.
pub(super) struct Talk<'a> {
    pub(super) multiplex: &'a mut Multiplex,
    /// Every number that it was sent.
    pub(super) given: &'a BTreeSet<u64>,
    pub(super) process: &'a Process,
    pub(super) logs: &'a mut Logs,
}

impl Flight {
    /// How long it took, if it has ended.
    pub(super) fn took(&self) -> Option<Duration> {
        self.ended.as_ref().map(|(at, _)| at.duration_since(self.begun))
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

    /// Everything that it brought, to be searched.
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
