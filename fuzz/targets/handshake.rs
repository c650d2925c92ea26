//! First lines: a handshake is an object with a member `openwhisk`, and nothing else is.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pipeloop::protocol::handshake::is_handshake;
use serde_json::Value;

fuzz_target!(|line: &[u8]| {
    if is_handshake(line) {
        // White space before it is fine.
        assert!(line.trim_ascii_start().starts_with(b"{"));
        // The parser of whole values is stricter about escapes.
        if let Ok(value) = serde_json::from_slice::<Value>(line) {
            assert!(value.get("openwhisk").is_some(), "{value}");
        }
    }
});
