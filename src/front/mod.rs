//! Who calls us. A front turns requests into activations and outcomes into answers, and is the
//! only place that knows a status code.
//!
//! - [`openwhisk`]: `/init` and `/run`

pub mod openwhisk;
mod stream;
