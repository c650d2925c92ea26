//! Looks for one line in the output of the action that is no log line.
//!
//! Knows bytes and lines. What the wanted line means is the business of its reader: a process may announce its
//! protocol on stdout after its stdout has become a log.

/// The longest line that is kept back until its end has come.
const MAX_HELD: usize = 64 * 1024;

/// A watch for the first line that is wanted.
#[derive(Debug)]
pub(super) struct Watch {
    wanted: fn(&[u8]) -> bool,
    /// The beginning of a line that may be the wanted one. Not yet in the log.
    buffered: Vec<u8>,
    /// The beginning of the current line is in the log already.
    mid_line: bool,
    caught: Option<Caught>,
}

/// The wanted line, and what came after it.
#[derive(Debug)]
struct Caught {
    line: Vec<u8>,
    rest: Vec<u8>,
}

impl Watch {
    pub(super) fn new(wanted: fn(&[u8]) -> bool) -> Self {
        Self { wanted, buffered: Vec::new(), mid_line: false, caught: None }
    }

    pub(super) fn has_caught(&self) -> bool {
        self.caught.is_some()
    }

    /// Takes output of the action, and returns what of it belongs to the log.
    pub(super) fn pass(&mut self, bytes: &[u8]) -> Vec<u8> {
        if let Some(caught) = &mut self.caught {
            caught.rest.extend_from_slice(bytes);
            return Vec::new();
        }
        self.buffered.extend_from_slice(bytes);
        let mut passed = 0;
        while let Some(newline) = memchr::memchr(b'\n', &self.buffered[passed..]) {
            let end = passed + newline + 1;
            if !self.mid_line && (self.wanted)(self.buffered[passed..end].trim_ascii()) {
                let rest = self.buffered.split_off(end);
                let line = self.buffered.split_off(passed);
                self.caught = Some(Caught { line, rest });
                return std::mem::take(&mut self.buffered);
            }
            self.mid_line = false;
            passed = end;
        }
        let partial = &self.buffered[passed..];
        let may_be_wanted =
            partial.len() <= MAX_HELD && matches!(partial.trim_ascii_start().first(), None | Some(b'{'));
        if !partial.is_empty() && (self.mid_line || !may_be_wanted) {
            self.mid_line = true;
            passed = self.buffered.len();
        }
        let kept = self.buffered.split_off(passed);
        std::mem::replace(&mut self.buffered, kept)
    }

    /// Returns the beginning of a line that was kept back. The line is a log line then.
    pub(super) fn pass_partial(&mut self) -> Vec<u8> {
        self.mid_line |= !self.buffered.is_empty();
        std::mem::take(&mut self.buffered)
    }

    /// The wanted line without its end, and what came after it.
    pub(super) fn into_caught(self) -> Option<(Vec<u8>, Vec<u8>)> {
        self.caught.map(|Caught { line, rest }| (line.trim_ascii().to_vec(), rest))
    }

    /// Everything that was kept back.
    pub(super) fn into_bytes(self) -> Vec<u8> {
        let mut bytes = self.buffered;
        if let Some(Caught { line, rest }) = self.caught {
            bytes.extend(line);
            bytes.extend(rest);
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watch() -> Watch {
        Watch::new(|line| line == b"{wanted}")
    }

    #[test]
    fn the_wanted_line_is_caught_however_it_is_cut() {
        for cut in 0..12 {
            let text = b"log\n {wanted}\nrest";
            let mut watch = watch();
            let mut log = watch.pass(&text[..cut]);
            log.extend(watch.pass(&text[cut..]));
            assert_eq!(log, b"log\n", "{cut}");
            assert!(watch.has_caught(), "{cut}");
            assert_eq!(watch.pass(b" more"), b"");
            assert_eq!(watch.into_caught(), Some((b"{wanted}".to_vec(), b"rest more".to_vec())));
        }
    }

    #[test]
    fn everything_else_passes_and_only_a_line_that_may_be_wanted_waits() {
        let mut watch = watch();
        assert_eq!(watch.pass(b"progress: 10 %"), b"progress: 10 %");
        assert_eq!(watch.pass(b"{wanted}\n{wan"), b"{wanted}\n", "it is the end of another line");
        assert_eq!(watch.pass(b"ts}\n"), b"{wants}\n");
        assert_eq!(watch.pass(b"{wan"), b"");
        assert_eq!(watch.pass_partial(), b"{wan");
        assert_eq!(watch.pass(b"ted}\n"), b"ted}\n", "its beginning is in the log");
        let long = vec![b'{'; MAX_HELD + 1];
        assert_eq!(watch.pass(&long), long);
        assert_eq!(watch.pass(b"\n{"), b"\n");
        assert!(!watch.has_caught());
        assert_eq!(watch.into_bytes(), b"{");
    }
}
