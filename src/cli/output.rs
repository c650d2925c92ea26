//! The only printer: data on stdout, everything else on stderr, colour on terminals only.

#![expect(clippy::disallowed_methods, reason = "the one printer")]

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use crate::check::{Check, Report, Verdict};
use crate::error::Error;
use crate::error::catalog::Entry;
use conformance::Verdict as Played;

/// An error and its hint, on stderr. A person is told where there is more.
pub(super) fn error(error: &Error) {
    let stderr = io::stderr();
    let Style { red, cyan, off, .. } = Style::of(&stderr);
    note(&format!("{red}error[{}]{off}: {error}", error.code()));
    if let Some(detail) = error.detail() {
        note(&format!("  {detail}"));
    }
    if let Some(hint) = error.hint() {
        note(&format!("{cyan}hint{off}: {hint}"));
    }
    if stderr.is_terminal() {
        note(&format!("{cyan}for more{off}: pipeloop explain {}", error.code()));
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

/// Chunks on stdout as they come: a line of JSON each, or on a terminal strings as their text.
#[derive(Debug, Default)]
pub(super) struct Chunks {
    in_line: bool,
}

impl Chunks {
    /// Prints one. Whether it could be written.
    pub(super) fn print(&mut self, json: &[u8]) -> io::Result<()> {
        let mut stdout = io::stdout().lock();
        let text = stdout.is_terminal().then(|| serde_json::from_slice::<String>(json).ok()).flatten();
        if let Some(text) = text {
            stdout.write_all(text.as_bytes())?;
            self.in_line = !text.ends_with('\n') && (self.in_line || !text.is_empty());
        } else {
            if std::mem::take(&mut self.in_line) {
                stdout.write_all(b"\n")?;
            }
            stdout.write_all(json)?;
            stdout.write_all(b"\n")?;
        }
        stdout.flush()
    }

    /// Ends the line of the last one.
    pub(super) fn end(&mut self) -> io::Result<()> {
        if std::mem::take(&mut self.in_line) { io::stdout().lock().write_all(b"\n") } else { Ok(()) }
    }
}

/// A duration for people who compare: `1.23 ms`, `845 µs`.
pub(super) fn time(duration: Duration) -> String {
    match duration.as_micros() {
        micros @ 0..1_000 => format!("{micros} µs"),
        micros @ 1_000..1_000_000 => format!("{:.2} ms", micros as f64 / 1e3),
        micros => format!("{:.2} s", micros as f64 / 1e6),
    }
}

/// Entries of the catalogue on stdout: as they stand in the document, or on a terminal wrapped and
/// with literals in colour.
pub(super) fn entries(entries: &[&Entry]) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    let style = Style::of(&stdout);
    let width = line_width(&stdout);
    for (at, entry) in entries.iter().enumerate() {
        if at > 0 {
            writeln!(stdout)?;
        }
        writeln!(stdout, "{}{}: {}{}\n", style.bold, entry.code, entry.title, style.off)?;
        let items =
            [("Says", &entry.says), ("Means", &entry.means), ("To get it", &entry.to_get_it), ("Cure", &entry.cure)];
        for (label, text) in items {
            let text = wrapped(&literals(text, &style), ITEM_INDENT, width);
            let label = format!("{label}:");
            writeln!(stdout, "{}{label:<ITEM_INDENT$}{}{text}", style.dim, style.off)?;
        }
    }
    stdout.flush()
}

/// Where the text of an entry begins.
const ITEM_INDENT: usize = 11;

/// What an action logs, on stderr.
pub(super) fn log(bytes: &[u8]) {
    // Nobody is left to be told that stderr is gone.
    let _ = io::stderr().write_all(bytes);
}

/// A report on stdout, line by line as its checks come out.
pub(super) struct Checklist {
    style: Style,
    /// Nothing is printed before the end: a document for machines comes then.
    silent: bool,
    /// Checks that were not reached, or do not apply for one and the same reason, are told in one line.
    folded: Vec<(String, Vec<&'static str>)>,
}

/// Where reason and cure begin.
const FAULT_COLUMN: usize = 6;

impl Checklist {
    /// A report that has not begun.
    pub(super) fn new(silent: bool) -> Self {
        Self { style: Style::of(&io::stdout()), silent, folded: Vec::new() }
    }

    /// A check that has come out.
    pub(super) fn line(&mut self, check: &Check) -> io::Result<()> {
        if self.silent {
            return Ok(());
        }
        let title = check.name.title();
        let folds = match check.verdict {
            Verdict::NotReached => true,
            Verdict::NotApplicable => check.seen.starts_with("not "),
            _ => false,
        };
        if folds {
            match self.folded.iter_mut().find(|(reason, _)| *reason == check.seen) {
                Some((_, titles)) => titles.push(title),
                None => self.folded.push((check.seen.clone(), vec![title])),
            }
            return Ok(());
        }
        self.unfold()?;
        let mut stdout = io::stdout().lock();
        let Style { red, green, yellow, dim, off, .. } = self.style;
        let (mark, colour) = match check.verdict {
            Verdict::Passed => ('✓', green),
            Verdict::Warning => ('!', yellow),
            Verdict::Failed => ('✗', red),
            Verdict::NotApplicable | Verdict::NotReached => ('–', dim),
        };
        let time = check.took.map(|took| format!("{dim}{}{off}", time(took)));
        let seen = Some(check.seen.clone()).filter(|seen| !seen.is_empty());
        let rest: Vec<_> = [seen, time].into_iter().flatten().collect();
        let line = format!("  {colour}{mark}{off} {title:<15}  {}", rest.join("  "));
        writeln!(stdout, "{}", line.trim_end())?;
        let width = line_width(&stdout);
        for fault in &check.faults {
            let reason = format!("{colour}{}{off}: {}", fault.code, fault.reason);
            writeln!(stdout, "{:FAULT_COLUMN$}{}", "", wrapped(&reason, FAULT_COLUMN, width))?;
            if let Some(cure) = &fault.cure {
                let cure = wrapped(&literals(cure, &self.style), FAULT_COLUMN + 6, width);
                writeln!(stdout, "{:FAULT_COLUMN$}{dim}cure:{off} {cure}", "")?;
            }
        }
        for line in &check.log {
            writeln!(stdout, "{:FAULT_COLUMN$}{dim}log |{off} {}", "", printable(line))?;
        }
        stdout.flush()
    }

    /// The last line: what came out how often.
    pub(super) fn summary(&mut self, report: &Report, took: Duration) -> io::Result<()> {
        self.unfold()?;
        let counts = [
            (Verdict::Passed, "passed", self.style.green),
            (Verdict::Warning, "with a warning", self.style.yellow),
            (Verdict::Failed, "failed", self.style.red),
            (Verdict::NotApplicable, "not applicable", self.style.dim),
            (Verdict::NotReached, "not reached", self.style.dim),
        ];
        let off = self.style.off;
        let told: Vec<_> = counts
            .iter()
            .map(|(verdict, words, colour)| (report.count(*verdict), words, colour))
            // Zero failures are worth a word.
            .filter(|(count, words, _)| *count > 0 || **words == "failed")
            .map(|(count, words, colour)| match count {
                0 => format!("{count} {words}"),
                _ => format!("{colour}{count} {words}{off}"),
            })
            .collect();
        let mut stdout = io::stdout().lock();
        writeln!(stdout, "\n{}  {}{}{off}", told.join(", "), self.style.dim, time(took))?;
        stdout.flush()
    }

    fn unfold(&mut self) -> io::Result<()> {
        if self.folded.is_empty() || self.silent {
            return Ok(());
        }
        let mut stdout = io::stdout().lock();
        let width = line_width(&stdout);
        for (reason, titles) in self.folded.drain(..) {
            let reason = if reason.is_empty() { "not reached" } else { &reason };
            let text = wrapped(&format!("{reason}: {}", titles.join(", ")), 4, width);
            writeln!(stdout, "  {}– {text}{}", self.style.dim, self.style.off)?;
        }
        stdout.flush()
    }
}

/// Names and titles of cases on stdout, one a line.
pub(super) fn cases<'a>(cases: impl Iterator<Item = (&'a str, &'a str)> + Clone) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    let Style { bold, off, .. } = Style::of(&stdout);
    let width = cases.clone().map(|(name, _)| name.len()).max().unwrap_or(0);
    for (name, title) in cases {
        writeln!(stdout, "{bold}{name:width$}{off}  {title}")?;
    }
    stdout.flush()
}

/// A case of the protocol that was played, on stdout.
pub(super) fn case(name: &str, width: usize, verdict: &Played, took: Duration) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    let Style { red, green, dim, off, .. } = Style::of(&stdout);
    let took = time(took);
    match verdict {
        Played::Passed => writeln!(stdout, "  {green}✓{off} {name:width$}  {dim}{took}{off}"),
        Played::PassedAsSeen(not) => writeln!(stdout, "  {green}✓{off} {name:width$}  {dim}{took}; {not}{off}"),
        Played::Failed(reason) => writeln!(stdout, "  {red}✗{off} {name:width$}  {}", printable(reason)),
        Played::NotRun(reason) => writeln!(stdout, "  {dim}–{off} {name:width$}  not run: {}", printable(reason)),
    }?;
    stdout.flush()
}

