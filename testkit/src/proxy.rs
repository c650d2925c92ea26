//! A proxy that is started, called, observed and stopped: `pipeloop serve` or any other program with `/init` and
//! `/run`.
//!
//! # Theory of operation
//! [`Launch`] turns the words of a command into a [`Command`] by filling in `{port}` and `{port_file}`. Its caller
//! adds the environment and the directory, and [`Launch::start`] gives a [`Proxy`]. The proxy's status is a stored
//! fact: any thread may ask for it, as often as it likes. A signal goes to a process by its id. A proxy that is
//! dropped is killed, together with the process groups of its children, which it cannot stop any more.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use crate::command::{REPORTS, forget_proxy_settings, report};
use crate::http::Caller;
use crate::output::{CapturedOutput, Logs};
use crate::processes;
use crate::wait::{POLL_INTERVAL, eventually, poll_until};

/// The words of a proxy's command, with its port filled in.
#[derive(Debug)]
pub struct Launch {
    words: Vec<String>,
    port: Port,
}

/// How the port of a proxy becomes known.
#[derive(Debug)]
enum Port {
    /// It was chosen before the start.
    Chosen(u16),
    /// The proxy chooses it and writes it to this file.
    File(PathBuf),
}

/// Where the output of a proxy goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// Into [`Proxy::logs`].
    Capture,
    /// Nowhere. No reader wakes up for it.
    Discard,
    /// Where the output of this program goes.
    Inherit,
}

/// Whether the words of a command say where the port goes: `{port}` or `{port_file}`.
pub fn has_port_placeholder(words: &[String]) -> bool {
    words.iter().any(|word| word.contains("{port}") || word.contains("{port_file}"))
}

impl Launch {
    /// Fills in a free port for `{port}`, and this file for `{port_file}`, to which the proxy writes the port that it
    /// chose. A proxy that can do neither has a fixed port. A path of a program is one as seen from here.
    ///
    /// # Errors
    /// If the fixed port is taken, or there is no free port.
    pub fn new(words: &[String], fixed_port: Option<u16>, port_file: &Path) -> Result<Self, String> {
        let by_file = words.iter().any(|word| word.contains("{port_file}"));
        let port = match fixed_port {
            Some(port) if TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok() => {
                return Err(format!("something else listens on port {port} already"));
            }
            Some(port) => Port::Chosen(port),
            None if by_file => Port::File(port_file.to_owned()),
            None => Port::Chosen(free_port().map_err(|error| format!("no free port: {error}"))?),
        };
        let number = match port {
            Port::Chosen(port) => port,
            Port::File(_) => 0,
        };
        let fill = |word: &String| {
            word.replace("{port_file}", &port_file.to_string_lossy()).replace("{port}", &number.to_string())
        };
        let mut words: Vec<_> = words.iter().map(fill).collect();
        let program = words.first_mut().ok_or("no program is named")?;
        if program.contains('/') {
            let absolute = std::path::absolute(&*program).map_err(|error| format!("`{program}`: {error}"))?;
            *program = absolute.to_string_lossy().into_owned();
        }
        Ok(Self { words, port })
    }

    /// The command, which has no standard input and no setting of a proxy from this program's environment.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.words[0]);
        command.args(&self.words[1..]).stdin(Stdio::null());
        forget_proxy_settings(&mut command);
        command
    }

    /// Starts the command. The proxy need not listen yet.
    ///
    /// # Errors
    /// If the command cannot be started.
    pub fn start(&self, mut command: Command, output: Output) -> Result<Proxy, String> {
        let stdio = || match output {
            Output::Capture => Stdio::piped(),
            Output::Discard => Stdio::null(),
            Output::Inherit => Stdio::inherit(),
        };
        command.stdout(stdio()).stderr(stdio());
        let shown = if REPORTS { format!("{command:?}") } else { String::new() };
        let started = Instant::now();
        let mut child = command.spawn().map_err(|error| format!("cannot start `{}`: {error}", self.words[0]))?;
        let pid = Pid::from_child(&child);
        let capture = |end: std::os::fd::OwnedFd| CapturedOutput::new(end).map_err(|error| format!("no pipe: {error}"));
        let output = match (child.stdout.take(), child.stderr.take()) {
            (Some(stdout), Some(stderr)) => Some([capture(stdout.into())?, capture(stderr.into())?]),
            _ => None,
        };
        let directory = command.get_current_dir().unwrap_or(Path::new(".")).to_owned();
        let (port, port_file) = match &self.port {
            Port::Chosen(port) => (*port, None),
            Port::File(path) => (0, Some(path.clone())),
        };
        Ok(Proxy { child: Mutex::new(child), pid, port, port_file, started, output, shown, directory })
    }
}

