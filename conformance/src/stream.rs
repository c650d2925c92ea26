//! A streamed body, item by item, and what the caller does between two items.

use std::io;

use serde_json::Value;
use testkit::http::Response;
use testkit::stream::{Items, StreamFormat, StreamItem};

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
                        if !(any && matches!(got, StreamItem::Chunk(_))) {
                            return Err(format!(
                                "expected {}, got {}",
                                describe(expected),
                                excerpt(&got.to_json().to_string())
                            ));
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
fn is_same(expected: &StreamStep, got: &StreamItem) -> bool {
    match (expected, got) {
        (StreamStep::Fails(texts), StreamItem::Error(Value::String(sentence))) => {
            texts.iter().all(|text| sentence.contains(text))
        }
        (StreamStep::Chunk(expected), StreamItem::Chunk(got))
        | (StreamStep::Result(expected), StreamItem::Result(got))
        | (StreamStep::Error(expected), StreamItem::Error(got)) => expected == got,
        _ => false,
    }
}

fn describe(expected: &StreamStep) -> String {
    let item = match expected {
        StreamStep::Fails(texts) if texts.is_empty() => return "an `error` with a sentence".into(),
        StreamStep::Fails(texts) => return format!("an `error` whose sentence holds `{}`", texts.join("`, `")),
        StreamStep::Chunk(value) => StreamItem::Chunk(value.clone()),
        StreamStep::Result(value) => StreamItem::Result(value.clone()),
        StreamStep::Error(value) => StreamItem::Error(value.clone()),
        StreamStep::AnyChunks(_) | StreamStep::Raise(_) | StreamStep::Await(_) | StreamStep::Leave(_) => {
            return "nothing".into();
        }
    };
    excerpt(&item.to_json().to_string())
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

/// A body that is still coming.
struct Body<'a> {
    caller: &'a mut Caller,
    items: Items,
}

impl<'a> Body<'a> {
    fn new(head: &Response, caller: &'a mut Caller) -> Result<Self, String> {
        let content_type = head.header("content-type").unwrap_or_default();
        let format = StreamFormat::of_content_type(content_type)
            .ok_or_else(|| format!("expected a stream of events or lines, got `{content_type}`"))?;
        Ok(Self { caller, items: Items::new(format) })
    }

    /// The next item.
    fn next(&mut self) -> Result<StreamItem, NoItem> {
        loop {
            let wrong = |text: String| NoItem::Wrong(format!("got something other than an item: {}", excerpt(&text)));
            if let Some(item) = self.items.take().map_err(wrong)? {
                return Ok(item);
            }
            if !self.receive_chunk()? {
                let rest = self.rest();
                return Err(NoItem::Wrong(format!("expected another item, got the end of the body behind {rest}")));
            }
        }
    }

    /// Receives a chunk of the body. Returns whether there was one.
    fn receive_chunk(&mut self) -> Result<bool, NoItem> {
        let chunk = self.caller.receive_chunk().map_err(NoItem::Broken)?;
        self.items.push(chunk.as_deref().unwrap_or_default());
        Ok(chunk.is_some())
    }

    /// Checks that the body ends here.
    fn end(&mut self) -> Result<(), NoItem> {
        while self.items.rest().is_empty() {
            if !self.receive_chunk()? {
                return Ok(());
            }
        }
        Err(NoItem::Wrong(format!("expected the end of the body, got {}", self.rest())))
    }

    fn rest(&self) -> String {
        excerpt(&String::from_utf8_lossy(self.items.rest()))
    }
}
