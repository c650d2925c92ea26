//! OpenWhisk's canonical scenarios, one test each for each protocol.
//!
//! Source: apache/openwhisk, `tests/src/test/scala/actionContainers/BasicActionRunnerTests.scala`.

use serde_json::{Value, json};

use crate::support::{Logs, Proxy, action};

/// A protocol, and how the proxy comes to speak it.
struct Variant {
    /// The container's `PIPELOOP_PROTOCOL`; none for detection.
    setting: Option<&'static str>,
    /// The program around `main`.
    program: &'static str,
    /// Whether the action's stdout is a log and not the result channel.
    stdout_is_log: bool,
}

const V0: Variant = Variant { setting: Some("0"), program: "single_shot.py", stdout_is_log: true };
const V1: Variant = Variant { setting: Some("1"), program: "pipe_loop.py", stdout_is_log: false };
const ACTIONLOOP: Variant = Variant { setting: Some("actionloop"), program: "actionloop.py", stdout_is_log: true };
const AUTO_V1: Variant = Variant { setting: None, ..V1 };
const AUTO_ACTIONLOOP: Variant = Variant { setting: None, ..ACTIONLOOP };

macro_rules! scenarios {
    ($($scenario:ident),* $(,)?) => {
        mod v0 { $(#[test] fn $scenario() { super::$scenario(&super::V0); })* }
        mod v1 { $(#[test] fn $scenario() { super::$scenario(&super::V1); })* }
        mod actionloop { $(#[test] fn $scenario() { super::$scenario(&super::ACTIONLOOP); })* }
        mod auto_v1 { $(#[test] fn $scenario() { super::$scenario(&super::AUTO_V1); })* }
        mod auto_actionloop { $(#[test] fn $scenario() { super::$scenario(&super::AUTO_ACTIONLOOP); })* }
    };
}

scenarios! {
    init_without_code_is_refused,
    init_without_content_is_refused,
    an_answer_that_is_not_an_object_is_an_error,
    init_that_is_not_json_is_refused,
    run_that_is_not_json_is_refused,
    second_init_is_refused,
    another_entry_point_is_accepted,
    arguments_are_echoed,
    unicode_is_preserved,
    init_env_reaches_the_action,
    the_activation_context_reaches_the_action,
    a_mebibyte_is_echoed,
}

impl Variant {
    fn proxy(&self, env: &[(&str, &str)]) -> Proxy {
        let mut env = env.to_vec();
        env.extend(self.setting.map(|setting| ("PIPELOOP_PROTOCOL", setting)));
        Proxy::start::<&str>(&[], &env)
    }

    /// A program in Python with this `main(arguments, context)`.
    fn program(&self, main: &str) -> String {
        let program = action(self.program);
        assert!(program.contains("\n# MAIN\n"), "{} has no place for main", self.program);
        program.replace("\n# MAIN\n", &format!("\n{main}\n"))
    }

    /// A proxy that is initialised with a working action.
    fn initialised(&self, main: &str) -> Proxy {
        let proxy = self.proxy(&[]);
        proxy.init(&self.program(main)).check(200, &json!({"ok": true}));
        proxy
    }

    /// Checks how often the action logged a text: on stderr, and on stdout where that is a log.
    fn check_logged(&self, logs: &Logs, text: &str, times: usize) {
        assert_eq!(logs.stderr.matches(text).count(), times, "{text:?} on stderr");
        let on_stdout = if self.stdout_is_log { times } else { 0 };
        assert_eq!(logs.stdout.matches(text).count(), on_stdout, "{text:?} on stdout");
    }
}

const ECHO: &str = "def main(arguments, context): return arguments";
const LOGGING_ECHO: &str = r#"
def main(arguments, context):
    import sys
    if loud_stdout: print("hello stdout", flush=True)
    print("hello stderr", file=sys.stderr, flush=True)
    return arguments
"#;

fn init_without_code_is_refused(variant: &Variant) {
    let proxy = variant.proxy(&[]);
    let refused = json!({"error": "Missing main/no code to execute."});
    proxy.init("").check(403, &refused);
    proxy.init_value(&json!({"name": "test", "main": "main"})).check(403, &refused);
    proxy.check_streams(0);
}

fn init_without_content_is_refused(variant: &Variant) {
    let proxy = variant.proxy(&[]);
    let refused = json!({"error": "Missing main/no code to execute."});
    proxy.init_raw("{}").check(403, &refused);
    proxy.init_raw(r#"{"value":{}}"#).check(403, &refused);
    proxy.init_raw(r#"{"value":null}"#).check(403, &refused);
    proxy.check_streams(0);
}

fn an_answer_that_is_not_an_object_is_an_error(variant: &Variant) {
    let proxy = variant.initialised(r#"def main(arguments, context): return "not a json object""#);
    proxy.run(&json!({})).check(502, &json!({"error": "The action did not return a dictionary or array."}));
    let logs = proxy.check_streams(1);
    assert!(logs.both().contains("not a json object"), "the offending line is in the log");
}

fn init_that_is_not_json_is_refused(variant: &Variant) {
    let proxy = variant.proxy(&[]);
    for body in ["not json", "{\"value\":{\"code\":\"#!/bin/sh\"}", "\"text\"", "[]"] {
        proxy.init_raw(body).check_error(400, &["the body of init"]);
    }
    proxy.check_streams(0);
    proxy.init(&variant.program(ECHO)).check(200, &json!({"ok": true}));
}

fn run_that_is_not_json_is_refused(variant: &Variant) {
    let proxy = variant.initialised(ECHO);
    for body in ["not json", "{\"value\":{}", "\"text\"", "[]"] {
        proxy.run_raw(body).check_error(400, &["the body of run"]);
    }
    proxy.run(&json!({"n": 1})).check(200, &json!({"n": 1}));
}

fn second_init_is_refused(variant: &Variant) {
    const TEXT: &str = "Cannot initialize the action more than once.";
    let proxy = variant.initialised(ECHO);
    proxy.init(&variant.program(ECHO)).check(403, &json!({ "error": TEXT }));
    proxy.wait_for("the refusal is in the log", |logs| logs.both().contains(TEXT));
    proxy.check_streams(0);
    proxy.run(&json!({"n": 1})).check(200, &json!({"n": 1}));
}

fn another_entry_point_is_accepted(variant: &Variant) {
    let proxy = variant.proxy(&[]);
    let code = variant.program("def niam(arguments, context): return arguments\nmain = niam");
    proxy.init_value(&json!({"name": "test", "main": "niam", "code": code})).check(200, &json!({"ok": true}));
    proxy.run(&json!({"n": 1})).check(200, &json!({"n": 1}));
}

fn arguments_are_echoed(variant: &Variant) {
    let loud = format!("loud_stdout = {}\n{LOGGING_ECHO}", if variant.stdout_is_log { "True" } else { "False" });
    let proxy = variant.initialised(&loud);
    let payloads = [
        json!({"string": "hello"}),
        json!({"string": "❄ ☃ ❄"}),
        json!({"numbers": [42, 1]}),
        json!({"object": {"a": "A"}}),
    ];
    for (done, payload) in payloads.iter().enumerate() {
        proxy.run(payload).check(200, payload);
        let logs = proxy.check_streams(done + 1);
        assert_eq!(logs.stderr, "hello stderr\n".repeat(done + 1));
        assert_eq!(logs.stdout, if variant.stdout_is_log { "hello stdout\n".repeat(done + 1) } else { String::new() });
    }
}

fn unicode_is_preserved(variant: &Variant) {
    let proxy = variant.initialised(
        r#"
def main(arguments, context):
    winter = arguments["delimiter"] + " ☃ " + arguments["delimiter"]
    say(winter)
    return {"winter": winter}
"#,
    );
    proxy.run(&json!({"delimiter": "❄"})).check(200, &json!({"winter": "❄ ☃ ❄"}));
    variant.check_logged(&proxy.check_streams(1), "❄ ☃ ❄\n", 1);
}

fn init_env_reaches_the_action(variant: &Variant) {
    let proxy = variant.proxy(&[("FROM_CONTAINER", "container"), ("SOME_VAR", "container")]);
    let code = variant.program(
        r#"
def main(arguments, context):
    import os
    return {name: os.environ.get(name) for name in arguments["names"]}
"#,
    );
    let env = json!({
        "SOME_VAR": "xyz",
        "ANOTHER_VAR": "",
        "EQUALS": "a=b==",
        "NEWLINE": "one\ntwo\n",
        "NUMBER": 42.50,
        "OBJECT": {"a": ["A", null]},
        "BOOLEAN": false,
        "WINTER": "❄",
    });
    proxy.init_value(&json!({"main": "main", "code": code, "env": env})).check(200, &json!({"ok": true}));
    let expected = json!({
        "SOME_VAR": "xyz",
        "ANOTHER_VAR": "",
        "EQUALS": "a=b==",
        "NEWLINE": "one\ntwo\n",
        "NUMBER": "42.5",
        "OBJECT": r#"{"a":["A",null]}"#,
        "BOOLEAN": "false",
        "WINTER": "❄",
        "FROM_CONTAINER": "container",
        "MISSING": null,
    });
    let names: Vec<_> = expected.as_object().expect("it is an object").keys().collect();
    proxy.run(&json!({ "names": names })).check(200, &expected);
}

fn the_activation_context_reaches_the_action(variant: &Variant) {
    let proxy = variant.proxy(&[("__OW_API_HOST", "xyz")]);
    let code = variant.program(
        r#"
CONTEXT = True
def main(arguments, context):
    import os
    names = ["api_key", "namespace", "action_name", "action_version", "activation_id", "deadline"]
    return {"api_host": os.environ.get("__OW_API_HOST"), "arguments": arguments,
            **{name: context.get(name) for name in names}}
"#,
    );
    proxy.init(&code).check(200, &json!({"ok": true}));
    let mut activation = json!({
        "value": {},
        "api_key": "abc",
        "namespace": "zzz",
        "action_name": "xxx",
        "action_version": "0.0.1",
        "activation_id": "iii",
        "deadline": "123",
    });
    let expected = |activation: &Value| {
        let mut expected = activation.clone();
        let value = expected["value"].take();
        expected["arguments"] = value;
        expected["api_host"] = json!("xyz");
        expected.as_object_mut().expect("it is an object").remove("value");
        expected
    };
    proxy.run_raw(&activation.to_string()).check(200, &expected(&activation));
    // The next activation has a context of its own.
    activation["activation_id"] = json!("jjj");
    activation["value"] = json!({"a": 1});
    proxy.run_raw(&activation.to_string()).check(200, &expected(&activation));
    proxy.check_streams(2);
}

fn a_mebibyte_is_echoed(variant: &Variant) {
    let proxy = variant.initialised(ECHO);
    let payload = json!({"arg": "a".repeat(1_048_561)});
    let response = proxy.run(&payload);
    assert_eq!(response.status, 200);
    assert!(response.json() == payload, "{} bytes came back", response.body.len());
    proxy.check_streams(1);
}
