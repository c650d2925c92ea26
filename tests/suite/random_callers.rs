//! Each caller gets its own answer or an error of its own, whatever other callers and their activations do.
//!
//! A hundred concurrent callers take random steps, from a seed that a failing test prints and a variable sets:
//! `PIPELOOP_TEST_SEED=7 cargo test --test all random_callers`. `PIPELOOP_TEST_STEPS` multiplies the number of steps.
//! [`Step::check`] decides which answers a step may get. At the end the test checks the log, the processes and the
//! descriptors.
//!
//! The promise of `docs/lifecycle.md`: a fault that an activation causes is reported to its own caller. Every other
//! activation gets its answer despite crashes, stray lines and callers that leave; it is refused only when the queue
//! is full. In version 2 with several activations in flight, a crash fails every activation in that process.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::json;

use crate::support::{BAD_ANSWER, Caller, Logs, Proxy, Response, eventually, now_ms, processes};

const CALLERS: usize = 100;

/// How the proxy serves the callers.
#[derive(Debug, Clone, Copy)]
struct Setting {
    protocol: &'static str,
    workers: usize,
    /// The activations in flight in each process.
    concurrency: usize,
    /// The steps of all callers together.
    steps: usize,
    queue: usize,
}

/// A repeatable source of random numbers.
///
/// Source: `SplitMix64`, Steele et al., "Fast splittable pseudorandom number generators", 2014.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }
}

/// One step of a caller.
#[derive(Debug, Clone)]
struct Step {
    id: String,
    /// The behaviour asked of the action.
    behaviour: &'static str,
    ms: u64,
    manner: Manner,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manner {
    /// Waits for its answer.
    Waits,
    /// Sends the whole request and leaves after a moment.
    Leaves,
    /// Sends a part of the request and leaves.
    SendsHalf,
}

/// The behaviours asked of the action, and how many times in a hundred.
const BEHAVIOURS: [(&str, u64); 13] = [
    ("echo", 48),
    ("slow", 8),
    ("parts", 8),
    ("logs", 6),
    ("big", 4),
    ("stray", 6),
    ("leave", 5),
    ("two", 3),
    ("number", 3),
    ("late_for_its_deadline", 2),
    ("exit", 3),
    ("kill", 2),
    ("half", 2),
];

impl Step {
    fn random(id: &str, random: &mut Random) -> Self {
        let mut at = random.below(BEHAVIOURS.iter().map(|(_, weight)| weight).sum());
        let chosen = BEHAVIOURS.iter().find(|(_, weight)| at.checked_sub(*weight).map(|left| at = left).is_none());
        let behaviour = chosen.expect("the weights add up").0;
        let id = format!("{id}.{behaviour}");
        let manner = match random.below(100) {
            0..6 => Manner::Leaves,
            6..12 => Manner::SendsHalf,
            _ => Manner::Waits,
        };
        let ms = if behaviour == "late_for_its_deadline" { 8_000 + random.below(8) } else { random.below(8) };
        Self { id, behaviour, ms, manner }
    }

    fn body(&self) -> String {
        let mut body = json!({"value": {"id": self.id, "do": self.behaviour, "ms": self.ms}, "activation_id": self.id});
        if self.behaviour == "late_for_its_deadline" {
            body["deadline"] = json!((now_ms() + 100 + 50 * u128::from(self.ms % 8)).to_string());
        }
        body.to_string()
    }

    /// Checks that its caller may get this answer.
    fn check(&self, setting: &Setting, response: &Response) {
        response.check_shape();
        let text = response.text();
        let own = || response.status == 200 && response.json()["id"] == json!(self.id);
        let failed_with = |text: &str| response.status == 502 && response.error().contains(text);
        if response.status == 429 {
            // All places in the queue and all slots were taken.
            assert!(
                setting.queue + setting.workers * setting.concurrency < CALLERS,
                "{self:?}: refused by a queue that cannot be full: {text}"
            );
            assert_eq!(response.header("retry-after"), Some("1"));
            return;
        }
        let single_shot = setting.protocol == "0";
        if setting.concurrency > 1 && failed_by_a_crash(response) {
            return;
        }
        let allowed = match self.behaviour {
            "exit" | "kill" if single_shot => failed_with(BAD_ANSWER),
            "exit" => failed_with("exited with status 3") && failed_with("before it answered"),
            "kill" => failed_with("killed by signal 9") && failed_with("before it answered"),
            // The last line decides in version 0, and it is whole.
            "two" if single_shot => own(),
            // With ids the first result is the answer, and the second is a stray. Without ids, either could be the
            // late result of another activation.
            "two" if setting.concurrency > 1 => own(),
            "half" | "number" | "two" => failed_with(BAD_ANSWER),
            // A deadline that passes before the request arrives has no effect.
            // An activation whose deadline comes before the end of a back-off pause does not wait.
            "late_for_its_deadline" => failed_with("deadline") || failed_with("times in a row") || own(),
            _ => own(),
        };
        assert!(allowed, "{self:?} got {}: {}", response.status, text.chars().take(300).collect::<String>());
    }
}

/// A crash of a process that ran other activations too, or too many crashes before.
fn failed_by_a_crash(response: &Response) -> bool {
    let crashes = ["exited with status 3", "exited with status 0", "killed by signal 9", "times in a row"];
    response.status == 502 && crashes.iter().any(|crash| response.error().contains(crash))
}

/// The seed of this run.
fn seed() -> u64 {
    let set = std::env::var("PIPELOOP_TEST_SEED").ok().map(|seed| seed.parse().expect("a seed is a number"));
    set.unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is after 1970");
        now.as_secs() << 20 | u64::from(now.subsec_micros())
    })
}

