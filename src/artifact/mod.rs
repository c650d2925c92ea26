//! What was uploaded, and where it lies: from bytes to an executable file in a folder of its own.
//!
//! What it is is told by its content, never by its name. Nothing here is executed.

pub mod compile;
pub mod inspect;
pub mod kind;
mod place;
pub mod unpack;

use std::path::{Path, PathBuf};

use crate::error::{Error, RequestError};

use place::Made;
pub(super) use place::is_executable;

/// An executable that is ready to be started, and the folder it works in. What was made for it is removed
/// with it, however an init ends.
#[derive(Debug)]
pub struct Artifact {
    /// The executable, as an absolute path.
    pub executable: PathBuf,
    /// The folder it is started in.
    pub directory: PathBuf,
    /// The folder with the code that the executable has yet to be made of, by a compiler.
    pub source: Option<PathBuf>,
    /// A folder made for it, to be removed with it.
    made: Option<Made>,
}

/// What becomes of source code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sources {
    /// There is no compiler: it is refused.
    Refuse,
    /// It is placed for a compiler.
    Place,
}

impl Sources {
    /// Source code is accepted where there is a compiler.
    #[must_use]
    pub fn with(compiler: Option<&Path>) -> Self {
        if compiler.is_some() { Self::Place } else { Self::Refuse }
    }
}

/// Code as init brings it.
#[derive(Debug)]
pub enum Code {
    /// Text, as it is.
    Text(Vec<u8>),
    /// Base64.
    Encoded(Vec<u8>),
}

impl Code {
    /// How long it is as it was sent, in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Text(bytes) | Self::Encoded(bytes) => bytes.len(),
        }
    }

    /// Whether nothing was sent.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The code as bytes.
    ///
    /// The platform guesses by a pattern whether code is base64, so plain text such as `abcd` may
    /// arrive as binary; it then decodes to something unrecognised, and is told so.
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
