//! Listening, and accepting connections until the server stops.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};

use crate::error::{Error, ProxyError};
use crate::process::allocator;

use super::connection;
use super::{Front, Limits, Stop};

/// How long accepting pauses after the kernel refused it, for instance because no descriptors are left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How long the allocator keeps freed memory for the next request of the same size.
const TRIM_DELAY: Duration = Duration::from_secs(1);

/// Listens on one address, or on all addresses.
///
/// # Errors
/// [`ProxyError::CannotListen`].
pub fn listen(host: Option<IpAddr>, port: u16) -> Result<TcpListener, Error> {
    let bind = |ip: IpAddr| -> std::io::Result<TcpListener> {
        let address = SocketAddr::new(ip, port);
        let socket = if ip.is_ipv4() { tokio::net::TcpSocket::new_v4() } else { tokio::net::TcpSocket::new_v6() }?;
        if ip.is_ipv6() {
            // The default of the system is `net.ipv6.bindv6only`, which need not be 0.
            rustix::net::sockopt::set_ipv6_v6only(&socket, false)?;
        }
        // A proxy that restarts at once must get its port again.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(1024)
    };
    let bound = match host {
        Some(ip) => bind(ip),
        // The unspecified IPv6 address takes IPv4 as well, on hosts that have IPv6 at all.
        None => match bind(Ipv6Addr::UNSPECIFIED.into()) {
            Err(error) if error.kind() != std::io::ErrorKind::AddrInUse => bind(Ipv4Addr::UNSPECIFIED.into()),
            other => other,
        },
    };
    bound.map_err(|reason| {
        let host = host.map_or_else(|| "*".to_owned(), |ip| ip.to_string());
        Error::Proxy(ProxyError::CannotListen { address: format!("{host}:{port}"), reason })
    })
}

/// Accepts and serves connections. Returns when [`Stop`] has asked all of them to close and they have.
pub async fn serve<F: Front>(listener: TcpListener, front: Arc<F>, limits: Limits, mut stop: watch::Receiver<Stop>) {
    let permits = Arc::new(Semaphore::new(limits.connections as usize));
    let acquire = || async { permits.clone().acquire_owned().await.expect("the semaphore is never closed") };
    let stopped = stop.clone();
    let freed_large_blocks = Arc::new(Notify::new());
    let trimmer = tokio::spawn(trim_when_notified(freed_large_blocks.clone()));
    let start = |stream: TcpStream, permit: OwnedSemaphorePermit| {
        // An answer is one write. Waiting to fill a packet would only delay it.
        let _ = stream.set_nodelay(true);
        let connection = connection::serve(stream, front.clone(), limits.caller_timeout, stopped.clone());
        let freed_large_blocks = freed_large_blocks.clone();
        tokio::spawn(async move {
            // Large buffers are freed by this task, or before the answer that it sends.
            let mut connection = pin!(connection);
            std::future::poll_fn(|context| {
                let polled = connection.as_mut().poll(context);
                if allocator::has_freed_large_blocks() {
                    freed_large_blocks.notify_one();
                }
                polled
            })
            .await;
            drop(permit);
        });
    };
    loop {
        let (accepted, permit) = tokio::select! {
            _ = stop.wait_for(|stop| *stop >= Stop::Accepting) => break,
            accepted = async {
                let permit = acquire().await;
                (listener.accept().await, permit)
            } => accepted,
        };
        match accepted {
            Ok((stream, _)) => start(stream, permit),
            Err(error) => {
                // The caller left before it was accepted, or no descriptors are left. Both pass.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    // Connections still in the accept queue get an answer too: the platform does not retry a request whose
    // connection ended without one.
    if let Ok(listener) = listener.into_std() {
        while let Ok((stream, _)) = listener.accept() {
            let Ok(permit) = permits.clone().try_acquire_owned() else { break };
            if stream.set_nonblocking(true).is_ok()
                && let Ok(stream) = TcpStream::from_std(stream)
            {
                start(stream, permit);
            }
        }
    }
    // The listener is closed: the kernel refuses new callers, and the platform goes elsewhere.
    for _ in 0..limits.connections {
        acquire().await.forget();
    }
    trimmer.abort();
}

/// Returns freed memory to the kernel, after a delay: a caller that goes on finds its buffers again.
async fn trim_when_notified(freed_large_blocks: Arc<Notify>) {
    loop {
        freed_large_blocks.notified().await;
        tokio::time::sleep(TRIM_DELAY).await;
        allocator::trim();
    }
}
