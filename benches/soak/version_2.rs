//! The load of version 2: many activations in flight in each process, and streams.
//!
//! Each activation has a text of its own, which stands in every chunk of it with the chunk's number, and in its
//! result with how many there were. So what belongs to another one is seen, and what is missing, doubled or out of
//! order too.

use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use crate::load::{Load, Part, count};
use crate::stream::{Format, Piece, Stream};
use crate::support::{Caller, now_ms};
use crate::version_1::{bad_requests, kill_one};

pub(crate) const ACTION: &str = "streamer.c";
/// How many each process takes at once. All callers together want more than two processes take.
pub(crate) const CONCURRENCY: &str = "16";
pub(crate) const PARTS: &[Part] = &[kept, kept, fresh, streams, streams, large, slow, slow, leaves, fails];

/// An activation as its action is asked for it.
struct Order {
    text: String,
    pieces: u64,
    pad_bytes: usize,
    /// How it comes to its end; see the action.
    then: &'static str,
    value: Value,
}

/// Whether somebody sleeps between two pieces.
type Nap = Option<Duration>;

impl Order {
    fn new(load: &Load, name: &str) -> Self {
        let text = load.text(name);
        let value = json!({ "text": text });
        Self { text, pieces: 0, pad_bytes: 0, then: "", value }
    }

    /// So many pieces, with so much behind the text of each.
    fn pieces(mut self, pieces: u64, pad_bytes: usize) -> Self {
        (self.pieces, self.pad_bytes) = (pieces, pad_bytes);
        self.with("pieces", json!(pieces)).with("pad_bytes", json!(pad_bytes))
    }

    /// Pieces for as long as somebody waits for them.
    fn endless(self, pad_bytes: usize) -> Self {
        self.pieces(0, pad_bytes).with("pieces", json!(-1))
    }

    fn then(mut self, then: &'static str) -> Self {
        self.then = then;
        self.with("then", json!(then))
    }

    fn with(mut self, name: &str, value: Value) -> Self {
        self.value[name] = value;
        self
    }

    fn piece(&self, number: u64) -> String {
        format!("{number} of {} {}", self.text, "x".repeat(self.pad_bytes))
    }

    /// The last piece of its stream, other than an error of the proxy's.
    fn last(&self) -> Value {
        match self.then {
            "end" => Value::Null,
            "fail" => json!({ "error": self.text }),
            _ => json!({"pieces": self.pieces, "text": self.text}),
        }
    }

    /// Its answer, in one body.
    fn body(&self) -> Value {
        match self.then {
            "end" => json!({"body": (0..self.pieces).map(|number| self.piece(number)).collect::<String>()}),
            _ => self.last(),
        }
    }

    /// Asks for one body. An activation has the short form of a request or another one.
    fn send(&self, caller: &mut Caller, n: u64) {
        if n.is_multiple_of(2) {
            caller.send_request("POST", "/run", json!({ "value": self.value }).to_string().as_bytes());
        } else {
            caller.send_run("*/*", &self.value);
        }
    }

    /// Receives it: its own, or an error that says why.
    fn receive(&self, load: &Load, caller: &mut Caller) {
        match caller.receive() {
            Ok(response) if response.status != 200 => load.refused(&self.text, &response),
            Ok(response) if response.json() == self.body() => count(&load.answers),
            Ok(response) => load.wrong(&self.text, &response.text()),
            Err(error) => load.wrong(&self.text, &format!("no answer: {error}")),
        }
    }

    /// Reads a stream to its end: all of its own pieces, or those before an error that says why. Whether its
    /// connection can be used again.
    fn follow(&self, load: &Load, caller: &mut Caller, format: Format, nap: Nap) -> bool {
        let followed = self.try_follow(load, caller, format, nap);
        if let Err(problem) = &followed {
            load.wrong(&self.text, problem);
        }
        followed.is_ok()
    }

