//! What an error quotes: the last lines of its own activation, and no byte that another activation wrote.

use serde_json::{Value, json};

use crate::streams::Streams;
use crate::support::{Proxy, Response};

/// What alice's activation logs, and no error for bob may hold.
const CARD: &str = "card 4111-1111";

/// Version 1 in shell, or the actionloop dialect: alice's run logs her card, bob's run crashes.
fn code(handshake: &str, channel: u8) -> String {
    format!(
        "#!/bin/bash\n{handshake}\nwhile read -r line; do\ncase $line in\n*alice*) echo '{CARD}' >&2; echo '{{}}' >&{channel};;\n\
         *crash*) echo '{CARD}' >&2; exit 3;;\n*half*) printf '{{\"{CARD}'; exit 3;;\n\
         *bob*) echo no such table >&2; exit 4;;\nesac\ndone\n"
    )
}

fn version_1() -> String {
    code("echo '{\"openwhisk\":1}'", 1)
}

#[track_caller]
fn check_no_card(response: &Response, texts: &[&str]) {
    response.check_error(502, texts);
    assert!(!response.error().contains("4111"), "{}", response.error());
}

#[track_caller]
fn serving(args: &[&str], protocol: &str, code: &str) -> Proxy {
    let proxy = Proxy::start(args, &[("PIPELOOP_PROTOCOL", protocol)]);
    proxy.init(code).check(200, &json!({"ok": true}));
    proxy
}

fn run(proxy: &Proxy, who: &str) -> Response {
    proxy.run(&json!({ "who": who }))
}

/// Issue 12.
#[test]
fn an_error_quotes_no_line_of_an_earlier_activation() {
    for (protocol, code) in [("1", version_1()), ("actionloop", code("", 3))] {
        let proxy = serving(&[], protocol, &code);
        run(&proxy, "alice").check(200, &json!({}));
        check_no_card(&run(&proxy, "bob"), &["status 4", "before it answered: `no such table`"]);
        let logs = proxy.check_streams(2);
        assert!(logs.stderr.contains(CARD), "the log has every line");
    }
}

/// Issue 12.
#[test]
fn an_error_quotes_no_line_from_before_its_activation() {
    let proxy = serving(&[], "1", &format!("#!/bin/bash\necho '{CARD}' >&2\n{}", version_1()));
    check_no_card(&run(&proxy, "bob"), &["before it answered: `no such table`"]);
    assert!(proxy.check_streams(1).stderr.contains(CARD), "the log has every line");
}

/// Issue 12.
#[test]
fn version_2_quotes_no_line_of_an_earlier_activation() {
    for concurrency in [1, 4] {
        let streams = Streams::new(&json!({ "concurrency": concurrency }), &[]);
        let alice = json!({"do": [["stderr", CARD], ["result", {}]]});
        streams.proxy.run(&alice).check(200, &json!({}));
        let bob = json!({"do": [["stderr", "no such table"], ["exit", 4]]});
        check_no_card(&streams.proxy.run(&bob), &["status 4", "before it answered: `no such table`"]);
        assert!(streams.proxy.check_streams(2).stderr.contains(CARD), "the log has every line");
    }
}

/// Lines on stderr have no owner while several activations are in flight. Issue 12.
#[test]
fn version_2_quotes_no_line_of_an_activation_beside_it() {
    for alice_logs_first in [true, false] {
        let streams = Streams::new(&json!({"concurrency": 4}), &[]);
        let begin = |steps: &Value| streams.send("application/json", steps);
        let logs_card = json!([["report", "alice"], ["stderr", CARD], ["report", "logged"], ["wait", "/nonexistent"]]);
        let mut bob_steps = json!([["report", "bob"], streams.wait("go"), ["stderr", "boom"], ["exit", 4]]);
        let mut alice;
        let mut bob;
        if alice_logs_first {
            alice = begin(&logs_card);
            streams.wait_for_report("logged");
            bob_steps[0] = json!(["report", "bob begins"]);
            bob = begin(&bob_steps);
        } else {
            bob = begin(&bob_steps);
            streams.wait_for_report("bob");
            alice = begin(&logs_card);
            streams.wait_for_report("logged");
        }
        streams.wait_for_report("bob");
        streams.release("go");
        check_no_card(&bob.receive().expect("an answer"), &["status 4", "before it answered"]);
        alice.receive().expect("an answer").check_error(502, &["status 4", "before it answered"]);
        let logs = streams.proxy.check_streams(2);
        assert!(logs.stderr.contains(CARD) && logs.stderr.contains("boom"), "the log has every line");
    }
}

/// Issue 12.
#[test]
fn an_error_about_earlier_failures_quotes_none_of_their_output() {
    for (what, texts) in [
        ("crash", ["the last failure: the action exited with status 3", "before it answered"]),
        ("half", ["the last failure: the action ended in the middle of its answer", "status 3"]),
    ] {
        let proxy = serving(&[], "1", &version_1());
        for _ in 0..6 {
            run(&proxy, what).check_error(502, &["status 3"]);
        }
        check_no_card(&run(&proxy, "bob"), &texts);
    }
    for what in ["crash", "half"] {
        let proxy = serving(&["--restart", "never"], "1", &version_1());
        run(&proxy, what).check_error(502, &["status 3"]);
        check_no_card(&run(&proxy, "bob"), &["is not restarted: the action e", "status 3"]);
    }
    let streams = Streams::new(&json!({"concurrency": 1}), &["--restart", "never"]);
    let alice = json!({"do": [["raw", format!("{{\"id\":ID,\"{CARD}\":1}}")], ["wait", "/nonexistent"]]});
    streams.proxy.run(&alice).check_error(502, &["a frame"]);
    check_no_card(&streams.proxy.run(&json!({"do": [["end"]]})), &["is not restarted", "not a frame"]);
}
