//! The engine, driven by its command line, and containers that are removed when dropped.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::process::{Command, Output};
use std::thread;
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::{Value, json};
use testkit::http::{Caller, Response};
use testkit::output::{Logs, SENTINEL};
use testkit::processes::{self, ProcessEntry};
use testkit::wait::eventually;

/// A variable that `e2e/run` sets.
pub(crate) fn setting(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: these tests are started by e2e/run"))
}

/// How long a container stays frozen.
pub(crate) fn pause() -> Duration {
    Duration::from_secs(setting("PIPELOOP_E2E_PAUSE").parse().expect("a number of seconds"))
}

/// Runs a command of the engine's client and returns its output.
pub(crate) fn try_docker<S: AsRef<OsStr>>(words: &[S]) -> Output {
    Command::new(setting("PIPELOOP_E2E_DOCKER")).args(words).output().expect("there is a client")
}

/// The same for a command that must work. Returns its standard output.
#[track_caller]
pub(crate) fn docker<S: AsRef<OsStr>>(words: &[S]) -> String {
    let output = try_docker(words);
    let shown: Vec<_> = words.iter().map(|word| word.as_ref().to_string_lossy()).collect();
    assert!(output.status.success(), "docker {}: {}", shown.join(" "), String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
}

/// A container. It is removed with everything in it when it is dropped, and reports itself if its test fails.
pub(crate) struct Container {
    id: String,
    command: String,
    pid: i32,
}

impl Container {
    /// Starts a container without a network. `arguments` go to the entry point.
    #[track_caller]
    pub(crate) fn start(image: &str, options: &[&str], arguments: &[&str]) -> Self {
        let words = [&["run", "--detach", "--network", "none"], options, &[image], arguments].concat();
        let id = docker(&words);
        let mut container = Self { id, command: words.join(" "), pid: 0 };
        container.pid = container.inspect("{{.State.Pid}}").parse().expect("a pid");
        container
    }

    /// The same, and waits until the proxy listens.
    #[track_caller]
    pub(crate) fn serving(image: &str, options: &[&str], arguments: &[&str]) -> Self {
        let container = Self::start(image, options, arguments);
        eventually("the proxy listens", || {
            assert!(container.runs(), "the container ended instead of listening");
            container.connect().ok()
        });
        container
    }

    /// Asks the engine for a fact.
    #[track_caller]
    pub(crate) fn inspect(&self, format: &str) -> String {
        docker(&["inspect", "--format", format, &self.id])
    }

    /// `docker VERB … CONTAINER`.
    #[track_caller]
    pub(crate) fn docker(&self, verb: &[&str]) {
        docker(&[verb, &[self.id.as_str()]].concat());
    }

    #[track_caller]
    pub(crate) fn kill(&self, signal: &str) {
        self.docker(&["kill", "--signal", signal]);
    }

    pub(crate) fn runs(&self) -> bool {
        self.inspect("{{.State.Running}}") == "true"
    }

    /// Waits for the container's end and returns its exit status.
    #[track_caller]
    pub(crate) fn wait(&self) -> String {
        eventually("the container ends", || (!self.runs()).then_some(()));
        assert!(self.processes().is_empty(), "processes outlive the container");
        self.inspect("{{.State.ExitCode}}")
    }

    /// Every process in the container, found by its cgroup, including zombies.
    pub(crate) fn processes(&self) -> Vec<ProcessEntry> {
        let is_here = |process: &ProcessEntry| {
            fs::read_to_string(format!("/proc/{}/cgroup", process.pid)).is_ok_and(|text| text.contains(&self.id))
        };
        processes::all().into_iter().filter(is_here).collect()
    }

    /// The first process: the proxy, unless the engine put its init there.
    pub(crate) fn pid(&self) -> i32 {
        self.pid
    }

    /// The action's processes: the proxy's children that live, when the proxy is PID 1.
    pub(crate) fn actions(&self) -> Vec<i32> {
        processes::children(self.pid)
    }

    fn connect(&self) -> io::Result<TcpStream> {
        let network = format!("/proc/{}/ns/net", self.pid);
        // The thread enters the network namespace, and the socket that it creates stays there.
        let visitor = thread::spawn(move || {
            move_into_link_name_space(File::open(network)?.as_fd(), Some(LinkNameSpaceType::Network))?;
            TcpStream::connect(("127.0.0.1", 8080))
        });
        visitor.join().expect("the thread does not panic")
    }

    /// A new connection.
    #[track_caller]
    pub(crate) fn caller(&self) -> Caller {
        self.try_caller().expect("the proxy accepts a connection")
    }

    /// A new connection, if the proxy still accepts one.
    pub(crate) fn try_caller(&self) -> io::Result<Caller> {
        self.connect().and_then(Caller::over)
    }

    #[track_caller]
    fn call(&self, path: &str, body: &Value) -> Response {
        let response = self.caller().call("POST", path, body.to_string().as_bytes());
        response.check_shape();
        response
    }

    /// POST /init with code.
    #[track_caller]
    pub(crate) fn init(&self, code: &[u8]) -> Response {
        let code = base64_simd::STANDARD.encode_to_string(code);
        self.call("/init", &json!({"value": {"name": "test", "main": "main", "code": code, "binary": true}}))
    }

    /// POST /run with these arguments.
    #[track_caller]
    pub(crate) fn run(&self, value: &Value) -> Response {
        self.call("/run", &json!({"value": value, "activation_id": "test"}))
    }

    /// Starts an activation that logs `begun`, and returns once that is in the log.
    #[track_caller]
    pub(crate) fn begin(&self, value: &Value) -> Caller {
        let mut caller = self.caller();
        caller.send_request("POST", "/run", json!({ "value": value }).to_string().as_bytes());
        eventually("the activation runs", || self.logs().stderr.ends_with("begun\n").then_some(()));
        caller
    }

    /// The same with an activation that sleeps.
    #[track_caller]
    pub(crate) fn begin_sleep(&self, ms: u64) -> Caller {
        self.begin(&json!({ "sleep_ms": ms }))
    }

    /// The output of `docker logs`.
    #[track_caller]
    pub(crate) fn logs(&self) -> Logs {
        let output = try_docker(&["logs", &self.id]);
        assert!(output.status.success(), "docker logs: {}", String::from_utf8_lossy(&output.stderr));
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Logs { stdout: text(&output.stdout), stderr: text(&output.stderr) }
    }

    /// Waits until `docker logs` shows exactly this. The engine gets the log through two pipes, so it may have it after
    /// the answer.
    #[track_caller]
    pub(crate) fn check_logs(&self, stdout: &str, stderr: &str) {
        let expected = Logs { stdout: stdout.to_owned(), stderr: stderr.to_owned() };
        eventually(&format!("the logs are {expected:?}"), || (self.logs() == expected).then_some(()));
    }

    /// Waits until `docker logs` shows this many sentinels on each stream, and checks that it does not show more.
    #[track_caller]
    pub(crate) fn check_sentinels(&self, count: usize) {
        let sentinels = |text: &str| text.lines().filter(|line| *line == SENTINEL).count();
        let seen = || {
            let logs = self.logs();
            (sentinels(&logs.stdout), sentinels(&logs.stderr))
        };
        eventually(&format!("{count} sentinels on each stream"), || (seen() == (count, count)).then_some(()));
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if thread::panicking() {
            let output = try_docker(&["logs", &self.id]);
            eprintln!("--- docker {}", self.command);
            let state = try_docker(&["inspect", "--format", "{{json .State}}", &self.id]).stdout;
            eprintln!("--- state: {}", String::from_utf8_lossy(&state));
            eprintln!("--- processes: {:?}", self.processes());
            eprintln!("--- stdout:\n{}", String::from_utf8_lossy(&output.stdout));
            eprintln!("--- stderr:\n{}---", String::from_utf8_lossy(&output.stderr));
        }
        // A frozen container must be thawed before it can be removed.
        let _ = try_docker(&["unpause", &self.id]);
        let _ = try_docker(&["rm", "--force", "--volumes", &self.id]);
    }
}
