//! The only printer: data on stdout, everything else on stderr, colour on terminals only.

#![expect(clippy::disallowed_methods, reason = "the one printer")]

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};
use std::os::fd::BorrowedFd;
use std::time::Duration;

use anstream::adapter::strip_str;
use anstream::stream::RawStream;
use anstream::{AutoStream, ColorChoice};
use anstyle::{AnsiColor, Style};
use rustix::event::{PollFd, PollFlags};
use tracing_subscriber::filter::LevelFilter;

use crate::check::{Check, Report, Verdict};
use crate::error::Error;
use crate::error::catalog::Entry;
use conformance::Verdict as Played;

/// An error and its hint, on stderr. On a terminal a line names `pipeloop explain`.
pub(super) fn error(error: &Error) {
    let stderr = io::stderr();
    let Palette { red, cyan, .. } = Palette::of(&stderr);
    note(&format!("{red}error[{}]{red:#}: {error}", error.code()));
    if let Some(detail) = error.detail() {
        note(&format!("  {detail}"));
    }
    if let Some(hint) = error.hint() {
        note(&format!("{cyan}hint{cyan:#}: {hint}"));
    }
    if stderr.is_terminal() {
        note(&format!("{cyan}for more{cyan:#}: pipeloop explain {}", error.code()));
    }
}

/// Whether stderr is a terminal.
pub(super) fn stderr_is_terminal() -> bool {
    io::stderr().is_terminal()
}

/// Starts the proxy's own log, on stderr.
pub(super) fn start_proxy_log(level: LevelFilter) {
    tracing_subscriber::fmt().with_max_level(level).with_writer(io::stderr).with_ansi(has_colour(&io::stderr())).init();
}

/// A line on stderr.
pub(super) fn note(line: &str) {
    // If stderr is gone, there is no place to report that.
    let _ = writeln!(io::stderr(), "{line}");
}

/// Whether something was printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Printed {
    /// It was.
    Yes,
    /// The reader of stdout has had enough, as in `pipeloop explain | head -1`. That is no error.
    NoReader,
}

/// Turns the error that says that stdout has no reader any more into [`Printed::NoReader`].
pub(super) fn unless_closed(printed: io::Result<()>) -> io::Result<Printed> {
    match printed {
        Ok(()) => Ok(Printed::Yes),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Printed::NoReader),
        Err(error) => Err(error),
    }
}

/// A script on stdout, unchanged.
pub(super) fn script(script: &[u8]) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(script)?;
    stdout.flush()
}

/// A result on stdout: unchanged, or on a terminal with indentation.
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

/// Chunks on stdout as they come: a line of JSON each; on a terminal, strings are printed as text.
#[derive(Debug, Default)]
pub(super) struct Chunks {
    in_line: bool,
}

impl Chunks {
    /// Prints one chunk.
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

    /// Ends the line of the last chunk.
    pub(super) fn end(&mut self) -> io::Result<()> {
        if std::mem::take(&mut self.in_line) { io::stdout().lock().write_all(b"\n") } else { Ok(()) }
    }
}

/// A duration in a unit that suits it: `1.23 ms`, `845 µs`.
pub(super) fn time(duration: Duration) -> String {
    match duration.as_micros() {
        micros @ 0..1_000 => format!("{micros} µs"),
        micros @ 1_000..1_000_000 => format!("{:.2} ms", micros as f64 / 1e3),
        micros => format!("{:.2} s", micros as f64 / 1e6),
    }
}

/// Entries of the catalogue on stdout: unchanged, or on a terminal wrapped and with literals in colour.
pub(super) fn entries(entries: &[&Entry]) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    let palette = Palette::of(&stdout);
    let Palette { bold, dim, .. } = palette;
    let width = line_width(&stdout);
    for (at, entry) in entries.iter().enumerate() {
        if at > 0 {
            writeln!(stdout)?;
        }
        writeln!(stdout, "{bold}{}: {}{bold:#}\n", entry.code, entry.title)?;
        let items =
            [("Says", &entry.says), ("Means", &entry.means), ("To get it", &entry.to_get_it), ("Cure", &entry.cure)];
        for (label, text) in items {
            let text = wrapped(&literals(text, &palette), ITEM_INDENT, width);
            let label = format!("{label}:");
            writeln!(stdout, "{dim}{label:<ITEM_INDENT$}{dim:#}{text}")?;
        }
    }
    stdout.flush()
}

