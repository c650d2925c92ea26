//! One action's life: initialised, ready, stopped.
//!
//! Knows activations, artifacts and protocols; knows no HTTP and no status code. The server and
//! the command line build on the same [`Action`], so that what a developer sees on a laptop is
//! what the platform will see.
//!
//! # Theory of operation
//! [`Action`] is a handle that any number of callers share. Init places the code and starts a
//! `worker`, one task that owns a process, its conversation and its logs. Activations go to it
//! over a `queue`, one queue, and are worked on one at a time, in order, to their end, whether or not
//! their caller is still there: an answer can never meet another activation than its own.
//!
//! A process of version 2 has several activations in flight: its worker becomes a `concurrent` then, with
//! a reply, a log and a limit of time for each. Whoever asks for that gets the answer in `pieces`.
//!
//! There may be several workers at one queue. They are as many tasks, each with a process of its own,
//! which it starts when activations wait that the others cannot take; init waits for the first.

mod backoff;
mod queue;
pub mod response_stream;
pub(crate) mod worker;

use std::convert::identity;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

use crate::activation::{Activation, Answer};
use crate::config::{ActionSettings, Inspect};
use crate::error::{Error, ProxyError, RequestError, RunError};
use crate::logs::{self, Logs, Sentinels, Sink};
use crate::memory_budget::MemoryBudget;
use crate::process::{Launch, Reaper};
use crate::protocol::Protocol;
use crate::time;

use crate::artifact::compile::compile;
use crate::artifact::inspect::{self, TargetSystem};
use crate::artifact::unpack;
use crate::artifact::{Artifact, Code, Sources};
use backoff::CrashBackoff;
use queue::Queue;
use response_stream::{ResponseStream, StreamItem, pieces};
use worker::{Job, Message, Phase, Reply, Worker};

/// What init brings.
#[derive(Debug)]
pub struct Init {
    /// The code; none for an action that is in the image already.
    pub code: Option<Code>,
    /// The name of the entry point, for the compiler.
    pub main: String,
    /// Variables for the action's environment; the last of a name wins.
    pub environment: Vec<(OsString, OsString)>,
    /// The protocol of this action, when it is not the container's.
    pub protocol: Option<Protocol>,
}

/// Everything an action needs to know about where it lives.
#[derive(Debug)]
pub struct ActionConfig {
    /// Bounds, times, folder and protocol.
    pub settings: ActionSettings,
    /// What the action's environment begins with.
    pub environment: Vec<(OsString, OsString)>,
    /// Whether the dialect's acknowledgement is awaited.
    pub wait_for_ack: bool,
    /// What makes an executable of source code, if there is anything.
    pub compiler: Option<PathBuf>,
    /// The execution environment that uploads have to be built for, if there is one.
    pub execution_env: Option<OsString>,
    /// Where the action's stdout goes.
    pub stdout: Sink,
    /// Where the action's stderr goes.
    pub stderr: Sink,
    /// Whether activations end with a sentinel.
    pub sentinels: Sentinels,
    /// Where the reason of a failed init goes.
    pub init_failures: InitFailures,
    /// How many processes of it work at the same time.
    pub workers: usize,
    /// How many activations may wait.
    pub queue: usize,
    /// What bodies and answers may take together.
    pub room: MemoryBudget,
}

/// Where the reason of a failed init goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InitFailures {
    /// To the caller alone.
    Tell,
    /// To the log as well, ended by sentinels.
    Log,
}

/// A shared handle on one action.
#[derive(Debug, Clone)]
pub struct Action(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    config: ActionConfig,
    reaper: Reaper,
    state: Mutex<State>,
    phase: watch::Sender<Phase>,
    /// Reservation by the init that is under way.
    under_way: tokio::sync::Mutex<()>,
    /// Whoever unpacks an upload is to leave it.
    halt: Arc<AtomicBool>,
    /// Activations that were accepted and not answered yet.
    open: Arc<AtomicUsize>,
}

#[derive(Debug)]
enum State {
    Empty,
    Initialising,
    Ready(Ready),
    Stopping,
}

#[derive(Debug)]
struct Ready {
    pool: Arc<WorkerPool>,
    /// The tasks of its workers.
    tasks: Vec<JoinHandle<()>>,
    /// Where an action of the command line lies, until the platform has initialised it: it does so
    /// with every container, and sends no code for one that brings its own.
    baked: Option<PathBuf>,
}

