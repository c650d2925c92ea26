//! What a check finds that no single activation is an error for.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use memchr::memmem;

use crate::error::codes;
use crate::process::ExitStatus;
use crate::process::orphans::Orphan;
use crate::process::spawn::ResultChannel;
use crate::text::{excerpt, listing, millis};

/// A promise of the protocol that an action does not keep.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "the fields are the facts that the sentence of each is made of")]
pub enum Finding {
    /// What it wrote came only at the end of its input, or of its activation.
    NotFlushed { what: &'static str, when: String, line: Vec<u8>, cure: String },
    /// Lines on the result channel that are no answers.
    Stray { channel: ResultChannel, line: Vec<u8> },
    /// Unicode does not come back as it was sent.
    Unicode { reason: String },
    /// It does not end as it should at the end of its input.
    EndOfFile { ended: Option<ExitStatus>, within: Duration },
    /// It does not end on SIGTERM.
    Terminate { within: Duration },
    /// It leaves processes behind.
    LeftBehind { orphans: Vec<Orphan> },
    /// A frame that is not that of an activation in flight.
    Frame { fault: FrameFault, line: Vec<u8> },
    /// It does not do what its handshake promises.
    Promise { promise: Promise, seen: String },
}

/// Why a frame belongs to no activation, or to the wrong one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are numbers of activations")]
pub enum FrameFault {
    /// It has no number, and several may be in flight.
    NoId,
    /// Its number was never given; this one was the last.
    Unknown { given: Option<u64> },
    /// It comes behind the last frame of its activation.
    Behind { id: Option<u64> },
    /// It is an activation's, and holds what was sent with another.
    Foreign { id: u64 },
}

/// What a handshake of version 2 promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the name of the member of the handshake is all there is to say")]
pub enum Promise {
    Concurrency(usize),
    Cancel,
    Pause,
    Stop,
}

codes! {
    /// The stable code, as for [`crate::error::Error`].
    Finding,
    Finding::NotFlushed { .. } => "PL094",
    Finding::Stray { .. } => "PL095",
    Finding::Unicode { .. } => "PL096",
    Finding::EndOfFile { .. } => "PL097",
    Finding::Terminate { .. } => "PL098",
    Finding::LeftBehind { .. } => "PL099",
    Finding::Frame { .. } => "PL103",
    Finding::Promise { .. } => "PL104",
}

/// How many processes that were left behind are named.
const MAX_NAMED: usize = 5;

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotFlushed { what, when, line, .. } => write!(f, "the {what} came only {when}: {}", excerpt(line)),
            Self::Stray { channel, line } => {
                write!(f, "there is something else than answers on {channel}: {}", excerpt(line))
            }
            Self::Unicode { reason } => write!(f, "Unicode does not come back as it was sent: {reason}"),
            Self::EndOfFile { ended: None, within } => {
                write!(f, "it did not end within {} after the end of its input, and was killed", millis(*within))
            }
            Self::EndOfFile { ended: Some(status), .. } => write!(f, "it {status} at the end of its input"),
            Self::Terminate { within } => {
                write!(f, "it did not end within {} after SIGTERM, and was killed", millis(*within))
            }
            Self::LeftBehind { orphans } => {
                let names: Vec<_> = orphans.iter().take(MAX_NAMED).map(|survivor| survivor.name.clone()).collect();
                let more = orphans.len() - names.len();
                write!(f, "processes live on after it has ended: {}", listing(&names, more))
            }
            Self::Frame { fault, line } => {
                match fault {
                    FrameFault::NoId => f.write_str("a frame has no `id`, and several may be in flight")?,
                    FrameFault::Unknown { given: Some(given) } => {
                        write!(
                            f,
                            "a frame has an `id` that is no activation's in flight; {given} was the last that was sent"
                        )?;
                    }
                    FrameFault::Unknown { given: None } => f.write_str("a frame came before any activation")?,
                    FrameFault::Behind { id: Some(id) } => {
                        write!(f, "a frame for activation {id} came behind its last one")?;
                    }
                    FrameFault::Behind { id: None } => f.write_str("a frame came while nothing was in flight")?,
                    FrameFault::Foreign { id } => {
                        write!(f, "a frame for activation {id} holds the arguments of another")?;
                    }
                }
                write!(f, ": {}", excerpt(line))
            }
            Self::Promise { promise, seen } => write!(f, "its handshake promises `{promise}`, and {seen}"),
        }
    }
}

/// As it stands in the handshake.
impl fmt::Display for Promise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Concurrency(count) => write!(f, "\"concurrency\":{count}"),
            Self::Cancel => f.write_str("\"cancel\":true"),
            Self::Pause => f.write_str("\"pause\":true"),
            Self::Stop => f.write_str("\"stop\":true"),
        }
    }
}

