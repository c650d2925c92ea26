//! Logs over pipes, with a reader that keeps up, stalls or comes back.

use super::*;
use crate::process::pipe::{pipe, watch};
use proptest::prelude::*;
use rustix::io::Errno;
use std::io::Read;

/// A step of an action.
#[derive(Debug, Clone)]
enum Step {
    Begin,
    Print(Vec<u8>),
    End,
}

/// Plays steps of an action's stdout and returns the text on the proxy's stdout.
fn check(steps: &[Step], backlog_bytes: usize) -> String {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (read, write) = pipe().unwrap();
    // Reads at the same time, as a log collector does.
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
        let mut open = None;
        for step in steps {
            match step {
                Step::Begin => open = Some(logs.open_concurrent()),
                Step::End => open.take().expect("an activation began").end(&mut logs).await,
                Step::Print(bytes) => {
                    let mut rest = &bytes[..];
                    while !rest.is_empty() {
                        // At most what an empty pipe holds, since the only reader runs on this thread. A
                        // user's pipes may be small (pipe(7), `pipe-user-pages-soft`).
                        match rustix::io::write(&action, &rest[..rest.len().min(32 * 1024)]) {
                            Ok(written) => rest = &rest[written..],
                            Err(error) => assert_eq!(error, Errno::AGAIN),
                        }
                        pump_until(&mut logs, 0).await;
                    }
                }
            }
        }
        logs.flush_rest().await;
    });
    drop(runtime);
    String::from_utf8(collector.join().unwrap()).unwrap()
}

/// Pumps until at most this many bytes are left in the action's pipe.
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
    let steps = [Step::Begin, Step::End, print("0123456789"), Step::Begin, Step::End];
    assert_eq!(
        check(&steps, 4),
        format!(
            "{SENTINEL}\n0123\npipeloop: 6 more bytes that the action printed between activations were dropped (PIPELOOP_LOG_BACKLOG)\n{SENTINEL}\n"
        )
    );
}

#[test]
fn a_notice_of_dropped_bytes_is_on_the_stream_that_lost_them() {
    let (read, write) = pipe().unwrap();
    let null = std::fs::OpenOptions::new().write(true).open("/dev/null").unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let stall_limit = Duration::from_secs(10);
        let bounds = Bounds { backlog_bytes: 4, stall_limit, format: LogFormat::Json };
        let mut logs = Logs::new(Sink::new(write), Sink::new(null.into()), Sentinels::Write, &bounds);
        logs.open(None).end().await;
        logs.stdout.append(b"0123456789\n");
        logs.open(None).end().await;
    });
    let mut text = String::new();
    std::fs::File::from(read).read_to_string(&mut text).unwrap();
    let notices: Vec<_> = text.lines().filter(|line| line.contains("were dropped")).collect();
    assert!(matches!(notices[..], [line] if line.contains(r#""stream":"stdout""#)), "{text}");
}

#[test]
fn a_sentinel_of_the_actions_own_is_defused_however_it_arrives() {
    for cut in 0..=SENTINEL.len() {
        let (head, tail) = SENTINEL.split_at(cut);
        let steps = [Step::Begin, print(head), print(tail), print("\n"), Step::End];
        assert_eq!(check(&steps, 100), format!("{DEFUSED}\n{SENTINEL}\n"), "cut at {cut}");
    }
    // The start of a sentinel is let through at the end of the activation.
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
fn a_stalled_log_reader_delays_an_answer_for_a_bounded_time_only() {
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
            // The last block stays in the pipe, since the sink is full.
            pump_until(&mut logs, 32 * 1024).await;
        }
        tokio::time::timeout(Duration::from_secs(10), logs.open(None).end()).await.expect("it drops the log");
    });
}

