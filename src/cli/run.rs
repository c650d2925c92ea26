//! `pipeloop run ACTION`: activations from the terminal, through the code that serves them.

use std::cell::Cell;
use std::io::{self, BufRead, Read};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::Value;
use serde_json::value::RawValue;
use tokio::sync::mpsc;

use crate::action::response_stream::StreamItem;
use crate::action::{Action, ActionConfig, InitFailures};
use crate::activation::{Activation, Answer};
use crate::artifact::LocalAction;
use crate::config::{ActionSettings, Compatibility, container_environment};
use crate::error::{Error, ProxyError};
use crate::logs::{Sentinels, Sink};
use crate::memory_budget::{MemoryBudget, Reservation};
use crate::protocol::answer::failure;
use crate::text::shell_word;

use super::action::ActionArgument;
use super::output::{self, Printed};

/// Run one or more activations and print their results.
///
/// The result goes to stdout, the action's own output to stderr. The exit status is 0 only for a
/// result without `error`.
#[derive(Debug, Args)]
pub(super) struct Run {
    #[command(flatten)]
    action: ActionArgument,

    #[command(flatten)]
    parameters: Parameters,

    /// Run an activation for each line of the input (stdin unless set), all in one process.
    #[arg(short, long)]
    lines: bool,

    /// Print the chunks of a streamed answer as they come, and then the result.
    #[arg(short, long)]
    stream: bool,

    /// Print on stderr how long init and each run took.
    #[arg(short, long)]
    time: bool,

    #[command(flatten)]
    settings: ActionSettings,
}

/// Arguments as a command line gives them.
#[derive(Debug, Args)]
pub(super) struct Parameters {
    /// Argument of the activation. The value is JSON if it parses as JSON, else a string. May be repeated.
    #[arg(short, long = "param", value_name = "NAME=VALUE", value_parser = parameter)]
    parameters: Vec<(String, Value)>,

    /// File with the arguments as a JSON object or array, or `-` for stdin. `-p` adds to an object.
    #[arg(short, long, value_name = "FILE")]
    input: Option<PathBuf>,
}

/// An activation, or what is wrong with its input and where.
type Input = Result<Activation, Error>;

impl Run {
    pub(super) fn execute(self) -> Result<u8, Error> {
        let runtime = super::runtime()?;
        let status = runtime.block_on(self.run());
        // Without waiting for a thread that still reads the terminal.
        runtime.shutdown_background();
        status
    }

    async fn run(self) -> Result<u8, Error> {
        let system = |doing| move |reason| Error::Proxy(ProxyError::System { doing, reason });
        let Self { action: local, parameters, lines, stream, time, settings } = self;
        let local = local.required();
        let printing = Printing { stream, time };
        // Before anything is started.
        if lines && !parameters.parameters.is_empty() {
            let reason = "with `--lines` each line holds the whole arguments".into();
            return Err(Error::Proxy(ProxyError::BadSetting { setting: "--param", reason }));
        }
        let mut inputs = if lines {
            by_line(InputName::new(parameters.input))?
        } else {
            let (arguments, name) = parameters.arguments()?;
            once(Activation::of_arguments(&arguments).map_err(|error| name.in_file(error))?)
        };

        let (mut signals, reaper) = super::take_over()?;
        let compatibility = Compatibility::from_environment()?;
        let stderr = Sink::stderr().map_err(system("use stderr"))?;
        let action = Action::new(
            ActionConfig {
                compiler: settings.compiler.clone().or_else(|| compatibility.compiler.clone()),
                execution_env: compatibility.execution_env.clone(),
                settings,
                environment: container_environment(&compatibility),
                wait_for_ack: compatibility.wait_for_ack.is_some(),
                stdout: stderr.clone(),
                stderr,
                sentinels: Sentinels::Omit,
                init_failures: InitFailures::Return,
                workers: 1,
                queue: 1,
                memory_budget: MemoryBudget::new(Some(u64::MAX)),
            },
            reaper,
        );
        let waiting = Waiting::default();
        let outcome = tokio::select! {
            outcome = run_all(&action, &local, &mut inputs, printing, &waiting) => outcome,
            signal = signals.next() => {
                output::note(&format!("pipeloop: {}, stopping the action", signal.name()));
                if let Some(after) = waiting.0.get().map(|since| since.elapsed()) {
                    let is_told = after >= SAYS_SO_AFTER && output::stderr_is_terminal();
                    let after_all = format!("pipeloop: no answer after {}", output::time(after));
                    output::note(&if is_told { after_all } else { no_answer(after, &local) });
                }
                Ok(signal.shell_code())
            }
        };
        let mut stopped = std::pin::pin!(action.stop(Duration::ZERO));
        tokio::select! {
            () = &mut stopped => {}
            _ = signals.next() => {
                action.kill();
                stopped.await;
            }
        }
        outcome
    }
}

