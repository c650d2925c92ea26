//! The proxy of a test: `pipeloop serve` on a free port, in a directory of its own, with its output captured.

use std::ffi::OsStr;
use std::fs;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::{Value, json};
use testkit::command::set_environment;
use testkit::proxy::{Launch, Output};

use super::{BAD_ANSWER, Logs, Response, SENTINEL, WAIT_LIMIT, action, eventually};

/// A running `pipeloop serve`. It is killed with its actions when it is dropped, and reports itself if its test fails.
pub(crate) struct Proxy {
    running: testkit::proxy::Proxy,
    directory: tempfile::TempDir,
}

impl Deref for Proxy {
    type Target = testkit::proxy::Proxy;

    fn deref(&self) -> &Self::Target {
        &self.running
    }
}

impl Proxy {
    /// Starts `pipeloop serve` with these arguments, and no environment but `PATH` and these variables, and waits
    /// until it listens.
    #[track_caller]
    pub(crate) fn start<S: AsRef<OsStr>>(args: &[S], env: &[(&str, &str)]) -> Self {
        Self::start_under(&[], args, env)
    }

    /// The same, started by another program, which stays its parent and exits with its status.
    #[track_caller]
    pub(crate) fn start_under<S: AsRef<OsStr>>(launcher: &[&str], args: &[S], env: &[(&str, &str)]) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        // Some levels below the directory of the test, so that a test can look for files outside of the working directory.
        let workdir = directory.path().join("a/b/c/work");
        fs::create_dir_all(&workdir).expect("the directory can be written");

