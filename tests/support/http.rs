//! A small blocking HTTP/1.1 client that can also behave badly.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::Value;

use super::PATIENCE;

/// A kept connection.
#[derive(Debug)]
pub(crate) struct Caller {
    stream: BufReader<TcpStream>,
}

/// What came back.
#[derive(Debug, Clone)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

/// A loopback address of this process's own, another one each time.
fn unused_loopback_address() -> std::net::Ipv4Addr {
    static NEXT: std::sync::atomic::AtomicU8 = std::sync::atomic::AtomicU8::new(1);
    let [.., high, low] = std::process::id().to_be_bytes();
    std::net::Ipv4Addr::new(127, high.max(1), low, NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed))
}

impl Caller {
    pub(crate) fn connect(port: u16) -> io::Result<Self> {
        Self::over(TcpStream::connect(("127.0.0.1", port))?)
    }

    /// A caller whose kernel holds next to nothing for it: what it does not read stays with the proxy.
    #[allow(dead_code, reason = "the other users of this file are in e2e")]
    pub(crate) fn connect_narrow(port: u16) -> io::Result<Self> {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
        // Before it is connected, since both sides agree then. What the other side's kernel holds goes by the
        // length of segments, which is 64 KiB here unless somebody asks for less.
        socket.set_recv_buffer_size(4096)?;
        socket.set_tcp_mss(536)?;
        // From an address that nobody has used: what the kernel has learnt of one (`tcp_metrics`) by other
        // connections, such as much reordering, sizes what it holds for the next, up to minutes at this pace.
        socket.bind(&std::net::SocketAddr::from((unused_loopback_address(), 0)).into())?;
        socket.connect(&std::net::SocketAddr::from(([127, 0, 0, 1], port)).into())?;
        Self::over(socket.into())
    }

    /// A caller on a connection that was made elsewhere.
    pub(crate) fn over(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// One request and its answer.
    pub(crate) fn call(&mut self, method: &str, path: &str, body: &[u8]) -> Response {
        self.send_request(method, path, body);
        self.receive().unwrap_or_else(|error| panic!("no answer to {method} {path}: {error}"))
    }

    /// One request, whose answer is left for later.
    pub(crate) fn send_request(&mut self, method: &str, path: &str, body: &[u8]) {
        let mut request = format!("{method} {path} HTTP/1.1\r\nHost: test\r\nContent-Length: {}\r\n\r\n", body.len());
        request.push_str(std::str::from_utf8(body).unwrap_or_default());
        let mut bytes = request.into_bytes();
        if std::str::from_utf8(body).is_err() {
            bytes.extend_from_slice(body);
        }
        self.send(&bytes).unwrap_or_else(|error| panic!("cannot send {method} {path}: {error}"));
    }

    /// POST /run of these arguments by somebody who wants an answer of this kind; it is left for later.
    #[allow(dead_code, reason = "the other users of this file are in e2e")]
    pub(crate) fn send_run(&mut self, accept: &str, value: &Value) {
        let body = serde_json::json!({ "value": value, "activation_id": "test" }).to_string();
        let head =
            format!("POST /run HTTP/1.1\r\nHost: test\r\nAccept: {accept}\r\nContent-Length: {}\r\n\r\n", body.len());
        self.send((head + &body).as_bytes()).expect("the request is sent");
    }

    /// Reads one piece of a body that comes in chunks; nothing at its end.
    #[allow(dead_code, reason = "the other users of this file are in e2e")]
    pub(crate) fn receive_piece(&mut self) -> io::Result<Option<Vec<u8>>> {
        let line = self.line()?;
        let length = usize::from_str_radix(&line, 16).map_err(|_| io::Error::other(format!("no chunk: {line:?}")))?;
        let mut piece = vec![0; length];
        self.stream.read_exact(&mut piece)?;
        let end = self.line()?;
        assert!(end.is_empty(), "behind a chunk: {end:?}");
        Ok((length > 0).then_some(piece))
    }

    /// Reads the head of an answer whose body comes in chunks, and its pieces until so many bytes have come.
    #[allow(dead_code, reason = "the other users of this file are in e2e")]
    pub(crate) fn receive_pieces(&mut self, bytes: usize) -> String {
        let mut text = Vec::new();
        while text.len() < bytes {
            match self.receive_piece().expect("the body goes on") {
                Some(piece) => text.extend(piece),
                None => break,
            }
        }
        String::from_utf8(text).expect("it is text")
    }

    /// Sends a body in chunks of its own.
    pub(crate) fn call_in_chunks(&mut self, path: &str, chunks: &[&[u8]]) -> Response {
        let head = format!("POST {path} HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n");
        self.send(head.as_bytes()).expect("the head is sent");
        for chunk in chunks {
            let mut framed = format!("{:x}\r\n", chunk.len()).into_bytes();
            framed.extend_from_slice(chunk);
            framed.extend_from_slice(b"\r\n");
            self.send(&framed).expect("a chunk is sent");
        }
        self.send(b"0\r\n\r\n").expect("the last chunk is sent");
        self.receive().expect("an answer to a chunked body")
    }

    /// Sends bytes as they are: half a request, for one.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.get_mut().write_all(bytes)
    }

