//! A case: the requests, the steps of the executable, and what the caller and the log must show.
//!
//! The files are `conformance/cases/GROUP/NAME.json`; `README.md` explains them and
//! `conformance/schema.json` says the same for machines. Nothing in here runs anything.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

macro_rules! cases {
    ($($name:literal),* $(,)?) => {
        /// Name and text of every case of `conformance/cases`; a test keeps the list complete.
        pub const ALL: &[(&str, &str)] =
            &[$(($name, include_str!(concat!("../cases/", $name, ".json")))),*];
    };
}

include!("list.rs");

/// One case, as its file has it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// `GROUP/NAME`, after its file.
    #[serde(skip)]
    pub name: String,
    /// What must hold, in a sentence.
    pub title: String,
    /// What the executable speaks: `0`, `1`, `2`, `actionloop`, or `auto` where the proxy has to find out.
    pub protocol: String,
    /// The smallest case of its protocol: a proxy that fails it does not speak that, and the others say nothing.
    #[serde(default)]
    pub basic: bool,
    /// Faults of the field that this is about, such as `P1`.
    #[serde(default)]
    pub field: Vec<String>,
    /// What the proxy needs at its start.
    #[serde(default)]
    pub proxy: Needs,
    /// More files of the uploaded archive.
    #[serde(default)]
    pub files: Vec<File>,
    /// The script of the executable, a step a line.
    #[serde(default)]
    pub action: Vec<String>,
    /// What the callers do, in order.
    pub steps: Vec<Step>,
    /// What the log must hold after the last step.
    #[serde(default)]
    pub log: Option<Log>,
}

/// What a proxy must be started with.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Needs {
    /// Variables of its environment.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// A limit of time for init, in milliseconds.
    #[serde(default)]
    pub init_limit_ms: Option<u64>,
    /// A limit of time for each activation, in milliseconds.
    #[serde(default)]
    pub run_limit_ms: Option<u64>,
    /// How long an executable may take to end an activation whose caller has gone, in milliseconds.
    #[serde(default)]
    pub stop_limit_ms: Option<u64>,
    /// The longest answer, in bytes.
    #[serde(default)]
    pub result_limit_bytes: Option<u64>,
    /// The most that is held of a stream for a slow caller, in bytes.
    #[serde(default)]
    pub stream_buffer_bytes: Option<u64>,
}

impl Needs {
    /// The limits that have to be set, by the variables in which pipeloop takes them.
    #[must_use]
    pub fn limits(&self) -> Vec<(&'static str, String)> {
        let time = |limit: Option<u64>| limit.map(|limit| format!("{limit}ms"));
        let size = |limit: Option<u64>| limit.map(|limit| limit.to_string());
        let all = [
            ("PIPELOOP_INIT_TIMEOUT", time(self.init_limit_ms)),
            ("PIPELOOP_RUN_TIMEOUT", time(self.run_limit_ms)),
            ("PIPELOOP_STOP_GRACE", time(self.stop_limit_ms)),
            ("PIPELOOP_MAX_RESULT", size(self.result_limit_bytes)),
            ("PIPELOOP_STREAM_BUFFER", size(self.stream_buffer_bytes)),
        ];
        all.into_iter().filter_map(|(name, limit)| Some((name, limit?))).collect()
    }
}

/// A file of the uploaded archive beside the executable.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// Its name in the archive, as it is.
    pub path: String,
    /// What it holds.
    pub text: String,
}

/// One thing that a caller does.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Uploads the executable, or something else.
    Init(Init),
    /// Runs an activation.
    Run(Run),
    /// Sends any other request.
    Send(Send),
    /// Waits until the executable has raised this event.
    Await(String),
    /// Raises an event that the executable waits for.
    Raise(String),
    /// Waits until the process that raised this event last is gone.
    Gone(String),
    /// Callers at once, each with a connection and with steps of its own.
    Together(Vec<Vec<Step>>),
    /// Callers at once that all repeat the same activation.
    Callers(Callers),
    /// Looks at the log before anything else happens.
    Log(Log),
    /// No file of this name is anywhere below the directory that the proxy was started in, or the four above it.
    Absent(String),
    /// Tells the proxy to end, and waits for that.
    Stop(Stop),
}

