//! Yields the CPU once before blocking, for as long as that pays.
//!
//! The proxy waits for the action after it sends an activation, and for the caller after it sends an
//! answer. Where the two share a CPU, one `sched_yield` lets the other side reply at once, and the
//! proxy saves going to sleep and being woken, which costs as much again. Elsewhere the yield gains
//! nothing, and on a CPU that other processes keep busy it could cost a whole time slice. So the
//! proxy goes on yielding while it pays, and otherwise tries again once in a while.

use std::time::{Duration, Instant};

/// Decides whether to yield before waiting for one peer. Each peer has its own.
#[derive(Debug)]
pub struct AdaptiveYield {
    pays: bool,
    skipped: u32,
}

impl AdaptiveYield {
    /// The state before the first yield, which is always due.
    pub const UNTRIED: Self = Self { pays: true, skipped: 0 };
    /// A yield that takes this long does not pay, whatever arrived meanwhile.
    const MAX_DURATION: Duration = Duration::from_micros(200);
    /// While yielding does not pay, one wait in this many tries it again.
    const RETRY_EVERY: u32 = 256;

    /// Yields if a yield is due, and says whether it did. Then the caller must [`record`](Self::record)
    /// whether the yield was useful.
    pub fn yield_if_due(&mut self) -> bool {
        let due = self.is_due();
        if due {
            let began = Instant::now();
            std::thread::yield_now();
            self.record_duration(began.elapsed());
        }
        due
    }

    fn is_due(&mut self) -> bool {
        self.skipped += 1;
        self.pays || self.skipped == Self::RETRY_EVERY
    }

    fn record_duration(&mut self, duration: Duration) {
        *self = Self { pays: duration < Self::MAX_DURATION, skipped: 0 };
    }

    /// Records whether the last yield was useful: whether the peer's reply was there after it.
    pub fn record(&mut self, was_useful: bool) {
        self.pays &= was_useful;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many of `waits` waits yield, when each yield takes `duration` and is useful or not.
    fn count(waits: u32, duration: Duration, was_useful: bool) -> usize {
        let mut adaptive_yield = AdaptiveYield::UNTRIED;
        let mut once = || {
            let due = adaptive_yield.is_due();
            if due {
                adaptive_yield.record_duration(duration);
                adaptive_yield.record(was_useful);
            }
            due
        };
        (0..waits).filter(|_| once()).count()
    }

    #[test]
    fn yields_while_it_pays_and_otherwise_once_in_a_while() {
        let short = AdaptiveYield::MAX_DURATION / 2;
        assert_eq!(count(1000, short, true), 1000);
        let waits = 10 * AdaptiveYield::RETRY_EVERY;
        assert_eq!(count(waits, short, false), 10);
        assert_eq!(count(waits, AdaptiveYield::MAX_DURATION, true), 10);
    }
}
