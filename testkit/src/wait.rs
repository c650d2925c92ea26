//! Waiting for a condition, always with a limit.

use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How long a condition may take to come true. Generous: it asserts that nothing hangs, not that something is fast.
pub const WAIT_LIMIT: Duration = Duration::from_secs(20);

/// How long [`eventually`] and [`poll_until`] sleep between two looks.
pub const POLL_INTERVAL: Duration = Duration::from_millis(2);

/// Polls a condition until it gives a value. `None` if the deadline passes first.
pub fn poll_until<T>(deadline: Instant, mut condition: impl FnMut() -> Option<T>) -> Option<T> {
    loop {
        if let Some(value) = condition() {
            return Some(value);
        }
        if Instant::now() > deadline {
            return None;
        }
        sleep(POLL_INTERVAL);
    }
}

/// Polls a condition until it gives a value.
///
/// # Panics
/// With `what` if there is no value within [`WAIT_LIMIT`].
#[track_caller]
pub fn eventually<T>(what: &str, condition: impl FnMut() -> Option<T>) -> T {
    let value = poll_until(Instant::now() + WAIT_LIMIT, condition);
    value.unwrap_or_else(|| panic!("waited for {WAIT_LIMIT:?} in vain: {what}"))
}

/// The time in milliseconds since 1970, the unit of an activation's `deadline`.
pub fn now_ms() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis()
}
