//! The proxies that are measured, and the actions they run.

use std::ffi::OsStr;
use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use base64_simd::STANDARD;
use clap::ValueEnum;
use serde_json::json;
use tempfile::TempDir;

use crate::Outcome;
use crate::client::{Connection, Request};

/// How often a proxy that was just started is tried.
const RETRY: Duration = Duration::from_micros(200);
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
    /// The port that it takes when it cannot be told one.
    pub(crate) fixed_port: Option<u16>,
    pub(crate) dialect: Dialect,
    pub(crate) output: Output,
}

/// Where what a proxy prints goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Output {
    /// Nowhere: a reader would have to be woken for each sentinel.
    Discard,
    /// To where ours goes, to see why something fails.
    Show,
}

/// Whether the action's acknowledgement is awaited: `OW_WAIT_FOR_ACK`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Acknowledgement {
    Ignored,
    Awaited,
}

impl Contestant {
    /// Starts the proxy in a folder of its own.
    pub(crate) fn start(&self, acknowledgement: Acknowledgement) -> Outcome<Running> {
        let folder = TempDir::with_prefix("pipeloop-bench-")?;
        let port = match self.fixed_port {
            Some(port) if Connection::open(port).is_ok() => {
                return Err(format!("{}: something listens on port {port} already", self.name).into());
            }
            Some(port) => port,
            None => TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port(),
        };
        let words: Vec<_> = self.command.iter().map(|word| word.replace("{port}", &port.to_string())).collect();
        // A path is meant as seen from here, not from the proxy's folder.
        let program = if words[0].contains('/') { std::path::absolute(&words[0])? } else { words[0].clone().into() };
        let mut command = Command::new(program);
        command.args(&words[1..]).stdin(Stdio::null());
        // What the shell has set is not to decide the result.
        testkit::command::forget_proxy_settings(&mut command);
        if acknowledgement == Acknowledgement::Awaited {
            command.env("OW_WAIT_FOR_ACK", "1");
        }
        if self.output == Output::Discard {
            command.stdout(Stdio::null()).stderr(Stdio::null());
        }
        // We go to the folder ourselves: for a child that changes its folder the standard library
        // forks, which copies this program's page tables on the proxy's time.
        let here = std::env::current_dir()?;
        std::env::set_current_dir(&folder)?;
        let started = Instant::now();
        let child = command.spawn();
        std::env::set_current_dir(here)?;
        let child = child.map_err(|error| format!("{}: cannot start `{}`: {error}", self.name, words[0]))?;
        Ok(Running { name: self.name.clone(), child, port, started, _folder: folder })
    }
}

/// A proxy that runs. It is stopped when this is dropped.
pub(crate) struct Running {
    name: String,
    child: Child,
    port: u16,
    /// Just before it was started.
    pub(crate) started: Instant,
    _folder: TempDir,
}

impl Running {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Connects as soon as the proxy listens.
    pub(crate) fn connect(&mut self) -> Outcome<Connection> {
        loop {
            let refusal = match Connection::open(self.port) {
                Ok(connection) => return Ok(connection),
                Err(error) => error,
            };
            if let Some(status) = self.child.try_wait()? {
                return Err(format!("{}: ended at its start: {status}; try --show-output", self.name).into());
            }
            if self.started.elapsed() > START_LIMIT {
                return Err(format!("{}: does not listen on port {}: {refusal}", self.name, self.port).into());
            }
            std::thread::sleep(RETRY);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let asked = Instant::now();
        while asked.elapsed() < STOP_LIMIT {
            if matches!(self.child.try_wait(), Ok(Some(_)) | Err(_)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        eprintln!("{}: still there {} s after SIGTERM; killed", self.name, STOP_LIMIT.as_secs());
        let _ = self.child.kill();
        let _ = self.child.wait();
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
        let folder = TempDir::with_prefix("pipeloop-bench-")?;
        let compile = |name: &str, source: &str| -> Outcome<Vec<u8>> {
            let (source_file, binary) = (folder.path().join(name).with_extension("c"), folder.path().join(name));
            fs::write(&source_file, source)?;
            cc(&source_file, &binary)?;
            Ok(fs::read(binary)?)
        };
        Ok(Self {
            echo: compile("echo", include_str!("../actions/echo.c"))?,
            single_shot: compile("single_shot", include_str!("../actions/single_shot.c"))?,
            waiter: compile("waiter", include_str!("../actions/waiter.c"))?,
            without_library: without_library(folder.path())?,
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
                // What follows the last section of a program is nobody's.
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

    /// The init of an action that is small: what is measured then is not the decoding of a binary.
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
    // Only what is not the default of all proxies is said: `auto` finds the rest.
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

/// A program that is linked to a library which goes away with the folder.
fn without_library(folder: &Path) -> Outcome<Vec<u8>> {
    let [library, program] = ["libabsent.so", "without_library"].map(|name| folder.join(name));
    fs::write(folder.join("library.c"), "int absent(void) { return 0; }\n")?;
    fs::write(folder.join("program.c"), "int absent(void);\nint main(void) { return absent(); }\n")?;
    compiled(
        &[OsStr::new("-shared"), "-fPIC".as_ref(), "-Wl,-soname,libabsent.so".as_ref(), "-o".as_ref()],
        &library,
        &[&folder.join("library.c")],
    )?;
    compiled(&[OsStr::new("-s"), "-o".as_ref()], &program, &[&folder.join("program.c"), &library])?;
    Ok(fs::read(program)?)
}

fn cc(source: &Path, binary: &Path) -> Outcome {
    compiled(&["-O2", "-static", "-s", "-o"].map(OsStr::new), binary, &[source])
}

fn compiled(flags: &[&OsStr], output: &Path, inputs: &[&Path]) -> Outcome {
    let done = Command::new("cc")
        .args(flags)
        .arg(output)
        .args(inputs)
        .output()
        .map_err(|error| format!("cannot run the C compiler `cc`, which builds the actions: {error}"))?;
    if !done.status.success() {
        return Err(format!("cc: {}", String::from_utf8_lossy(&done.stderr)).into());
    }
    Ok(())
}
