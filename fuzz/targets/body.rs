//! Bodies of `/run` and `/init`: sliced without changes, one line each.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pipeloop::activation::Activation;
use pipeloop::front::openwhisk::parse_init;
use serde_json::Value;

fuzz_target!(|body: &[u8]| {
    if let Ok(init) = parse_init(body) {
        assert!(!init.main.is_empty());
        for (name, value) in &init.environment {
            let (name, value) = (name.as_encoded_bytes(), value.as_encoded_bytes());
            assert!(!name.is_empty() && !name.contains(&b'=') && !name.contains(&0) && !value.contains(&0));
        }
    }
    let Ok(mut activation) = Activation::parse(body.to_vec()) else { return };
    let _ = (activation.context(), activation.time_to_deadline());
    let arguments = activation.arguments().to_vec();
    assert!(matches!(arguments.first(), Some(b'{' | b'[')));
    // Of two members with the same name the later one counts, in this parser, too.
    let whole: Option<Value> = serde_json::from_slice(body).ok();
    if let Some(value) = whole.as_ref().and_then(|whole| whole.get("value")).filter(|value| !value.is_null()) {
        assert_eq!(serde_json::from_slice::<Value>(&arguments).ok().as_ref(), Some(value));
    }
    // Each form ends with its only newline. The proxy sends one of the two, never both.
    let mut again = Activation::parse(body.to_vec()).expect("it was parsed above");
    for line in [activation.arguments_line(), again.whole_line()] {
        assert_eq!(line.iter().position(|byte| *byte == b'\n'), Some(line.len() - 1));
        assert!(!line.contains(&b'\r'));
    }
    assert_eq!(&activation.arguments_line()[..arguments.len()], arguments);
    if let Some(whole) = whole {
        assert_eq!(serde_json::from_slice::<Value>(again.whole_line()).ok(), Some(whole));
    }
});
