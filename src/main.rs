//! The command `pipeloop`: see [`pipeloop::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    pipeloop::cli::main()
}
