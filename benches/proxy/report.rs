//! What was measured, as a table for people and as JSON.

use std::collections::HashMap;
use std::fmt::Write;

use serde_json::{Value, json};

use crate::machine::Binary;

/// Whose value it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Side {
    Ours,
    Other,
}

/// A line of the table.
struct Measure {
    key: &'static str,
    label: &'static str,
    unit: &'static str,
    decimals: usize,
    /// What the project wants to reach on one core.
    reach: Option<Reach>,
    /// The line of ours that it is compared with, where that is not the other proxy's.
    beside: Option<&'static str>,
}

#[derive(Debug, Clone, Copy)]
enum Reach {
    /// At most this part of what it is compared with.
    Ratio(f64),
    /// At least so many times what it is compared with.
    Times(f64),
    /// At most this, in its unit.
    Most(f64),
}

const fn measure(
    key: &'static str,
    label: &'static str,
    unit: &'static str,
    decimals: usize,
    reach: Option<Reach>,
) -> Measure {
    Measure { key, label, unit, decimals, reach, beside: None }
}

impl Measure {
    const fn beside(self, key: &'static str) -> Self {
        Self { beside: Some(key), ..self }
    }
}

/// All lines, in order. Less is better everywhere but in rates.
const MEASURES: &[Measure] = &[
    measure("cold init", "cold start to /init", "ms", 2, Some(Reach::Ratio(0.5))),
    measure("cold run", "cold start to first /run", "ms", 2, Some(Reach::Ratio(0.5))),
    measure("cold init ack", "  with acknowledgement, to /init", "ms", 2, None),
    measure("cold run ack", "  with acknowledgement, to first /run", "ms", 2, None),
    measure("cold init v1", "  version 1, to /init", "ms", 2, None),
    measure("cold run v1", "  version 1, to first /run", "ms", 2, None),
    measure("warm p50", "warm activation, p50", "µs", 1, Some(Reach::Ratio(0.65))),
    measure("warm p99", "warm activation, p99", "µs", 1, None),
    measure("warm cpu", "warm activation, proxy's CPU time", "µs", 1, None),
    measure("v1 p50", "  version 1, p50", "µs", 1, None),
    measure("v1 p99", "  version 1, p99", "µs", 1, None),
    measure("v1 cpu", "  version 1, proxy's CPU time", "µs", 1, None),
    measure("v2 p50", "  version 2, p50, by version 1's", "µs", 1, Some(Reach::Ratio(1.1))).beside("v1 p50"),
    measure("v2 p99", "  version 2, p99, by version 1's", "µs", 1, None).beside("v1 p99"),
    measure("v2 cpu", "  version 2, CPU time, by version 1's", "µs", 1, None).beside("v1 cpu"),
    measure("echo 1", "echo of 1 MiB, p50", "ms", 3, Some(Reach::Ratio(0.5))),
    measure("v1 echo 1", "  version 1", "ms", 3, None),
    measure("v2 echo 1", "  version 2", "ms", 3, None),
    measure("echo 8", "echo of 8 MiB, p50", "ms", 2, None),
    measure("v1 echo 8", "  version 1", "ms", 2, None),
    measure("v2 echo 8", "  version 2", "ms", 2, None),
    measure("v1 rate", "64 callers, 5 ms each, version 1", "1/s", 0, None),
    measure("v2 rate", "  version 2, by version 1's", "1/s", 0, Some(Reach::Times(3.0))).beside("v1 rate"),
    measure("first chunk", "first chunk of a stream, p50", "ms", 3, Some(Reach::Most(1.0))),
    measure("first chunk p99", "  p99", "ms", 3, None),
    measure("single", "version 0 (more is better)", "1/s", 0, None),
    measure("no library", "refused 1 MiB: missing library", "ms", 2, Some(Reach::Most(50.0))),
    measure("no interpreter", "  missing interpreter", "ms", 2, Some(Reach::Most(50.0))),
    measure("error page", "  HTML page", "ms", 2, Some(Reach::Most(50.0))),
    measure("idle rss", "idle memory (RSS)", "KiB", 0, Some(Reach::Ratio(0.4))),
    measure("idle pss", "idle memory (PSS)", "KiB", 0, None),
    measure("peak", "peak memory after 8 MiB (RSS)", "KiB", 0, None),
];

