//! `pipeloop completion SHELL`.

use clap::Args;

/// Print a completion script for a shell.
#[derive(Debug, Args)]
#[command(after_help = "For example: pipeloop completion bash > /etc/bash_completion.d/pipeloop")]
pub(super) struct Completion {
    /// Shell that runs the script.
    shell: clap_complete::Shell,
}

impl Completion {
    pub(super) fn execute(&self, mut command: clap::Command) {
        clap_complete::generate(self.shell, &mut command, "pipeloop", &mut std::io::stdout());
    }
}
