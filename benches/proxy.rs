//! The benchmark: pipeloop alone, or beside another proxy in the same run.
//!
//!     cargo bench --bench proxy -- --against 'go=/path/to/proxy'
//!
//! `docs/performance.md` says what is measured, how, and how to read it. The benchmark reports times and does not judge
//! them: it fails only on a wrong answer. It needs `cc` and, unless `--pin free`, `taskset`.

#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_macros,
    reason = "clippy.toml holds the powers of the proxy to one place each, and this is not the proxy"
)]

#[path = "proxy/client.rs"]
mod client;
#[path = "proxy/contestant.rs"]
mod contestant;
#[path = "proxy/machine.rs"]
mod machine;
#[path = "proxy/measure.rs"]
mod measure;
#[path = "proxy/report.rs"]
mod report;

use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use testkit::proxy::{Output, has_port_placeholder};

use contestant::{Actions, Contestant, Dialect};
use machine::Binary;
use measure::{Plan, Subject};
use report::{FREE, ONE_CORE, Report, Sheet};

/// An error here is reported to a person, and nothing else depends on it.
type Outcome<T = ()> = Result<T, Box<dyn std::error::Error>>;

/// Measures pipeloop, alone or against another proxy, and prints a table.
#[derive(Debug, Parser)]
#[command(name = "proxy", bin_name = "cargo bench --bench proxy --", max_term_width = 100)]
struct Options {
    /// Another proxy and the command that starts it, split at spaces, without a shell. `{port}`
    /// in it stands for a free port.
    #[arg(long, value_name = "NAME=CMD", value_parser = name_and_command)]
    against: Option<(String, Vec<String>)>,

    /// The port of the other proxy, where its command has no `{port}`.
    #[arg(long, value_name = "PORT", default_value_t = 8080)]
    against_port: u16,

    /// What the other proxy speaks with its action; decides what the two are compared in.
    #[arg(long, value_name = "NAME", default_value = "actionloop")]
    against_protocol: Dialect,

    /// Measure these only, separated by commas.
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    only: Vec<Subject>,

    /// In how many rounds the proxies take turns.
    #[arg(long, value_name = "N", default_value_t = 10)]
    rounds: usize,

    /// Small activations in a round. There are 1/10 as many of version 0, 1/100 of 1 MiB, 1/400 of 8 MiB.
    #[arg(long, value_name = "N", default_value_t = 2000)]
    count: usize,

    /// Caller, proxy and action on one core, wherever the kernel puts them, or first so and then so.
    #[arg(long, value_name = "WHERE", default_value = "both")]
    pin: Pin,

    /// Print JSON, with the values of each round, in place of the table.
    #[arg(long)]
    json: bool,

    /// Show what the proxies print, to see why one fails.
    #[arg(long)]
    show_output: bool,

    /// What cargo passes to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Pin {
    One,
    Free,
    Both,
}

fn main() -> ExitCode {
    match run(Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: Options) -> Outcome {
    let output = if options.show_output { Output::Inherit } else { Output::Discard };
    let program = env!("CARGO_BIN_EXE_pipeloop");
    let command = [program, "serve", "--host", "127.0.0.1", "--port", "{port}"];
    let pipeloop = Contestant {
        name: "pipeloop".to_owned(),
        command: command.map(str::to_owned).to_vec(),
        fixed_port: None,
        dialect: Dialect::Actionloop,
        output,
    };
    let other = options.against.map(|(name, command)| {
        let fixed_port = (!has_port_placeholder(&command)).then_some(options.against_port);
        Contestant { name, command, fixed_port, dialect: options.against_protocol, output }
    });
    let subjects = if options.only.is_empty() { Subject::value_variants().to_vec() } else { options.only };
    let plan = Plan {
        pipeloop,
        other,
        subjects,
        rounds: options.rounds.max(1),
        count: options.count.max(10),
        actions: Actions::build()?,
    };

    let machine = machine::description();
    let mut sheets = Vec::new();
    // The size of a binary needs no run.
    let runs = plan.subjects.iter().any(|subject| *subject != Subject::Size);
    if runs && options.pin != Pin::Free {
        let cores = machine::allowed_cores()?;
        machine::confine_to(machine::first_core(&cores))?;
        sheets.push(Sheet::new(ONE_CORE));
        plan.measure(&mut sheets[0])?;
        machine::confine_to(&cores)?;
    }
    if runs && options.pin != Pin::One {
        let mut sheet = Sheet::new(FREE);
        plan.measure(&mut sheet)?;
        sheets.push(sheet);
    }
    let contestants = || std::iter::once(&plan.pipeloop).chain(&plan.other);
    let binary = |contestant: &Contestant| Some((contestant.name.clone(), Binary::of(&contestant.command[0])?));
    let binaries = if plan.wants(Subject::Size) { contestants().filter_map(binary).collect() } else { Vec::new() };
    let report = Report {
        machine,
        rounds: plan.rounds,
        count: plan.count,
        names: (plan.pipeloop.name.clone(), plan.other.as_ref().map(|other| other.name.clone())),
        sheets,
        binaries,
    };
    if options.json {
        println!("{:#}", report.json());
    } else {
        print!("{}", report.table());
    }
    Ok(())
}

fn name_and_command(text: &str) -> Result<(String, Vec<String>), String> {
    let (name, command) = text.split_once('=').ok_or("expected NAME=CMD")?;
    let command: Vec<_> = command.split_whitespace().map(str::to_owned).collect();
    if name.is_empty() || command.is_empty() {
        return Err("expected NAME=CMD, got an empty name or command".to_owned());
    }
    Ok((name.to_owned(), command))
}