#[test]
fn a_reader_that_comes_back_gets_a_notice_and_its_sentinels() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (read, write) = pipe().unwrap();
    let null = std::fs::OpenOptions::new().write(true).open("/dev/null").unwrap();
    let text = runtime.block_on(async {
        let bounds = Bounds { backlog_bytes: 0, stall_limit: Duration::from_millis(20), format: LogFormat::Text };
        let mut logs = Logs::new(Sink::new(write), Sink::new(null.into()), Sentinels::Write, &bounds);
        for _ in 0..3 {
            let mut log = logs.open(None);
            // More than the pipe holds.
            log.stdout.append(&vec![b'x'; 100_000]);
            log.end().await;
        }
        let mut read = std::fs::File::from(read);
        let mut text = vec![0; 64 * 1024];
        read.read_exact(&mut text).unwrap();
        let mut log = logs.open(None);
        log.stdout.append(b"seen\n");
        log.end().await;
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
    stream.append("first\n".repeat(2000).as_bytes());
    stream.append(b"Traceback\n\n  here  \nImportError: no module\n");
    assert_eq!(stream.tail(), "first | first | Traceback |   here | ImportError: no module");
    stream.forget_tail();
    assert_eq!(stream.tail(), "");
}

/// What an activation leaves in the pipe is not the last words of the next one. Issue 12.
#[test]
fn the_tail_begins_where_the_activation_began() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (_read, write) = pipe().unwrap();
    let (source, action) = pipe().unwrap();
    let bounds = Bounds { backlog_bytes: 100, stall_limit: Duration::from_secs(10), format: LogFormat::Text };
    let null = std::fs::OpenOptions::new().write(true).open("/dev/null").unwrap();
    runtime.block_on(async {
        let mut logs = Logs::new(Sink::new(write), Sink::new(null.into()), Sentinels::Write, &bounds);
        logs.stderr.attach(watch(source).unwrap(), b"");
        logs.open(None).end().await;
        rustix::io::write(&action, b"of an earlier one\n").unwrap();
        let mut log = logs.open(None);
        rustix::io::write(&action, b"its own\n").unwrap();
        log.drain();
        assert_eq!(log.stderr.tail(), "its own");
        log.end().await;

        // These lines could belong to either activation.
        let (first, second) = (logs.open_concurrent(), logs.open_concurrent());
        logs.set_exclusive(false);
        rustix::io::write(&action, b"of either\n").unwrap();
        logs.drain();
        assert_eq!(logs.stderr.tail(), "");
        second.end(&mut logs).await;
        rustix::io::write(&action, b"still of either\n").unwrap();
        logs.set_exclusive(true);
        rustix::io::write(&action, b"of the first\n").unwrap();
        logs.drain();
        assert_eq!(logs.stderr.tail(), "of the first");
        first.end(&mut logs).await;
    });
}

#[test]
fn a_writer_keeps_the_permit_until_its_log_is_out() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (read, write) = pipe().unwrap();
    let capacity = rustix::pipe::fcntl_setpipe_size(&write, 4096).unwrap();
    let null = std::fs::OpenOptions::new().write(true).open("/dev/null").unwrap();
    let (stdout, stderr) = (Sink::new(write), Sink::new(null.into()));
    let logs = || {
        let bounds = Bounds { backlog_bytes: 100_000, stall_limit: Duration::from_secs(10), format: LogFormat::Text };
        let mut logs = Logs::new(stdout.clone(), stderr.clone(), Sentinels::Write, &bounds);
        logs.share();
        logs
    };
    let (mut large, mut small) = (logs(), logs());
    let mut text = Vec::new();
    runtime.block_on(async {
        large.stdout.append_line("x".repeat(2 * capacity).as_bytes());
        small.stdout.append_line(b"small");
        let mut ends = [Box::pin(large.open(None).end()), Box::pin(small.open(None).end())];
        let mut over = [false; 2];
        while over.contains(&false) {
            for (end, over) in ends.iter_mut().zip(&mut over).filter(|(_, over)| !**over) {
                *over = tokio::time::timeout(Duration::from_millis(1), end).await.is_ok();
                // The sink has space now, and the other log is polled first.
                let mut chunk = vec![0; capacity];
                if rustix::io::ioctl_fionread(&read).unwrap() > 0 {
                    let count = rustix::io::read(&read, &mut chunk).unwrap();
                    text.extend_from_slice(&chunk[..count]);
                }
            }
        }
        let left = usize::try_from(rustix::io::ioctl_fionread(&read).unwrap()).unwrap();
        let mut chunk = vec![0; left];
        if left > 0 {
            let count = rustix::io::read(&read, &mut chunk).unwrap();
            text.extend_from_slice(&chunk[..count]);
        }
    });
    let expected = format!("{}\n{SENTINEL}\nsmall\n{SENTINEL}\n", "x".repeat(2 * capacity));
    assert!(text == expected.as_bytes(), "{}", String::from_utf8_lossy(&text).replace(&"x".repeat(1_000), "…"));
}

