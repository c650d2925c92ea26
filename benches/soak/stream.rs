//! A streamed answer that a caller of the soak receives item by item.

use std::io;

use testkit::http::Caller;
use testkit::stream::{Items, StreamFormat, StreamItem};

/// The format of the nth stream: they alternate.
pub(crate) fn format_of(n: u64) -> StreamFormat {
    if n.is_multiple_of(2) { StreamFormat::Events } else { StreamFormat::Lines }
}

/// A body that is still coming.
pub(crate) struct Stream<'a> {
    caller: &'a mut Caller,
    items: Items,
}

impl<'a> Stream<'a> {
    /// The body behind a head that was received.
    pub(crate) fn new(caller: &'a mut Caller, format: StreamFormat) -> Self {
        Self { caller, items: Items::new(format) }
    }

    /// The next item. `None` is the proper end of the body.
    ///
    /// # Errors
    /// If the body breaks off, or holds something else.
    pub(crate) fn next(&mut self) -> io::Result<Option<StreamItem>> {
        loop {
            let item = self.items.take();
            if let Some(item) = item.map_err(|text| io::Error::other(format!("no item of a stream: {text}")))? {
                return Ok(Some(item));
            }
            match self.caller.receive_chunk()? {
                Some(bytes) => self.items.push(&bytes),
                None if self.items.rest().is_empty() => return Ok(None),
                None => return Err(io::Error::other("a body that ends in the middle of an item")),
            }
        }
    }
}