    fn try_follow(&self, load: &Load, caller: &mut Caller, format: Format, nap: Nap) -> Result<(), String> {
        let head = caller.receive_head().map_err(|error| format!("no answer: {error}"))?;
        if head.status != 200 {
            let response = caller.receive_body(head).map_err(|error| format!("no body: {error}"))?;
            load.refused(&self.text, &response);
            return Ok(());
        }
        let mut stream = Stream::new(caller, format);
        let mut number = 0;
        loop {
            if let Some(nap) = nap {
                thread::sleep(nap);
            }
            let piece = stream.next().map_err(|error| format!("a body that is cut after {number} chunks: {error}"))?;
            match piece {
                Some(Piece::Chunk(chunk)) if chunk == self.piece(number) => number += 1,
                Some(Piece::Result(last)) if number == self.pieces && last == self.last() => count(&load.streams),
                Some(Piece::Error(last)) if self.then == "fail" && last == self.last() => count(&load.streams),
                Some(Piece::Error(error)) => load.told(&self.text, error["error"].as_str().unwrap_or_default()),
                None if number > 0 => break,
                other => return Err(format!("{other:?} behind {number} chunks")),
            }
        }
        load.chunks.fetch_add(number, std::sync::atomic::Ordering::Relaxed);
        Ok(())
    }

    /// One body for a caller of its own.
    fn call(&self, load: &Load, n: u64) {
        let mut caller = load.proxy.caller();
        self.send(&mut caller, n);
        self.receive(load, &mut caller);
    }

    /// Asks for something that has to be told as an error, of which a part must be this.
    fn check_error(&self, load: &Load, expected: &str) {
        let mut caller = load.proxy.caller();
        self.send(&mut caller, 0);
        match caller.receive() {
            // The process may have died of something else before.
            Ok(response) if response.status == 502 && response.error().contains(expected) => {}
            Ok(response) => load.refused(&self.text, &response),
            Err(error) => load.wrong(&self.text, &format!("no answer: {error}")),
        }
    }
}

/// So many connections.
fn callers(load: &Load, count: usize) -> Vec<Caller> {
    (0..count).map(|_| load.proxy.caller()).collect()
}

/// Kept connections with an activation in flight on each, which end in another order than they began.
fn kept(load: &Load, n: u64) {
    let mut callers = callers(load, 16);
    for round in 0..20 {
        let orders: Vec<_> = (n + round..)
            .zip(&mut callers)
            .map(|(m, caller)| {
                let order = Order::new(load, "kept").with("wait_ms", json!(m * 7 % 11));
                order.send(caller, m);
                order
            })
            .collect();
        for (order, caller) in orders.iter().zip(&mut callers) {
            order.receive(load, caller);
        }
    }
}

/// A connection for each call, with answers that are put together from chunks.
fn fresh(load: &Load, n: u64) {
    for m in n..n + 20 {
        Order::new(load, "fresh").pieces(m % 9, 10).then("end").call(load, m);
    }
}

/// Kept connections with a stream on each, which alternate piece by piece.
fn streams(load: &Load, n: u64) {
    let mut callers = callers(load, 8);
    for round in 0..10 {
        let orders: Vec<_> = (n + round..)
            .zip(&mut callers)
            .map(|(m, caller)| {
                let pad_bytes = 1 << (m % 14);
                let order = Order::new(load, "stream").pieces(1 + m * 5 % 37, pad_bytes).with("every_ms", json!(m % 3));
                let order = order.then(["", "end", "fail"][usize::try_from(m % 3).expect("it is small")]);
                caller.send_run(Format::of(m).media_type(), &order.value);
                (m, order)
            })
            .collect();
        for ((m, order), caller) in orders.iter().zip(&mut callers) {
            if !order.follow(load, caller, Format::of(*m), None) {
                // What follows would be read from the middle of something.
                *caller = load.proxy.caller();
            }
        }
    }
}

/// Arguments, chunks and answers of up to 4 MiB.
fn large(load: &Load, n: u64) {
    const MAX: usize = 4 << 20;
    let pad_bytes = 1 << (10 + n % 13);
    let pieces = u64::try_from((MAX / pad_bytes).min(64)).expect("few");
    let order = || Order::new(load, "large").pieces(pieces, pad_bytes);
    match n % 3 {
        0 => {
            let mut caller = load.proxy.caller();
            let order = order();
            caller.send_run(Format::of(n / 3).media_type(), &order.value);
            order.follow(load, &mut caller, Format::of(n / 3), None);
        }
        1 => order().then("end").call(load, n),
        _ => Order::new(load, "large").with("ballast", json!("x".repeat(pad_bytes))).call(load, n),
    }
}

/// Callers that read more slowly than the action writes, and all of it: it pauses, and goes on.
fn slow(load: &Load, n: u64) {
    let mut caller = Caller::connect_narrow(load.proxy.port()).expect("the proxy accepts a connection");
    // Some of it is written on when it is not to be: then the caller is told that it fell behind.
    let stubborn = i32::from(n % 8 == 7);
    let order = Order::new(load, "slow").pieces(150, 8 << 10).with("stubborn", json!(stubborn));
    caller.send_run(Format::of(n).media_type(), &order.value);
    order.follow(load, &mut caller, Format::of(n), Some(Duration::from_millis(1 + n % 3)));
}