/// What the workers of an action have in common.
#[derive(Debug)]
struct WorkerPool {
    queue: Queue,
    artifact: Artifact,
    launch: Launch,
    protocol: Protocol,
    backoff: Mutex<CrashBackoff>,
    /// Its processes speak version 2, as far as is known.
    speaks_frames: AtomicBool,
    /// How many activations one of its processes takes at once.
    concurrency: AtomicUsize,
}

/// A deadline, and who came first of those who look after it.
type Claim = (tokio::time::Instant, Arc<AtomicBool>);

/// Where the code comes from.
enum Source<'a> {
    Upload(Code),
    File(&'a Path),
}

impl Action {
    /// An action without code.
    #[must_use]
    pub fn new(config: ActionConfig, reaper: Reaper) -> Self {
        Self(Arc::new(Shared {
            config,
            reaper,
            state: Mutex::new(State::Empty),
            phase: watch::channel(Phase::Serving).0,
            under_way: tokio::sync::Mutex::default(),
            halt: Arc::default(),
            open: Arc::default(),
        }))
    }

    /// Initialises the action with uploaded code, and returns when it is ready for activations.
    /// Goes on when the caller leaves.
    ///
    /// # Errors
    /// [`RequestError::AlreadyInitialised`], [`RequestError::InitUnderWay`], [`ProxyError::ShuttingDown`], and every
    /// reason for which code cannot be placed or started. The action can be initialised again then.
    pub async fn init(&self, init: Init) -> Result<(), Error> {
        let action = self.clone();
        let Init { code, main, environment, protocol } = init;
        let task = if let Some(code) = code {
            self.admit_init()?;
            tokio::spawn(async move { action.initialise(Source::Upload(code), &main, environment, protocol).await })
        } else {
            let Some((path, mut running)) = self.admit_baked_init(environment.is_empty() && protocol.is_none())? else {
                return Ok(());
            };
            tokio::spawn(async move {
                // It runs without what this init brings; it is started anew with that.
                running.pool.queue.close();
                running.ended().await;
                // Whoever baked it in knows its entry point; platforms always send one.
                let main = action.0.config.settings.main.as_deref().unwrap_or(&main);
                action.initialise(Source::File(&path), main, environment, protocol).await
            })
        };
        task.await.unwrap_or_else(|error| Err(panicked(&error)))
    }

    /// Initialises the action from a file, folder or archive.
    ///
    /// # Errors
    /// As [`Action::init`], and [`UploadError::NoSuchAction`].
    pub async fn open(&self, path: &Path) -> Result<(), Error> {
        self.admit_init()?;
        let main = self.0.config.settings.main.as_deref().unwrap_or(DEFAULT_MAIN);
        self.initialise(Source::File(path), main, Vec::new(), None).await?;
        if let State::Ready(ready) = &mut *self.state() {
            ready.baked = Some(path.to_owned());
        }
        Ok(())
    }

    /// What bodies and answers may take together.
    #[must_use]
    pub fn room(&self) -> &MemoryBudget {
        &self.0.config.room
    }

    /// Whether an init would be refused now, to be known before its body is read.
    ///
    /// # Errors
    /// [`RequestError::AlreadyInitialised`], [`RequestError::InitUnderWay`], [`ProxyError::ShuttingDown`].
    pub fn check_init(&self) -> Result<(), Error> {
        self.state().check_init()
    }

    fn admit_init(&self) -> Result<(), Error> {
        let mut state = self.state();
        state.check_init()?;
        if let State::Ready(ready) = &*state {
            // It brings code, and there is an action already.
            return Err(ready.refuse_init());
        }
        *state = State::Initialising;
        Ok(())
    }

    /// Admits an init without code, once, for an action of the command line. Gives the action back
    /// when it has to be started anew, which it has not for an init that brings nothing.
    fn admit_baked_init(&self, brings_nothing: bool) -> Result<Option<(PathBuf, Ready)>, Error> {
        let mut state = self.state();
        state.check_init()?;
        let State::Ready(ready) = &mut *state else { return Err(Error::Request(RequestError::NoCode)) };
        let path = ready.baked.take().ok_or(Error::Request(RequestError::NoCode))?;
        if brings_nothing {
            return Ok(None);
        }
        match std::mem::replace(&mut *state, State::Initialising) {
            State::Ready(ready) => Ok(Some((path, ready))),
            _ => unreachable!("the state was looked at above, under the same lock"),
        }
    }

