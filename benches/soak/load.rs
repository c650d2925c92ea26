//! What all callers of a soak share: the proxy, the counts, and the judgement of what they get.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, RwLock};

use crate::support::proxy::excerpt;
use crate::support::{Proxy, Response};

/// Something that callers do, over and over. It is told how often it was done before.
pub(crate) type Part = fn(&Load, u64);

/// What all callers share.
pub(crate) struct Load<'a> {
    pub(crate) proxy: &'a Proxy,
    /// Held for reading by each part; whoever holds it for writing has the proxy to itself.
    pub(crate) quiet: RwLock<()>,
    pub(crate) over: AtomicBool,
    /// Bodies that were their caller's own.
    pub(crate) answers: AtomicU64,
    /// Streams that came to their end.
    pub(crate) streams: AtomicU64,
    /// Chunks that were their caller's own.
    pub(crate) chunks: AtomicU64,
    /// Errors with a reason, of callers who only wanted an answer.
    pub(crate) errors: AtomicU64,
    /// Deaths that were asked for.
    pub(crate) deaths: AtomicU64,
    pub(crate) left: AtomicU64,
    pub(crate) wrong: AtomicU64,
    /// How often something was said, without its numbers.
    said: Mutex<BTreeMap<String, u64>>,
    named: AtomicU64,
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
            deaths: AtomicU64::new(0),
            left: AtomicU64::new(0),
            wrong: AtomicU64::new(0),
            said: Mutex::default(),
            named: AtomicU64::new(0),
        }
    }

    /// Does something until the soak is over, but not while it is to be quiet.
    pub(crate) fn repeat(&self, part: Part) {
        let mut n = 0;
        while !self.over.load(Ordering::Relaxed) {
            let _loud = self.quiet.read().expect("nobody panics with it");
            part(self, n);
            n += 1;
        }
    }

    /// A text that no other activation has.
    pub(crate) fn text(&self, name: &str) -> String {
        format!("{name} {}", self.named.fetch_add(1, Ordering::Relaxed))
    }

    /// Somebody did not get what is theirs.
    pub(crate) fn wrong(&self, to: &str, got: &str) {
        eprintln!("soak: {} is no answer to {}", excerpt(got), excerpt(to));
        count(&self.wrong);
    }

    /// Somebody who only wanted an answer was told an error: it has a status of ours and a reason, and that is
    /// nothing that only a fault of the proxy brings about.
    pub(crate) fn refused(&self, to: &str, response: &Response) {
        if matches!(response.status, 429 | 502) {
            self.told(to, &response.error());
        } else {
            self.wrong(to, &format!("{} {}", response.status, response.text()));
        }
    }

    /// The same for one who had a part of the answer already.
    pub(crate) fn told(&self, to: &str, reason: &str) {
        count(&self.errors);
        self.note(reason);
        // The actions abort when the proxy breaks the protocol.
        if reason.is_empty() || reason.contains("SIGABRT") {
            self.wrong(to, &format!("the error {reason:?}"));
        }
    }

    /// Counts what was said.
    pub(crate) fn note(&self, reason: &str) {
        let mut kind = String::new();
        for letter in reason.split([':', ';', ',']).next().unwrap_or_default().chars() {
            let letter = if letter.is_ascii_digit() { 'N' } else { letter };
            if letter != 'N' || !kind.ends_with('N') {
                kind.push(letter);
            }
        }
        *self.said.lock().expect("nobody panics with it").entry(kind).or_default() += 1;
    }

    /// What was said, the most frequent first.
    pub(crate) fn reasons(&self) -> Vec<(String, u64)> {
        let said = self.said.lock().expect("nobody panics with it");
        let mut reasons: Vec<_> = said.iter().map(|(reason, count)| (reason.clone(), *count)).collect();
        reasons.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        reasons
    }
}
