//! The caller: HTTP over one kept connection, one write a request, answers by Content-Length.
//!
//! Written by hand so that it costs the same few system calls for every proxy.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::Outcome;

/// Longer than any answer takes; a proxy that hangs is a failure, not a slow one.
const PATIENCE: Duration = Duration::from_secs(30);
const FIRST_READ: usize = 64 * 1024;

/// A request as the bytes that are sent, made before the clock runs.
pub(crate) struct Request(Vec<u8>);

impl Request {
    pub(crate) fn post(path: &str, body: &[u8]) -> Self {
        Self::with_headers(path, "", body)
    }

    /// A request for server-sent events.
    pub(crate) fn stream(path: &str, body: &[u8]) -> Self {
        Self::with_headers(path, "Accept: text/event-stream\r\n", body)
    }

    fn with_headers(path: &str, headers: &str, body: &[u8]) -> Self {
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n{headers}Content-Length: {}\r\n\r\n",
            body.len()
        );
        Self([head.as_bytes(), body].concat())
    }
}

/// A connection that is kept, and the last answer that came over it.
pub(crate) struct Connection {
    stream: TcpStream,
    bytes: Vec<u8>,
    filled: usize,
    body: std::ops::Range<usize>,
    status: u16,
    /// When the last bytes came.
    read_at: Instant,
    /// How many exchanges have begun and ended: odd while one is under way.
    turns: Arc<AtomicU64>,
}

impl Connection {
    /// Connects once. A refusal is an error like any other: whoever starts a proxy tries again.
    pub(crate) fn open(port: u16) -> std::io::Result<Self> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self {
            stream,
            bytes: vec![0; FIRST_READ],
            filled: 0,
            body: 0..0,
            status: 0,
            read_at: Instant::now(),
            turns: Arc::default(),
        })
    }

    /// For many exchanges that are timed: a limit of the kernel's, which costs each of them a timer, gives way to
    /// a thread that ends the connection when an exchange takes too long.
    pub(crate) fn guarded(self) -> std::io::Result<Self> {
        let stream = self.stream.try_clone()?;
        let turns = Arc::downgrade(&self.turns);
        std::thread::spawn(move || {
            let mut seen = 0;
            while let Some(now) = turns.upgrade().map(|turns| turns.load(Ordering::Relaxed)) {
                if now % 2 == 1 && now == seen {
                    let _ = stream.shutdown(Shutdown::Both);
                }
                seen = now;
                std::thread::sleep(PATIENCE);
            }
        });
        self.stream.set_read_timeout(None)?;
        self.stream.set_write_timeout(None)?;
        Ok(self)
    }

    /// Sends a request and reads its answer. The time from the first byte sent to the last one read.
    pub(crate) fn exchange(&mut self, request: &Request) -> Outcome<Duration> {
        let turn = self.turns.load(Ordering::Relaxed);
        self.turns.store(turn + 1, Ordering::Relaxed);
        let begun = Instant::now();
        self.send(request)?;
        self.receive()?;
        self.turns.store(turn + 2, Ordering::Relaxed);
        // What is made of it here is no part of it.
        Ok(self.read_at - begun)
    }

    /// Sends a request whose answer is received later.
    pub(crate) fn send(&mut self, request: &Request) -> Outcome {
        Ok(self.stream.write_all(&request.0).map_err(|error| format!("cannot send the request: {error}"))?)
    }

    /// Reads the answer of the request that was sent.
    pub(crate) fn receive(&mut self) -> Outcome {
        self.filled = 0;
        let head = loop {
            self.read_some()?;
            if let Some(at) = self.bytes[..self.filled].windows(4).position(|window| window == b"\r\n\r\n") {
                break at;
            }
        };
        let length = self.parse_head(head)?;
        self.body = head + 4..head + 4 + length;
        if self.bytes.len() < self.body.end {
            self.bytes.resize(self.body.end, 0);
        }
        while self.filled < self.body.end {
            self.read_some()?;
        }
        if self.filled > self.body.end {
            return Err(format!("{} bytes came after the answer", self.filled - self.body.end).into());
        }
        Ok(())
    }

    /// Reads an answer that comes in pieces, up to one that holds some bytes. All that has come of it.
    pub(crate) fn receive_until(&mut self, last: &[u8]) -> Outcome<&[u8]> {
        self.filled = 0;
        loop {
            self.read_some()?;
            if self.bytes[..self.filled].windows(last.len()).any(|window| window == last) {
                return Ok(&self.bytes[..self.filled]);
            }
        }
    }

    /// Reads the rest of such an answer, up to the last bytes of all.
    pub(crate) fn receive_rest(&mut self, last: &[u8]) -> Outcome {
        while !self.bytes[..self.filled].ends_with(last) {
            self.read_some()?;
        }
        Ok(())
    }

    /// The last answer, without the newline that may end it. Anything but 200 is an error.
    pub(crate) fn answer(&self) -> Outcome<&[u8]> {
        let body = self.bytes[self.body.clone()].trim_ascii_end();
        if self.status != 200 {
            let shown = String::from_utf8_lossy(&body[..body.len().min(500)]);
            return Err(format!("the answer has status {}: {shown}", self.status).into());
        }
        Ok(body)
    }

    /// Whether the last answer is this one. To be asked when the clock has been stopped.
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

    /// Whether the last answer is a refusal with this status and these words.
    pub(crate) fn expect_refusal(&self, status: u16, words: &str) -> Outcome {
        let body = String::from_utf8_lossy(&self.bytes[self.body.clone()]);
        if self.status == status && body.contains(words) {
            return Ok(());
        }
        Err(format!("expected status {status} and `{words}`, got {}: {body}", self.status).into())
    }

    /// As [`Connection::expect`], for a proxy that writes JSON anew.
    pub(crate) fn expect_json(&self, expected: &[u8]) -> Outcome {
        let parse = |bytes| serde_json::from_slice::<serde_json::Value>(bytes).ok();
        let answer = self.answer()?;
        if parse(answer).is_some_and(|answer| Some(answer) == parse(expected)) {
            return Ok(());
        }
        self.expect(expected)
    }

    fn read_some(&mut self) -> Outcome {
        if self.filled == self.bytes.len() {
            return Err(format!("an answer's head is longer than {} bytes", self.filled).into());
        }
        match self.stream.read(&mut self.bytes[self.filled..]) {
            Ok(0) => Err("the connection was closed before the answer was there".into()),
            Ok(count) => {
                self.read_at = Instant::now();
                self.filled += count;
                Ok(())
            }
            Err(error) => Err(format!("cannot read the answer: {error}").into()),
        }
    }

    /// Takes the status from the head, and the length, which the platform insists on as well.
    fn parse_head(&mut self, end: usize) -> Outcome<usize> {
        let head = String::from_utf8_lossy(&self.bytes[..end]);
        let bad = || format!("not the head of an answer with a Content-Length: {head:?}");
        self.status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or_else(bad)?;
        let length = head.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok())?
        });
        Ok(length.ok_or_else(bad)?)
    }
}
