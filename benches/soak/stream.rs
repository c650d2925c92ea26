//! A streamed answer item by item: server-sent events or lines of JSON.

use std::io;

use memchr::memmem;
use serde_json::Value;
use testkit::http::Caller;

/// How items are framed.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Format {
    Events,
    Lines,
}

/// An item of a stream.
#[derive(Debug)]
pub(crate) enum StreamItem {
    Chunk(Value),
    Result(Value),
    Error(Value),
}

/// A body that is read item by item, however its bytes arrive.
pub(crate) struct Stream<'a> {
    caller: &'a mut Caller,
    format: Format,
    buffer: Vec<u8>,
    searched: usize,
}

impl Format {
    /// The formats alternate.
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

    fn parse(self, text: &str) -> Option<StreamItem> {
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
                // An error is an object of that one member, as in an event.
                let json = if name == "error" { serde_json::json!({ "error": json }) } else { json };
                (name, json)
            }
        };
        match &*name {
            "chunk" => Some(StreamItem::Chunk(json)),
            "result" => Some(StreamItem::Result(json)),
            "error" => Some(StreamItem::Error(json)),
            _ => None,
        }
    }
}

impl<'a> Stream<'a> {
    /// The body behind a head that was received.
    pub(crate) fn new(caller: &'a mut Caller, format: Format) -> Self {
        Self { caller, format, buffer: Vec::new(), searched: 0 }
    }

    /// The next item. `None` is the proper end of the body.
    ///
    /// # Errors
    /// If the body breaks off, or holds something else.
    pub(crate) fn next(&mut self) -> io::Result<Option<StreamItem>> {
        let end = self.format.end();
        loop {
            if let Some(at) = memmem::find(&self.buffer[self.searched..], end) {
                let mut text: Vec<u8> = self.buffer.drain(..self.searched + at + end.len()).collect();
                self.searched = 0;
                text.truncate(text.len() - end.len());
                let text = String::from_utf8(text).map_err(io::Error::other)?;
                let item = self.format.parse(&text);
                return item.map(Some).ok_or_else(|| io::Error::other(format!("no item of a stream: {text}")));
            }
            self.searched = (self.buffer.len() + 1).saturating_sub(end.len());
            match self.caller.receive_chunk()? {
                Some(bytes) => self.buffer.extend(bytes),
                None if self.buffer.is_empty() => return Ok(None),
                None => return Err(io::Error::other("a body that ends in the middle of an item")),
            }
        }
    }
}
