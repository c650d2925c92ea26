//! Settings: flags and environment in one table, the only reader of the environment.
//!
//! `pipeloop serve --help` prints the table, and a test compares `docs/configuration.md` with it. A wrong value
//! is an error before the proxy starts anything or binds its port.
//!
//! `-h` shows about ten settings, those that people change. The others have `hide_short_help`. A setting with
//! `hide` is a constant in all but name: no reader is known to need another value, and its flag and variable
//! keep working for platforms that set it.

#![expect(clippy::disallowed_methods, reason = "the one reader of the environment")]

use std::ffi::{OsStr, OsString};
use std::net::{IpAddr, Ipv4Addr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, ValueEnum};

use crate::error::{Error, ProxyError};
use crate::logs::LogFormat;
use crate::process::StdoutKind;
use crate::process::lookup::{self, NotFound};
use crate::protocol::Protocol;

/// Headings that group the settings in `--help`.
mod heading {
    pub(super) const ACTION: &str = "Action";
    pub(super) const SERVER: &str = "Server";
    pub(super) const TIME: &str = "Time limits";
    pub(super) const SIZE: &str = "Size limits";
    pub(super) const LOGS: &str = "Logs";
}

/// The settings of an action, wherever it runs.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = heading::ACTION)]
pub struct ActionSettings {
    /// Protocol between the proxy and the executable: 0, 1, 2, actionloop, filter or auto. The same variable in the
    /// `env` of an init sets it for one action.
    #[arg(long, env = "PIPELOOP_PROTOCOL", default_value = "auto", value_name = "NAME")]
    pub protocol: Protocol,

    /// What the standard output of the executable is: `pipe`, or `pty`, a pseudo-terminal, to which programs write each
    /// line at once. `pty` for `filter` and `pipe` otherwise, unless set.
    #[arg(long, env = "PIPELOOP_STDOUT", value_name = "KIND", hide_short_help = true)]
    pub stdout: Option<StdoutKind>,

    /// Program that compiles source code, called as `PROGRAM MAIN SRC BIN`: a path, or a name on PATH.
    #[arg(long, env = "PIPELOOP_COMPILER", value_name = "PROGRAM", value_parser = program)]
    pub compiler: Option<PathBuf>,

    /// Entry point of an action given on the command line, passed to the compiler like the `main` of an init.
    /// `main` unless set.
    #[arg(long, env = "PIPELOOP_MAIN", value_name = "NAME", value_parser = clap::builder::NonEmptyStringValueParser::new(), hide_short_help = true)]
    pub main: Option<String>,

    /// Directory in which uploads are unpacked, as `action/N`.
    #[arg(long, env = "PIPELOOP_WORKDIR", default_value = ".", value_name = "DIR", hide_short_help = true)]
    pub workdir: PathBuf,

    /// Whether an executable is inspected before it starts. `off` is for a file that the inspection refuses by
    /// mistake: the kernel and the loader decide then.
    #[arg(long, env = "PIPELOOP_INSPECT", default_value = "on", value_name = "WHEN", hide_short_help = true)]
    pub inspect: Inspect,

    /// Whether an action that has exited is started again for the next activation.
    #[arg(long, env = "PIPELOOP_RESTART", default_value = "always", value_name = "WHEN", hide_short_help = true)]
    pub restart: Restart,

    /// What to do with a process that wrote a line that is no answer. The line itself is always dropped.
    #[arg(long, env = "PIPELOOP_STRAY", default_value = "restart", value_name = "WHAT", hide_short_help = true)]
    pub stray: Stray,

    /// Time limit from the start of the executable until it is ready.
    #[arg(long, env = "PIPELOOP_INIT_TIMEOUT", default_value = "30s", value_name = "TIME", value_parser = some_time, help_heading = heading::TIME)]
    pub init_timeout: Time,