    /// Runs one activation to its end. Leaving early loses the answer and nothing else.
    ///
    /// # Errors
    /// [`RequestError::NotInitialised`], [`RunError::QueueFull`], [`ProxyError::ShuttingDown`], and every reason
    /// for which there is no answer.
    pub async fn run(&self, activation: Activation) -> Result<Answer, Error> {
        let (reply, answer) = oneshot::channel();
        let claim = self.submit(activation, Reply::Whole(reply))?;
        // The sender is dropped without an answer only when the action is stopped meanwhile.
        told(claim, answer).await?.unwrap_or(Err(Error::Proxy(ProxyError::ShuttingDown)))
    }

    /// As [`Action::run`], with the answer in pieces: the first one, and what gives the others.
    /// Leaving early cancels the activation, as far as the process wants to hear of that.
    ///
    /// # Errors
    /// As [`Action::run`]. What goes wrong behind the first piece is a piece.
    pub async fn stream(&self, activation: Activation) -> Result<(StreamItem, ResponseStream), Error> {
        let (feed, mut pieces) = pieces();
        let claim = self.submit(activation, Reply::ResponseStream(feed))?;
        let first = told(claim, pieces.next()).await?;
        if let StreamItem::Broken(error) = first { Err(error) } else { Ok((first, pieces)) }
    }

    /// Puts an activation on the queue. Where it waits for others, its deadline is looked after by the
    /// caller until a worker claims it.
    fn submit(&self, activation: Activation, reply: Reply) -> Result<Option<Claim>, Error> {
        let pool = self.pool()?;
        let (place, waits) = Place::take(&self.0, &pool).or_else(|_| {
            // Some of those who have a place may not need it any more.
            pool.queue.drop_abandoned();
            Place::take(&self.0, &pool)
        })?;
        let deadline = activation.time_to_deadline().map(|left| tokio::time::Instant::now() + left);
        let claim = deadline.filter(|_| waits).map(|deadline| (deadline, Arc::new(AtomicBool::new(false))));
        let claimed = claim.as_ref().map(|(_, claimed)| claimed.clone());
        let job = Job { activation, deadline, reply, place, claimed };
        pool.queue.send(Message::Run(job)).map_err(|_| Error::Proxy(ProxyError::ShuttingDown))?;
        Ok(claim)
    }

    /// Whether an activation would be refused now, to be known before its body is read.
    ///
    /// # Errors
    /// [`RequestError::NotInitialised`], [`ProxyError::ShuttingDown`].
    pub fn check_run(&self) -> Result<(), Error> {
        self.pool().map(|_| ())
    }

    /// An activation that cannot even be begun has a log all the same, an empty one: whoever reads
    /// logs counts its sentinels.
    pub async fn refuse(&self) {
        let (reply, written) = oneshot::channel();
        if let Ok(pool) = self.pool() {
            let _ = pool.queue.send(Message::Refuse(reply));
            let _ = written.await;
        }
    }

    fn pool(&self) -> Result<Arc<WorkerPool>, Error> {
        match &*self.state() {
            State::Empty | State::Initialising => Err(Error::Request(RequestError::NotInitialised)),
            State::Stopping => Err(Error::Proxy(ProxyError::ShuttingDown)),
            State::Ready(ready) => Ok(ready.pool.clone()),
        }
    }

    /// Ends the action: what is in flight may finish within `drain`, what waits is refused, then
    /// the processes are stopped. An init that is under way is given up, and what it made removed. From now
    /// on everything is refused.
    pub async fn stop(&self, drain: Duration) {
        let state = std::mem::replace(&mut *self.state(), State::Stopping);
        self.0.halt.store(true, Ordering::Relaxed);
        self.0.phase.send_replace(Phase::Draining);
        drop(self.0.under_way.lock().await);
        if let State::Ready(mut ready) = state {
            ready.pool.queue.clear();
            if time::timeout(drain, ready.ended()).await.is_none() {
                self.0.phase.send_if_modified(|phase| {
                    let later = *phase < Phase::Cutting;
                    *phase = (*phase).max(Phase::Cutting);
                    later
                });
                ready.ended().await;
            }
        }
    }

