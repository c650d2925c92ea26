//! The action's output on its way to ours, and the sentinels that end an activation's log.
//!
//! stdout and stderr of the proxy are the action's log as the platform shows it to its author.
//! What the action prints passes through here, lines of any length, as it comes. After each
//! activation the sentinel stands exactly once on its own line on both streams, after all that the
//! action logged for it. What it prints between two activations is kept for the next one's log.
//!
//! # Theory of operation
//! A [`Stream`] has a source (a pipe of the action, possibly none), an outbox of bytes on their way
//! to a [`Sink`], and a backlog for what comes between activations. [`Logs::pump`] moves bytes for
//! as long as it is polled; cancelling it loses nothing, since all its state is in the stream.
//! It reads only while the outbox is empty: a reader of ours that stalls slows the action down
//! and costs no memory. Our stdout may be a pipe that we share and must not make non-blocking:
//! each write is asked not to wait, or is made only after `poll` said that it will not.
//!
//! Several processes of one action share our streams: [`Logs::share`]. Each then gathers the log of
//! its activation and writes it in one go, with its sentinel, while it has the [`Sink`]'s turn. What
//! is too much to gather is passed on in whole lines, so that lines of two activations never mix.

mod activation_log;
mod json;
mod sink;
mod stream;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use crate::activation::Activation;
use crate::process::pipe;
use crate::time;

pub use activation_log::{ActivationLog, ConcurrentLog};
pub use sink::Sink;
pub use stream::Stream;

/// The line that ends an activation's log on each stream.
///
/// Source: apache/openwhisk, `docs/actions-new.md`, "The action's log".
pub const SENTINEL: &str = "XXX_THE_END_OF_A_WHISK_ACTIVATION_XXX";
/// What a sentinel of the action's own becomes, so that it ends nothing.
pub const DEFUSED: &str = "XXX-THE-END-OF-A-WHISK-ACTIVATION-XXX";

/// Whether activations end with a sentinel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sentinels {
    /// As the platform expects.
    Write,
    /// On a terminal there is nobody to read them.
    Omit,
}

/// Both streams of one action.
#[derive(Debug)]
pub struct Logs {
    /// What the action prints, where stdout is not its result channel.
    pub stdout: Stream,
    /// What it logs.
    pub stderr: Stream,
    sentinels: Sentinels,
    stall_limit: Duration,
    /// How many activations have an open log.
    open: usize,
}

impl Logs {
    /// Logs of an action that has not printed anything yet.
    #[must_use]
    pub fn new(stdout: Sink, stderr: Sink, sentinels: Sentinels, bounds: &Bounds) -> Self {
        let stream = |name, sink| Stream::new(name, sink, bounds);
        let (stdout, stderr) = (stream("stdout", stdout), stream("stderr", stderr));
        Self { stdout, stderr, sentinels, stall_limit: bounds.stall_limit, open: 0 }
    }

    /// From now on others write to the same sinks: an activation's log is written when it is whole.
    pub fn share(&mut self) {
        for stream in [&mut self.stdout, &mut self.stderr] {
            stream.share();
        }
    }

    /// An activation begins: what was kept for it goes out first.
    fn begin(&mut self) {
        self.open += 1;
        self.stdout.begin();
        self.stderr.begin();
    }

    /// How the log wants to call an activation; nothing where it is not told.
    #[must_use]
    pub fn label(&self, activation: &Activation) -> Option<Arc<str>> {
        if !self.stderr.makes_objects() {
            return None;
        }
        activation.label().map(Into::into)
    }

    /// What is printed from now on is this activation's, or nobody knows whose.
    pub fn attribute(&mut self, label: Option<&Arc<str>>) {
        for stream in [&mut self.stdout, &mut self.stderr] {
            stream.attribute(label);
        }
    }

    /// The text of a log frame as lines of the log on stderr.
    #[must_use]
    pub fn lines_of(&self, text: &str, label: Option<&str>) -> Vec<u8> {
        let text = text.strip_suffix('\n').unwrap_or(text);
        let mut lines = Vec::with_capacity(text.len() + 1);
        if self.stderr.makes_objects() {
            for line in text.split('\n') {
                json::object("stderr", label, line.as_bytes(), &mut lines);
            }
        } else {
            lines.extend_from_slice(text.as_bytes());
            lines.push(b'\n');
        }
        lines
    }