    /// Time limit of a compiler, from its start to its end. A platform has its own limit for the whole init.
    #[arg(long, env = "PIPELOOP_COMPILE_TIMEOUT", default_value = "10min", value_name = "TIME", value_parser = some_time, help_heading = heading::TIME, hide_short_help = true)]
    pub compile_timeout: Time,

    /// Time limit of one activation. A `deadline` in the request can only shorten it.
    #[arg(long, env = "PIPELOOP_RUN_TIMEOUT", default_value = "1h", value_name = "TIME", value_parser = some_time, help_heading = heading::TIME)]
    pub run_timeout: Time,

    /// Time that an executable gets to exit: half after end-of-file, half after SIGTERM.
    #[arg(long, env = "PIPELOOP_STOP_GRACE", default_value = "3s", value_name = "TIME", help_heading = heading::TIME, hide_short_help = true)]
    pub stop_grace: Time,

    /// Time after which a silent executable counts as ready where the kernel does not show what it waits for.
    // Hidden: it matters only where the state of a process cannot be read (gVisor, `hidepid`), and there a
    // handshake or `PIPELOOP_PROTOCOL` decides better than a longer wait.
    #[arg(long, env = "PIPELOOP_START_GRACE", default_value = "100ms", value_name = "TIME", hide = true)]
    pub start_grace: Time,

    /// Largest answer of the executable.
    #[arg(long, env = "PIPELOOP_MAX_RESULT", default_value = "64MiB", value_name = "SIZE", help_heading = heading::SIZE, hide_short_help = true)]
    pub max_result: Size,

    /// Most bytes of a stream that the proxy holds for a caller that reads more slowly than the action writes.
    #[arg(long, env = "PIPELOOP_STREAM_BUFFER", default_value = "1MiB", value_name = "SIZE", help_heading = heading::SIZE, hide_short_help = true)]
    pub stream_buffer: Size,

    /// Most bytes that an uploaded archive may unpack to.
    #[arg(long, env = "PIPELOOP_MAX_UNPACKED", default_value = "512MiB", value_name = "SIZE", help_heading = heading::SIZE, hide_short_help = true)]
    pub max_unpacked: Size,

    /// Most entries that an uploaded archive may have.
    #[arg(long, env = "PIPELOOP_MAX_ENTRIES", default_value = "20000", value_name = "COUNT", help_heading = heading::SIZE, hide_short_help = true)]
    pub max_entries: usize,

    /// Format of the action's output in the log: `text` leaves it unchanged, `json` writes an object for each
    /// line.
    #[arg(long, env = "PIPELOOP_LOG_FORMAT", default_value = "text", value_name = "FORMAT", help_heading = heading::LOGS)]
    pub log_format: LogFormat,

    /// Most bytes kept of the output of a process between two activations, on each stream.
    #[arg(long, env = "PIPELOOP_LOG_BACKLOG", default_value = "1MiB", value_name = "SIZE", help_heading = heading::LOGS, hide_short_help = true)]
    pub log_backlog: Size,

    /// Time that an action and its answer wait for a log reader that does not read. After that the log is
    /// dropped until the reader reads again; a line in the log says so.
    // Hidden: a log reader that stalls is a fault of the container engine, and no value of this repairs it.
    #[arg(long, env = "PIPELOOP_LOG_STALL", default_value = "10s", value_name = "TIME", hide = true)]
    pub log_stall: Time,
}

/// Whether an action that has exited is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Restart {
    /// Start it for the next activation.
    Always,
    /// Refuse every later activation with PL093; the platform replaces the container.
    Never,
}

/// Whether an executable is inspected before it starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Inspect {
    /// Refuse a file that cannot work.
    On,
    /// Start the file in any case.
    Off,
}

/// What to do with a process that wrote a line that is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Stray {
    /// Replace the process before the next activation.
    Restart,
    /// Keep the process.
    Ignore,
}

