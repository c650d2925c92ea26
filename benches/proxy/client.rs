//! The caller that is timed: one write a request, answers by `Content-Length`, every answer compared.
//!
//! It is testkit's caller, used so that it costs the same few system calls for every proxy: a request is made before
//! the clock runs, an answer stays in the buffer it was read into, and a read takes all that the buffer has room for.
//! What is added here is what only a measurement needs: the time of an exchange, a watchdog in place of the kernel's
//! timers, and answers that are compared while no clock runs.

use std::io;
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use testkit::http::{Caller, request};

use crate::Outcome;

/// Longer than any answer takes; a proxy that hangs is a failure, not a slow one.
const TIMEOUT: Duration = Duration::from_secs(30);
const BUFFER_BYTES: usize = 64 * 1024;

const HEADERS: &[(&str, &str)] = &[("Host", "127.0.0.1"), ("Content-Type", "application/json")];

/// A request as the bytes that are sent, made before the clock runs.
pub(crate) struct Request(Vec<u8>);

impl Request {
    pub(crate) fn post(path: &str, body: &[u8]) -> Self {
        Self(request("POST", path, HEADERS, body))
    }

    /// A request for server-sent events.
    pub(crate) fn stream(path: &str, body: &[u8]) -> Self {
        Self(request("POST", path, &[HEADERS, &[("Accept", "text/event-stream")]].concat(), body))
    }
}

/// A connection that is kept, and the last answer that came over it.
pub(crate) struct Connection {
    caller: Caller,
    status: u16,
    /// How many exchanges have begun and ended: odd while one is under way.
    progress: Arc<AtomicU64>,
}

impl Connection {
    /// A connection that a proxy has accepted.
    pub(crate) fn over(stream: TcpStream) -> io::Result<Self> {
        let mut caller = Caller::over_with_large_reads(stream, BUFFER_BYTES)?;
        caller.set_timeout(Some(TIMEOUT))?;
        Ok(Self { caller, status: 0, progress: Arc::default() })
    }

    /// Prepares for many exchanges that are timed. A timeout of the kernel costs a timer in each of them, so a thread
    /// takes its place: it ends the connection when an exchange takes too long.
    pub(crate) fn guarded(mut self) -> io::Result<Self> {
        let stream = self.caller.stream()?;
        let progress = Arc::downgrade(&self.progress);
        std::thread::spawn(move || {
            let mut seen = 0;
            while let Some(now) = progress.upgrade().map(|progress| progress.load(Ordering::Relaxed)) {
                if now % 2 == 1 && now == seen {
                    let _ = stream.shutdown(Shutdown::Both);
                }
                seen = now;
                std::thread::sleep(TIMEOUT);
            }
        });
        self.caller.set_timeout(None)?;
        Ok(self)
    }

    /// Sends a request and receives its answer. The time from the first byte sent to the last one read.
    pub(crate) fn exchange(&mut self, request: &Request) -> Outcome<Duration> {
        let progress = self.progress.load(Ordering::Relaxed);
        self.progress.store(progress + 1, Ordering::Relaxed);
        let begun = Instant::now();
        self.send(request)?;
        self.receive()?;
        self.progress.store(progress + 2, Ordering::Relaxed);
        // Parsing the answer is no part of the exchange.
        Ok(self.caller.read_at() - begun)
    }

    /// Sends a request whose answer is received later.
    pub(crate) fn send(&mut self, request: &Request) -> Outcome {
        Ok(self.caller.send(&request.0).map_err(|error| format!("cannot send the request: {error}"))?)
    }

    /// Receives the answer of the request that was sent.
    pub(crate) fn receive(&mut self) -> Outcome {
        self.status = self.caller.receive_in_place().map_err(|error| unreadable(&error))?;
        match self.caller.unread() {
            [] => Ok(()),
            more => Err(format!("{} bytes came after the answer", more.len()).into()),
        }
    }

    /// Receives a streamed answer up to these bytes. Returns all that has come of it.
    pub(crate) fn receive_until(&mut self, last: &[u8]) -> Outcome<&[u8]> {
        self.caller.drop_unread();
        loop {
            self.caller.read_more().map_err(|error| unreadable(&error))?;
            if self.caller.unread().windows(last.len()).any(|window| window == last) {
                return Ok(self.caller.unread());
            }
        }
    }

    /// Receives the rest of such an answer, up to its last bytes.
    pub(crate) fn receive_rest(&mut self, last: &[u8]) -> Outcome {
        while !self.caller.unread().ends_with(last) {
            self.caller.read_more().map_err(|error| unreadable(&error))?;
        }
        self.caller.drop_unread();
        Ok(())
    }

    /// The last answer, without the newline that may end it. Any status but 200 is an error.
    pub(crate) fn answer(&self) -> Outcome<&[u8]> {
        let body = self.caller.body().trim_ascii_end();
        if self.status != 200 {
            let shown = String::from_utf8_lossy(&body[..body.len().min(500)]);
            return Err(format!("the answer has status {}: {shown}", self.status).into());
        }
        Ok(body)
    }

    /// Checks that the last answer is this one. Called while no clock runs.
    pub(crate) fn expect(&self, expected: &[u8]) -> Outcome {
        let answer = self.answer()?;
        if answer == expected {
            return Ok(());
        }
        let start = |bytes: &[u8]| String::from_utf8_lossy(&bytes[..bytes.len().min(80)]).into_owned();
        let (expected_length, length) = (expected.len(), answer.len());
        let (expected, answer) = (start(expected), start(answer));
        Err(format!("expected {expected_length} bytes `{expected}`, got {length} bytes `{answer}`").into())
    }

    /// Checks that the last answer is a refusal with this status and these words.
    pub(crate) fn expect_refusal(&self, status: u16, words: &str) -> Outcome {
        let body = String::from_utf8_lossy(self.caller.body());
        if self.status == status && body.contains(words) {
            return Ok(());
        }
        Err(format!("expected status {status} and `{words}`, got {}: {body}", self.status).into())
    }

    /// The same as [`Connection::expect`], for a proxy that formats JSON again.
    pub(crate) fn expect_json(&self, expected: &[u8]) -> Outcome {
        let parse = |bytes| serde_json::from_slice::<serde_json::Value>(bytes).ok();
        let answer = self.answer()?;
        if parse(answer).is_some_and(|answer| Some(answer) == parse(expected)) {
            return Ok(());
        }
        self.expect(expected)
    }
}

fn unreadable(error: &io::Error) -> Box<dyn std::error::Error> {
    if error.kind() == io::ErrorKind::UnexpectedEof {
        return "the connection was closed before the answer was there".into();
    }
    format!("cannot read the answer: {error}").into()
}
