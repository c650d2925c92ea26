//! The protocol as data, played against a proxy: any proxy that has `/init` and `/run`.
//!
//! A case ([`case`]) says what callers send and what they and the log must see; its executable is one
//! shell script, `conformance/actor.sh`, which plays the case's own script. So the proxy gets a real
//! upload, and nothing of it is replaced. `pipeloop conformance` and the tests run cases by [`play`].
//!
//! The runner is a caller from outside. It shares nothing with the proxy that it tests, pipeloop included. It starts
//! and calls a proxy by the crate `testkit`.
//!
//! # Theory of operation
//! Each case has a directory, in which the proxy is started and where events are empty files: the executable raises
//! an event by making its file, and waits for one by looking for it. In this way a case fixes an order without naming
//! a time. All waiting ends at the deadline of the case, and the case then reports what hangs.

mod caller;
pub mod case;
mod proxy;
mod stream;

use std::fmt;
use std::io::{self, Cursor, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, test_kill_process};
use serde_json::{Value, json};

use testkit::http::{Response, is_timeout};
use testkit::output::{Logs, SENTINEL};
use testkit::wait::{POLL_INTERVAL, now_ms, poll_until};

use caller::Caller;
use case::{Callers, Case, Expect, File, Init, Kind, Log, Run, Send, Status, Step, Stop};
pub use proxy::Target;
use proxy::{CaseDirectory, CaseProxy};

/// The executable of every case.
const ACTOR: &str = include_str!("../actor.sh");

/// How long after an answer its log may still be on its way through pipes and other programs.
const LOG_DELAY: Duration = Duration::from_secs(1);

/// How long after the loss of its connections a proxy that dies may take to be dead.
const END_DELAY: Duration = Duration::from_millis(500);

/// How far off the deadline is that `@soon@` stands for.
const SOON: Duration = Duration::from_millis(500);

/// How much of a text stands in a reason.
const EXCERPT: usize = 160;

/// How a case came out.
#[derive(Debug)]
pub enum Verdict {
    /// All is as it must be.
    Passed,
    /// All that could be seen is as it must be; this could not be seen.
    PassedAsSeen(String),
    /// What is not as it must be.
    Failed(String),
    /// It was not tried, and why.
    NotRun(String),
}

/// Plays a case against a proxy, in this time.
#[must_use]
pub fn play(case: &Case, target: &Target, limit: Duration) -> Verdict {
    if let (Target::Url { .. }, Some(reason)) = (target, case.needs_a_start()) {
        return Verdict::NotRun(format!("{reason}, and it runs already: give a command"));
    }
    let deadline = Instant::now() + limit;
    let directory = match CaseDirectory::new() {
        Ok(directory) => directory,
        Err(error) => return Verdict::Failed(format!("no directory for the case: {error}")),
    };
    let proxy = match CaseProxy::new(target, &case.proxy, &directory, deadline) {
        Ok(proxy) => proxy,
        Err(reason) => return Verdict::Failed(reason),
    };
    let stage = Stage { case, proxy, directory, deadline, limit, number: AtomicUsize::new(0) };
    let mut played = stage.steps(&case.steps, "step");
    if let (Ok(()), Some(log)) = (&played, &case.log) {
        played = stage.log(log).map_err(|reason| format!("at the end, {reason}"));
    }
    match played {
        Err(reason) => Verdict::Failed(reason),
        Ok(()) if stage.sees() => Verdict::Passed,
        Ok(()) if case.log.is_some() || case.steps.iter().any(|step| matches!(step, Step::Log(_))) => {
            Verdict::PassedAsSeen("its log cannot be seen from here".into())
        }
        Ok(()) if case.steps.iter().any(|step| matches!(step, Step::Absent(_))) => {
            Verdict::PassedAsSeen("its files cannot be seen from here".into())
        }
        Ok(()) => Verdict::Passed,
    }
}

/// A case that is being played.
struct Stage<'a> {
    case: &'a Case,
    proxy: CaseProxy,
    directory: CaseDirectory,
    deadline: Instant,
    limit: Duration,
    /// The last number that a call was given.
    number: AtomicUsize,
}

/// What went wrong in a step, to be shown behind its name.
type Played = Result<(), String>;

