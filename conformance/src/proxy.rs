//! The proxy that a case tests: a program that is started for each case, or a proxy that runs already.
//!
//! It may be any proxy, and the runner is its client: nothing of pipeloop's own `process` is used on it, which is for
//! actions.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpStream, ToSocketAddrs};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use testkit::output::Logs;
use testkit::proxy::{Launch, Output, Proxy, has_port_placeholder};
use testkit::wait::POLL_INTERVAL;

use super::caller::CONNECT_LIMIT;
use super::case::Needs;

/// How long a proxy may take to end when a case is over.
const STOP_LIMIT: Duration = Duration::from_secs(2);

/// Which proxy, as it was given.
#[derive(Debug, Clone)]
pub enum Target {
    /// A proxy that runs already.
    Url {
        /// Where it may listen.
        addresses: Vec<SocketAddr>,
        /// Host and port, as they were given.
        host: String,
    },
    /// A proxy that is started again for each case.
    Command {
        /// The program and its arguments, with `{port}` or `{port_file}` in them.
        words: Vec<String>,
        /// The port on which it always listens, if its command takes none.
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
            let addresses: Vec<_> =
                with_port.to_socket_addrs().map_err(|error| format!("`{text}`: {error}"))?.collect();
            if addresses.is_empty() {
                return Err(format!("`{text}` has no address"));
            }
            return Ok(Self::Url { addresses, host });
        }
        if text.starts_with("https://") {
            return Err("only `http://` is spoken".into());
        }
        let words: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
        if words.is_empty() {
            return Err("it names no program".into());
        }
        match (has_port_placeholder(&words), port) {
            (false, None) => {
                Err(format!("`{text}` names no port: put `{{port}}` where it goes, or name a fixed one with `--port`"))
            }
            (true, None) | (false, Some(_)) => Ok(Self::Command { words, port }),
            (true, Some(_)) => Err("its command takes a port with `{port}`: leave out `--port`".into()),
        }
    }

    /// Finds out whether a proxy can be reached at all: connects to one that runs already, at the first address where
    /// it listens, or starts one and waits until it listens.
    ///
    /// # Errors
    /// Why no proxy can be reached.
    pub fn reach(&mut self, limit: Duration) -> Result<(), String> {
        let deadline = Instant::now() + limit;
        let Self::Url { addresses, host } = self else {
            let directory = CaseDirectory::new().map_err(|error| format!("no directory for a start: {error}"))?;
            return CaseProxy::new(self, &Needs::default(), &directory, deadline).map(drop);
        };
        let mut reason = None;
        for address in &*addresses {
            let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            match TcpStream::connect_timeout(address, left.min(CONNECT_LIMIT)) {
                Ok(_) => {
                    *addresses = vec![*address];
                    return Ok(());
                }
                Err(error) => reason = Some(error),
            }
        }
        let reason = reason.map(|error| format!(": {error}")).unwrap_or_default();
        Err(format!("nothing listens at `{host}`{reason}"))
    }
}

/// The temporary directory of one case, removed when it is dropped.
pub(super) struct CaseDirectory(PathBuf);

impl CaseDirectory {
    pub(super) fn new() -> std::io::Result<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("pipeloop-conformance-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path)?;
        fs::create_dir(path.join("events"))?;
        // Below other directories, so that a case can look outside of the one in which the proxy runs.
        fs::create_dir_all(path.join("a/b/c/work"))?;
        Ok(Self(path))
    }

    /// The directory in which events are files.
    pub(super) fn events(&self) -> PathBuf {
        self.0.join("events")
    }

    /// The path of a file of this name, anywhere below.
    pub(super) fn find(&self, name: &str) -> Option<PathBuf> {
        fn below(directory: &Path, name: &str) -> Option<PathBuf> {
            fs::read_dir(directory).ok()?.flatten().find_map(|entry| {
                let path = entry.path();
                let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
                (entry.file_name() == name)
                    .then(|| path.clone())
                    .or_else(|| is_directory.then(|| below(&path, name))?)
            })
        }
        below(&self.0, name)
    }
}

impl Drop for CaseDirectory {
    fn drop(&mut self) {
        // The actor of a proxy that was killed ends when the events are gone.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The proxy of a case.
pub(super) struct CaseProxy {
    pub(super) address: SocketAddr,
    pub(super) host: String,
    /// `None` for a proxy that ran already.
    started: Option<Proxy>,
}

impl CaseProxy {
    /// Starts a proxy and waits until it listens, or takes the one that runs already.
    pub(super) fn new(
        target: &Target,
        needs: &Needs,
        directory: &CaseDirectory,
        deadline: Instant,
    ) -> Result<Self, String> {
        let (words, fixed_port) = match target {
            Target::Url { addresses, host } => {
                return Ok(Self { address: addresses[0], host: host.clone(), started: None });
            }
            Target::Command { words, port } => (words, *port),
        };
        let launch = Launch::new(words, fixed_port, &directory.0.join("port"))?;
        let mut command = launch.command();
        command.current_dir(directory.0.join("a/b/c/work")).envs(&needs.env).envs(needs.limits()).process_group(0);
        let mut proxy = launch.start(command, Output::Capture)?;
        if let Err(reason) = proxy.await_connection(deadline, POLL_INTERVAL) {
            end(&proxy);
            return Err(reason);
        }
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, proxy.port()));
        Ok(Self { address, host: address.to_string(), started: Some(proxy) })
    }

    /// What it has printed by now, where that can be seen.
    pub(super) fn logs(&self) -> Option<Logs> {
        self.started.as_ref()?.try_logs()
    }

    /// How it ended, if it did, with the line of its output that explains it best.
    pub(super) fn ended(&self) -> Option<String> {
        self.started.as_ref()?.end_report()
    }

    /// Asks it to end, and waits for that. Its exit status. `None` for a proxy that ran already.
    pub(super) fn stop(&self, deadline: Instant) -> Option<Result<ExitStatus, String>> {
        let status = self.started.as_ref()?.stop(deadline);
        Some(status.ok_or_else(|| "the proxy hangs: it does not end on SIGTERM".into()))
    }
}

impl Drop for CaseProxy {
    fn drop(&mut self) {
        if let Some(proxy) = &self.started {
            end(proxy);
        }
    }
}

/// Ends a proxy, its launcher and what they left behind in their process group.
fn end(proxy: &Proxy) {
    let _ = proxy.stop(Instant::now() + STOP_LIMIT);
    proxy.kill_group();
}