/// The column at which the text of an entry begins.
const ITEM_INDENT: usize = 11;

/// The log of an action, on stderr.
pub(super) fn log(bytes: &[u8]) {
    // If stderr is gone, there is no place to report that.
    let _ = io::stderr().write_all(bytes);
}

/// Writes to stdout or stderr without their locks, unless the reader stalls: for a broken process, which must end in
/// any case.
pub(super) fn write_unless_stalled(stream: BorrowedFd<'_>, text: &str) {
    let second = rustix::event::Timespec { tv_sec: 1, tv_nsec: 0 };
    let mut fds = [PollFd::from_borrowed_fd(stream, PollFlags::OUT)];
    if rustix::event::poll(&mut fds, Some(&second)).is_ok_and(|ready| ready > 0) {
        let _ = rustix::io::write(stream, text.as_bytes());
    }
}

/// A report on stdout, line by line as its checks come out.
pub(super) struct Checklist {
    palette: Palette,
    /// Prints nothing, because a JSON document is printed at the end.
    silent: bool,
    /// Checks that were not reached or do not apply, by their reason: one line shows all of a reason.
    folded: Vec<(String, Vec<&'static str>)>,
}

/// The column at which the reason and the hint begin.
const FAULT_COLUMN: usize = 6;

impl Checklist {
    /// An empty report.
    pub(super) fn new(silent: bool) -> Self {
        Self { palette: Palette::of(&io::stdout()), silent, folded: Vec::new() }
    }

    /// Prints a check that has come out.
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
        self.print_folded()?;
        let mut stdout = io::stdout().lock();
        let Palette { red, green, yellow, dim, .. } = self.palette;
        let (mark, colour) = match check.verdict {
            Verdict::Passed => ('✓', green),
            Verdict::Warning => ('!', yellow),
            Verdict::Failed => ('✗', red),
            Verdict::NotApplicable | Verdict::NotReached => ('–', dim),
        };
        let time = check.took.map(|took| format!("{dim}{}{dim:#}", time(took)));
        let seen = Some(check.seen.clone()).filter(|seen| !seen.is_empty());
        let rest: Vec<_> = [seen, time].into_iter().flatten().collect();
        let line = format!("  {colour}{mark}{colour:#} {title:<15}  {}", rest.join("  "));
        writeln!(stdout, "{}", line.trim_end())?;
        let width = line_width(&stdout);
        for fault in &check.faults {
            let reason = format!("{colour}{}{colour:#}: {}", fault.code, fault.reason);
            writeln!(stdout, "{:FAULT_COLUMN$}{}", "", wrapped(&reason, FAULT_COLUMN, width))?;
            if let Some(hint) = &fault.hint {
                let hint = wrapped(&literals(hint, &self.palette), FAULT_COLUMN + 6, width);
                writeln!(stdout, "{:FAULT_COLUMN$}{dim}hint:{dim:#} {hint}", "")?;
            }
        }
        for line in &check.log {
            writeln!(stdout, "{:FAULT_COLUMN$}{dim}log |{dim:#} {}", "", printable(line))?;
        }
        stdout.flush()
    }

    /// Prints the last line: how many checks had each verdict.
    pub(super) fn summary(&mut self, report: &Report, took: Duration) -> io::Result<()> {
        self.print_folded()?;
        let Palette { red, green, yellow, dim, .. } = self.palette;
        let counts = [
            (Verdict::Passed, "passed", green),
            (Verdict::Warning, "with a warning", yellow),
            (Verdict::Failed, "failed", red),
            (Verdict::NotApplicable, "not applicable", dim),
            (Verdict::NotReached, "not reached", dim),
        ];
        let shown: Vec<_> = counts
            .iter()
            .map(|(verdict, words, colour)| (report.count(*verdict), words, colour))
            // Zero failures are shown too.
            .filter(|(count, words, _)| *count > 0 || **words == "failed")
            .map(|(count, words, colour)| match count {
                0 => format!("{count} {words}"),
                _ => format!("{colour}{count} {words}{colour:#}"),
            })
            .collect();
        let mut stdout = io::stdout().lock();
        writeln!(stdout, "\n{}  {dim}{}{dim:#}", shown.join(", "), time(took))?;
        stdout.flush()
    }

