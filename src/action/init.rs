//! Init: from uploaded code to a first worker that is ready.
//!
//! Places the code, compiles it where that is needed, starts the first process, and then the other workers.
//! A failed init leaves the action ready for another one.

use std::convert::identity;
use std::ffi::OsString;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use tokio::sync::oneshot;

use crate::artifact::compile::compile;
use crate::artifact::inspect::{self, TargetSystem};
use crate::artifact::unpack;
use crate::artifact::{Artifact, Code, LocalAction, Sources};
use crate::config::{ActionSettings, Inspect};
use crate::error::{Error, ProxyError};
use crate::logs::{self, Logs};
use crate::process::{Launch, StdoutKind};
use crate::protocol::Protocol;
use crate::protocol::detect::Unannounced;

use super::backoff::CrashBackoff;
use super::queue::Queue;
use super::worker::{self, Worker, WorkerPool};
use super::{Action, ActionConfig, InitFailures, Phase, Ready, State};

/// The entry point for the compiler, where neither init nor a setting names one.
///
/// Source: apache/openwhisk-runtime-go, `openwhisk/initHandler.go`.
pub const DEFAULT_MAIN: &str = "main";

/// Code up to this size is placed on the runtime's thread. Starting another one would take longer.
const PLACED_AT_ONCE: usize = 256 * 1024;

/// Where the code comes from.
pub(super) enum Source<'a> {
    Upload(Code),
    Local(&'a LocalAction),
}

impl Action {
    /// Places the code and starts the workers. The state is [`State::Initialising`] before, and ready or empty
    /// afterwards.
    ///
    /// # Errors
    /// As [`Action::init`].
    pub(super) async fn initialise(
        &self,
        source: Source<'_>,
        main: &str,
        environment: Vec<(OsString, OsString)>,
        protocol: Option<Protocol>,
    ) -> Result<(), Error> {
        let _init_lock = self.0.init_lock.lock().await;
        let mut logs = self.logs();
        let mut phase = self.0.phase.subscribe();
        let readied = match self.place(source).await {
            // Dropping `ready_worker` in the middle kills what it started and removes what it made.
            Ok(artifact) => tokio::select! {
                biased;
                _ = phase.wait_for(|phase| *phase > Phase::Serving) => Err(Error::Proxy(ProxyError::ShuttingDown)),
                readied = self.ready_worker(artifact, main, environment, protocol, &mut logs) => readied,
            },
            Err(error) => Err(error),
        };
        let error = match readied {
            Ok((pool, worker)) => {
                let Some((worker, mut logs)) = self.start_workers(&pool, worker, logs) else { return Ok(()) };
                worker.end(&mut logs).await;
                pool.artifact.remove();
                return Err(Error::Proxy(ProxyError::ShuttingDown));
            }
            Err(error) => error,
        };
        match self.0.config.init_failures {
            // The code is not at fault, and the platform initialises the action elsewhere.
            _ if matches!(error, Error::Proxy(ProxyError::ShuttingDown)) => logs.end_without_sentinel().await,
            InitFailures::Return => logs.end_without_sentinel().await,
            InitFailures::Log => {
                let mut log = logs.open(None);
                worker::log_error(&mut log, &error);
                log.end().await;
            }
        }
        let mut state = self.state();
        if matches!(*state, State::Initialising) {
            *state = State::Empty;
        }
        Err(error)
    }

    /// New logs on the action's sinks.
    fn logs(&self) -> Logs {
        let ActionConfig { settings, stdout, stderr, sentinels, .. } = &self.0.config;
        let bounds = logs::Bounds {
            backlog_bytes: settings.log_backlog.bytes(),
            stall_limit: settings.log_stall.0,
            format: settings.log_format,
        };
        Logs::new(stdout.clone(), stderr.clone(), *sentinels, &bounds)
    }

    /// Starts the tasks of all workers. Returns the first worker if the action was stopped meanwhile: the stop
    /// has replaced the state and found no worker in it.
    fn start_workers(&self, pool: &Arc<WorkerPool>, first: Worker, mut logs: Logs) -> Option<(Worker, Logs)> {
        let mut state = self.state();
        if !matches!(*state, State::Initialising) {
            return Some((first, logs));
        }
        let workers = self.0.config.workers;
        if workers > 1 {
            logs.share();
        }
        let mut tasks = vec![tokio::spawn(first.serve(logs))];
        for slot in 1..workers {
            let mut logs = self.logs();
            logs.share();
            tasks.push(tokio::spawn(Worker::new(self.0.clone(), pool.clone(), slot).serve(logs)));
        }
        *state = State::Ready(Ready { pool: pool.clone(), tasks, baked: None });
        None
    }

    /// Places the code.
    async fn place(&self, source: Source<'_>) -> Result<Artifact, Error> {
        let ActionConfig { settings, compiler, .. } = &self.0.config;
        let bounds = unpack::Bounds {
            bytes: settings.max_unpacked.0,
            entries: settings.max_entries,
            halt: Some(self.0.halt.clone()),
        };
        let workdir = settings.workdir.clone();
        let sources = Sources::with(compiler.as_deref());
        match source {
            Source::Upload(code) if code.len() <= PLACED_AT_ONCE => Artifact::place(code, &workdir, &bounds, sources),
            // On a thread of its own, so that the server can answer meanwhile.
            Source::Upload(code) => {
                on_a_thread(move || Artifact::place(code, &workdir, &bounds, sources)).await.and_then(identity)
            }
            Source::Local(LocalAction::File(path)) => open(path, &workdir, bounds, sources).await,
            Source::Local(LocalAction::Command(command)) => of_command(command, &self.0.config.environment),
        }
    }

