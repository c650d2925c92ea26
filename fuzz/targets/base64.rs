//! Code in base64, compared with a very simple decoder.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pipeloop::artifact::Code;

fuzz_target!(|text: &[u8]| {
    let decoded = Code::Encoded(text.to_vec()).decode().ok();
    let text: Vec<u8> = text.iter().copied().filter(|byte| !byte.is_ascii_whitespace()).collect();
    assert_eq!(decoded, simple(&text));
});

/// RFC 4648, section 4: padding is required, and nothing else is allowed.
fn simple(text: &[u8]) -> Option<Vec<u8>> {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    if !text.len().is_multiple_of(4) {
        return None;
    }
    let mut decoded = Vec::new();
    for (at, group) in text.chunks(4).enumerate() {
        let is_last = (at + 1) * 4 == text.len();
        let padding = if is_last { group.iter().rev().take_while(|byte| **byte == b'=').count() } else { 0 };
        if padding > 2 {
            return None;
        }
        let mut bits = 0_u32;
        for byte in &group[..4 - padding] {
            bits = bits << 6 | u32::try_from(ALPHABET.iter().position(|known| known == byte)?).ok()?;
        }
        bits <<= 6 * padding;
        let bytes = bits.to_be_bytes();
        let (kept, dropped) = bytes[1..].split_at(3 - padding);
        // Unused bits must be zero, so that each content has only one text.
        if dropped.iter().any(|byte| *byte != 0) {
            return None;
        }
        decoded.extend_from_slice(kept);
    }
    Some(decoded)
}
