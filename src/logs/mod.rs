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

mod json;
mod sink;
mod stream;

use std::sync::Arc;
use std::time::Duration;

use crate::activation::Activation;
use crate::process::pipe;
use crate::time;

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
}

impl Logs {
    /// Logs of an action that has not printed anything yet.
    #[must_use]
    pub fn new(stdout: Sink, stderr: Sink, sentinels: Sentinels, bounds: &Bounds) -> Self {
        let stream = |name, sink| Stream::new(name, sink, bounds);
        let (stdout, stderr) = (stream("stdout", stdout), stream("stderr", stderr));
        Self { stdout, stderr, sentinels, stall_limit: bounds.stall_limit }
    }

    /// From now on others write to the same sinks: an activation's log is written when it is whole.
    pub fn share(&mut self) {
        for stream in [&mut self.stdout, &mut self.stderr] {
            stream.share();
        }
    }

    /// An activation begins: what was kept for it goes out first.
    pub fn begin(&mut self) {
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

    /// An activation is over: everything that the action has written by now goes out, then the
    /// sentinels. Returns when they are out, or when our reader has stalled for too long.
    pub async fn end(&mut self) {
        self.finish(self.sentinels).await;
    }

    /// As [`Logs::end`], for what is no activation.
    pub async fn end_without_sentinel(&mut self) {
        self.finish(Sentinels::Omit).await;
    }

    async fn finish(&mut self, sentinels: Sentinels) {
        // One for both streams. It begins when it is waited for.
        let mut patience = std::pin::pin!(time::sleep(self.stall_limit));
        let mut over = false;
        self.drain();
        for stream in [&mut self.stdout, &mut self.stderr] {
            stream.finish(sentinels);
            if stream.flush() {
                continue;
            }
            if !stream.is_stalled() && !over {
                tokio::select! {
                    biased;
                    () = stream.flushed() => continue,
                    () = &mut patience => over = true,
                }
            }
            stream.give_up();
        }
    }

    /// Moves the action's output for as long as it is polled. Never returns.
    pub async fn pump(&mut self) {
        tokio::select! {
            () = self.stdout.pump() => {}
            () = self.stderr.pump() => {}
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
mod tests {
    use super::*;
    use crate::process::pipe::{pipe, watch};
    use proptest::prelude::*;
    use rustix::io::Errno;
    use std::io::Read;

    /// What an action does, as the log sees it.
    #[derive(Debug, Clone)]
    enum Step {
        Begin,
        Print(Vec<u8>),
        End,
    }

    /// Takes an action's stdout through some steps and returns what our stdout got.
    fn check(steps: &[Step], backlog_bytes: usize) -> String {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (read, write) = pipe().unwrap();
        // Read at the same time, as a log collector does.
        let collector = std::thread::spawn(move || {
            let mut text = Vec::new();
            std::fs::File::from(read).read_to_end(&mut text).unwrap();
            text
        });
        runtime.block_on(async {
            let (source, action) = pipe().unwrap();
            rustix::fs::fcntl_setfl(&action, rustix::fs::OFlags::NONBLOCK).unwrap();
            let bounds = Bounds { backlog_bytes, stall_limit: Duration::from_secs(10), format: LogFormat::Text };
            let null = std::fs::OpenOptions::new().write(true).open("/dev/null").unwrap();
            let mut logs = Logs::new(Sink::new(write), Sink::new(null.into()), Sentinels::Write, &bounds);
            logs.stdout.attach(watch(source).unwrap(), b"");
            for step in steps {
                match step {
                    Step::Begin => logs.begin(),
                    Step::End => logs.end().await,
                    Step::Print(bytes) => {
                        let mut rest = &bytes[..];
                        while !rest.is_empty() {
                            // What the pipe holds, which is little where a user has many of them (pipe(7),
                            // `pipe-user-pages-soft`): nobody would be there to read the rest.
                            match rustix::io::write(&action, &rest[..rest.len().min(32 * 1024)]) {
                                Ok(written) => rest = &rest[written..],
                                Err(error) => assert_eq!(error, Errno::AGAIN),
                            }
                            pump_until(&mut logs, 0).await;
                        }
                    }
                }
            }
            logs.pass_on().await;
        });
        drop(runtime);
        String::from_utf8(collector.join().unwrap()).unwrap()
    }

    /// Lets the log be moved until no more than so much of it stands in the action's pipe.
    async fn pump_until(logs: &mut Logs, left_bytes: u64) {
        while logs.stdout.unread() > left_bytes {
            let _ = tokio::time::timeout(Duration::from_millis(1), logs.pump()).await;
        }
    }

    fn print(text: impl AsRef<[u8]>) -> Step {
        Step::Print(text.as_ref().to_vec())
    }

    #[test]
    fn an_activation_ends_with_its_sentinel_on_a_line_of_its_own() {
        let steps = [Step::Begin, print("a\n"), Step::End, Step::Begin, print("b"), Step::End, Step::Begin, Step::End];
        assert_eq!(check(&steps, 100), format!("a\n{SENTINEL}\nb\n{SENTINEL}\n{SENTINEL}\n"));
    }

    #[test]
    fn output_between_activations_belongs_to_the_next() {
        let steps = [Step::Begin, Step::End, print("late\n"), Step::Begin, print("b\n"), Step::End];
        assert_eq!(check(&steps, 100), format!("{SENTINEL}\nlate\nb\n{SENTINEL}\n"));
    }

    #[test]
    fn output_before_the_first_activation_is_not_held_back() {
        assert_eq!(check(&[print("starting\n")], 0), "starting\n");
    }

    #[test]
    fn a_backlog_is_bounded_and_says_what_it_dropped() {
        // What is dropped from stdout is told on stderr's stream of the same kind; here it is one.
        let steps = [Step::Begin, Step::End, print("0123456789"), Step::Begin, Step::End];
        assert_eq!(
            check(&steps, 4),
            format!(
                "{SENTINEL}\n0123\npipeloop: 6 more bytes that the action printed between activations were dropped (PIPELOOP_LOG_BACKLOG)\n{SENTINEL}\n"
            )
        );
    }

    #[test]
    fn what_was_dropped_is_told_on_the_stream_that_it_is_missing_from() {
        let (read, write) = pipe().unwrap();
        let null = std::fs::OpenOptions::new().write(true).open("/dev/null").unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let stall_limit = Duration::from_secs(10);
            let bounds = Bounds { backlog_bytes: 4, stall_limit, format: LogFormat::Json };
            let mut logs = Logs::new(Sink::new(write), Sink::new(null.into()), Sentinels::Write, &bounds);
            logs.end().await;
            logs.stdout.feed(b"0123456789\n");
            logs.begin();
            logs.end().await;
        });
        let mut text = String::new();
        std::fs::File::from(read).read_to_string(&mut text).unwrap();
        let told: Vec<_> = text.lines().filter(|line| line.contains("were dropped")).collect();
        assert!(matches!(told[..], [line] if line.contains(r#""stream":"stdout""#)), "{text}");
    }

    #[test]
    fn a_sentinel_of_the_actions_own_is_defused_however_it_arrives() {
        for cut in 0..=SENTINEL.len() {
            let (head, tail) = SENTINEL.split_at(cut);
            let steps = [Step::Begin, print(head), print(tail), print("\n"), Step::End];
            assert_eq!(check(&steps, 100), format!("{DEFUSED}\n{SENTINEL}\n"), "cut at {cut}");
        }
        // What only begins like one is let go at the end of the activation.
        let steps = [Step::Begin, print("XXX_THE_END"), Step::End];
        assert_eq!(check(&steps, 100), format!("XXX_THE_END\n{SENTINEL}\n"));
    }

    #[test]
    fn a_line_of_any_length_passes_whole() {
        let long = "x".repeat(5_000_000);
        let steps = [Step::Begin, print(&long), Step::End];
        assert_eq!(check(&steps, 100), format!("{long}\n{SENTINEL}\n"));
    }

    #[test]
    fn a_log_that_nobody_reads_delays_an_answer_for_a_bounded_time_only() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (_unread, write) = pipe().unwrap();
            let (source, action) = pipe().unwrap();
            let bounds = Bounds { backlog_bytes: 0, stall_limit: Duration::from_millis(50), format: LogFormat::Text };
            let sink = Sink::new(write);
            let mut logs = Logs::new(sink.clone(), sink, Sentinels::Write, &bounds);
            logs.stdout.attach(watch(source).unwrap(), b"");
            for _ in 0..4 {
                rustix::io::write(&action, &vec![b'x'; 32 * 1024]).unwrap();
                // The last one is left standing, since the sink is full.
                pump_until(&mut logs, 32 * 1024).await;
            }
            tokio::time::timeout(Duration::from_secs(10), logs.end()).await.expect("it gives the log up");
        });
    }

    #[test]
    fn a_reader_that_comes_back_is_told_and_gets_its_sentinels() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (read, write) = pipe().unwrap();
        let null = std::fs::OpenOptions::new().write(true).open("/dev/null").unwrap();
        let text = runtime.block_on(async {
            let bounds = Bounds { backlog_bytes: 0, stall_limit: Duration::from_millis(20), format: LogFormat::Text };
            let mut logs = Logs::new(Sink::new(write), Sink::new(null.into()), Sentinels::Write, &bounds);
            for _ in 0..3 {
                logs.begin();
                // More than the pipe holds.
                logs.stdout.feed(&vec![b'x'; 100_000]);
                logs.end().await;
            }
            let mut read = std::fs::File::from(read);
            let mut text = vec![0; 64 * 1024];
            read.read_exact(&mut text).unwrap();
            logs.begin();
            logs.stdout.feed(b"seen\n");
            logs.end().await;
            drop(logs);
            read.read_to_end(&mut text).unwrap();
            String::from_utf8(text).unwrap()
        });
        assert_eq!(text.matches(SENTINEL).count(), 4, "{}", &text[64 * 1024..]);
        assert!(text.contains("bytes of the log were dropped here"), "{}", &text[64 * 1024..]);
        assert!(text.ends_with(&format!("{SENTINEL}\nseen\n{SENTINEL}\n")), "{}", &text[64 * 1024..]);
    }

    #[test]
    fn the_tail_is_the_last_lines_on_one() {
        let (_read, write) = pipe().unwrap();
        let bounds = Bounds { backlog_bytes: 0, stall_limit: Duration::ZERO, format: LogFormat::Text };
        let mut stream = Stream::new("stdout", Sink::new(write), &bounds);
        stream.feed("first\n".repeat(2000).as_bytes());
        stream.feed(b"Traceback\n\n  here  \nImportError: no module\n");
        assert_eq!(stream.tail(), "first | first | Traceback |   here | ImportError: no module");
        stream.forget_tail();
        assert_eq!(stream.tail(), "");
    }

    #[test]
    fn who_writes_keeps_the_turn_until_its_log_is_out() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (read, write) = pipe().unwrap();
        let capacity = rustix::pipe::fcntl_setpipe_size(&write, 4096).unwrap();
        let null = std::fs::OpenOptions::new().write(true).open("/dev/null").unwrap();
        let (stdout, stderr) = (Sink::new(write), Sink::new(null.into()));
        let logs = || {
            let bounds =
                Bounds { backlog_bytes: 100_000, stall_limit: Duration::from_secs(10), format: LogFormat::Text };
            let mut logs = Logs::new(stdout.clone(), stderr.clone(), Sentinels::Write, &bounds);
            logs.share();
            logs
        };
        let (mut large, mut small) = (logs(), logs());
        let mut text = Vec::new();
        runtime.block_on(async {
            large.stdout.feed_line("x".repeat(2 * capacity).as_bytes());
            small.stdout.feed_line(b"small");
            let mut ends = [Box::pin(large.end()), Box::pin(small.end())];
            let mut over = [false; 2];
            while over.contains(&false) {
                for (end, over) in ends.iter_mut().zip(&mut over).filter(|(_, over)| !**over) {
                    *over = tokio::time::timeout(Duration::from_millis(1), end).await.is_ok();
                    // There is room, and the other one is asked first whether it has something to write.
                    let mut piece = vec![0; capacity];
                    if rustix::io::ioctl_fionread(&read).unwrap() > 0 {
                        let count = rustix::io::read(&read, &mut piece).unwrap();
                        text.extend_from_slice(&piece[..count]);
                    }
                }
            }
            let left = usize::try_from(rustix::io::ioctl_fionread(&read).unwrap()).unwrap();
            let mut piece = vec![0; left];
            if left > 0 {
                let count = rustix::io::read(&read, &mut piece).unwrap();
                text.extend_from_slice(&piece[..count]);
            }
        });
        let expected = format!("{}\n{SENTINEL}\nsmall\n{SENTINEL}\n", "x".repeat(2 * capacity));
        assert!(text == expected.as_bytes(), "{}", String::from_utf8_lossy(&text).replace(&"x".repeat(1_000), "…"));
    }