    /// Ends the log of one activation. Its sentinels are in the outboxes before this waits for the first
    /// time, so that cancelling it loses none of them.
    async fn end(&mut self) {
        self.put_end();
        self.flush_finished().await;
        self.reopen();
    }

    /// As [`Logs::end`], as far as it can be done without waiting. [`Logs::pump`] writes the rest.
    fn end_without_waiting(&mut self) {
        self.put_end();
        self.stdout.flush();
        self.stderr.flush();
        self.reopen();
    }

    fn put_end(&mut self) {
        self.drain();
        for stream in [&mut self.stdout, &mut self.stderr] {
            stream.finish(self.sentinels);
        }
        self.open -= 1;
    }

    /// While other activations have an open log, output goes out as it comes, to the next sentinel.
    fn reopen(&mut self) {
        if self.open > 0 {
            self.stdout.begin();
            self.stderr.begin();
        }
    }

    /// Writes everything that the action has written by now, outside of any activation.
    pub async fn end_without_sentinel(&mut self) {
        self.drain();
        for stream in [&mut self.stdout, &mut self.stderr] {
            stream.finish(Sentinels::Omit);
        }
        self.flush_finished().await;
    }

    async fn flush_finished(&mut self) {
        // One limit for both streams. It starts with the first wait.
        let mut stall_limit = std::pin::pin!(time::sleep(self.stall_limit));
        let mut stalled = false;
        for stream in [&mut self.stdout, &mut self.stderr] {
            if stream.flush() {
                continue;
            }
            if !stream.is_stalled() && !stalled {
                tokio::select! {
                    biased;
                    () = stream.flushed() => continue,
                    () = &mut stall_limit => stalled = true,
                }
            }
            stream.give_up();
        }
    }

    /// Moves the action's output for as long as it is polled. It never ends, as its type says; dropping
    /// the future loses nothing.
    pub async fn pump(&mut self) -> Infallible {
        tokio::select! {
            never = self.stdout.pump() => never,
            never = self.stderr.pump() => never,
        }
    }

    /// Adds log frames that are [lines](Logs::lines_of) by now, behind what was printed before them.
    pub fn feed_frames(&mut self, lines: &[u8]) {
        self.drain();
        self.stderr.feed_apart(lines);
    }

    /// Takes what the action has written by now, without waiting for more.
    pub fn drain(&mut self) {
        // Mostly it has written nothing, which one call tells of both.
        if let (Some(stdout), Some(stderr)) = (self.stdout.source(), self.stderr.source())
            && pipe::are_empty([stdout, stderr])
        {
            return;
        }
        self.stdout.drain();
        self.stderr.drain();
    }

    /// A sentence for the action's author, on a line of its own on stderr.
    pub fn say(&mut self, sentence: &str) {
        self.stderr.say(sentence);
    }

    /// Waits, where more waits to be written than is to be held, until less does or our reader has stalled
    /// for too long: for whoever adds to the log faster than [`Logs::pump`] moves it.
    pub async fn relieve(&mut self) {
        for stream in [&mut self.stdout, &mut self.stderr] {
            if !stream.is_full() {
                continue;
            }
            if stream.is_stalled() || time::timeout(self.stall_limit, stream.flushed()).await.is_none() {
                stream.give_up();
            }
        }
    }

    /// Writes out what may go without a sentinel: the last output of an action that was stopped
    /// goes nowhere when an activation's sentinel stands already.
    pub async fn pass_on(&mut self) {
        for stream in [&mut self.stdout, &mut self.stderr] {
            stream.let_go();
            let _ = time::timeout(self.stall_limit, stream.flushed()).await;
        }
    }

    /// Takes what is left in the pipes of a process that has ended, and lets go of them.
    pub fn detach(&mut self) {
        for stream in [&mut self.stdout, &mut self.stderr] {
            stream.detach();
        }
    }
}

/// How the log of an action is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum LogFormat {
    /// As it came, byte for byte.
    #[default]
    Text,
    /// A JSON object for each line.
    Json,
}

/// The bounds of a log.
#[derive(Debug, Clone)]
pub struct Bounds {
    /// The most bytes kept of what an action prints between two activations, on each stream, and
    /// gathered of an activation's log where several share it.
    pub backlog_bytes: usize,
    /// How long the action and its answer wait for a reader of the log that does not read.
    pub stall_limit: Duration,
    /// How lines are written.
    pub format: LogFormat,
}

#[cfg(test)]
mod tests;
