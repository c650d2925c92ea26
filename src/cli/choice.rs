//! Values of arguments that are chosen from a list, which completion offers.

use std::ffi::OsStr;

use clap::builder::{PossibleValue, TypedValueParser};
use clap::{Arg, Command};

/// Parses a choice, and offers the existing ones for completion. Unlike clap's own choices, it may accept other
/// spellings, and its error may say more than the list.
#[derive(Clone)]
pub(super) struct Choice<T> {
    /// Turns what was typed into a value, or says what is wrong with it.
    pub(super) parse: fn(&str) -> Result<T, String>,
    /// The choices.
    pub(super) offered: fn() -> Vec<PossibleValue>,
}

impl<T: Clone + Send + Sync + 'static> TypedValueParser for Choice<T> {
    type Value = T;

    fn parse_ref(&self, command: &Command, argument: Option<&Arg>, value: &OsStr) -> Result<T, clap::Error> {
        TypedValueParser::parse_ref(&self.parse, command, argument, value)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        Some(Box::new((self.offered)().into_iter()))
    }
}
