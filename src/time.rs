//! Limits of time that run only while this process does.
//!
//! The platform freezes a container whenever it likes. The clock goes on meanwhile, so that a timer
//! of the runtime that was set before fires at once when the container is thawed, and an action that
//! was frozen along with us would be stopped for having taken too long. So a limit is counted in
//! pieces, each of which is worth the same however long it really took: a freeze takes one piece.

use std::time::Duration;

/// Into how many pieces a limit is cut.
pub const PIECES: u32 = 20;

/// Sleeps for as long as this process runs for that time, give or take a piece.
pub async fn sleep(limit: Duration) {
    if limit.is_zero() {
        return;
    }
    for _ in 0..PIECES {
        tokio::time::sleep(limit / PIECES).await;
    }
}

/// Waits for something, and gives up when [`sleep`] would end. `None` then.
pub async fn timeout<T>(limit: Duration, future: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        biased;
        value = future => Some(value),
        () = sleep(limit) => None,
    }
}
