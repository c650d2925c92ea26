//! Settings: flags and environment in one table, the only reader of the environment.
//!
//! `pipeloop serve --help` prints the table; `docs/configuration.md` is held to it by a test.
//! A wrong value is an error before anything is started or bound.

#![expect(clippy::disallowed_methods, reason = "the one reader of the environment")]

use std::ffi::{OsStr, OsString};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, ValueEnum};

use crate::error::{Error, ProxyError};
use crate::logs::LogFormat;
use crate::protocol::Protocol;

/// The settings of an action, wherever it runs.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Action")]
pub struct ActionSettings {
    /// Protocol spoken with the executable: 0, 1, 2, actionloop or auto. The same variable in init's
    /// `env` sets it for one action.
    #[arg(long, env = "PIPELOOP_PROTOCOL", default_value = "auto", value_name = "NAME")]
    pub protocol: Protocol,

    /// Folder in which uploaded actions are unpacked, as `action/N`.
    #[arg(long, env = "PIPELOOP_WORKDIR", default_value = ".", value_name = "DIR")]
    pub workdir: PathBuf,

    /// Program that makes an executable of source code, called as `PROGRAM MAIN SRC BIN`; a path or
    /// a name to be found on PATH.
    #[arg(long, env = "PIPELOOP_COMPILER", value_name = "PROGRAM", value_parser = program)]
    pub compiler: Option<PathBuf>,

    /// Entry point of an action given on the command line, handed to the compiler as init's `main`
    /// is; `main` unless set.
    #[arg(long, env = "PIPELOOP_MAIN", value_name = "NAME", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub main: Option<String>,

    /// Longest time from the start of the executable until it is ready; the same again for a
    /// compiler before it.
    #[arg(long, env = "PIPELOOP_INIT_TIMEOUT", default_value = "30s", value_name = "TIME", value_parser = some_time)]
    pub init_timeout: Time,

    /// Longest time for one activation; a `deadline` sent along may only shorten it.
    #[arg(long, env = "PIPELOOP_RUN_TIMEOUT", default_value = "1h", value_name = "TIME", value_parser = some_time)]
    pub run_timeout: Time,

    /// How long a silent executable is given where the kernel does not show what it waits for.
    #[arg(long, env = "PIPELOOP_START_GRACE", default_value = "100ms", value_name = "TIME")]
    pub start_grace: Time,

    /// How long the executable may take to end, half after end-of-file, half after SIGTERM.
    #[arg(long, env = "PIPELOOP_STOP_GRACE", default_value = "3s", value_name = "TIME")]
    pub stop_grace: Time,

    /// Whether an executable that has ended is started again for the next activation: always or
    /// never. With never it is refused from then on, and told why.
    #[arg(long, env = "PIPELOOP_RESTART", default_value = "always", value_name = "WHEN")]
    pub restart: Restart,

    /// What becomes of an executable that wrote a line which answers nothing: restart before the
    /// next activation, or ignore. The line is dropped in any case.
    #[arg(long, env = "PIPELOOP_STRAY", default_value = "restart", value_name = "WHAT")]
    pub stray: Stray,

    /// Whether an executable is looked at before it is started: on, or off for one that is judged wrongly; the
    /// kernel and its loader have the last word then.
    #[arg(long, env = "PIPELOOP_INSPECT", default_value = "on", value_name = "WHEN")]
    pub inspect: Inspect,

    /// Largest answer of the executable.
    #[arg(long, env = "PIPELOOP_MAX_RESULT", default_value = "64MiB", value_name = "SIZE")]
    pub max_result: Size,

    /// Most bytes of a stream that are held for a caller who reads more slowly than the executable
    /// writes.
    #[arg(long, env = "PIPELOOP_STREAM_BUFFER", default_value = "1MiB", value_name = "SIZE")]
    pub stream_buffer: Size,