/// An init.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Init {
    /// The whole body, in place of an upload of the executable.
    #[serde(default)]
    pub text: Option<Text>,
    /// Members of `value` beside or in place of those of the upload.
    #[serde(default)]
    pub value: BTreeMap<String, Value>,
    /// What comes back; `{"status":200}` unless said.
    #[serde(default)]
    pub expect: Expect,
}

/// An activation.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Run {
    /// The arguments; the body is `{"value":ARGUMENTS}`.
    #[serde(default)]
    pub value: Option<Value>,
    /// The whole body.
    #[serde(default)]
    pub text: Option<Text>,
    /// The body is sent in this many chunks (`Transfer-Encoding: chunked`).
    #[serde(default)]
    pub chunks: Option<usize>,
    /// The header `Accept`; none unless given.
    #[serde(default)]
    pub accept: Option<String>,
    /// The caller closes the connection when the executable has raised this event.
    #[serde(default)]
    pub leave_after: Option<String>,
    /// What comes back; `{"status":200}` unless said.
    #[serde(default)]
    pub expect: Expect,
    /// The body item by item, and what the caller does in between; in place of what `expect` says of the body.
    #[serde(default)]
    pub stream: Vec<StreamStep>,
}

/// An item of a stream as the caller gets it, or a step of the caller between two items. Server-sent events and lines
/// of JSON are the same here.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StreamStep {
    /// A chunk: an event without a name, or a line with the member `chunk`.
    Chunk(Value),
    /// Any number of chunks.
    AnyChunks(Any),
    /// The last item: `result`.
    Result(Value),
    /// The last item: `error`, from the action.
    Error(Value),
    /// The last item: `error` of the proxy, with a sentence that holds each of these.
    Fails(Vec<String>),
    /// Raises an event when all items before it are here.
    Raise(String),
    /// Reads nothing until this event was raised.
    Await(String),
    /// Closes the connection. The last step.
    Leave(Any),
}

/// `true`, for a member that says all by being there.
#[derive(Debug, Deserialize)]
#[serde(try_from = "bool")]
pub struct Any;

impl TryFrom<bool> for Any {
    type Error = &'static str;

    fn try_from(value: bool) -> Result<Self, Self::Error> {
        if value { Ok(Self) } else { Err("`true` is all it can be") }
    }
}

/// Any request.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Send {
    /// Such as `GET`.
    pub method: String,
    /// Such as `/health`.
    pub path: String,
    /// The body.
    #[serde(default)]
    pub text: Option<Text>,
    /// What comes back.
    pub expect: Expect,
}

/// Callers at once.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Callers {
    /// How many.
    pub count: usize,
    /// How many activations each of them runs.
    pub calls: usize,
    /// What each of them sends and gets. `@n@` in texts is another number in each call.
    pub run: Run,
}

/// The end of the proxy.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stop {
    /// The exit status that it ends with.
    pub status: i32,
}

/// What an answer must be. Everything that is given must hold.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expect {
    /// Its status, 200 unless given.
    #[serde(default)]
    pub status: Status,
    /// The body as JSON.
    #[serde(default)]
    pub body: Option<Value>,
    /// The body byte for byte, but for white space at its end.
    #[serde(default)]
    pub text: Option<Text>,
    /// Each of these is in the sentence of the one member `error`.
    #[serde(default)]
    pub error: Option<Vec<String>>,
    /// Headers, by their name in lower case. `@length@` stands for the length of the body.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// One of these holds, in place of all the others.
    #[serde(default)]
    pub any: Vec<Expect>,
}

/// A status of HTTP.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(untagged)]
pub enum Status {
    /// This one.
    Exactly(u16),
    /// Any that means an error; not 503, by which the platform would run the activation elsewhere.
    Kind(Kind),
}

/// A kind of status.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// 400 to 599 without 503.
    Error,
}

impl Default for Status {
    fn default() -> Self {
        Self::Exactly(200)
    }
}

/// A text, or parts of one, so that long ones stay short in the file.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub enum Text {
    /// As it is.
    Plain(String),
    /// One behind the other.
    Parts(Vec<Part>),
}

