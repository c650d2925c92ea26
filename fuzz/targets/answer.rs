//! Answers: only an object or array in UTF-8 is accepted, and it is passed on unchanged.

#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use pipeloop::protocol::answer::check;
use serde_json::value::RawValue;

fuzz_target!(|line: &[u8]| {
    let text = std::str::from_utf8(line).ok();
    let is_json = text.is_some_and(|text| serde_json::from_str::<&RawValue>(text).is_ok());
    let is_compound = matches!(line.trim_ascii_start().first(), Some(b'{' | b'['));
    match check(Bytes::copy_from_slice(line)) {
        Ok(answer) => {
            assert!(is_json && is_compound);
            assert_eq!(answer, line);
        }
        Err(problem) => {
            assert!(!is_json || !is_compound, "{problem}");
            let sentence = problem.to_string();
            assert!(!sentence.contains(['\n', '\0', '\x1b']) && sentence.len() < 4096, "{sentence:?}");
        }
    }
});
