//! A proxy of a test's own: `pipeloop serve` on a free port, in its own folder, with its streams read.

use std::ffi::OsStr;
use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use serde_json::{Value, json};

use super::{BAD_ANSWER, Caller, Response, SENTINEL, action, eventually, processes, search_path};

/// A running proxy. Killed, with its actions, when it is dropped; if the test fails, it says
/// everything there is to say first.
pub(crate) struct Proxy {
    child: Child,
    /// Its own pid: another than the child's if that is a program which started it.
    pid: i32,
    command: String,
    directory: tempfile::TempDir,
    port: u16,
    ended: Option<ExitStatus>,
    stdout: Captured,
    stderr: Captured,
}

/// The proxy's streams: the action's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Logs {
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Proxy {
    /// Starts `pipeloop serve` with these arguments, and no environment but `PATH` and these
    /// variables, and waits until it listens.
    #[track_caller]
    pub(crate) fn start<S: AsRef<OsStr>>(args: &[S], env: &[(&str, &str)]) -> Self {
        Self::start_under(&[], args, env)
    }

    /// The same, started by another program, which stays its parent and ends with its status.
    #[track_caller]
    pub(crate) fn start_under<S: AsRef<OsStr>>(launcher: &[&str], args: &[S], env: &[(&str, &str)]) -> Self {
        let directory = tempfile::tempdir().expect("a folder of its own");
        let port_file = directory.path().join("port");
        // Below the folder of the test, so that there is an outside to look at.
        let workdir = directory.path().join("a/b/c/work");
        fs::create_dir_all(&workdir).expect("the folder can be written");

        let mut words = launcher.iter().copied().chain([env!("CARGO_BIN_EXE_pipeloop"), "serve"]);
        let mut command = Command::new(words.next().expect("there is one"));
        command.args(words).args(["--host", "127.0.0.1", "--port", "0", "--port-file"]).arg(&port_file).args(args);
        command.env_clear().env("PATH", search_path()).envs(env.iter().copied()).current_dir(&workdir);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let shown = format!("{command:?} with {env:?}");
        let mut child = command.spawn().expect("the binary can be started");
        let stdout = Captured::new(child.stdout.take().expect("it is piped").into());
        let stderr = Captured::new(child.stderr.take().expect("it is piped").into());
        let pid = i32::try_from(child.id()).expect("a pid fits");
        let mut proxy = Self { child, pid, command: shown, directory, port: 0, ended: None, stdout, stderr };
        proxy.port = eventually("the proxy listens", || {
            assert!(proxy.try_status().is_none(), "the proxy ended instead of listening");
            fs::read_to_string(&port_file).ok()?.strip_suffix('\n')?.parse().ok()
        });
        if !launcher.is_empty() {
            proxy.pid = processes::child_named(pid, "pipeloop").expect("it is the launcher's child");
        }
        proxy
    }

    /// Starts a proxy with a protocol set for the container.
    #[track_caller]
    pub(crate) fn with_protocol(name: &str) -> Self {
        Self::start::<&str>(&[], &[("PIPELOOP_PROTOCOL", name)])
    }

    /// Starts a proxy with no setting at all.
    #[track_caller]
    pub(crate) fn plain() -> Self {
        Self::start::<&str>(&[], &[])
    }

    /// A new connection.
    #[track_caller]
    pub(crate) fn caller(&self) -> Caller {
        Caller::connect(self.port).expect("the proxy accepts a connection")
    }

    pub(crate) fn pid(&self) -> i32 {
        self.pid
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// The processes that it started and that live.
    pub(crate) fn actions(&self) -> Vec<i32> {
        processes::children(self.pid())
    }

    /// The folder it works in, a few levels below [`Proxy::directory`].
    pub(crate) fn workdir(&self) -> PathBuf {
        self.directory().join("a/b/c/work")
    }

    /// The folder of this test.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Everything that every answer must have is looked at here.
    #[track_caller]
    fn call(&self, path: &str, body: &[u8]) -> Response {
        let response = self.caller().call("POST", path, body);
        response.check_shape();
        response
    }

    /// POST /init with a body as it is.
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

    /// POST /run with a body as it is.
    #[track_caller]
    pub(crate) fn run_raw(&self, body: &str) -> Response {
        self.call("/run", body.as_bytes())
    }

    /// POST /run with these arguments.
    #[track_caller]
    pub(crate) fn run(&self, value: &Value) -> Response {
        self.run_raw(&json!({"value": value, "activation_id": "test"}).to_string())
    }

    /// What it has written by now, without the line that tells a port it chose itself.
    pub(crate) fn logs(&self) -> Logs {
        let stderr = self.stderr.text();
        let stderr = match stderr.split_once('\n') {
            Some((first, rest)) if first.starts_with("pipeloop: listening on port ") => rest.to_owned(),
            _ => stderr,
        };
        Logs { stdout: self.stdout.text(), stderr }
    }

    /// Waits until its logs are as they should be.
    #[track_caller]
    pub(crate) fn wait_for(&self, what: &str, mut condition: impl FnMut(&Logs) -> bool) -> Logs {
        eventually(what, || Some(self.logs()).filter(|logs| condition(logs)))
    }

    /// What it has written by now without sentinels, of which there must be exactly so many on each
    /// stream. The answer is sent after them, so nothing is waited for.
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

    /// Does something while nobody reads the proxy's streams, whose pipes then fill up.
    pub(crate) fn while_nobody_reads<T>(&self, act: impl FnOnce() -> T) -> T {
        let _nobody = (self.stdout.0.lock(), self.stderr.0.lock());
        act()
    }

    /// How much of stderr stands in its pipe, while nobody reads.
    pub(crate) fn unread_bytes(&self) -> u64 {
        rustix::io::ioctl_fionread(&self.stderr.0.end).expect("it is a pipe")
    }

    /// Stops the proxy and its actions for this long, as the freezer of a container does.
    pub(crate) fn freeze(&self, time: std::time::Duration) {
        let actions: Vec<_> = self.actions().into_iter().filter_map(Pid::from_raw).collect();
        let signal = |signal| {
            // The proxy first, also when it goes on: that is the harder way round.
            self.signal(signal);
            for action in &actions {
                kill_process_group(*action, signal).expect("the action lives");
            }
        };
        signal(Signal::STOP);
        // Time has to pass, for that is what a freeze is.
        std::thread::sleep(time);
        signal(Signal::CONT);
        // An answer to something else shows that all timers that are over have been looked at.
        self.caller().call("GET", "/", b"");
        self.caller().call("GET", "/", b"");
    }

    /// Sends a signal to the proxy alone.
    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(self.pid).expect("a pid is positive"), signal).expect("the proxy lives");
    }

    /// Ends the proxy as a platform does: SIGTERM, status 0, and nothing of the actions is left.
    #[track_caller]
    pub(crate) fn stop(&mut self) {
        let groups = self.actions();
        self.signal(Signal::TERM);
        let status = self.wait();
        assert_eq!(status.code(), Some(0), "{status}");
        for group in groups {
            // What is killed along with the action's own process may take a moment to be gone.
            eventually("nothing of the action is left", || processes::group(group).is_empty().then_some(()));
        }
    }

    /// Waits for its end, and for the end of its streams.
    #[track_caller]
    pub(crate) fn wait(&mut self) -> ExitStatus {
        eventually("the proxy ends", || self.try_status())
    }

    fn try_status(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().expect("the proxy is our child");
        }
        self.ended
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let status = self.try_status().map_or("running".to_owned(), |status| status.to_string());
            eprintln!("--- command: {}", self.command);
            eprintln!("--- directory: {}", self.workdir().display());
            eprintln!("--- status: {status}");
            eprintln!("--- stdout:\n{}", excerpt(&self.stdout.text()));
            eprintln!("--- stderr:\n{}---", excerpt(&self.stderr.text()));
        }
        let groups = if self.ended.is_none() { self.actions() } else { Vec::new() };
        let _ = self.child.kill();
        let _ = self.child.wait();
        // A killed proxy cannot stop its actions.
        for group in groups.into_iter().filter_map(Pid::from_raw) {
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

impl Logs {
    /// The log of each activation on a stream, and behind the last sentinel what belongs to none.
    pub(crate) fn activations(stream: &str) -> Vec<&str> {
        stream.split(&format!("{SENTINEL}\n")).collect()
    }

    /// Both streams, for texts that may stand on either.
    pub(crate) fn both(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }
}

/// Keeps the output of a failed test readable.
pub(crate) fn excerpt(text: &str) -> String {
    const MAX: usize = 6_000;
    if text.len() <= MAX {
        return text.to_owned();
    }
    let head: String = text.chars().take(MAX / 2).collect();
    let tail: Vec<char> = text.chars().rev().take(MAX / 2).collect();
    format!("{head}\n… ({} bytes in all) …\n{}", text.len(), tail.into_iter().rev().collect::<String>())
}

/// A stream that is read as it comes. Reading and asking exclude each other, so whoever asks sees
/// everything that was written before.
struct Captured(Arc<Pipe>);

struct Pipe {
    end: OwnedFd,
    text: Mutex<Vec<u8>>,
}

impl Captured {
    fn new(end: OwnedFd) -> Self {
        // Of our end alone: the proxy's has flags of its own.
        rustix::fs::fcntl_setfl(&end, OFlags::NONBLOCK).expect("a pipe can be non-blocking");
        let pipe = Arc::new(Pipe { end, text: Mutex::default() });
        let reader = pipe.clone();
        std::thread::spawn(move || {
            loop {
                let _ = poll(&mut [PollFd::new(&reader.end, PollFlags::IN)], None);
                if reader.take() {
                    return;
                }
            }
        });
        Self(pipe)
    }

    fn text(&self) -> String {
        self.0.take();
        String::from_utf8_lossy(&self.0.lock()).into_owned()
    }
}

impl Pipe {
    /// Also after a test failed while it held the lock: what was read then is what is to be shown.
    fn lock(&self) -> MutexGuard<'_, Vec<u8>> {
        self.text.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what is there. Whether that was the end.
    fn take(&self) -> bool {
        let mut text = self.lock();
        let mut chunk = vec![0; 64 * 1024];
        loop {
            match rustix::io::read(&self.end, &mut chunk) {
                Ok(0) => return true,
                Ok(count) => text.extend_from_slice(&chunk[..count]),
                Err(Errno::INTR) => {}
                Err(error) => return error != Errno::AGAIN,
            }
        }
    }
}

/// An action whose first answer is unusable: the caller gets the fixed text, and the log has what
/// was wrong with it.
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

/// A program without handshake that echoes arguments: it is seen to wait for its first line.
#[track_caller]
pub(crate) fn check_detected(code: &str) {
    let proxy = Proxy::start(&["--init-timeout", "15s"], &[]);
    proxy.init(code).check(200, &json!({"ok": true}));
    for n in 1..=3 {
        proxy.run(&json!({ "n": n })).check(200, &json!({ "n": n }));
    }
    proxy.check_streams(3);
}
