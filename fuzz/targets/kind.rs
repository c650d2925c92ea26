//! The kind of an upload, by its first bytes: any bytes have a kind and a description.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pipeloop::artifact::inspect::{Defect, Kind};

fuzz_target!(|bytes: &[u8]| {
    let kind = Kind::of(bytes);
    assert!(!kind.in_words().is_empty());
    if let Some(defect) = Defect::of(&kind) {
        assert!(defect.code().starts_with("PL0"));
        let sentence = defect.to_string();
        assert!(!sentence.is_empty() && !sentence.contains(['\n', '\0', '\x1b']), "{sentence:?}");
        assert!(sentence.len() < 4096, "the message is too long: {} bytes", sentence.len());
        let _ = (defect.hint(), defect.severity());
    }
});
