//! The soak: mixed load with every fault at once for a long time, and what the proxy holds meanwhile.
//!
//!     cargo bench --bench soak -- --minutes 60
//!
//! Fails when a caller is handed what is not its own, when an error has no reason, when an action sees the
//! protocol broken, and when descriptors, memory or processes grow. `docs/reliability.md` has results and says how
//! to read them.

#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_macros,
    reason = "the powers that clippy.toml holds to one place each are those of the proxy, and this is none of it"
)]
#![allow(missing_docs, reason = "a program of its own")]

#[path = "soak/load.rs"]
mod load;
#[path = "soak/stream.rs"]
mod stream;
#[path = "../tests/support/mod.rs"]
#[allow(dead_code, unused_imports, reason = "a part of it is needed")]
mod support;
#[path = "soak/version_1.rs"]
mod version_1;
#[path = "soak/version_2.rs"]
mod version_2;

use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};

use load::{Load, Part};
use support::processes::{self, Holdings};
use support::{Proxy, compile};

/// Keeps pipeloop under load and faults, and prints what it holds.
#[derive(Debug, Parser)]
#[command(name = "soak", bin_name = "cargo bench --bench soak --", max_term_width = 100)]
struct Options {
    /// How long, for each protocol.
    #[arg(long, value_name = "N", default_value_t = 60)]
    minutes: u64,

    /// Versions of the native protocol, one after the other.
    #[arg(long, value_name = "1,2", value_delimiter = ',', default_value = "1,2")]
    protocol: Vec<Version>,

    /// How many samples are taken meanwhile.
    #[arg(long, value_name = "N", default_value_t = 12)]
    samples: u64,

    /// Processes of the action.
    #[arg(long, value_name = "N", default_value_t = 2)]
    workers: usize,

    /// Has the action of version 2 give every Nth frame to another activation, to see the soak fail.
    #[arg(long, value_name = "N", default_value_t = 0)]
    cross: u64,

    /// What cargo passes to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Version {
    /// The pipe loop.
    #[value(name = "1")]
    PipeLoop,
    /// Streams.
    #[value(name = "2")]
    Streams,
}

impl Version {
    fn number(self) -> u32 {
        match self {
            Self::PipeLoop => 1,
            Self::Streams => 2,
        }
    }

    /// Its executable in `tests/actions/`.
    fn action(self) -> &'static str {
        match self {
            Self::PipeLoop => version_1::ACTION,
            Self::Streams => version_2::ACTION,
        }
    }

    /// What callers do, each in a thread of its own.
    fn parts(self) -> &'static [Part] {
        match self {
            Self::PipeLoop => version_1::PARTS,
            Self::Streams => version_2::PARTS,
        }
    }
}

/// Passes what the proxy prints to somebody who reads and forgets it.
const FORGET: [&str; 3] = ["bash", "-c", "\"$0\" \"$@\" 2>&1 | cat > /dev/null; exit \"${PIPESTATUS[0]}\""];
/// As many looks at the proxy are alike before it counts as settled: more than the second after which it gives
/// memory back.
const SETTLED_LOOKS: u32 = 750;
/// What an allocator may keep for itself.
const GROWTH_KIB: u64 = 8 * 1024;

fn main() -> ExitCode {
    let options = Options::parse();
    let mut fails = false;
    for version in &options.protocol {
        for fault in soak(*version, &options) {
            eprintln!("soak: version {}: {fault}", version.number());
            fails = true;
        }
    }
    if fails { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// A proxy, its load, and what was wrong with it.
fn soak(version: Version, options: &Options) -> Vec<String> {
    let folder = tempfile::tempdir().expect("a folder of its own");
    let action = compile(version.action(), folder.path());
    let (workers, cross) = (options.workers.to_string(), options.cross.to_string());
    let mut proxy = Proxy::start_under(
        &FORGET,
        &[action.as_os_str()],
        &[
            ("PIPELOOP_WORKERS", &workers),
            ("PIPELOOP_QUEUE", "1000"),
            ("PIPELOOP_STRAY", "ignore"),
            ("CONCURRENCY", version_2::CONCURRENCY),
            ("CROSS", &cross),
        ],
    );
    let load = Load::new(&proxy);
    let samples = thread::scope(|scope| {
        let load = &load;
        for part in version.parts() {
            scope.spawn(move || load.repeat(*part));
        }
        let samples = watch(load, version, options);
        load.over.store(true, Ordering::Relaxed);
        samples
    });
    let faults = judge(&load, &samples, options.workers);
    proxy.stop();
    faults
}

/// Takes samples until time is over, while nobody calls.
fn watch(load: &Load, version: Version, options: &Options) -> Vec<Holdings> {
    let (begun, duration) = (Instant::now(), Duration::from_secs(options.minutes * 60));
    println!("\nVersion {} of the protocol:\n", version.number());
    let mut counts = vec![("answers", &load.answers)];
    if version == Version::Streams {
        counts.extend([("streams to their end", &load.streams), ("chunks", &load.chunks)]);
    }
    counts.extend([("errors told", &load.errors), ("deaths", &load.deaths), ("callers that left", &load.left)]);
    let names: Vec<_> = counts.iter().map(|(name, _)| *name).collect();
    println!("| minute | {} | descriptors | memory, KiB | peak, KiB | processes |", names.join(" | "));
    println!("|{}", "---|".repeat(names.len() + 5));
    let count = u32::try_from(options.samples).expect("few").max(1);
    let samples = (0..=count)
        .map(|n| {
            // The first one after a while, when everything has happened once.
            let at = if n == 0 { duration / 20 } else { duration * n / count };
            thread::sleep(at.saturating_sub(begun.elapsed()));
            let _quiet = load.quiet.write().expect("nobody panics with it");
            // Once it has noticed that everybody has left.
            let sample = processes::settled(load.proxy.pid(), SETTLED_LOOKS);
            let minute = begun.elapsed().as_secs_f64() / 60.0;
            let counts: Vec<_> = counts.iter().map(|(_, count)| count.load(Ordering::Relaxed).to_string()).collect();
            let Holdings { descriptors, memory_kib, peak_kib, children } = sample;
            println!(
                "| {minute:.1} | {} | {descriptors} | {memory_kib} | {peak_kib} | {children} |",
                counts.join(" | ")
            );
            sample
        })
        .collect();
    println!("\nErrors told, by how often:\n");
    for (reason, count) in load.reasons() {
        println!("- {count}: {reason}");
    }
    samples
}

fn judge(load: &Load, samples: &[Holdings], workers: usize) -> Vec<String> {
    let (first, last) = (samples[0], samples[samples.len() - 1]);
    let mut faults = Vec::new();
    let wrong = load.wrong.load(Ordering::Relaxed);
    if wrong > 0 {
        faults.push(format!("{wrong} answers were not their caller's own, or none at all"));
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
    faults
}
