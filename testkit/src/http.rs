//! A blocking HTTP/1.1 caller on one kept connection, which can also behave badly.
//!
//! A request is one write, unless its body goes in chunks. Bytes are read into one buffer, and an answer can be used
//! there without a copy: the benchmark times [`Caller`] itself, so reading costs no allocation and no system call
//! beside the reads.
//!
//! There is no redirect, no TLS and no pool. A connection that broke stays broken: only the conformance runner
//! connects again, and does so itself.

use std::fmt::{self, Write as _};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpStream};
use std::ops::Range;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::wait::WAIT_LIMIT;

/// How many bytes an ordinary caller reads beyond those it waits for.
const READ_AHEAD: usize = 8 * 1024;

/// The longest head of an answer.
const MAX_HEAD_BYTES: usize = 64 * 1024;

/// The longest body or chunk. A length beyond it is taken for a malformed one.
const MAX_BODY_BYTES: usize = 1 << 30;

/// The longest line between two chunks of a body.
const MAX_LINE_BYTES: usize = 1024;

/// A kept connection to a proxy.
///
/// Each read and write takes at most [`WAIT_LIMIT`] unless [`Caller::set_timeout`] or [`Caller::set_deadline`] says
/// otherwise.
pub struct Caller {
    stream: TcpStream,
    /// The limit of one read or write, as the kernel has it.
    timeout: Option<Duration>,
    deadline: Option<Instant>,
    read_ahead: usize,
    /// Bytes that came, of which `unread` were not taken yet.
    buffer: Vec<u8>,
    unread: Range<usize>,
    /// Where in the buffer the body of the last answer in place is.
    body: Range<usize>,
    read_at: Instant,
}

impl fmt::Debug for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Caller").field("stream", &self.stream).field("unread", &self.unread).finish_non_exhaustive()
    }
}

/// An answer.
#[derive(Debug, Clone)]
pub struct Response {
    /// Its status.
    pub status: u16,
    /// Its headers in their order, with names in lower case.
    pub headers: Vec<(String, String)>,
    /// Its body. Empty while only the head was received.
    pub body: Vec<u8>,
}

/// The bytes of a request with a body of known length.
pub fn request(method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let head = head(method, path, headers, &format!("Content-Length: {}", body.len()));
    [head.as_bytes(), body].concat()
}

fn head(method: &str, path: &str, headers: &[(&str, &str)], framing: &str) -> String {
    let mut head = format!("{method} {path} HTTP/1.1\r\n");
    for (name, value) in headers {
        let _ = write!(head, "{name}: {value}\r\n");
    }
    head + framing + "\r\n\r\n"
}

/// The headers of a request that asks for nothing special.
const PLAIN_HEADERS: &[(&str, &str)] = &[("Host", "test")];

impl Caller {
    /// Connects to a port of this machine, once.
    ///
    /// # Errors
    /// If the connection is refused.
    pub fn connect(port: u16) -> io::Result<Self> {
        Self::over(TcpStream::connect((Ipv4Addr::LOCALHOST, port))?)
    }

    /// Connects with the smallest receive buffer that the kernel grants: what this caller does not read stays with
    /// the proxy.
    ///
    /// # Errors
    /// If the connection is refused.
    #[cfg(feature = "narrow")]
    pub fn connect_narrow(port: u16) -> io::Result<Self> {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
        // Both sides agree on sizes when they connect. The sender's kernel buffers by the length of a segment, which
        // is 64 KiB on this interface unless the receiver asks for less.
        socket.set_recv_buffer_size(4096)?;
        socket.set_tcp_mss(536)?;
        // The kernel remembers facts about an address (`tcp_metrics`), such as much reordering, and sizes the buffers
        // of later connections by them. At this caller's speed that would be minutes of data.
        socket.bind(&std::net::SocketAddr::from((unused_loopback_address(), 0)).into())?;
        socket.connect(&std::net::SocketAddr::from((Ipv4Addr::LOCALHOST, port)).into())?;
        Self::over(socket.into())
    }

