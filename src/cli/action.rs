//! The action that a command line gives: a file, or a command after `--`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, ValueHint};

use crate::artifact::LocalAction;

/// An action, in one of two ways.
#[derive(Debug, Args)]
#[group(multiple = false)]
pub(super) struct ActionArgument {
    /// Executable, directory with `exec`, zip or tar.gz; with a compiler also source code, a file or a directory.
    #[arg(index = 1, value_hint = ValueHint::FilePath)]
    action: Option<PathBuf>,

    /// Program on PATH and its arguments, in place of ACTION. It need not know the protocol: one line of JSON in, one
    /// line of JSON out is enough.
    #[arg(index = 2, last = true, value_name = "COMMAND", value_hint = ValueHint::CommandWithArguments)]
    command: Vec<OsString>,
}

impl ActionArgument {
    /// The action, if there is one.
    pub(super) fn given(self) -> Option<LocalAction> {
        let command = (!self.command.is_empty()).then_some(LocalAction::Command(self.command));
        self.action.map(LocalAction::File).or(command)
    }

    /// The action of a command that needs one.
    pub(super) fn required(self) -> LocalAction {
        self.given().expect("the command line was parsed with `require`")
    }

    /// Makes an action required.
    pub(super) fn require(command: clap::Command) -> clap::Command {
        command.mut_arg("action", |action| action.required_unless_present("command"))
    }
}
