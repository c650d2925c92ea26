//! A streamed body, item by item, and what the caller does between two items.
//!
//! A server-sent event and a line of JSON become the same item: an object of one member.

use std::io;

use serde_json::{Value, json};
use testkit::http::Response;

use super::caller::Caller;
use super::case::{Run, StreamStep};
use super::{Played, Stage, check, excerpt};

impl Stage<'_> {
    /// Receives a stream item by item, and takes the caller's steps between them.
    pub(super) fn stream(&self, caller: &mut Caller, run: &Run) -> Played {
        let mut body: Option<Body<'_>> = None;
        let mut any = false;
        for step in &run.stream {
            match step {
                StreamStep::Raise(event) => self.raise(event)?,
                StreamStep::Await(event) => self.await_event(event)?,
                StreamStep::Leave(_) => {
                    drop(body);
                    caller.leave();
                    return Ok(());
                }
                StreamStep::AnyChunks(_) => any = true,
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
                        let got = body.next().map_err(|no_item| no_item.reason(self))?;
                        if is_same(expected, &got) {
                            break;
                        }
                        if !(any && got.get("chunk").is_some()) {
                            return Err(format!("expected {}, got {}", describe(expected), excerpt(&got.to_string())));
                        }
                    }
                    any = false;
                }
            }
        }
        let Some(mut body) = body else { return Err("the case expects no item".into()) };
        body.end().map_err(|no_item| no_item.reason(self))
    }
}

/// Whether an item is the expected one.
fn is_same(expected: &StreamStep, got: &Value) -> bool {
    if let StreamStep::Fails(texts) = expected {
        let sentence = got.get("error").and_then(Value::as_str);
        return sentence.is_some_and(|sentence| texts.iter().all(|text| sentence.contains(text)));
    }
    exact_item(expected).is_some_and(|expected| *got == expected)
}

/// The one item that is expected, where exactly one will do.
fn exact_item(expected: &StreamStep) -> Option<Value> {
    match expected {
        StreamStep::Chunk(value) => Some(json!({ "chunk": value })),
        StreamStep::Result(value) => Some(json!({ "result": value })),
        StreamStep::Error(value) => Some(json!({ "error": value })),
        StreamStep::Fails(_)
        | StreamStep::AnyChunks(_)
        | StreamStep::Raise(_)
        | StreamStep::Await(_)
        | StreamStep::Leave(_) => None,
    }
}

fn describe(expected: &StreamStep) -> String {
    match expected {
        StreamStep::Fails(texts) if texts.is_empty() => "an `error` with a sentence".into(),
        StreamStep::Fails(texts) => format!("an `error` whose sentence holds `{}`", texts.join("`, `")),
        exact => exact_item(exact).map_or_else(|| "nothing".into(), |exact| excerpt(&exact.to_string())),
    }
}

/// Why there is no item.
enum NoItem {
    Broken(io::Error),
    Wrong(String),
}

impl NoItem {
    fn reason(self, stage: &Stage<'_>) -> String {
        match self {
            Self::Broken(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                format!("the body was cut off: {}", stage.broken(&error))
            }
            Self::Broken(error) => stage.broken(&error),
            Self::Wrong(reason) => reason,
        }
    }
}

/// How items are framed.
#[derive(Clone, Copy)]
enum Format {
    Events,
    Lines,
}

/// A body that is still coming.
struct Body<'a> {
    caller: &'a mut Caller,
    format: Format,
    /// Bytes that came and were not taken.
    buffer: Vec<u8>,
}

impl<'a> Body<'a> {
    fn new(head: &Response, caller: &'a mut Caller) -> Result<Self, String> {
        let media_type = head.header("content-type").unwrap_or_default();
        let format = match media_type.split(';').next().unwrap_or_default().trim() {
            "text/event-stream" => Format::Events,
            "application/x-ndjson" => Format::Lines,
            _ => return Err(format!("expected a stream of events or lines, got `{media_type}`")),
        };
        Ok(Self { caller, format, buffer: Vec::new() })
    }

    /// The next item.
    fn next(&mut self) -> Result<Value, NoItem> {
        let end: &[u8] = match self.format {
            Format::Events => b"\n\n",
            Format::Lines => b"\n",
        };
        // Each byte is searched once.
        let mut searched = 0;
        loop {
            let from = searched.min(self.buffer.len());
            if let Some(at) = self.buffer[from..].windows(end.len()).position(|window| window == end) {
                let at = from + at;
                let item = String::from_utf8_lossy(&self.buffer[..at]).into_owned();
                self.buffer.drain(..at + end.len());
                let wrong = || NoItem::Wrong(format!("got something other than an item: {}", excerpt(&item)));
                return match self.format {
                    Format::Events => event(&item),
                    Format::Lines => serde_json::from_str(&item).ok(),
                }
                .ok_or_else(wrong);
            }
            searched = self.buffer.len().saturating_sub(end.len() - 1);
            if !self.receive_chunk()? {
                let rest = excerpt(&String::from_utf8_lossy(&self.buffer));
                return Err(NoItem::Wrong(format!("expected another item, got the end of the body behind {rest}")));
            }
        }
    }

    /// Receives a chunk of the body. Returns whether there was one.
    fn receive_chunk(&mut self) -> Result<bool, NoItem> {
        let chunk = self.caller.receive_chunk().map_err(NoItem::Broken)?;
        let is_last = chunk.is_none();
        self.buffer.extend(chunk.unwrap_or_default());
        Ok(!is_last)
    }

    /// Checks that the body ends here.
    fn end(&mut self) -> Result<(), NoItem> {
        while self.buffer.is_empty() {
            if !self.receive_chunk()? {
                return Ok(());
            }
        }
        let rest = excerpt(&String::from_utf8_lossy(&self.buffer));
        Err(NoItem::Wrong(format!("expected the end of the body, got {rest}")))
    }
}

/// A server-sent event as an item. All of its data stands on one line, since it is JSON.
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
