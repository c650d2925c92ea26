//! The proxy that is looked at: a program that is started for each case, or one that runs somewhere.
//!
//! It is a stranger's, and this is a client: nothing of pipeloop's own `process` is used on it, which is for
//! actions of our own.

use std::fs;
use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use super::case::Needs;

/// How often something is looked at again.
pub(super) const PACE: Duration = Duration::from_millis(2);

/// How long a proxy may take to end when a case is over.
const STOP_LIMIT: Duration = Duration::from_secs(2);

/// Which proxy, as it was given.
#[derive(Debug, Clone)]
pub enum Target {
    /// One that runs.
    Url {
        /// Where it listens.
        address: SocketAddr,
        /// Host and port, as they were given.
        host: String,
    },
    /// One to be started, anew for each case.
    Command {
        /// The program and its arguments, with `{port}` or `{port_file}` in them.
        words: Vec<String>,
        /// The port that it takes when it cannot be told one.
        port: Option<u16>,
    },
}

impl Target {
    /// What `--proxy` and `--port` mean.
    ///
    /// # Errors
    /// Why it can mean nothing.
    pub fn parse(text: &str, port: Option<u16>) -> Result<Self, String> {
        if let Some(rest) = text.strip_prefix("http://") {
            if port.is_some() {
                return Err("the port is part of the URL".into());
            }
            let host = rest.trim_end_matches('/').to_owned();
            let with_port = if host.contains(':') { host.clone() } else { format!("{host}:80") };
            let mut addresses = with_port.to_socket_addrs().map_err(|error| format!("`{text}`: {error}"))?;
            let address = addresses.next().ok_or_else(|| format!("`{text}` has no address"))?;
            return Ok(Self::Url { address, host });
        }
        if text.starts_with("https://") {
            return Err("only `http://` is spoken".into());
        }
        let mut words: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
        let Some(program) = words.first_mut() else { return Err("it names no program".into()) };
        // A path is meant as seen from here, not from the proxy's folder.
        if program.contains('/') {
            let absolute = std::path::absolute(&*program).map_err(|error| format!("`{program}`: {error}"))?;
            *program = absolute.to_string_lossy().into_owned();
        }
        let told = words.iter().any(|word| word.contains("{port}") || word.contains("{port_file}"));
        match (told, port) {
            (false, None) => Err(format!(
                "`{text}` is not told its port: put `{{port}}` where it stands, or name a fixed one with `--port`"
            )),
            (true, None) | (false, Some(_)) => Ok(Self::Command { words, port }),
            (true, Some(_)) => Err("it is told its port with `{port}`, and has none that is fixed".into()),
        }
    }
}

/// A folder of a case's own, removed with it.
pub(super) struct Folder(PathBuf);

impl Folder {
    pub(super) fn new() -> std::io::Result<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("pipeloop-conformance-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path)?;
        fs::create_dir(path.join("events"))?;
        // Below other folders, so that there is an outside to look at.
        fs::create_dir_all(path.join("a/b/c/work"))?;
        Ok(Self(path))
    }

    /// Where events are files.
    pub(super) fn events(&self) -> PathBuf {
        self.0.join("events")
    }

