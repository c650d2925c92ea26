//! The report: a table for people, or JSON.

use std::collections::HashMap;
use std::fmt::Write;

use serde_json::{Value, json};

use crate::machine::Binary;

/// The proxy that a value belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Side {
    Pipeloop,
    Other,
}

/// A line of the table.
struct Measure {
    key: &'static str,
    label: &'static str,
    unit: &'static str,
    decimals: usize,
    /// The goal of the project on one core.
    goal: Option<Goal>,
    /// The line of pipeloop that this line is compared with, in place of the other proxy's.
    beside: Option<&'static str>,
}

#[derive(Debug, Clone, Copy)]
enum Goal {
    /// At most this part of the value beside it.
    Ratio(f64),
    /// At least this many times the value beside it.
    Times(f64),
    /// At most this, in the unit of the measure.
    Max(f64),
}

const fn measure(
    key: &'static str,
    label: &'static str,
    unit: &'static str,
    decimals: usize,
    goal: Option<Goal>,
) -> Measure {
    Measure { key, label, unit, decimals, goal, beside: None }
}

impl Measure {
    const fn beside(self, key: &'static str) -> Self {
        Self { beside: Some(key), ..self }
    }
}

/// All lines, in order. Less is better everywhere but in rates.
const MEASURES: &[Measure] = &[
    measure("cold init", "cold start to /init", "ms", 2, Some(Goal::Ratio(0.5))),
    measure("cold run", "cold start to first /run", "ms", 2, Some(Goal::Ratio(0.5))),
    measure("cold init ack", "  with acknowledgement, to /init", "ms", 2, None),
    measure("cold run ack", "  with acknowledgement, to first /run", "ms", 2, None),
    measure("cold init v1", "  version 1, to /init", "ms", 2, None),
    measure("cold run v1", "  version 1, to first /run", "ms", 2, None),
    measure("warm p50", "warm activation, p50", "µs", 1, Some(Goal::Ratio(0.65))),
    measure("warm p99", "warm activation, p99", "µs", 1, None),
    measure("warm cpu", "warm activation, proxy's CPU time", "µs", 1, None),
    measure("v1 p50", "  version 1, p50", "µs", 1, None),
    measure("v1 p99", "  version 1, p99", "µs", 1, None),
    measure("v1 cpu", "  version 1, proxy's CPU time", "µs", 1, None),
    measure("v2 p50", "  version 2, p50, by version 1's", "µs", 1, Some(Goal::Ratio(1.1))).beside("v1 p50"),
    measure("v2 p99", "  version 2, p99, by version 1's", "µs", 1, None).beside("v1 p99"),
    measure("v2 cpu", "  version 2, CPU time, by version 1's", "µs", 1, None).beside("v1 cpu"),
    measure("echo 1", "echo of 1 MiB, p50", "ms", 3, Some(Goal::Ratio(0.5))),
    measure("v1 echo 1", "  version 1", "ms", 3, None),
    measure("v2 echo 1", "  version 2", "ms", 3, None),
    measure("echo 8", "echo of 8 MiB, p50", "ms", 2, None),
    measure("v1 echo 8", "  version 1", "ms", 2, None),
    measure("v2 echo 8", "  version 2", "ms", 2, None),
    measure("v1 rate", "64 callers, 5 ms each, version 1", "1/s", 0, None),
    measure("v2 rate", "  version 2, by version 1's", "1/s", 0, Some(Goal::Times(3.0))).beside("v1 rate"),
    measure("first chunk", "first chunk of a stream, p50", "ms", 3, Some(Goal::Max(1.0))),
    measure("first chunk p99", "  p99", "ms", 3, None),
    measure("single", "version 0 (more is better)", "1/s", 0, None),
    measure("no library", "refused 1 MiB: missing library", "ms", 2, Some(Goal::Max(50.0))),
    measure("no interpreter", "  missing interpreter", "ms", 2, Some(Goal::Max(50.0))),
    measure("error page", "  HTML page", "ms", 2, Some(Goal::Max(50.0))),
    measure("idle rss", "idle memory (RSS)", "KiB", 0, Some(Goal::Ratio(0.4))),
    measure("idle pss", "idle memory (PSS)", "KiB", 0, None),
    measure("peak", "peak memory after 8 MiB (RSS)", "KiB", 0, None),
];

/// The size limit of the binary.
const MAX_BINARY_BYTES: u64 = 4 * 1024 * 1024;

/// All values of one setting, a value for each round.
pub(crate) struct Sheet {
    /// The setting: `one core` or `free`.
    pub(crate) title: &'static str,
    values: HashMap<(&'static str, Side), Vec<f64>>,
}

impl Sheet {
    pub(crate) fn new(title: &'static str) -> Self {
        Self { title, values: HashMap::new() }
    }

    /// Adds the value of this round.
    pub(crate) fn add(&mut self, key: &'static str, side: Side, value: f64) {
        assert!(MEASURES.iter().any(|measure| measure.key == key), "{key} has a line in the table");
        self.values.entry((key, side)).or_default().push(value);
    }

    fn summary(&self, key: &'static str, side: Side) -> Option<Summary> {
        self.values.get(&(key, side)).map(|values| Summary::of(values.clone()))
    }

