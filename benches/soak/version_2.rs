//! The load of version 2: many activations in flight in each process, and streams.
//!
//! Each activation has a text of its own. The text stands in each of its chunks with the chunk's number, and in its
//! result with the number of chunks. So the soak notices a chunk that belongs to another activation, and one that is
//! missing, doubled or out of order.

use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use testkit::http::Caller;
use testkit::stream::{StreamFormat, StreamItem};
use testkit::wait::now_ms;

use crate::load::{Load, Task, count};
use crate::stream::{Stream, format_of};
use crate::version_1::{bad_requests, kill_one};

pub(crate) const ACTION: &str = "streamer.c";
/// How many each process takes at once. All callers together want more than two processes take.
pub(crate) const CONCURRENCY: &str = "16";
pub(crate) const TASKS: &[Task] = &[kept, kept, fresh, streams, streams, large, slow, slow, leaves, fails];

/// An activation as its action is asked for it.
struct Order {
    text: String,
    chunks: u64,
    pad_bytes: usize,
    /// How it comes to its end; see the action.
    then: &'static str,
    value: Value,
}

/// How long a caller sleeps between two items, if it does.
type Nap = Option<Duration>;

impl Order {
    fn new(load: &Load, name: &str) -> Self {
        let text = load.text(name);
        let value = json!({ "text": text });
        Self { text, chunks: 0, pad_bytes: 0, then: "", value }
    }

    /// This many chunks, with so many bytes behind the text of each.
    fn chunks(mut self, chunks: u64, pad_bytes: usize) -> Self {
        (self.chunks, self.pad_bytes) = (chunks, pad_bytes);
        self.with("chunks", json!(chunks)).with("pad_bytes", json!(pad_bytes))
    }

    /// Chunks until the caller leaves.
    fn endless(self, pad_bytes: usize) -> Self {
        self.chunks(0, pad_bytes).with("chunks", json!(-1))
    }

    fn then(mut self, then: &'static str) -> Self {
        self.then = then;
        self.with("then", json!(then))
    }

    fn with(mut self, name: &str, value: Value) -> Self {
        self.value[name] = value;
        self
    }

    fn chunk(&self, number: u64) -> String {
        format!("{number} of {} {}", self.text, "x".repeat(self.pad_bytes))
    }

    /// The last item of its stream, unless the proxy reports an error.
    fn last(&self) -> Value {
        match self.then {
            "end" => Value::Null,
            "fail" => json!({ "error": self.text }),
            _ => json!({"chunks": self.chunks, "text": self.text}),
        }
    }

    /// Its answer, in one body.
    fn body(&self) -> Value {
        match self.then {
            "end" => json!({"body": (0..self.chunks).map(|number| self.chunk(number)).collect::<String>()}),
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

    /// Reads a stream to its end: all of its chunks, or those before an error with a reason. Returns whether its
    /// connection can be used again.
    fn follow(&self, load: &Load, caller: &mut Caller, format: StreamFormat, nap: Nap) -> bool {
        let followed = self.try_follow(load, caller, format, nap);
        if let Err(problem) = &followed {
            load.wrong(&self.text, problem);
        }
        followed.is_ok()
    }

    fn try_follow(&self, load: &Load, caller: &mut Caller, format: StreamFormat, nap: Nap) -> Result<(), String> {
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
            let item = stream.next().map_err(|error| format!("a body that is cut after {number} chunks: {error}"))?;
            match item {
                Some(StreamItem::Chunk(chunk)) if chunk == self.chunk(number) => number += 1,
                Some(StreamItem::Result(last)) if number == self.chunks && last == self.last() => count(&load.streams),
                Some(StreamItem::Error(last)) if self.then == "fail" && last == self.text => count(&load.streams),
                Some(StreamItem::Error(error)) => load.failed(&self.text, error.as_str().unwrap_or_default()),
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

    /// Runs an activation that must fail with an error that holds this text.
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
        Order::new(load, "fresh").chunks(m % 9, 10).then("end").call(load, m);
    }
}

/// Kept connections with a stream on each, whose items alternate.
fn streams(load: &Load, n: u64) {
    let mut callers = callers(load, 8);
    for round in 0..10 {
        let orders: Vec<_> = (n + round..)
            .zip(&mut callers)
            .map(|(m, caller)| {
                let pad_bytes = 1 << (m % 14);
                let order = Order::new(load, "stream").chunks(1 + m * 5 % 37, pad_bytes).with("every_ms", json!(m % 3));
                let order = order.then(["", "end", "fail"][usize::try_from(m % 3).expect("it is small")]);
                caller.send_run(format_of(m).media_type(), &order.value);
                (m, order)
            })
            .collect();
        for ((m, order), caller) in orders.iter().zip(&mut callers) {
            if !order.follow(load, caller, format_of(*m), None) {
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
    let chunks = u64::try_from((MAX / pad_bytes).min(64)).expect("few");
    let order = || Order::new(load, "large").chunks(chunks, pad_bytes);
    match n % 3 {
        0 => {
            let mut caller = load.proxy.caller();
            let order = order();
            caller.send_run(format_of(n / 3).media_type(), &order.value);
            order.follow(load, &mut caller, format_of(n / 3), None);
        }
        1 => order().then("end").call(load, n),
        _ => Order::new(load, "large").with("ballast", json!("x".repeat(pad_bytes))).call(load, n),
    }
}

/// Callers that read a whole stream, but more slowly than the action writes: it pauses and resumes.
fn slow(load: &Load, n: u64) {
    let mut caller = Caller::connect_narrow(load.proxy.port()).expect("the proxy accepts a connection");
    // Some actions ignore the pause and write on: the caller then gets the error that it fell behind.
    let stubborn = i32::from(n % 8 == 7);
    let order = Order::new(load, "slow").chunks(150, 8 << 10).with("stubborn", json!(stubborn));
    caller.send_run(format_of(n).media_type(), &order.value);
    order.follow(load, &mut caller, format_of(n), Some(Duration::from_millis(1 + n % 3)));
}

/// Callers that leave: without a word, in the middle of one, before their answer, in the middle of a stream that
/// has no end, in the middle of a chunk, with all of their buffers full.
fn leaves(load: &Load, n: u64) {
    let mut caller = load.proxy.caller();
    let format = format_of(n / 6);
    let order = Order::new(load, "leaves");
    match n % 6 {
        0 => {}
        1 => drop(caller.send(b"POST /run HTTP/1.1\r\nHost: test\r\nContent-Length: 100\r\n\r\n{\"va")),
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

/// Reads this many chunks of a stream that has no end.
fn read_some(load: &Load, caller: &mut Caller, format: StreamFormat, order: &Order, chunks: u64) {
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
    for number in 0..chunks {
        match stream.next() {
            Ok(Some(StreamItem::Chunk(chunk))) if chunk == order.chunk(number) => count(&load.chunks),
            Ok(Some(StreamItem::Error(error))) => {
                return load.failed(&order.text, error.as_str().unwrap_or_default());
            }
            other => return load.wrong(&order.text, &format!("{other:?} behind {number} chunks")),
        }
    }
}

/// An action that dies in every way, together with the other activations of its process; that writes stray frames,
/// floods its log, stops reading for a while, or ignores a cancellation; and malformed requests.
fn fails(load: &Load, n: u64) {
    let order = Order::new(load, "fails").chunks(n % 3, 10);
    let dies = |then: &'static str, expected: &str| {
        count(&load.crashes);
        Order::new(load, "dies").chunks(n % 3, 10).then(then).check_error(load, expected);
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
            // Its caller leaves and it does not end: its process is replaced when the other activations are done.
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
