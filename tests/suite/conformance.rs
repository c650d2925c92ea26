//! The cases of the protocol (`conformance/`) against pipeloop's own proxy, and the command that plays them.

use std::fs;
use std::time::Duration;

use ::conformance::case::{ALL, Case, built_in, read};
use ::conformance::{Target, Verdict, play};
use serde_json::{Value, json};

use crate::support::{pipeloop, root};

/// Long: no case here tests speed.
const LIMIT: Duration = Duration::from_secs(30);

fn pipeloop_command() -> String {
    format!("{} serve --host 127.0.0.1 --port 0 --port-file {{port_file}}", env!("CARGO_BIN_EXE_pipeloop"))
}

/// Plays every case of a group and reports all that fail.
#[track_caller]
fn check_group(group: &str) {
    let target = Target::parse(&pipeloop_command(), None).expect("the command says where the port is written");
    let cases: Vec<_> = built_in().into_iter().filter(|case| case.name.starts_with(group)).collect();
    assert!(!cases.is_empty(), "there are no cases in {group}");
    let mut failed = Vec::new();
    for case in &cases {
        match play(case, &target, LIMIT) {
            Verdict::Passed => {}
            other => failed.push(format!("{} ({}): {other:?}", case.name, case.title)),
        }
    }
    assert!(failed.is_empty(), "{} of {} cases:\n{}", failed.len(), cases.len(), failed.join("\n"));
}

#[test]
fn proxy_cases_pass() {
    check_group("proxy/");
}

#[test]
fn version_0_cases_pass() {
    check_group("v0/");
}

#[test]
fn version_1_cases_pass() {
    check_group("v1/");
}

#[test]
fn version_2_cases_pass() {
    check_group("v2/");
}

#[test]
fn actionloop_cases_pass() {
    check_group("actionloop/");
}

#[test]
fn detection_cases_pass() {
    check_group("auto/");
}

#[test]
fn every_case_file_is_built_in() {
    let files = read(&root().join("conformance/cases")).expect("every case can be read");
    let files: Vec<_> = files.iter().map(|case| case.name.as_str()).collect();
    let built_in: Vec<_> = ALL.iter().map(|(name, _)| *name).collect();
    assert_eq!(built_in, files, "conformance/src/list.rs against conformance/cases");
}

#[test]
fn every_field_report_has_a_case() {
    let cases = built_in();
    for number in 1..=12 {
        let report = format!("P{number}");
        assert!(cases.iter().any(|case| case.field.contains(&report)), "{report} has no case");
    }
}

#[test]
fn the_documentation_states_the_number_of_cases() {
    let page = text("docs/conformance.md");
    let count = |group: &str| ALL.iter().filter(|(name, _)| name.starts_with(group)).count();
    for (group, words) in [
        ("v0/", "version 0"),
        ("v1/", "version 1"),
        ("v2/", "version 2"),
        ("actionloop/", "the actionloop dialect"),
        ("auto/", "`auto`"),
        ("proxy/", "no executable"),
    ] {
        let row = format!("| {} | {words} |", count(group));
        assert!(page.contains(&row), "{row} is missing in docs/conformance.md");
    }
    let all = format!("all {} cases", ALL.len());
    assert!(page.contains(&all), "{all:?} is missing in docs/conformance.md");
    let all = format!("{} cases", ALL.len());
    assert!(text("CHANGELOG.md").contains(&all), "{all:?} is missing in CHANGELOG.md");
}

/// A runner plays it first: a proxy that fails it does not speak that protocol.
#[test]
fn every_protocol_has_one_basic_case() {
    let cases = built_in();
    for protocol in ["0", "1", "2", "actionloop"] {
        let basic: Vec<_> = cases.iter().filter(|case| case.basic && case.protocol == protocol).collect();
        assert!(matches!(basic[..], [case] if !case.action.is_empty()), "{protocol}: {basic:?}");
    }
}

