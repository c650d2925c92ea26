//! The measurements, in rounds in which every proxy is measured once.
//!
//! A machine's speed drifts, by its neighbours and its temperature. So the proxies are measured in turn
//! within each round, in the opposite order in every other one, and compared round by round.

use std::time::{Duration, Instant};

use clap::ValueEnum;

use crate::Outcome;
use crate::client::{Connection, Request};
use crate::contestant::{Acknowledgement, Actions, Contestant, Dialect, Running};
use crate::machine::{Memory, processor_time};
use crate::report::{Sheet, Side};

/// What can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Subject {
    /// From the start of the proxy to the first answers.
    Cold,
    /// Small activations, one after the other.
    Warm,
    /// Echoes of 1 MiB.
    Echo1,
    /// Echoes of 8 MiB.
    Echo8,
    /// Version 2 beside version 1: 64 at once, and the first chunk of a stream.
    Streams,
    /// Version 0, a process for each activation.
    Single,
    /// Inits of 1 MiB that are refused.
    Refused,
    /// Memory after init, and the most of it.
    Memory,
    /// The binary.
    Size,
}

/// Everything that is given once.
pub(crate) struct Plan {
    pub(crate) pipeloop: Contestant,
    pub(crate) other: Option<Contestant>,
    pub(crate) subjects: Vec<Subject>,
    pub(crate) rounds: usize,
    pub(crate) count: usize,
    pub(crate) actions: Actions,
}

/// How long a proxy may settle before its memory is measured.
const SETTLE: Duration = Duration::from_millis(50);
/// Cold starts of each proxy in a round; the one in the middle counts.
const STARTS: usize = 7;
/// How often each upload that cannot work is refused in a round; the slowest counts.
const REFUSALS: usize = 10;
/// Callers at once.
const CONCURRENT_CALLERS: usize = 64;
const MEBIBYTE: usize = 1024 * 1024;
const SMALL_ARGUMENTS: &str = r#"{"name":"Mike"}"#;

impl Plan {
    /// Measures everything but the binaries, on the cores that this program may use.
    pub(crate) fn measure(&self, sheet: &mut Sheet) -> Outcome {
        for round in 0..self.rounds {
            eprintln!("{}: round {} of {}", sheet.title, round + 1, self.rounds);
            if self.wants(Subject::Cold) {
                self.cold(round, sheet)?;
            }
            if [Subject::Warm, Subject::Echo1, Subject::Echo8, Subject::Memory]
                .iter()
                .any(|subject| self.wants(*subject))
            {
                self.warm(round, sheet)?;
            }
            if self.wants(Subject::Streams) {
                self.streams(sheet)?;
            }
            if self.wants(Subject::Single) {
                self.single(round, sheet)?;
            }
            if self.wants(Subject::Refused) {
                self.refused(sheet)?;
            }
        }
        Ok(())
    }

    pub(crate) fn wants(&self, subject: Subject) -> bool {
        self.subjects.contains(&subject)
    }

    /// What the other proxy speaks decides what it is compared in.
    fn compared_dialect(&self) -> Dialect {
        self.other.as_ref().map_or(Dialect::Actionloop, |other| other.dialect)
    }

    /// Ours and the other's turns at one dialect, in the order of this round.
    fn turns(&self, dialect: Dialect, round: usize) -> Vec<(Side, Contestant)> {
        let mut turns = vec![(Side::Pipeloop, Contestant { dialect, ..self.pipeloop.clone() })];
        turns.extend(
            self.other.iter().filter(|other| other.dialect == dialect).map(|other| (Side::Other, other.clone())),
        );
        if round % 2 == 1 {
            turns.reverse();
        }
        turns
    }

    fn cold(&self, round: usize, sheet: &mut Sheet) -> Outcome {
        use Acknowledgement::{Awaited, Ignored};
        let dialect = self.compared_dialect();
        Self::starts(["cold init", "cold run"], &self.turns(dialect, round), Ignored, sheet)?;
        if dialect == Dialect::Actionloop {
            Self::starts(["cold init ack", "cold run ack"], &self.turns(dialect, round), Awaited, sheet)?;
        }
        let version_1 = Contestant { dialect: Dialect::Version1, ..self.pipeloop.clone() };
        Self::starts(["cold init v1", "cold run v1"], &[(Side::Pipeloop, version_1)], Ignored, sheet)
    }