impl Finding {
    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::NotFlushed { cure, .. } => cure.clone(),
            Self::Stray { .. } => "print logs on stderr, also those of child processes (`command >&2`); or send the handshake and the answers on descriptor 3, and stdout is a log".into(),
            Self::Unicode { .. } => "read and write UTF-8 whatever the locale says: `sys.stdin.reconfigure(encoding=\"utf-8\")`, `binmode(STDOUT, \":utf8\")`, `Encoding.default_external = \"UTF-8\"`".into(),
            Self::EndOfFile { ended: None, .. } => "leave the loop when there is no next line, and let no thread or child process keep the program alive".into(),
            Self::EndOfFile { ended: Some(_), .. } => "leave the loop when there is no next line, and exit with status 0".into(),
            Self::Terminate { .. } => "do not ignore SIGTERM; a handler has to end the program".into(),
            Self::LeftBehind { .. } => "wait for child processes before the program ends, and start no daemons: on a platform they would live on beside the next activation".into(),
            Self::Frame { fault: FrameFault::NoId, .. } => r#"copy the number of the `run` frame into every frame, `chunk` and `log` too: `{"id":7,"result":{}}`; or leave `concurrency` out of the handshake"#.into(),
            Self::Frame { fault: FrameFault::Unknown { .. }, .. } => "send the number back as it came: a whole number of up to 64 bits, neither a text nor a float, and none of its own".into(),
            Self::Frame { fault: FrameFault::Behind { .. }, .. } => "end each activation with exactly one of `result`, `error` and `end`, and write nothing for it after that, also when a `cancel` comes late".into(),
            Self::Frame { fault: FrameFault::Foreign { .. }, .. } => "keep the number and the arguments of an activation together, in variables of its own thread or task: what is global, or a variable of the reading loop, is another's by then".into(),
            Self::Promise { promise: Promise::Concurrency(_), .. } => "start a thread, task or process for each `run` frame and go on reading; or promise less with `concurrency`, and `PIPELOOP_WORKERS` starts several processes".into(),
            Self::Promise { promise: Promise::Cancel, .. } => "go on reading while activations are at work, and end the one that a `cancel` names, with `error` or `end`; ignore numbers that have ended; or leave `cancel` out of the handshake".into(),
            Self::Promise { promise: Promise::Pause, .. } => "write nothing for a number between its `pause` and its `resume` (or `cancel`), and go on then; ignore numbers that have ended; or leave `pause` out of the handshake".into(),
            Self::Promise { promise: Promise::Stop, .. } => "leave the loop when `stop` comes or when the input ends, and exit with status 0; or leave `stop` out of the handshake".into(),
        }
    }
}

/// How output is flushed by the programs that an action consists of; the file that was uploaded is
/// `executable`.
pub(super) fn flush_cure(programs: &[PathBuf], executable: &Path) -> String {
    let names: Vec<_> =
        programs.iter().filter_map(|program| program.file_name()?.to_str()).map(str::to_lowercase).collect();
    let runs = |begins: &[&str]| names.iter().any(|name| begins.iter().any(|begin| name.starts_with(begin)));
    // Filters first: a shell that starts them holds nothing back itself.
    let known = if runs(&["jq"]) {
        "`jq --unbuffered`"
    } else if runs(&["sed"]) {
        "`sed -u`"
    } else if runs(&["awk", "gawk", "mawk", "original-awk"]) {
        "`fflush()` after each `print`; mawk reads with `-W interactive` only"
    } else if runs(&["grep", "egrep"]) {
        "`grep --line-buffered`"
    } else if runs(&["tr", "cut", "tee", "sort", "uniq"]) {
        "`stdbuf -oL` before the filter"
    } else if runs(&["python", "pypy"]) {
        "`print(…, flush=True)`, or start it with `python3 -u`"
    } else if runs(&["perl"]) {
        "`$| = 1;` at the beginning"
    } else if runs(&["ruby"]) {
        "`$stdout.sync = true` at the beginning"
    } else if runs(&["php"]) {
        "`fflush(STDOUT)`, and no `ob_start`"
    } else if runs(&["java"]) {
        "`System.out.flush()`"
    } else if runs(&["mono", "dotnet"]) {
        "`Console.Out.Flush()`, or `AutoFlush = true` on the writer"
    } else if runs(&["lua"]) {
        "`io.stdout:setvbuf(\"line\")`"
    } else if is_go(executable) {
        "`Flush()` on the `bufio.Writer`, or write to `os.Stdout` itself"
    } else {
        "`fflush(stdout)` in C, `std::cout << std::flush` in C++, `io::stdout().flush()` in Rust, `hFlush stdout` in Haskell"
    };
    format!(
        "flush after each line: {known}; if it reads all of its input before it answers, have it answer line by line, or use `--protocol 0`"
    )
}

/// Whether a program was made by Go's compiler, which says so in it.
///
/// Source: Go, package `debug/buildinfo`.
fn is_go(executable: &Path) -> bool {
    fs::read(executable).is_ok_and(|bytes| memmem::find(&bytes, b"\xff Go buildinf:").is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cure_is_that_of_the_program_that_holds_back() {
        let cure = |programs: &[&str]| {
            flush_cure(&programs.iter().map(PathBuf::from).collect::<Vec<_>>(), Path::new("/nonexistent"))
        };
        assert!(cure(&["/usr/bin/python3.11"]).contains("python3 -u"));
        assert!(cure(&["/usr/bin/perl"]).contains("$| = 1"));
        assert!(cure(&["/bin/bash", "/usr/bin/sed"]).contains("sed -u"));
        assert!(cure(&["/bin/bash", "/usr/bin/jq", "/usr/bin/python3"]).contains("jq --unbuffered"));
        assert!(cure(&["/srv/exec"]).contains("fflush(stdout)"));
    }
}
