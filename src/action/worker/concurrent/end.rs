//! The end of a conversation: what becomes of the activations that are still in flight.

use tokio::time::Instant;

use crate::error::{Error, RunError};
use crate::process::{Process, stop};
use crate::protocol::detect::exit_report;
use crate::protocol::multiplex::Taken;

use super::super::super::job::Job;
use super::super::{no_answer_error, wait_for_exit};
use super::in_flight::{Caller, InFlight, Outcome, Pending, State};
use super::{Concurrent, End};

/// How often the result channel of a killed process is read. Its pipe holds less, but a process that left
/// the group may still write.
const MAX_LAST_READS: usize = 1024;

impl Concurrent<'_> {
    /// Ends a conversation whose process is gone or must go.
    pub(super) async fn close(mut self, end: End, process: &Process) {
        if let End::ProcessGone = end {
            return self.handle_exit(process).await;
        }
        stop::kill_and_reap(process).await;
        self.logs.detach();
        match end {
            End::Idle | End::ProcessGone => {}
            End::Retired(reason) => {
                self.worker.pool.backoff().record_stop(reason);
                self.finish_all(|_| None).await;
            }
            End::FrameTooLong => {
                let limit_bytes = self.worker.shared.config.settings.max_result.0;
                let in_flight = self.in_flight.len();
                let error = || match in_flight {
                    0 | 1 => Error::Run(RunError::AnswerTooLong { limit_bytes }),
                    in_flight => Error::Run(RunError::FrameTooLong { limit_bytes, in_flight }),
                };
                self.worker.pool.backoff().record_stop(error().to_string());
                self.finish_all(|_| Some(error())).await;
            }
            End::Stopped => {
                let error = |begun: Instant| Error::Run(RunError::CutOff { after: begun.elapsed() });
                self.finish_all(|activation| Some(error(activation.begun))).await;
                for Pending { job, begun, .. } in self.pending.drain(..) {
                    let mut log = self.logs.open(None);
                    let error = error(begun);
                    self.worker.log_failure(Some(&error), &mut log);
                    log.end().await;
                    job.reply.send(Err(error));
                }
            }
        }
    }

    /// The process is gone. Its last frames still count, and an activation that it never read goes to another
    /// process.
    async fn handle_exit(&mut self, process: &Process) {
        let exited = wait_for_exit(process).await;
        // Before reading: a process that lives on could write as fast as the proxy reads, forever.
        stop::kill_and_reap(process).await;
        self.read_last_frames().await;
        let partial = self.multiplex.partial().to_vec();
        let is_only = self.in_flight.len() == 1;
        if exited && partial.is_empty() {
            self.requeue_untouched();
        }
        self.logs.detach();
        let exit = exited.then(|| exit_report(process, self.logs));
        let channel = self.multiplex.channel();
        // With several in flight, a partial line could belong to any of them.
        let partial = if is_only { partial } else { Vec::new() };
        let error = || no_answer_error(exit.clone(), &partial, channel);
        self.worker.pool.backoff().record_crash(error().without_output());
        self.finish_all(|_| Some(error())).await;
    }

    async fn read_last_frames(&mut self) {
        for _ in 0..MAX_LAST_READS {
            while let Some(taken) = self.multiplex.take() {
                let Taken::Frame(frame, line) = taken else { return };
                self.handle_frame(frame, &line).await;
            }
            if !self.multiplex.read_rest() {
                return;
            }
        }
    }

    /// Gives activations that the process never read to another process: to that of another worker, or to
    /// the next one of this worker.
    fn requeue_untouched(&mut self) {
        let mut in_flight = std::mem::take(&mut self.in_flight);
        // Each is put in front, the newest first, so the oldest comes to stand in front of all.
        in_flight.sort_by_key(|activation| std::cmp::Reverse(activation.ticket.id));
        for activation in in_flight {
            let is_untouched =
                !activation.fresh && activation.state == State::Open && self.multiplex.is_untouched(activation.ticket);
            if !is_untouched {
                self.in_flight.push(activation);
                continue;
            }
            let InFlight { activation, reservation, deadline, begun, caller, log, .. } = activation;
            log.expect("an open activation has a log").withdraw(self.logs);
            let Caller { reply, permit, .. } = caller.expect("an open activation has a caller");
            let job = Job { activation, deadline, reply, permit, reservation, claim: None };
            if let Err(job) = self.worker.pool.queue.requeue_front(job) {
                self.pending.push_front(Pending { job, begun, fresh: false });
            }
        }
    }

    /// Ends all activations in flight, the oldest first.
    async fn finish_all(&mut self, mut error: impl FnMut(&InFlight) -> Option<Error>) {
        let mut in_flight = std::mem::take(&mut self.in_flight);
        in_flight.sort_by_key(|activation| activation.ticket.id);
        for activation in in_flight {
            let outcome = match error(&activation).filter(|_| activation.state == State::Open) {
                Some(error) => Outcome::Error(error),
                None => Outcome::End,
            };
            self.finish(activation, outcome).await;
        }
    }
}
