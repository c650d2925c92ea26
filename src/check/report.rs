//! What a check found: plain data, in the order in which it is read.

use std::time::Duration;

use crate::artifact::inspect::Defect;
use crate::error::Error;

use super::finding::Finding;

/// The checks, in their order. Their names are stable: scripts look for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "`title` says what each is")]
pub enum Name {
    Recognised,
    Executable,
    Starts,
    Protocol,
    Answers,
    Flushed,
    Framing,
    Stays,
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
    Terminate,
    Descendants,
}

impl Name {
    /// Those that are about promises of version 2.
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
        Self::Stays,
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
        Self::Terminate,
        Self::Descendants,
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
            Self::Executable => ("executable", "can be executed"),
            Self::Starts => ("starts", "starts"),
            Self::Protocol => ("protocol", "protocol"),
            Self::Answers => ("answers", "answers"),
            Self::Flushed => ("flushed", "answers at once"),
            Self::Framing => ("framing", "one line each"),
            Self::Stays => ("stays", "stays"),
            Self::Unicode => ("unicode", "Unicode"),
            Self::Quotes => ("quotes", "quotes"),
            Self::Nested => ("nested", "nested"),
            Self::Empty => ("empty", "no arguments"),
            Self::Unknown => ("unknown", "unknown ones"),
            Self::Large => ("large", "1 MiB"),
            Self::Sequence => ("sequence", "ten in a row"),
            Self::Ids => ("ids", "ids"),
            Self::Concurrency => ("concurrency", "several at once"),
            Self::Chunks => ("chunks", "chunks"),
            Self::Cancel => ("cancel", "cancel"),
            Self::Pause => ("pause", "pause"),
            Self::Stop => ("stop", "stop"),
            Self::Channel => ("channel", "answers only"),
            Self::EndOfFile => ("end_of_file", "end of input"),
            Self::Terminate => ("sigterm", "SIGTERM"),
            Self::Descendants => ("descendants", "leaves nothing"),
        }
    }
}

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// As it should be.
    Passed,
    /// It works, and not as well as it should.
    Warning,
    /// It does not work.
    Failed,
    /// It means nothing for this action or this command.
    NotApplicable,
    /// Another check failed that it needs.
    NotReached,
}

/// One check and how it came out.
#[derive(Debug, Clone)]
pub struct Check {
    /// Which.
    pub name: Name,
    /// How it came out.
    pub verdict: Verdict,
    /// What was seen, or why there was nothing to see.
    pub seen: String,
    /// What is wrong.
    pub faults: Vec<Fault>,
    /// How long it took: the start, or the activation.
    pub took: Option<Duration>,
    /// The last lines that the action had logged when it failed.
    pub log: Vec<String>,
}

/// What is wrong, and what to do about it.
#[derive(Debug, Clone)]
pub struct Fault {
    /// The code in `docs/errors.md`.
    pub code: &'static str,
    /// The sentence.
    pub reason: String,
    /// The cure.
    pub cure: Option<String>,
}

/// Everything that was found.
#[derive(Debug, Default)]
pub struct Report {
    /// Each check.
    pub checks: Vec<Check>,
    /// The protocol that it speaks, when that was learnt: as in `PIPELOOP_PROTOCOL`.
    pub protocol: Option<&'static str>,
    /// What told so: `handshake`, `acknowledgement`, `waiting`, `grace` or `setting`.
    pub told_by: Option<&'static str>,
    /// From the start to ready.
    pub init: Option<Duration>,
    /// Every activation that was answered, with the check it was for.
    pub activations: Vec<(Name, Duration)>,
    /// Why it was never started, when that is so.
    pub refused: Option<Error>,
}

impl Report {
    /// How many checks came out so.
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
        Self { code: error.code(), reason, cure: error.hint() }
    }
}

impl From<Finding> for Fault {
    fn from(finding: Finding) -> Self {
        Self { code: finding.code(), reason: finding.to_string(), cure: Some(finding.hint()) }
    }
}

impl From<&Defect> for Fault {
    fn from(defect: &Defect) -> Self {
        Self { code: defect.code(), reason: defect.to_string(), cure: Some(defect.hint()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_check_is_listed_once_and_in_order() {
        assert!(Name::ALL.is_sorted_by(|one, next| one < next));
        assert_eq!(Name::ALL.len(), Name::Descendants as usize + 1);
    }
}