    /// Most bytes an uploaded archive may unpack to.
    #[arg(long, env = "PIPELOOP_MAX_UNPACKED", default_value = "512MiB", value_name = "SIZE")]
    pub max_unpacked: Size,

    /// Most entries an uploaded archive may have.
    #[arg(long, env = "PIPELOOP_MAX_ENTRIES", default_value = "20000", value_name = "COUNT")]
    pub max_entries: usize,

    /// Most bytes kept of what the executable prints between two activations, on each stream.
    #[arg(long, env = "PIPELOOP_LOG_BACKLOG", default_value = "1MiB", value_name = "SIZE")]
    pub log_backlog: Size,

    /// How long the executable and its answer wait for a reader of the log that does not read; then
    /// the log is dropped until it reads again, which is told.
    #[arg(long, env = "PIPELOOP_LOG_STALL", default_value = "10s", value_name = "TIME")]
    pub log_stall: Time,

    /// How the executable's output is written to the log: text, which is as it came, or json, an object
    /// a line.
    #[arg(long, env = "PIPELOOP_LOG_FORMAT", default_value = "text", value_name = "FORMAT")]
    pub log_format: LogFormat,
}

/// Whether an action that has ended is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Restart {
    /// For the next activation.
    Always,
    /// Whoever runs the proxy decides.
    Never,
}

/// Whether an executable is looked at before it is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Inspect {
    /// What cannot work is refused.
    On,
    /// It is started.
    Off,
}

/// What becomes of an action that wrote a line which answers nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Stray {
    /// It is started anew before its next activation.
    Restart,
    /// It goes on.
    Ignore,
}

impl ActionSettings {
    /// Whether a process that wrote a line too many makes way for another. Where nothing is started
    /// again that would be the end of the action.
    #[must_use]
    pub fn replaces_strayed(&self) -> bool {
        self.stray == Stray::Restart && self.restart == Restart::Always
    }
}

/// The settings of the server.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Server")]
pub struct ServerSettings {
    /// Address to listen on; all of them unless set.
    #[arg(long, env = "PIPELOOP_HOST", value_name = "ADDRESS")]
    pub host: Option<std::net::IpAddr>,

    /// Port to listen on; 0 takes a free one, which is then told.
    #[arg(long, env = "PIPELOOP_PORT", default_value = "8080", value_name = "PORT")]
    pub port: u16,

    /// Write the port to this file once the proxy listens.
    #[arg(long, env = "PIPELOOP_PORT_FILE", value_name = "FILE")]
    pub port_file: Option<PathBuf>,

    /// Largest body of an activation.
    #[arg(long, env = "PIPELOOP_MAX_BODY", default_value = "64MiB", value_name = "SIZE")]
    pub max_body: Size,

    /// Largest body of an init: the code, in base64 a third longer than it is.
    #[arg(long, env = "PIPELOOP_MAX_INIT_BODY", default_value = "128MiB", value_name = "SIZE")]
    pub max_init_body: Size,

    /// Longest silence of a caller in the middle of a request, or while it is sent its answer.
    #[arg(long, env = "PIPELOOP_CALLER_TIMEOUT", default_value = "30s", value_name = "TIME", value_parser = some_time)]
    pub caller_timeout: Time,

    /// Most connections at once; more wait to be accepted.
    #[arg(long, env = "PIPELOOP_MAX_CONNECTIONS", default_value = "1000", value_name = "COUNT",
          value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub max_connections: u32,

    /// Processes of the executable that work at the same time, an activation each: a count, or auto
    /// for one a core. One unless set; one a core if `__OW_ALLOW_CONCURRENT` is true.
    #[arg(long, env = "PIPELOOP_WORKERS", value_name = "COUNT")]
    pub workers: Option<Workers>,

    /// Most activations that wait while others are worked on; more are refused with 429.
    #[arg(long, env = "PIPELOOP_QUEUE", default_value = "256", value_name = "COUNT")]
    pub queue: usize,