    fn print_folded(&mut self) -> io::Result<()> {
        if self.folded.is_empty() || self.silent {
            return Ok(());
        }
        let mut stdout = io::stdout().lock();
        let width = line_width(&stdout);
        let dim = self.palette.dim;
        for (reason, titles) in self.folded.drain(..) {
            let reason = if reason.is_empty() { "not reached" } else { &reason };
            let text = wrapped(&format!("{reason}: {}", titles.join(", ")), 4, width);
            writeln!(stdout, "  {dim}– {text}{dim:#}")?;
        }
        stdout.flush()
    }
}

/// Names and titles of cases on stdout, one a line.
pub(super) fn cases<'a>(cases: impl Iterator<Item = (&'a str, &'a str)> + Clone) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    let bold = Palette::of(&stdout).bold;
    let width = cases.clone().map(|(name, _)| name.len()).max().unwrap_or(0);
    for (name, title) in cases {
        writeln!(stdout, "{bold}{name:width$}{bold:#}  {title}")?;
    }
    stdout.flush()
}

/// A case that was played, on stdout.
pub(super) fn case(name: &str, width: usize, verdict: &Played, took: Duration) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    let Palette { red, green, dim, .. } = Palette::of(&stdout);
    let took = time(took);
    match verdict {
        Played::Passed => writeln!(stdout, "  {green}✓{green:#} {name:width$}  {dim}{took}{dim:#}"),
        Played::PassedAsSeen(not) => writeln!(stdout, "  {green}✓{green:#} {name:width$}  {dim}{took}; {not}{dim:#}"),
        Played::Failed(reason) => writeln!(stdout, "  {red}✗{red:#} {name:width$}  {}", printable(reason)),
        Played::NotRun(reason) => writeln!(stdout, "  {dim}–{dim:#} {name:width$}  not run: {}", printable(reason)),
    }?;
    stdout.flush()
}

/// The line below the cases: how many had each verdict.
pub(super) fn cases_summary(passed: usize, failed: usize, not_run: usize) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    let Palette { red, green, dim, .. } = Palette::of(&stdout);
    let red = if failed > 0 { red } else { Style::new() };
    let rest = if not_run > 0 { format!(", {dim}{not_run} not run{dim:#}") } else { String::new() };
    writeln!(stdout, "\n{green}{passed} passed{green:#}, {red}{failed} failed{red:#}{rest}")?;
    stdout.flush()
}

/// A line of foreign output, without control characters that could move the cursor.
fn printable(line: &str) -> String {
    line.chars().map(|c| if c.is_control() && c != '\t' { '\u{fffd}' } else { c }).collect()
}

/// What `pipeloop new` wrote, and the commands that use it.
#[derive(Debug, serde::Serialize)]
pub(super) struct NewAction {
    /// The files that were written.
    pub(super) files: Vec<String>,
    /// The Debian packages that the action needs.
    pub(super) packages: &'static [&'static str],
    /// The command that compiles the action, if it has to be compiled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) build: Option<String>,
    /// The command that runs one activation.
    pub(super) run: String,
    /// The command that checks the action.
    pub(super) check: String,
    /// The command that serves it over HTTP.
    pub(super) serve: String,
}

/// A new action on stdout: its files, and what to do next.
pub(super) fn new_action(action: &NewAction) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    let Palette { bold, dim, .. } = Palette::of(&stdout);
    let NewAction { files, packages, build, run, check, serve } = action;
    for file in files {
        writeln!(stdout, "wrote {file}")?;
    }
    writeln!(stdout, "\nIt needs the Debian package{} {}. Next:\n", plural(packages.len()), packages.join(" "))?;
    let steps = [("build", build.as_ref()), ("run", Some(run)), ("check", Some(check)), ("serve", Some(serve))];
    for (label, command) in steps {
        if let Some(command) = command {
            writeln!(stdout, "  {dim}{label:<7}{dim:#}{bold}{command}{bold:#}")?;
        }
    }
    stdout.flush()
}

fn plural(count: usize) -> &'static str {
    if count == 1 { "" } else { "s" }
}

