//! An activation whose answer can never come: the process has read it and waits for the next one.
//!
//! Nothing is looked at before the owner of the time limit says that the activation takes long, so a quick answer costs
//! nothing. Then the process is looked at again and again. Only what is [at a standstill](crate::process::standstill) in
//! several looks in a row, and has not run in between, is given up.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::error::Silence;
use crate::process::Process;

use super::link::Link;

/// The first pause between two looks.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest one, for a process that is busy for long.
const MAX_PAUSE: Duration = Duration::from_millis(400);
/// How many looks in a row have to see the same.
const LOOKS: u32 = 4;

/// Says that an activation takes long. Its owner sets it when a timer has expired, and the task polls then.
#[derive(Debug, Clone, Default)]
pub struct TakesLong(Arc<AtomicBool>);

impl TakesLong {
    /// Sets it, or sets it back for the next activation.
    pub fn set(&self, takes_long: bool) {
        self.0.store(takes_long, Ordering::Relaxed);
    }

    fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// The looks at one activation.
#[derive(Debug)]
pub(super) struct Looks<'a> {
    takes_long: &'a TakesLong,
    pause: Duration,
    /// What the last look saw, and how many saw the same.
    seen: Option<(u64, u32)>,
    empty_lines_before: u64,
}

impl<'a> Looks<'a> {
    /// For an activation that is about to be sent.
    pub(super) fn new(takes_long: &'a TakesLong, link: &Link) -> Self {
        Self { takes_long, pause: FIRST_PAUSE, seen: None, empty_lines_before: link.empty_lines() }
    }

    /// Waits until the next look is due.
    pub(super) async fn due(&self) {
        // The task is polled when the timer of the owner expires.
        std::future::poll_fn(|_| {
            if self.takes_long.is_set() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
        })
        .await;
        tokio::time::sleep(self.pause).await;
    }

    /// Looks at the process, which was sent the whole activation. Returns why no answer will come, once that is certain.
    pub(super) fn look(&mut self, link: &Link, process: &Process) -> Option<Silence> {
        let standstill = link.standstill(process);
        let looks = match (standstill, self.seen) {
            (Some(now), Some((before, looks))) if now == before => looks + 1,
            (Some(_), _) => 1,
            (None, _) => 0,
        };
        self.seen = standstill.map(|now| (now, looks));
        if looks == 0 {
            self.pause = (self.pause * 3 / 2).min(MAX_PAUSE);
            return None;
        }
        if looks < LOOKS {
            return None;
        }
        let partial = link.pending().trim_ascii();
        Some(if !partial.is_empty() {
            let shown = String::from_utf8_lossy(partial).into_owned();
            Silence::Unfinished { line: shown, carriage_return: link.pending().contains(&b'\r') }
        } else if link.empty_lines() > self.empty_lines_before {
            Silence::EmptyLine
        } else {
            Silence::Nothing
        })
    }
}