#[test]
fn every_case_matches_the_schema() {
    let schema: Value = serde_json::from_str(&text("conformance/schema.json")).expect("the schema is JSON");
    for (name, text) in ALL {
        let case = serde_json::from_str(text).expect("a case is JSON");
        matches_schema(&schema, &schema, &case).unwrap_or_else(|reason| panic!("{name}: {reason}"));
    }
    // The schema also refuses wrong cases.
    for wrong in [
        json!({"title": "no steps", "protocol": "1"}),
        json!({"title": "", "protocol": "7", "steps": []}),
        json!({"title": "", "protocol": "1", "steps": [{"jump": "high"}]}),
        json!({"title": "", "protocol": "1", "steps": [{"run": {"expect": {"status": "fine"}}}]}),
        json!({"title": "", "protocol": "2", "steps": [{"run": {"stream": [{"piece": 1}]}}]}),
        json!({"title": "", "protocol": "2", "steps": [{"run": {"stream": [{"leave": false}]}}]}),
    ] {
        assert!(matches_schema(&schema, &schema, &wrong).is_err(), "{wrong}");
        assert!(Case::parse("wrong", &wrong.to_string()).is_err() || wrong["protocol"] == "7", "{wrong}");
    }
}

/// Whether a value matches this part of the schema. Knows only the keywords that the schema of the cases uses.
fn matches_schema(whole: &Value, schema: &Value, value: &Value) -> Result<(), String> {
    for (keyword, rule) in schema.as_object().expect("a schema is an object") {
        let holds = match keyword.as_str() {
            "$schema" | "title" | "description" | "$defs" => true,
            "$ref" => {
                let pointer =
                    rule.as_str().and_then(|text| text.strip_prefix('#')).expect("a reference within the schema");
                return matches_schema(whole, whole.pointer(pointer).expect("it is defined"), value);
            }
            "type" => match rule.as_str().expect("one type") {
                "object" => value.is_object(),
                "array" => value.is_array(),
                "string" => value.is_string(),
                "integer" => value.is_i64(),
                other => panic!("no such type: {other}"),
            },
            "enum" => rule.as_array().expect("a list").contains(value),
            "anyOf" => rule.as_array().expect("a list").iter().any(|rule| matches_schema(whole, rule, value).is_ok()),
            "required" => {
                rule.as_array().expect("a list").iter().all(|name| value.get(name.as_str().expect("a name")).is_some())
            }
            "minProperties" => {
                value.as_object().is_some_and(|object| object.len() as u64 >= rule.as_u64().unwrap_or(0))
            }
            "maxProperties" => {
                value.as_object().is_some_and(|object| object.len() as u64 <= rule.as_u64().unwrap_or(0))
            }
            "items" => {
                for item in value.as_array().into_iter().flatten() {
                    matches_schema(whole, rule, item)?;
                }
                true
            }
            "properties" => {
                for (name, rule) in rule.as_object().expect("an object") {
                    if let Some(member) = value.get(name) {
                        matches_schema(whole, rule, member).map_err(|reason| format!("{name}: {reason}"))?;
                    }
                }
                true
            }
            "additionalProperties" => {
                let known = |name: &String| schema["properties"].get(name).is_some();
                for (name, member) in value.as_object().into_iter().flatten().filter(|(name, _)| !known(name)) {
                    match rule {
                        Value::Bool(false) => return Err(format!("there is no `{name}`")),
                        rule => matches_schema(whole, rule, member).map_err(|reason| format!("{name}: {reason}"))?,
                    }
                }
                true
            }
            other => panic!("the schema uses the keyword `{other}`, which this test does not know"),
        };
        if !holds {
            return Err(format!("`{keyword}: {rule}` does not hold for {value}"));
        }
    }
    Ok(())
}

