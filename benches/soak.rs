//! The soak: mixed load with every fault at once for a long time, and what the proxy holds meanwhile.
//!
//!     cargo bench --bench soak -- --minutes 60
//!
//! Fails when a caller is handed what is not its own, when an error has no reason, and when
//! descriptors, memory or processes grow. `docs/reliability.md` has results and says how to read them.

#![allow(missing_docs, reason = "a program of its own")]

#[path = "../tests/support/mod.rs"]
#[allow(dead_code, unused_imports, reason = "a part of it is needed")]
mod support;

use std::process::ExitCode;
use std::sync::RwLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use support::processes::{self, Holdings};
use support::{Caller, Proxy, compile};

/// Keeps pipeloop under load and faults, and prints what it holds.
#[derive(Debug, Parser)]
#[command(name = "soak", bin_name = "cargo bench --bench soak --", max_term_width = 100)]
struct Options {
    /// How long.
    #[arg(long, value_name = "N", default_value_t = 60)]
    minutes: u64,

    /// How many samples are taken meanwhile.
    #[arg(long, value_name = "N", default_value_t = 12)]
    samples: u64,

    /// Processes of the action.
    #[arg(long, value_name = "N", default_value_t = 2)]
    workers: usize,

    /// What cargo passes to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

/// Passes what the proxy prints to somebody who reads and forgets it.
const FORGET: [&str; 3] = ["bash", "-c", "\"$0\" \"$@\" 2>&1 | cat > /dev/null; exit \"${PIPESTATUS[0]}\""];
/// As many looks at the proxy are alike before it counts as settled: more than the second after which it gives
/// memory back.
const SETTLED_LOOKS: u32 = 750;
/// What an allocator may keep for itself.
const GROWTH_KIB: u64 = 8 * 1024;

/// What all callers share.
struct Load<'a> {
    proxy: &'a Proxy,
    /// Held for reading by each call; whoever holds it for writing has the proxy to itself.
    quiet: RwLock<()>,
    over: AtomicBool,
    answers: AtomicU64,
    errors: AtomicU64,
    deaths: AtomicU64,
    left: AtomicU64,
    wrong: AtomicU64,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let folder = tempfile::tempdir().expect("a folder of its own");
    let action = compile("butler.c", folder.path());
    let workers = options.workers.to_string();
    let proxy = Proxy::start_under(
        &FORGET,
        &[action.as_os_str()],
        &[("PIPELOOP_WORKERS", &workers), ("PIPELOOP_QUEUE", "1000"), ("PIPELOOP_STRAY", "ignore")],
    );
    let load = Load {
        proxy: &proxy,
        quiet: RwLock::new(()),
        over: AtomicBool::new(false),
        answers: AtomicU64::new(0),
        errors: AtomicU64::new(0),
        deaths: AtomicU64::new(0),
        left: AtomicU64::new(0),
        wrong: AtomicU64::new(0),
    };
    let samples = thread::scope(|scope| {
        let load = &load;
        let parts: [fn(&Load, u64); 6] = [kept, kept, fresh, large, leaves, fails];
        for part in parts {
            scope.spawn(move || {
                let mut n = 0;
                while !load.over.load(Ordering::Relaxed) {
                    let _loud = load.quiet.read().expect("nobody panics with it");
                    part(load, n);
                    n += 1;
                }
            });
        }
        let samples = watch(load, Duration::from_secs(options.minutes * 60), options.samples);
        load.over.store(true, Ordering::Relaxed);
        samples
    });
    judge(&load, &samples, options.workers)
}

