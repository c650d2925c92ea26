//! Streams (protocol version 2): a frame in for each activation, frames out, several at once. Each
//! has a thread of its own, so that one that sleeps delays no other. `println!` writes a line in one
//! piece, under a lock, and flushes it. The name goes back as it came, escapes and all.

mod member;

use member::{member, unquote};
use std::thread;
use std::time::Duration;

fn greet(frame: &str) -> Option<()> {
    let id = member(frame, "run")?;
    let arguments = member(frame, "value")?;
    let name = member(arguments, "name").and_then(unquote).unwrap_or("stranger");
    let ms = member(arguments, "ms").and_then(|ms| ms.parse().ok()).unwrap_or(0);
    println!(r#"{{"id":{id},"log":"name={name}"}}"#);
    println!(r#"{{"id":{id},"chunk":"Hello, "}}"#);
    thread::sleep(Duration::from_millis(ms));
    println!(r#"{{"id":{id},"chunk":"{name}"}}"#);
    println!(r#"{{"id":{id},"result":{{"hello":"Hello, {name}"}}}}"#);
    Some(())
}

fn main() -> std::io::Result<()> {
    println!(r#"{{"openwhisk":2,"concurrency":16}}"#);
    for frame in std::io::stdin().lines() {
        let frame = frame?;
        thread::spawn(move || greet(&frame));
    }
    Ok(())
}
