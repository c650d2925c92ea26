//! Settles checks: notes how each came out, and reports them in their order.

use std::fmt;
use std::time::Duration;

use crate::error::Error;
use crate::text::{excerpt, millis};

use super::finding::{Finding, FrameFault};
use super::report::{Check, Fault, Name, Verdict};
use super::{CheckRun, Progress};

/// Why an activation has no usable answer.
pub(super) enum Failure {
    Error(Error),
    Finding(Finding),
    /// It answers on stdout without a handshake that says so.
    NoHandshake {
        line: Vec<u8>,
    },
    /// Chunks came, and no last frame in time.
    Endless {
        after: Duration,
        chunks: usize,
    },
    /// No output came in time.
    Silence {
        after: Duration,
        meanwhile: Meanwhile,
    },
}

/// What a process did while no answer came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Meanwhile {
    /// In version 0 its exit ends the answer.
    HadNotExited,
    /// It did not wait for input.
    WasAtWork,
    /// It waited for input, and held nothing back.
    WaitedForInput,
}

impl fmt::Display for Meanwhile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::HadNotExited => "its process was still running",
            Self::WasAtWork => "it was still at work",
            Self::WaitedForInput => "nothing came at the end of its input either",
        })
    }
}

impl CheckRun<'_> {
    pub(super) fn fail(&mut self, name: Name, failure: &Failure) {
        let fault = match failure {
            Failure::Error(error) => Fault::from(error),
            Failure::Finding(finding) => Fault::from(finding.clone()),
            Failure::NoHandshake { line } => Fault {
                code: "PL055",
                reason: format!(
                    "it answers on stdout and has not sent a handshake, so its answers go to the log: {}",
                    excerpt(line)
                ),
                hint: Some(
                    "print `{\"openwhisk\":1}` on stdout first and flush it; or answer on descriptor 3".into(),
                ),
            },
            Failure::Endless { after, chunks } => Fault {
                code: "PL064",
                reason: format!("no last frame came within {}, but {chunks} chunks did", millis(*after)),
                hint: Some("end each activation with `result`, `error` or `end`; for a long stream, raise `--timeout`, or make it shorter with arguments (`-p` or `--input`)".into()),
            },
            Failure::Silence { after, meanwhile } => Fault {
                code: "PL064",
                reason: format!("no answer came within {}; {meanwhile}", millis(*after)),
                hint: Some("make it faster, or raise `--timeout`; pass arguments that suit it with `-p` or `--input`".into()),
            },
        };
        let elsewhere = match failure {
            Failure::Finding(Finding::Stray { .. }) => Some(Name::Channel),
            Failure::Finding(Finding::Frame { fault, .. }) if !matches!(fault, FrameFault::MixedUp { .. }) => {
                Some(Name::Ids)
            }
            _ => None,
        };
        if let Some(blamed) = elsewhere
            && blamed != name
        {
            // This activation is not the cause; any other could have shown the fault.
            if !self.is_settled(blamed) {
                let check = self.failure(blamed, fault);
                self.settle(check);
            }
            return self.settle(Check::new(name, Verdict::NotReached, ""));
        }
        let check = self.failure(name, fault);
        self.settle(check);
    }

    /// A check that failed, with the end of the log.
    pub(super) fn failure(&self, name: Name, fault: impl Into<Fault>) -> Check {
        Check { log: self.log_capture.stderr.tail(), ..Check::failed(name, fault) }
    }

    pub(super) fn is_settled(&self, name: Name) -> bool {
        self.report.checks.iter().chain(&self.settled_early).any(|check| check.name == name)
    }

    /// Notes how a check came out, and reports it once all checks before it have been reported.
    pub(super) fn settle(&mut self, check: Check) {
        debug_assert!(!self.is_settled(check.name), "{check:?} was settled before");
        self.settled_early.push(check);
        while let Some(next) = Name::ALL.get(self.report.checks.len())
            && let Some(at) = self.settled_early.iter().position(|check| check.name == *next)
        {
            let check = self.settled_early.swap_remove(at);
            (self.report_progress)(Progress::Settled(&check));
            self.report.checks.push(check);
        }
    }

    /// Settles every check that has not come out yet.
    pub(super) fn settle_rest(&mut self, verdict: Verdict, seen: &str) {
        for name in Name::ALL {
            if !self.is_settled(name) {
                self.settle(Check::new(name, verdict, seen));
            }
        }
    }
}