impl Stage<'_> {
    /// Whether log and files of the proxy can be seen.
    fn sees(&self) -> bool {
        self.proxy.logs().is_some()
    }

    fn steps(&self, steps: &[Step], place: &str) -> Played {
        let mut caller = self.caller();
        for (at, step) in steps.iter().enumerate() {
            let place = format!("{place} {}", at + 1);
            self.step(step, &mut caller, &place).map_err(|reason| {
                let nested = matches!(step, Step::Together(_));
                if nested { reason } else { format!("{place}, {}: {reason}", Named(step)) }
            })?;
        }
        Ok(())
    }

    fn caller(&self) -> Caller {
        Caller::new(self.proxy.address, &self.proxy.host, self.deadline)
    }

    fn step(&self, step: &Step, caller: &mut Caller, place: &str) -> Played {
        match step {
            Step::Init(init) => self.init(init, caller),
            Step::Run(run) => self.run(run, caller, None),
            Step::Send(Send { method, path, text, expect }) => {
                let body = text.as_ref().map(|text| text.whole(None)).unwrap_or_default();
                self.sent(caller.send(method, path, body.as_bytes()))?;
                self.expect(caller, expect, None)
            }
            Step::Await(event) => self.await_event(event),
            Step::Gone(event) => {
                let path = self.directory.events().join(event);
                let gone = || {
                    let pid = std::fs::read_to_string(&path).ok()?.strip_suffix('\n')?.parse().ok();
                    // A process exists until it is reaped.
                    Some(test_kill_process(Pid::from_raw(pid?)?) == Err(Errno::SRCH))
                };
                self.wait("the executable is still there", || gone() == Some(true))
            }
            Step::Raise(event) => self.raise(event),
            Step::Together(callers) => {
                together(callers, |number, steps| self.steps(steps, &format!("{place}, caller {number}, step")))
            }
            Step::Callers(Callers { count, calls, run }) => {
                let each: Vec<_> = (0..*count).collect();
                together(&each, |_, _| {
                    let mut caller = self.caller();
                    (0..*calls).try_for_each(|_| {
                        let number = self.number.fetch_add(1, Ordering::Relaxed);
                        self.run(run, &mut caller, Some(number)).map_err(|reason| format!("call {number}: {reason}"))
                    })
                })
            }
            Step::Log(log) => self.log(log),
            Step::Absent(name) => match self.directory.find(name) {
                Some(path) if self.sees() => Err(format!("it was written: {}", path.display())),
                _ => Ok(()),
            },
            Step::Stop(Stop { status }) => match self.proxy.stop(self.deadline) {
                None => Ok(()),
                Some(Ok(ended)) if ended.code() == Some(*status) => Ok(()),
                Some(Ok(ended)) => Err(format!("expected exit status {status}, got {ended}")),
                Some(Err(reason)) => Err(reason),
            },
        }
    }

    fn await_event(&self, event: &str) -> Played {
        let path = self.directory.events().join(event);
        self.wait("the executable did not get there", || path.exists())
    }

    fn raise(&self, event: &str) -> Played {
        std::fs::write(self.directory.events().join(event), "").map_err(|error| error.to_string())
    }

    /// Waits for something that is to be seen, until the deadline.
    fn wait(&self, what: &str, mut is_so: impl FnMut() -> bool) -> Played {
        while !is_so() {
            if let Some(ended) = self.proxy.ended() {
                // It may have come about with the proxy's end.
                return if is_so() { Ok(()) } else { Err(format!("the proxy ended: {ended}")) };
            }
            if Instant::now() > self.deadline {
                return Err(format!("hangs: {what} within {:?}", self.limit));
            }
            std::thread::sleep(POLL_INTERVAL);
        }
        Ok(())
    }

    fn init(&self, init: &Init, caller: &mut Caller) -> Played {
        let body = match &init.text {
            Some(text) => text.whole(None),
            None => self.upload(init).map_err(|error| format!("no archive: {error}"))?,
        };
        self.sent(caller.send("POST", "/init", body.as_bytes()))?;
        self.expect(caller, &init.expect, None)
    }

    /// The body of an init with an archive of the executable and its script.
    fn upload(&self, init: &Init) -> Result<String, zip::result::ZipError> {
        let mut script = self.case.action.join("\n");
        script.push('\n');
        let events = format!("{}\n", self.directory.events().display());
        let archive = archive(&script, &events, &self.case.files)?;
        let mut value = json!({
            "name": "conformance",
            "main": "main",
            "binary": true,
            "code": base64_simd::STANDARD.encode_to_string(archive),
            "env": {"PIPELOOP_PROTOCOL": self.case.protocol},
        });
        for (name, member) in &init.value {
            match (name.as_str(), member) {
                ("env", Value::Object(variables)) => {
                    for (name, variable) in variables {
                        value["env"][name] = variable.clone();
                    }
                }
                _ => value[name] = member.clone(),
            }
        }
        Ok(json!({ "value": value }).to_string())
    }

    fn run(&self, run: &Run, caller: &mut Caller, number: Option<usize>) -> Played {
        let body = match (&run.text, &run.value) {
            (Some(text), _) => text.whole(number),
            (None, Some(value)) => json!({ "value": value }).to_string(),
            (None, None) => json!({ "value": {} }).to_string(),
        };
        let body = body.replace("@soon@", &soon().to_string());
        self.sent(caller.send_run(run.accept.as_deref(), body.as_bytes(), run.chunks))?;
        if let Some(event) = &run.leave_after {
            let waited = self.await_event(event);
            caller.leave();
            return waited;
        }
        if run.stream.is_empty() { self.expect(caller, &run.expect, number) } else { self.stream(caller, run) }
    }

    fn sent(&self, sent: io::Result<()>) -> Played {
        match sent {
            Ok(()) => Ok(()),
            // The proxy may have answered and closed before it read the whole request. The answer then decides.
            Err(error) if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => Ok(()),
            Err(error) => Err(self.broken(&error)),
        }
    }

    fn expect(&self, caller: &mut Caller, expect: &Expect, number: Option<usize>) -> Played {
        let answer = caller.receive().map_err(|error| self.broken(&error))?;
        if expect.any.is_empty() {
            return check(&answer, expect, number);
        }
        let reasons: Vec<_> = expect.any.iter().filter_map(|expect| check(&answer, expect, number).err()).collect();
        if reasons.len() < expect.any.len() { Ok(()) } else { Err(reasons.join("; nor else: ")) }
    }

    /// Why there is no answer.
    fn broken(&self, error: &io::Error) -> String {
        if is_timeout(error) {
            return format!("hangs: no answer within {:?}", self.limit);
        }
        // A proxy that dies loses its connections a moment before it can be waited for.
        match poll_until(Instant::now() + END_DELAY, || self.proxy.ended()) {
            Some(ended) => format!("the proxy ended: {ended}"),
            None => format!("no answer: {error}"),
        }
    }

    fn log(&self, log: &Log) -> Played {
        let deadline = (Instant::now() + LOG_DELAY).min(self.deadline);
        let mut checked = Ok(());
        let _ = poll_until(deadline, || {
            checked = self.proxy.logs().map_or(Ok(()), |logs| check_log(log, &logs));
            checked.is_ok().then_some(())
        });
        checked
    }
}