/// Init, then every activation in turn.
async fn run_all(
    action: &Action,
    local: &LocalAction,
    inputs: &mut mpsc::Receiver<Input>,
    printing: Printing,
    waiting: &Waiting,
) -> Result<u8, Error> {
    let started = Instant::now();
    action.open(local).await?;
    if printing.time {
        output::note(&format!("init  {}", output::time(started.elapsed())));
    }
    let mut status = 0;
    while let Some(activation) = inputs.recv().await {
        let started = Instant::now();
        let outcome = match activation {
            Ok(activation) if printing.stream => stream(action, activation).await,
            Ok(activation) => waiting.during(local, action.run(activation, Reservation::default())).await.map(Some),
            Err(error) => Err(error),
        };
        if printing.time {
            output::note(&format!("run   {}", output::time(started.elapsed())));
        }
        match outcome {
            Ok(None) => {}
            Ok(Some(answer)) => {
                if is_error(&answer) {
                    status = status.max(1);
                }
                match output::unless_closed(output::result(&answer)) {
                    Ok(Printed::Yes) => {}
                    Ok(Printed::NoReader) => return Ok(status),
                    Err(reason) => return Err(Error::Proxy(ProxyError::System { doing: "write the result", reason })),
                }
            }
            Err(Error::Proxy(ProxyError::System { reason, .. })) if reason.kind() == io::ErrorKind::BrokenPipe => {
                return Ok(status);
            }
            Err(error) => {
                output::error(&error);
                status = status.max(super::exit_status(&error));
            }
        }
    }
    Ok(status)
}

/// How long a person waits for an answer before a word about it.
const SAYS_SO_AFTER: Duration = Duration::from_secs(3);

/// Since when an activation waits for its answer, if one does.
#[derive(Debug, Default)]
struct Waiting(Cell<Option<Instant>>);

impl Waiting {
    /// Waits for an answer. A person at a terminal is told if it takes long.
    async fn during<T>(&self, action: &LocalAction, answer: impl Future<Output = T>) -> T {
        let started = Instant::now();
        self.0.set(Some(started));
        let mut answer = std::pin::pin!(answer);
        let answer = tokio::select! {
            biased;
            answer = &mut answer => answer,
            () = tokio::time::sleep(SAYS_SO_AFTER), if output::stderr_is_terminal() => {
                output::note(&no_answer(started.elapsed(), action));
                answer.await
            }
        };
        self.0.set(None);
        answer
    }
}

/// A word about an answer that has not come.
fn no_answer(after: Duration, action: &LocalAction) -> String {
    let command = match action {
        LocalAction::File(path) => shell_word(&path.display().to_string()),
        command @ LocalAction::Command(_) => format!("-- {command}"),
    };
    format!(
        "pipeloop: no answer after {}; an answer that is not flushed looks like this too, and `pipeloop check {command}` \
         finds out; `--run-timeout` sets a limit",
        output::time(after)
    )
}

/// What to print beside the result.
#[derive(Debug, Clone, Copy)]
struct Printing {
    /// Chunks, as they come.
    stream: bool,
    /// How long it took.
    time: bool,
}

/// Runs one activation and prints its chunks as they come. Returns its result, if it has one beside the chunks.
async fn stream(action: &Action, activation: Activation) -> Result<Option<Answer>, Error> {
    let failed = |reason| Error::Proxy(ProxyError::System { doing: "write a chunk", reason });
    let (mut item, mut items) = action.stream(activation, Reservation::default()).await?;
    let mut chunks = output::Chunks::default();
    loop {
        match item {
            StreamItem::Chunk(json) => chunks.print(&json).map_err(failed)?,
            last => {
                chunks.end().map_err(failed)?;
                return match last {
                    StreamItem::Result(answer) => Ok(Some(answer)),
                    StreamItem::Failed(error) => Ok(Some(failure(&error))),
                    StreamItem::Broken(error) => Err(error),
                    StreamItem::End | StreamItem::Chunk(_) => Ok(None),
                };
            }
        }
        item = items.next().await;
    }
}

/// Whether a result is an object with a member `error`, which OpenWhisk takes for a failure.
fn is_error(answer: &[u8]) -> bool {
    #[derive(serde::Deserialize)]
    struct Failure<'a> {
        #[serde(borrow)]
        error: Option<&'a RawValue>,
    }
    answer.trim_ascii_start().starts_with(b"{")
        && serde_json::from_slice::<Failure>(answer).is_ok_and(|failure| failure.error.is_some())
}

/// Parses `name=Mike`, `age=7` or `tags=["a","b"]`: a value that is not JSON is a string.
fn parameter(text: &str) -> Result<(String, Value), String> {
    let (name, value) = text.split_once('=').ok_or("expected NAME=VALUE")?;
    if name.is_empty() {
        return Err("expected a name before `=`".into());
    }
    let value = serde_json::from_str(value).unwrap_or_else(|_| Value::from(value));
    Ok((name.to_owned(), value))
}

