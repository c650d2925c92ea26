//! `pipeloop completion SHELL`.

use clap::Args;

use crate::error::{Error, ProxyError};

use super::output;

/// Print a completion script for a shell.
#[derive(Debug, Args)]
#[command(after_help = "For example: pipeloop completion bash > /etc/bash_completion.d/pipeloop")]
pub(super) struct Completion {
    /// Shell that runs the script.
    shell: clap_complete::Shell,
}

impl Completion {
    pub(super) fn execute(&self, mut command: clap::Command) -> Result<u8, Error> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut command, "pipeloop", &mut script);
        output::unless_closed(output::script(&script))
            .map_err(|reason| Error::Proxy(ProxyError::System { doing: "write the script", reason }))?;
        Ok(0)
    }
}