/// A table on stdout, with its columns aligned.
pub(super) fn table<const COLUMNS: usize>(heading: [&str; COLUMNS], rows: &[[String; COLUMNS]]) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    let Palette { bold, .. } = Palette::of(&stdout);
    let heading = heading.map(str::to_owned);
    let width = |column: usize| rows.iter().chain([&heading]).map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; COLUMNS] = std::array::from_fn(width);
    for (at, row) in std::iter::once(&heading).chain(rows).enumerate() {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
        let line = cells.collect::<Vec<_>>().join("  ");
        let line = line.trim_end();
        if at == 0 { writeln!(stdout, "{bold}{line}{bold:#}")? } else { writeln!(stdout, "{line}")? }
    }
    stdout.flush()
}

/// Codes and titles on stdout, one a line.
pub(super) fn titles(entries: &[&Entry]) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    let palette = Palette::of(&stdout);
    let bold = palette.bold;
    for entry in entries {
        let title = literals(entry.title, &palette);
        writeln!(stdout, "{bold}{}{bold:#}  {title}", entry.code)?;
    }
    stdout.flush()
}

/// A line of Markdown with its literals in colour; without colour, unchanged.
fn literals(markdown: &str, palette: &Palette) -> String {
    let cyan = palette.cyan;
    if cyan.is_plain() {
        return markdown.to_owned();
    }
    let mut text = String::with_capacity(markdown.len() + 32);
    let mut rest = markdown;
    while let Some(open) = rest.find('`') {
        let fence: String = rest[open..].chars().take_while(|c| *c == '`').collect();
        let (before, behind) = (&rest[..open], &rest[open + fence.len()..]);
        let Some((literal, behind)) = behind.split_once(&fence) else { break };
        // Markdown allows a space between a fence and a backtick of the literal.
        let literal = literal.trim();
        let _ = write!(text, "{before}{cyan}{literal}{cyan:#}");
        rest = behind;
    }
    text.push_str(rest);
    text
}

/// Breaks a text into lines of at most `width` columns, and indents all but the first.
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

/// The number of columns of a text: its characters without the sequences for colour.
fn columns(text: &str) -> usize {
    strip_str(text).map(|part| part.chars().count()).sum()
}

/// The width of lines: on a terminal its width, within the limits of readable text; elsewhere unlimited.
fn line_width(stdout: &io::StdoutLock<'_>) -> usize {
    if !stdout.is_terminal() {
        return usize::MAX;
    }
    match rustix::termios::tcgetwinsize(stdout) {
        Ok(size) if size.ws_col > 0 => usize::from(size.ws_col).clamp(40, 100),
        _ => 80,
    }
}

/// Whether a stream gets colour: on a terminal, unless `NO_COLOR`, `CLICOLOR` or `TERM` say otherwise, as
/// for clap's own messages.
fn has_colour(stream: &impl RawStream) -> bool {
    AutoStream::choice(stream) != ColorChoice::Never
}

/// The styles of what is printed; all of them plain where colour is not wanted.
#[derive(Debug, Default, Clone, Copy)]
struct Palette {
    red: Style,
    green: Style,
    yellow: Style,
    cyan: Style,
    bold: Style,
    dim: Style,
}

impl Palette {
    fn of(stream: &impl RawStream) -> Self {
        if has_colour(stream) { Self::coloured() } else { Self::default() }
    }

    fn coloured() -> Self {
        Self {
            red: AnsiColor::Red.on_default().bold(),
            green: AnsiColor::Green.on_default(),
            yellow: AnsiColor::Yellow.on_default().bold(),
            cyan: AnsiColor::Cyan.on_default().bold(),
            bold: Style::new().bold(),
            dim: Style::new().dimmed(),
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
        let coloured = format!("{cyan}one{cyan:#} two", cyan = Palette::coloured().cyan);
        assert_eq!(wrapped(&coloured, 2, 9), coloured, "colour takes no column");
        assert_eq!(wrapped("a b", 2, usize::MAX), "a b");
    }

    #[test]
    fn literals_lose_their_backticks_where_there_is_colour() {
        let palette = Palette::coloured();
        let (on, off) = (palette.cyan, palette.cyan.render_reset());
        let expected = format!("say {on}{{}}{off} and {on}a`b{off}.");
        assert_eq!(literals("say `{}` and `` a`b ``.", &palette), expected);
        assert_eq!(literals("a lone ` stays", &palette), "a lone ` stays");
        assert_eq!(literals("say `{}`", &Palette::default()), "say `{}`");
    }
}