    /// Most that bodies and answers may take together; more is refused with 429. auto is half of the
    /// memory that the container, or the machine, has.
    #[arg(long, env = "PIPELOOP_MAX_MEMORY", default_value = "auto", value_name = "SIZE")]
    pub max_memory: Memory,

    /// How long activations in flight may take to finish after SIGTERM.
    #[arg(long, env = "PIPELOOP_DRAIN_GRACE", default_value = "5s", value_name = "TIME")]
    pub drain_grace: Time,

    /// The proxy's own log on stderr: off, error, warn, info, debug or trace.
    #[arg(long, env = "PIPELOOP_LOG", default_value = "off", value_name = "LEVEL")]
    pub log: tracing_subscriber::filter::LevelFilter,
}

/// Variables that existing images set for the proxies they use today.
///
/// Source: apache/openwhisk-runtime-go, `docs/ENVVARS.md`.
#[derive(Debug, Clone, Default)]
pub struct Compatibility {
    /// `OW_LOG_INIT_ERROR`: the reason of a failed init goes to the log, the caller gets a fixed
    /// text.
    pub log_init_error: bool,
    /// `OW_WAIT_FOR_ACK`: the dialect's acknowledgement is awaited. Passed on as
    /// `__OW_WAIT_FOR_ACK`.
    pub wait_for_ack: Option<OsString>,
    /// `OW_EXECUTION_ENV`: the execution environment that uploads have to be built for. Passed on as
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
    /// Reads them. A variable counts as set when it is not empty, as for the proxies it is made for.
    ///
    /// # Errors
    /// [`ProxyError::BadSetting`] for a compiler that is not here.
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

fn program(name: &str) -> Result<PathBuf, String> {
    find_program(OsStr::new(name))
}

/// Finds a program as a shell does: at its path, or by its name on `PATH`. The result is absolute.
fn find_program(name: &OsStr) -> Result<PathBuf, String> {
    if name.is_empty() {
        return Err("expected a program".into());
    }
    let is_program = |path: &PathBuf| {
        path.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
    };
    let found = if name.as_encoded_bytes().contains(&b'/') {
        let path = std::path::absolute(name).map_err(|error| error.to_string())?;
        match path.metadata() {
            Err(error) => return Err(error.to_string()),
            Ok(_) if !is_program(&path) => return Err("it is no executable file".into()),
            Ok(_) => Some(path),
        }
    } else {
        let folders = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&folders).map(|folder| folder.join(name)).find(is_program)
    };
    let path = found.ok_or("there is no such program on `PATH`")?;
    std::path::absolute(path).map_err(|error| error.to_string())
}

/// The environment that every action gets from the container: our own without the variables that
/// are meant for a proxy, and those of them that actions are known to read, under their name.
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

/// Whether colour is unwanted even on a terminal: `NO_COLOR`.
#[must_use]
pub fn no_color() -> bool {
    std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
}

/// How many processes of an action work at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Workers {
    /// One a core.
    Auto,
    /// So many.
    Count(usize),
}

/// More would be a mistake: each of them is a process.
const MAX_WORKERS: usize = 1024;

impl Workers {
    /// What is set, or else what the container says about its activations.
    #[must_use]
    pub fn of(set: Option<Self>, compatibility: &Compatibility) -> Self {
        set.unwrap_or(if compatibility.allow_concurrent { Self::Auto } else { Self::Count(1) })
    }

    /// As a number: cores are those that the container may use.
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
        // Beyond a century sums of points in time could overflow.
        let ms = ms.filter(|ms| *ms <= 100 * 365 * 86_400_000).ok_or("that is more than a hundred years")?;
        Ok(Self(Duration::from_millis(ms)))
    }
}

/// A duration that must not be zero: with it nothing would ever be in time.
pub(crate) fn some_time(text: &str) -> Result<Time, String> {
    let time: Time = text.parse()?;
    if time.0.is_zero() { Err("expected more than nothing".into()) } else { Ok(time) }
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

/// A number of bytes, or as many as there are reasons for.
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