impl Parameters {
    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.parameters.is_empty() && self.input.is_none()
    }

    /// The arguments as JSON text, and where they come from. The activation checks that they are an object or array.
    pub(super) fn arguments(self) -> Result<(Vec<u8>, InputName), Error> {
        let Self { parameters, input } = self;
        if input.is_none() {
            let object: serde_json::Map<_, _> = parameters.into_iter().collect();
            return Ok((Value::from(object).to_string().into_bytes(), InputName(None)));
        }
        let name = InputName::new(input);
        let mut text = Vec::new();
        name.open()
            .and_then(|mut file| file.read_to_end(&mut text).map_err(|reason| name.with_path(reason)))
            .map_err(unread)?;
        if parameters.is_empty() {
            let text = text.trim_ascii();
            read_json::<&RawValue>(text, &name)?;
            return Ok((text.to_vec(), name));
        }
        let mut object: serde_json::Map<String, Value> = serde_json::from_slice(&text)
            .map_err(|error| name.unusable(None, &format!("`-p` can only be added to a JSON object: {error}")))?;
        object.extend(parameters);
        Ok((Value::from(object).to_string().into_bytes(), name))
    }
}

/// The file that `--input` names, for errors. Stdin has no name.
#[derive(Debug)]
pub(super) struct InputName(Option<PathBuf>);

impl InputName {
    fn new(input: Option<PathBuf>) -> Self {
        Self(input.filter(|path| path.as_os_str() != "-"))
    }

    fn open(&self) -> io::Result<Box<dyn Read + Send>> {
        match &self.0 {
            None => Ok(Box::new(io::stdin())),
            Some(path) => Ok(Box::new(std::fs::File::open(path).map_err(|reason| self.with_path(reason))?)),
        }
    }

    /// An error of the system, with the name of the file.
    fn with_path(&self, reason: io::Error) -> io::Error {
        match &self.0 {
            None => reason,
            Some(path) => io::Error::new(reason.kind(), format!("`{}`: {reason}", path.display())),
        }
    }

    /// The error about what the input holds, or about one of its lines.
    fn unusable(&self, line: Option<u64>, reason: &str) -> Error {
        let file = self.0.as_ref().map(|path| format!("`{}`", path.display()));
        let line = line.map(|number| format!("line {number}"));
        let place: Vec<_> = [file, line].into_iter().flatten().collect();
        let place = if place.is_empty() { String::new() } else { format!("{}: ", place.join(", ")) };
        Error::Proxy(ProxyError::BadSetting { setting: "--input", reason: format!("{place}{reason}") })
    }

    /// An error about the arguments as a whole. For a file it becomes an error about that file.
    fn in_file(&self, error: Error) -> Error {
        if self.0.is_some() { self.unusable(None, &error.to_string()) } else { error }
    }
}

fn unread(reason: io::Error) -> Error {
    Error::Proxy(ProxyError::System { doing: "read the input", reason })
}

/// Parses JSON of the input; the error names `--input` and the file.
pub(super) fn read_json<'a, T: serde::Deserialize<'a>>(text: &'a [u8], name: &InputName) -> Result<T, Error> {
    serde_json::from_slice(text).map_err(|error| name.unusable(None, &format!("it is not JSON: {error}")))
}

fn once(activation: Activation) -> mpsc::Receiver<Input> {
    let (sender, receiver) = mpsc::channel(1);
    sender.try_send(Ok(activation)).expect("the channel is empty");
    receiver
}

/// Reads lines as they come, on a thread of its own, because stdin may be a terminal.
fn by_line(name: InputName) -> Result<mpsc::Receiver<Input>, Error> {
    let reader = io::BufReader::new(name.open().map_err(unread)?);
    let (sender, receiver) = mpsc::channel(1);
    std::thread::spawn(move || {
        for (number, line) in (1_u64..).zip(reader.split(b'\n')) {
            let failed = line.is_err();
            let input = match line {
                Ok(line) if line.trim_ascii().is_empty() => continue,
                Ok(line) => activation(line.trim_ascii(), &name, number),
                Err(reason) => Err(unread(name.with_path(reason))),
            };
            // After an error, each further read may fail in the same way.
            if sender.blocking_send(input).is_err() || failed {
                return;
            }
        }
    });
    Ok(receiver)
}

/// Parses a line with the arguments of an activation.
fn activation(line: &[u8], name: &InputName, number: u64) -> Input {
    if let Err(error) = serde_json::from_slice::<&RawValue>(line) {
        // The parser saw one line only, so its line number is always 1.
        let reason = error.to_string().replace(" at line 1 column ", " at column ");
        return Err(name.unusable(Some(number), &format!("it is not JSON: {reason}")));
    }
    Activation::of_arguments(line).map_err(|error| name.unusable(Some(number), &error.to_string()))
}