/// Takes samples until time is over, while nobody calls.
fn watch(load: &Load, duration: Duration, count: u64) -> Vec<Holdings> {
    let begun = Instant::now();
    println!(
        "| minute | answers | errors told | deaths | callers that left | descriptors | memory, KiB | peak, KiB | processes |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    (0..=count)
        .map(|n| {
            // The first one after a while, when everything has happened once.
            let at = if n == 0 {
                duration / 20
            } else {
                duration * u32::try_from(n).expect("few") / u32::try_from(count).expect("few")
            };
            thread::sleep(at.saturating_sub(begun.elapsed()));
            let _quiet = load.quiet.write().expect("nobody panics with it");
            // Once it has noticed that everybody has left.
            let sample = processes::settled(load.proxy.pid(), SETTLED_LOOKS);
            let minute = begun.elapsed().as_secs_f64() / 60.0;
            let counts = [&load.answers, &load.errors, &load.deaths, &load.left]
                .map(|count| count.load(Ordering::Relaxed).to_string());
            let Holdings { descriptors, memory_kib, peak_kib, children } = sample;
            println!(
                "| {minute:.1} | {} | {descriptors} | {memory_kib} | {peak_kib} | {children} |",
                counts.join(" | ")
            );
            sample
        })
        .collect()
}

fn judge(load: &Load, samples: &[Holdings], workers: usize) -> ExitCode {
    let (first, last) = (samples[0], samples[samples.len() - 1]);
    let mut faults = Vec::new();
    if load.wrong.load(Ordering::Relaxed) > 0 {
        faults.push(format!("{} answers were not their caller's own", load.wrong.load(Ordering::Relaxed)));
    }
    // Each process of the action has four pipes, and each may be on its way at either moment.
    if last.descriptors > first.descriptors + 4 * workers {
        faults.push(format!("descriptors grew from {} to {}", first.descriptors, last.descriptors));
    }
    if last.memory_kib > first.memory_kib + GROWTH_KIB {
        faults.push(format!("memory grew from {} to {} KiB", first.memory_kib, last.memory_kib));
    }
    if last.children > workers {
        faults.push(format!("{} processes are left, and {workers} are meant to be", last.children));
    }
    for fault in &faults {
        eprintln!("soak: {fault}");
    }
    if faults.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

impl Load<'_> {
    /// A call whose answer must be what it asks for, or an error that says why.
    fn call(&self, caller: &mut Caller, text: &str) {
        let body = json!({ "value": {"echo": text} }).to_string();
        let response = caller.call("POST", "/run", body.as_bytes());
        let own = match response.status {
            200 => {
                self.answers.fetch_add(1, Ordering::Relaxed);
                response.json() == json!({ "echo": text })
            }
            429 | 502 => {
                self.errors.fetch_add(1, Ordering::Relaxed);
                !response.error().is_empty()
            }
            _ => false,
        };
        if !own {
            eprintln!(
                "soak: {} is no answer to {}: {}",
                response.status,
                support::proxy::excerpt(text),
                support::proxy::excerpt(&response.text())
            );
            self.wrong.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A call that is answered by one of these statuses.
    fn check(&self, value: &Value, expected: &[u16]) {
        let response = self.send(value).receive().expect("an answer");
        if !expected.contains(&response.status) {
            eprintln!("soak: {value} is answered by {}: {}", response.status, response.text());
            self.wrong.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn send(&self, value: &Value) -> Caller {
        let mut caller = self.proxy.caller();
        caller.send_request("POST", "/run", json!({ "value": value }).to_string().as_bytes());
        caller
    }
}

/// Many calls on one connection.
fn kept(load: &Load, n: u64) {
    let mut caller = load.proxy.caller();
    for m in 0..200 {
        load.call(&mut caller, &format!("kept {n} {m} {:?}", thread::current().id()));
    }
}

/// A connection for each call.
fn fresh(load: &Load, n: u64) {
    for m in 0..20 {
        load.call(&mut load.proxy.caller(), &format!("fresh {n} {m}"));
    }
}

/// Bodies and answers of up to 4 MiB.
fn large(load: &Load, n: u64) {
    let size = 1 << (10 + n % 13);
    load.call(&mut load.proxy.caller(), &format!("large {n} {}", "x".repeat(size)));
}

/// Callers that leave: without a word, in the middle of one, before their answer, in the middle of it.
fn leaves(load: &Load, n: u64) {
    match n % 4 {
        0 => drop(load.proxy.caller()),
        1 => drop(load.proxy.caller().send(b"POST /run HTTP/1.1\r\nContent-Length: 100\r\n\r\n{\"va")),
        2 => drop(load.send(&json!({"sleep_ms": 5}))),
        _ => drop(load.send(&json!({"answer_mib": 8})).is_silent_for(Duration::from_millis(20))),
    }
    load.left.fetch_add(1, Ordering::Relaxed);
    thread::sleep(Duration::from_millis(5));
}

/// An action that dies, is killed, answers too much, or floods its log; requests that are none.
fn fails(load: &Load, n: u64) {
    match n % 7 {
        0 | 6 => {
            load.deaths.fetch_add(1, Ordering::Relaxed);
            load.check(&json!({ "exit": n % 3 }), &[502]);
        }
        1 => {
            // Whichever activation it has, if any.
            if let Some(action) = processes::children(load.proxy.pid()).first().and_then(|pid| Pid::from_raw(*pid)) {
                let _ = kill_process(action, Signal::KILL);
                load.deaths.fetch_add(1, Ordering::Relaxed);
            }
        }
        2 => load.check(&json!({"answer_mib": 65}), &[502]),
        3 => load.check(&json!({"flood_mib": 4}), &[200, 502]),
        4 => load.check(&json!({"say": "something"}), &[200, 502]),
        _ => {
            let mut caller = load.proxy.caller();
            assert_eq!(caller.call("POST", "/run", b"{\"value\":").status, 400);
            assert_eq!(caller.call("GET", "/nothing", b"").status, 404);
        }
    }
    thread::sleep(Duration::from_millis(30));
}