    /// Where a file of this name is, anywhere below.
    pub(super) fn find(&self, name: &str) -> Option<PathBuf> {
        fn below(folder: &Path, name: &str) -> Option<PathBuf> {
            fs::read_dir(folder).ok()?.flatten().find_map(|entry| {
                let path = entry.path();
                let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
                (entry.file_name() == name).then(|| path.clone()).or_else(|| is_folder.then(|| below(&path, name))?)
            })
        }
        below(&self.0, name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // The actor of a proxy that was killed ends when the events are gone.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A proxy that a case talks to.
pub(super) struct Running {
    pub(super) address: SocketAddr,
    pub(super) host: String,
    /// Nothing of one that runs somewhere.
    started: Option<Started>,
}

struct Started {
    child: Mutex<Child>,
    pid: Pid,
    chose_its_port: bool,
    stdout: Captured,
    stderr: Captured,
}

impl Running {
    /// Starts it, or takes the one that runs. Waits until it listens.
    pub(super) fn new(target: &Target, needs: &Needs, folder: &Folder, deadline: Instant) -> Result<Self, String> {
        let (words, fixed) = match target {
            Target::Url { address, host } => {
                return Ok(Self { address: *address, host: host.clone(), started: None });
            }
            Target::Command { words, port } => (words, *port),
        };
        let port_file = folder.0.join("port");
        let by_file = words.iter().any(|word| word.contains("{port_file}"));
        let local = |port: u16| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let port = match fixed {
            Some(port) if TcpStream::connect(local(port)).is_ok() => {
                return Err(format!("something else listens on port {port} already"));
            }
            Some(port) => port,
            None if by_file => 0,
            None => free_port().map_err(|error| format!("no free port: {error}"))?,
        };
        let filled = |word: &String| {
            word.replace("{port_file}", &port_file.to_string_lossy()).replace("{port}", &port.to_string())
        };
        let mut command = Command::new(&words[0]);
        command.args(words[1..].iter().map(filled)).current_dir(folder.0.join("a/b/c/work"));
        testkit::command::forget_proxy_settings(&mut command);
        command.envs(&needs.env);
        command.envs(needs.limits());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let mut child = command.spawn().map_err(|error| format!("cannot start `{}`: {error}", words[0]))?;
        let stdout = Captured::new(child.stdout.take().expect("stdout was piped at spawn"));
        let stderr = Captured::new(child.stderr.take().expect("stderr was piped at spawn"));
        let pid = Pid::from_child(&child);
        let started = Started { child: Mutex::new(child), pid, chose_its_port: by_file, stdout, stderr };
        let mut running = Self { address: local(port), host: String::new(), started: Some(started) };
        loop {
            if by_file && running.address.port() == 0 {
                let port = fs::read_to_string(&port_file).ok();
                let port = port.and_then(|text| text.strip_suffix('\n')?.parse().ok());
                running.address = local(port.unwrap_or(0));
            } else if TcpStream::connect(running.address).is_ok() {
                running.host = running.address.to_string();
                return Ok(running);
            }
            if let Some(ended) = running.ended() {
                return Err(format!("the proxy ended instead of listening: {ended}"));
            }
            if Instant::now() > deadline {
                return Err("the proxy hangs: it does not listen".into());
            }
            std::thread::sleep(PACE);
        }
    }

    /// What it has written on stdout and stderr by now, where that can be seen.
    pub(super) fn log(&self) -> Option<[String; 2]> {
        let started = self.started.as_ref()?;
        let stderr = started.stderr.text();
        // A proxy that chose its port may say so to people too.
        let stderr = match stderr.split_once('\n') {
            Some((first, rest)) if started.chose_its_port && first.contains(" listening on port ") => rest.to_owned(),
            _ => stderr,
        };
        Some([started.stdout.text(), stderr])
    }

    /// How it ended, if it did, with its last words.
    pub(super) fn ended(&self) -> Option<String> {
        let started = self.started.as_ref()?;
        let status = started.status()?;
        let stderr = started.stderr.text();
        let words = stderr.lines().find(|line| line.starts_with("panic") || line.contains("panicked"));
        let words = words.or_else(|| stderr.lines().last());
        Some(words.map_or_else(|| status.to_string(), |words| format!("{status}: `{words}`")))
    }

    /// Asks it to end, and waits for that. Its exit status.
    pub(super) fn stop(&self, deadline: Instant) -> Option<Result<ExitStatus, String>> {
        let started = self.started.as_ref()?;
        let _ = kill_process(started.pid, Signal::TERM);
        loop {
            if let Some(status) = started.status() {
                return Some(Ok(status));
            }
            if Instant::now() > deadline {
                return Some(Err("the proxy hangs: it does not end on SIGTERM".into()));
            }
            std::thread::sleep(PACE);
        }
    }
}

impl Started {
    fn status(&self) -> Option<ExitStatus> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner).try_wait().ok().flatten()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.stop(Instant::now() + STOP_LIMIT);
        let Some(started) = &self.started else { return };
        // Also what it left behind in its group, as a launcher in front of it would be.
        let _ = kill_process_group(started.pid, Signal::KILL);
        let _ = started.child.lock().unwrap_or_else(PoisonError::into_inner).wait();
    }
}

fn free_port() -> std::io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

/// A stream that is read as it comes.
struct Captured(Arc<Mutex<Vec<u8>>>);

impl Captured {
    fn new(mut stream: impl Read + Send + 'static) -> Self {
        let text = Arc::new(Mutex::new(Vec::new()));
        let kept = text.clone();
        std::thread::spawn(move || {
            let mut chunk = vec![0; 64 * 1024];
            while let Ok(count @ 1..) = stream.read(&mut chunk) {
                kept.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&chunk[..count]);
            }
        });
        Self(text)
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }
}