/// Acts for each of these at once. All of them end, and the first failure is reported.
fn together<T: Sync>(all: &[T], act: impl Fn(usize, &T) -> Played + Sync) -> Played {
    let act = &act;
    let results: Vec<Played> = std::thread::scope(|scope| {
        let threads: Vec<_> = all.iter().enumerate().map(|(at, each)| scope.spawn(move || act(at + 1, each))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| Err("the runner panicked".into()))).collect()
    });
    let failed: Vec<_> = results.into_iter().filter_map(Result::err).collect();
    match &failed[..] {
        [] => Ok(()),
        [reason] => Err(reason.clone()),
        // If the proxy ended, that explains the other failures.
        [first, ..] => {
            let reported = failed.iter().find(|reason| reason.contains("the proxy ended")).unwrap_or(first);
            Err(format!("{reported} ({} of {} callers failed)", failed.len(), all.len()))
        }
    }
}

/// A zip of the actor, its script, and more files with names as they are.
fn archive(script: &str, events: &str, files: &[File]) -> Result<Vec<u8>, zip::result::ZipError> {
    let options = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    let mut writer = zip::ZipWriter::new(Cursor::new(Vec::new()));
    let own = [("exec", ACTOR, 0o755), ("scenario", script, 0o644), ("events", events, 0o644)];
    let more = files.iter().map(|file| (file.path.as_str(), file.text.as_str(), 0o644));
    for (name, text, mode) in own.into_iter().chain(more) {
        writer.start_file(name, options.unix_permissions(mode))?;
        writer.write_all(text.as_bytes())?;
    }
    Ok(writer.finish()?.into_inner())
}

fn check(answer: &Response, expect: &Expect, number: Option<usize>) -> Played {
    let body = String::from_utf8_lossy(&answer.body);
    let got = || format!("got {} {}", answer.status, excerpt(body.trim_end()));
    match expect.status {
        Status::Exactly(status) if answer.status != status => {
            return Err(format!("expected status {status}, {}", got()));
        }
        Status::Kind(Kind::Error) if !(400..600).contains(&answer.status) || answer.status == 503 => {
            return Err(format!("expected an error, {}", got()));
        }
        _ => {}
    }
    if let Some(text) = &expect.text {
        let text = text.whole(number);
        if body.trim_end() != text {
            return Err(format!("expected {}, {}", excerpt(&text), got()));
        }
    }
    let parsed: Option<Value> = serde_json::from_slice(&answer.body).ok();
    if let Some(expected) = &expect.body
        && parsed.as_ref() != Some(expected)
    {
        return Err(format!("expected {}, {}", excerpt(&expected.to_string()), got()));
    }
    if let Some(texts) = &expect.error {
        let object = parsed.as_ref().and_then(Value::as_object).filter(|object| object.len() == 1);
        let error = object.and_then(|object| object.get("error")?.as_str());
        let error = error.ok_or_else(|| format!("expected one member `error` with a sentence, {}", got()))?;
        if let Some(missing) = texts.iter().find(|text| !error.contains(*text)) {
            return Err(format!("expected an error that says `{missing}`, {}", got()));
        }
    }
    for (name, value) in &expect.headers {
        let value = value.replace("@length@", &answer.body.len().to_string());
        let found = answer.header(name);
        if found != Some(&value) {
            return Err(format!("expected the header `{name}: {value}`, got {}", found.unwrap_or("none")));
        }
    }
    Ok(())
}

