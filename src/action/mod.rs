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
mod init;
mod job;
mod queue;
pub mod response_stream;
pub(crate) mod worker;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

use crate::activation::{Activation, Answer};
use crate::artifact::Code;
use crate::config::ActionSettings;
use crate::error::{Error, ProxyError, RequestError};
use crate::logs::{Sentinels, Sink};
use crate::memory_budget::MemoryBudget;
use crate::process::Reaper;
use crate::protocol::Protocol;
use crate::time;

pub use init::DEFAULT_MAIN;
use init::{Source, panicked};
use job::{Job, Message, QueueDeadline, Reply, first_reply};
use response_stream::{ResponseStream, StreamItem, response_stream};
use worker::WorkerPool;

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
    /// The memory that request bodies and answers may take together.
    pub memory_budget: MemoryBudget,
}

/// Where the reason of a failed init goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InitFailures {
    /// To the caller alone.
    Return,
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
    init_lock: tokio::sync::Mutex<()>,
    /// Whoever unpacks an upload is to leave it.
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
    /// Where an action of the command line lies, until the platform has initialised it: it does so
    /// with every container, and sends no code for one that brings its own.
    baked: Option<PathBuf>,
}

/// How far an orderly end has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    /// It has not begun.
    Serving,
    /// What is in flight may finish.
    Draining,
    /// What is in flight is stopped.
    Stopping,
    /// Everything is killed.
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
            self.start_init()?;
            tokio::spawn(async move { action.initialise(Source::Upload(code), &main, environment, protocol).await })
        } else {
            let Some((path, mut running)) = self.start_baked_init(environment.is_empty() && protocol.is_none())? else {
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
        self.start_init()?;
        let main = self.0.config.settings.main.as_deref().unwrap_or(DEFAULT_MAIN);
        self.initialise(Source::File(path), main, Vec::new(), None).await?;
        if let State::Ready(ready) = &mut *self.state() {
            ready.baked = Some(path.to_owned());
        }
        Ok(())
    }

    /// The memory that request bodies and answers may take together.
    #[must_use]
    pub fn memory_budget(&self) -> &MemoryBudget {
        &self.0.config.memory_budget
    }

    /// Whether an init would be refused now, to be known before its body is read.
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
            // It brings code, and there is an action already.
            return Err(ready.refuse_init());
        }
        *state = State::Initialising;
        Ok(())
    }

    /// Admits an init without code, once, for an action of the command line. Gives the action back
    /// when it has to be started anew, which it has not for an init that brings nothing.
    fn start_baked_init(&self, brings_nothing: bool) -> Result<Option<(PathBuf, Ready)>, Error> {
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
        let deadline = self.submit(activation, Reply::Whole(reply))?;
        // The sender is dropped without an answer only when the action is stopped meanwhile.
        first_reply(deadline, answer).await?.unwrap_or(Err(Error::Proxy(ProxyError::ShuttingDown)))
    }

    /// As [`Action::run`], with the answer in pieces: the first one, and what gives the others.
    /// Leaving early cancels the activation, as far as the process wants to hear of that.
    ///
    /// # Errors
    /// As [`Action::run`]. What goes wrong behind the first piece is a piece.
    pub async fn stream(&self, activation: Activation) -> Result<(StreamItem, ResponseStream), Error> {
        let (sender, mut pieces) = response_stream();
        let deadline = self.submit(activation, Reply::Stream(sender))?;
        let first = first_reply(deadline, pieces.next()).await?;
        if let StreamItem::Broken(error) = first { Err(error) } else { Ok((first, pieces)) }
    }

    /// Puts an activation on the queue. If it has to wait there, the caller watches its deadline until a
    /// worker claims it.
    fn submit(&self, activation: Activation, reply: Reply) -> Result<Option<QueueDeadline>, Error> {
        let pool = self.pool()?;
        let permit = pool.queue.accept()?;
        let (job, deadline) = Job::new(activation, reply, permit);
        pool.queue.send(Message::Run(job)).map_err(|_| Error::Proxy(ProxyError::ShuttingDown))?;
        Ok(deadline)
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
        drop(self.0.init_lock.lock().await);
        if let State::Ready(mut ready) = state {
            ready.pool.queue.clear();
            if time::timeout(drain, ready.ended()).await.is_none() {
                self.0.phase.send_if_modified(|phase| {
                    let later = *phase < Phase::Stopping;
                    *phase = (*phase).max(Phase::Stopping);
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