    /// Some cold starts of each proxy, in turn. A single one would depend on the moment more than on the proxy.
    fn starts(
        keys: [&'static str; 2],
        turns: &[(Side, Contestant)],
        acknowledgement: Acknowledgement,
        sheet: &mut Sheet,
    ) -> Outcome {
        let mut times = vec![[Vec::new(), Vec::new()]; turns.len()];
        for _ in 0..STARTS {
            for ((_, contestant), times) in turns.iter().zip(&mut times) {
                let (init, run) = first_answers(contestant, acknowledgement)?;
                times[0].push(init);
                times[1].push(run);
            }
        }
        for ((side, _), times) in turns.iter().zip(times) {
            for (key, mut times) in keys.into_iter().zip(times) {
                times.sort_by(f64::total_cmp);
                sheet.add(key, *side, quantile(&times, 0.50));
            }
        }
        Ok(())
    }

    /// Everything that is measured on proxies that keep their process.
    fn warm(&self, round: usize, sheet: &mut Sheet) -> Outcome {
        let mut runners = Vec::new();
        for dialect in [Dialect::Actionloop, Dialect::Version1, Dialect::Version2] {
            for (side, contestant) in self.turns(dialect, round) {
                let runner = Runner::start(&contestant, &self.actions).map_err(|error| named(&contestant, &*error))?;
                runners.push((side, contestant, runner));
            }
            // Now, before a second process of the same binary makes pages look shared.
            if dialect == Dialect::Actionloop && self.wants(Subject::Memory) {
                std::thread::sleep(SETTLE);
                for (side, contestant, runner) in &runners {
                    let memory = Memory::of(runner.proxy.pid()).map_err(|error| named(contestant, &*error))?;
                    sheet.add("idle rss", *side, memory.resident);
                    sheet.add("idle pss", *side, memory.proportional);
                }
            }
        }
        // Each step for all before the next one, so that what is compared is close together in time.
        let mut step = |work: &mut dyn FnMut(Side, Dialect, &mut Runner) -> Outcome| -> Outcome {
            for (side, contestant, runner) in &mut runners {
                work(*side, contestant.dialect, runner).map_err(|error| named(contestant, &*error))?;
            }
            Ok(())
        };
        if self.wants(Subject::Warm) {
            let names = |dialect| match dialect {
                Dialect::Version1 => ["v1 p50", "v1 p99", "v1 cpu"],
                Dialect::Version2 => ["v2 p50", "v2 p99", "v2 cpu"],
                _ => ["warm p50", "warm p99", "warm cpu"],
            };
            step(&mut |side, dialect, runner| {
                let payload = Payload::new(SMALL_ARGUMENTS, dialect);
                runner.run(&payload, self.count / 10)?;
                let before = processor_time(runner.proxy.pid());
                let times = runner.run(&payload, self.count)?;
                let after = processor_time(runner.proxy.pid());
                let [p50, p99, cpu] = names(dialect);
                sheet.add(p50, side, quantile(&times, 0.50));
                sheet.add(p99, side, quantile(&times, 0.99));
                if let (Some(before), Some(after)) = (before, after) {
                    sheet.add(cpu, side, (after - before) / times.len() as f64);
                }
                Ok(())
            })?;
        }
        let echoes = [(Subject::Echo1, 1, self.count / 100), (Subject::Echo8, 8, self.count / 400)];
        for (subject, mebibytes, count) in echoes {
            // The peak of memory is that of the largest echo.
            let for_peak = subject == Subject::Echo8 && self.wants(Subject::Memory);
            if !self.wants(subject) && !for_peak {
                continue;
            }
            let arguments = serde_json::json!({ "text": text(mebibytes * MEBIBYTE) }).to_string();
            step(&mut |side, dialect, runner| {
                let payload = Payload::new(&arguments, dialect);
                runner.run(&payload, 2)?;
                let times = runner.run(&payload, count.max(5))?;
                let name = match (subject, dialect) {
                    (Subject::Echo1, Dialect::Version1) => "v1 echo 1",
                    (Subject::Echo1, Dialect::Version2) => "v2 echo 1",
                    (Subject::Echo1, _) => "echo 1",
                    (_, Dialect::Version1) => "v1 echo 8",
                    (_, Dialect::Version2) => "v2 echo 8",
                    _ => "echo 8",
                };
                sheet.add(name, side, quantile(&times, 0.50) / 1000.0);
                Ok(())
            })?;
        }
        if self.wants(Subject::Memory) {
            step(&mut |side, dialect, runner| {
                if dialect == Dialect::Actionloop {
                    sheet.add("peak", side, Memory::of(runner.proxy.pid())?.peak);
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    fn single(&self, round: usize, sheet: &mut Sheet) -> Outcome {
        for (side, contestant) in self.turns(Dialect::Version0, round) {
            let rate = || -> Outcome<f64> {
                let mut runner = Runner::start(&contestant, &self.actions)?;
                let payload = Payload::new(SMALL_ARGUMENTS, Dialect::Version0);
                let count = (self.count / 10).max(20);
                runner.run(&payload, count / 10)?;
                let times = runner.run(&payload, count)?;
                Ok(1e6 * times.len() as f64 / times.iter().sum::<f64>())
            };
            sheet.add("single", side, rate().map_err(|error| named(&contestant, &*error))?);
        }
        Ok(())
    }

    /// How long an init takes that is refused: by one proxy, since it is ready for the next one then.
    /// Other proxies are left out, since their refusals have other reasons.
    fn refused(&self, sheet: &mut Sheet) -> Outcome {
        let contestant = Contestant { dialect: Dialect::Version1, ..self.pipeloop.clone() };
        let mut refuse = || -> Outcome {
            let mut proxy = contestant.start(Acknowledgement::Ignored)?;
            let mut connection = proxy.connect()?;
            for unfit in self.actions.unfit(MEBIBYTE) {
                let mut slowest = Duration::ZERO;
                for _ in 0..REFUSALS {
                    slowest = slowest.max(connection.exchange(&unfit.init)?);
                    connection.expect_refusal(502, unfit.words)?;
                }
                sheet.add(unfit.key, Side::Pipeloop, slowest.as_secs_f64() * 1e3);
            }
            Ok(())
        };
        refuse().map_err(|error| named(&contestant, &*error))
    }
}

impl Plan {
    /// The purpose of version 2: many activations at once in one process, and chunks that leave at once.
    fn streams(&self, sheet: &mut Sheet) -> Outcome {
        for (dialect, key) in [(Dialect::Version1, "v1 rate"), (Dialect::Version2, "v2 rate")] {
            let contestant = Contestant { dialect, ..self.pipeloop.clone() };
            let rate = self.concurrent_rate(&contestant).map_err(|error| named(&contestant, &*error))?;
            sheet.add(key, Side::Pipeloop, rate);
        }
        let contestant = Contestant { dialect: Dialect::Version2, ..self.pipeloop.clone() };
        let delays = self.first_chunks(&contestant).map_err(|error| named(&contestant, &*error))?;
        sheet.add("first chunk", Side::Pipeloop, quantile(&delays, 0.50));
        sheet.add("first chunk p99", Side::Pipeloop, quantile(&delays, 0.99));
        Ok(())
    }

    /// Activations a second when many callers send one each, all at once, and again when all are answered.
    fn concurrent_rate(&self, contestant: &Contestant) -> Outcome<f64> {
        let mut runner = Runner::with(contestant, &self.actions.waiter(contestant.dialect))?;
        let mut callers = (0..CONCURRENT_CALLERS).map(|_| runner.proxy.connect()).collect::<Outcome<Vec<_>>>()?;
        let request = Request::post("/run", br#"{"value":{}}"#);
        // A round of version 1 takes as many times as long as there are callers.
        let turns = if contestant.dialect == Dialect::Version2 { (self.count / CONCURRENT_CALLERS).max(10) } else { 2 };
        let mut exchange_all = |turns: usize| -> Outcome {
            for _ in 0..turns {
                callers.iter_mut().try_for_each(|caller| caller.send(&request))?;
                for caller in &mut callers {
                    caller.receive()?;
                    caller.expect(br#"{"waited_ms":5}"#)?;
                }
            }
            Ok(())
        };
        exchange_all(1)?;
        let begun = Instant::now();
        exchange_all(turns)?;
        Ok((turns * CONCURRENT_CALLERS) as f64 / begun.elapsed().as_secs_f64())
    }

    /// Milliseconds from just before the action writes a chunk until its caller has read it, in rising
    /// order. The action goes on for 5 ms before it ends, so the chunk alone can have brought it.
    fn first_chunks(&self, contestant: &Contestant) -> Outcome<Vec<f64>> {
        let mut runner = Runner::with(contestant, &self.actions.waiter(contestant.dialect))?;
        let request = Request::stream("/run", br#"{"value":{"stream":true}}"#);
        let mut delays = Vec::new();
        for _ in 0..(self.count / 10).max(20) {
            runner.connection.send(&request)?;
            let come = runner.connection.receive_until(b"\n\n")?;
            let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
            let text = String::from_utf8_lossy(come).into_owned();
            let written = text.split_once("data: \"").and_then(|(_, rest)| rest.split_once('"')?.0.parse::<u64>().ok());
            let written = written.ok_or_else(|| format!("no chunk with a time: {text:?}"))?;
            let now = u64::try_from(now.tv_sec * 1_000_000_000 + now.tv_nsec)?;
            delays.push(now.checked_sub(written).ok_or("a chunk came before it was written")? as f64 / 1e6);
            runner.connection.receive_rest(b"\r\n0\r\n\r\n")?;
        }
        delays.sort_by(f64::total_cmp);
        Ok(delays)
    }
}

/// Milliseconds from just before the start of a proxy to its answer of `/init`, and to that of the
/// first `/run`.
fn first_answers(contestant: &Contestant, acknowledgement: Acknowledgement) -> Outcome<(f64, f64)> {
    let measure = || -> Outcome<(f64, f64)> {
        let init = Actions::small(contestant.dialect);
        let payload = Payload::new(SMALL_ARGUMENTS, contestant.dialect);
        let mut proxy = contestant.start(acknowledgement)?;
        let mut connection = proxy.connect()?;
        connection.exchange(&init)?;
        let initialised = proxy.started().elapsed();
        connection.answer()?;
        connection.exchange(&payload.request)?;
        let answered = proxy.started().elapsed();
        payload.check(&connection)?;
        Ok((initialised.as_secs_f64() * 1e3, answered.as_secs_f64() * 1e3))
    };
    measure().map_err(|error| named(contestant, &*error))
}

/// A proxy that is initialised, and a connection to it.
struct Runner {
    proxy: Running,
    connection: Connection,
}

impl Runner {
    fn start(contestant: &Contestant, actions: &Actions) -> Outcome<Self> {
        Self::with(contestant, &actions.echo(contestant.dialect))
    }

    fn with(contestant: &Contestant, init: &Request) -> Outcome<Self> {
        let mut proxy = contestant.start(Acknowledgement::Ignored)?;
        let mut connection = proxy.connect()?;
        connection.exchange(init)?;
        connection.answer()?;
        Ok(Self { proxy, connection: connection.guarded()? })
    }

    /// Runs activations one after the other: the microseconds that each took, in rising order.
    /// Every answer is compared, while no clock runs.
    fn run(&mut self, payload: &Payload, count: usize) -> Outcome<Vec<f64>> {
        let mut times = Vec::with_capacity(count);
        for _ in 0..count {
            times.push(self.connection.exchange(&payload.request)?.as_secs_f64() * 1e6);
            payload.check(&self.connection)?;
        }
        times.sort_by(f64::total_cmp);
        Ok(times)
    }
}

/// An activation and the answer that is right for it.
struct Payload {
    request: Request,
    answer: Vec<u8>,
    dialect: Dialect,
}

impl Payload {
    fn new(arguments: &str, dialect: Dialect) -> Self {
        let activation = format!(r#"{{"value":{arguments}}}"#);
        let request = Request::post("/run", activation.as_bytes());
        let answer = match dialect {
            Dialect::Actionloop => activation.into_bytes(),
            Dialect::Version0 | Dialect::Version1 | Dialect::Version2 => arguments.as_bytes().to_vec(),
        };
        Self { request, answer, dialect }
    }

    fn check(&self, connection: &Connection) -> Outcome {
        match self.dialect {
            Dialect::Actionloop | Dialect::Version1 | Dialect::Version2 => connection.expect(&self.answer),
            Dialect::Version0 => connection.expect_json(&self.answer),
        }
    }
}

/// Text as payloads hold it: lines, and an escape in JSON for the end of each.
fn text(length: usize) -> String {
    let mut text = String::with_capacity(length + 100);
    let mut number = 0;
    while text.len() < length {
        number += 1;
        text.push_str("what an activation brings along is mostly text, line after line, number ");
        text.push_str(&number.to_string());
        text.push('\n');
    }
    text.truncate(length);
    text
}

/// A value such that this part of all is at most as large. `sorted` must be, and not be empty.
fn quantile(sorted: &[f64], part: f64) -> f64 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a product of lengths and parts of one"
    )]
    let at = ((sorted.len() - 1) as f64 * part).round() as usize;
    sorted[at]
}

fn named(contestant: &Contestant, error: &dyn std::error::Error) -> Box<dyn std::error::Error> {
    let error = error.to_string();
    if error.starts_with(&contestant.name) {
        return error.into();
    }
    format!("{} ({:?}): {error}", contestant.name, contestant.dialect).into()
}
