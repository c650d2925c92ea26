//! The script that the protocol began with, to the letter, with no setting at all.
//!
//! Source: the mail to the openwhisk-dev list of 10 March 2018 that proposed the protocol.

use std::fs;
use std::io::ErrorKind;
use std::net::Shutdown;
use std::os::unix::net::UnixDatagram;
use std::thread::JoinHandle;

use serde_json::json;

use crate::support::{Proxy, root};

const SCRIPT: &str = r#"#!/bin/bash
echo '{"openwhisk":1}'
while read line
do
   name="$(echo $line | jq -r .name)"
   logger -s "name=$name"
   hello="Hello, $name"
   logger -s "sent response"
   echo '{"hello":"'$hello'"}'
done
"#;

#[test]
fn the_example_is_the_script_from_the_mail() {
    let example = fs::read_to_string(root().join("examples/bash/hello.sh")).expect("the example is there");
    assert_eq!(example, SCRIPT);
}

#[test]
fn the_script_from_the_mail_is_served_unchanged() {
    let system_log = SystemLog::open();
    let mut proxy = Proxy::plain();
    proxy.init(SCRIPT).check(200, &json!({"ok": true}));
    proxy.run(&json!({"name": "Mike"})).check(200, &json!({"hello": "Hello, Mike"}));
    let logs = proxy.check_streams(1);
    assert_eq!(logs.stdout, "", "results are no log");
    let lines: Vec<_> = logs.stderr.lines().collect();
    assert_eq!(lines.len(), 2, "a line for each `logger -s`: {lines:?}");
    if let SystemLog::None = system_log {
        // All that util-linux's `logger -s` says where there is no system log.
        assert_eq!(lines, ["logger: socket /dev/log: No such file or directory"; 2]);
    } else {
        assert!(lines[0].ends_with(" name=Mike"), "{lines:?}");
        assert!(lines[1].ends_with(" sent response"), "{lines:?}");
    }
    proxy.stop();
}

const SOCKET: &str = "/dev/log";

/// What `logger` finds at `/dev/log`, without which it does not say its message on stderr either.
enum SystemLog {
    /// The machine's own.
    Running,
    /// One for the time of the test, which only a superuser can have.
    Ours { socket: UnixDatagram, reader: Option<JoinHandle<()>> },
    /// None, and none can be had.
    None,
}

impl SystemLog {
    fn open() -> Self {
        let connected = UnixDatagram::unbound().expect("a socket").connect(SOCKET);
        match connected.map_err(|error| error.kind()) {
            Ok(()) => return Self::Running,
            // Left behind by a test that was killed.
            Err(ErrorKind::ConnectionRefused) => fs::remove_file(SOCKET).expect("a dead /dev/log can be removed"),
            Err(ErrorKind::NotFound) => {}
            Err(error) => panic!("{SOCKET} is there and does not work: {error}"),
        }
        let socket = match UnixDatagram::bind(SOCKET) {
            Ok(socket) => socket,
            Err(error) if matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem) => {
                return Self::None;
            }
            Err(error) => panic!("{SOCKET} cannot be made: {error}"),
        };
        // Read, since writers wait once a few messages have come together.
        let end = socket.try_clone().expect("a socket can be cloned");
        let reader = std::thread::spawn(move || {
            let mut message = [0; 4096];
            while end.recv(&mut message).is_ok_and(|length| length > 0) {}
        });
        Self::Ours { socket, reader: Some(reader) }
    }
}

impl Drop for SystemLog {
    fn drop(&mut self) {
        if let Self::Ours { socket, reader } = self {
            let _ = fs::remove_file(SOCKET);
            let _ = socket.shutdown(Shutdown::Both);
            let _ = reader.take().map(JoinHandle::join);
        }
    }
}