/// Several activations at once, each with its lines, over one sink with a small pipe.
fn share(activations: Vec<Vec<Vec<String>>>, backlog_bytes: usize) -> String {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (read, write) = pipe().unwrap();
    // A small pipe makes writes stop in the middle of a line.
    rustix::pipe::fcntl_setpipe_size(&write, 4096).unwrap();
    let collector = std::thread::spawn(move || {
        let (mut file, mut text, mut chunk) = (std::fs::File::from(read), Vec::new(), [0; 1000]);
        loop {
            match file.read(&mut chunk).unwrap() {
                0 => return text,
                count => text.extend_from_slice(&chunk[..count]),
            }
        }
    });
    let null = std::fs::OpenOptions::new().write(true).open("/dev/null").unwrap();
    let (stdout, stderr) = (Sink::new(write), Sink::new(null.into()));
    runtime.block_on(async {
        let workers: Vec<_> = activations
            .into_iter()
            .map(|activations| {
                let bounds = Bounds { backlog_bytes, stall_limit: Duration::from_secs(10), format: LogFormat::Text };
                let mut logs = Logs::new(stdout.clone(), stderr.clone(), Sentinels::Write, &bounds);
                logs.share();
                tokio::spawn(async move {
                    for lines in activations {
                        let mut log = logs.open(None);
                        for line in lines {
                            // In two parts, between which other logs may write.
                            let (head, tail) = line.split_at(line.len() / 2);
                            log.stdout.append(head.as_bytes());
                            let _ = tokio::time::timeout(Duration::ZERO, log.pump()).await;
                            log.stdout.append_line(tail.as_bytes());
                            let _ = tokio::time::timeout(Duration::ZERO, log.pump()).await;
                        }
                        log.end().await;
                    }
                    logs.flush_rest().await;
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
    /// Lines of a shared sink stay whole and in order, and a gathered log stays together.
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
            let activation = line.splitn(3, ' ').take(2).collect::<Vec<_>>().join(" ");
            seen.entry(activation).or_default().push(line);
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

    /// Output in arbitrary parts: each activation has one sentinel, no output is lost, and nothing else
    /// looks like a sentinel.
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
        for parts in &activations {
            steps.push(Step::Begin);
            steps.extend(parts.iter().map(print));
            steps.push(Step::End);
        }
        let text = check(&steps, 0);
        prop_assert_eq!(text.matches(SENTINEL).count(), activations.len());
        let logs: Vec<&str> = text.split_inclusive(&format!("{SENTINEL}\n")).collect();
        prop_assert_eq!(logs.len(), activations.len());
        for (log, parts) in logs.iter().zip(&activations) {
            let log = log.strip_suffix(&format!("{SENTINEL}\n")).unwrap();
            let mut expected = parts.concat();
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

#[test]
fn a_log_that_is_dropped_still_writes_its_sentinels() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (read, write) = pipe().unwrap();
    runtime.block_on(async {
        let bounds = Bounds { backlog_bytes: 100, stall_limit: Duration::from_secs(10), format: LogFormat::Text };
        let sink = Sink::new(write);
        let mut logs = Logs::new(sink.clone(), sink, Sentinels::Write, &bounds);
        let mut log = logs.open(None);
        log.stdout.append(b"half a line");
        drop(log);
        logs.stdout.append(b"between\n");
        // A cancelled end still writes its sentinels.
        let cancelled = logs.open(None).end();
        drop(cancelled);
    });
    let mut text = String::new();
    std::fs::File::from(read).read_to_string(&mut text).unwrap();
    assert_eq!(text, format!("half a line\n{SENTINEL}\n{SENTINEL}\nbetween\n{SENTINEL}\n{SENTINEL}\n"));
}

#[test]
fn each_of_several_open_logs_ends_once_and_a_withdrawn_one_never() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (read, write) = pipe().unwrap();
    let null = std::fs::OpenOptions::new().write(true).open("/dev/null").unwrap();
    runtime.block_on(async {
        let bounds = Bounds { backlog_bytes: 0, stall_limit: Duration::from_secs(10), format: LogFormat::Text };
        let mut logs = Logs::new(Sink::new(null.into()), Sink::new(write), Sentinels::Write, &bounds);
        let (mut first, second, third) = (logs.open_concurrent(), logs.open_concurrent(), logs.open_concurrent());
        first.keep_lines(b"kept\n", 100, &mut logs);
        logs.stderr.append(b"one\n");
        second.end(&mut logs).await;
        // Other logs are open, so this goes out at once. With a backlog of 0 bytes it would else be lost.
        logs.stderr.append(b"two\n");
        third.withdraw(&mut logs);
        first.end(&mut logs).await;
    });
    let mut text = String::new();
    std::fs::File::from(read).read_to_string(&mut text).unwrap();
    assert_eq!(text, format!("one\n{SENTINEL}\ntwo\nkept\n{SENTINEL}\n"));
}
