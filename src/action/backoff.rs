//! Backoff after crashes: when the action may be started again.
//!
//! Knows counts and times; starts no process. `docs/lifecycle.md`, "Back-off", has the schedule.

use std::time::Duration;

use tokio::time::Instant;

use crate::config::Restart;
use crate::error::{Error, RunError};

/// The pause before the second restart in a row; the first has none, and each later one waits
/// twice as long as the one before it.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest pause.
const MAX_PAUSE: Duration = Duration::from_secs(10);
/// The longest that an activation waits for the end of a pause. A caller gets an error about a crash loop
/// rather than a long wait.
const MAX_WAIT: Duration = Duration::from_secs(1);

/// How the processes of one action ended, and what follows from it.
#[derive(Debug)]
pub(super) struct CrashBackoff {
    policy: Restart,
    /// How many processes have ended by themselves since the last answer.
    crashes: u32,
    /// How the last process ended, also if the proxy stopped it.
    last: Option<String>,
    not_before: Option<Instant>,
}

impl CrashBackoff {
    /// No process has ended yet.
    pub(super) fn new(policy: Restart) -> Self {
        Self { policy, crashes: 0, last: None, not_before: None }
    }

    /// A process answered an activation, so the crashes are over.
    pub(super) fn record_answer(&mut self) {
        if self.crashes > 0 {
            self.crashes = 0;
            self.not_before = None;
        }
    }

    /// A process ended by itself, or did not even start.
    pub(super) fn record_crash(&mut self, how: String) {
        tracing::info!(how, "the action died");
        self.crashes += 1;
        self.not_before = Some(Instant::now() + pause(self.crashes));
        self.last = Some(how);
    }

    /// The proxy ended a process. That does not count as a crash.
    pub(super) fn record_stop(&mut self, how: String) {
        tracing::info!(how, "the action was stopped");
        self.last = Some(how);
    }

    /// Whether a process may be started at all.
    pub(super) fn may_start(&self) -> bool {
        self.policy == Restart::Always || self.last.is_none()
    }

    /// How long a start has to wait, if it has to.
    pub(super) fn pause_left(&self) -> Option<Duration> {
        self.not_before?.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())
    }

    /// As [`CrashBackoff::pause_left`], for an activation whose time is over at `ends`.
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
            return Err(Error::Run(RunError::CrashLoop { crashes: self.crashes, last: last(), retry_in: left }));
        }
        Ok(Some(left))
    }
}

/// The pause after so many crashes in a row.
fn pause(crashes: u32) -> Duration {
    match crashes {
        0 | 1 => Duration::ZERO,
        _ => FIRST_PAUSE.saturating_mul(1 << (crashes - 2).min(16)).min(MAX_PAUSE),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The schedule of `docs/lifecycle.md`.
    #[test]
    fn pauses_double_up_to_the_longest() {
        let pauses: Vec<_> = (1..=11).map(|crashes| pause(crashes).as_millis()).collect();
        assert_eq!(pauses, [0, 100, 200, 400, 800, 1_600, 3_200, 6_400, 10_000, 10_000, 10_000]);
        assert_eq!(pause(u32::MAX), MAX_PAUSE);
    }

    #[test]
    fn an_activation_waits_for_a_short_pause_and_fails_over_a_long_one() {
        let mut backoff = CrashBackoff::new(Restart::Always);
        let far = Instant::now() + Duration::from_hours(1);
        backoff.record_crash("first".into());
        assert!(matches!(backoff.pause_for(far), Ok(None)));
        backoff.record_crash("second".into());
        assert!(matches!(backoff.pause_for(far), Ok(Some(left)) if left <= Duration::from_millis(100)));
        // The activation's time is over before the pause.
        assert!(matches!(backoff.pause_for(Instant::now()), Err(Error::Run(RunError::CrashLoop { crashes: 2, .. }))));
        for _ in 0..4 {
            backoff.record_crash("again".into());
        }
        match backoff.pause_for(far) {
            Err(Error::Run(RunError::CrashLoop { crashes: 6, last, retry_in })) => {
                assert_eq!(last, "again");
                assert!(retry_in > MAX_WAIT && retry_in <= Duration::from_millis(1_600), "{retry_in:?}");
            }
            other => panic!("{other:?}"),
        }
        backoff.record_answer();
        assert!(matches!(backoff.pause_for(far), Ok(None)));
        backoff.record_crash("first of others".into());
        assert!(matches!(backoff.pause_for(far), Ok(None)), "the count starts again");
    }

    #[test]
    fn processes_that_the_proxy_stops_are_no_crash_loop() {
        let mut backoff = CrashBackoff::new(Restart::Always);
        for _ in 0..20 {
            backoff.record_stop("too slow".into());
        }
        assert_eq!(backoff.pause_left(), None);
        assert!(backoff.may_start());
    }

    #[test]
    fn with_restart_never_the_first_end_is_the_last() {
        let mut backoff = CrashBackoff::new(Restart::Never);
        let far = Instant::now() + Duration::from_hours(1);
        assert!(matches!(backoff.pause_for(far), Ok(None)), "the first start is not a restart");
        backoff.record_stop("too slow".into());
        backoff.record_answer();
        assert!(
            matches!(backoff.pause_for(far), Err(Error::Run(RunError::NotRestarted { last })) if last == "too slow")
        );
    }
}