/// Runs one caller's steps, on connections that are sometimes kept.
fn call(proxy: &Proxy, setting: &Setting, caller: usize, seed: u64, steps: usize) -> Outcomes {
    let mut random = Random(seed ^ (caller as u64) << 40);
    let mut connection: Option<Caller> = None;
    let mut outcomes = Outcomes::default();
    for number in 0..steps {
        let step = Step::random(&format!("{caller}.{number}"), &mut random);
        let mut caller = connection.take().unwrap_or_else(|| proxy.caller());
        match step.manner {
            Manner::Waits => {
                caller.send_request("POST", "/run", step.body().as_bytes());
                let response = caller.receive().unwrap_or_else(|error| panic!("{step:?} got no answer: {error}"));
                step.check(setting, &response);
                if step.behaviour == "late_for_its_deadline" || setting.concurrency > 1 && failed_by_a_crash(&response)
                {
                    outcomes.late += 1;
                } else if response.status != 429 {
                    outcomes.begun.insert(step.id);
                }
                if !random.one_in(4) {
                    connection = Some(caller);
                }
            }
            Manner::Leaves => {
                caller.send_request("POST", "/run", step.body().as_bytes());
                std::thread::sleep(Duration::from_micros(random.below(8_000)));
                outcomes.left += 1;
            }
            Manner::SendsHalf => {
                let body = step.body();
                let request = format!("POST /run HTTP/1.1\r\nHost: t\r\nContent-Length: {}\r\n\r\n{body}", body.len());
                let half = usize::try_from(random.below(request.len() as u64 - 1)).expect("it is small") + 1;
                caller.send(&request.as_bytes()[..half]).expect("the proxy reads");
                std::thread::sleep(Duration::from_micros(random.below(4_000)));
                outcomes.half_sent += 1;
            }
        }
    }
    outcomes
}

/// The outcomes of many steps.
#[derive(Debug, Default)]
struct Outcomes {
    /// Activations that the action has certainly begun: not those with a deadline, which may have passed first, or
    /// those that failed by another's crash.
    begun: HashSet<String>,
    late: usize,
    left: usize,
    half_sent: usize,
}

/// The number of sockets and pipes of a process.
fn descriptors(pid: i32) -> (usize, usize) {
    let links = fs::read_dir(format!("/proc/{pid}/fd")).expect("the proxy is alive").flatten();
    let links: Vec<_> = links.filter_map(|entry| fs::read_link(entry.path()).ok()).collect();
    let count = |kind: &str| links.iter().filter(|link| link.to_string_lossy().starts_with(kind)).count();
    (count("socket:"), count("pipe:"))
}

#[track_caller]
fn check(setting: Setting) {
    let seed = seed();
    eprintln!("{setting:?} with PIPELOOP_TEST_SEED={seed}");
    let factor = std::env::var("PIPELOOP_TEST_STEPS").map_or(1, |factor| factor.parse().expect("a factor is a number"));
    let (workers, queue) = (setting.workers.to_string(), setting.queue.to_string());
    let args = ["--workers", &workers, "--queue", &queue, "--protocol", setting.protocol, "--drain-grace", "15s"];
    let mut proxy = Proxy::start(&args, &[]);
    if setting.concurrency == 1 {
        proxy.init_action("misbehaves.pl", &json!({"SPEAKS": setting.protocol}));
    } else {
        proxy.init_action("misbehaves_concurrently.py", &json!({"CONCURRENCY": setting.concurrency.to_string()}));
    }
    proxy.run(&json!({"id": "first", "do": "echo", "ms": 0})).check(200, &json!({"id": "first"}));
    let (sockets, pipes) = descriptors(proxy.pid());

    let mut all = Outcomes::default();
    all.begun.insert("first".into());
    std::thread::scope(|scope| {
        let steps = factor * setting.steps / CALLERS;
        let (proxy, setting) = (&proxy, &setting);
        let callers: Vec<_> =
            (0..CALLERS).map(|caller| scope.spawn(move || call(proxy, setting, caller, seed, steps))).collect();
        for caller in callers {
            let outcomes = caller.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            all.begun.extend(outcomes.begun);
            all.late += outcomes.late;
            all.left += outcomes.left;
            all.half_sent += outcomes.half_sent;
        }
    });
    // No connection, pipe or process is left over.
    eventually("every connection is closed", || (descriptors(proxy.pid()).0 <= sockets).then_some(()));
    let (_, pipes_now) = descriptors(proxy.pid());
    assert!(pipes_now <= pipes + 4 * (setting.workers - 1), "{pipes} pipes before, {pipes_now} now");
    let processes = proxy.actions();
    assert!(processes.len() <= setting.workers, "{processes:?}");
    eventually("every process is reaped", || (processes::zombies(proxy.pid()) == 0).then_some(()));
    // Activations of callers that left are finished before shutdown.
    proxy.stop();
    check_logs(&setting, &proxy.logs(), &all);
}

