//! A pipe loop (protocol version 1): a line of arguments in, a line of result out, logs on
//! stderr. The flush is for stdout being a pipe: no answer may stay in a buffer while the
//! caller waits for it. The name goes back as it came, escapes and all.

mod member;

use member::{member, unquote};
use std::io::{self, Write};

fn main() -> io::Result<()> {
    let mut stdout = io::stdout();
    writeln!(stdout, r#"{{"openwhisk":1}}"#)?;
    stdout.flush()?;
    for line in io::stdin().lines() {
        let line = line?;
        let name = member(&line, "name").and_then(unquote).unwrap_or("stranger");
        eprintln!("name={name}");
        writeln!(stdout, r#"{{"hello":"Hello, {name}"}}"#)?;
        stdout.flush()?;
    }
    Ok(())
}
