//! A streamed answer, taken apart: server-sent events or lines of JSON.

use std::io;

use memchr::memmem;
use serde_json::Value;

use crate::support::Caller;

/// What a caller asks for, and gets.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Format {
    Events,
    Lines,
}

/// One piece of it.
#[derive(Debug)]
pub(crate) enum Piece {
    Chunk(Value),
    Result(Value),
    Error(Value),
}

/// A body that is read piece by piece, however it is cut on its way.
pub(crate) struct Stream<'a> {
    caller: &'a mut Caller,
    format: Format,
    held: Vec<u8>,
    searched: usize,
}

impl Format {
    /// They take turns.
    pub(crate) fn of(n: u64) -> Self {
        if n.is_multiple_of(2) { Self::Events } else { Self::Lines }
    }

    pub(crate) fn media_type(self) -> &'static str {
        match self {
            Self::Events => "text/event-stream",
            Self::Lines => "application/x-ndjson",
        }
    }

    fn end(self) -> &'static [u8] {
        match self {
            Self::Events => b"\n\n",
            Self::Lines => b"\n",
        }
    }

    fn parse(self, text: &str) -> Option<Piece> {
        let (name, json) = match self {
            Self::Events => {
                let (name, data) = match text.strip_prefix("event: ") {
                    Some(named) => named.split_once('\n')?,
                    None => ("chunk", text),
                };
                (name.to_owned(), serde_json::from_str(data.strip_prefix("data: ")?).ok()?)
            }
            Self::Lines => {
                let Ok(Value::Object(line)) = serde_json::from_str(text) else { return None };
                let (name, json) = line.into_iter().next()?;
                // As in events, where an error is an object of that one member.
                let json = if name == "error" { serde_json::json!({ "error": json }) } else { json };
                (name, json)
            }
        };
        match &*name {
            "chunk" => Some(Piece::Chunk(json)),
            "result" => Some(Piece::Result(json)),
            "error" => Some(Piece::Error(json)),
            _ => None,
        }
    }
}

impl<'a> Stream<'a> {
    /// The body behind a head that was read.
    pub(crate) fn new(caller: &'a mut Caller, format: Format) -> Self {
        Self { caller, format, held: Vec::new(), searched: 0 }
    }

    /// The next piece; nothing at the proper end of the body.
    ///
    /// # Errors
    /// What is wrong with a body that is cut, or holds something else.
    pub(crate) fn next(&mut self) -> io::Result<Option<Piece>> {
        let end = self.format.end();
        loop {
            if let Some(at) = memmem::find(&self.held[self.searched..], end) {
                let mut text: Vec<u8> = self.held.drain(..self.searched + at + end.len()).collect();
                self.searched = 0;
                text.truncate(text.len() - end.len());
                let text = String::from_utf8(text).map_err(io::Error::other)?;
                let piece = self.format.parse(&text);
                return piece.map(Some).ok_or_else(|| io::Error::other(format!("no piece of a stream: {text}")));
            }
            self.searched = (self.held.len() + 1).saturating_sub(end.len());
            match self.caller.receive_piece()? {
                Some(bytes) => self.held.extend(bytes),
                None if self.held.is_empty() => return Ok(None),
                None => return Err(io::Error::other("a body that ends in the middle of a piece")),
            }
        }
    }
}
