//! The checks of the end of a process, and of the processes that outlive it.

use std::time::{Duration, Instant};

use crate::process::orphans::{self, Orphan};
use crate::process::reap::Exit;
use crate::process::{ExitStatus, Process, stop};

use super::CheckRun;
use super::finding::Finding;
use super::process::Running;
use super::report::{Check, Name};

/// How long the children of an action may take to exit after it.
const ORPHAN_GRACE: Duration = Duration::from_millis(500);
const ORPHAN_POLL: Duration = Duration::from_millis(10);

impl CheckRun<'_> {
    pub(super) async fn check_end_of_input(&mut self) {
        if let Err(failure) = self.ensure_running().await {
            return self.fail(Name::EndOfFile, &failure);
        }
        let Running { guard, conversation } = self.running.take().expect("it runs");
        // Its result channel stays open, so that a last flush is not an error.
        let _results = conversation.into_results();
        let (ended, took) = self.wait_for_exit(guard.process()).await;
        let check = match ended.map(|exit| exit.status) {
            Some(ExitStatus::Exited(0)) => Check::passed(Name::EndOfFile, "exited with status 0").took(took),
            Some(status) => Check::warning(Name::EndOfFile, self.end_of_file(Some(status))),
            None => self.failure(Name::EndOfFile, self.end_of_file(None)),
        };
        self.settle(check);
        if ended.is_some() {
            self.judge_orphans().await;
        }
        self.kill_and_reap(guard.process()).await;
    }

    pub(super) async fn check_sigterm(&mut self) {
        if let Err(failure) = self.ensure_running().await {
            return self.fail(Name::Sigterm, &failure);
        }
        let Running { guard, conversation: _conversation } = self.running.take().expect("it runs");
        stop::terminate_group(guard.process());
        let (ended, took) = self.wait_for_exit(guard.process()).await;
        let check = if ended.is_some() {
            Check::passed(Name::Sigterm, "exited, with its input still open").took(took)
        } else {
            let within = self.plan.settings.stop_grace.0 / 2;
            self.failure(Name::Sigterm, Finding::Terminate { within })
        };
        self.settle(check);
        if ended.is_some() {
            self.judge_orphans().await;
            if !self.is_settled(Name::Orphans) {
                self.settle(Check::passed(Name::Orphans, "no process outlives it"));
            }
        }
        self.kill_and_reap(guard.process()).await;
    }

    pub(super) fn end_of_file(&self, ended: Option<ExitStatus>) -> Finding {
        Finding::EndOfFile { ended, within: self.plan.settings.stop_grace.0 / 2 }
    }

    /// Waits for the exit of a process, for the time that the server gives it.
    pub(super) async fn wait_for_exit(&mut self, process: &Process) -> (Option<Exit>, Duration) {
        let started = Instant::now();
        let within = self.plan.settings.stop_grace.0 / 2;
        let exit = async {
            tokio::select! {
                exit = tokio::time::timeout(within, process.exited()) => exit.ok().flatten(),
                never = self.logs.pump() => match never {},
            }
        };
        (self.log_capture.during(exit).await, started.elapsed())
    }

    /// Finds processes that outlive an action, and kills them.
    pub(super) async fn judge_orphans(&mut self) {
        let started = Instant::now();
        let mut left = orphans::orphans();
        while !left.is_empty() && started.elapsed() < ORPHAN_GRACE {
            tokio::time::sleep(ORPHAN_POLL).await;
            left = orphans::orphans();
        }
        if left.is_empty() {
            return;
        }
        if !self.is_settled(Name::Orphans) {
            let check = self.failure(Name::Orphans, Finding::LeftBehind { orphans: left.clone() });
            self.settle(check);
        }
        kill_all(left).await;
    }
}

/// Kills processes, and the orphans that their death leaves.
pub(super) async fn kill_all(mut left: Vec<Orphan>) {
    let started = Instant::now();
    while !left.is_empty() && started.elapsed() < ORPHAN_GRACE {
        orphans::kill(&left);
        tokio::time::sleep(ORPHAN_POLL).await;
        left = orphans::orphans();
    }
}
