//! A caller of a case: a connection that is made when it is needed and again after it ended, with one deadline for
//! everything.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use testkit::http::{self, Response, request};

/// How long a proxy may take to accept a connection.
pub(super) const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// A kept connection. Unlike [`http::Caller`] it connects again when the proxy has closed it, as the cases ask of a
/// caller.
pub(super) struct Caller {
    address: SocketAddr,
    host: String,
    deadline: Instant,
    connection: Option<http::Caller>,
}

impl Caller {
    pub(super) fn new(address: SocketAddr, host: &str, deadline: Instant) -> Self {
        Self { address, host: host.to_owned(), deadline, connection: None }
    }

    /// Sends a request whose answer is received later.
    pub(super) fn send(&mut self, method: &str, path: &str, body: &[u8]) -> io::Result<()> {
        let request = request(method, path, &headers(&self.host), body);
        self.connection()?.send(&request)
    }

    /// Sends an activation with this `Accept`, in this many chunks if there is a number.
    pub(super) fn send_run(&mut self, accept: Option<&str>, body: &[u8], chunks: Option<usize>) -> io::Result<()> {
        let host = self.host.clone();
        let mut headers = headers(&host).to_vec();
        headers.extend(accept.map(|accept| ("Accept", accept)));
        let connection = self.connection()?;
        match chunks {
            None => connection.send(&request("POST", "/run", &headers, body)),
            Some(count) => {
                let chunk_bytes = body.len().div_ceil(count.max(1)).max(1);
                connection.send_in_chunks("/run", &headers, body.chunks(chunk_bytes))
            }
        }
    }

    /// Closes the connection without having received the answer.
    pub(super) fn leave(&mut self) {
        self.connection = None;
    }

    /// Receives one answer, whether its body comes in chunks or not.
    pub(super) fn receive(&mut self) -> io::Result<Response> {
        let response = self.receive_whole();
        let closes = |response: &Response| response.header("connection").is_some_and(|value| value.contains("close"));
        if response.as_ref().map_or(true, closes) {
            self.connection = None;
        }
        response
    }

    fn receive_whole(&mut self) -> io::Result<Response> {
        let connection = self.connection()?;
        let mut response = connection.receive_head()?;
        if !response.is_chunked() {
            return connection.receive_body(response);
        }
        while let Some(chunk) = connection.receive_chunk()? {
            response.body.extend(chunk);
        }
        Ok(response)
    }

    /// Receives the head of an answer.
    pub(super) fn receive_head(&mut self) -> io::Result<Response> {
        self.connection()?.receive_head()
    }

    /// Receives a chunk of a body. `None` is the last one.
    pub(super) fn receive_chunk(&mut self) -> io::Result<Option<Vec<u8>>> {
        self.connection()?.receive_chunk()
    }

    fn connection(&mut self) -> io::Result<&mut http::Caller> {
        if self.connection.is_none() {
            let left = self.deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(ErrorKind::TimedOut.into());
            }
            let stream = TcpStream::connect_timeout(&self.address, left.min(CONNECT_LIMIT))?;
            let mut caller = http::Caller::over(stream)?;
            caller.set_deadline(self.deadline);
            self.connection = Some(caller);
        }
        Ok(self.connection.as_mut().expect("it was made above"))
    }
}

fn headers(host: &str) -> [(&'static str, &str); 2] {
    [("Host", host), ("Content-Type", "application/json")]
}