/// A proxy that was started. It is killed when it is dropped. If a test panics while it holds this, the command, its
/// directory, its status and its output are printed.
#[derive(Debug)]
pub struct Proxy {
    child: Mutex<Child>,
    /// The proxy's own process id: another one than the child's if a launcher started it.
    pid: Pid,
    /// Zero until the port file is there.
    port: u16,
    port_file: Option<PathBuf>,
    started: Instant,
    output: Option<[CapturedOutput; 2]>,
    shown: String,
    directory: PathBuf,
}

impl Proxy {
    /// Waits until the proxy has chosen a port and written it to its port file, which `pipeloop serve` does when it
    /// listens.
    ///
    /// # Errors
    /// If the proxy ends, or the deadline passes.
    pub fn await_port(&mut self, deadline: Instant) -> Result<u16, String> {
        while let (0, Some(path)) = (self.port, &self.port_file) {
            let port = fs::read_to_string(path).ok();
            if let Some(port) = port.and_then(|text| text.strip_suffix('\n')?.parse().ok()) {
                self.port = port;
                break;
            }
            self.check_start(deadline)?;
            sleep(POLL_INTERVAL);
        }
        Ok(self.port)
    }

    /// Waits until the proxy accepts a connection, and returns it. The interval is how long to wait after a refusal.
    ///
    /// # Errors
    /// If the proxy ends, or the deadline passes.
    pub fn await_connection(&mut self, deadline: Instant, interval: Duration) -> Result<TcpStream, String> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.await_port(deadline)?));
        loop {
            if let Ok(stream) = TcpStream::connect(address) {
                return Ok(stream);
            }
            self.check_start(deadline)?;
            sleep(interval);
        }
    }

    fn check_start(&self, deadline: Instant) -> Result<(), String> {
        if let Some(ended) = self.end_report() {
            return Err(format!("the proxy ended instead of listening: {ended}"));
        }
        if Instant::now() > deadline {
            return Err("the proxy hangs: it does not listen".into());
        }
        Ok(())
    }

    /// From now on the proxy is the child of this name of the program that was started, which is a launcher.
    ///
    /// # Errors
    /// If there is no such child.
    pub fn look_behind_launcher(&mut self, name: &str) -> Result<(), String> {
        let pid = processes::child_named(self.pid(), name).and_then(Pid::from_raw);
        self.pid = pid.ok_or_else(|| format!("the launcher has no child `{name}`"))?;
        Ok(())
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// The port on which it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The moment just before it was started.
    pub fn started(&self) -> Instant {
        self.started
    }

    /// The living processes that it started: those of its action.
    pub fn actions(&self) -> Vec<i32> {
        processes::children(self.pid())
    }

    /// A new connection.
    ///
    /// # Panics
    /// If it is refused.
    #[track_caller]
    pub fn caller(&self) -> Caller {
        Caller::connect(self.port).expect("the proxy accepts a connection")
    }

    /// What it has printed by now, without the line by which a proxy names the port it chose. `None` where its output
    /// is not captured.
    pub fn try_logs(&self) -> Option<Logs> {
        let [stdout, stderr] = self.output.as_ref()?;
        let stderr = stderr.text();
        let stderr = match stderr.split_once('\n') {
            Some((first, rest)) if self.port_file.is_some() && first.contains(" listening on port ") => rest.to_owned(),
            _ => stderr,
        };
        Some(Logs { stdout: stdout.text(), stderr })
    }

    /// The same, of a proxy whose output is captured.
    ///
    /// # Panics
    /// If it is not.
    #[track_caller]
    pub fn logs(&self) -> Logs {
        self.try_logs().expect("the output is captured")
    }

    /// Both streams of a proxy whose output is captured: stdout and stderr.
    pub fn output(&self) -> Option<&[CapturedOutput; 2]> {
        self.output.as_ref()
    }

    /// Its exit status, if it has ended: that of the launcher, where there is one.
    pub fn status(&self) -> Option<ExitStatus> {
        self.child().try_wait().ok().flatten()
    }

    /// Its exit status if it has ended, with the line of its output that explains it best.
    pub fn end_report(&self) -> Option<String> {
        let status = self.status()?;
        let Some([_, stderr]) = &self.output else { return Some(status.to_string()) };
        let stderr = stderr.text();
        let line = stderr.lines().find(|line| line.starts_with("panic") || line.contains("panicked"));
        let line = line.or_else(|| stderr.lines().last());
        Some(line.map_or_else(|| status.to_string(), |line| format!("{status}: `{line}`")))
    }

    /// Sends a signal to the proxy alone.
    ///
    /// # Errors
    /// If the proxy has ended.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        Ok(kill_process(self.pid, signal)?)
    }

    /// Waits for its end. `None` if the deadline passes first.
    pub fn await_end(&self, deadline: Instant) -> Option<ExitStatus> {
        poll_until(deadline, || self.status())
    }

    /// Asks it to end with SIGTERM, and waits for that. `None` if the deadline passes first.
    pub fn stop(&self, deadline: Instant) -> Option<ExitStatus> {
        if let Some(status) = self.status() {
            return Some(status);
        }
        let _ = self.signal(Signal::TERM);
        self.await_end(deadline)
    }

    /// Ends the proxy as a platform does.
    ///
    /// # Panics
    /// If its status is not 0, or a process of its action lives on.
    #[track_caller]
    pub fn stop_in_order(&self) {
        let groups = self.actions();
        self.signal(Signal::TERM).expect("the proxy lives");
        let status = eventually("the proxy ends", || self.status());
        assert_eq!(status.code(), Some(0), "{status}");
        // A process that is killed with its group may take a moment to be gone.
        processes::await_end_of_groups(&groups);
    }

    /// Kills the proxy and the process groups of its children. Does nothing to a proxy that has ended.
    pub fn kill(&self) {
        if self.status().is_some() {
            return;
        }
        let children = processes::table().unwrap_or_default();
        let children = children.into_iter().filter(|process| process.parent == self.pid()).map(|process| process.pid);
        let groups: Vec<_> = children.filter_map(Pid::from_raw).collect();
        let mut child = self.child();
        if self.pid != Pid::from_child(&child) {
            let _ = self.signal(Signal::KILL);
        }
        let _ = child.kill();
        let _ = child.wait();
        for group in groups {
            let _ = kill_process_group(group, Signal::KILL);
        }
    }

    /// Kills the process group that the started program leads. This also ends a launcher and what it left behind.
    pub fn kill_group(&self) {
        let _ = kill_process_group(Pid::from_child(&self.child()), Signal::KILL);
    }

    fn child(&self) -> MutexGuard<'_, Child> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if REPORTS && std::thread::panicking() {
            let status = self.status().map_or("running".to_owned(), |status| status.to_string());
            let [stdout, stderr] =
                self.output.as_ref().map(|output| output.each_ref().map(CapturedOutput::text)).unwrap_or_default();
            report(&self.shown, &self.directory, &status, &stdout, &stderr);
        }
        self.kill();
    }
}

fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn the_port_goes_where_the_command_has_it() {
        let launch = Launch::new(&words("proxy --port {port} x"), None, Path::new("/file")).expect("a free port");
        let Port::Chosen(port) = launch.port else { panic!("{launch:?}") };
        assert_eq!(launch.words, words(&format!("proxy --port {port} x")));

        let launch = Launch::new(&words("proxy {port} {port_file}"), None, Path::new("/file")).expect("a command");
        assert_eq!(launch.words, words("proxy 0 /file"));
        assert!(Launch::new(&[], None, Path::new("/file")).is_err(), "no program");
    }

    #[test]
    fn a_fixed_port_must_be_free() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let port = listener.local_addr().expect("it has one").port();
        let reason = Launch::new(&words("proxy"), Some(port), Path::new("/file")).expect_err("the port is taken");
        assert_eq!(reason, format!("something else listens on port {port} already"));
    }

    #[test]
    fn a_proxy_that_ends_instead_of_listening_says_why() {
        let launch = Launch::new(&words("sh -c {port_file}"), None, Path::new("/nonexistent")).expect("a command");
        let mut proxy = launch.start(launch.command(), Output::Capture).expect("there is a shell");
        let reason = proxy.await_port(Instant::now() + crate::wait::WAIT_LIMIT).expect_err("it ends");
        assert!(reason.starts_with("the proxy ended instead of listening: exit status: 127: `sh:"), "{reason}");
        assert_eq!(proxy.status().and_then(|status| status.code()), Some(127), "the status may be asked for again");
    }
}