    /// Several activations at once, each with its lines, over one sink that is read now and then.
    fn share(activations: Vec<Vec<Vec<String>>>, backlog_bytes: usize) -> String {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (read, write) = pipe().unwrap();
        // So that writes stop in the middle of a line.
        rustix::pipe::fcntl_setpipe_size(&write, 4096).unwrap();
        let collector = std::thread::spawn(move || {
            let (mut file, mut text, mut piece) = (std::fs::File::from(read), Vec::new(), [0; 1000]);
            loop {
                match file.read(&mut piece).unwrap() {
                    0 => return text,
                    count => text.extend_from_slice(&piece[..count]),
                }
            }
        });
        let null = std::fs::OpenOptions::new().write(true).open("/dev/null").unwrap();
        let (stdout, stderr) = (Sink::new(write), Sink::new(null.into()));
        runtime.block_on(async {
            let workers: Vec<_> = activations
                .into_iter()
                .map(|activations| {
                    let bounds =
                        Bounds { backlog_bytes, stall_limit: Duration::from_secs(10), format: LogFormat::Text };
                    let mut logs = Logs::new(stdout.clone(), stderr.clone(), Sentinels::Write, &bounds);
                    logs.share();
                    tokio::spawn(async move {
                        for lines in activations {
                            logs.begin();
                            for line in lines {
                                // In two pieces, between which others come to write.
                                let (head, tail) = line.split_at(line.len() / 2);
                                logs.stdout.feed(head.as_bytes());
                                let _ = tokio::time::timeout(Duration::ZERO, logs.pump()).await;
                                logs.stdout.feed_line(tail.as_bytes());
                                let _ = tokio::time::timeout(Duration::ZERO, logs.pump()).await;
                            }
                            logs.end().await;
                        }
                        logs.pass_on().await;
                    })
                })
                .collect();
            for worker in workers {
                worker.await.unwrap();
            }
        });
        drop((runtime, stdout));
        String::from_utf8(collector.join().unwrap()).unwrap()
    }