    /// Says that nothing more is sent, and goes on reading.
    pub(crate) fn end_of_request(&mut self) {
        self.stream.get_ref().shutdown(std::net::Shutdown::Write).expect("the connection is open");
    }

    /// Reads one answer.
    pub(crate) fn receive(&mut self) -> io::Result<Response> {
        let head = self.receive_head()?;
        self.receive_body(head)
    }

    /// Reads the body behind the head of an answer.
    pub(crate) fn receive_body(&mut self, mut response: Response) -> io::Result<Response> {
        let length = response
            .header("content-length")
            .and_then(|length| length.parse().ok())
            .ok_or_else(|| io::Error::other(format!("an answer without Content-Length: {response:?}")))?;
        response.body = vec![0; length];
        self.stream.read_exact(&mut response.body)?;
        Ok(response)
    }

    /// Reads the head of an answer, whose body is left for later.
    pub(crate) fn receive_head(&mut self) -> io::Result<Response> {
        let line = self.line()?;
        let status = line.split(' ').nth(1).and_then(|code| code.parse().ok());
        let status = status.ok_or_else(|| io::Error::other(format!("no status line: {line:?}")))?;
        let mut headers = Vec::new();
        loop {
            let line = self.line()?;
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(':').ok_or_else(|| io::Error::other(format!("no header: {line:?}")))?;
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        Ok(Response { status, headers, body: Vec::new() })
    }

    /// Whether the other side closes the connection within this time, without sending anything.
    pub(crate) fn is_closed_within(&mut self, limit: Duration) -> bool {
        self.stream.get_ref().set_read_timeout(Some(limit)).expect("a limit that is not zero");
        let closed = match self.stream.fill_buf() {
            Ok(bytes) => {
                assert!(bytes.is_empty(), "unasked for: {}", String::from_utf8_lossy(bytes));
                true
            }
            Err(error) => !matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut),
        };
        self.stream.get_ref().set_read_timeout(Some(PATIENCE)).expect("a limit that is not zero");
        closed
    }

    /// Reads the head of an interim answer and tells its status.
    pub(crate) fn receive_interim(&mut self) -> io::Result<u16> {
        let line = self.line()?;
        while !self.line()?.is_empty() {}
        line.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or_else(|| io::Error::other(line))
    }

    /// From now on an answer may take so long.
    #[allow(dead_code, reason = "the other users of this file are in e2e")]
    pub(crate) fn be_patient(&mut self, limit: Duration) {
        self.stream.get_ref().set_read_timeout(Some(limit)).expect("a limit that is not zero");
    }

    /// Whether nothing comes within this time. What comes is left to be received.
    pub(crate) fn is_silent_for(&mut self, limit: Duration) -> bool {
        self.stream.get_ref().set_read_timeout(Some(limit)).expect("a limit that is not zero");
        let silent = self.stream.fill_buf().is_err();
        self.stream.get_ref().set_read_timeout(Some(PATIENCE)).expect("a limit that is not zero");
        silent
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(line.trim_end_matches(['\r', '\n']).to_owned())
    }
}

impl Response {
    /// The value of a header, by its name in lower case.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("no JSON ({error}): {}", self.text()))
    }

    /// The sentence of an error.
    #[track_caller]
    pub(crate) fn error(&self) -> String {
        assert_ne!(self.status, 200, "expected an error, got {}", self.text());
        self.json()["error"].as_str().expect("an error is a string").to_owned()
    }

    /// What is true of every answer, whatever was asked: a length, a type, and for errors one
    /// member and no more.
    #[track_caller]
    pub(crate) fn check_shape(&self) {
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
    #[track_caller]
    pub(crate) fn check(&self, status: u16, body: &Value) {
        assert_eq!((self.status, &self.json()), (status, body));
    }

    /// Asserts an error's status, and that its sentence holds each of these texts.
    #[track_caller]
    pub(crate) fn check_error(&self, status: u16, texts: &[&str]) {
        let error = self.json()["error"].as_str().map(str::to_owned);
        let error = error.unwrap_or_else(|| panic!("expected an error with status {status}, got {}", self.text()));
        assert_eq!(self.status, status, "{error}");
        for text in texts {
            assert!(error.contains(text), "{text:?} is missing in: {error}");
        }
    }
}
