//! The only printer: data on stdout, everything else on stderr, colour on terminals only.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use crate::error::Error;

/// An error and its hint, on stderr.
pub(super) fn error(error: &Error) {
    let (red, cyan, off) = colours();
    note(&format!("{red}error[{}]{off}: {error}", error.code()));
    if let Some(detail) = error.detail() {
        note(&format!("  {detail}"));
    }
    if let Some(hint) = error.hint() {
        note(&format!("{cyan}hint{off}: {hint}"));
    }
}

/// A line on stderr.
pub(super) fn note(line: &str) {
    // Nobody is left to be told that stderr is gone.
    let _ = writeln!(io::stderr(), "{line}");
}

/// A result on stdout: as it came, or on a terminal with indentation. Whether it could be written.
pub(super) fn result(json: &[u8]) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    let pretty = stdout
        .is_terminal()
        .then(|| serde_json::from_slice::<serde_json::Value>(json).ok())
        .flatten()
        .and_then(|value| serde_json::to_vec_pretty(&value).ok());
    stdout.write_all(pretty.as_deref().unwrap_or(json))?;
    stdout.write_all(b"\n")?;
    stdout.flush()
}

/// A duration for people who compare: `1.23 ms`, `845 µs`.
pub(super) fn time(duration: Duration) -> String {
    match duration.as_micros() {
        micros @ 0..1_000 => format!("{micros} µs"),
        micros @ 1_000..1_000_000 => format!("{:.2} ms", micros as f64 / 1e3),
        micros => format!("{:.2} s", micros as f64 / 1e6),
    }
}

fn colours() -> (&'static str, &'static str, &'static str) {
    // Source: no-color.org; clap follows it for its own messages.
    let wanted = io::stderr().is_terminal() && !crate::config::no_color();
    if wanted { ("\x1b[1;31m", "\x1b[1;36m", "\x1b[0m") } else { ("", "", "") }
}
