//! Giving the processor to somebody before waiting for them: to the action that was sent an
//! activation, to the caller that was sent an answer.
//!
//! Where they share our processor, they answer meanwhile, and going to sleep and being woken, which
//! costs as much again, is spared. Elsewhere it brings nothing, and where others work hard on the same
//! processor it could cost a time slice. So it is done again as long as it pays, and else tried once in a
//! while.

use std::time::{Duration, Instant};

/// Whether to give way to one of them. Kept for each.
#[derive(Debug)]
pub struct AdaptiveYield {
    paid: bool,
    left_out: u32,
}

impl AdaptiveYield {
    /// One that is tried the first time.
    pub const UNTRIED: Self = Self { paid: true, left_out: 0 };
    /// It must not take longer than this, whatever it brings.
    const MAX: Duration = Duration::from_micros(200);
    /// One time in so many tries it when it did not pay.
    const TRIED_EVERY: u32 = 256;

    /// Gives way, if that is due. Whether it did: what it [brought](Self::brought) is to be told then.
    pub fn yield_if_due(&mut self) -> bool {
        let due = self.is_due();
        if due {
            let began = Instant::now();
            std::thread::yield_now();
            self.took(began.elapsed());
        }
        due
    }

    fn is_due(&mut self) -> bool {
        self.left_out += 1;
        self.paid || self.left_out == Self::TRIED_EVERY
    }

    fn took(&mut self, time: Duration) {
        *self = Self { paid: time < Self::MAX, left_out: 0 };
    }

    /// Whether something had come when it was over.
    pub fn brought(&mut self, something: bool) {
        self.paid &= something;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How often it is done in so many times of which each takes and brings the same.
    fn count(times: u32, took: Duration, something: bool) -> usize {
        let mut courtesy = AdaptiveYield::UNTRIED;
        let mut once = || {
            let due = courtesy.is_due();
            if due {
                courtesy.took(took);
                courtesy.brought(something);
            }
            due
        };
        (0..times).filter(|_| once()).count()
    }

    #[test]
    fn it_is_done_as_long_as_it_pays_and_else_once_in_a_while() {
        let short = AdaptiveYield::MAX / 2;
        assert_eq!(count(1000, short, true), 1000);
        let tried = 10 * AdaptiveYield::TRIED_EVERY;
        assert_eq!(count(tried, short, false), 10);
        assert_eq!(count(tried, AdaptiveYield::MAX, true), 10);
    }
}
