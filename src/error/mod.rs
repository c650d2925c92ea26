//! The catalogue of what can go wrong: a stable code, a sentence and a hint for each cause.
//!
//! One enum for each stage, one variant for each cause that a reader could act on, with the facts as fields.
//! A sentence says what happened, where and why, in that order, on one line; the hint says what to do and
//! names a command or a setting. Both stand in the file of their stage. The caller gets the sentence and the
//! hint, the action's log gets the detail as well.
//!
//! Three exhaustive tables go over all causes: the codes in `codes.rs`, the HTTP statuses in
//! `front/openwhisk.rs`, the exit statuses in `cli/mod.rs`. A new variant does not compile without a row in
//! each of them.

pub mod catalog;
mod codes;
mod defect;
mod exit_report;
mod proxy;
mod request;
mod run;
mod start;
mod upload;

pub(crate) use codes::codes;
pub use defect::{Defect, Foreign, Host, Language, Libc, MissingLibrary, NonProgram, Severity, X86Level};
pub use exit_report::ExitReport;
pub use proxy::ProxyError;
pub use request::{JsonType, RequestError, RequestKind, VariableSource};
pub use run::{BAD_ANSWER, BadAnswer, RunError, Silence, TimeLimit};
pub use start::{Awaited, HandshakeFault, NearHandshake, Oversized, Stage, StartError, Version};
pub use upload::{ArchiveFormat, Bundle, CompileFailure, FoundInstead, SpecialFile, Unsupported, UploadError};

/// Why an action is not initialised or an activation is not answered, by stage.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What is wrong with what the caller sent, or why it is refused.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// Why what was uploaded cannot be an action.
    #[error(transparent)]
    Upload(#[from] UploadError),
    /// Why the action does not become ready.
    #[error(transparent)]
    Start(#[from] StartError),
    /// Why an activation has no result.
    #[error(transparent)]
    Run(#[from] RunError),
    /// What the proxy itself cannot do.
    #[error(transparent)]
    Proxy(#[from] ProxyError),
}

impl Error {
    /// What to do about it, when there is something to do that the sentence does not say.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Request(error) => error.hint(),
            Self::Upload(error) => error.hint(),
            Self::Start(error) => error.hint(),
            Self::Run(error) => error.hint(),
            Self::Proxy(error) => error.hint(),
        }
    }

    /// The sentence with its hint, for a caller who sees nothing else. The text that platforms compare for an
    /// unusable answer stays to the letter; the other fixed texts have no hint.
    #[must_use]
    pub fn for_caller(&self) -> String {
        match self.hint() {
            Some(hint) if !matches!(self, Self::Run(RunError::BadAnswer { .. })) => format!("{self} (hint: {hint})"),
            _ => self.to_string(),
        }
    }

    /// The sentence without anything that an activation wrote, for a caller of another activation.
    #[must_use]
    pub fn without_output(&self) -> String {
        match self {
            Self::Run(error) => error.without_output(),
            Self::Request(_) | Self::Upload(_) | Self::Start(_) | Self::Proxy(_) => self.to_string(),
        }
    }

    /// What the action's author should read in the log in place of the sentence, when there is more.
    #[must_use]
    pub fn detail(&self) -> Option<String> {
        match self {
            Self::Run(error) => error.detail(),
            Self::Request(_) | Self::Upload(_) | Self::Start(_) | Self::Proxy(_) => None,
        }
    }
}

/// The end of what a process wrote, in backticks behind `before`; nothing when it wrote nothing. The lines of a
/// tail are joined and escaped already.
fn quoted(before: &str, tail: &str) -> String {
    if tail.is_empty() { String::new() } else { format!("{before}`{tail}`") }
}
