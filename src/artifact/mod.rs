//! Uploads, on their way to an executable file in a directory of its own.
//!
//! The content of a file decides what it is, never its name. Only [`compile`] executes something: the compiler of the
//! image, never the upload.

mod command;
pub mod compile;
pub mod inspect;
pub mod kind;
mod place;
pub mod unpack;

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use crate::error::{Error, RequestError};
use crate::text::shell_word;

use place::OwnedDirectory;
pub(super) use place::is_executable;

/// An executable that is ready to start, and its directory. Dropping it removes the files that the proxy made for it,
/// however the init ends.
#[derive(Debug)]
pub struct Artifact {
    /// The executable, as an absolute path.
    pub executable: PathBuf,
    /// The directory in which it starts.
    pub directory: PathBuf,
    /// The arguments of a command line; none for a file.
    pub command: Option<Vec<OsString>>,
    /// The directory with the source code, when a compiler has yet to make the executable.
    pub source: Option<PathBuf>,
    /// The directory that the proxy made for it; none for an action that lies in the image.
    owned: Option<OwnedDirectory>,
}

/// An action that the command line gives.
#[derive(Debug, Clone)]
pub enum LocalAction {
    /// An executable, a directory or an archive; with a compiler also source code.
    File(PathBuf),
    /// A program and its arguments.
    Command(Vec<OsString>),
}

impl fmt::Display for LocalAction {
    /// A path, or a command line as a shell takes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Command(words) => {
                let words: Vec<_> = words.iter().map(|word| shell_word(&word.to_string_lossy())).collect();
                f.write_str(&words.join(" "))
            }
        }
    }
}

/// What to do with source code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sources {
    /// Refuse it: there is no compiler.
    Refuse,
    /// Place it for the compiler.
    Place,
}

impl Sources {
    /// Source code is accepted only if there is a compiler.
    #[must_use]
    pub fn with(compiler: Option<&Path>) -> Self {
        if compiler.is_some() { Self::Place } else { Self::Refuse }
    }
}

/// The code in the body of an init.
#[derive(Debug)]
pub enum Code {
    /// Plain text.
    Text(Vec<u8>),
    /// Base64.
    Encoded(Vec<u8>),
}

impl Code {
    /// The length as it was sent, in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Text(bytes) | Self::Encoded(bytes) => bytes.len(),
        }
    }

    /// Whether it is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The code as bytes.
    ///
    /// The platform guesses by a pattern whether code is base64, so plain text such as `abcd` may arrive as binary. It
    /// then decodes to data of no known format, and the error says so.
    ///
    /// # Errors
    /// [`RequestError::BadBase64`].
    pub fn decode(self) -> Result<Vec<u8>, Error> {
        match self {
            Self::Text(bytes) => Ok(bytes),
            Self::Encoded(mut text) => {
                text.retain(|byte| !byte.is_ascii_whitespace());
                let length =
                    base64_simd::STANDARD.decode_inplace(&mut text).map(|decoded| decoded.len()).map_err(|_| {
                        Error::Request(RequestError::BadBase64 {
                            reason: "it holds other characters, or its padding is wrong".into(),
                        })
                    })?;
                text.truncate(length);
                Ok(text)
            }
        }
    }
}
