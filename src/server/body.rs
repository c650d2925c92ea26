//! Request bodies: reading one within its limits, or reading past one.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};

use crate::error::{Error, RequestError, RequestKind};
use crate::memory_budget::{MemoryBudget, Reservation};
use crate::time;

/// The limits of a body, and what an error about it names.
#[derive(Debug, Clone, Copy)]
pub struct BodyBound<'a> {
    /// The request that the body belongs to.
    pub request: RequestKind,
    /// The maximum length.
    pub limit_bytes: u64,
    /// The setting that holds the maximum length.
    pub setting: &'static str,
    /// How long the caller may stall between two chunks.
    pub caller_timeout: Duration,
    /// The memory that all bodies share.
    pub memory_budget: &'a MemoryBudget,
}

/// The maximum buffer that a body's announced length reserves before the body arrives.
const MAX_RESERVED_BYTES: u64 = 2 * 1024 * 1024;

/// How much of a refused body the proxy reads and drops, so that the caller gets to read the answer.
pub(super) const MAX_DISCARDED_BYTES: u64 = 1024 * 1024 * 1024;

/// Collects a body into one buffer, which has a spare byte at its end, and reserves its memory.
///
/// After a refusal, the rest of the body has been [discarded](discard), so that the caller gets to read the
/// answer.
///
/// # Errors
/// [`RequestError::BodyTooLarge`], [`RequestError::MemoryFull`], [`RequestError::BodyStalled`], and
/// [`RequestError::BrokenBody`] when the connection breaks or the body's framing is wrong.
pub async fn read_body(mut body: Incoming, bound: &BodyBound<'_>) -> Result<(Vec<u8>, Reservation), Error> {
    let too_large = || {
        Error::Request(RequestError::BodyTooLarge {
            request: bound.request,
            limit_bytes: bound.limit_bytes,
            setting: bound.setting,
        })
    };
    let announced = body.size_hint().exact().unwrap_or(0);
    let accepted =
        if announced > bound.limit_bytes { Err(too_large()) } else { bound.memory_budget.check_announced(announced) };
    if let Err(error) = accepted {
        discard(body, bound.caller_timeout).await;
        return Err(error);
    }
    let mut reservation = bound.memory_budget.reserve();
    // An announcement costs the caller nothing, so it reserves no more than this.
    let capacity = announced.min(MAX_RESERVED_BYTES);
    let mut bytes = Vec::with_capacity(usize::try_from(capacity).unwrap_or(0) + 1);
    while let Some(chunk) = next_chunk(&mut body, bound.caller_timeout).await.map_err(|error| error.about(bound))? {
        let length = bytes.len() + chunk.len();
        let grown = if length as u64 > bound.limit_bytes { Err(too_large()) } else { reservation.try_grow_to(length) };
        if let Err(error) = grown {
            drop(bytes);
            discard(body, bound.caller_timeout).await;
            return Err(error);
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok((bytes, reservation))
}

/// Reads a body and drops it, up to 1 GiB.
pub async fn discard(mut body: Incoming, caller_timeout: Duration) {
    let mut total = 0;
    while let Ok(Some(chunk)) = next_chunk(&mut body, caller_timeout).await {
        total += chunk.len() as u64;
        if total > MAX_DISCARDED_BYTES {
            return;
        }
    }
}

/// Why the next chunk of a body does not arrive.
enum ChunkError {
    Stalled,
    Broken(hyper::Error),
}

impl ChunkError {
    fn about(self, bound: &BodyBound<'_>) -> Error {
        Error::Request(match self {
            Self::Stalled => RequestError::BodyStalled { waited: bound.caller_timeout },
            Self::Broken(error) => RequestError::BrokenBody { request: bound.request, reason: error.to_string() },
        })
    }
}

/// The next chunk of a body, or `None` at its end.
async fn next_chunk(body: &mut Incoming, caller_timeout: Duration) -> Result<Option<Bytes>, ChunkError> {
    // hyper knows the end of a body with a Content-Length without another poll, which could need a timer.
    while !body.is_end_stream() {
        match time::timeout(caller_timeout, body.frame()).await.ok_or(ChunkError::Stalled)? {
            None => return Ok(None),
            Some(Err(error)) => return Err(ChunkError::Broken(error)),
            // The other frames are trailers, which no request here needs.
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    return Ok(Some(data));
                }
            }
        }
    }
    Ok(None)
}
