//! A streamed body item by item: server-sent events or lines of JSON.
//!
//! It takes bytes as they come and knows no connection. Each item is an object of one member in either format.

use serde_json::{Value, json};

/// How the items of a stream are framed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamFormat {
    /// Server-sent events.
    Events,
    /// Lines of JSON.
    Lines,
}

/// An item of a stream. The last one is a result or an error.
#[derive(Debug, Clone, PartialEq)]
pub enum StreamItem {
    /// `{"chunk":VALUE}`.
    Chunk(Value),
    /// `{"result":VALUE}`.
    Result(Value),
    /// `{"error":VALUE}`.
    Error(Value),
}

/// The items in the bytes of a body, however these bytes are cut.
#[derive(Debug)]
pub struct Items {
    format: StreamFormat,
    /// Bytes that belong to no complete item yet.
    buffer: Vec<u8>,
    /// How many of them were searched for the end of an item.
    searched: usize,
}

impl StreamFormat {
    /// The format of a `Content-Type`, if it is one of a stream.
    pub fn of_content_type(content_type: &str) -> Option<Self> {
        let media_type = content_type.split(';').next().unwrap_or_default().trim();
        [Self::Events, Self::Lines].into_iter().find(|format| format.media_type() == media_type)
    }

    /// Its media type.
    pub fn media_type(self) -> &'static str {
        match self {
            Self::Events => "text/event-stream",
            Self::Lines => "application/x-ndjson",
        }
    }

    fn end_of_item(self) -> &'static [u8] {
        match self {
            Self::Events => b"\n\n",
            Self::Lines => b"\n",
        }
    }

    fn parse(self, text: &str) -> Option<StreamItem> {
        match self {
            Self::Lines => StreamItem::from_json(serde_json::from_str(text).ok()?),
            // All data of an event stands on one line, since it is JSON.
            Self::Events => {
                let (name, data) = match text.strip_prefix("event: ") {
                    Some(named) => named.split_once('\n')?,
                    None => ("chunk", text),
                };
                let data: Value = serde_json::from_str(data.strip_prefix("data: ")?).ok()?;
                // The data of an error is the whole object.
                StreamItem::from_json(if name == "error" { data } else { json!({ name: data }) })
                    .filter(|item| matches!(item, StreamItem::Error(_)) == (name == "error"))
            }
        }
    }
}

impl StreamItem {
    fn from_json(json: Value) -> Option<Self> {
        let Value::Object(object) = json else { return None };
        let mut members = object.into_iter();
        let (Some((name, value)), None) = (members.next(), members.next()) else { return None };
        match name.as_str() {
            "chunk" => Some(Self::Chunk(value)),
            "result" => Some(Self::Result(value)),
            "error" => Some(Self::Error(value)),
            _ => None,
        }
    }

    /// The item as its line has it.
    pub fn to_json(&self) -> Value {
        match self {
            Self::Chunk(value) => json!({ "chunk": value }),
            Self::Result(value) => json!({ "result": value }),
            Self::Error(value) => json!({ "error": value }),
        }
    }
}

impl Items {
    /// The items of a body that has not begun.
    pub fn new(format: StreamFormat) -> Self {
        Self { format, buffer: Vec::new(), searched: 0 }
    }

    /// Adds bytes that came.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Takes the next item. `None` if more bytes have to come first.
    ///
    /// # Errors
    /// The text that stands where an item should.
    pub fn take(&mut self) -> Result<Option<StreamItem>, String> {
        let end = self.format.end_of_item();
        let unsearched = &self.buffer[self.searched..];
        let Some(at) = unsearched.windows(end.len()).position(|window| window == end) else {
            self.searched = (self.buffer.len() + 1).saturating_sub(end.len());
            return Ok(None);
        };
        let length = self.searched + at;
        let text = String::from_utf8_lossy(&self.buffer[..length]).into_owned();
        self.buffer.drain(..length + end.len());
        self.searched = 0;
        self.format.parse(&text).map(Some).ok_or(text)
    }

    /// The bytes of an item that is not complete.
    pub fn rest(&self) -> &[u8] {
        &self.buffer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(format: StreamFormat, text: &str, expected: &[Result<StreamItem, &str>]) {
        for at_once in [1, 5, 1000] {
            let mut items = Items::new(format);
            let mut found = Vec::new();
            for bytes in text.as_bytes().chunks(at_once) {
                items.push(bytes);
                while let Some(item) = items.take().transpose() {
                    found.push(item);
                }
            }
            let expected: Vec<_> = expected.iter().map(|item| item.clone().map_err(str::to_owned)).collect();
            assert_eq!(found, expected, "{at_once} bytes at once");
            assert!(items.rest().is_empty());
        }
    }

    #[test]
    fn both_formats_give_the_same_items() {
        let items =
            [Ok(StreamItem::Chunk(json!("a\n"))), Ok(StreamItem::Error(json!("e"))), Ok(StreamItem::Result(json!({})))];
        let lines = "{\"chunk\":\"a\\n\"}\n{\"error\":\"e\"}\n{\"result\":{}}\n";
        check(StreamFormat::Lines, lines, &items);
        let events = "data: \"a\\n\"\n\nevent: error\ndata: {\"error\":\"e\"}\n\nevent: result\ndata: {}\n\n";
        check(StreamFormat::Events, events, &items);
    }

    #[test]
    fn other_texts_are_no_items() {
        let two = "{\"chunk\":1,\"result\":1}";
        check(StreamFormat::Lines, &format!("{two}\n1\n"), &[Err(two), Err("1")]);
        let events = ["event: other\ndata: 1", "event: error\ndata: 1", "id: 1"];
        check(StreamFormat::Events, &(events.join("\n\n") + "\n\n"), &events.map(Err));
    }
}