fn text(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

#[test]
fn the_command_prints_a_table_with_the_reason_of_each_failure() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let group = directory.path().join("mine");
    fs::create_dir(&group).expect("the directory can be written");
    let write =
        |name: &str, case: &Value| fs::write(group.join(name), case.to_string()).expect("the directory can be written");
    let action = json!(["write 1 {\"openwhisk\":1}", "loop", "read", "on hang wait never", "write 1 @line@"]);
    let case =
        |run: Value| json!({"title": "", "protocol": "1", "action": action, "steps": [{"init": {}}, {"run": run}]});
    write("right.json", &case(json!({"value": {"n": 1}, "expect": {"body": {"n": 1}}})));
    write("wrong.json", &case(json!({"value": {"n": 1}, "expect": {"body": {"n": 2}}})));
    write("hanging.json", &case(json!({"value": {"hang": 1}})));
    let cases = directory.path().to_str().expect("the path is UTF-8");
    let play = |more: &[&str]| {
        let mut args = vec!["conformance", "--cases", cases, "--timeout", "2s"];
        let proxy = pipeloop_command();
        args.extend(["--proxy", &proxy]);
        args.extend(more);
        pipeloop(&args, &[], "")
    };
    let output = play(&[]);
    output.check(1);
    for line in [
        "✓ mine/right ",
        "✗ mine/wrong    step 2, POST /run: expected `{\"n\":2}`, got 200 `{\"n\":1}`",
        "✗ mine/hanging  step 2, POST /run: hangs: no answer within 2s",
        "1 passed, 2 failed",
    ] {
        assert!(output.stdout.contains(line), "{line:?} is missing in:\n{}", output.stdout);
    }
    let output = play(&["mine/right", "--json"]);
    output.check(0);
    let document: Value = serde_json::from_str(&output.stdout).expect("it is JSON");
    assert_eq!(document["cases"][0]["status"], "passed");
    assert_eq!(document["summary"], json!({"passed": 1, "failed": 0, "not_run": 0}));
    play(&["mine/none"]).check(2).says(&["no case matches"]);
}

/// In both formats of a stream.
#[test]
fn unexpected_stream_items_are_reported() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let group = directory.path().join("mine");
    fs::create_dir(&group).expect("the directory can be written");
    let action = json!([
        "write 1 {\"openwhisk\":2}",
        "loop",
        "read",
        "write 1 {\"chunk\":1}",
        "on two write 1 {\"chunk\":2}",
        "on crash exit 7",
        "write 1 {\"result\":{}}"
    ]);
    let write = |name: &str, value: Value, accept: &str, stream: Value| {
        let run = json!({"run": {"value": value, "accept": accept, "stream": stream}});
        let case = json!({"title": "", "protocol": "2", "action": action, "steps": [{"init": {}}, run]});
        fs::write(group.join(format!("{name}.json")), case.to_string()).expect("the directory can be written");
    };
    let (events, lines) = ("text/event-stream", "application/x-ndjson");
    for (format, accept) in [("events", events), ("lines", lines)] {
        let name = |variant: &str| format!("{format}_{variant}");
        write(&name("right"), json!({}), accept, json!([{"chunk": 1}, {"raise": "seen"}, {"result": {}}]));
        write(&name("any"), json!({"two": 1}), accept, json!([{"any_chunks": true}, {"result": {}}]));
        write(&name("other"), json!({}), accept, json!([{"chunk": 2}, {"result": {}}]));
        write(&name("more"), json!({"two": 1}), accept, json!([{"chunk": 1}, {"result": {}}]));
        write(&name("less"), json!({}), accept, json!([{"chunk": 1}, {"result": {}}, {"result": {}}]));
        write(&name("open"), json!({"two": 1}), accept, json!([{"chunk": 1}]));
        write(&name("words"), json!({"crash": 1}), accept, json!([{"chunk": 1}, {"fails": ["status 8"]}]));
    }
    write("body", json!({}), "*/*", json!([{"result": {}}]));
    let cases = directory.path().to_str().expect("the path is UTF-8");
    let output = pipeloop(&["conformance", "--cases", cases, "--proxy", &pipeloop_command()], &[], "");
    output.check(1);
    for line in ["✓ mine/events_right ", "✓ mine/events_any ", "✓ mine/lines_right ", "✓ mine/lines_any "] {
        assert!(output.stdout.contains(line), "{line:?} is missing in:\n{}", output.stdout);
    }
    for format in ["events", "lines"] {
        for (name, reason) in [
            ("other", "expected `{\"chunk\":2}`, got `{\"chunk\":1}`"),
            ("more", "expected `{\"result\":{}}`, got `{\"chunk\":2}`"),
            ("less", "expected another item, got the end of the body"),
            ("open", "expected the end of the body, got `"),
            (
                "words",
                "expected an `error` whose sentence holds `status 8`, got `{\"error\":\"the action exited with status 7",
            ),
        ] {
            let name = format!("✗ mine/{format}_{name} ");
            let line = output.stdout.lines().find(|line| line.contains(&name));
            assert!(line.is_some_and(|line| line.contains(reason)), "{name}{reason} is missing in:\n{}", output.stdout);
        }
    }
    assert!(output.stdout.contains("expected a stream, got 200 with a whole body"), "{}", output.stdout);
}