    /// A caller on a connection that exists.
    ///
    /// # Errors
    /// If the options of the socket cannot be set.
    pub fn over(stream: TcpStream) -> io::Result<Self> {
        Self::with_buffer(stream, READ_AHEAD, READ_AHEAD)
    }

    /// A caller for measuring: its buffer has this size at once, and a read takes all that fits into the buffer.
    ///
    /// # Errors
    /// If the options of the socket cannot be set.
    pub fn over_with_large_reads(stream: TcpStream, buffer_bytes: usize) -> io::Result<Self> {
        Self::with_buffer(stream, buffer_bytes, usize::MAX)
    }

    fn with_buffer(stream: TcpStream, buffer_bytes: usize, read_ahead: usize) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        let mut caller = Self {
            stream,
            timeout: None,
            deadline: None,
            read_ahead,
            buffer: vec![0; buffer_bytes],
            unread: 0..0,
            body: 0..0,
            read_at: Instant::now(),
        };
        caller.set_timeout(Some(WAIT_LIMIT))?;
        Ok(caller)
    }

    /// Limits each later read and write. `None` leaves them without a limit, and the kernel without a timer.
    ///
    /// # Errors
    /// If the limit is zero.
    pub fn set_timeout(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        self.stream.set_read_timeout(timeout)?;
        self.stream.set_write_timeout(timeout)?;
        self.timeout = timeout;
        Ok(())
    }

    /// Limits all later reads and writes together: each of them ends at this moment at the latest.
    pub fn set_deadline(&mut self, deadline: Instant) {
        self.deadline = Some(deadline);
    }

    /// The connection, for a thread that may have to end it.
    ///
    /// # Errors
    /// If there is no descriptor left.
    pub fn stream(&self) -> io::Result<TcpStream> {
        self.stream.try_clone()
    }

    /// Sends bytes as they are, such as half a request.
    ///
    /// # Errors
    /// If the connection is closed, or the limit passes.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.limit_by_deadline()?;
        self.stream.write_all(bytes)
    }

    /// Sends a request whose body goes in these chunks.
    ///
    /// # Errors
    /// If the connection is closed, or the limit passes.
    pub fn send_in_chunks<'a>(
        &mut self,
        path: &str,
        headers: &[(&str, &str)],
        chunks: impl IntoIterator<Item = &'a [u8]>,
    ) -> io::Result<()> {
        self.send(head("POST", path, headers, "Transfer-Encoding: chunked").as_bytes())?;
        for chunk in chunks {
            let mut framed = format!("{:x}\r\n", chunk.len()).into_bytes();
            framed.extend_from_slice(chunk);
            framed.extend_from_slice(b"\r\n");
            self.send(&framed)?;
        }
        self.send(b"0\r\n\r\n")
    }

    /// Sends nothing more, and still receives.
    ///
    /// # Errors
    /// If the connection is closed.
    pub fn finish_sending(&mut self) -> io::Result<()> {
        self.stream.shutdown(Shutdown::Write)
    }

    /// Receives one answer, which must have a `Content-Length` as the platform requires it.
    ///
    /// # Errors
    /// If the connection is closed, the limit passes, or the answer is malformed.
    pub fn receive(&mut self) -> io::Result<Response> {
        let head = self.receive_head()?;
        self.receive_body(head)
    }

    /// Receives the head of an answer. The body is left for [`Caller::receive_body`] or [`Caller::receive_chunk`].
    ///
    /// # Errors
    /// If the connection is closed, the limit passes, or the head is malformed.
    pub fn receive_head(&mut self) -> io::Result<Response> {
        let head = self.head_bytes()?;
        let head = String::from_utf8_lossy(&self.buffer[head]).into_owned();
        let status = status(&head)?;
        let mut headers = Vec::new();
        for line in head.lines().skip(1).filter(|line| !line.is_empty()) {
            let (name, value) = header(line)?;
            headers.push((name.to_ascii_lowercase(), value.to_owned()));
        }
        Ok(Response { status, headers, body: Vec::new() })
    }

    /// Receives the body behind a head.
    ///
    /// # Errors
    /// If the connection is closed, the limit passes, or the head has no `Content-Length`.
    pub fn receive_body(&mut self, mut response: Response) -> io::Result<Response> {
        let length = response.header("content-length").and_then(|length| length.parse().ok());
        let length = length.ok_or_else(|| malformed(format!("an answer without Content-Length: {response:?}")))?;
        let body = self.take(length)?;
        response.body = self.buffer[body].to_vec();
        Ok(response)
    }

    /// Receives one answer with a `Content-Length` and leaves its body in the buffer for [`Caller::body`]: nothing is
    /// allocated or copied. Returns the status.
    ///
    /// # Errors
    /// If the connection is closed, the limit passes, or the answer is malformed.
    pub fn receive_in_place(&mut self) -> io::Result<u16> {
        let head = self.head_bytes()?;
        let head = String::from_utf8_lossy(&self.buffer[head]);
        let status = status(&head)?;
        let length = head.lines().skip(1).find_map(|line| {
            let (name, value) = header(line).ok()?;
            name.eq_ignore_ascii_case("content-length").then(|| value.parse().ok())?
        });
        let length = length.ok_or_else(|| malformed(format!("an answer without Content-Length: {head:?}")))?;
        self.body = self.take(length)?;
        Ok(status)
    }

    /// The body of the answer that was received in place last, until something else is received.
    pub fn body(&self) -> &[u8] {
        &self.buffer[self.body.clone()]
    }

    /// Receives a chunk of a body. `None` is the last one.
    ///
    /// # Errors
    /// If the connection is closed, the limit passes, or the chunk is malformed.
    pub fn receive_chunk(&mut self) -> io::Result<Option<Vec<u8>>> {
        let line = self.take_line()?;
        let size = line.split(';').next().unwrap_or_default().trim();
        let size = usize::from_str_radix(size, 16).map_err(|_| malformed(format!("a chunk without size: {line:?}")))?;
        let chunk = self.take(size)?;
        let chunk = self.buffer[chunk].to_vec();
        let end = self.take_line()?;
        if !end.is_empty() {
            return Err(malformed(format!("a chunk longer than its size: {end:?}")));
        }
        Ok((size > 0).then_some(chunk))
    }

    /// Bytes that came and were not received as part of an answer.
    pub fn unread(&self) -> &[u8] {
        &self.buffer[self.unread.clone()]
    }

    /// Drops the bytes that came and were not received.
    pub fn drop_unread(&mut self) {
        self.unread.start = self.unread.end;
    }

    /// When the last bytes came.
    pub fn read_at(&self) -> Instant {
        self.read_at
    }

    /// Whether the proxy closes the connection within this time.
    ///
    /// # Panics
    /// If the proxy sends something.
    #[track_caller]
    pub fn is_closed_within(&mut self, limit: Duration) -> bool {
        match self.read_within(limit) {
            Ok(true) => panic!("the proxy sent bytes: {}", String::from_utf8_lossy(self.unread())),
            Ok(false) => true,
            Err(error) => !is_timeout(&error),
        }
    }

    /// Whether nothing comes within this time. What comes is left to be received.
    pub fn is_silent_for(&mut self, limit: Duration) -> bool {
        self.read_within(limit).is_err()
    }

    /// Reads once with this limit, unless something is unread already. Returns `false` at the end of the connection.
    fn read_within(&mut self, limit: Duration) -> io::Result<bool> {
        if self.unread.is_empty() {
            self.stream.set_read_timeout(Some(limit))?;
            let read = self.try_read(0);
            self.stream.set_read_timeout(self.timeout)?;
            return read.map(|count| count > 0);
        }
        Ok(true)
    }

    /// Reads some bytes more, to be found in [`Caller::unread`].
    ///
    /// # Errors
    /// If the connection is closed, or the limit passes.
    pub fn read_more(&mut self) -> io::Result<()> {
        self.read(0)
    }

    /// Takes the head of an answer from the buffer, up to its empty line. Returns its place.
    fn head_bytes(&mut self) -> io::Result<Range<usize>> {
        loop {
            if let Some(length) = head_length(self.unread()) {
                return self.take(length);
            }
            if self.unread.len() >= MAX_HEAD_BYTES {
                return Err(malformed(format!("the head of an answer is longer than {MAX_HEAD_BYTES} bytes")));
            }
            self.read(0)?;
        }
    }

    /// Takes a line. It is returned without its end.
    fn take_line(&mut self) -> io::Result<String> {
        loop {
            if let Some(at) = self.unread().iter().position(|byte| *byte == b'\n') {
                let line = self.take(at + 1)?;
                let line = String::from_utf8_lossy(&self.buffer[line]);
                return Ok(line.trim_end_matches(['\r', '\n']).to_owned());
            }
            if self.unread.len() >= MAX_LINE_BYTES {
                return Err(malformed(format!("a line between chunks is longer than {MAX_LINE_BYTES} bytes")));
            }
            self.read(0)?;
        }
    }

    /// Takes this many bytes and returns their place in the buffer, which is theirs until the next read.
    fn take(&mut self, length: usize) -> io::Result<Range<usize>> {
        if length > MAX_BODY_BYTES {
            return Err(malformed(format!("at most {MAX_BODY_BYTES} bytes at once, got {length}")));
        }
        while self.unread.len() < length {
            self.read(length - self.unread.len())?;
        }
        let start = self.unread.start;
        self.unread.start = start + length;
        Ok(start..start + length)
    }

    fn read(&mut self, missing: usize) -> io::Result<()> {
        match self.try_read(missing)? {
            0 => Err(ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }

    /// Reads once. `missing` is how many bytes are waited for, where that is known.
    fn try_read(&mut self, missing: usize) -> io::Result<usize> {
        self.limit_by_deadline()?;
        self.make_room(missing.max(1));
        let room = self.buffer.len() - self.unread.end;
        let end = self.unread.end + room.min(missing.max(self.read_ahead));
        loop {
            match self.stream.read(&mut self.buffer[self.unread.end..end]) {
                Ok(count) => {
                    self.read_at = Instant::now();
                    self.unread.end += count;
                    return Ok(count);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Makes room for this many bytes behind those that are unread.
    fn make_room(&mut self, bytes: usize) {
        if self.unread.is_empty() {
            self.unread = 0..0;
        }
        if self.unread.end + bytes > self.buffer.len() {
            self.buffer.copy_within(self.unread.clone(), 0);
            self.unread = 0..self.unread.len();
        }
        if self.unread.end + bytes > self.buffer.len() {
            let double = self.buffer.len() * 2;
            self.buffer.resize((self.unread.end + bytes).max(if bytes == 1 { double } else { 0 }), 0);
        }
    }

    /// Sets the kernel's timeouts to the time left until the deadline. Without a deadline this costs nothing.
    fn limit_by_deadline(&mut self) -> io::Result<()> {
        let Some(deadline) = self.deadline else { return Ok(()) };
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        self.set_timeout(Some(left))
    }
}

/// Calls that must work. They panic where they do not, as a test wants it.
impl Caller {
    /// Sends a request and receives the answer.
    ///
    /// # Panics
    /// If there is no answer.
    #[track_caller]
    pub fn call(&mut self, method: &str, path: &str, body: &[u8]) -> Response {
        self.send_request(method, path, body);
        self.receive().unwrap_or_else(|error| panic!("no answer to {method} {path}: {error}"))
    }

    /// Sends a request whose answer is received later.
    ///
    /// # Panics
    /// If it cannot be sent.
    #[track_caller]
    pub fn send_request(&mut self, method: &str, path: &str, body: &[u8]) {
        let sent = self.send(&request(method, path, PLAIN_HEADERS, body));
        sent.unwrap_or_else(|error| panic!("cannot send {method} {path}: {error}"));
    }

    /// Sends an activation with these arguments and this `Accept`. The answer is received later.
    ///
    /// # Panics
    /// If it cannot be sent.
    #[track_caller]
    pub fn send_run(&mut self, accept: &str, value: &Value) {
        let body = json!({ "value": value, "activation_id": "test" }).to_string();
        let headers = [PLAIN_HEADERS, &[("Accept", accept)]].concat();
        self.send(&request("POST", "/run", &headers, body.as_bytes())).expect("the request is sent");
    }

    /// Sends a request whose body goes in these chunks, and receives the answer.
    ///
    /// # Panics
    /// If there is no answer.
    #[track_caller]
    pub fn call_in_chunks(&mut self, path: &str, chunks: &[&[u8]]) -> Response {
        self.send_in_chunks(path, PLAIN_HEADERS, chunks.iter().copied()).expect("the chunks are sent");
        self.receive().expect("an answer to a chunked body")
    }

    /// Receives chunks until they hold this many bytes, or the body ends.
    ///
    /// # Panics
    /// If the body breaks off.
    #[track_caller]
    pub fn receive_chunks(&mut self, bytes: usize) -> String {
        let mut text = Vec::new();
        while text.len() < bytes {
            match self.receive_chunk().expect("the body goes on") {
                Some(chunk) => text.extend(chunk),
                None => break,
            }
        }
        String::from_utf8(text).expect("the body is text")
    }
}

impl Response {
    /// The value of a header, by its name in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str())
    }

    /// Whether its body comes in chunks.
    pub fn is_chunked(&self) -> bool {
        self.header("transfer-encoding").is_some_and(|value| value.contains("chunked"))
    }

    /// Its body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Its body as JSON.
    ///
    /// # Panics
    /// If it is not JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("no JSON ({error}): {}", self.text()))
    }

    /// The sentence of an error.
    ///
    /// # Panics
    /// If the answer is no error.
    #[track_caller]
    pub fn error(&self) -> String {
        assert_ne!(self.status, 200, "expected an error, got {}", self.text());
        self.json()["error"].as_str().expect("an error is a string").to_owned()
    }

    /// Asserts what holds for every answer of a proxy: a length, a type, and for an error one member and no more.
    ///
    /// # Panics
    /// If it does not hold.
    #[track_caller]
    pub fn check_shape(&self) {
        assert_eq!(self.header("content-length"), Some(&*self.body.len().to_string()), "{self:?}");
        assert_eq!(self.header("content-type"), Some("application/json"), "{self:?}");
        assert_eq!(self.header("transfer-encoding"), None, "{self:?}");
        assert_ne!(self.status, 204, "{self:?}");
        let json = self.json();
        if self.status != 200 {
            let object = json.as_object().unwrap_or_else(|| panic!("an error is an object: {json}"));
            assert!(object.len() == 1 && object["error"].is_string(), "an error is one string `error`: {json}");
        }
    }

    /// Asserts the status and the whole body as JSON.
    ///
    /// # Panics
    /// If they differ.
    #[track_caller]
    pub fn check(&self, status: u16, body: &Value) {
        assert_eq!((self.status, &self.json()), (status, body));
    }

    /// Asserts an error's status, and that its sentence holds each of these texts.
    ///
    /// # Panics
    /// If the status differs or a text is missing.
    #[track_caller]
    pub fn check_error(&self, status: u16, texts: &[&str]) {
        let error = self.json()["error"].as_str().map(str::to_owned);
        let error = error.unwrap_or_else(|| panic!("expected an error with status {status}, got {}", self.text()));
        assert_eq!(self.status, status, "{error}");
        for text in texts {
            assert!(error.contains(text), "{text:?} is missing in: {error}");
        }
    }
}

/// Whether an operation ended because its limit passed.
pub fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

/// How many bytes the head of an answer has, with its empty line, if all of it is here.
fn head_length(bytes: &[u8]) -> Option<usize> {
    let mut line_start = 0;
    for (at, byte) in bytes.iter().enumerate() {
        if *byte == b'\n' {
            if matches!(&bytes[line_start..at], b"" | b"\r") {
                return Some(at + 1);
            }
            line_start = at + 1;
        }
    }
    None
}

fn status(head: &str) -> io::Result<u16> {
    let line = head.lines().next().unwrap_or_default();
    let status = line.split(' ').nth(1).and_then(|status| status.parse().ok());
    status.ok_or_else(|| malformed(format!("no status line: {line:?}")))
}

fn header(line: &str) -> io::Result<(&str, &str)> {
    let (name, value) = line.split_once(':').ok_or_else(|| malformed(format!("a header without colon: {line:?}")))?;
    Ok((name, value.trim()))
}

fn malformed(what: String) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, what)
}

/// A loopback address that no other connection of this machine has used: another one at each call.
#[cfg(feature = "narrow")]
fn unused_loopback_address() -> Ipv4Addr {
    use std::sync::atomic::{AtomicU8, Ordering};
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let [.., high, low] = std::process::id().to_be_bytes();
    Ipv4Addr::new(127, high.max(1), low, NEXT.fetch_add(1, Ordering::Relaxed))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    /// A caller to which these bytes are sent, this many at a time. It reads as many at a time, but at least eight.
    fn caller(bytes: Vec<u8>, at_once: usize) -> Caller {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let address = listener.local_addr().expect("it has one");
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("the caller connects");
            stream.set_nodelay(true).expect("an option of TCP");
            for part in bytes.chunks(at_once) {
                // The caller may have gone with what it wanted.
                let _ = stream.write_all(part);
            }
        });
        let stream = TcpStream::connect(address).expect("it listens");
        Caller::with_buffer(stream, at_once.max(8), at_once.max(8)).expect("options of TCP")
    }

    #[test]
    fn answers_are_received_however_they_are_cut() {
        let whole = b"HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\nhello world";
        let chunked =
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6;x=y\r\n world\r\n0\r\n\r\n";
        for at_once in [1, 7, 1000] {
            let mut caller = caller([&whole[..], chunked, whole].concat(), at_once);
            assert_eq!(caller.receive().expect("an answer").text(), "hello world");
            let head = caller.receive_head().expect("a head");
            assert!(head.is_chunked());
            assert_eq!(caller.receive_chunks(usize::MAX), "hello world");
            assert_eq!(caller.receive_in_place().expect("an answer"), 200);
            assert_eq!(caller.body(), b"hello world");
            assert!(caller.is_closed_within(WAIT_LIMIT));
        }
    }

    #[test]
    fn malformed_answers_are_refused() {
        let long = format!("HTTP/1.1 200 {}", "x".repeat(2 * MAX_HEAD_BYTES));
        for text in ["HTTP/1.1\r\n\r\n", "HTTP/1.1 200 OK\r\nlength\r\n\r\n", "HTTP/1.1 200 OK\r\n\r\n", &long] {
            let error = caller(text.into(), 1000).receive().expect_err(text);
            assert_eq!(error.kind(), ErrorKind::InvalidData, "{text}: {error}");
        }
        let error = caller("5\r\nhello world\r\n".into(), 1000).receive_chunk().expect_err("more than five bytes");
        assert_eq!(error.kind(), ErrorKind::InvalidData, "{error}");
    }

    #[test]
    fn no_read_goes_on_after_the_deadline() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let port = listener.local_addr().expect("it has one").port();
        let mut caller = Caller::connect(port).expect("it listens");
        caller.set_deadline(Instant::now() + Duration::from_millis(20));
        for _ in 0..2 {
            assert!(is_timeout(&caller.receive().expect_err("nothing is sent")));
        }
    }
}
