//! One bound for all that callers make the proxy hold: bodies on their way to an action, and answers on
//! their way to callers who read slowly, or not at all.
//!
//! Each of them has a bound of its own; this one is for their sum. It keeps new work out and takes
//! nothing back: a body is refused when it comes, an activation when its turn comes, and an answer that was
//! made is always given. So at most the answers of the activations that were begun go beyond it. What is
//! held by nobody else is let in whatever its size, so that a bound that is set too low stops nothing.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;

use crate::error::{Error, RequestError};
use crate::process::memory;

/// What callers hold together, and how much that may be.
#[derive(Debug, Clone)]
pub struct MemoryBudget(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    held: AtomicU64,
    limit: OnceLock<u64>,
}

/// A part of the room, given back when it is dropped.
#[derive(Debug, Default)]
pub struct Reservation {
    room: Option<MemoryBudget>,
    bytes: u64,
}

/// What is smaller than this is not counted: it is gone in a moment, or bounded by the number of connections.
const COUNTED_FROM: usize = 4096;
/// What callers may hold in any case, where nobody set how much. Until then nobody is asked how much memory
/// there is.
const MIN: u64 = 32 << 20;

impl MemoryBudget {
    /// MemoryBudget for so many bytes. Without a number, half of the memory that this process may use.
    #[must_use]
    pub fn new(limit_bytes: Option<u64>) -> Self {
        let limit = limit_bytes.map_or_else(OnceLock::new, OnceLock::from);
        Self(Arc::new(Inner { held: AtomicU64::new(0), limit }))
    }

    /// Whether a body of this announced length would be refused now, to be known before it is read.
    ///
    /// # Errors
    /// [`RequestError::MemoryFull`].
    pub fn admit(&self, announced_bytes: u64) -> Result<(), Error> {
        self.check(self.held(), announced_bytes)
    }

    /// Whether an activation that holds this much already may be begun.
    ///
    /// # Errors
    /// [`RequestError::MemoryFull`].
    pub fn begin(&self, own: &Reservation) -> Result<(), Error> {
        self.check(self.held().saturating_sub(own.bytes), own.bytes)
    }

    /// Begins to hold something, of which nothing has come yet.
    #[must_use]
    pub fn hold(&self) -> Reservation {
        Reservation { room: Some(self.clone()), bytes: 0 }
    }

    /// An answer that counts until it has been taken.
    #[must_use]
    pub fn keep(&self, answer: Bytes) -> Bytes {
        if answer.len() < COUNTED_FROM {
            return answer;
        }
        let mut held = self.hold();
        held.add(answer.len() as u64);
        Bytes::from_owner(Kept { answer, _held: held })
    }

    fn held(&self) -> u64 {
        self.0.held.load(Ordering::Relaxed)
    }

    fn check(&self, others: u64, own: u64) -> Result<(), Error> {
        let total = others.saturating_add(own);
        if others == 0 || (total <= MIN && self.0.limit.get().is_none()) {
            return Ok(());
        }
        let limit = *self.0.limit.get_or_init(|| (memory::limit().unwrap_or(u64::MAX) / 2).max(MIN));
        if total <= limit {
            Ok(())
        } else {
            Err(Error::Request(RequestError::MemoryFull { held_bytes: others, limit_bytes: limit }))
        }
    }
}

impl Reservation {
    /// Holds so much more, if there is room for it. What is small at all is not counted.
    ///
    /// # Errors
    /// [`RequestError::MemoryFull`]; then it holds as much as before.
    pub fn grow_to(&mut self, length: usize) -> Result<(), Error> {
        let Some(room) = &self.room else { return Ok(()) };
        if length < COUNTED_FROM {
            return Ok(());
        }
        let more = (length as u64).saturating_sub(self.bytes);
        room.check(room.held().saturating_sub(self.bytes), self.bytes + more)?;
        self.add(more);
        Ok(())
    }

    fn add(&mut self, bytes: u64) {
        if let Some(room) = &self.room {
            room.0.held.fetch_add(bytes, Ordering::Relaxed);
            self.bytes += bytes;
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if let Some(room) = &self.room
            && self.bytes > 0
        {
            room.0.held.fetch_sub(self.bytes, Ordering::Relaxed);
        }
    }
}

/// An answer with its part of the room.
struct Kept {
    answer: Bytes,
    _held: Reservation,
}

impl AsRef<[u8]> for Kept {
    fn as_ref(&self) -> &[u8] {
        &self.answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_counts_until_it_is_dropped() {
        let room = MemoryBudget::new(Some(100_000));
        let mut first = room.hold();
        first.grow_to(60_000).unwrap();
        assert!(room.admit(40_000).is_ok());
        assert!(room.admit(40_001).is_err());
        let mut second = room.hold();
        second.grow_to(30_000).unwrap();
        second.grow_to(50_000).unwrap_err();
        assert_eq!(room.held(), 90_000, "a refusal changes nothing");
        let answer = room.keep(Bytes::from(vec![b'x'; 50_000]));
        assert_eq!(room.held(), 140_000, "an answer is always held");
        assert!(room.begin(&second).is_err());
        let part = answer.slice(10..20);
        drop(answer);
        assert_eq!(room.held(), 140_000, "a part of it keeps it");
        drop((part, first));
        assert_eq!(room.held(), 30_000);
        assert!(room.begin(&second).is_ok());
        drop(second);
        assert_eq!(room.held(), 0);
    }

    #[test]
    fn what_is_small_or_alone_is_let_in() {
        let room = MemoryBudget::new(Some(10));
        let mut alone = room.hold();
        alone.grow_to(1_000_000).unwrap();
        assert!(room.begin(&alone).is_ok());
        let mut small = room.hold();
        small.grow_to(COUNTED_FROM - 1).unwrap();
        small.grow_to(COUNTED_FROM).unwrap_err();
        assert_eq!(room.held(), 1_000_000);
    }

    #[test]
    fn unless_set_it_is_half_of_what_there_is() {
        let room = MemoryBudget::new(None);
        let mut held = room.hold();
        held.grow_to(1 << 20).unwrap();
        room.admit(MIN - (1 << 20)).unwrap();
        assert!(room.0.limit.get().is_none(), "nobody had to be asked");
        room.admit(u64::MAX / 2).unwrap_err();
        let limit = *room.0.limit.get().unwrap();
        assert!((MIN..u64::MAX / 4).contains(&limit), "{limit}");
    }
}
