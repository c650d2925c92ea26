//! Frames: whatever a process of version 2 writes, and however it is split, a frame belongs to its own activation or to
//! none, and each activation ends once.

#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use pipeloop::activation::Activation;
use pipeloop::process::pipe::{pipe, watch};
use pipeloop::process::spawn::ResultChannel;
use pipeloop::protocol::line::{LineReader, LineWriter};
use pipeloop::protocol::link::Link;
use pipeloop::protocol::multiplex::{Ended, Event, Multiplex, Promises, Taken};
use serde_json::value::RawValue;
use tokio::runtime::Runtime;

thread_local! {
    static RUNTIME: Runtime =
        tokio::runtime::Builder::new_current_thread().enable_io().build().expect("a runtime");
}

/// The limit for a payload.
const LIMIT_BYTES: u64 = 4096;

/// Whether `json` is JSON, and an unchanged part of the line.
fn is_json_of(line: &[u8], json: &[u8]) -> bool {
    let text = |bytes| std::str::from_utf8(bytes).expect("JSON is text");
    serde_json::from_str::<&RawValue>(text(json)).is_ok() && text(line).contains(text(json))
}

/// Checks a message for the log: short, on one line.
fn check_sentence(sentence: &str) {
    assert!(!sentence.contains(['\n', '\0', '\x1b']) && sentence.len() < 4096, "{sentence:?}");
}

/// The numbers of the activations in flight, by the events so far.
#[derive(Default)]
struct InFlight {
    given: u64,
    open: Vec<u64>,
}

impl InFlight {
    fn begin(&mut self, multiplex: &mut Multiplex, stdin: &mut LineReader) {
        let ticket = multiplex.begin(&Activation::of_arguments(b"{}").expect("arguments"));
        self.given += 1;
        assert_eq!(ticket.id, self.given);
        self.open.push(ticket.id);
        // The process has read it, so its output may now be the answer.
        stdin.try_fill().expect("it can be read");
        while stdin.next_line().is_some() {}
    }

    fn check(&mut self, event: Event, line: &Bytes, concurrency: usize) {
        let (Event::Chunk(id, _) | Event::Log(id, _) | Event::Ended(id, _) | Event::Malformed(id, _)) = event else {
            let Event::Stray(reason) = event else { unreachable!("every other event has a number") };
            check_sentence(&reason);
            return;
        };
        assert!(self.open.contains(&id), "{id} is not in flight: {line:?}");
        let text = String::from_utf8_lossy(line);
        assert!(concurrency == 1 || text.contains(&id.to_string()), "{id} is not named: {text}");
        match event {
            Event::Chunk(_, chunk) => assert!(is_json_of(line, &chunk)),
            Event::Ended(_, ended) => {
                match ended {
                    Ended::Result(answer) => {
                        assert!(is_json_of(line, &answer) && matches!(answer.first(), Some(b'{' | b'[')));
                        assert!(answer.len() as u64 <= LIMIT_BYTES);
                    }
                    Ended::Error(error) => assert!(is_json_of(line, &error)),
                    Ended::End => assert!(text.contains("true")),
                    Ended::Bad(problem) => check_sentence(&problem.to_string()),
                }
                self.open.retain(|open| *open != id);
            }
            Event::Malformed(_, problem) => check_sentence(&problem),
            Event::Log(..) | Event::Stray(_) => {}
        }
    }

    /// Takes the frames that have arrived. Returns whether the conversation goes on.
    fn take(&mut self, multiplex: &mut Multiplex, concurrency: usize) -> bool {
        while let Some(taken) = multiplex.take() {
            let Taken::Frame(event, line) = taken else { return false };
            assert!(!line.is_empty() && !line.contains(&b'\n'));
            self.check(event, &line, concurrency);
        }
        true
    }
}

// The first byte is the maximum number of activations in flight, the second one the number of bytes after it that are
// the lengths of chunks; the rest is the output of the process.
fuzz_target!(|input: &[u8]| {
    let [concurrency, count, rest @ ..] = input else { return };
    let concurrency = usize::from(concurrency % 4) + 1;
    let (lengths, text) = rest.split_at(usize::from(*count).min(rest.len()));
    // As much as a pipe accepts at once.
    let text = &text[..text.len().min(32 * 1024)];
    RUNTIME.with(|runtime| {
        let _inside = runtime.enter();
        let ((read_stdin, write_stdin), (read_results, write_results)) =
            (pipe().expect("a pipe"), pipe().expect("a pipe"));
        let watched = |end| watch(end).expect("it can be watched");
        let mut stdin = LineReader::new(watched(read_stdin));
        let (writer, reader) = (LineWriter::new(watched(write_stdin)), LineReader::new(watched(read_results)));
        let promises = Promises { concurrency, cancel: true, pause: true, stop: true };
        let mut multiplex = Multiplex::new(Link::new(writer, reader, ResultChannel::Stdout), promises);
        multiplex.bound(LIMIT_BYTES);
        let mut in_flight = InFlight::default();
        let mut lengths = lengths.iter();
        let mut rest = text;
        while !rest.is_empty() {
            let length = lengths.next().map_or(rest.len(), |length| usize::from(*length) + 1).min(rest.len());
            let (chunk, later) = rest.split_at(length);
            rest = later;
            if in_flight.open.len() < concurrency {
                in_flight.begin(&mut multiplex, &mut stdin);
            }
            assert_eq!(rustix::io::write(&write_results, chunk).expect("there is room"), chunk.len());
            while multiplex.read_rest() {
                if !in_flight.take(&mut multiplex, concurrency) {
                    return;
                }
            }
        }
        drop(write_results);
        while multiplex.read_rest() {}
        in_flight.take(&mut multiplex, concurrency);
        assert!(multiplex.partial().len() <= text.len());
    });
});