/// Callers that leave: without a word, in the middle of one, before their answer, in the middle of a stream that
/// has no end, in the middle of a chunk, with all of their buffers full.
fn leaves(load: &Load, n: u64) {
    let mut caller = load.proxy.caller();
    let format = Format::of(n / 6);
    let order = Order::new(load, "leaves");
    match n % 6 {
        0 => {}
        1 => drop(caller.send(b"POST /run HTTP/1.1\r\nContent-Length: 100\r\n\r\n{\"va")),
        2 => order.with("wait_ms", json!(10_000)).send(&mut caller, n / 6),
        3 => read_some(load, &mut caller, format, &order.endless(10).with("every_ms", json!(1)), 5),
        4 => read_some(load, &mut caller, format, &order.endless(1 << 20), 1),
        _ => {
            caller = Caller::connect_narrow(load.proxy.port()).expect("the proxy accepts a connection");
            read_some(load, &mut caller, format, &order.endless(1000), 1);
            thread::sleep(Duration::from_millis(20));
        }
    }
    drop(caller);
    count(&load.left);
    thread::sleep(Duration::from_millis(5));
}

/// Reads so many pieces of a stream that has no end.
fn read_some(load: &Load, caller: &mut Caller, format: Format, order: &Order, pieces: u64) {
    caller.send_run(format.media_type(), &order.value);
    match caller.receive_head() {
        Ok(head) if head.status == 200 => {}
        Ok(head) => match caller.receive_body(head) {
            Ok(response) => return load.refused(&order.text, &response),
            Err(error) => return load.wrong(&order.text, &format!("no body: {error}")),
        },
        Err(error) => return load.wrong(&order.text, &format!("no answer: {error}")),
    }
    let mut stream = Stream::new(caller, format);
    for number in 0..pieces {
        match stream.next() {
            Ok(Some(Piece::Chunk(chunk))) if chunk == order.piece(number) => count(&load.chunks),
            Ok(Some(Piece::Error(error))) => {
                return load.told(&order.text, error["error"].as_str().unwrap_or_default());
            }
            other => return load.wrong(&order.text, &format!("{other:?} behind {number} chunks")),
        }
    }
}

/// An action that dies in every way, and with it what else is in flight in its process; that writes what is
/// nobody's, floods its log, reads nothing for a while, or does not end what it was told to; requests that are none.
fn fails(load: &Load, n: u64) {
    let order = Order::new(load, "fails").pieces(n % 3, 10);
    let dies = |then: &'static str, expected: &str| {
        count(&load.deaths);
        Order::new(load, "dies").pieces(n % 3, 10).then(then).check_error(load, expected);
    };
    match n % 16 {
        0 => dies("exit", "exited with status 3"),
        1 => dies("kill", "SIGSEGV"),
        2 => dies("half", "exited with status 3"),
        3 => dies("close", "closed"),
        4 => dies("huge", "67108864 bytes"),
        5 => kill_one(load),
        6 => order.then("junk").call(load, n),
        7 => order.then("two").call(load, n),
        8 => order.then("flood").call(load, n),
        9 => order.then("stall").call(load, n),
        10 => order.then("fail").call(load, n),
        11 => order.then("broken").check_error(load, "with both `chunk` and `result`"),
        12 => timed_out(load, &order.then("none")),
        13 => timed_out(load, &order.then("deaf")),
        14 => {
            // Nobody waits for it, and it does not end: its process is replaced when it has done the rest.
            let mut caller = load.proxy.caller();
            order.then("deaf").send(&mut caller, n);
            caller.is_silent_for(Duration::from_millis(10));
            count(&load.left);
        }
        _ => bad_requests(load),
    }
    thread::sleep(Duration::from_millis(150));
}

/// An activation whose time is over long before it would end.
fn timed_out(load: &Load, order: &Order) {
    let mut caller = load.proxy.caller();
    let deadline = (now_ms() + 200).to_string();
    let body = json!({ "value": order.value, "deadline": deadline }).to_string();
    caller.send_request("POST", "/run", body.as_bytes());
    match caller.receive() {
        Ok(response) if response.status == 502 && response.error().contains("deadline") => {}
        Ok(response) => load.refused(&order.text, &response),
        Err(error) => load.wrong(&order.text, &format!("no answer: {error}")),
    }
}
