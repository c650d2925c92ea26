//! The load of version 1: one activation at a time in each process.

use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use testkit::http::Caller;
use testkit::processes;

use crate::load::{Load, Task, count};

pub(crate) const ACTION: &str = "all_purpose.c";
pub(crate) const TASKS: &[Task] = &[kept, kept, fresh, large, leaves, fails];

/// A call whose answer must be what it asks for, or an error that says why.
fn call(load: &Load, caller: &mut Caller, text: &str) {
    let body = json!({ "value": {"echo": text} }).to_string();
    let response = caller.call("POST", "/run", body.as_bytes());
    if response.status != 200 {
        load.refused(text, &response);
    } else if response.json() == json!({ "echo": text }) {
        count(&load.answers);
    } else {
        load.wrong(text, &response.text());
    }
}

/// A call that is answered by one of these statuses.
fn check(load: &Load, value: &Value, expected: &[u16]) {
    let response = send(load, value).receive().expect("an answer");
    if !expected.contains(&response.status) {
        load.wrong(&value.to_string(), &format!("{} {}", response.status, response.text()));
    }
}

fn send(load: &Load, value: &Value) -> Caller {
    let mut caller = load.proxy.caller();
    caller.send_request("POST", "/run", json!({ "value": value }).to_string().as_bytes());
    caller
}

/// Many calls on one connection.
fn kept(load: &Load, _: u64) {
    let mut caller = load.proxy.caller();
    for _ in 0..200 {
        call(load, &mut caller, &load.text("kept"));
    }
}

/// A connection for each call.
fn fresh(load: &Load, _: u64) {
    for _ in 0..20 {
        call(load, &mut load.proxy.caller(), &load.text("fresh"));
    }
}

/// Bodies and answers of up to 4 MiB.
fn large(load: &Load, n: u64) {
    let size = 1 << (10 + n % 13);
    call(load, &mut load.proxy.caller(), &format!("{} {}", load.text("large"), "x".repeat(size)));
}

/// Callers that leave: without a word, in the middle of one, before their answer, in the middle of it.
fn leaves(load: &Load, n: u64) {
    match n % 4 {
        0 => drop(load.proxy.caller()),
        1 => drop(load.proxy.caller().send(b"POST /run HTTP/1.1\r\nHost: test\r\nContent-Length: 100\r\n\r\n{\"va")),
        2 => drop(send(load, &json!({"sleep_ms": 5}))),
        _ => drop(send(load, &json!({"answer_mib": 8})).is_silent_for(Duration::from_millis(20))),
    }
    count(&load.left);
    thread::sleep(Duration::from_millis(5));
}

/// An action that dies, is killed, answers too much, or floods its log; requests that are none.
fn fails(load: &Load, n: u64) {
    match n % 7 {
        0 | 6 => {
            count(&load.crashes);
            check(load, &json!({ "exit": n % 3 }), &[502]);
        }
        1 => kill_one(load),
        2 => check(load, &json!({"answer_mib": 65}), &[502]),
        3 => check(load, &json!({"flood_mib": 4}), &[200, 502]),
        4 => check(load, &json!({"say": "something"}), &[200, 502]),
        _ => bad_requests(load),
    }
    thread::sleep(Duration::from_millis(30));
}

/// Kills a process of the action, whichever activations it has, if any.
pub(crate) fn kill_one(load: &Load) {
    if let Some(action) = processes::children(load.proxy.pid()).first().and_then(|pid| Pid::from_raw(*pid)) {
        let _ = kill_process(action, Signal::KILL);
        count(&load.crashes);
    }
}

/// Requests that are none.
pub(crate) fn bad_requests(load: &Load) {
    let mut caller = load.proxy.caller();
    for (method, path, body, expected) in [("POST", "/run", "{\"value\":", 400), ("GET", "/nothing", "", 404)] {
        let response = caller.call(method, path, body.as_bytes());
        if response.status != expected || response.error().is_empty() {
            load.wrong(&format!("{method} {path} {body}"), &format!("{} {}", response.status, response.text()));
        }
    }
}
