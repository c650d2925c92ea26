//! What a frame of the process does to the activation it names.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use crate::error::{Error, RunError};
use crate::logs::ConcurrentLog;
use crate::protocol::multiplex::{Ended, Event as Frame, stray};

use super::super::super::job::Reply;
use super::super::super::response_stream::StreamItem;
use super::in_flight::{Backpressure, Caller, InFlight, Outcome, State};
use super::{Concurrent, PAUSE_GRACE};

impl Concurrent<'_> {
    pub(super) async fn handle_frame(&mut self, frame: Frame, line: &[u8]) {
        match frame {
            Frame::Chunk(id, chunk) => self.handle_chunk(id, chunk).await,
            Frame::Log(id, text) => {
                self.handle_log(id, &text);
                self.logs.wait_for_space().await;
            }
            Frame::Ended(id, ended) => {
                let Some(at) = self.position(id) else { return };
                let outcome = match ended {
                    Ended::Result(answer) => Outcome::Answer(answer),
                    Ended::Error(error) => Outcome::ActionError(error),
                    Ended::End => Outcome::End,
                    Ended::Bad(problem) => Outcome::Error(Error::Run(RunError::BadAnswer { problem, exit: None })),
                };
                self.worker.pool.backoff().record_answer();
                let activation = self.in_flight.swap_remove(at);
                if self.has_capacity() && self.concurrency() > 1 {
                    self.worker.pool.queue.expect_return(self.worker.slot);
                }
                self.finish(activation, outcome).await;
            }
            Frame::Malformed(id, problem) => {
                let line = String::from_utf8_lossy(line).into_owned();
                self.fail(id, Error::Run(RunError::BadFrame { problem, line })).await;
            }
            Frame::Stray(reason) => {
                self.logs.say(&stray(line, &reason));
                self.logs.wait_for_space().await;
            }
        }
    }

    fn position(&self, id: u64) -> Option<usize> {
        self.in_flight.iter().position(|activation| activation.ticket.id == id)
    }

    async fn handle_chunk(&mut self, id: u64, chunk: Bytes) {
        let limit_bytes = self.worker.shared.config.settings.max_result.0;
        let Some(at) = self.position(id) else { return };
        match &mut self.in_flight[at].caller {
            // The caller has left.
            None => {}
            Some(Caller { reply: Reply::Whole(_), gathered, .. }) => {
                let fits = gathered.add(&chunk, limit_bytes);
                if !fits {
                    self.fail(id, Error::Run(RunError::AnswerTooLong { limit_bytes })).await;
                }
            }
            Some(Caller { reply: Reply::Stream(sender), .. }) => {
                let buffered_bytes = sender.push(StreamItem::Chunk(chunk));
                self.apply_backpressure(at, buffered_bytes).await;
            }
        }
    }

    /// Slows an activation down, by how much is buffered for its caller.
    async fn apply_backpressure(&mut self, at: usize, buffered_bytes: usize) {
        let buffer_bytes = self.buffer_bytes();
        let concurrency = self.concurrency();
        self.yields_to_callers |= buffered_bytes > buffer_bytes / 8;
        let activation = &mut self.in_flight[at];
        if concurrency == 1 {
            activation.backpressure =
                if buffered_bytes >= buffer_bytes { Backpressure::Slowed } else { Backpressure::Free };
        } else if buffered_bytes > buffer_bytes && activation.is_slowed() {
            let id = activation.ticket.id;
            self.fail(id, Error::Run(RunError::Overrun { limit_bytes: buffer_bytes as u64 })).await;
        } else if buffered_bytes > buffer_bytes / 2 && activation.backpressure == Backpressure::Paused {
            activation.backpressure = Backpressure::PauseGraceUsed;
            self.reads_resume_at = Some(Instant::now() + PAUSE_GRACE);
        } else if buffered_bytes > buffer_bytes / 4 && !activation.is_slowed() {
            // Without a promise to pause it stays slowed, and fails if its caller falls a whole buffer behind.
            activation.backpressure =
                if self.multiplex.pause(activation.ticket.id) { Backpressure::Paused } else { Backpressure::Slowed };
        }
    }

    fn handle_log(&mut self, id: u64, text: &str) {
        let Some(at) = self.position(id) else { return };
        let is_only = self.concurrency() == 1;
        let activation = &mut self.in_flight[at];
        let lines = self.logs.format_lines(text, activation.label.as_deref());
        let limit_bytes = self.worker.shared.config.settings.log_backlog.bytes();
        match &mut activation.log {
            Some(log) if !is_only => log.keep_lines(&lines, limit_bytes, self.logs),
            _ => self.logs.append_lines(&lines),
        }
    }

    /// Ends an activation that has left the process.
    pub(super) async fn finish(&mut self, mut activation: InFlight, outcome: Outcome) {
        if let Some(log) = activation.log.take() {
            let (caller, label) = (activation.caller.take(), activation.label.take());
            self.end_log_and_reply(caller, log, label, outcome).await;
        } else {
            // It has failed before, so its caller has an answer and its log has ended.
            self.label_output();
        }
    }

    /// Ends the log of an activation, and then answers its caller.
    async fn end_log_and_reply(
        &mut self,
        caller: Option<Caller>,
        mut log: ConcurrentLog,
        label: Option<Arc<str>>,
        outcome: Outcome,
    ) {
        log.write_lines(self.logs);
        if label.is_some() && outcome.error().is_some() {
            self.logs.set_label(label.as_ref());
        }
        self.worker.log_failure(outcome.error(), self.logs);
        log.end(self.logs).await;
        self.label_output();
        if let Some(caller) = caller {
            outcome.send(caller);
        }
    }

    /// Answers the caller of an activation that the process has not ended yet.
    pub(super) async fn fail(&mut self, id: u64, error: Error) {
        let grace = self.end_grace();
        let Some(at) = self.position(id) else { return };
        let activation = &mut self.in_flight[at];
        let Some(log) = activation.log.take() else { return };
        if matches!(activation.state, State::Open | State::Left) {
            self.multiplex.cancel(id);
        }
        activation.state = State::Failed { until: Instant::now() + grace };
        let reason = error.without_output();
        let (caller, label) = (activation.caller.take(), activation.label.clone());
        self.end_log_and_reply(caller, log, label, Outcome::Error(error)).await;
        if grace.is_zero() {
            self.retiring = Some(reason);
        }
    }

    /// How long the process may take to end an activation whose caller waits no more.
    fn end_grace(&self) -> Duration {
        let others = self.in_flight.iter().filter(|activation| activation.is_awaited()).count() > 1;
        if self.multiplex.promises().cancel || others {
            self.worker.shared.config.settings.stop_grace.0
        } else {
            Duration::ZERO
        }
    }
}
