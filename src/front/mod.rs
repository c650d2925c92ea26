//! Fronts, one for each kind of caller. A front turns requests into activations and outcomes into answers.
//! Only a front knows paths and status codes.
//!
//! - [`openwhisk`]: `/init` and `/run`

pub mod openwhisk;
mod stream;