/// The last line below the cases.
pub(super) fn cases_summary(passed: usize, failed: usize, not_run: usize) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    let Style { red, green, dim, off, .. } = Style::of(&stdout);
    let red = if failed > 0 { red } else { "" };
    let rest = if not_run > 0 { format!(", {dim}{not_run} not run{off}") } else { String::new() };
    writeln!(stdout, "\n{green}{passed} passed{off}, {red}{failed} failed{off}{rest}")?;
    stdout.flush()
}

/// A line of somebody else's output: nothing in it moves the cursor.
fn printable(line: &str) -> String {
    line.chars().map(|c| if c.is_control() && c != '\t' { '\u{fffd}' } else { c }).collect()
}

/// Codes and titles on stdout, one a line.
pub(super) fn titles(entries: &[&Entry]) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    let style = Style::of(&stdout);
    for entry in entries {
        let title = literals(entry.title, &style);
        writeln!(stdout, "{}{}{}  {title}", style.bold, entry.code, style.off)?;
    }
    stdout.flush()
}

/// The literals of a line of Markdown in colour. Without colour it stays as it is.
fn literals(markdown: &str, style: &Style) -> String {
    if style.cyan.is_empty() {
        return markdown.to_owned();
    }
    let mut text = String::with_capacity(markdown.len() + 32);
    let mut rest = markdown;
    while let Some(open) = rest.find('`') {
        let fence: String = rest[open..].chars().take_while(|c| *c == '`').collect();
        let (before, behind) = (&rest[..open], &rest[open + fence.len()..]);
        let Some((literal, behind)) = behind.split_once(&fence) else { break };
        // White space keeps backticks inside a literal apart from those around it.
        let literal = literal.trim();
        let _ = write!(text, "{before}{}{literal}{}", style.cyan, style.off);
        rest = behind;
    }
    text.push_str(rest);
    text
}

