//! CrashBackoff in a row, and when the action may be started again.
//!
//! Knows counts and times; starts nothing. `docs/lifecycle.md`, "Back-off", has the schedule.

use std::time::Duration;

use tokio::time::Instant;

use crate::config::Restart;
use crate::error::{Error, RunError};

/// The pause before the second restart in a row; the first has none, and each later one waits
/// twice as long as the one before it.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest pause.
const MAX_PAUSE: Duration = Duration::from_secs(10);
/// The longest that an activation waits for the end of a pause: callers are told about a crash loop
/// rather than held by it.
const MAX_WAIT: Duration = Duration::from_secs(1);

/// What became of the processes of one action.
#[derive(Debug)]
pub(super) struct CrashBackoff {
    policy: Restart,
    /// How often a process ended by itself since the last answer.
    in_a_row: u32,
    /// How the last one ended, whoever ended it.
    last: Option<String>,
    not_before: Option<Instant>,
}

impl CrashBackoff {
    /// No process has ended yet.
    pub(super) fn new(policy: Restart) -> Self {
        Self { policy, in_a_row: 0, last: None, not_before: None }
    }

    /// A process answered an activation: whatever was wrong is over.
    pub(super) fn answered(&mut self) {
        if self.in_a_row > 0 {
            self.in_a_row = 0;
            self.not_before = None;
        }
    }

    /// A process ended by itself, or did not even start.
    pub(super) fn died(&mut self, how: String) {
        tracing::info!(how, "the action died");
        self.in_a_row += 1;
        self.not_before = Some(Instant::now() + pause(self.in_a_row));
        self.last = Some(how);
    }

    /// A process was ended by us, over what it did or did not do. That is no crash loop.
    pub(super) fn stopped(&mut self, how: String) {
        tracing::info!(how, "the action was stopped");
        self.last = Some(how);
    }

    /// Whether a process may ever be started.
    pub(super) fn may_start(&self) -> bool {
        self.policy == Restart::Always || self.last.is_none()
    }

    /// How long a start has to wait; nothing when it has not.
    pub(super) fn pause_left(&self) -> Option<Duration> {
        self.not_before?.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())
    }

    /// The same for an activation that has to be over at `ends`.
    ///
    /// # Errors
    /// [`RunError::CrashLoop`] when the pause is too long for it, [`RunError::NotRestarted`].
    pub(super) fn pause_for(&self, ends: Instant) -> Result<Option<Duration>, Error> {
        let last = || self.last.clone().unwrap_or_default();
        if !self.may_start() {
            return Err(Error::Run(RunError::NotRestarted { last: last() }));
        }
        let Some(left) = self.pause_left() else { return Ok(None) };
        if left > MAX_WAIT || Instant::now() + left >= ends {
            return Err(Error::Run(RunError::CrashLoop { crashes: self.in_a_row, last: last(), retry_in: left }));
        }
        Ok(Some(left))
    }
}

/// The pause after so many backoff in a row.
fn pause(backoff: u32) -> Duration {
    match backoff {
        0 | 1 => Duration::ZERO,
        _ => FIRST_PAUSE.saturating_mul(1 << (backoff - 2).min(16)).min(MAX_PAUSE),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The schedule of `docs/lifecycle.md`.
    #[test]
    fn pauses_double_up_to_the_longest() {
        let pauses: Vec<_> = (1..=11).map(|backoff| pause(backoff).as_millis()).collect();
        assert_eq!(pauses, [0, 100, 200, 400, 800, 1_600, 3_200, 6_400, 10_000, 10_000, 10_000]);
        assert_eq!(pause(u32::MAX), MAX_PAUSE);
    }

    #[test]
    fn short_pauses_are_waited_for_and_long_ones_are_told() {
        let mut backoff = CrashBackoff::new(Restart::Always);
        let far = Instant::now() + Duration::from_secs(3_600);
        backoff.died("first".into());
        assert!(matches!(backoff.pause_for(far), Ok(None)));
        backoff.died("second".into());
        assert!(matches!(backoff.pause_for(far), Ok(Some(left)) if left <= Duration::from_millis(100)));
        // Its limit is nearer than the end of the pause.
        assert!(matches!(backoff.pause_for(Instant::now()), Err(Error::Run(RunError::CrashLoop { crashes: 2, .. }))));
        for _ in 0..4 {
            backoff.died("again".into());
        }
        match backoff.pause_for(far) {
            Err(Error::Run(RunError::CrashLoop { crashes: 6, last, retry_in })) => {
                assert_eq!(last, "again");
                assert!(retry_in > MAX_WAIT && retry_in <= Duration::from_millis(1_600), "{retry_in:?}");
            }
            other => panic!("{other:?}"),
        }
        backoff.answered();
        assert!(matches!(backoff.pause_for(far), Ok(None)));
        backoff.died("anew".into());
        assert!(matches!(backoff.pause_for(far), Ok(None)), "the count begins anew");
    }

    #[test]
    fn what_we_stop_is_no_crash_loop() {
        let mut backoff = CrashBackoff::new(Restart::Always);
        for _ in 0..20 {
            backoff.stopped("too slow".into());
        }
        assert_eq!(backoff.pause_left(), None);
        assert!(backoff.may_start());
    }

    #[test]
    fn with_never_the_first_end_is_the_last() {
        let mut backoff = CrashBackoff::new(Restart::Never);
        let far = Instant::now() + Duration::from_secs(3_600);
        assert!(matches!(backoff.pause_for(far), Ok(None)), "the first start is none again");
        backoff.stopped("too slow".into());
        backoff.answered();
        assert!(
            matches!(backoff.pause_for(far), Err(Error::Run(RunError::NotRestarted { last })) if last == "too slow")
        );
    }
}
