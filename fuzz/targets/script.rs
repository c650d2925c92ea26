//! Inspection of a script, whatever stands behind its `#!`.

#![no_main]

#[path = "../world.rs"]
mod world;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    world::inspected(&[b"#!", bytes].concat());
});