/// Checks that each activation that was begun has exactly one log, which holds no line of another activation.
fn check_logs(setting: &Setting, logs: &Logs, all: &Outcomes) {
    let segments = Logs::activations(&logs.stderr);
    let mut seen: HashMap<&str, usize> = HashMap::new();
    let mut without = 0;
    for segment in &segments[..segments.len() - 1] {
        let mut begun: Vec<_> = segment.lines().filter_map(|line| line.strip_prefix("begin ")).collect();
        if setting.concurrency > 1 && begun.len() > 1 {
            // Log lines after an activation's own sentinel can only appear before another's.
            begun.retain(|id| !id.ends_with(".late_for_its_deadline"));
        }
        match begun[..] {
            [] => without += 1,
            [id] => {
                *seen.entry(id).or_default() += 1;
                for line in segment.lines().filter(|line| line.starts_with("end ") || line.starts_with("line ")) {
                    if setting.concurrency > 1 && line.ends_with(".late_for_its_deadline") {
                        // As above.
                        continue;
                    }
                    assert!(line.ends_with(&format!(" {id}")), "in the log of {id}: {line}");
                }
            }
            _ => panic!("one sentinel for {begun:?}:\n{segment}"),
        }
    }
    for id in &all.begun {
        assert_eq!(seen.get(id.as_str()), Some(&1), "sentinels of {id}");
    }
    // The rest belong to callers that left, or were refused because of their body.
    let others = seen.len() - all.begun.len();
    assert!(others <= all.left + all.late, "{others} activations without a caller: {all:?}");
    assert!(without <= all.half_sent + all.left + all.late, "{without} sentinels without an activation: {all:?}");
    assert!(seen.values().all(|count| *count == 1), "an activation ran twice: {seen:?}");
    let count = |text: &str| Logs::activations(text).len();
    assert_eq!(count(&logs.stdout), count(&logs.stderr), "sentinels on both streams");
    if setting.protocol == "actionloop" {
        for segment in Logs::activations(&logs.stdout) {
            assert!(segment.matches("out ").count() <= 1, "{segment}");
        }
    }
}

/// A queue that holds every caller.
const LONG_QUEUE: usize = 256;

#[test]
fn version_1_with_one_worker() {
    check(Setting { protocol: "1", workers: 1, concurrency: 1, steps: 2_000, queue: LONG_QUEUE });
}

#[test]
fn version_1_with_four_workers() {
    check(Setting { protocol: "1", workers: 4, concurrency: 1, steps: 2_000, queue: LONG_QUEUE });
}

#[test]
fn actionloop_with_one_worker_and_a_short_queue() {
    check(Setting { protocol: "actionloop", workers: 1, concurrency: 1, steps: 2_000, queue: 40 });
}

#[test]
fn actionloop_with_four_workers() {
    check(Setting { protocol: "actionloop", workers: 4, concurrency: 1, steps: 2_000, queue: LONG_QUEUE });
}

#[test]
fn version_0_with_one_worker() {
    check(Setting { protocol: "0", workers: 1, concurrency: 1, steps: 500, queue: LONG_QUEUE });
}

#[test]
fn version_0_with_four_workers_and_a_short_queue() {
    check(Setting { protocol: "0", workers: 4, concurrency: 1, steps: 500, queue: 40 });
}

#[test]
fn version_2_with_one_worker_and_concurrency_1() {
    check(Setting { protocol: "2", workers: 1, concurrency: 1, steps: 2_000, queue: LONG_QUEUE });
}

#[test]
fn version_2_with_four_workers_and_concurrency_1() {
    check(Setting { protocol: "2", workers: 4, concurrency: 1, steps: 2_000, queue: LONG_QUEUE });
}

#[test]
fn version_2_with_one_worker_and_concurrency_16() {
    check(Setting { protocol: "2", workers: 1, concurrency: 16, steps: 2_000, queue: LONG_QUEUE });
}

#[test]
fn version_2_with_three_workers_concurrency_5_and_a_short_queue() {
    check(Setting { protocol: "2", workers: 3, concurrency: 5, steps: 2_000, queue: 40 });
}
