//! The log of one activation, from its first line to its sentinels.
//!
//! The log reader counts sentinels: one too few or one too many shifts every later log. So a log is a
//! value. It is opened for each activation and ended by being consumed, which writes exactly one sentinel
//! on each stream.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use super::Logs;

/// The open log of the only activation of a process.
///
/// It is the [`Logs`] in all but its end. If it is dropped without [`ActivationLog::end`], as happens when
/// the task that holds it is cancelled, it still writes both sentinels, as far as that needs no waiting.
#[must_use = "end the log: a missing sentinel shifts every later log"]
#[derive(Debug)]
pub struct ActivationLog<'a> {
    logs: &'a mut Logs,
    ended: bool,
}

/// The open log of one of several activations in one process.
///
/// The streams belong to all of them, so every step takes the [`Logs`] as an argument. A log keeps the
/// lines that are known to be its own, up to a limit, and writes them right before its sentinel. It must be
/// consumed by [`ConcurrentLog::end`] or [`ConcurrentLog::withdraw`]. A debug build panics if it is
/// dropped instead.
#[must_use = "end or withdraw the log: a missing sentinel shifts every later log"]
#[derive(Debug)]
pub struct ConcurrentLog {
    lines: Vec<u8>,
    consumed: bool,
}

impl Logs {
    /// Opens the log of an activation. Output that was kept since the last sentinel goes out first.
    ///
    /// With a [label](Logs::label), lines from now on carry it.
    pub fn open(&mut self, label: Option<&Arc<str>>) -> ActivationLog<'_> {
        self.begin();
        if label.is_some() {
            self.set_label(label);
        }
        ActivationLog { logs: self, ended: false }
    }

    /// Opens the log of an activation beside which others may be open.
    ///
    /// Until the last of them ends, output goes out as it comes, to the next sentinel.
    pub fn open_concurrent(&mut self) -> ConcurrentLog {
        self.begin();
        ConcurrentLog { lines: Vec::new(), consumed: false }
    }
}

impl ActivationLog<'_> {
    /// Writes everything that the action has written by now, then the sentinels. Returns when they are out,
    /// or when the log reader has stalled for too long.
    pub async fn end(mut self) {
        self.ended = true;
        self.logs.end().await;
    }
}

impl Deref for ActivationLog<'_> {
    type Target = Logs;

    fn deref(&self) -> &Logs {
        self.logs
    }
}

impl DerefMut for ActivationLog<'_> {
    fn deref_mut(&mut self) -> &mut Logs {
        self.logs
    }
}

impl Drop for ActivationLog<'_> {
    fn drop(&mut self) {
        if !self.ended {
            self.logs.end_without_waiting();
        }
    }
}

impl ConcurrentLog {
    /// Keeps [lines](Logs::format_lines) of this activation for its end. More than `limit_bytes` go out at once.
    pub fn keep_lines(&mut self, lines: &[u8], limit_bytes: usize, logs: &mut Logs) {
        self.lines.extend_from_slice(lines);
        if self.lines.len() > limit_bytes {
            self.write_lines(logs);
        }
    }

    /// Writes the kept lines, behind what was printed before.
    pub fn write_lines(&mut self, logs: &mut Logs) {
        if !self.lines.is_empty() {
            logs.append_lines(&std::mem::take(&mut self.lines));
        }
    }

    /// As [`ActivationLog::end`].
    pub async fn end(mut self, logs: &mut Logs) {
        self.consumed = true;
        self.write_lines(logs);
        logs.end().await;
    }

    /// Gives the log up without a sentinel. The activation is run by another process, with a log there.
    pub fn withdraw(mut self, logs: &mut Logs) {
        self.consumed = true;
        logs.open -= 1;
    }
}

impl Drop for ConcurrentLog {
    fn drop(&mut self) {
        debug_assert!(self.consumed || std::thread::panicking(), "an activation's log ended without its sentinel");
    }
}
