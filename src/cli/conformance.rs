//! `pipeloop conformance --proxy URL|CMD [CASE]…`: the test cases of the protocol against any proxy.

use std::path::PathBuf;
use std::time::Instant;

use clap::Args;
use serde::Serialize;

use crate::config::Time;
use crate::error::{Error, ProxyError};
use conformance::case::{self, Case};
use conformance::{Target, Verdict, play};

use super::output::{self, Printed};

/// Play the test cases of the protocol against any proxy with /init and /run.
///
/// Each case uploads a small shell script as the action, sends requests, and compares the responses and the log
/// with the expected ones. A command is started again for each case, in a directory of its own.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  pipeloop conformance --list
  pipeloop conformance --proxy 'pipeloop serve --host 127.0.0.1 --port {port}'
  pipeloop conformance --proxy ./proxy --port 8080 --protocol actionloop
  pipeloop conformance --proxy ./proxy --port 8080 P6 actionloop/echo
  pipeloop conformance --proxy http://localhost:8080 actionloop/echo

The basic case of each protocol comes first. If the proxy fails it, the proxy does not speak that protocol, and
the other cases of the protocol are not run. A case named on the command line runs without the basic case.

A running proxy (a URL) accepts one action in its life, so only the cases without an action and the first case
with one are played. The proxy must see the same file system, and its log cannot be checked.

Exit status: 0 no case failed, 1 one failed, 2 a wrong command line. docs/conformance.md says more.")]
pub(super) struct Conformance {
    /// URL of a running proxy, or a command that starts one. `{port}` in the command stands for a free port,
    /// `{port_file}` for a file into which the proxy writes its port.
    #[arg(long, value_name = "URL|CMD", required_unless_present = "list")]
    proxy: Option<String>,

    /// Cases to play: a name (`v1/echo`), the beginning of a name (`v1/`), or the number of a known fault (`P6`).
    /// All cases unless given.
    #[arg(value_name = "CASE")]
    cases: Vec<String>,

    /// Port of a command that always uses the same port.
    #[arg(long, value_name = "PORT")]
    port: Option<u16>,

    /// Only cases whose action speaks this protocol: 0, 1, 2, actionloop or auto. May be repeated.
    #[arg(long, value_name = "NAME")]
    protocol: Vec<String>,

    /// Time limit of one case. A proxy that has not answered by then fails the case.
    #[arg(long, default_value = "10s", value_name = "TIME", value_parser = crate::config::some_time)]
    timeout: Time,

    /// Directory with the cases (GROUP/NAME.json), in place of the built-in ones.
    #[arg(long = "cases", value_name = "DIR")]
    directory: Option<PathBuf>,

    /// List the cases with their titles, and play none.
    #[arg(long)]
    list: bool,

    /// Print one JSON document in place of the table.
    #[arg(long)]
    json: bool,
}

impl Conformance {
    pub(super) fn execute(self) -> Result<u8, Error> {
        let bad = |setting, reason| Error::Proxy(ProxyError::BadSetting { setting, reason });
        let unwritten = |reason| Error::Proxy(ProxyError::System { doing: "write the table", reason });
        let all = match &self.directory {
            Some(directory) => case::read(directory).map_err(|reason| bad("--cases", reason))?,
            None => case::built_in(),
        };
        let known = |word: &&String| !all.iter().any(|case| case.is_meant_by(word));
        if let Some(word) = self.cases.iter().find(known) {
            return Err(bad(
                "CASE",
                format!("no case matches `{word}`; `pipeloop conformance --list` shows all of them"),
            ));
        }
        let known = |name: &&String| !all.iter().any(|case| &case.protocol == *name);
        if let Some(name) = self.protocol.iter().find(known) {
            return Err(bad("--protocol", format!("no case speaks `{name}`")));
        }
        let cases: Vec<_> = all.iter().filter(|case| self.wants(case)).collect();
        if self.list {
            let listed: Vec<_> = cases.iter().map(|case| Listed::new(case)).collect();
            let printed = if self.json {
                output::result(&serde_json::to_vec(&listed).expect("a list is plain data"))
            } else {
                output::cases(cases.iter().map(|case| (&*case.name, &*case.title)))
            };
            return output::unless_closed(printed).map(|_| 0).map_err(unwritten);
        }
        let proxy = self.proxy.as_deref().expect("clap requires it");
        let mut target = Target::parse(proxy, self.port).map_err(|reason| bad("--proxy", reason))?;
        // Otherwise each case would fail, and some only at the end of their time.
        target.reach(self.timeout.0).map_err(|reason| bad("--proxy", reason))?;
        self.play(&cases, &target).map_err(unwritten)
    }

    fn wants(&self, case: &Case) -> bool {
        let by_name = self.cases.is_empty() || self.cases.iter().any(|word| case.is_meant_by(word));
        by_name && (self.protocol.is_empty() || self.protocol.contains(&case.protocol))
    }

