//! The report of a check run: plain data, in the order of the checks.

use std::time::Duration;

use crate::artifact::inspect::Defect;
use crate::error::Error;
use crate::protocol::{Protocol, detect};

use super::finding::Finding;

/// The checks, in their order. Their names are stable: scripts look for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "`title` names each")]
pub enum Name {
    Recognised,
    Executable,
    Starts,
    Protocol,
    Answers,
    Flushed,
    Framing,
    Reused,
    Unicode,
    Quotes,
    Nested,
    Empty,
    Unknown,
    Large,
    Sequence,
    Ids,
    Concurrency,
    Chunks,
    Cancel,
    Pause,
    Stop,
    Channel,
    EndOfFile,
    Sigterm,
    Orphans,
}

impl Name {
    /// The checks of version 2.
    pub(super) const OF_VERSION_2: [Self; 6] =
        [Self::Ids, Self::Concurrency, Self::Chunks, Self::Cancel, Self::Pause, Self::Stop];

    /// Every check.
    pub const ALL: [Self; 25] = [
        Self::Recognised,
        Self::Executable,
        Self::Starts,
        Self::Protocol,
        Self::Answers,
        Self::Flushed,
        Self::Framing,
        Self::Reused,
        Self::Unicode,
        Self::Quotes,
        Self::Nested,
        Self::Empty,
        Self::Unknown,
        Self::Large,
        Self::Sequence,
        Self::Ids,
        Self::Concurrency,
        Self::Chunks,
        Self::Cancel,
        Self::Pause,
        Self::Stop,
        Self::Channel,
        Self::EndOfFile,
        Self::Sigterm,
        Self::Orphans,
    ];

    /// The name for machines.
    #[must_use]
    pub fn id(self) -> &'static str {
        self.words().0
    }

    /// The name for people.
    #[must_use]
    pub fn title(self) -> &'static str {
        self.words().1
    }

    fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::Recognised => ("recognised", "recognised"),
            Self::Executable => ("executable", "executable"),
            Self::Starts => ("starts", "starts"),
            Self::Protocol => ("protocol", "protocol"),
            Self::Answers => ("answers", "answers"),
            Self::Flushed => ("flushed", "flushed"),
            Self::Framing => ("framing", "framing"),
            Self::Reused => ("reused", "reused"),
            Self::Unicode => ("unicode", "Unicode"),
            Self::Quotes => ("quotes", "quotes"),
            Self::Nested => ("nested", "nested JSON"),
            Self::Empty => ("empty", "empty object"),
            Self::Unknown => ("unknown", "unknown keys"),
            Self::Large => ("large", "1 MiB input"),
            Self::Sequence => ("sequence", "sequence"),
            Self::Ids => ("ids", "ids"),
            Self::Concurrency => ("concurrency", "concurrency"),
            Self::Chunks => ("chunks", "chunks"),
            Self::Cancel => ("cancel", "cancel"),
            Self::Pause => ("pause", "pause"),
            Self::Stop => ("stop", "stop"),
            Self::Channel => ("channel", "result channel"),
            Self::EndOfFile => ("end_of_file", "end of input"),
            Self::Sigterm => ("sigterm", "SIGTERM"),
            Self::Orphans => ("orphans", "orphans"),
        }
    }
}

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The action does it right.
    Passed,
    /// It works, but not as well as it should.
    Warning,
    /// It does not work.
    Failed,
    /// It does not apply to this action or this command.
    NotApplicable,
    /// It needs another check, which failed.
    NotReached,
}

impl Verdict {
    /// The name for machines.
    #[must_use]
    pub fn id(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Warning => "warning",
            Self::Failed => "failed",
            Self::NotApplicable => "not_applicable",
            Self::NotReached => "not_reached",
        }
    }
}

/// How the protocol of an action was recognised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Evidence {
    /// By its handshake.
    Handshake,
    /// By its acknowledgement.
    Acknowledgement,
    /// It waits for input, and sent no handshake before.
    WaitsForInput,
    /// It was silent until the grace period was over.
    Grace,
    /// By `PIPELOOP_PROTOCOL`.
    Setting,
}

