//! The checks of how a process ends, and of what is left then.

use std::time::{Duration, Instant};

use crate::process::orphans::{self, Orphan};
use crate::process::reap::Exit;
use crate::process::{ExitStatus, Process, stop};

use super::finding::Finding;
use super::report::{Check, Name};
use super::{CheckRun, Running};

/// How long what an action started may take to end after it.
const AFTERMATH: Duration = Duration::from_millis(500);
const AFTERMATH_STEP: Duration = Duration::from_millis(10);

impl CheckRun<'_> {
    pub(super) async fn ends_at_end_of_input(&mut self) {
        if let Err(trouble) = self.ensure_running().await {
            return self.fail(Name::EndOfFile, &trouble);
        }
        let Running { guard, conversation } = self.running.take().expect("it runs");
        // Its result channel stays open, so that a last flush is no error.
        let _results = conversation.into_results();
        let (ended, took) = self.wait_for_exit(guard.process()).await;
        let check = match ended.map(|exit| exit.status) {
            Some(ExitStatus::Exited(0)) => Check::passed(Name::EndOfFile, "ended with status 0").took(took),
            Some(status) => Check::warning(Name::EndOfFile, self.end_of_file(Some(status))),
            None => self.failure(Name::EndOfFile, self.end_of_file(None)),
        };
        self.settle(check);
        if ended.is_some() {
            self.judge_orphans().await;
        }
        self.bury(guard.process()).await;
    }

    pub(super) async fn ends_on_sigterm(&mut self) {
        if let Err(trouble) = self.ensure_running().await {
            return self.fail(Name::Terminate, &trouble);
        }
        let Running { guard, conversation: _conversation } = self.running.take().expect("it runs");
        stop::terminate_group(guard.process());
        let (ended, took) = self.wait_for_exit(guard.process()).await;
        let check = if ended.is_some() {
            Check::passed(Name::Terminate, "ended, with its input still open").took(took)
        } else {
            let within = self.plan.settings.stop_grace.0 / 2;
            self.failure(Name::Terminate, Finding::Terminate { within })
        };
        self.settle(check);
        if ended.is_some() {
            self.judge_orphans().await;
            if !self.is_settled(Name::Descendants) {
                self.settle(Check::passed(Name::Descendants, "no process lives on after it"));
            }
        }
        self.bury(guard.process()).await;
    }

    pub(super) fn end_of_file(&self, ended: Option<ExitStatus>) -> Finding {
        Finding::EndOfFile { ended, within: self.plan.settings.stop_grace.0 / 2 }
    }

    /// Waits for the end of a process, for as long as one that is stopped has.
    pub(super) async fn wait_for_exit(&mut self, process: &Process) -> (Option<Exit>, Duration) {
        let begun = Instant::now();
        let within = self.plan.settings.stop_grace.0 / 2;
        let exit = async {
            tokio::select! {
                exit = tokio::time::timeout(within, process.exited()) => exit.ok().flatten(),
                () = self.logs.pump() => unreachable!("a pump never ends"),
            }
        };
        (self.log_capture.during(exit).await, begun.elapsed())
    }

    /// Looks for processes that outlive an action that has ended, and ends them.
    pub(super) async fn judge_orphans(&mut self) {
        let begun = Instant::now();
        let mut left = orphans::orphans();
        while !left.is_empty() && begun.elapsed() < AFTERMATH {
            tokio::time::sleep(AFTERMATH_STEP).await;
            left = orphans::orphans();
        }
        if left.is_empty() {
            return;
        }
        if !self.is_settled(Name::Descendants) {
            let check = self.failure(Name::Descendants, Finding::LeftBehind { orphans: left.clone() });
            self.settle(check);
        }
        end_all(left).await;
    }
}

/// Kills processes, and those that are orphans then.
pub(super) async fn end_all(mut left: Vec<Orphan>) {
    let begun = Instant::now();
    while !left.is_empty() && begun.elapsed() < AFTERMATH {
        orphans::kill(&left);
        tokio::time::sleep(AFTERMATH_STEP).await;
        left = orphans::orphans();
    }
}
