//! The soak: mixed load with every fault at once for a long time, and the resources that the proxy holds meanwhile.
//!
//!     cargo bench --bench soak -- --minutes 60
//!
//! It fails when a caller gets the answer of another, when an error has no reason, when an action sees the protocol
//! broken, and when descriptors, memory or processes grow. `docs/reliability.md` has results and says how to read them.

#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_macros,
    reason = "clippy.toml holds the powers of the proxy to one place each, and this is not the proxy"
)]
#![allow(missing_docs, reason = "a program, whose items no other crate uses")]

#[path = "soak/load.rs"]
mod load;
#[path = "soak/stream.rs"]
mod stream;
#[path = "soak/version_1.rs"]
mod version_1;
#[path = "soak/version_2.rs"]
mod version_2;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use testkit::command::{compile_c, set_environment};
use testkit::processes::{self, ResourceUsage};
use testkit::proxy::{Launch, Output, Proxy};
use testkit::wait::WAIT_LIMIT;

use load::{Load, Task};

/// Keeps pipeloop under load and faults, and prints the resources that it holds.
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
    fn tasks(self) -> &'static [Task] {
        match self {
            Self::PipeLoop => version_1::TASKS,
            Self::Streams => version_2::TASKS,
        }
    }
}

/// Starts the proxy and discards what it prints, through a pipe as in a container.
const DISCARD: [&str; 3] = ["bash", "-c", "\"$0\" \"$@\" 2>&1 | cat > /dev/null; exit \"${PIPESTATUS[0]}\""];
/// How many samples of the proxy's resources in a row are the same before it counts as settled: longer than the second
/// after which it gives memory back.
const SETTLED_SAMPLES: u32 = 750;
/// The growth of memory that the allocator may cause.
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

/// Runs a proxy under load. Returns its faults.
fn soak(version: Version, options: &Options) -> Vec<String> {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let action = compile(version.action(), directory.path());
    let (workers, cross) = (options.workers.to_string(), options.cross.to_string());
    let settings = [
        ("PIPELOOP_WORKERS", workers.as_str()),
        ("PIPELOOP_QUEUE", "1000"),
        ("PIPELOOP_STRAY", "ignore"),
        ("CONCURRENCY", version_2::CONCURRENCY),
        ("CROSS", &cross),
    ];
    let proxy = start(directory.path(), &action, &settings).unwrap_or_else(|reason| panic!("{reason}"));
    let load = Load::new(&proxy);
    let samples = thread::scope(|scope| {
        let load = &load;
        for task in version.tasks() {
            scope.spawn(move || load.repeat(*task));
        }
        let samples = watch(load, version, options);
        load.over.store(true, Ordering::Relaxed);
        samples
    });
    let faults = judge(&load, &samples, options.workers);
    proxy.stop_in_order();
    faults
}

/// Starts `pipeloop serve` in a directory with an action and these variables, and waits until it listens.
fn start(directory: &Path, action: &Path, variables: &[(&str, &str)]) -> Result<Proxy, String> {
    let serve = [env!("CARGO_BIN_EXE_pipeloop"), "serve", "--host", "127.0.0.1", "--port", "0"];
    let words = DISCARD.iter().chain(&serve).chain(&["--port-file", "{port_file}"]);
    let words: Vec<_> = words.map(|word| (*word).to_owned()).collect();
    let launch = Launch::new(&words, None, &directory.join("port"))?;
    let mut command = launch.command();
    command.arg(action).current_dir(directory);
    set_environment(&mut command, variables);
    let mut proxy = launch.start(command, Output::Capture)?;
    proxy.await_port(Instant::now() + WAIT_LIMIT)?;
    proxy.look_behind_launcher("pipeloop")?;
    Ok(proxy)
}

/// Compiles a C program from `tests/actions/` into a static executable in a directory.
fn compile(name: &str, directory: &Path) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/actions").join(name);
    let target = directory.join("action");
    compile_c(&["-O1", "-static", "-Wall", "-Werror"], &target, &[&source])
        .unwrap_or_else(|error| panic!("{name}: {error}"));
    target
}

/// Takes samples until time is over, each while no activation runs.
fn watch(load: &Load, version: Version, options: &Options) -> Vec<ResourceUsage> {
    let (begun, duration) = (Instant::now(), Duration::from_secs(options.minutes * 60));
    println!("\nVersion {} of the protocol:\n", version.number());
    let mut counts = vec![("answers", &load.answers)];
    if version == Version::Streams {
        counts.extend([("streams to their end", &load.streams), ("chunks", &load.chunks)]);
    }
    counts.extend([("errors reported", &load.errors), ("crashes", &load.crashes), ("callers that left", &load.left)]);
    let names: Vec<_> = counts.iter().map(|(name, _)| *name).collect();
    println!("| minute | {} | descriptors | memory, KiB | peak, KiB | processes |", names.join(" | "));
    println!("|{}", "---|".repeat(names.len() + 5));
    let count = u32::try_from(options.samples).expect("few").max(1);
    let samples = (0..=count)
        .map(|n| {
            // The first sample comes after a while, when every task has run once.
            let at = if n == 0 { duration / 20 } else { duration * n / count };
            thread::sleep(at.saturating_sub(begun.elapsed()));
            let _quiet = load.quiet.write().expect("no task panics");
            // The proxy may still have to notice that the callers have left.
            let sample = processes::settled_usage(load.proxy.pid(), SETTLED_SAMPLES);
            let minute = begun.elapsed().as_secs_f64() / 60.0;
            let counts: Vec<_> = counts.iter().map(|(_, count)| count.load(Ordering::Relaxed).to_string()).collect();
            let ResourceUsage { descriptors, memory_kib, peak_kib, children } = sample;
            println!(
                "| {minute:.1} | {} | {descriptors} | {memory_kib} | {peak_kib} | {children} |",
                counts.join(" | ")
            );
            sample
        })
        .collect();
    println!("\nErrors reported, by how often:\n");
    for (reason, count) in load.reasons() {
        println!("- {count}: {reason}");
    }
    samples
}

fn judge(load: &Load, samples: &[ResourceUsage], workers: usize) -> Vec<String> {
    let (first, last) = (samples[0], samples[samples.len() - 1]);
    let mut faults = Vec::new();
    let wrong = load.wrong.load(Ordering::Relaxed);
    if wrong > 0 {
        faults.push(format!("{wrong} answers belonged to another caller, or were missing"));
    }
    // Each process of the action has four pipes, and may be starting or ending at the moment of either sample.
    if last.descriptors > first.descriptors + 4 * workers {
        faults.push(format!("descriptors grew from {} to {}", first.descriptors, last.descriptors));
    }
    if last.memory_kib > first.memory_kib + GROWTH_KIB {
        faults.push(format!("memory grew from {} to {} KiB", first.memory_kib, last.memory_kib));
    }
    if last.children > workers {
        faults.push(format!("{} processes are left, expected {workers}", last.children));
    }
    faults
}