/// A proxy that fails a protocol's basic case is not asked for the rest, and the table says so.
#[test]
fn an_unsupported_protocol_is_reported_once() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let group = directory.path().join("mine");
    fs::create_dir(&group).expect("the directory can be written");
    let case = |basic: bool, protocol: &str| {
        let mut case = json!({
            "title": "",
            "protocol": protocol,
            "action": ["write 1 {\"openwhisk\":3}", "loop", "read"],
            "steps": [{"init": {}}],
        });
        if basic {
            case["basic"] = json!(true);
        }
        case.to_string()
    };
    for (name, text) in [
        ("a_more", case(false, "2")),
        ("smallest", case(true, "2")),
        ("other", case(false, "1")),
        ("none", json!({"title": "", "protocol": "2", "steps": []}).to_string()),
    ] {
        fs::write(group.join(format!("{name}.json")), text).expect("the directory can be written");
    }
    let cases = directory.path().to_str().expect("the path is UTF-8");
    let play = |more: &[&str]| {
        let proxy = pipeloop_command();
        pipeloop(&[&["conformance", "--cases", cases, "--proxy", &proxy], more].concat(), &[], "")
    };
    let output = play(&[]);
    output.check(1);
    for line in [
        "✗ mine/smallest ",
        "– mine/a_more    not run: the proxy does not speak version 2, as mine/smallest shows",
        "✗ mine/other ",
        "✓ mine/none ",
        "1 passed, 2 failed, 1 not run",
    ] {
        assert!(output.stdout.contains(line), "{line:?} is missing in:\n{}", output.stdout);
    }
    // A case that is asked for by its name is played.
    let output = play(&["mine/a_more"]);
    assert!(output.stdout.contains("✗ mine/a_more "), "{}", output.stdout);
}

#[test]
fn a_running_proxy_plays_one_case_with_an_action() {
    let proxy = crate::support::Proxy::plain();
    let url = format!("http://127.0.0.1:{}", proxy.port());
    let words = ["proxy/", "v1/echo", "v1/array", "v1/never_answers"];
    let output = pipeloop(&[&["conformance", "--json", "--proxy", &url], &words[..]].concat(), &[], "");
    output.check(0);
    let document: Value = serde_json::from_str(&output.stdout).expect("it is JSON");
    let status = |name: &str| {
        let cases = document["cases"].as_array().expect("a list");
        let case = cases.iter().find(|case| case["name"] == name).unwrap_or_else(|| panic!("{name}"));
        (case["status"].as_str().expect("a word"), case["reason"].as_str().unwrap_or_default())
    };
    assert_eq!(status("proxy/unknown_path"), ("passed", ""));
    assert_eq!(status("v1/array"), ("passed", ""));
    assert_eq!(status("v1/echo").0, "not_run");
    assert!(status("v1/echo").1.contains("v1/array"), "{}", status("v1/echo").1);
    assert!(status("v1/never_answers").1.contains("the proxy's limits"), "{}", status("v1/never_answers").1);
}
