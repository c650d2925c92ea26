//! Framing: however a text is split in transit, its lines are those that a simple reader sees.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pipeloop::process::pipe::{pipe, watch};
use pipeloop::protocol::line::{Fill, LineReader};
use tokio::runtime::Runtime;

thread_local! {
    static RUNTIME: Runtime =
        tokio::runtime::Builder::new_current_thread().enable_io().build().expect("a runtime");
}

// The first byte is the number of bytes after it that are the lengths of chunks; the rest is the text.
fuzz_target!(|input: &[u8]| {
    let Some((count, rest)) = input.split_first() else { return };
    let (lengths, text) = rest.split_at(usize::from(*count).min(rest.len()));
    // As much as a pipe accepts at once.
    let text = &text[..text.len().min(32 * 1024)];
    let expected: Vec<&[u8]> = text
        .split_inclusive(|byte| *byte == b'\n')
        .filter(|line| line.ends_with(b"\n"))
        .map(<[u8]>::trim_ascii_end)
        .filter(|line| !line.is_empty())
        .collect();
    let behind = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);

    RUNTIME.with(|runtime| {
        let _inside = runtime.enter();
        let (read, write) = pipe().expect("a pipe");
        let mut reader = LineReader::new(watch(read).expect("it can be watched"));
        let mut lines = Vec::new();
        let mut rest = text;
        let mut lengths = lengths.iter();
        while !rest.is_empty() {
            let length = lengths.next().map_or(rest.len(), |length| usize::from(*length) + 1).min(rest.len());
            let (chunk, later) = rest.split_at(length);
            rest = later;
            assert_eq!(rustix::io::write(&write, chunk).expect("there is room"), chunk.len());
            // Lines may be taken before or after the next chunk arrives.
            while let Fill::Some = reader.try_fill().expect("it can be read") {
                if length % 2 == 0 {
                    break;
                }
            }
            if length % 3 != 0 {
                while let Some(line) = reader.next_line() {
                    lines.push(line);
                }
            }
        }
        drop(write);
        while reader.try_fill().expect("it can be read") != Fill::End {}
        while let Some(line) = reader.next_line() {
            lines.push(line);
        }
        assert_eq!(lines, expected);
        assert_eq!(reader.partial(), text[behind..].trim_ascii_end());
        assert_eq!(reader.take_rest(), &text[behind..]);
    });
});
