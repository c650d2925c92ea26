//! The proxies that are measured, and the actions they run.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use base64_simd::STANDARD;
use clap::ValueEnum;
use serde_json::json;
use tempfile::TempDir;
use testkit::command::compile_c;
use testkit::proxy::{Launch, Output, Proxy};

use crate::Outcome;
use crate::client::{Connection, Request};

/// How long to wait for a proxy that has just started and refuses a connection.
const RETRY_INTERVAL: Duration = Duration::from_micros(200);
/// Longer than any proxy takes to start.
const START_LIMIT: Duration = Duration::from_secs(30);
/// How long a proxy may take to end after SIGTERM.
const STOP_LIMIT: Duration = Duration::from_secs(5);

/// What is spoken between a proxy and its action.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Dialect {
    /// One process, whole activations, answers on descriptor 3.
    Actionloop,
    /// One process, arguments, answers on standard output.
    #[value(name = "1")]
    Version1,
    /// One process an activation.
    #[value(name = "0")]
    Version0,
    /// One process, frames on standard output. No other proxy speaks it.
    #[value(skip)]
    Version2,
}

/// A proxy and how it is started.
#[derive(Debug, Clone)]
pub(crate) struct Contestant {
    /// How it is called in the table.
    pub(crate) name: String,
    /// The program and its arguments; `{port}` stands for the port.
    pub(crate) command: Vec<String>,
    /// The port on which it always listens, if its command takes none.
    pub(crate) fixed_port: Option<u16>,
    pub(crate) dialect: Dialect,
    /// Discarded, since a reader would wake up for each sentinel, or inherited, to see why something fails.
    pub(crate) output: Output,
}

/// Whether the action's acknowledgement is awaited: `OW_WAIT_FOR_ACK`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Acknowledgement {
    Ignored,
    Awaited,
}

impl Contestant {
    /// Starts the proxy in a directory of its own.
    pub(crate) fn start(&self, acknowledgement: Acknowledgement) -> Outcome<Running> {
        let directory = TempDir::with_prefix("pipeloop-bench-")?;
        let named = |reason: String| format!("{}: {reason}", self.name);
        let launch = Launch::new(&self.command, self.fixed_port, &directory.path().join("port")).map_err(named)?;
        // The settings of the shell are not among the words: the proxies are compared without them.
        let mut command = launch.command();
        if acknowledgement == Acknowledgement::Awaited {
            command.env("OW_WAIT_FOR_ACK", "1");
        }
        // This program changes its own directory: for a child that changes its directory the standard library forks,
        // which copies this program's page tables on the proxy's time.
        let here = std::env::current_dir()?;
        std::env::set_current_dir(&directory)?;
        let started = launch.start(command, self.output);
        std::env::set_current_dir(here)?;
        Ok(Running { name: self.name.clone(), proxy: started.map_err(named)?, _directory: directory })
    }
}

/// A proxy that runs. It is stopped when this is dropped.
pub(crate) struct Running {
    name: String,
    proxy: Proxy,
    _directory: TempDir,
}

impl Running {
    pub(crate) fn pid(&self) -> i32 {
        self.proxy.pid()
    }

    /// The moment just before it was started.
    pub(crate) fn started(&self) -> Instant {
        self.proxy.started()
    }

    /// Connects as soon as the proxy listens.
    pub(crate) fn connect(&mut self) -> Outcome<Connection> {
        let stream = self.proxy.await_connection(self.proxy.started() + START_LIMIT, RETRY_INTERVAL);
        Ok(Connection::over(stream.map_err(|reason| format!("{}: {reason}; try --show-output", self.name))?)?)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.proxy.stop(Instant::now() + STOP_LIMIT).is_none() {
            eprintln!("{}: still there {} s after SIGTERM; killed", self.name, STOP_LIMIT.as_secs());
        }
    }
}

/// The bodies of `/init` for every action.
pub(crate) struct Actions {
    echo: Vec<u8>,
    single_shot: Vec<u8>,
    waiter: Vec<u8>,
    without_library: Vec<u8>,
}

/// An upload that cannot work.
pub(crate) struct Unfit {
    /// Its line in the report.
    pub(crate) key: &'static str,
    pub(crate) init: Request,
    /// What the refusal says.
    pub(crate) words: &'static str,
}

