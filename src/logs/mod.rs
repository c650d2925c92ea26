//! The action's output on its way to the proxy's own, and the sentinels that end an activation's log.
//!
//! stdout and stderr of the proxy are the action's log, as the platform shows it to the action's author.
//! Everything that the action prints passes through this module, in lines of any length. After each
//! activation the sentinel stands exactly once, on a line of its own, on both streams, behind everything
//! that the action logged for the activation. Output between two activations is kept for the log of
//! the next one.
//!
//! # Theory of operation
//! A [`Stream`] has a source (a pipe of the action, or none), an outbox of bytes on their way to a
//! [`Sink`], and a backlog for output between activations. [`Logs::pump`] moves bytes as long as it is
//! polled. Cancelling it loses nothing, since all its state is in the stream. The pump reads only while
//! the outbox is empty, so a log reader that stalls slows the action down and costs no memory. The
//! proxy's stdout may be a pipe that other processes share, and the proxy must not make it non-blocking.
//! So each write either asks the kernel not to block, or follows a `poll` that says it will not.
//!
//! [`Logs::open`] opens the log of an activation; ending it writes the sentinels (`activation_log.rs`).
//!
//! With [`Logs::share`], several processes of one action share the sinks. Each stream then gathers the
//! log of its activation, and writes it with its sentinel while it holds the [`Sink`]'s write permit. A
//! log that is too large to gather goes out in whole lines, so that lines of two activations never mix.

mod activation_log;
mod json;
mod sink;
mod stream;
mod watch;

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
/// Replaces a sentinel that the action itself prints, so that it ends no log.
pub const DEFUSED: &str = "XXX-THE-END-OF-A-WHISK-ACTIVATION-XXX";

/// Whether activations end with a sentinel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sentinels {
    /// As the platform expects.
    Write,
    /// On a terminal, where no log reader counts them.
    Omit,
}

/// Both streams of one action.
#[derive(Debug)]
pub struct Logs {
    /// The action's stdout, unless that is its result channel.
    pub stdout: Stream,
    /// The action's stderr.
    pub stderr: Stream,
    sentinels: Sentinels,
    stall_limit: Duration,
    /// How many activations have an open log.
    open: usize,
}

impl Logs {
    /// The logs of an action that has printed nothing yet.
    #[must_use]
    pub fn new(stdout: Sink, stderr: Sink, sentinels: Sentinels, bounds: &Bounds) -> Self {
        let stream = |name, sink| Stream::new(name, sink, bounds);
        let (stdout, stderr) = (stream("stdout", stdout), stream("stderr", stderr));
        Self { stdout, stderr, sentinels, stall_limit: bounds.stall_limit, open: 0 }
    }

    /// Other processes write to the same sinks from now on. An activation's log is written when it is whole.
    pub fn share(&mut self) {
        for stream in [&mut self.stdout, &mut self.stderr] {
            stream.share();
        }
    }

    /// Begins the log of an activation with the output that was kept for it.
    fn begin(&mut self) {
        self.open += 1;
        self.stdout.begin();
        self.stderr.begin();
        if self.open == 1 {
            // What is in the pipes now was printed before.
            self.drain();
            self.stdout.forget_tail();
            self.stderr.forget_tail();
        }
    }

    /// Sets whether output from now on belongs to one activation. An error quotes no line that could belong
    /// to another activation than its own.
    pub fn set_exclusive(&mut self, is_exclusive: bool) {
        if self.stderr.keeps_tail() == is_exclusive {
            return;
        }
        self.drain();
        for stream in [&mut self.stdout, &mut self.stderr] {
            if is_exclusive {
                stream.forget_tail();
            } else {
                stream.keep_no_tail();
            }
        }
    }

    /// The activation's name in the log; none in a format without names.
    #[must_use]
    pub fn label(&self, activation: &Activation) -> Option<Arc<str>> {
        if !self.stderr.is_json() {
            return None;
        }
        activation.label().map(Into::into)
    }

    /// Lines from now on belong to this activation, or to an unknown one.
    pub fn set_label(&mut self, label: Option<&Arc<str>>) {
        for stream in [&mut self.stdout, &mut self.stderr] {
            stream.set_label(label);
        }
    }

    /// Formats the text of a log frame as lines of the log on stderr.
    #[must_use]
    pub fn format_lines(&self, text: &str, label: Option<&str>) -> Vec<u8> {
        let text = text.strip_suffix('\n').unwrap_or(text);
        let mut lines = Vec::with_capacity(text.len() + 1);
        if self.stderr.is_json() {
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
            stream.drop_unsent();
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

    /// As [`Logs::pump`], but returns once the line has come that stdout is [watched](Stream::attach_watched) for.
    pub async fn pump_until_caught(&mut self) {
        tokio::select! {
            () = self.stdout.pump_until_caught() => {}
            never = self.stderr.pump() => match never {},
        }
    }

    /// Adds [formatted lines](Logs::format_lines) behind everything that the action has printed by now.
    pub fn append_lines(&mut self, lines: &[u8]) {
        self.drain();
        self.stderr.append_lines(lines);
    }

    /// Reads what the action has written by now, without waiting for more.
    pub fn drain(&mut self) {
        // The pipes are usually empty, and one system call checks both.
        if let (Some(stdout), Some(stderr)) = (self.stdout.source(), self.stderr.source())
            && pipe::are_empty([stdout, stderr])
        {
            return;
        }
        self.stdout.drain();
        self.stderr.drain();
    }

    /// Writes a sentence for the action's author, on a line of its own on stderr.
    pub fn say(&mut self, sentence: &str) {
        self.stderr.say(sentence);
    }

    /// Waits until a full outbox has space again, or until the log reader has stalled for too long.
    ///
    /// A caller that adds lines of its own, faster than [`Logs::pump`] moves them, calls this in between.
    pub async fn wait_for_space(&mut self) {
        for stream in [&mut self.stdout, &mut self.stderr] {
            if !stream.is_full() {
                continue;
            }
            if stream.is_stalled() || time::timeout(self.stall_limit, stream.flushed()).await.is_none() {
                stream.drop_unsent();
            }
        }
    }

    /// Writes the last output of an action that was stopped, as far as it may go without a sentinel. After
    /// a sentinel there is no log that it could belong to.
    pub async fn flush_rest(&mut self) {
        for stream in [&mut self.stdout, &mut self.stderr] {
            stream.release_all();
            let _ = time::timeout(self.stall_limit, stream.flushed()).await;
        }
    }

    /// Reads what is left in the pipes of a process that has ended, and closes them.
    pub fn detach(&mut self) {
        for stream in [&mut self.stdout, &mut self.stderr] {
            stream.detach();
        }
    }
}

/// How the log of an action is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum LogFormat {
    /// Byte for byte, as the action printed it.
    #[default]
    Text,
    /// One JSON object for each line.
    Json,
}

/// The bounds of a log.
#[derive(Debug, Clone)]
pub struct Bounds {
    /// The most bytes that each stream keeps of the output between two activations, and that it gathers of
    /// one activation's log on a shared sink.
    pub backlog_bytes: usize,
    /// How long the action and its answer wait for a log reader that has stopped reading.
    pub stall_limit: Duration,
    /// How lines are written.
    pub format: LogFormat,
}

#[cfg(test)]
mod tests;
