//! Version 0 of the protocol: one process for each activation, as in OpenWhisk's Docker skeleton.
//!
//! The process gets its arguments as `argv[1]` and on stdin, followed by end-of-file. The last line of
//! stdout is the result; stderr and the rest of stdout are the log. The exit status does not matter.
//!
//! # Theory of operation
//! The output ends with end-of-file. A child of the process may hold stdout open past the exit of the process,
//! and may print, so the output is marked at the exit. What follows the mark within `EXIT_DRAIN_TIMEOUT` still
//! counts if end-of-file comes in that time: the child may be a filter such as `tee`. Otherwise the last line
//! before the mark is the result, if it is one.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::time::Duration;

use bytes::Bytes;

use crate::activation::{Activation, Answer};
use crate::error::{BadAnswer, Error, RequestError, StartError, VariableSource};
use crate::logs::Logs;
use crate::process::spawn::Pipes;
use crate::process::{Launch, Process};

use super::answer;
use super::line::{Fill, LineReader, LineWriter, before_last_line};

/// The longest text that Linux accepts as one argument, without its NUL.
///
/// Source: execve(2), `MAX_ARG_STRLEN`; apache/openwhisk-runtime-docker, `actionproxy.py`.
pub const MAX_ARGUMENT: usize = 131_071;

/// How long the proxy waits for end-of-file after the process has exited, when its children hold its
/// stdout open. One limit, whatever the children print.
const EXIT_DRAIN_TIMEOUT: Duration = Duration::from_millis(100);
/// How many bytes of that time are kept, at most.
const MAX_LATE_BYTES: usize = 1024 * 1024;

/// How many bytes move to the log at once.
const LOG_CHUNK: usize = 64 * 1024;

/// Why there is no answer.
#[derive(Debug)]
pub enum NoAnswer {
    /// The last line is unusable.
    Bad(BadAnswer),
    /// The last line is over the limit. The process may still run.
    TooLong,
}

/// How to start the process of one activation: with the arguments as `argv[1]`, unless they are too long or
/// `with_argument` is false, and the other members of the activation in the environment.
///
/// # Errors
/// [`RequestError::BadVariable`] for a member that holds NUL: it would end the variable.
pub fn launch(action: &Launch, activation: &Activation, with_argument: bool) -> Result<Launch, Error> {
    let mut launch = action.clone();
    if with_argument {
        launch.arguments.extend(argument(activation).map(|json| OsString::from_vec(json.to_vec())));
    }
    for (name, value) in activation.context() {
        if name.contains('\0') || value.contains('\0') {
            return Err(Error::Request(RequestError::BadVariable { name, of: VariableSource::Activation }));
        }
        let name = variable(&name);
        launch.environment.retain(|(other, _)| *other != *name);
        launch.environment.push((name.into(), value.into()));
    }
    Ok(launch)
}

/// The variable for a member of an activation.
fn variable(member: &str) -> String {
    format!("__OW_{}", member.to_uppercase().replace('=', "_"))
}

/// An error of the start, with the name of the member that is too large for a variable.
#[must_use]
pub fn name_member(error: Error, activation: &Activation) -> Error {
    let Error::Start(StartError::TooLarge(mut oversized)) = error else { return error };
    let names = activation.context().into_iter().map(|(name, _)| name);
    oversized.member = names.rev().find(|name| variable(name) == oversized.variable);
    Error::Start(StartError::TooLarge(oversized))
}

/// The `argv[1]` for an activation; `None` when its arguments are too long.
fn argument(activation: &Activation) -> Option<&[u8]> {
    let arguments = activation.arguments();
    // The text holds no NUL: JSON can only escape one.
    (arguments.len() <= MAX_ARGUMENT).then_some(arguments)
}

/// Writes the arguments to one process and waits for its last line. There is no time limit here. After
/// cancelling this, the caller must kill the process.
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
    loop {
        if unwritten.is_empty() {
            // Gives the process end-of-file.
            stdin = None;
        }
        tokio::select! {
            biased;
            // Before its output: a child may print more at any time.
            _ = process.exited() => break,
            written = write(stdin.as_mut(), unwritten) => match written {
                Ok(written) => unwritten = &unwritten[written..],
                // A process need not read its arguments.
                Err(_) => unwritten = &[],
            },
            never = logs.pump() => match never {},
            fill = output.lines.fill() => match fill {
                Ok(Fill::Some | Fill::WouldBlock) => output.log_earlier_lines(logs).await,
                Ok(Fill::End) | Err(_) => return output.result(logs).await,
            },
        }
    }
    drop(stdin);
    let at_exit = output.drain(logs).await;
    if output.overflowed {
        output.log(output.lines.pending_len(), logs).await;
        return Err(NoAnswer::TooLong);
    }
    let ended = output.wait_for_end(at_exit, logs).await;
    output.result_after_exit(at_exit, ended, logs).await
}

