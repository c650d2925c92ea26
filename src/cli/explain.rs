//! `pipeloop explain [CODE]…`: the catalogue of errors, from `docs/errors.md`.

use clap::Args;
use clap::builder::PossibleValue;

use crate::error::catalog::{self, Entry};
use crate::error::{Error, ProxyError};

use super::choice::Choice;
use super::output;

/// Explain error codes: what an error means, how to reproduce it, and how to fix it.
///
/// Without a code, list all of them.
#[derive(Debug, Args)]
#[command(after_help = "For example: pipeloop explain PL060, or shorter: pipeloop explain 60")]
pub(super) struct Explain {
    /// Error code, such as PL012; `12` and `pl12` work too.
    #[arg(value_name = "CODE", value_parser = Choice { parse, offered: codes }, hide_possible_values = true)]
    codes: Vec<&'static Entry>,

    /// Print a JSON array of objects with `code`, `title`, `says`, `means`, `to_get_it` and `cure`.
    #[arg(long)]
    json: bool,
}

impl Explain {
    pub(super) fn execute(self) -> Result<u8, Error> {
        let all = self.codes.is_empty();
        let entries = if all { catalog::entries().iter().collect() } else { self.codes };
        let printed = if self.json {
            let json = serde_json::to_vec(&entries).expect("an entry is plain text");
            output::result(&json)
        } else if all {
            output::titles(&entries)
        } else {
            output::entries(&entries)
        };
        output::unless_closed(printed)
            .map_err(|reason| ProxyError::System { doing: "write the explanation", reason })?;
        Ok(0)
    }
}

fn codes() -> Vec<PossibleValue> {
    catalog::entries().iter().map(|entry| PossibleValue::new(entry.code).help(entry.title)).collect()
}

fn parse(typed: &str) -> Result<&'static Entry, String> {
    catalog::find(typed).map_err(|near| {
        let near: Vec<_> = near.iter().map(|entry| format!("{} ({})", entry.code, entry.title)).collect();
        match &near[..] {
            [] => "no error has this code; `pipeloop explain` lists all of them".into(),
            near => format!("no error has this code; the nearest are {}", near.join(", ")),
        }
    })
}
