//! What all callers of a soak share: the proxy, the counts, and the check of what they get.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, RwLock};

use testkit::http::Response;
use testkit::output::excerpt;
use testkit::proxy::Proxy;

/// What a caller does, over and over. The number counts how often it was done before.
pub(crate) type Task = fn(&Load, u64);

/// The proxy and the counts, shared by all callers.
pub(crate) struct Load<'a> {
    pub(crate) proxy: &'a Proxy,
    /// Each task holds this lock for reading. A holder for writing is alone with the proxy.
    pub(crate) quiet: RwLock<()>,
    pub(crate) over: AtomicBool,
    /// Bodies that belonged to their caller.
    pub(crate) answers: AtomicU64,
    /// Streams that came to their end.
    pub(crate) streams: AtomicU64,
    /// Chunks that belonged to their caller.
    pub(crate) chunks: AtomicU64,
    /// Errors with a reason, for callers that asked for nothing wrong.
    pub(crate) errors: AtomicU64,
    /// Exits of the action that a task caused.
    pub(crate) crashes: AtomicU64,
    pub(crate) left: AtomicU64,
    pub(crate) wrong: AtomicU64,
    /// How often each reason came, without its numbers.
    reasons: Mutex<BTreeMap<String, u64>>,
    texts: AtomicU64,
}

/// One more of something.
pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl<'a> Load<'a> {
    pub(crate) fn new(proxy: &'a Proxy) -> Self {
        Self {
            proxy,
            quiet: RwLock::new(()),
            over: AtomicBool::new(false),
            answers: AtomicU64::new(0),
            streams: AtomicU64::new(0),
            chunks: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            crashes: AtomicU64::new(0),
            left: AtomicU64::new(0),
            wrong: AtomicU64::new(0),
            reasons: Mutex::default(),
            texts: AtomicU64::new(0),
        }
    }

    /// Repeats a task until the soak is over, except while a sample is taken.
    pub(crate) fn repeat(&self, task: Task) {
        let mut n = 0;
        while !self.over.load(Ordering::Relaxed) {
            let _loud = self.quiet.read().expect("no task panics");
            task(self, n);
            n += 1;
        }
    }

    /// A text that no other activation has.
    pub(crate) fn text(&self, name: &str) -> String {
        format!("{name} {}", self.texts.fetch_add(1, Ordering::Relaxed))
    }

    /// Counts an answer that does not belong to its caller.
    pub(crate) fn wrong(&self, to: &str, got: &str) {
        eprintln!("soak: {} is no answer to {}", excerpt(got), excerpt(to));
        count(&self.wrong);
    }

    /// Counts an error for a caller that asked for nothing wrong. It must have a status of the proxy and a reason that
    /// does not point to a fault of the proxy.
    pub(crate) fn refused(&self, to: &str, response: &Response) {
        if matches!(response.status, 429 | 502) {
            self.failed(to, &response.error());
        } else {
            self.wrong(to, &format!("{} {}", response.status, response.text()));
        }
    }

    /// The same for a caller that had a part of the answer already.
    pub(crate) fn failed(&self, to: &str, reason: &str) {
        count(&self.errors);
        self.note(reason);
        // The actions abort when the proxy breaks the protocol.
        if reason.is_empty() || reason.contains("SIGABRT") {
            self.wrong(to, &format!("the error {reason:?}"));
        }
    }

    /// Counts a reason.
    pub(crate) fn note(&self, reason: &str) {
        let mut kind = String::new();
        for letter in reason.split([':', ';', ',']).next().unwrap_or_default().chars() {
            let letter = if letter.is_ascii_digit() { 'N' } else { letter };
            if letter != 'N' || !kind.ends_with('N') {
                kind.push(letter);
            }
        }
        *self.reasons.lock().expect("no task panics").entry(kind).or_default() += 1;
    }

    /// The reasons that came, the most frequent first.
    pub(crate) fn reasons(&self) -> Vec<(String, u64)> {
        let reasons = self.reasons.lock().expect("no task panics");
        let mut reasons: Vec<_> = reasons.iter().map(|(reason, count)| (reason.clone(), *count)).collect();
        reasons.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        reasons
    }
}
