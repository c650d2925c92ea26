//! Inspection of an ELF file with any content.

#![no_main]

#[path = "../target_system.rs"]
mod target_system;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    // Other files are refused at once, which the target `kind` covers.
    let mut file = bytes.to_vec();
    if let Some(magic) = file.get_mut(..4) {
        magic.copy_from_slice(b"\x7fELF");
    }
    target_system::inspected(&file);
});
