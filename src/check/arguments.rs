//! The arguments that a check sends, and the traces of them in an answer.

use serde_json::{Map, Value, json};

/// The arguments of a check: those from the command line, or a greeting's.
#[derive(Debug, Clone)]
pub(super) struct Arguments {
    base: Value,
    /// The member whose text differs between activations.
    varied: &'static str,
}

/// Characters of two, three and four bytes. The first word shows most faults.
pub(super) const UNICODE: &str = "Zoë, 日本語, Ελλάδα 😀";
/// Its first word, as it comes back when the action reads UTF-8 as Latin-1, and when it replaces characters.
const LATIN_1: &str = "ZoÃ«";
const REPLACED: [&str; 3] = ["Zo?", "Zo\u{fffd}", "Zo\\"];
/// Python writes a byte that it could not decode as `\udcc3`, which is not a character.
const LONE_SURROGATE: &str = "Zo\\udcc3";

/// How many activations the check of a sequence sends.
pub(super) const SEQUENCE_LENGTH: usize = 10;
/// The size of the large arguments.
const LARGE_BYTES: usize = 1024 * 1024;
/// The depth of the nested arguments.
const DEPTH: usize = 20;

impl Arguments {
    /// `suitable` is an object or array from the command line; without it a greeting's arguments are sent.
    pub(super) fn new(suitable: Option<Value>) -> Self {
        match suitable {
            // A name of its own, so that it overwrites no argument of the action.
            Some(base) => Self { base, varied: "pipeloop_check" },
            None => Self { base: json!({"name": "Mike"}), varied: "name" },
        }
    }

    pub(super) fn base(&self) -> Value {
        self.base.clone()
    }

    pub(super) fn unicode(&self) -> Value {
        self.with(self.varied, UNICODE.into())
    }

    pub(super) fn quotes(&self) -> Value {
        self.with(self.varied, r#"a "quoted" \ name, it's $HOME & `more`	"#.into())
    }

    pub(super) fn nested(&self) -> Value {
        let mut deep = json!([1, -2.5, 12_345_678_901_234_567_890_u64, true, null, "text", [], {}]);
        for depth in 0..DEPTH {
            deep = if depth % 2 == 0 { json!({ "in": deep }) } else { json!([deep, depth]) };
        }
        self.with("nested", deep)
    }

    pub(super) fn large(&self) -> Value {
        self.with("filler", "x".repeat(LARGE_BYTES).into())
    }

    /// The arguments of one of several activations, with a text that no other has.
    pub(super) fn numbered(&self, number: usize) -> Value {
        self.with(self.varied, mark(number).into())
    }

    pub(super) fn empty() -> Value {
        json!({})
    }

    pub(super) fn unknown() -> Value {
        json!({"pipeloop_check_unknown": {"list": [1, null, "text"]}, "and_another": true})
    }

    fn with(&self, name: &str, value: Value) -> Value {
        match &self.base {
            Value::Array(elements) => {
                let mut elements = elements.clone();
                elements.push(Value::Object(Map::from_iter([(name.to_owned(), value)])));
                Value::Array(elements)
            }
            other => {
                let mut object = other.as_object().cloned().unwrap_or_default();
                object.insert(name.to_owned(), value);
                Value::Object(object)
            }
        }
    }
}

/// A text that stands in the arguments of one activation only.
fn mark(number: usize) -> String {
    format!("number-{number:02}")
}

/// How the text that was sent comes back in an answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Echo {
    /// It is in the answer, unchanged.
    Intact,
    /// It is not in the answer, so the check learns nothing.
    Absent,
    /// It was changed; the text says how.
    Mangled(&'static str),
}

/// How [`UNICODE`] comes back in an answer, which is valid JSON in UTF-8.
pub(super) fn unicode_echo(answer: &[u8]) -> Echo {
    let text = String::from_utf8_lossy(answer).to_lowercase();
    if text.contains(LONE_SURROGATE.to_lowercase().as_str()) {
        return Echo::Mangled("the input was read as single bytes, and the answer holds a lone surrogate");
    }
    // Escapes are as good as the characters themselves.
    let Ok(decoded) = serde_json::from_slice::<Value>(answer) else { return Echo::Absent };
    let decoded = texts_of(&decoded);
    let holds = |part: &str| decoded.iter().any(|text| text.contains(part));
    if holds(UNICODE) {
        Echo::Intact
    } else if holds(LATIN_1) {
        Echo::Mangled("UTF-8 was read as Latin-1, or encoded twice")
    } else if REPLACED.iter().any(|replaced| holds(replaced)) {
        Echo::Mangled("characters were replaced")
    } else {
        Echo::Absent
    }
}

/// Whether an answer holds the text of its own arguments, or that of another activation.
pub(super) fn mark_echo(answer: &[u8], number: usize) -> Echo {
    let text = String::from_utf8_lossy(answer);
    if text.contains(&mark(number)) {
        Echo::Intact
    } else if (0..SEQUENCE_LENGTH).any(|other| text.contains(&mark(other))) {
        Echo::Mangled("it holds the arguments of another activation")
    } else {
        Echo::Absent
    }
}

/// Every text in a JSON value.
fn texts_of(value: &Value) -> Vec<&str> {
    match value {
        Value::String(text) => vec![text],
        Value::Array(elements) => elements.iter().flat_map(texts_of).collect(),
        Value::Object(members) => members.iter().flat_map(|(_, value)| texts_of(value)).collect(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_shows_how_unicode_comes_back() {
        let seen = |answer: &str| unicode_echo(answer.as_bytes());
        assert_eq!(seen(&json!({ "a": [format!("Hello, {UNICODE}!")] }).to_string()), Echo::Intact);
        assert_eq!(
            seen(r#"{"a":"Zo\u00eb, \u65e5\u672c\u8a9e, \u0395\u03bb\u03bb\u03ac\u03b4\u03b1 \ud83d\ude00"}"#),
            Echo::Intact
        );
        assert_eq!(seen(r#"{"n":7}"#), Echo::Absent);
        for mangled in
            [r#"{"a":"ZoÃ«, æ"}"#, r#"{"a":"Zo??, ???"}"#, "{\"a\":\"Zo\u{fffd}\"}", r#"{"a":"Zo\udcc3\udcab"}"#]
        {
            assert!(matches!(seen(mangled), Echo::Mangled(_)), "{mangled}");
        }
    }

    #[test]
    fn arguments_from_the_command_line_are_kept() {
        let mine = Arguments::new(Some(json!({"name": "Ann"})));
        assert_eq!(mine.unicode(), json!({"name": "Ann", "pipeloop_check": UNICODE}));
        let list = Arguments::new(Some(json!([1])));
        assert_eq!(list.numbered(3), json!([1, {"pipeloop_check": "number-03"}]));
        assert_eq!(Arguments::new(None).base(), json!({"name": "Mike"}));
        assert!(Arguments::new(None).large().to_string().len() > LARGE_BYTES);
    }

    #[test]
    fn marks_distinguish_activations() {
        let answer = |number: usize| json!({ "a": mark(number) }).to_string();
        assert_eq!(mark_echo(answer(3).as_bytes(), 3), Echo::Intact);
        assert!(matches!(mark_echo(answer(2).as_bytes(), 3), Echo::Mangled(_)));
        assert_eq!(mark_echo(b"{}", 3), Echo::Absent);
    }
}
