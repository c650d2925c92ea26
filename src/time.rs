//! Time limits that count only the time the proxy was running.
//!
//! The platform freezes a container whenever it likes. The clock goes on meanwhile, so a timer of the
//! runtime that was set before the freeze fires at once after the thaw, and the proxy would stop an
//! action, frozen along with it, for having taken too long. So a [`Countdown`] cuts its limit into
//! parts and counts each part as the same time, however long it really took: a freeze costs at most
//! one part.

use std::time::Duration;

/// A time limit that counts only the time the proxy was running.
///
/// It holds no timer. Its owner waits for one [part](Countdown::part) at a time and
/// [counts](Countdown::count) it then, so that many countdowns may share one timer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Countdown {
    left: Duration,
    part: Duration,
}

impl Countdown {
    /// Into how many parts a limit is cut.
    const PARTS: u32 = 20;

    /// Counts down from `limit`.
    #[must_use]
    pub fn new(limit: Duration) -> Self {
        // Rounded up, or the last nanoseconds would be a part of their own.
        let part = limit.saturating_add(Duration::from_nanos(u64::from(Self::PARTS) - 1)) / Self::PARTS;
        Self { left: limit, part }
    }

    /// As [`Countdown::new`], for an owner whose timer is in the middle of a part already: one more part
    /// counts, so that the limit is not cut short.
    #[must_use]
    pub fn from_mid_part(limit: Duration) -> Self {
        let mut countdown = Self::new(limit);
        countdown.left = countdown.left.saturating_add(countdown.part);
        countdown
    }

    /// How long to wait before the next [`Countdown::count`].
    #[must_use]
    pub fn part(&self) -> Duration {
        self.part
    }

    /// Counts a wait that was meant to last this long, however long it really took. Returns whether the
    /// limit is over.
    pub fn count(&mut self, waited: Duration) -> bool {
        self.left = self.left.saturating_sub(waited);
        self.is_over()
    }

    /// Whether the whole limit has been counted.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.left.is_zero()
    }
}

/// Sleeps until the proxy has been running for `limit`, give or take one part of it.
pub async fn sleep(limit: Duration) {
    let mut countdown = Countdown::new(limit);
    while !countdown.is_over() {
        tokio::time::sleep(countdown.part()).await;
        countdown.count(countdown.part());
    }
}

/// Waits for a future, and returns `None` if [`sleep`] ends first.
pub async fn timeout<T>(limit: Duration, future: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        biased;
        value = future => Some(value),
        () = sleep(limit) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many parts a countdown takes to be over.
    fn parts(mut countdown: Countdown) -> u32 {
        (1..=100).find(|_| countdown.count(countdown.part())).expect("it ends")
    }

    #[test]
    fn a_limit_is_over_after_its_parts() {
        for nanos in [1, 19, 20, 21, 1_000_000_007] {
            let limit = Duration::from_nanos(nanos);
            assert!(parts(Countdown::new(limit)) <= Countdown::PARTS, "{limit:?}");
            assert!(Countdown::new(limit).part() * Countdown::PARTS >= limit, "{limit:?}");
        }
        let minute = Duration::from_mins(1);
        assert_eq!(parts(Countdown::new(minute)), Countdown::PARTS);
        assert_eq!(parts(Countdown::from_mid_part(minute)), Countdown::PARTS + 1);
        assert!(Countdown::new(Duration::ZERO).is_over());
    }

    #[test]
    fn a_wait_counts_for_as_long_as_it_was_meant_to_last() {
        let mut countdown = Countdown::new(Duration::from_millis(100));
        assert!(!countdown.count(Duration::from_millis(60)));
        assert!(!countdown.count(Duration::from_millis(39)));
        assert!(countdown.count(Duration::from_millis(20)));
    }
}