    fn play(&self, cases: &[&Case], target: &Target) -> std::io::Result<u8> {
        let width = cases.iter().map(|case| case.name.len()).max().unwrap_or(0);
        let mut results = Vec::new();
        let mut initialised_by: Option<&str> = None;
        // With one proxy for all cases, those without an action come first.
        let (later, first): (Vec<&Case>, Vec<&Case>) = cases.iter().copied().partition(|case| case.initialises());
        let order: Vec<&Case> = match target {
            Target::Url { .. } => first.into_iter().chain(later).collect(),
            Target::Command { .. } => {
                let (basic, others): (Vec<&Case>, Vec<&Case>) = cases.iter().copied().partition(|case| case.basic);
                basic.into_iter().chain(others).collect()
            }
        };
        // The basic cases that failed. The other cases of their protocol would fail too.
        let mut failed_basics: Vec<&Case> = Vec::new();
        for case in order {
            let started = Instant::now();
            let basic = failed_basics.iter().find(|basic| !case.action.is_empty() && basic.protocol == case.protocol);
            let verdict = match (target, initialised_by, basic) {
                (Target::Command { .. }, _, Some(basic)) => Verdict::NotRun(format!(
                    "the proxy does not speak {}, as {} shows",
                    protocol_in_words(&basic.protocol),
                    basic.name
                )),
                (Target::Url { .. }, Some(other), _) if case.initialises() && case.needs_a_start().is_none() => {
                    Verdict::NotRun(format!("the proxy already has the action of {other}: restart it"))
                }
                _ => play(case, target, self.timeout.0),
            };
            if case.basic && matches!(verdict, Verdict::Failed(_)) {
                failed_basics.push(case);
            }
            if case.initialises() && !matches!(verdict, Verdict::NotRun(_)) {
                initialised_by.get_or_insert(&case.name);
            }
            results.push(Played::new(case, &verdict, started.elapsed()));
            if !self.json
                && output::unless_closed(output::case(&case.name, width, &verdict, started.elapsed()))?
                    == Printed::NoReader
            {
                break;
            }
        }
        let count = |status| results.iter().filter(|played| played.status == status).count();
        let summary =
            Summary { passed: count(Status::Passed), failed: count(Status::Failed), not_run: count(Status::NotRun) };
        let status = u8::from(summary.failed > 0);
        if self.json {
            let document = Document {
                proxy: self.proxy.as_deref().unwrap_or_default(),
                pipeloop: env!("CARGO_PKG_VERSION"),
                cases: results,
                summary,
                exit_status: status,
            };
            output::unless_closed(output::result(&serde_json::to_vec(&document).expect("a report is plain data")))?;
        } else {
            output::unless_closed(output::cases_summary(summary.passed, summary.failed, summary.not_run))?;
        }
        Ok(status)
    }
}

/// The name of a protocol in a sentence.
fn protocol_in_words(protocol: &str) -> String {
    if protocol.starts_with(|first: char| first.is_ascii_digit()) {
        format!("version {protocol}")
    } else {
        format!("the {protocol} dialect")
    }
}

/// The verdict on a case, for machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Status {
    Passed,
    Failed,
    NotRun,
}

/// The report for machines. Members may be added; none changes its meaning.
#[derive(Serialize)]
struct Document<'a> {
    proxy: &'a str,
    pipeloop: &'static str,
    cases: Vec<Played<'a>>,
    summary: Summary,
    exit_status: u8,
}

#[derive(Serialize)]
struct Listed<'a> {
    name: &'a str,
    title: &'a str,
    protocol: &'a str,
    field: &'a [String],
}

impl<'a> Listed<'a> {
    fn new(case: &'a Case) -> Self {
        Self { name: &case.name, title: &case.title, protocol: &case.protocol, field: &case.field }
    }
}

#[derive(Serialize)]
struct Played<'a> {
    #[serde(flatten)]
    case: Listed<'a>,
    status: Status,
    /// Why the case failed or was not run, or what could not be checked.
    reason: Option<String>,
    ms: f64,
}

impl<'a> Played<'a> {
    fn new(case: &'a Case, verdict: &Verdict, took: std::time::Duration) -> Self {
        let (status, reason) = match verdict {
            Verdict::Passed => (Status::Passed, None),
            Verdict::PassedAsSeen(reason) => (Status::Passed, Some(reason.clone())),
            Verdict::Failed(reason) => (Status::Failed, Some(reason.clone())),
            Verdict::NotRun(reason) => (Status::NotRun, Some(reason.clone())),
        };
        Self { case: Listed::new(case), status, reason, ms: took.as_micros() as f64 / 1e3 }
    }
}

#[derive(Serialize)]
struct Summary {
    passed: usize,
    failed: usize,
    not_run: usize,
}