impl ActionSettings {
    /// Whether a process that wrote a stray line is replaced. With `--restart never` a replacement would be
    /// the end of the action, so the process stays.
    #[must_use]
    pub fn replaces_strayed(&self) -> bool {
        self.stray == Stray::Restart && self.restart == Restart::Always
    }
}

/// The settings of the server.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = heading::SERVER)]
pub struct ServerSettings {
    /// Port to listen on; 0 takes a free port and reports it on stderr.
    #[arg(long, env = "PIPELOOP_PORT", default_value = "8080", value_name = "PORT")]
    pub port: u16,

    /// Address to listen on, or a name such as localhost. All addresses unless set.
    #[arg(long, env = "PIPELOOP_HOST", value_name = "ADDRESS", value_parser = host)]
    pub host: Option<IpAddr>,

    /// File into which the proxy writes its port once it listens.
    #[arg(long, env = "PIPELOOP_PORT_FILE", value_name = "FILE", hide_short_help = true)]
    pub port_file: Option<PathBuf>,

    /// Number of processes of the action, or auto for one per core. 1 unless set; auto if
    /// `__OW_ALLOW_CONCURRENT` is true.
    #[arg(long, env = "PIPELOOP_WORKERS", value_name = "COUNT")]
    pub workers: Option<Workers>,

    /// Most activations that wait in the queue; more are refused with 429.
    #[arg(long, env = "PIPELOOP_QUEUE", default_value = "256", value_name = "COUNT", hide_short_help = true)]
    pub queue: usize,

    /// Most open connections; further ones wait to be accepted.
    // Hidden: a platform opens a few connections, the memory budget bounds what they hold, and 1000 stays below
    // the usual limit of 1024 descriptors.
    #[arg(long, env = "PIPELOOP_MAX_CONNECTIONS", default_value = "1000", value_name = "COUNT", hide = true,
          value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub max_connections: u32,

    /// Time that activations in flight and in the queue get to finish after SIGTERM.
    #[arg(long, env = "PIPELOOP_DRAIN_GRACE", default_value = "5s", value_name = "TIME", help_heading = heading::TIME)]
    pub drain_grace: Time,

    /// Longest silence of a caller in the middle of its request, or while it receives its answer.
    #[arg(long, env = "PIPELOOP_CALLER_TIMEOUT", default_value = "30s", value_name = "TIME", value_parser = some_time, help_heading = heading::TIME, hide_short_help = true)]
    pub caller_timeout: Time,

    /// Pause between the sentinels of an init or run that failed and its answer: the platform reads the log of
    /// such an activation once, at the answer, and the container engine needs a moment to write it.
    #[arg(long, env = "PIPELOOP_FAILURE_DELAY", default_value = "10ms", value_name = "TIME", help_heading = heading::TIME, hide_short_help = true)]
    pub failure_delay: Time,

    /// Largest request body of an activation.
    #[arg(long, env = "PIPELOOP_MAX_BODY", default_value = "64MiB", value_name = "SIZE", help_heading = heading::SIZE, hide_short_help = true)]
    pub max_body: Size,

    /// Largest request body of an init: the code, which base64 makes a third longer.
    #[arg(long, env = "PIPELOOP_MAX_INIT_BODY", default_value = "128MiB", value_name = "SIZE", help_heading = heading::SIZE, hide_short_help = true)]
    pub max_init_body: Size,

    /// Memory budget for all bodies and answers together; a request beyond it is refused with 429. auto is
    /// half of the memory of the container, or of the machine.
    #[arg(long, env = "PIPELOOP_MAX_MEMORY", default_value = "auto", value_name = "SIZE", help_heading = heading::SIZE, hide_short_help = true)]
    pub max_memory: Memory,

    /// Level of the proxy's own log on stderr: off, error, warn, info, debug or trace.
    #[arg(long, env = "PIPELOOP_LOG", default_value = "off", value_name = "LEVEL", help_heading = heading::LOGS)]
    pub log: tracing_subscriber::filter::LevelFilter,
}

