//! `pipeloop completion SHELL`.

use clap::Args;

/// Prints a completion script.
#[derive(Debug, Args)]
#[command(after_help = "For example: pipeloop completion bash > /etc/bash_completion.d/pipeloop")]
pub(super) struct Completion {
    /// The shell to complete in.
    shell: clap_complete::Shell,
}

impl Completion {
    pub(super) fn execute(&self, mut command: clap::Command) {
        clap_complete::generate(self.shell, &mut command, "pipeloop", &mut std::io::stdout());
    }
}
