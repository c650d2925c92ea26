//! Finds one member in a JSON object. It is no parser: the proxy has validated the text.

/// The value of `key` in the object `json`, as it stands there: a string keeps its quotes and
/// its escapes. A key that is itself written with escapes is not recognised.
pub fn member<'a>(json: &'a str, key: &str) -> Option<&'a str> {
    let mut rest = json.trim_start().strip_prefix('{')?;
    loop {
        rest = rest.trim_start_matches([',', ' ', '\t']);
        let (name, after) = rest.split_at(value_length(rest));
        let after = after.trim_start().strip_prefix(':')?.trim_start();
        let (value, after) = after.split_at(value_length(after));
        if unquote(name) == Some(key) {
            return Some(value);
        }
        rest = after;
    }
}

/// What a JSON string holds between its quotes, with its escapes; `None` for other values.
pub fn unquote(value: &str) -> Option<&str> {
    value.strip_prefix('"')?.strip_suffix('"')
}

/// The length of the JSON value that `json` begins with, in bytes.
fn value_length(json: &str) -> usize {
    let (mut depth, mut quoted, mut escaped) = (0, false, false);
    for (at, byte) in json.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => quoted = !quoted,
            _ if quoted => {}
            b'{' | b'[' => depth += 1,
            b'}' | b']' if depth > 0 => depth -= 1,
            b',' | b':' | b'}' | b']' | b' ' | b'\t' if depth == 0 => return at,
            _ => {}
        }
    }
    json.len()
}