    /// Hurries a [`Action::stop`] that is under way: what is in flight and the processes are killed.
    pub fn kill(&self) {
        self.0.phase.send_replace(Phase::Killing);
    }

    async fn initialise(
        &self,
        source: Source<'_>,
        main: &str,
        environment: Vec<(OsString, OsString)>,
        protocol: Option<Protocol>,
    ) -> Result<(), Error> {
        let _under_way = self.0.under_way.lock().await;
        let mut logs = self.logs();
        let mut phase = self.0.phase.subscribe();
        let readied = match self.place(source).await {
            // What it started is killed, and what it made removed, when it is left in the middle.
            Ok(artifact) => tokio::select! {
                biased;
                _ = phase.wait_for(|phase| *phase > Phase::Serving) => Err(Error::Proxy(ProxyError::ShuttingDown)),
                readied = self.ready_worker(artifact, main, environment, protocol, &mut logs) => readied,
            },
            Err(error) => Err(error),
        };
        let error = match readied {
            Ok((pool, worker)) => {
                let Some((worker, mut logs)) = self.employ(&pool, worker, logs) else { return Ok(()) };
                worker.end(&mut logs).await;
                pool.artifact.remove();
                return Err(Error::Proxy(ProxyError::ShuttingDown));
            }
            Err(error) => error,
        };
        match self.0.config.init_failures {
            // It did not fail: whoever asked for it goes elsewhere.
            _ if matches!(error, Error::Proxy(ProxyError::ShuttingDown)) => logs.end_without_sentinel().await,
            InitFailures::Tell => logs.end_without_sentinel().await,
            InitFailures::Log => {
                worker::tell(&mut logs, &error);
                logs.end().await;
            }
        }
        let mut state = self.state();
        if matches!(*state, State::Initialising) {
            *state = State::Empty;
        }
        Err(error)
    }

    /// Logs that nothing has been written to.
    fn logs(&self) -> Logs {
        let ActionConfig { settings, stdout, stderr, sentinels, .. } = &self.0.config;
        let bounds = logs::Bounds {
            backlog_bytes: settings.log_backlog.bytes(),
            stall_limit: settings.log_stall.0,
            format: settings.log_format,
        };
        Logs::new(stdout.clone(), stderr.clone(), *sentinels, &bounds)
    }

    /// Sets the first worker to work, and the others beside it. Gives it back when a stop came
    /// meanwhile, which has replaced the state and found nothing to stop.
    fn employ(&self, pool: &Arc<WorkerPool>, first: Worker, mut logs: Logs) -> Option<(Worker, Logs)> {
        let mut state = self.state();
        if !matches!(*state, State::Initialising) {
            return Some((first, logs));
        }
        let workers = self.0.config.workers;
        if workers > 1 {
            logs.share();
        }
        let mut tasks = vec![tokio::spawn(first.serve(logs))];
        for post in 1..workers {
            let mut logs = self.logs();
            logs.share();
            tasks.push(tokio::spawn(Worker::new(self.0.clone(), pool.clone(), post).serve(logs)));
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
            // Elsewhere, so that the server goes on answering meanwhile.
            Source::Upload(code) => {
                on_a_thread(move || Artifact::place(code, &workdir, &bounds, sources)).await.and_then(identity)
            }
            Source::File(path) => Artifact::open(path, &workdir, &bounds, sources),
        }
    }

