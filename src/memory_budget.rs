//! One limit for everything that callers make the proxy hold: request bodies on their way to an action,
//! and answers on their way to callers that read slowly or not at all.
//!
//! Each body and each answer has a limit of its own; this one is for their sum. It refuses new work and
//! takes nothing back: a body is refused when it arrives, an activation before it begins, and an answer
//! that exists is always given. So at most the answers of running activations go beyond the limit. A lone
//! request is always admitted, so that no limit is too low for the action to work at all.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;

use crate::error::{Error, RequestError};
use crate::process::memory;

/// How much memory callers have reserved together, and how much they may.
#[derive(Debug, Clone)]
pub struct MemoryBudget(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    reserved_bytes: AtomicU64,
    limit_bytes: OnceLock<u64>,
}

/// A part of a budget. Dropping it gives the part back.
#[derive(Debug, Default)]
pub struct Reservation {
    budget: Option<MemoryBudget>,
    bytes: u64,
}

/// Anything smaller is not counted: it is gone in a moment, or bounded by the number of connections.
const MIN_COUNTED: usize = 4096;
/// The least limit where no setting gives one. The system's memory is read only when more than this is
/// reserved.
const MIN_DEFAULT_LIMIT: u64 = 32 << 20;

impl MemoryBudget {
    /// A budget of so many bytes. Without a number, half of the memory that this process may use.
    #[must_use]
    pub fn new(limit_bytes: Option<u64>) -> Self {
        let limit_bytes = limit_bytes.map_or_else(OnceLock::new, OnceLock::from);
        Self(Arc::new(Inner { reserved_bytes: AtomicU64::new(0), limit_bytes }))
    }

    /// Whether a body of this announced length fits, asked before the body is read.
    ///
    /// # Errors
    /// [`RequestError::MemoryFull`].
    pub fn check_announced(&self, announced_bytes: u64) -> Result<(), Error> {
        self.check(self.reserved_bytes(), announced_bytes)
    }

    /// Whether an activation with this reservation may begin.
    ///
    /// # Errors
    /// [`RequestError::MemoryFull`].
    pub fn check_begin(&self, reservation: &Reservation) -> Result<(), Error> {
        self.check(self.reserved_bytes().saturating_sub(reservation.bytes), reservation.bytes)
    }

    /// An empty reservation, to grow as bytes arrive.
    #[must_use]
    pub fn reserve(&self) -> Reservation {
        Reservation { budget: Some(self.clone()), bytes: 0 }
    }

    /// Counts an answer until its last part is dropped.
    #[must_use]
    pub fn count_answer(&self, answer: Bytes) -> Bytes {
        if answer.len() < MIN_COUNTED {
            return answer;
        }
        let mut reservation = self.reserve();
        reservation.add(answer.len() as u64);
        Bytes::from_owner(CountedAnswer { answer, _reservation: reservation })
    }

    fn reserved_bytes(&self) -> u64 {
        self.0.reserved_bytes.load(Ordering::Relaxed)
    }

    fn check(&self, others: u64, own: u64) -> Result<(), Error> {
        let total = others.saturating_add(own);
        if others == 0 || (total <= MIN_DEFAULT_LIMIT && self.0.limit_bytes.get().is_none()) {
            return Ok(());
        }
        let default = || (memory::limit().unwrap_or(u64::MAX) / 2).max(MIN_DEFAULT_LIMIT);
        let limit_bytes = *self.0.limit_bytes.get_or_init(default);
        if total <= limit_bytes {
            Ok(())
        } else {
            Err(Error::Request(RequestError::MemoryFull { held_bytes: others, limit_bytes }))
        }
    }
}

impl Reservation {
    /// Grows to `length` bytes if the budget has them. A small length is not counted.
    ///
    /// # Errors
    /// [`RequestError::MemoryFull`]; the reservation is then as large as before.
    pub fn try_grow_to(&mut self, length: usize) -> Result<(), Error> {
        let Some(budget) = &self.budget else { return Ok(()) };
        if length < MIN_COUNTED {
            return Ok(());
        }
        let more = (length as u64).saturating_sub(self.bytes);
        budget.check(budget.reserved_bytes().saturating_sub(self.bytes), self.bytes + more)?;
        self.add(more);
        Ok(())
    }

    fn add(&mut self, bytes: u64) {
        if let Some(budget) = &self.budget {
            budget.0.reserved_bytes.fetch_add(bytes, Ordering::Relaxed);
            self.bytes += bytes;
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if let Some(budget) = &self.budget
            && self.bytes > 0
        {
            budget.0.reserved_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        }
    }
}

/// An answer with its reservation.
struct CountedAnswer {
    answer: Bytes,
    _reservation: Reservation,
}

impl AsRef<[u8]> for CountedAnswer {
    fn as_ref(&self) -> &[u8] {
        &self.answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reservation_counts_until_it_is_dropped() {
        let budget = MemoryBudget::new(Some(100_000));
        let mut first = budget.reserve();
        first.try_grow_to(60_000).unwrap();
        assert!(budget.check_announced(40_000).is_ok());
        assert!(budget.check_announced(40_001).is_err());
        let mut second = budget.reserve();
        second.try_grow_to(30_000).unwrap();
        second.try_grow_to(50_000).unwrap_err();
        assert_eq!(budget.reserved_bytes(), 90_000, "a refusal changes nothing");
        let answer = budget.count_answer(Bytes::from(vec![b'x'; 50_000]));
        assert_eq!(budget.reserved_bytes(), 140_000, "an answer is never refused");
        assert!(budget.check_begin(&second).is_err());
        let part = answer.slice(10..20);
        drop(answer);
        assert_eq!(budget.reserved_bytes(), 140_000, "a part keeps the whole answer");
        drop((part, first));
        assert_eq!(budget.reserved_bytes(), 30_000);
        assert!(budget.check_begin(&second).is_ok());
        drop(second);
        assert_eq!(budget.reserved_bytes(), 0);
    }

    #[test]
    fn a_small_or_lone_request_is_admitted() {
        let budget = MemoryBudget::new(Some(10));
        let mut lone = budget.reserve();
        lone.try_grow_to(1_000_000).unwrap();
        assert!(budget.check_begin(&lone).is_ok());
        let mut small = budget.reserve();
        small.try_grow_to(MIN_COUNTED - 1).unwrap();
        small.try_grow_to(MIN_COUNTED).unwrap_err();
        assert_eq!(budget.reserved_bytes(), 1_000_000);
    }

    #[test]
    fn the_default_limit_is_half_of_the_memory() {
        let budget = MemoryBudget::new(None);
        let mut reservation = budget.reserve();
        reservation.try_grow_to(1 << 20).unwrap();
        budget.check_announced(MIN_DEFAULT_LIMIT - (1 << 20)).unwrap();
        assert!(budget.0.limit_bytes.get().is_none(), "so little needs no look at the system's memory");
        budget.check_announced(u64::MAX / 2).unwrap_err();
        let limit_bytes = *budget.0.limit_bytes.get().unwrap();
        assert!((MIN_DEFAULT_LIMIT..u64::MAX / 4).contains(&limit_bytes), "{limit_bytes}");
    }
}