    /// The ratio of pipeloop's values to those they are compared with, round by round.
    fn ratio(&self, measure: &Measure) -> Option<Summary> {
        let other = measure.beside.map_or((measure.key, Side::Other), |key| (key, Side::Pipeloop));
        let (pipeloop, other) = (self.values.get(&(measure.key, Side::Pipeloop))?, self.values.get(&other)?);
        Some(Summary::of(pipeloop.iter().zip(other).map(|(pipeloop, other)| pipeloop / other).collect()))
    }
}

struct Summary {
    median: f64,
    min: f64,
    max: f64,
}

impl Summary {
    fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let middle = values.len() / 2;
        let median =
            if values.len() % 2 == 1 { values[middle] } else { f64::midpoint(values[middle - 1], values[middle]) };
        Self { median, min: values[0], max: values[values.len() - 1] }
    }

    fn json(&self) -> Value {
        json!({ "median": self.median, "min": self.min, "max": self.max })
    }
}

/// Everything that is reported.
pub(crate) struct Report {
    pub(crate) machine: String,
    pub(crate) rounds: usize,
    pub(crate) count: usize,
    /// The names of pipeloop and of the other proxy.
    pub(crate) names: (String, Option<String>),
    pub(crate) sheets: Vec<Sheet>,
    pub(crate) binaries: Vec<(String, Binary)>,
}

impl Report {
    /// The table.
    pub(crate) fn table(&self) -> String {
        let mut out = String::new();
        let mut line =
            |text: std::fmt::Arguments<'_>| writeln!(out, "{}", text.to_string().trim_end()).expect("memory");
        line(format_args!("{}; {} rounds of {} activations", self.machine, self.rounds, self.count));
        let (pipeloop, other) = (&self.names.0, self.names.1.as_deref().unwrap_or(""));
        for sheet in &self.sheets {
            line(format_args!(""));
            line(format_args!(
                "{:<38} {:>4} {pipeloop:>10} {other:>10}  {:<22} {}",
                sheet.title, "", "ratio [min–max]", "reach",
            ));
            for measure in MEASURES {
                let Some(pipeloop) = sheet.summary(measure.key, Side::Pipeloop) else { continue };
                let number = |summary: &Summary| format!("{:.*}", measure.decimals, summary.median);
                let other = sheet.summary(measure.key, Side::Other).map_or(String::new(), |summary| number(&summary));
                let ratio = sheet
                    .ratio(measure)
                    .map_or(String::new(), |ratio| format!("{:.2} [{:.2}–{:.2}]", ratio.median, ratio.min, ratio.max));
                let reach = match measure.goal.filter(|_| sheet.title == ONE_CORE) {
                    Some(Goal::Ratio(reach)) if !ratio.is_empty() => format!("reach {reach}"),
                    Some(Goal::Times(reach)) if !ratio.is_empty() => format!("reach {reach} at least"),
                    Some(Goal::Max(reach)) => format!("reach {reach} {}", measure.unit),
                    _ => String::new(),
                };
                line(format_args!(
                    "{:<38} {:>4} {:>10} {other:>10}  {ratio:<22} {reach}",
                    measure.label,
                    measure.unit,
                    number(&pipeloop),
                ));
            }
        }
        if !self.binaries.is_empty() {
            line(format_args!(""));
        }
        for (name, binary) in &self.binaries {
            let reach = if *name == self.names.0 { format!(", reach {MAX_BINARY_BYTES}") } else { String::new() };
            line(format_args!("{name}: {} bytes, {}{reach}", binary.bytes, binary.kind()));
        }
        out
    }

    /// The same for programs, with every value.
    pub(crate) fn json(&self) -> Value {
        let sheets = self.sheets.iter().map(|sheet| {
            let lines = MEASURES.iter().filter(|measure| sheet.values.contains_key(&(measure.key, Side::Pipeloop)));
            let lines = lines.map(|measure| {
                let side = |side| {
                    sheet.summary(measure.key, side).map(|summary| {
                        let mut value = summary.json();
                        value["rounds"] = json!(sheet.values[&(measure.key, side)]);
                        value
                    })
                };
                let (ratio, min, max) = match measure.goal.filter(|_| sheet.title == ONE_CORE) {
                    Some(Goal::Ratio(ratio)) => (Some(ratio), None, None),
                    Some(Goal::Times(min)) => (None, Some(min), None),
                    Some(Goal::Max(max)) => (None, None, Some(max)),
                    None => (None, None, None),
                };
                let line = json!({
                    "unit": measure.unit,
                    "ours": side(Side::Pipeloop),
                    "other": side(Side::Other),
                    "ratio": sheet.ratio(measure).map(|ratio| ratio.json()),
                    "beside": measure.beside.map(|key| key.replace(' ', "_")),
                    "reach": ratio,
                    "reach_least": min,
                    "reach_most": max,
                });
                (measure.key.replace(' ', "_"), line)
            });
            (sheet.title.replace(' ', "_"), Value::Object(lines.collect()))
        });
        let binaries = self.binaries.iter().map(|(name, binary)| {
            let value = json!({
                "path": binary.path, "bytes": binary.bytes, "static": binary.is_static, "stripped": binary.is_stripped,
            });
            (name.clone(), value)
        });
        json!({
            "machine": self.machine,
            "rounds": self.rounds,
            "count": self.count,
            "ours": self.names.0,
            "other": self.names.1,
            "pinned": Value::Object(sheets.collect()),
            "binaries": Value::Object(binaries.collect()),
        })
    }
}

/// The setting in which the reaches are meant.
pub(crate) const ONE_CORE: &str = "one core";
/// The setting in which the kernel decides.
pub(crate) const FREE: &str = "free";
