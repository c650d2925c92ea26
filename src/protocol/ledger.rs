//! Which activations of a version 2 conversation are in flight, and what a frame means for them.
//!
//! Pure: knows ids and frames; knows no pipe, no caller and no time.

use bytes::Bytes;

use crate::activation::Answer;
use crate::error::BadAnswer;

use super::answer;
use super::frame::{self, Id, Kind};

/// A chunk up to this size is copied out of the buffer that it arrived in. Otherwise a small chunk that
/// is kept for a slow caller would keep the whole buffer.
const COPY_BELOW: usize = 256 * 1024;

/// What a frame means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A part of the answer of this activation.
    Chunk(u64, Bytes),
    /// Text for the log of this activation.
    Log(u64, String),
    /// This activation has ended.
    Ended(u64, Ended),
    /// A frame of this activation is malformed, for this reason. The activation has not ended.
    Malformed(u64, String),
    /// The frame belongs to no activation, for this reason.
    Stray(String),
}

/// How an activation ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// With a result.
    Result(Answer),
    /// With an error from the action, which is any JSON.
    Error(Bytes),
    /// With its chunks as the whole answer.
    End,
    /// With an unusable result.
    Bad(BadAnswer),
}

/// The ids of the activations in flight.
///
/// An id is assigned once in the life of a process. It leaves the ledger with the first `result`, `error`
/// or `end` frame that has it, and in no other way.
#[derive(Debug)]
pub(super) struct Ledger {
    concurrency: usize,
    next: u64,
    open: Vec<u64>,
}

impl Ledger {
    pub(super) fn new(concurrency: usize) -> Self {
        Self { concurrency, next: 1, open: Vec::new() }
    }

    /// Assigns the next id. Fewer than `concurrency` activations must be in flight.
    pub(super) fn begin(&mut self) -> u64 {
        debug_assert!(self.open.len() < self.concurrency, "more in flight than declared");
        let id = self.next;
        self.next += 1;
        self.open.push(id);
        id
    }

    /// Assigns at least this id next.
    pub(super) fn skip_to(&mut self, id: u64) {
        self.next = self.next.max(id);
    }

    /// The last id that was assigned; 0 before the first.
    pub(super) fn last_assigned(&self) -> u64 {
        self.next - 1
    }

    /// How many activations are in flight.
    #[cfg(test)]
    pub(super) fn in_flight(&self) -> usize {
        self.open.len()
    }

    /// Puts an id back whose end came too early to be one.
    pub(super) fn reopen(&mut self, id: u64) {
        self.open.push(id);
    }

    /// Parses one line and says what it means. An id that it ends leaves the ledger.
    pub(super) fn classify(&mut self, line: &Bytes, limit_bytes: u64) -> Event {
        let only = (self.concurrency == 1).then(|| self.open.first().copied()).flatten();
        let frame = match frame::parse(line) {
            Ok(frame) => frame,
            Err(problem) => {
                return match only {
                    Some(id) => Event::Malformed(id, format!("that is {problem}")),
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
            Err(problem) => return Event::Malformed(id, problem),
            Ok(Kind::Chunk(json)) if json.len() < COPY_BELOW => return Event::Chunk(id, Bytes::copy_from_slice(&json)),
            Ok(Kind::Chunk(json)) => return Event::Chunk(id, json),
            Ok(Kind::Log(text)) => return Event::Log(id, text),
            Ok(Kind::Result(json)) if json.len() as u64 > limit_bytes => {
                return Event::Malformed(id, format!("whose `result` has more than {limit_bytes} bytes"));
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
    use proptest::prelude::*;

    /// One event of a conversation.
    #[derive(Debug, Clone)]
    enum Move {
        /// An activation begins, if fewer than `concurrency` are in flight.
        Begin,
        /// The process writes a frame of this kind, with this id or without one.
        Write(Option<u64>, u8),
        /// The process writes a line that is no frame.
        NonFrame(&'static str),
    }

    fn moves() -> impl Strategy<Value = Vec<Move>> {
        let number = prop_oneof![1 => Just(None), 9 => (0_u64..12).prop_map(Some)];
        let non_frame = prop::sample::select(&[
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
            1 => non_frame.prop_map(Move::NonFrame),
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
        /// Whatever a process writes, a frame belongs to the activation of its id or to none, and each
        /// activation ends once.
        #[test]
        fn a_frame_belongs_to_the_activation_of_its_id_or_to_none(concurrency in 1_usize..5, moves in moves()) {
            let mut ledger = Ledger::new(concurrency);
            // The oracle: whether the activation of each id is in flight.
            let mut open: Vec<bool> = Vec::new();
            for step in moves {
                let in_flight = |open: &[bool]| -> Vec<u64> {
                    (1..).zip(open).filter(|(_, open)| **open).map(|(id, _)| id).collect()
                };
                let expected = in_flight(&open);
                match step {
                    Move::Begin if expected.len() < concurrency => {
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
                        let owner = match number {
                            Some(number) => Some(number).filter(|number| expected.contains(number)),
                            None if concurrency == 1 => expected.first().copied(),
                            None => None,
                        };
                        let seen = match ledger.classify(&line.into(), 1000) {
                            Event::Chunk(id, _) => (Some(id), kind == 0),
                            Event::Log(id, _) => (Some(id), kind == 1),
                            Event::Malformed(id, _) => (Some(id), kind == 2),
                            Event::Ended(id, ended) => (Some(id), match ended {
                                Ended::Result(_) => kind == 3,
                                Ended::Bad(_) => kind == 4,
                                Ended::Error(_) => kind == 5,
                                Ended::End => kind == 6,
                            }),
                            Event::Stray(_) => (None, true),
                        };
                        prop_assert_eq!(seen, (owner, true));
                        if let Some(id) = owner && ends {
                            open[usize::try_from(id).unwrap() - 1] = false;
                        }
                    }
                    Move::NonFrame(line) => {
                        let event = ledger.classify(&Bytes::from_static(line.as_bytes()), 1000);
                        let fails = concurrency == 1 && !expected.is_empty() && !line.starts_with("{\"");
                        prop_assert_eq!(matches!(event, Event::Malformed(..)), fails, "{:?}", event);
                        prop_assert!(fails || matches!(event, Event::Stray(_)));
                    }
                }
                ledger.open.sort_unstable();
                prop_assert_eq!(&ledger.open, &in_flight(&open));
            }
        }
    }

    #[test]
    fn a_result_over_the_limit_does_not_end_its_activation() {
        let mut ledger = Ledger::new(2);
        let id = ledger.begin();
        let event = ledger.classify(&Bytes::from_static(b"{\"id\":1,\"result\":[1,2,3]}"), 6);
        assert_eq!(event, Event::Malformed(id, "whose `result` has more than 6 bytes".into()));
        let event = ledger.classify(&Bytes::from_static(b"{\"id\":1,\"result\":[1,2]}"), 6);
        assert_eq!(event, Event::Ended(id, Ended::Result("[1,2]".into())));
    }
}
