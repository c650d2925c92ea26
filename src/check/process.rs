//! The process of an action that is checked: its start, its end and its log.

use std::time::Duration;

use crate::action::worker::spawn;
use crate::error::Error;
use crate::process::spawn::ResultChannel;
use crate::process::stop::KillOnDrop;
use crate::process::{Process, stop};
use crate::protocol::conversation::Conversation;
use crate::protocol::detect::{self, Evidence, detect};
use crate::protocol::silence::TakesLong;

use super::settle::Failure;
use super::{CheckRun, Progress};

/// A process that is ready.
pub(super) struct Running {
    pub(super) guard: KillOnDrop,
    pub(super) conversation: Conversation,
}

impl CheckRun<'_> {
    /// Starts a process if none is running.
    pub(super) async fn ensure_running(&mut self) -> Result<(), Failure> {
        if let Some(running) = self.running.take_if(|running| running.guard.process().exit().is_some()) {
            self.kill_and_reap(running.guard.process()).await;
        }
        if self.running.is_none() {
            self.start().await.map_err(Failure::Error)?;
        }
        Ok(())
    }

    /// Starts a process and waits until it is ready.
    pub(super) async fn start(&mut self) -> Result<Evidence, Error> {
        let settings = &self.plan.settings;
        let rules = detect::Rules {
            protocol: settings.protocol,
            unannounced: self.unannounced,
            wait_for_ack: self.plan.wait_for_ack,
            init_timeout: settings.init_timeout.0,
            start_grace: settings.start_grace.0,
            announces: self.announces,
        };
        let (guard, pipes) = spawn(&self.launch, ResultChannel::Descriptor3, &self.reaper, &mut self.logs)?;
        self.sent_ids.clear();
        let detected = self.log_capture.during(detect(guard.process(), pipes, &rules, &mut self.logs)).await;
        match detected {
            Ok(detect::Ready { mut conversation, evidence }) => {
                conversation.keep_strays();
                if let Conversation::PipeLoop(pipe_loop) = &mut conversation {
                    let takes_long = TakesLong::default();
                    takes_long.set(true);
                    pipe_loop.give_up_silent(takes_long);
                }
                self.running = Some(Running { guard, conversation });
                Ok(evidence)
            }
            Err(error) => {
                self.kill_and_reap(guard.process()).await;
                Err(error)
            }
        }
    }

    /// Kills a process and its group, and takes the rest of its log.
    pub(super) async fn kill_and_reap(&mut self, process: &Process) {
        self.log_capture.during(stop::kill_and_reap(process)).await;
        self.logs.detach();
        self.forward_log().await;
    }

    /// Forwards the log of the action up to now.
    pub(super) async fn forward_log(&mut self) {
        self.log_capture.during(self.logs.end_without_sentinel()).await;
        let progress = self.log_capture.progress();
        if !progress.is_empty() {
            (self.report_progress)(Progress::Logged(&progress));
        }
    }

    /// The limit of the check, or that of the action if it is shorter.
    pub(super) fn activation_timeout(&self) -> Duration {
        self.plan.activation_timeout.min(self.plan.settings.run_timeout.0)
    }

    pub(super) fn pid(&self) -> Option<rustix::process::Pid> {
        self.running.as_ref().map(|running| running.guard.process().pid)
    }
}
