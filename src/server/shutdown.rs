//! The stages of the server's end.

use std::time::Duration;

use tokio::sync::watch;

/// How far the server's end has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stop {
    /// The server runs.
    No,
    /// The server accepts no more connections. It answers open ones, and closes each after its next answer.
    Accepting,
    /// The server closes each connection as soon as it has no request in flight.
    Connections,
}

/// How long a request that the kernel has received may take to reach its connection.
const ARRIVAL_GRACE: Duration = Duration::from_millis(2);

/// Waits until an idle connection must close.
pub(super) async fn wait_to_close_idle(mut stop: watch::Receiver<Stop>) {
    let _ = stop.wait_for(|stop| *stop == Stop::Connections).await;
    // A request that only the kernel has seen is in flight, too.
    tokio::time::sleep(ARRIVAL_GRACE).await;
}
