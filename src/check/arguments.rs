//! What an action is sent while it is checked, and what an answer shows of it.

use serde_json::{Map, Value, json};

/// The arguments of a check: those that suit the action, or a greeting's.
#[derive(Debug, Clone)]
pub(super) struct Arguments {
    base: Value,
    /// The member, if any, whose text is varied.
    varied: &'static str,
}

/// Characters of two, three and four bytes. What becomes of the first of them tells most faults.
pub(super) const UNICODE: &str = "Zoë, 日本語, Ελλάδα 😀";
/// The beginning of it, as it comes back when UTF-8 was read as Latin-1, and when what could not be
/// written was replaced.
const LATIN_1: &str = "ZoÃ«";
const REPLACED: [&str; 3] = ["Zo?", "Zo\u{fffd}", "Zo\\"];
/// One that was read as single bytes is written by Python as `\udcc3`, which is no character.
const LONE_SURROGATE: &str = "Zo\\udcc3";

/// How many are sent in a row.
pub(super) const IN_A_ROW: usize = 10;
/// How much the large arguments hold.
const LARGE_BYTES: usize = 1024 * 1024;
/// How deep the nested ones are.
const DEPTH: usize = 20;

impl Arguments {
    /// Arguments that suit the action, an object or array; none for a greeting's.
    pub(super) fn new(suitable: Option<Value>) -> Self {
        match suitable {
            // A name of its own, so that nothing of the action's is overwritten.
            Some(base) => Self { base, varied: "pipeloop_check" },
            None => Self { base: json!({"name": "Mike"}), varied: "name" },
        }
    }

    pub(super) fn plain(&self) -> Value {
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

    /// One of several, with a text that no other has.
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

/// A text that stands in one activation of several.
fn mark(number: usize) -> String {
    format!("number-{number:02}")
}

/// What an answer shows of the text that was sent.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// It stands in the answer as it was sent.
    Intact,
    /// Nothing of it, so that nothing can be said.
    Nothing,
    /// It was changed, in these words.
    Mangled(&'static str),
}

/// What became of [`UNICODE`] in an answer, which is valid JSON in UTF-8.
pub(super) fn unicode_in(answer: &[u8]) -> Seen {
    let text = String::from_utf8_lossy(answer).to_lowercase();
    if text.contains(LONE_SURROGATE.to_lowercase().as_str()) {
        return Seen::Mangled("the input was read as single bytes, and the answer holds what is no character");
    }
    // Escapes are as good as the characters themselves.
    let Ok(decoded) = serde_json::from_slice::<Value>(answer) else { return Seen::Nothing };
    let decoded = texts_of(&decoded);
    let holds = |part: &str| decoded.iter().any(|text| text.contains(part));
    if holds(UNICODE) {
        Seen::Intact
    } else if holds(LATIN_1) {
        Seen::Mangled("UTF-8 was read as Latin-1, or encoded twice")
    } else if REPLACED.iter().any(|replaced| holds(replaced)) {
        Seen::Mangled("characters were replaced")
    } else {
        Seen::Nothing
    }
}

/// Whether an answer holds the text of one of several, and no other's.
pub(super) fn mark_in(answer: &[u8], number: usize) -> Seen {
    let text = String::from_utf8_lossy(answer);
    if text.contains(&mark(number)) {
        Seen::Intact
    } else if (0..IN_A_ROW).any(|other| text.contains(&mark(other))) {
        Seen::Mangled("it holds the arguments of another activation")
    } else {
        Seen::Nothing
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
    fn an_answer_shows_what_became_of_unicode() {
        let seen = |answer: &str| unicode_in(answer.as_bytes());
        assert_eq!(seen(&json!({ "a": [format!("Hello, {UNICODE}!")] }).to_string()), Seen::Intact);
        assert_eq!(
            seen(r#"{"a":"Zo\u00eb, \u65e5\u672c\u8a9e, \u0395\u03bb\u03bb\u03ac\u03b4\u03b1 \ud83d\ude00"}"#),
            Seen::Intact
        );
        assert_eq!(seen(r#"{"n":7}"#), Seen::Nothing);
        for mangled in
            [r#"{"a":"ZoÃ«, æ"}"#, r#"{"a":"Zo??, ???"}"#, "{\"a\":\"Zo\u{fffd}\"}", r#"{"a":"Zo\udcc3\udcab"}"#]
        {
            assert!(matches!(seen(mangled), Seen::Mangled(_)), "{mangled}");
        }
    }

    #[test]
    fn arguments_are_varied_and_kept() {
        let mine = Arguments::new(Some(json!({"name": "Ann"})));
        assert_eq!(mine.unicode(), json!({"name": "Ann", "pipeloop_check": UNICODE}));
        let list = Arguments::new(Some(json!([1])));
        assert_eq!(list.numbered(3), json!([1, {"pipeloop_check": "number-03"}]));
        assert_eq!(Arguments::new(None).plain(), json!({"name": "Mike"}));
        assert!(Arguments::new(None).large().to_string().len() > LARGE_BYTES);
    }

    #[test]
    fn each_of_several_is_told_apart() {
        let answer = |number: usize| json!({ "a": mark(number) }).to_string();
        assert_eq!(mark_in(answer(3).as_bytes(), 3), Seen::Intact);
        assert!(matches!(mark_in(answer(2).as_bytes(), 3), Seen::Mangled(_)));
        assert_eq!(mark_in(b"{}", 3), Seen::Nothing);
    }
}