    /// Compiles the code where that is needed, and starts the first process.
    async fn ready_worker(
        &self,
        artifact: Artifact,
        main: &str,
        environment: Vec<(OsString, OsString)>,
        protocol: Option<Protocol>,
        logs: &mut Logs,
    ) -> Result<(Arc<WorkerPool>, Worker), Error> {
        let config = &self.0.config;
        let settings = &config.settings;
        let compiler = config.compiler.as_deref();
        let protocol = protocol.unwrap_or(settings.protocol);
        let stdout = stdout_kind(settings, protocol, unannounced(artifact.command.as_deref()));
        let mut all = config.environment.clone();
        all.extend(environment_of(stdout));
        for (name, value) in environment {
            all.retain(|(other, _)| *other != name);
            all.push((name, value));
        }
        compile(&artifact, compiler, main, &all, settings.compile_timeout.0, &self.0.reaper, logs).await?;
        artifact.check_environment(config.execution_env.as_deref())?;
        let launch = Launch {
            program: artifact.executable.clone(),
            arguments: artifact.command.clone().unwrap_or_default(),
            environment: all,
            directory: artifact.directory.clone(),
            stdout,
        };
        if settings.inspect == Inspect::On {
            inspect::check(&launch.program, &TargetSystem::of(&launch))?;
        }
        let backoff = Mutex::new(CrashBackoff::new(settings.restart));
        let pool = Arc::new(WorkerPool {
            queue: Queue::new(config.workers, config.queue),
            artifact,
            launch,
            protocol,
            backoff,
            speaks_frames: AtomicBool::new(false),
            announces: AtomicBool::new(false),
        });
        match Worker::new(self.0.clone(), pool.clone(), 0).ready(logs).await {
            Ok(worker) => Ok((pool, worker)),
            Err(error) => {
                pool.artifact.remove();
                Err(error)
            }
        }
    }
}

/// What a process speaks that announces nothing. `command`: the arguments of a command line.
pub(crate) fn unannounced(command: Option<&[OsString]>) -> Unannounced {
    if command.is_some() { Unannounced::Filter } else { Unannounced::ActionLoop }
}

/// What the standard output of an action is.
pub(crate) fn stdout_kind(settings: &ActionSettings, protocol: Protocol, unannounced: Unannounced) -> StdoutKind {
    let is_filter = match protocol {
        Protocol::Filter => true,
        Protocol::Auto => unannounced == Unannounced::Filter,
        Protocol::SingleShot | Protocol::PipeLoop | Protocol::Streams | Protocol::ActionLoop => false,
    };
    settings.stdout.unwrap_or(if is_filter { StdoutKind::Pty } else { StdoutKind::Pipe })
}

/// The variables that ask a program for plain text, where its standard output is a terminal.
pub(crate) fn environment_of(stdout: StdoutKind) -> impl Iterator<Item = (OsString, OsString)> {
    let variables = match stdout {
        StdoutKind::Pipe => &[][..],
        StdoutKind::Pty => &[("TERM", "dumb"), ("NO_COLOR", "1")],
    };
    variables.iter().map(|(name, value)| (name.into(), value.into()))
}

/// Takes an action from a command line. Its program is found on the `PATH` of its environment.
pub(crate) fn of_command(command: &[OsString], environment: &[(OsString, OsString)]) -> Result<Artifact, Error> {
    let path = environment.iter().rev().find(|(name, _)| name == "PATH");
    Artifact::of_command(command, path.map(|(_, path)| path.as_os_str()))
}

/// Takes an action from the file system, as [`Artifact::open`]. A signal can interrupt it while a named pipe or a
/// terminal has nothing to read.
pub(crate) async fn open(
    path: &Path,
    workdir: &Path,
    bounds: unpack::Bounds,
    sources: Sources,
) -> Result<Artifact, Error> {
    if path.metadata().map_or(true, |metadata| metadata.is_file() || metadata.is_dir()) {
        return Artifact::open(path, workdir, &bounds, sources);
    }
    let (path, workdir) = (path.to_owned(), workdir.to_owned());
    on_a_thread(move || Artifact::open(&path, &workdir, &bounds, sources)).await.and_then(identity)
}

/// Runs slow work on a thread of its own. The runtime's blocking threads will not do: the runtime panics
/// where no thread can be started, as in a container at its limit of processes.
async fn on_a_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Error> {
    let failed = |reason| Error::Proxy(ProxyError::System { doing: "start a thread that unpacks the action", reason });
    let (reply, done) = oneshot::channel();
    let work = move || {
        // The caller may have left.
        let _ = reply.send(work());
    };
    std::thread::Builder::new().spawn(work).map_err(failed)?;
    done.await.map_err(|_| failed(std::io::Error::other("it panicked")))
}

/// The error for an init whose task panicked.
pub(super) fn panicked(error: &tokio::task::JoinError) -> Error {
    Error::Proxy(ProxyError::System {
        doing: "initialise the action",
        reason: std::io::Error::other(error.to_string()),
    })
}