    /// Compiles what has to be compiled, and starts what has to be started.
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
        let mut all = config.environment.clone();
        for (name, value) in environment {
            all.retain(|(other, _)| *other != name);
            all.push((name, value));
        }
        compile(&artifact, compiler, main, &all, settings.init_timeout.0, &self.0.reaper, logs).await?;
        artifact.check_environment(config.execution_env.as_deref())?;
        let launch = Launch {
            program: artifact.executable.clone(),
            arguments: Vec::new(),
            environment: all,
            directory: artifact.directory.clone(),
        };
        if settings.inspect == Inspect::On {
            inspect::check(&launch.program, &TargetSystem::of(&launch))?;
        }
        let protocol = protocol.unwrap_or(settings.protocol);
        let backoff = Mutex::new(CrashBackoff::new(settings.restart));
        let pool = Arc::new(WorkerPool {
            queue: Queue::new(config.workers),
            artifact,
            launch,
            protocol,
            backoff,
            speaks_frames: AtomicBool::new(false),
            concurrency: AtomicUsize::new(1),
        });
        match Worker::new(self.0.clone(), pool.clone(), 0).ready(logs).await {
            Ok(worker) => Ok((pool, worker)),
            Err(error) => {
                pool.artifact.remove();
                Err(error)
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().expect("no holder of the state panics")
    }
}

impl State {
    /// Whether an init may come, as far as that can be told without its code.
    fn check_init(&self) -> Result<(), Error> {
        match self {
            Self::Empty | Self::Ready(Ready { baked: Some(_), .. }) => Ok(()),
            Self::Initialising => Err(Error::Request(RequestError::InitUnderWay)),
            Self::Ready(ready) => Err(ready.refuse_init()),
            Self::Stopping => Err(Error::Proxy(ProxyError::ShuttingDown)),
        }
    }
}

impl Ready {
    /// Refuses an init, also in the log: the platform's test suites look for it there.
    fn refuse_init(&self) -> Error {
        let error = Error::Request(RequestError::AlreadyInitialised);
        let _ = self.pool.queue.send(Message::Say(error.to_string()));
        error
    }

    /// Waits until all workers have ended, and removes the files that were made for the action.
    /// Leaving early loses nothing.
    async fn ended(&mut self) {
        while let Some(task) = self.tasks.last_mut() {
            let _ = task.await;
            self.tasks.pop();
        }
        self.pool.artifact.remove();
    }
}

impl WorkerPool {
    fn backoff(&self) -> MutexGuard<'_, CrashBackoff> {
        self.backoff.lock().expect("no holder of the record panics")
    }

    /// A process of it has shaken hands on version 2.
    fn learn(&self, concurrency: usize) {
        self.speaks_frames.store(true, Ordering::Relaxed);
        self.concurrency.store(concurrency, Ordering::Relaxed);
    }
}

/// The entry point that a compiler is told of when nobody names one.
///
/// Source: apache/openwhisk-runtime-go, `openwhisk/initHandler.go`.
pub const DEFAULT_MAIN: &str = "main";

/// Code up to this size is placed without a thread of its own: that would take longer.
const PLACED_AT_ONCE: usize = 256 * 1024;

/// A place among the activations that were accepted, given back when it is dropped.
#[derive(Debug)]
struct Place(Arc<AtomicUsize>);

impl Place {
    /// A place, and whether others are before it.
    fn take(shared: &Shared, pool: &WorkerPool) -> Result<(Self, bool), Error> {
        let ActionConfig { workers, queue, .. } = shared.config;
        let at_once = workers.saturating_mul(pool.concurrency.load(Ordering::Relaxed));
        let place = Self(shared.open.clone());
        let before = shared.open.fetch_add(1, Ordering::Relaxed);
        // So many are worked on, the others wait.
        if before >= queue.saturating_add(at_once) {
            return Err(Error::Run(RunError::QueueFull { limit: queue }));
        }
        Ok((place, before > 0))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What a worker tells first. While no worker has claimed the activation its deadline is watched here.
async fn told<T>(claim: Option<Claim>, first: impl Future<Output = T>) -> Result<T, Error> {
    let mut first = std::pin::pin!(first);
    if let Some((deadline, claimed)) = claim {
        tokio::select! {
            biased;
            first = &mut first => return Ok(first),
            () = tokio::time::sleep_until(deadline) => {
                if !claimed.swap(true, Ordering::AcqRel) {
                    return Err(Error::Run(RunError::Expired));
                }
            }
        }
    }
    Ok(first.await)
}

/// Does something that takes long on a thread of its own. The runtime's threads are no help: where
/// none can be started, for the container may have no more processes, it panics.
async fn on_a_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Error> {
    let failed = |reason| Error::Proxy(ProxyError::System { doing: "start a thread that unpacks the action", reason });
    let (reply, done) = oneshot::channel();
    let work = move || {
        // Whoever waited may have left.
        let _ = reply.send(work());
    };
    std::thread::Builder::new().spawn(work).map_err(failed)?;
    done.await.map_err(|_| failed(std::io::Error::other("it panicked")))
}

fn panicked(error: &tokio::task::JoinError) -> Error {
    Error::Proxy(ProxyError::System {
        doing: "initialise the action",
        reason: std::io::Error::other(error.to_string()),
    })
}
