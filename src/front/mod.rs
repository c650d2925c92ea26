//! Who calls us. A front turns requests into activations and outcomes into answers, and is the
//! only place that knows a status code.
//!
//! - [`http`]: connections, bodies and their bounds, for any front
//! - [`openwhisk`]: `/init` and `/run`

pub mod http;
pub mod openwhisk;
mod plain;
mod stream;