/// A part of a text.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub enum Part {
    /// As it is.
    Plain(String),
    /// Over and over.
    Repeated {
        /// What.
        repeat: String,
        /// How often.
        times: usize,
    },
}

impl Text {
    /// The whole of it, `@n@` filled in.
    #[must_use]
    pub fn whole(&self, number: Option<usize>) -> String {
        let text = match self {
            Self::Plain(text) => text.clone(),
            Self::Parts(parts) => parts.iter().map(Part::whole).collect(),
        };
        match number {
            Some(number) => text.replace("@n@", &number.to_string()),
            None => text,
        }
    }
}

impl Part {
    fn whole(&self) -> String {
        match self {
            Self::Plain(text) => text.clone(),
            Self::Repeated { repeat, times } => repeat.repeat(*times),
        }
    }
}

/// What the log must hold.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Log {
    /// The lines of each activation on stdout; `…` stands for any lines.
    #[serde(default)]
    pub stdout: Option<Vec<Vec<Text>>>,
    /// The same on stderr.
    #[serde(default)]
    pub stderr: Option<Vec<Vec<Text>>>,
    /// How many sentinels stand on each of both streams.
    #[serde(default)]
    pub sentinels: Option<usize>,
}

impl Case {
    /// A case from the text of its file.
    ///
    /// # Errors
    /// What is wrong with the file, and where.
    pub fn parse(name: &str, text: &str) -> Result<Self, String> {
        let mut case: Self = serde_json::from_str(text).map_err(|error| format!("{name}.json: {error}"))?;
        name.clone_into(&mut case.name);
        Ok(case)
    }

    /// Whether a word on the command line means this case: its name, the beginning of it, or a fault of the field.
    #[must_use]
    pub fn is_meant_by(&self, word: &str) -> bool {
        self.name.starts_with(word) || self.field.iter().any(|fault| fault == word)
    }

    /// Whether the proxy has an action afterwards, and can be used for no other case that wants one.
    #[must_use]
    pub fn initialises(&self) -> bool {
        fn any(steps: &[Step]) -> bool {
            steps.iter().any(|step| match step {
                Step::Init(init) => matches!(init.expect.status, Status::Exactly(200)),
                Step::Together(callers) => callers.iter().any(|steps| any(steps)),
                _ => false,
            })
        }
        any(&self.steps)
    }

    /// Why a proxy that runs already cannot be asked, if it cannot.
    #[must_use]
    pub fn needs_a_start(&self) -> Option<&'static str> {
        let stops = |step: &Step| matches!(step, Step::Stop(_));
        if !self.proxy.env.is_empty() {
            Some("the proxy's environment has to be set")
        } else if !self.proxy.limits().is_empty() {
            Some("the proxy's limits have to be set")
        } else if self.steps.iter().any(stops) {
            Some("the proxy is ended by it")
        } else {
            None
        }
    }
}

/// The cases that this program was built with.
///
/// # Panics
/// Never: a test reads all of them.
#[must_use]
pub fn built_in() -> Vec<Case> {
    ALL.iter().map(|(name, text)| Case::parse(name, text).expect("every case can be read")).collect()
}

/// The cases in a directory, `GROUP/NAME.json` each, by name.
///
/// # Errors
/// What cannot be read.
pub fn read(directory: &Path) -> Result<Vec<Case>, String> {
    let files = |directory: &Path| -> Result<Vec<_>, String> {
        let named = |error: std::io::Error| format!("{}: {error}", directory.display());
        let entries = std::fs::read_dir(directory).map_err(named)?;
        let mut paths =
            entries.map(|entry| entry.map(|entry| entry.path()).map_err(named)).collect::<Result<Vec<_>, _>>()?;
        paths.sort();
        Ok(paths)
    };
    let mut cases = Vec::new();
    for group in files(directory)?.iter().filter(|path| path.is_dir()) {
        for path in files(group)?.iter().filter(|path| path.extension().is_some_and(|extension| extension == "json")) {
            let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
            let name = path.with_extension("");
            let name = name.strip_prefix(directory).expect("it is below the directory");
            cases.push(Case::parse(&name.to_string_lossy(), &text)?);
        }
    }
    Ok(cases)
}
