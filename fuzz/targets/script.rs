//! Inspection of a script, with any text after `#!`.

#![no_main]

#[path = "../target_system.rs"]
mod target_system;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    target_system::inspected(&[b"#!", bytes].concat());
});