        let serve = [env!("CARGO_BIN_EXE_pipeloop"), "serve", "--host", "127.0.0.1", "--port", "0"];
        let words = launcher.iter().copied().chain(serve).chain(["--port-file", "{port_file}"]);
        let words: Vec<_> = words.map(str::to_owned).collect();
        let launch = Launch::new(&words, None, &directory.path().join("port")).expect("a command");
        let mut command = launch.command();
        command.args(args).current_dir(&workdir);
        set_environment(&mut command, env);
        let mut running = launch.start(command, Output::Capture).expect("the binary can be started");
        running.await_port(Instant::now() + WAIT_LIMIT).unwrap_or_else(|reason| panic!("{reason}"));
        if !launcher.is_empty() {
            running.look_behind_launcher("pipeloop").unwrap_or_else(|reason| panic!("{reason}"));
        }
        Self { running, directory }
    }

    /// Starts a proxy with a protocol set for the container.
    #[track_caller]
    pub(crate) fn with_protocol(name: &str) -> Self {
        Self::start::<&str>(&[], &[("PIPELOOP_PROTOCOL", name)])
    }

    /// Starts a proxy with the default settings.
    #[track_caller]
    pub(crate) fn plain() -> Self {
        Self::start::<&str>(&[], &[])
    }

    /// The directory in which the proxy runs, a few levels below [`Proxy::directory`].
    pub(crate) fn workdir(&self) -> PathBuf {
        self.directory().join("a/b/c/work")
    }

    /// The directory of this test.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Sends a request and checks the form that every answer has.
    #[track_caller]
    fn call(&self, path: &str, body: &[u8]) -> Response {
        let response = self.caller().call("POST", path, body);
        response.check_shape();
        response
    }

    /// POST /init with this body.
    #[track_caller]
    pub(crate) fn init_raw(&self, body: &str) -> Response {
        self.call("/init", body.as_bytes())
    }

    /// POST /init with this `value`.
    #[track_caller]
    pub(crate) fn init_value(&self, value: &Value) -> Response {
        self.init_raw(&json!({ "value": value }).to_string())
    }

    /// POST /init with code as text.
    #[track_caller]
    pub(crate) fn init(&self, code: &str) -> Response {
        self.init_value(&json!({"name": "test", "main": "main", "code": code, "binary": false}))
    }

    /// POST /init with code as base64.
    #[track_caller]
    pub(crate) fn init_binary(&self, code: &[u8]) -> Response {
        let code = base64_simd::STANDARD.encode_to_string(code);
        self.init_value(&json!({"name": "test", "main": "main", "code": code, "binary": true}))
    }

    /// POST /init with an executable from `tests/actions/` and variables for it, which must work.
    #[track_caller]
    pub(crate) fn init_action(&self, name: &str, env: &Value) {
        let code = action(name);
        self.init_value(&json!({"name": name, "main": "main", "code": code, "binary": false, "env": env}))
            .check(200, &json!({"ok": true}));
    }

    /// POST /run with this body.
    #[track_caller]
    pub(crate) fn run_raw(&self, body: &str) -> Response {
        self.call("/run", body.as_bytes())
    }

    /// POST /run with these arguments.
    #[track_caller]
    pub(crate) fn run(&self, value: &Value) -> Response {
        self.run_raw(&json!({"value": value, "activation_id": "test"}).to_string())
    }

    /// Waits until its logs meet a condition.
    #[track_caller]
    pub(crate) fn wait_for(&self, what: &str, mut condition: impl FnMut(&Logs) -> bool) -> Logs {
        eventually(what, || Some(self.logs()).filter(|logs| condition(logs)))
    }

    /// Its logs without sentinels. Each stream must have this many sentinels. The proxy sends an answer after them, so
    /// this does not wait.
    #[track_caller]
    pub(crate) fn check_streams(&self, sentinels: usize) -> Logs {
        let logs = self.logs();
        let strip = |name: &str, text: &str| {
            let count = text.lines().filter(|line| *line == SENTINEL).count();
            assert_eq!(count, sentinels, "sentinels on lines of their own on {name}: {text:?}");
            assert_eq!(text.matches(SENTINEL).count(), sentinels, "sentinels on {name}: {text:?}");
            text.replace(&format!("{SENTINEL}\n"), "")
        };
        Logs { stdout: strip("stdout", &logs.stdout), stderr: strip("stderr", &logs.stderr) }
    }

    /// Acts while the proxy's output is left unread, so that its pipes fill up.
    pub(crate) fn while_output_is_unread<T>(&self, act: impl FnOnce() -> T) -> T {
        let [stdout, stderr] = self.output().expect("the output is captured");
        let _unread = (stdout.leave_unread(), stderr.leave_unread());
        act()
    }

    /// How many bytes of stderr are in its pipe, while they are left unread.
    pub(crate) fn unread_bytes(&self) -> u64 {
        let [_, stderr] = self.output().expect("the output is captured");
        stderr.unread_bytes().expect("it is a pipe")
    }

    /// Stops the proxy and its actions for this long, as the freezer of a container does.
    pub(crate) fn freeze(&self, time: Duration) {
        let actions: Vec<_> = self.actions().into_iter().filter_map(Pid::from_raw).collect();
        let signal = |signal| {
            // The proxy first, also when it continues: that is the harder order.
            self.signal(signal);
            for action in &actions {
                kill_process_group(*action, signal).expect("the action lives");
            }
        };
        signal(Signal::STOP);
        // The one fixed time: a freeze has a duration.
        std::thread::sleep(time);
        signal(Signal::CONT);
        // Once another request has its answer, the proxy has handled all expired timers.
        self.caller().call("GET", "/", b"");
        self.caller().call("GET", "/", b"");
    }

    /// Sends a signal to the proxy, but not to its actions.
    #[track_caller]
    pub(crate) fn signal(&self, signal: Signal) {
        self.running.signal(signal).expect("the proxy lives");
    }

    /// Stops the proxy as a platform does: SIGTERM, status 0, and no process of its actions is left.
    #[track_caller]
    pub(crate) fn stop(&mut self) {
        self.running.stop_in_order();
    }

    /// Waits until the proxy exits.
    #[track_caller]
    pub(crate) fn wait(&mut self) -> ExitStatus {
        eventually("the proxy ends", || self.status())
    }
}

/// An action whose first answer is unusable: the caller gets the fixed text, and the log shows the offending output.
#[track_caller]
pub(crate) fn check_bad_answer(protocol: &str, code: &str, offending: &str) {
    let proxy = Proxy::with_protocol(protocol);
    proxy.init(code).check(200, &json!({"ok": true}));
    let response = proxy.run(&json!({}));
    assert_eq!(response.status, 502, "{}", response.text());
    assert!(response.error().starts_with(BAD_ANSWER), "{}", response.error());
    let logs = proxy.check_streams(1);
    assert!(logs.stderr.contains(offending), "{offending:?} in the log");
}

/// A program without a handshake that echoes its arguments: the proxy detects that it waits for its first line.
#[track_caller]
pub(crate) fn check_detected(code: &str) {
    let proxy = Proxy::start(&["--init-timeout", "15s"], &[]);
    proxy.init(code).check(200, &json!({"ok": true}));
    for n in 1..=3 {
        proxy.run(&json!({ "n": n })).check(200, &json!({ "n": n }));
    }
    proxy.check_streams(3);
}
