//! The script that the protocol began with, unchanged and without any setting.
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
    let example = fs::read_to_string(root().join("examples/bash/hello.sh")).expect("the example exists");
    assert_eq!(example, SCRIPT);
}

#[test]
fn the_script_from_the_mail_is_served_unchanged() {
    let system_log = SystemLog::open();
    let mut proxy = Proxy::plain();
    proxy.init(SCRIPT).check(200, &json!({"ok": true}));
    proxy.run(&json!({"name": "Mike"})).check(200, &json!({"hello": "Hello, Mike"}));
    let logs = proxy.check_streams(1);
    assert_eq!(logs.stdout, "", "results are not logged");
    let lines: Vec<_> = logs.stderr.lines().collect();
    assert_eq!(lines.len(), 2, "one line for each `logger -s`: {lines:?}");
    if let SystemLog::None = system_log {
        // The only output of util-linux's `logger -s` on a system without a system log.
        assert_eq!(lines, ["logger: socket /dev/log: No such file or directory"; 2]);
    } else {
        assert!(lines[0].ends_with(" name=Mike"), "{lines:?}");
        assert!(lines[1].ends_with(" sent response"), "{lines:?}");
    }
    proxy.stop();
}

const SOCKET: &str = "/dev/log";

/// The system log at `/dev/log`, without which `logger` does not print its message on stderr either.
enum SystemLog {
    /// The machine has one.
    Running,
    /// The test provides one, which only a superuser can do.
    Provided { socket: UnixDatagram, reader: Option<JoinHandle<()>> },
    /// There is none, and the test cannot provide one.
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
            Err(error) => panic!("{SOCKET} exists and does not work: {error}"),
        }
        let socket = match UnixDatagram::bind(SOCKET) {
            Ok(socket) => socket,
            Err(error) if matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem) => {
                return Self::None;
            }
            Err(error) => panic!("{SOCKET} cannot be created: {error}"),
        };
        // Messages have to be read, since writers block after a few of them.
        let end = socket.try_clone().expect("a socket can be cloned");
        let reader = std::thread::spawn(move || {
            let mut message = [0; 4096];
            while end.recv(&mut message).is_ok_and(|length| length > 0) {}
        });
        Self::Provided { socket, reader: Some(reader) }
    }
}

impl Drop for SystemLog {
    fn drop(&mut self) {
        if let Self::Provided { socket, reader } = self {
            let _ = fs::remove_file(SOCKET);
            let _ = socket.shutdown(Shutdown::Both);
            let _ = reader.take().map(JoinHandle::join);
        }
    }
}