fn check_log(log: &Log, logs: &Logs) -> Played {
    for (name, expected, text) in [("stdout", &log.stdout, &logs.stdout), ("stderr", &log.stderr, &logs.stderr)] {
        let lines: Vec<&str> = text.lines().collect();
        let activations: Vec<&[&str]> = lines.split(|line| *line == SENTINEL).collect();
        // Behind the last sentinel there is nothing, unless something is expected there.
        let (done, behind) = (activations.len() - 1, activations[activations.len() - 1]);
        if let Some(sentinels) = log.sentinels
            && (done != sentinels || text.matches(SENTINEL).count() != sentinels)
        {
            return Err(format!(
                "expected {sentinels} sentinels on {name}, each on its own line, got {done}: {}",
                excerpt(text)
            ));
        }
        let Some(expected) = expected else { continue };
        let complete = expected.len() == activations.len() || (expected.len() == done && behind.is_empty());
        if !complete {
            return Err(format!(
                "expected the log of {} activations on {name} and nothing behind it, got {done} and {}: {}",
                expected.len(),
                if behind.is_empty() { "nothing" } else { "more" },
                excerpt(text)
            ));
        }
        for (at, (expected, lines)) in expected.iter().zip(&activations).enumerate() {
            let expected: Vec<_> = expected.iter().map(|text| text.whole(None)).collect();
            if !lines_match(&expected, lines) {
                let (expected, got) = (excerpt(&expected.join("\n")), excerpt(&lines.join("\n")));
                return Err(format!("expected as log {} on {name}: {expected}, got {got}", at + 1));
            }
        }
    }
    Ok(())
}

/// Whether these are the lines, where `…` stands for any, and for any text within one.
fn lines_match(expected: &[String], lines: &[&str]) -> bool {
    match expected {
        [] => lines.is_empty(),
        [any, rest @ ..] if any == "…" => (0..=lines.len()).any(|at| lines_match(rest, &lines[at..])),
        [first, rest @ ..] => {
            lines.first().is_some_and(|line| line_matches(first, line)) && lines_match(rest, &lines[1..])
        }
    }
}

fn line_matches(expected: &str, line: &str) -> bool {
    let Some((begin, rest)) = expected.split_once('…') else { return expected == line };
    let Some(mut line) = line.strip_prefix(begin) else { return false };
    let (between, end) = rest.rsplit_once('…').unwrap_or(("", rest));
    for part in between.split('…') {
        let Some((_, behind)) = line.split_once(part) else { return false };
        line = behind;
    }
    line.ends_with(end)
}

/// A deadline that passes while its activation runs, in milliseconds since 1970.
fn soon() -> u128 {
    now_ms() + SOON.as_millis()
}

/// A text that fits into a reason.
fn excerpt(text: &str) -> String {
    let shown: String = text.chars().take(EXCERPT).map(|c| if c == '\n' { '⏎' } else { c }).collect();
    if shown.len() < text.len() && text.chars().count() > EXCERPT {
        format!("`{shown}…` ({} bytes)", text.len())
    } else {
        format!("`{shown}`")
    }
}

/// The name of a step in a reason.
struct Named<'a>(&'a Step);

impl fmt::Display for Named<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Step::Init(_) => write!(f, "POST /init"),
            Step::Run(_) => write!(f, "POST /run"),
            Step::Send(Send { method, path, .. }) => write!(f, "{method} {path}"),
            Step::Await(event) => write!(f, "waiting for `{event}`"),
            Step::Raise(event) => write!(f, "raising `{event}`"),
            Step::Gone(event) => write!(f, "waiting for the end of what raised `{event}`"),
            Step::Together(_) => write!(f, "callers at once"),
            Step::Callers(Callers { count, calls, .. }) => write!(f, "{count} callers at once, {calls} calls each"),
            Step::Log(_) => write!(f, "the log"),
            Step::Absent(name) => write!(f, "a file `{name}`"),
            Step::Stop(_) => write!(f, "SIGTERM"),
        }
    }
}
