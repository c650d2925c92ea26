//! One action's life: initialised, ready, stopped.
//!
//! Knows activations, artifacts and protocols; knows no HTTP and no status code. The server and
//! the command line build on the same [`Action`], so that what a developer sees on a laptop is
//! what the platform will see.
//!
//! # Theory of operation
//! [`Action`] is a handle that any number of callers share. Init (`init.rs`) places the code and starts a
//! `worker`: one task that owns a process, its conversation and its logs. Each activation goes to the
//! worker as a `job` over the `queue`. The worker runs them one at a time, in order, and each to its end,
//! whether or not its caller is still there. So no activation can get the answer of another.
//!
//! A process of version 2 has several activations in flight. Its worker then runs the loop of
//! `worker/concurrent`, with a reply, a log and a time limit for each. A caller that asks for a stream gets the
//! answer item by item, over a `response_stream`.
//!
//! Several workers may share the queue. Each is a task with a process of its own, which it starts when
//! activations wait that no other worker can take. Init waits for the first process only. `backoff` decides
//! when a process that died may be started again.

mod backoff;
mod init;
mod job;
mod queue;
pub mod response_stream;
pub(crate) mod worker;

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

use crate::activation::{Activation, Answer};
use crate::artifact::{Code, LocalAction};
use crate::config::ActionSettings;
use crate::error::{Error, ProxyError, RequestError};
use crate::logs::{Sentinels, Sink};
use crate::memory_budget::{MemoryBudget, Reservation};
use crate::process::Reaper;
use crate::protocol::Protocol;
use crate::time;

pub use init::DEFAULT_MAIN;
use init::{Source, panicked};
pub(crate) use init::{environment_of, of_command, open, stdout_kind, unannounced};
use job::{Job, Message, QueueDeadline, Reply, first_reply};
use response_stream::{ResponseStream, StreamItem, response_stream};
use worker::WorkerPool;

/// An init, as a caller sent it.
#[derive(Debug)]
pub struct Init {
    /// The code; none for an action that is part of the image.
    pub code: Option<Code>,
    /// The name of the entry point, for the compiler.
    pub main: String,
    /// Variables for the action's environment. The last of a name wins.
    pub environment: Vec<(OsString, OsString)>,
    /// The protocol of this action, if it differs from the container's.
    pub protocol: Option<Protocol>,
}

/// What an action is given: settings, sinks and limits.
#[derive(Debug)]
pub struct ActionConfig {
    /// Limits, times, directory and protocol.
    pub settings: ActionSettings,
    /// The first part of the action's environment.
    pub environment: Vec<(OsString, OsString)>,
    /// Whether init waits for the dialect's acknowledgement.
    pub wait_for_ack: bool,
    /// The compiler for source code, if there is one.
    pub compiler: Option<PathBuf>,
    /// The execution environment that uploads must be built for, if there is one.
    pub execution_env: Option<OsString>,
    /// Where the action's stdout goes.
    pub stdout: Sink,
    /// Where the action's stderr goes.
    pub stderr: Sink,
    /// Whether activations end with a sentinel.
    pub sentinels: Sentinels,
    /// Where the reason for a failed init goes.
    pub init_failures: InitFailures,
    /// How many of its processes run at the same time.
    pub workers: usize,
    /// How many activations may wait.
    pub queue: usize,
    /// The memory that request bodies and answers may take together.
    pub memory_budget: MemoryBudget,
}

/// Where the reason for a failed init goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InitFailures {
    /// Only to the caller.
    Return,
    /// To the log as well, followed by sentinels.
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
    /// Locked by the init that is under way.
    init_lock: tokio::sync::Mutex<()>,
    /// Tells a thread that unpacks an upload to stop.
    halt: Arc<AtomicBool>,
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
    /// The action of the command line, until the platform has initialised it. The platform does so
    /// in every container, and sends no code for an image with an action of its own.
    baked: Option<LocalAction>,
}

