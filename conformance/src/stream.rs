//! A body that arrives while it is made, piece by piece, and a caller that does something in between.
//!
//! Server-sent events and lines of JSON become the same pieces: an object of one member each.

use std::io;

use serde_json::{Value, json};

use super::case::{Piece, Run};
use super::http::{Answer, Caller};
use super::{Played, Stage, check, excerpt};

impl Stage<'_> {
    /// Reads the answer to a request that was sent as its pieces, and does what stands between them.
    pub(super) fn stream(&self, caller: &mut Caller, run: &Run) -> Played {
        let mut body: Option<Body<'_>> = None;
        let mut any = false;
        for piece in &run.stream {
            match piece {
                Piece::Raise(event) => self.raise(event)?,
                Piece::Await(event) => self.await_event(event)?,
                Piece::Leave(_) => {
                    drop(body);
                    caller.leave();
                    return Ok(());
                }
                Piece::AnyChunks(_) => any = true,
                expected => {
                    if body.is_none() {
                        let head = caller.receive_head().map_err(|error| self.broken(&error))?;
                        if !head.is_chunked() {
                            return Err(format!("expected a stream, got {} with a whole body", head.status));
                        }
                        check(&head, &run.expect, None)?;
                        body = Some(Body::new(&head, caller)?);
                    }
                    let body = body.as_mut().expect("it was made above");
                    loop {
                        let got = body.next().map_err(|reason| reason.told(self))?;
                        if is_same(expected, &got) {
                            break;
                        }
                        if !(any && got.get("chunk").is_some()) {
                            return Err(format!("expected {}, got {}", told(expected), excerpt(&got.to_string())));
                        }
                    }
                    any = false;
                }
            }
        }
        let Some(mut body) = body else { return Err("the case expects no piece".into()) };
        body.end().map_err(|reason| reason.told(self))
    }
}

/// Whether a piece is the one that was expected.
fn is_same(expected: &Piece, got: &Value) -> bool {
    if let Piece::Fails(texts) = expected {
        let sentence = got.get("error").and_then(Value::as_str);
        return sentence.is_some_and(|sentence| texts.iter().all(|text| sentence.contains(text)));
    }
    to_the_letter(expected).is_some_and(|expected| *got == expected)
}

/// What a piece is, where nothing of it is left open.
fn to_the_letter(expected: &Piece) -> Option<Value> {
    match expected {
        Piece::Chunk(value) => Some(json!({ "chunk": value })),
        Piece::Result(value) => Some(json!({ "result": value })),
        Piece::Error(value) => Some(json!({ "error": value })),
        Piece::Fails(_) | Piece::AnyChunks(_) | Piece::Raise(_) | Piece::Await(_) | Piece::Leave(_) => None,
    }
}

fn told(expected: &Piece) -> String {
    match expected {
        Piece::Fails(texts) if texts.is_empty() => "an `error` with a sentence".into(),
        Piece::Fails(texts) => format!("an `error` whose sentence holds `{}`", texts.join("`, `")),
        exact => to_the_letter(exact).map_or_else(|| "nothing".into(), |exact| excerpt(&exact.to_string())),
    }
}

/// Why there is no piece.
enum NoPiece {
    Broken(io::Error),
    Wrong(String),
}

impl NoPiece {
    fn told(self, stage: &Stage<'_>) -> String {
        match self {
            Self::Broken(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                format!("the body was cut off: {}", stage.broken(&error))
            }
            Self::Broken(error) => stage.broken(&error),
            Self::Wrong(reason) => reason,
        }
    }
}

/// How pieces are written.
#[derive(Clone, Copy)]
enum Format {
    Events,
    Lines,
}

/// A body as it comes.
struct Body<'a> {
    caller: &'a mut Caller,
    format: Format,
    /// What came and was not taken.
    held: Vec<u8>,
}

impl<'a> Body<'a> {
    fn new(head: &Answer, caller: &'a mut Caller) -> Result<Self, String> {
        let media_type = head.header("content-type").unwrap_or_default();
        let format = match media_type.split(';').next().unwrap_or_default().trim() {
            "text/event-stream" => Format::Events,
            "application/x-ndjson" => Format::Lines,
            _ => return Err(format!("expected a stream of events or lines, got `{media_type}`")),
        };
        Ok(Self { caller, format, held: Vec::new() })
    }

    /// The next piece.
    fn next(&mut self) -> Result<Value, NoPiece> {
        let end: &[u8] = match self.format {
            Format::Events => b"\n\n",
            Format::Lines => b"\n",
        };
        // What was looked through once is not looked through again.
        let mut looked = 0;
        loop {
            let from = looked.min(self.held.len());
            if let Some(at) = self.held[from..].windows(end.len()).position(|window| window == end) {
                let at = from + at;
                let piece = String::from_utf8_lossy(&self.held[..at]).into_owned();
                self.held.drain(..at + end.len());
                let wrong = || NoPiece::Wrong(format!("got what is no piece: {}", excerpt(&piece)));
                return match self.format {
                    Format::Events => event(&piece),
                    Format::Lines => serde_json::from_str(&piece).ok(),
                }
                .ok_or_else(wrong);
            }
            looked = self.held.len().saturating_sub(end.len() - 1);
            if !self.caller.receive_chunk(&mut self.held).map_err(NoPiece::Broken)? {
                let rest = excerpt(&String::from_utf8_lossy(&self.held));
                return Err(NoPiece::Wrong(format!("expected another piece, got the end of the body behind {rest}")));
            }
        }
    }

    /// Nothing more comes.
    fn end(&mut self) -> Result<(), NoPiece> {
        while self.held.is_empty() {
            if !self.caller.receive_chunk(&mut self.held).map_err(NoPiece::Broken)? {
                return Ok(());
            }
        }
        let rest = excerpt(&String::from_utf8_lossy(&self.held));
        Err(NoPiece::Wrong(format!("expected the end of the body, got {rest}")))
    }
}

/// A server-sent event as a piece. All of its data stands on one line, as it does for JSON.
fn event(text: &str) -> Option<Value> {
    let (name, data) = match text.strip_prefix("event: ") {
        None => ("chunk", text),
        Some(rest) => rest.split_once('\n')?,
    };
    let data: Value = serde_json::from_str(data.strip_prefix("data: ")?).ok()?;
    match name {
        "chunk" | "result" => Some(json!({ name: data })),
        "error" => {
            data.as_object().filter(|object| object.len() == 1 && object.contains_key("error")).map(|_| data.clone())
        }
        _ => None,
    }
}