/// The value of `PIPELOOP_PORT` if it is a URL: Kubernetes sets it for every pod of a namespace that has a Service
/// named `pipeloop`, and so do links of Docker. It names that service, and is no setting.
///
/// Source: Kubernetes, "Service", "Environment variables".
#[must_use]
pub fn service_url() -> Option<String> {
    let value = std::env::var("PIPELOOP_PORT").ok()?;
    ["tcp://", "udp://", "sctp://"].iter().any(|scheme| value.starts_with(scheme)).then_some(value)
}

/// Whether a setting with this flag and variable has its value from the variable. `clap` does not report that for a
/// value that it refuses.
#[must_use]
pub fn comes_from_variable(flag: &str, variable: &OsStr) -> bool {
    let is_flag = |argument: &OsString| {
        let rest = argument.as_encoded_bytes().strip_prefix(flag.as_bytes());
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(b"="))
    };
    std::env::var_os(variable).is_some() && !std::env::args_os().skip(1).any(|argument| is_flag(&argument))
}

/// Whether a variable is set to something other than UTF-8.
#[must_use]
pub fn is_not_text(variable: &OsStr) -> bool {
    std::env::var_os(variable).is_some_and(|value| value.to_str().is_none())
}

/// Variables that existing images set for the proxies they use today.
///
/// Source: apache/openwhisk-runtime-go, `docs/ENVVARS.md`.
#[derive(Debug, Clone, Default)]
pub struct Compatibility {
    /// `OW_LOG_INIT_ERROR`: a failed init writes its reason to the log, and the caller gets a fixed text.
    pub log_init_error: bool,
    /// `OW_WAIT_FOR_ACK`: init waits for the dialect's acknowledgement. Passed on as `__OW_WAIT_FOR_ACK`.
    pub wait_for_ack: Option<OsString>,
    /// `OW_EXECUTION_ENV`: the execution environment that uploads must be built for. Passed on as
    /// `__OW_EXECUTION_ENV`.
    pub execution_env: Option<OsString>,
    /// `OW_COMPILER`, where `PIPELOOP_COMPILER` is not set.
    pub compiler: Option<PathBuf>,
    /// `__OW_ALLOW_CONCURRENT`: the platform sends several activations at once.
    ///
    /// Source: apache/openwhisk, `docs/concurrency.md`.
    pub allow_concurrent: bool,
}

impl Compatibility {
    /// Reads these variables. An empty one counts as unset, as in the proxies that they were made for.
    ///
    /// # Errors
    /// [`ProxyError::BadSetting`] for a compiler that does not exist.
    pub fn from_environment() -> Result<Self, Error> {
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let compiler = set("OW_COMPILER").map(|name| find_program(&name)).transpose();
        Ok(Self {
            log_init_error: set("OW_LOG_INIT_ERROR").is_some(),
            wait_for_ack: set("OW_WAIT_FOR_ACK"),
            execution_env: set("OW_EXECUTION_ENV"),
            allow_concurrent: set("__OW_ALLOW_CONCURRENT").is_some_and(|value| value.eq_ignore_ascii_case("true")),
            compiler: compiler
                .map_err(|reason| Error::Proxy(ProxyError::BadSetting { setting: "OW_COMPILER", reason }))?,
        })
    }
}

/// Parses an address, also in brackets, or looks up the address of a name. Of several addresses an IPv4 address
/// wins: every caller has IPv4.
fn host(text: &str) -> Result<IpAddr, String> {
    let address = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    if let Ok(address) = address.parse() {
        return Ok(address);
    }
    // An image may lack `/etc/hosts`.
    if text.eq_ignore_ascii_case("localhost") {
        return Ok(Ipv4Addr::LOCALHOST.into());
    }
    let found = (text, 0).to_socket_addrs().map_err(|error| format!("expected an IP address or a name: {error}"))?;
    let addresses: Vec<_> = found.map(|address| address.ip()).collect();
    let chosen = addresses.iter().find(|address| address.is_ipv4()).or(addresses.first());
    chosen.copied().ok_or_else(|| "the name has no address".to_owned())
}