/// The largest binary that is wanted.
const LARGEST_BINARY: u64 = 4 * 1024 * 1024;

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

    /// Ours by what it is compared with, round by round.
    fn ratio(&self, measure: &Measure) -> Option<Summary> {
        let other = measure.beside.map_or((measure.key, Side::Other), |key| (key, Side::Ours));
        let (ours, other) = (self.values.get(&(measure.key, Side::Ours))?, self.values.get(&other)?);
        Some(Summary::of(ours.iter().zip(other).map(|(ours, other)| ours / other).collect()))
    }
}

struct Summary {
    median: f64,
    least: f64,
    most: f64,
}

impl Summary {
    fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let middle = values.len() / 2;
        let median =
            if values.len() % 2 == 1 { values[middle] } else { f64::midpoint(values[middle - 1], values[middle]) };
        Self { median, least: values[0], most: values[values.len() - 1] }
    }

    fn json(&self) -> Value {
        json!({ "median": self.median, "min": self.least, "max": self.most })
    }
}

/// Everything that is reported.
pub(crate) struct Report {
    pub(crate) machine: String,
    pub(crate) rounds: usize,
    pub(crate) count: usize,
    /// The names of ours and of the other.
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
        let (ours, other) = (&self.names.0, self.names.1.as_deref().unwrap_or(""));
        for sheet in &self.sheets {
            line(format_args!(""));
            line(format_args!(
                "{:<38} {:>4} {ours:>10} {other:>10}  {:<22} {}",
                sheet.title, "", "ratio [min–max]", "reach",
            ));
            for measure in MEASURES {
                let Some(ours) = sheet.summary(measure.key, Side::Ours) else { continue };
                let number = |summary: &Summary| format!("{:.*}", measure.decimals, summary.median);
                let other = sheet.summary(measure.key, Side::Other).map_or(String::new(), |summary| number(&summary));
                let ratio = sheet.ratio(measure).map_or(String::new(), |ratio| {
                    format!("{:.2} [{:.2}–{:.2}]", ratio.median, ratio.least, ratio.most)
                });
                let reach = match measure.reach.filter(|_| sheet.title == ONE_CORE) {
                    Some(Reach::Ratio(reach)) if !ratio.is_empty() => format!("reach {reach}"),
                    Some(Reach::Times(reach)) if !ratio.is_empty() => format!("reach {reach} at least"),
                    Some(Reach::Most(reach)) => format!("reach {reach} {}", measure.unit),
                    _ => String::new(),
                };
                line(format_args!(
                    "{:<38} {:>4} {:>10} {other:>10}  {ratio:<22} {reach}",
                    measure.label,
                    measure.unit,
                    number(&ours),
                ));
            }
        }
        if !self.binaries.is_empty() {
            line(format_args!(""));
        }
        for (name, binary) in &self.binaries {
            let reach = if *name == self.names.0 { format!(", reach {LARGEST_BINARY}") } else { String::new() };
            line(format_args!("{name}: {} bytes, {}{reach}", binary.bytes, binary.kind()));
        }
        out
    }

    /// The same for programs, with every value.
    pub(crate) fn json(&self) -> Value {
        let sheets = self.sheets.iter().map(|sheet| {
            let lines = MEASURES.iter().filter(|measure| sheet.values.contains_key(&(measure.key, Side::Ours)));
            let lines = lines.map(|measure| {
                let side = |side| {
                    sheet.summary(measure.key, side).map(|summary| {
                        let mut value = summary.json();
                        value["rounds"] = json!(sheet.values[&(measure.key, side)]);
                        value
                    })
                };
                let (ratio, times, most) = match measure.reach.filter(|_| sheet.title == ONE_CORE) {
                    Some(Reach::Ratio(ratio)) => (Some(ratio), None, None),
                    Some(Reach::Times(times)) => (None, Some(times), None),
                    Some(Reach::Most(most)) => (None, None, Some(most)),
                    None => (None, None, None),
                };
                let line = json!({
                    "unit": measure.unit,
                    "ours": side(Side::Ours),
                    "other": side(Side::Other),
                    "ratio": sheet.ratio(measure).map(|ratio| ratio.json()),
                    "beside": measure.beside.map(|key| key.replace(' ', "_")),
                    "reach": ratio,
                    "reach_least": times,
                    "reach_most": most,
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