/// Breaks a text into lines of at most `width` columns, the second and later ones indented.
fn wrapped(text: &str, indent: usize, width: usize) -> String {
    let mut lines = String::with_capacity(text.len() + 64);
    let mut column = indent;
    for word in text.split(' ') {
        let length = columns(word);
        if column > indent && column + 1 + length > width {
            let _ = write!(lines, "\n{:indent$}", "");
            column = indent;
        } else if column > indent {
            lines.push(' ');
            column += 1;
        }
        lines.push_str(word);
        column += length;
    }
    lines
}

/// How many columns a text takes: its characters, without the sequences that colour it.
fn columns(text: &str) -> usize {
    let mut columns = 0;
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        if character == '\x1b' {
            characters.by_ref().take_while(|c| *c != 'm').for_each(drop);
        } else {
            columns += 1;
        }
    }
    columns
}

/// How wide lines are: for people as wide as the terminal, and never too wide to be read; elsewhere
/// nothing is wrapped.
fn line_width(stdout: &io::StdoutLock<'_>) -> usize {
    if !stdout.is_terminal() {
        return usize::MAX;
    }
    match rustix::termios::tcgetwinsize(stdout) {
        Ok(size) if size.ws_col > 0 => usize::from(size.ws_col).clamp(40, 100),
        _ => 80,
    }
}

/// The sequences that colour a terminal; empty where colour is not wanted.
#[derive(Debug, Default, Clone, Copy)]
struct Style {
    red: &'static str,
    green: &'static str,
    yellow: &'static str,
    cyan: &'static str,
    bold: &'static str,
    dim: &'static str,
    off: &'static str,
}

impl Style {
    /// Source: no-color.org; clap follows it for its own messages.
    fn of(stream: &impl IsTerminal) -> Self {
        if !stream.is_terminal() || crate::config::no_color() {
            return Self::default();
        }
        Self {
            red: "\x1b[1;31m",
            green: "\x1b[32m",
            yellow: "\x1b[1;33m",
            cyan: "\x1b[1;36m",
            bold: "\x1b[1m",
            dim: "\x1b[2m",
            off: "\x1b[0m",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_wrapped_between_words() {
        assert_eq!(wrapped("one two three", 2, 9), "one two\n  three");
        assert_eq!(wrapped("unbreakable words", 2, 5), "unbreakable\n  words", "a long word stays whole");
        assert_eq!(wrapped("\x1b[1;36mone\x1b[0m two", 2, 9), "\x1b[1;36mone\x1b[0m two", "colour takes no column");
        assert_eq!(wrapped("a b", 2, usize::MAX), "a b");
    }

    #[test]
    fn literals_lose_their_backticks_where_there_is_colour() {
        let style = Style { cyan: "<", off: ">", ..Style::default() };
        assert_eq!(literals("say `{}` and `` a`b ``.", &style), "say <{}> and <a`b>.");
        assert_eq!(literals("a lone ` stays", &style), "a lone ` stays");
        assert_eq!(literals("say `{}`", &Style::default()), "say `{}`");
    }
}