impl Evidence {
    /// The name for machines.
    #[must_use]
    pub fn id(self) -> &'static str {
        match self {
            Self::Handshake => "handshake",
            Self::Acknowledgement => "acknowledgement",
            Self::WaitsForInput => "waiting",
            Self::Grace => "grace",
            Self::Setting => "setting",
        }
    }
}

impl From<detect::Evidence> for Evidence {
    fn from(evidence: detect::Evidence) -> Self {
        match evidence {
            detect::Evidence::Handshake(_) => Self::Handshake,
            detect::Evidence::Acknowledgement => Self::Acknowledgement,
            detect::Evidence::WaitsForInput => Self::WaitsForInput,
            detect::Evidence::Grace => Self::Grace,
        }
    }
}

/// One check and how it came out.
#[derive(Debug, Clone)]
pub struct Check {
    /// Its name.
    pub name: Name,
    /// How it came out.
    pub verdict: Verdict,
    /// The observation, or why there is none.
    pub seen: String,
    /// The faults that it found.
    pub faults: Vec<Fault>,
    /// How long it took: the start, or the activation.
    pub took: Option<Duration>,
    /// The last lines that the action had logged when it failed.
    pub log: Vec<String>,
}

/// A fault, and how to fix it.
#[derive(Debug, Clone)]
pub struct Fault {
    /// The code in `docs/errors.md`.
    pub code: &'static str,
    /// The sentence.
    pub reason: String,
    /// How to fix it.
    pub hint: Option<String>,
}

/// The report of all checks.
#[derive(Debug, Default)]
pub struct Report {
    /// Each check.
    pub checks: Vec<Check>,
    /// The protocol that the action speaks, once it is known. Never [`Protocol::Auto`].
    pub protocol: Option<Protocol>,
    /// How the protocol was recognised.
    pub evidence: Option<Evidence>,
    /// The time from the start until the action was ready.
    pub init: Option<Duration>,
    /// Each activation that was answered: its check, and its time.
    pub activations: Vec<(Name, Duration)>,
    /// Why the action was never started, if it was not.
    pub refused: Option<Error>,
}

impl Report {
    /// How many checks have this verdict.
    #[must_use]
    pub fn count(&self, verdict: Verdict) -> usize {
        self.checks.iter().filter(|check| check.verdict == verdict).count()
    }
}

impl Check {
    pub(super) fn new(name: Name, verdict: Verdict, seen: impl Into<String>) -> Self {
        Self { name, verdict, seen: seen.into(), faults: Vec::new(), took: None, log: Vec::new() }
    }

    pub(super) fn passed(name: Name, seen: impl Into<String>) -> Self {
        Self::new(name, Verdict::Passed, seen)
    }

    pub(super) fn failed(name: Name, fault: impl Into<Fault>) -> Self {
        Self { faults: vec![fault.into()], ..Self::new(name, Verdict::Failed, "") }
    }

    pub(super) fn warning(name: Name, fault: impl Into<Fault>) -> Self {
        Self { faults: vec![fault.into()], ..Self::new(name, Verdict::Warning, "") }
    }

    pub(super) fn took(mut self, took: Duration) -> Self {
        self.took = Some(took);
        self
    }
}

impl From<&Error> for Fault {
    fn from(error: &Error) -> Self {
        let reason = error.detail().unwrap_or_else(|| error.to_string());
        Self { code: error.code(), reason, hint: error.hint() }
    }
}

impl From<Finding> for Fault {
    fn from(finding: Finding) -> Self {
        Self { code: finding.code(), reason: finding.to_string(), hint: Some(finding.hint()) }
    }
}

impl From<&Defect> for Fault {
    fn from(defect: &Defect) -> Self {
        Self { code: defect.code(), reason: defect.to_string(), hint: Some(defect.hint()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_check_is_listed_once_and_in_order() {
        assert!(Name::ALL.is_sorted_by(|one, next| one < next));
        assert_eq!(Name::ALL.len(), Name::Orphans as usize + 1);
    }
}
