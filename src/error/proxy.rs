//! Failures of the proxy itself.

use std::io;

/// What the proxy itself cannot do.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the fields are the facts that the sentence of each cause is made of")]
pub enum ProxyError {
    /// The proxy is shutting down.
    #[error("the proxy is shutting down")]
    ShuttingDown,

    /// The proxy cannot listen on the address of its settings.
    #[error("cannot listen on {address}: {reason}")]
    CannotListen {
        address: String,
        #[source]
        reason: io::Error,
    },

    /// A setting has a value that cannot be used.
    #[error("`{setting}` cannot be used: {reason}")]
    BadSetting { setting: &'static str, reason: String },

    /// The operating system refused an operation.
    #[error("cannot {doing}: {reason}")]
    System {
        doing: &'static str,
        #[source]
        reason: io::Error,
    },
}

impl ProxyError {
    /// What to do about it, when there is something to do that the sentence does not say.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::CannotListen { .. } => "choose another port with `--port` (`PIPELOOP_PORT`)".into(),
            Self::ShuttingDown | Self::BadSetting { .. } | Self::System { .. } => return None,
        })
    }
}
