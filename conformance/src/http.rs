//! A caller: HTTP/1.1 on one kept connection, with a moment at which it gives up.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// A kept connection, made when it is needed.
pub(super) struct Caller {
    address: SocketAddr,
    host: String,
    deadline: Instant,
    stream: Option<BufReader<TcpStream>>,
}

/// What came back.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
}

impl Answer {
    /// The value of a header, by its name in lower case.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str())
    }

    /// Whether its body comes in chunks.
    pub(super) fn is_chunked(&self) -> bool {
        self.header("transfer-encoding").is_some_and(|value| value.contains("chunked"))
    }
}

impl Caller {
    pub(super) fn new(address: SocketAddr, host: &str, deadline: Instant) -> Self {
        Self { address, host: host.to_owned(), deadline, stream: None }
    }

    /// One request, in chunks if asked for.
    pub(super) fn send(&mut self, method: &str, path: &str, body: &[u8], chunks: Option<usize>) -> io::Result<()> {
        self.send_with("", method, path, body, chunks)
    }

    /// A request for an activation, with this `Accept`.
    pub(super) fn send_run(&mut self, accept: Option<&str>, body: &[u8], chunks: Option<usize>) -> io::Result<()> {
        let accept = accept.map(|accept| format!("Accept: {accept}\r\n")).unwrap_or_default();
        self.send_with(&accept, "POST", "/run", body, chunks)
    }

    fn send_with(
        &mut self,
        headers: &str,
        method: &str,
        path: &str,
        body: &[u8],
        chunks: Option<usize>,
    ) -> io::Result<()> {
        let head =
            format!("{method} {path} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\n{headers}", self.host);
        let mut request = head.into_bytes();
        match chunks {
            None => {
                request.extend_from_slice(format!("Content-Length: {}\r\n\r\n", body.len()).as_bytes());
                request.extend_from_slice(body);
                self.write(&request)
            }
            Some(count) => {
                request.extend_from_slice(b"Transfer-Encoding: chunked\r\n\r\n");
                self.write(&request)?;
                for chunk in body.chunks(body.len().div_ceil(count.max(1)).max(1)) {
                    self.write(format!("{:x}\r\n", chunk.len()).as_bytes())?;
                    self.write(chunk)?;
                    self.write(b"\r\n")?;
                }
                self.write(b"0\r\n\r\n")
            }
        }
    }

    /// Leaves without having read the answer.
    pub(super) fn leave(&mut self) {
        self.stream = None;
    }

    /// Reads one answer.
    pub(super) fn receive(&mut self) -> io::Result<Answer> {
        let answer = self.read_answer();
        let closes = |answer: &Answer| answer.header("connection").is_some_and(|value| value.contains("close"));
        if answer.as_ref().map_or(true, closes) {
            self.stream = None;
        }
        answer
    }

    fn read_answer(&mut self) -> io::Result<Answer> {
        let mut answer = self.receive_head()?;
        if answer.is_chunked() {
            while self.receive_chunk(&mut answer.body)? {}
        } else {
            let length = answer.header("content-length").and_then(|length| length.parse().ok());
            let length = length.ok_or_else(|| no("an answer without Content-Length"))?;
            self.read(length, &mut answer.body)?;
        }
        Ok(answer)
    }

    /// Reads an answer without its body.
    pub(super) fn receive_head(&mut self) -> io::Result<Answer> {
        let line = self.line()?;
        let status = line.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or_else(|| no("no status line"))?;
        let mut headers = Vec::new();
        loop {
            let line = self.line()?;
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(':').ok_or_else(|| no("a header without colon"))?;
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        Ok(Answer { status, headers, body: Vec::new() })
    }

    /// Reads the next chunk of a body that comes in chunks. Whether there was one.
    pub(super) fn receive_chunk(&mut self, body: &mut Vec<u8>) -> io::Result<bool> {
        let size = usize::from_str_radix(self.line()?.split(';').next().unwrap_or_default().trim(), 16);
        let size = size.map_err(|_| no("a chunk without size"))?;
        self.read(size, body)?;
        self.line()?;
        Ok(size > 0)
    }

    fn read(&mut self, length: usize, body: &mut Vec<u8>) -> io::Result<()> {
        let from = body.len();
        body.resize(from + length, 0);
        let mut filled = from;
        while filled < body.len() {
            let stream = self.patient()?;
            match stream.read(&mut body[filled..])? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => filled += count,
            }
        }
        Ok(())
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        if self.patient()?.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(line.trim_end_matches(['\r', '\n']).to_owned())
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.patient()?.get_mut().write_all(bytes)
    }

    /// The connection, which waits no longer than until the deadline.
    fn patient(&mut self) -> io::Result<&mut BufReader<TcpStream>> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        if self.stream.is_none() {
            let stream = TcpStream::connect_timeout(&self.address, left.min(Duration::from_secs(5)))?;
            stream.set_nodelay(true)?;
            self.stream = Some(BufReader::new(stream));
        }
        let stream = self.stream.as_mut().expect("it is there by now");
        stream.get_ref().set_read_timeout(Some(left))?;
        stream.get_ref().set_write_timeout(Some(left))?;
        Ok(stream)
    }
}

fn no(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}