/// Writes, or waits forever when there is nothing to write to.
async fn write(stdin: Option<&mut LineWriter>, bytes: &[u8]) -> io::Result<usize> {
    match stdin {
        Some(stdin) => stdin.write(bytes).await,
        None => std::future::pending().await,
    }
}

/// Standard output: the last line is kept back, and all bytes before it are log.
struct Output {
    lines: LineReader,
    limit_bytes: u64,
    /// The beginning of the current line is in the log already, because the line is over the limit.
    overflowed: bool,
}

impl Output {
    /// Logs what cannot be the last line, or is too long for it.
    async fn log_earlier_lines(&mut self, logs: &mut Logs) {
        let before = self.lines.before_last_line();
        if before > 0 {
            self.log(before, logs).await;
            self.overflowed = false;
        }
        let pending = self.lines.pending();
        if self.overflowed || pending.len() as u64 > self.limit_bytes {
            // Its newline stays, because bytes after it would begin another line.
            let count = pending.len() - usize::from(pending.last() == Some(&b'\n'));
            self.log(count, logs).await;
            self.overflowed = true;
        }
    }

    /// Moves `count` bytes to the log, no faster than the log is read.
    async fn log(&mut self, mut count: usize, logs: &mut Logs) {
        while count > 0 {
            let chunk = count.min(LOG_CHUNK);
            logs.stdout.append(&self.lines.pending()[..chunk]);
            self.lines.skip(chunk);
            count -= chunk;
            logs.wait_for_space().await;
        }
    }

    /// Reads what the process has written by now and no more, and logs all but the last line. Returns how many
    /// pending bytes are of that last line; the others came later.
    async fn drain(&mut self, logs: &mut Logs) -> usize {
        let arrived = self.lines.arrived();
        while self.lines.pending_len() < arrived
            && let Ok(Fill::Some) = self.lines.try_fill()
        {}
        let arrived = arrived.min(self.lines.pending_len());
        let before = before_last_line(&self.lines.pending()[..arrived]);
        if before > 0 {
            self.log(before, logs).await;
            self.overflowed = false;
        }
        let last_line = arrived - before;
        self.overflowed |= last_line as u64 > self.limit_bytes;
        last_line
    }

    /// Waits until no process holds stdout open any more. Returns whether that came in time.
    async fn wait_for_end(&mut self, at_exit: usize, logs: &mut Logs) -> bool {
        let mut timeout = std::pin::pin!(tokio::time::sleep(EXIT_DRAIN_TIMEOUT));
        while self.lines.pending_len() <= at_exit + MAX_LATE_BYTES {
            tokio::select! {
                biased;
                () = &mut timeout => return false,
                never = logs.pump() => match never {},
                fill = self.lines.fill() => if let Ok(Fill::End) | Err(_) = fill {
                    return true;
                },
            }
        }
        false
    }

    /// The result of a process that has exited: of all that was printed if the output has ended, and otherwise
    /// of what was printed by the exit. If that is unusable, the other one counts.
    async fn result_after_exit(mut self, at_exit: usize, ended: bool, logs: &mut Logs) -> Result<Answer, NoAnswer> {
        let pending = self.lines.pending();
        if pending.len() > at_exit {
            let last_line = &pending[before_last_line(pending)..];
            let counts_late = ended && answer::check(Bytes::copy_from_slice(last_line.trim_ascii())).is_ok();
            if !counts_late && let Ok(answer) = answer::check(Bytes::copy_from_slice(pending[..at_exit].trim_ascii())) {
                self.lines.skip(at_exit);
                self.log(self.lines.pending_len(), logs).await;
                return Ok(answer);
            }
        }
        self.result(logs).await
    }

    async fn result(mut self, logs: &mut Logs) -> Result<Answer, NoAnswer> {
        self.log_earlier_lines(logs).await;
        if self.overflowed {
            return Err(NoAnswer::TooLong);
        }
        let mut line = self.lines.take_rest();
        // One newline ends the line. After a second one the last line would be empty.
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