    proptest! {
        /// However many share a sink, lines stay whole and in order, and what is gathered stays together.
        #[test]
        fn activations_that_share_a_sink_do_not_mix(
            lengths in prop::collection::vec(prop::collection::vec(prop::collection::vec(0_usize..3_000, 0..8), 0..4), 1..5),
            backlog_bytes in prop::sample::select(vec![5_000, 1_000_000]),
        ) {
            let line = |worker: usize, activation: usize, number: usize, length: usize| {
                format!("{worker} {activation} {number} {}", "x".repeat(length))
            };
            let mut expected = Vec::new();
            for (worker, activations) in lengths.iter().enumerate() {
                for (activation, lengths) in activations.iter().enumerate() {
                    let lines = lengths.iter().enumerate();
                    expected.push(lines.map(|(number, length)| line(worker, activation, number, *length)).collect::<Vec<_>>());
                }
            }
            let mut all = expected.iter();
            let activations =
                lengths.iter().map(|activations| all.by_ref().take(activations.len()).cloned().collect()).collect();
            let text = share(activations, backlog_bytes);
            prop_assert_eq!(text.lines().filter(|line| *line == SENTINEL).count(), expected.len());
            let logs = |text: &str| -> Vec<String> { text.lines().filter(|line| *line != SENTINEL).map(str::to_owned).collect() };
            let mut seen: std::collections::BTreeMap<String, Vec<String>> = std::collections::BTreeMap::new();
            for line in logs(&text) {
                let whose = line.splitn(3, ' ').take(2).collect::<Vec<_>>().join(" ");
                seen.entry(whose).or_default().push(line);
            }
            let with_lines: Vec<_> = expected.iter().filter(|lines| !lines.is_empty()).collect();
            prop_assert_eq!(seen.values().collect::<Vec<_>>(), with_lines);
            if backlog_bytes > 100_000 {
                for log in text.split(&format!("{SENTINEL}\n")) {
                    let log = logs(log);
                    prop_assert!(log.is_empty() || expected.contains(&log), "an activation's log stands together");
                }
            }
        }

        /// Whatever is printed in whatever pieces: each activation has one sentinel, nothing of its
        /// output is lost, and nothing else looks like a sentinel.
        #[test]
        fn logs_are_whole_and_sentinels_are_counted(
            activations in prop::collection::vec(
                prop::collection::vec(prop_oneof![
                    "[a\n]{0,5}",
                    Just(SENTINEL.to_owned()),
                    (0..SENTINEL.len()).prop_map(|cut| SENTINEL[..cut].to_owned()),
                    (0..SENTINEL.len()).prop_map(|cut| SENTINEL[cut..].to_owned()),
                ], 0..5), 1..5),
        ) {
            let mut steps = Vec::new();
            for pieces in &activations {
                steps.push(Step::Begin);
                steps.extend(pieces.iter().map(print));
                steps.push(Step::End);
            }
            let text = check(&steps, 0);
            prop_assert_eq!(text.matches(SENTINEL).count(), activations.len());
            let logs: Vec<&str> = text.split_inclusive(&format!("{SENTINEL}\n")).collect();
            prop_assert_eq!(logs.len(), activations.len());
            for (log, pieces) in logs.iter().zip(&activations) {
                let log = log.strip_suffix(&format!("{SENTINEL}\n")).unwrap();
                let mut expected = pieces.concat();
                while expected.contains(SENTINEL) {
                    expected = expected.replacen(SENTINEL, DEFUSED, 1);
                }
                if !expected.is_empty() && !expected.ends_with('\n') {
                    expected.push('\n');
                }
                prop_assert_eq!(log, expected);
            }
        }
    }
}