fn program(name: &str) -> Result<PathBuf, String> {
    find_program(OsStr::new(name))
}

/// Finds a program like a shell: by its path, or by its name on `PATH`. The result is absolute.
fn find_program(name: &OsStr) -> Result<PathBuf, String> {
    if name.is_empty() {
        return Err("expected a program".into());
    }
    let search_path = std::env::var_os("PATH").unwrap_or_default();
    // Relative to the current directory.
    let path = lookup::find(name, &search_path, Path::new("")).map_err(|reason| match reason {
        NotFound::NoFile(reason) => reason.to_string(),
        NotFound::NotExecutable(_) if lookup::is_path(name) => "it is not an executable file".into(),
        NotFound::NotExecutable(_) | NotFound::NotOnPath => "no such program on `PATH`".into(),
    })?;
    std::path::absolute(path).map_err(|error| error.to_string())
}

/// The environment that every action gets: the proxy's own without the variables for proxies, plus
/// `__OW_EXECUTION_ENV` and `__OW_WAIT_FOR_ACK`, which actions are known to read.
#[must_use]
pub fn container_environment(compatibility: &Compatibility) -> Vec<(OsString, OsString)> {
    let for_a_proxy = |name: &OsStr| {
        let name = name.as_encoded_bytes();
        name.starts_with(b"PIPELOOP_") || name.starts_with(b"OW_")
    };
    let mut environment: Vec<_> = std::env::vars_os().filter(|(name, _)| !for_a_proxy(name)).collect();
    let mut set = |name: &str, value: OsString| {
        environment.retain(|(other, _)| other != name);
        environment.push((name.into(), value));
    };
    if let Some(execution_env) = &compatibility.execution_env {
        set("__OW_EXECUTION_ENV", execution_env.clone());
    }
    if let Some(wait_for_ack) = &compatibility.wait_for_ack {
        set("__OW_WAIT_FOR_ACK", wait_for_ack.clone());
    }
    environment
}

/// The number of processes of an action.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Workers {
    /// One per core.
    Auto,
    /// A fixed number.
    Count(usize),
}

/// A larger number would be a mistake: each worker is a process.
const MAX_WORKERS: usize = 1024;

impl Workers {
    /// The setting, or else what `__OW_ALLOW_CONCURRENT` implies.
    #[must_use]
    pub fn of(set: Option<Self>, compatibility: &Compatibility) -> Self {
        set.unwrap_or(if compatibility.allow_concurrent { Self::Auto } else { Self::Count(1) })
    }

    /// As a number. `auto` counts the cores that the container may use.
    #[must_use]
    pub fn count(self) -> usize {
        match self {
            Self::Auto => std::thread::available_parallelism().map_or(1, std::num::NonZero::get).min(MAX_WORKERS),
            Self::Count(count) => count,
        }
    }
}

impl FromStr for Workers {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "auto" {
            return Ok(Self::Auto);
        }
        let count = text.parse().ok().filter(|count| (1..=MAX_WORKERS).contains(count));
        count.map(Self::Count).ok_or_else(|| format!("expected `auto` or a count from 1 to {MAX_WORKERS}"))
    }
}

/// A duration with its unit: `100ms`, `30s`, `5m`, `1h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Time(pub Duration);

impl FromStr for Time {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || "expected a number and its unit, such as `100ms`, `30s`, `5m` or `1h`".to_owned();
        let (number, unit) = split_unit(text);
        let number: u64 = number.parse().map_err(|_| expected())?;
        let ms = match unit {
            "ms" => Some(number),
            "s" => number.checked_mul(1_000),
            "m" | "min" => number.checked_mul(60_000),
            "h" => number.checked_mul(3_600_000),
            _ => return Err(expected()),
        };
        // Beyond a century the sum of two points in time could overflow.
        let ms = ms.filter(|ms| *ms <= 100 * 365 * 86_400_000).ok_or("that is more than a hundred years")?;
        Ok(Self(Duration::from_millis(ms)))
    }
}