impl Actions {
    /// Compiles them, statically, so that starting one costs no dynamic linking.
    pub(crate) fn build() -> Outcome<Self> {
        let directory = TempDir::with_prefix("pipeloop-bench-")?;
        let compile = |name: &str, source: &str| -> Outcome<Vec<u8>> {
            let (source_file, binary) = (directory.path().join(name).with_extension("c"), directory.path().join(name));
            fs::write(&source_file, source)?;
            compile_c(&["-O2", "-static", "-s"], &binary, &[&source_file])?;
            Ok(fs::read(binary)?)
        };
        Ok(Self {
            echo: compile("echo", include_str!("../actions/echo.c"))?,
            single_shot: compile("single_shot", include_str!("../actions/single_shot.c"))?,
            waiter: compile("waiter", include_str!("../actions/waiter.c"))?,
            without_library: without_library(directory.path())?,
        })
    }

    /// The inits of actions that cannot work, each of as many bytes of code as these.
    pub(crate) fn unfit(&self, bytes: usize) -> [Unfit; 3] {
        let padded = |code: &[u8], filling: u8| {
            let mut code = code.to_vec();
            code.resize(bytes, filling);
            init(&code, Dialect::Version1)
        };
        [
            Unfit {
                key: "no library",
                // The bytes behind the last section of a program have no meaning.
                init: padded(&self.without_library, 0),
                words: "it needs a shared library that is missing: `libabsent.so`",
            },
            Unfit {
                key: "no interpreter",
                init: padded(b"#!/nowhere/python3\nprint()\n", b'#'),
                words: "its interpreter `/nowhere/python3` does not exist",
            },
            Unfit {
                key: "error page",
                init: padded(b"<!DOCTYPE html>\n<html><head><title>404 Not Found</title></head>\n", b'\n'),
                words: "HTML",
            },
        ]
    }

    /// The init of the action that echoes quickly.
    pub(crate) fn echo(&self, dialect: Dialect) -> Request {
        match dialect {
            Dialect::Version0 => init(&self.single_shot, dialect),
            Dialect::Version1 | Dialect::Version2 | Dialect::Actionloop => init(&self.echo, dialect),
        }
    }

    /// The init of the action that takes its time.
    pub(crate) fn waiter(&self, dialect: Dialect) -> Request {
        init(&self.waiter, dialect)
    }

    /// The init of a small action, so that a cold start does not measure the decoding of a large one.
    pub(crate) fn small(dialect: Dialect) -> Request {
        let script = match dialect {
            Dialect::Actionloop => include_str!("../actions/cold.sh"),
            Dialect::Version1 => include_str!("../actions/cold_version_1.sh"),
            Dialect::Version2 => unreachable!("it starts like version 1"),
            Dialect::Version0 => include_str!("../actions/cold_single_shot.sh"),
        };
        init(script.as_bytes(), dialect)
    }
}

fn init(code: &[u8], dialect: Dialect) -> Request {
    // The environment names a protocol only where a proxy does not detect it by itself.
    let environment = match dialect {
        Dialect::Actionloop => json!({}),
        Dialect::Version1 => json!({"ECHO_PROTOCOL": "1"}),
        Dialect::Version2 => json!({"ECHO_PROTOCOL": "2"}),
        Dialect::Version0 => json!({"PIPELOOP_PROTOCOL": "0"}),
    };
    let value = json!({
        "name": "echo", "main": "main", "binary": true, "code": STANDARD.encode_to_string(code), "env": environment,
    });
    Request::post("/init", json!({ "value": value }).to_string().as_bytes())
}

/// A program that is linked to a library which goes away with the directory.
fn without_library(directory: &Path) -> Outcome<Vec<u8>> {
    let [library, program] = ["libabsent.so", "without_library"].map(|name| directory.join(name));
    let [library_source, program_source] = ["library.c", "program.c"].map(|name| directory.join(name));
    fs::write(&library_source, "int absent(void) { return 0; }\n")?;
    fs::write(&program_source, "int absent(void);\nint main(void) { return absent(); }\n")?;
    compile_c(&["-shared", "-fPIC", "-Wl,-soname,libabsent.so"], &library, &[&library_source])?;
    compile_c(&["-s"], &program, &[&program_source, &library])?;
    Ok(fs::read(program)?)
}