/// How far the action has come on its way to a graceful end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    /// It serves activations.
    Serving,
    /// Activations in flight and in the queue may finish.
    Draining,
    /// Activations in flight are stopped.
    Stopping,
    /// Processes are killed at once.
    Killing,
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
            init_lock: tokio::sync::Mutex::default(),
            halt: Arc::default(),
        }))
    }

    /// Initialises the action, and returns when it is ready for activations. The init goes on if the caller
    /// leaves.
    ///
    /// # Errors
    /// [`RequestError::AlreadyInitialised`], [`RequestError::InitUnderWay`], [`ProxyError::ShuttingDown`], and every
    /// reason why code cannot be placed or started. The action can then be initialised again.
    pub async fn init(&self, init: Init) -> Result<(), Error> {
        let action = self.clone();
        let Init { code, main, environment, protocol } = init;
        let task = if let Some(code) = code {
            self.start_init()?;
            tokio::spawn(async move { action.initialise(Source::Upload(code), &main, environment, protocol).await })
        } else {
            let Some((local, mut ready)) = self.start_baked_init(environment.is_empty() && protocol.is_none())? else {
                return Ok(());
            };
            tokio::spawn(async move {
                // The action runs without this init's environment, so it is started again with it.
                ready.pool.queue.close();
                ready.ended().await;
                // The image's setting wins, since platforms always send a name.
                let main = action.0.config.settings.main.as_deref().unwrap_or(&main);
                action.initialise(Source::Local(&local), main, environment, protocol).await
            })
        };
        task.await.unwrap_or_else(|error| Err(panicked(&error)))
    }

    /// Initialises the action from the command line.
    ///
    /// # Errors
    /// As [`Action::init`], and [`UploadError::NoSuchAction`](crate::error::UploadError::NoSuchAction) or
    /// [`UploadError::NoSuchCommand`](crate::error::UploadError::NoSuchCommand).
    pub async fn open(&self, local: &LocalAction) -> Result<(), Error> {
        self.start_init()?;
        let main = self.0.config.settings.main.as_deref().unwrap_or(DEFAULT_MAIN);
        self.initialise(Source::Local(local), main, Vec::new(), None).await?;
        if let State::Ready(ready) = &mut *self.state() {
            ready.baked = Some(local.clone());
        }
        Ok(())
    }

    /// The memory that request bodies and answers may take together.
    #[must_use]
    pub fn memory_budget(&self) -> &MemoryBudget {
        &self.0.config.memory_budget
    }

    /// Whether an init would be refused now, asked before its body is read.
    ///
    /// # Errors
    /// [`RequestError::AlreadyInitialised`], [`RequestError::InitUnderWay`], [`ProxyError::ShuttingDown`].
    pub fn check_init(&self) -> Result<(), Error> {
        self.state().check_init()
    }

    fn start_init(&self) -> Result<(), Error> {
        let mut state = self.state();
        state.check_init()?;
        if let State::Ready(ready) = &*state {
            // An init with code cannot replace an action that is ready.
            return Err(ready.refuse_init());
        }
        *state = State::Initialising;
        Ok(())
    }

    /// Starts an init without code, once, for an action of the command line. Returns the action if it has to
    /// be started again, which an init without an environment and a protocol does not need.
    fn start_baked_init(&self, is_empty: bool) -> Result<Option<(LocalAction, Ready)>, Error> {
        let mut state = self.state();
        state.check_init()?;
        let State::Ready(ready) = &mut *state else { return Err(Error::Request(RequestError::NoCode)) };
        let local = ready.baked.take().ok_or(Error::Request(RequestError::NoCode))?;
        if is_empty {
            return Ok(None);
        }
        match std::mem::replace(&mut *state, State::Initialising) {
            State::Ready(ready) => Ok(Some((local, ready))),
            _ => unreachable!("the state was checked above, under the same lock"),
        }
    }

    /// Runs one activation to its end. `reservation` is the memory of its body. Dropping the future loses only
    /// the answer.
    ///
    /// # Errors
    /// [`RequestError::NotInitialised`], [`RunError::QueueFull`](crate::error::RunError::QueueFull),
    /// [`ProxyError::ShuttingDown`], and every reason why there is no answer.
    pub async fn run(&self, activation: Activation, reservation: Reservation) -> Result<Answer, Error> {
        let (reply, answer) = oneshot::channel();
        let deadline = self.submit(activation, reservation, Reply::Whole(reply))?;
        // Only an action that stops drops the sender without an answer.
        first_reply(deadline, answer).await?.unwrap_or(Err(Error::Proxy(ProxyError::ShuttingDown)))
    }

    /// As [`Action::run`], with the answer as a stream: its first item, and the rest. Dropping it cancels the
    /// activation, if the process promised to listen.
    ///
    /// # Errors
    /// As [`Action::run`]. A later error is an item of the stream.
    pub async fn stream(
        &self,
        activation: Activation,
        reservation: Reservation,
    ) -> Result<(StreamItem, ResponseStream), Error> {
        let (sender, mut stream) = response_stream();
        let deadline = self.submit(activation, reservation, Reply::Stream(sender))?;
        let first = first_reply(deadline, stream.next()).await?;
        if let StreamItem::Broken(error) = first { Err(error) } else { Ok((first, stream)) }
    }

    /// Puts an activation on the queue. If it has to wait there, the caller watches its deadline until a
    /// worker claims it.
    fn submit(
        &self,
        activation: Activation,
        reservation: Reservation,
        reply: Reply,
    ) -> Result<Option<QueueDeadline>, Error> {
        let pool = self.pool()?;
        let accepted = pool.queue.accept()?;
        let (job, deadline) = Job::new(activation, reservation, reply, accepted);
        pool.queue.send(Message::Run(job)).map_err(|_| Error::Proxy(ProxyError::ShuttingDown))?;
        Ok(deadline)
    }

    /// Whether an activation would be refused now, asked before its body is read.
    ///
    /// # Errors
    /// [`RequestError::NotInitialised`], [`ProxyError::ShuttingDown`].
    pub fn check_run(&self) -> Result<(), Error> {
        self.pool().map(|_| ())
    }

    /// Writes the log of an activation that is refused before it begins: nothing but its sentinels. The log
    /// reader counts them for every activation.
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

    /// Stops the action. Activations in flight and those in the queue may finish within `drain`. Those that wait
    /// even then are refused, and the processes are stopped. An init under way is cancelled, and its files are
    /// removed. Every later call is refused.
    pub async fn stop(&self, drain: Duration) {
        let state = std::mem::replace(&mut *self.state(), State::Stopping);
        self.0.halt.store(true, Ordering::Relaxed);
        self.0.phase.send_replace(Phase::Draining);
        drop(self.0.init_lock.lock().await);
        if let State::Ready(mut ready) = state {
            ready.pool.queue.close();
            let mut phase = self.0.phase.subscribe();
            tokio::select! {
                _ = time::timeout(drain, ready.ended()) => {}
                _ = phase.wait_for(|phase| *phase == Phase::Killing) => {}
            }
            self.0.phase.send_if_modified(|phase| {
                let later = *phase < Phase::Stopping;
                *phase = (*phase).max(Phase::Stopping);
                later
            });
            ready.pool.queue.clear();
            ready.ended().await;
        }
    }

    /// Hurries an [`Action::stop`] that is under way: its processes are killed.
    pub fn kill(&self) {
        self.0.phase.send_replace(Phase::Killing);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().expect("no holder of the state panics")
    }
}

impl State {
    /// Whether an init may start, as far as that is known without its code.
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
    /// Refuses an init, in the log as well, where the platform's test suites expect it.
    fn refuse_init(&self) -> Error {
        let error = Error::Request(RequestError::AlreadyInitialised);
        let _ = self.pool.queue.send(Message::Say(error.to_string()));
        error
    }

    /// Waits until all workers have ended, and removes the files that were made for the action. Cancelling it
    /// loses nothing.
    async fn ended(&mut self) {
        while let Some(task) = self.tasks.last_mut() {
            let _ = task.await;
            self.tasks.pop();
        }
        self.pool.artifact.remove();
    }
}