/// Parses a duration that must not be zero: with a limit of zero every activation would time out.
pub(crate) fn some_time(text: &str) -> Result<Time, String> {
    let time: Time = text.parse()?;
    if time.0.is_zero() { Err("expected more than zero".into()) } else { Ok(time) }
}

/// A number of bytes with its unit: `512`, `64KiB`, `64MiB`, `1GiB`; `KB`, `MB` and `GB` are
/// thousands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size(pub u64);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || "expected a number of bytes, such as `65536`, `64KiB`, `64MiB` or `1GiB`".to_owned();
        let (number, unit) = split_unit(text);
        let number: u64 = number.parse().map_err(|_| expected())?;
        let scale: u64 = match unit.to_ascii_lowercase().as_str() {
            "" | "b" => 1,
            "k" | "kib" => 1 << 10,
            "m" | "mib" => 1 << 20,
            "g" | "gib" => 1 << 30,
            "kb" => 1_000,
            "mb" => 1_000_000,
            "gb" => 1_000_000_000,
            _ => return Err(expected()),
        };
        let bytes = number.checked_mul(scale).filter(|bytes| isize::try_from(*bytes).is_ok());
        Ok(Self(bytes.ok_or("that is more than this machine can address")?))
    }
}

/// A number of bytes, or `None` for `auto`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory(pub Option<u64>);

impl FromStr for Memory {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "auto" {
            return Ok(Self(None));
        }
        text.parse::<Size>()
            .map(|size| Self(Some(size.0)))
            .map_err(|error| error.replace("expected", "expected `auto` or"))
    }
}

impl Size {
    /// As a length in memory.
    #[must_use]
    pub fn bytes(self) -> usize {
        usize::try_from(self.0).expect("sizes are checked when they are parsed")
    }
}

fn split_unit(text: &str) -> (&str, &str) {
    let text = text.trim();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    (&text[..digits], text[digits..].trim_start())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units() {
        let time = |text: &str| text.parse::<Time>().map(|time| time.0.as_millis());
        assert_eq!(time("100ms"), Ok(100));
        assert_eq!(time("30s"), Ok(30_000));
        assert_eq!(time("5m"), Ok(300_000));
        assert_eq!(time("1 h"), Ok(3_600_000));
        for wrong in ["", "s", "30", "-1s", "1.5s", "30 parsecs", "99999999999h"] {
            assert!(time(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn workers_are_counted() {
        let workers = |text: &str| text.parse::<Workers>();
        assert_eq!(workers("1"), Ok(Workers::Count(1)));
        assert_eq!(workers("1024"), Ok(Workers::Count(1024)));
        assert_eq!(workers("auto"), Ok(Workers::Auto));
        for wrong in ["", "0", "-1", "1025", "many", "2.5"] {
            assert!(workers(wrong).is_err(), "{wrong}");
        }
        let one = Compatibility::default();
        let several = Compatibility { allow_concurrent: true, ..Compatibility::default() };
        assert_eq!(Workers::of(None, &one), Workers::Count(1));
        assert_eq!(Workers::of(None, &several), Workers::Auto);
        assert_eq!(Workers::of(Some(Workers::Count(3)), &several), Workers::Count(3));
    }

    #[test]
    fn sizes_have_units() {
        let size = |text: &str| text.parse::<Size>().map(|size| size.0);
        assert_eq!(size("512"), Ok(512));
        assert_eq!(size("64KiB"), Ok(65_536));
        assert_eq!(size("64 mib"), Ok(67_108_864));
        assert_eq!(size("1MB"), Ok(1_000_000));
        for wrong in ["", "MiB", "-1", "1.5MiB", "1TiBx", "99999999999GiB"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
    }
}
