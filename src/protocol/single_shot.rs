//! Version 0 of the protocol: one process for each activation, as the Docker skeleton did it.
//!
//! Arguments come as `argv[1]` and on stdin, then end-of-file; the last line of stdout is the
//! result, everything before it and stderr is log. The exit status does not decide, the line does.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::time::Duration;

use bytes::Bytes;

use crate::activation::{Activation, Answer};
use crate::error::BadAnswer;
use crate::logs::Logs;
use crate::process::spawn::Pipes;
use crate::process::{Launch, Process};

use super::answer;
use super::line::{Fill, LineReader, LineWriter};

/// The longest text that Linux takes as one argument, without its NUL.
///
/// Source: execve(2), `MAX_ARG_STRLEN`; apache/openwhisk-runtime-docker, `actionproxy.py`.
pub const MAX_ARGUMENT: usize = 131_071;

/// How long the pipes of a process that has ended may stay open in the hands of its children
/// before they are no longer waited for.
const AFTERMATH: Duration = Duration::from_millis(100);

/// What is moved to the log at once.
const PIECE: usize = 64 * 1024;

/// Why there is no answer.
#[derive(Debug)]
pub enum NoAnswer {
    /// The last line is unusable.
    Bad(BadAnswer),
    /// The last line is over the bound. The process may still run.
    TooLong,
}

/// How the process of one activation is started: with its arguments as `argv[1]`, unless they are
/// too long for that, and its other members in the environment.
#[must_use]
pub fn launch(action: &Launch, activation: &Activation) -> Launch {
    let mut launch = action.clone();
    launch.arguments.extend(argument(activation).map(|json| OsString::from_vec(json.to_vec())));
    for (name, value) in activation.context() {
        // A NUL ends a variable wherever it comes from.
        let value = value.replace('\0', "");
        let name = format!("__OW_{}", name.to_uppercase().replace(['\0', '='], "_"));
        launch.environment.retain(|(other, _)| *other != *name);
        launch.environment.push((name.into(), value.into()));
    }
    launch
}

/// What `argv[1]` is for an activation; `None` when its arguments are too long for one.
fn argument(activation: &Activation) -> Option<&[u8]> {
    let arguments = activation.arguments();
    // A NUL cannot be in an argument; in JSON it can only be escaped.
    (arguments.len() <= MAX_ARGUMENT).then_some(arguments)
}

/// Feeds one process and waits for its last line. There is no time limit here; cancelling leaves
/// the process to be killed.
///
/// # Errors
/// [`NoAnswer`].
pub async fn interact(
    process: &Process,
    pipes: Pipes,
    activation: &Activation,
    limit_bytes: u64,
    logs: &mut Logs,
) -> Result<Answer, NoAnswer> {
    logs.stderr.attach(pipes.stderr, b"");
    let mut output = Output { lines: LineReader::new(pipes.stdout), limit_bytes, overflowed: false };
    let mut stdin = Some(LineWriter::new(pipes.stdin));
    let mut unwritten = activation.arguments();
    let mut exited = false;
    loop {
        if unwritten.is_empty() {
            // End-of-file: that was all.
            stdin = None;
        }
        tokio::select! {
            fill = output.lines.fill() => match fill {
                Ok(Fill::Some | Fill::WouldBlock) => output.pass_on(logs).await,
                Ok(Fill::End) | Err(_) => break,
            },
            written = write(stdin.as_mut(), unwritten) => match written {
                Ok(written) => unwritten = &unwritten[written..],
                // It does not want to read; that is its right.
                Err(_) => unwritten = &[],
            },
            () = logs.pump() => unreachable!("a pump never ends"),
            _ = process.exited(), if !exited => exited = true,
            () = tokio::time::sleep(AFTERMATH), if exited => {
                // Somebody else holds its output open. What it wrote itself is there.
                while let Ok(Fill::Some) = output.lines.try_fill() {
                    output.pass_on(logs).await;
                    if output.overflowed {
                        break;
                    }
                }
                break;
            }
        }
    }
    output.result(logs).await
}

/// Writes, or waits for ever when there is nothing to write to.
async fn write(stdin: Option<&mut LineWriter>, bytes: &[u8]) -> io::Result<usize> {
    match stdin {
        Some(stdin) => stdin.write(bytes).await,
        None => std::future::pending().await,
    }
}

/// Standard output: the last line is held back, everything before it is log.
struct Output {
    lines: LineReader,
    limit_bytes: u64,
    /// The beginning of the line under way is in the log already, since it is over the bound.
    overflowed: bool,
}

impl Output {
    /// Logs what cannot be the last line, or is too long for one.
    async fn pass_on(&mut self, logs: &mut Logs) {
        let before = self.lines.before_last_line();
        if before > 0 {
            self.log(before, logs).await;
            self.overflowed = false;
        }
        let pending = self.lines.pending();
        if self.overflowed || pending.len() as u64 > self.limit_bytes {
            // Its newline stays: what comes behind that is another line.
            let count = pending.len() - usize::from(pending.last() == Some(&b'\n'));
            self.log(count, logs).await;
            self.overflowed = true;
        }
    }

    /// Moves so much to the log, no faster than that is read.
    async fn log(&mut self, mut count: usize, logs: &mut Logs) {
        while count > 0 {
            let piece = count.min(PIECE);
            logs.stdout.feed(&self.lines.pending()[..piece]);
            self.lines.skip(piece);
            count -= piece;
            logs.relieve().await;
        }
    }

    async fn result(mut self, logs: &mut Logs) -> Result<Answer, NoAnswer> {
        self.pass_on(logs).await;
        if self.overflowed {
            return Err(NoAnswer::TooLong);
        }
        let mut line = self.lines.take_rest();
        // One newline ends the line; a second one would begin an empty last line.
        if line.last() == Some(&b'\n') {
            line.pop();
        }
        let line = Bytes::from(line);
        let line = line.slice_ref(line.trim_ascii());
        if line.is_empty() {
            return Err(NoAnswer::Bad(BadAnswer::Nothing));
        }
        answer::check(line).map_err(NoAnswer::Bad)
    }
}
