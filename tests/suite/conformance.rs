//! The protocol's cases (`conformance/`), against our own proxy, and the command that plays them.

use std::fs;
use std::time::Duration;

use ::conformance::case::{ALL, Case, built_in, read};
use ::conformance::{Target, Verdict, play};
use serde_json::{Value, json};

use crate::support::{pipeloop, root};

/// Generous: nothing here is to be fast.
const LIMIT: Duration = Duration::from_secs(30);

fn own_proxy() -> String {
    format!("{} serve --host 127.0.0.1 --port 0 --port-file {{port_file}}", env!("CARGO_BIN_EXE_pipeloop"))
}

/// Plays every case of a group. All that fail are told.
#[track_caller]
fn check_group(group: &str) {
    let target = Target::parse(&own_proxy(), None).expect("it is told its port");
    let cases: Vec<_> = built_in().into_iter().filter(|case| case.name.starts_with(group)).collect();
    assert!(!cases.is_empty(), "there are cases in {group}");
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
fn the_proxy_alone() {
    check_group("proxy/");
}

#[test]
fn version_0() {
    check_group("v0/");
}

#[test]
fn version_1() {
    check_group("v1/");
}

#[test]
fn version_2() {
    check_group("v2/");
}

#[test]
fn the_actionloop_dialect() {
    check_group("actionloop/");
}

#[test]
fn detection() {
    check_group("auto/");
}

#[test]
fn the_program_has_every_case_of_the_folder() {
    let folder = read(&root().join("conformance/cases")).expect("every case can be read");
    let folder: Vec<_> = folder.iter().map(|case| case.name.as_str()).collect();
    let built_in: Vec<_> = ALL.iter().map(|(name, _)| *name).collect();
    assert_eq!(built_in, folder, "conformance/src/list.rs against conformance/cases");
}

#[test]
fn every_fault_of_the_field_has_a_case() {
    let cases = built_in();
    for number in 1..=12 {
        let fault = format!("P{number}");
        assert!(cases.iter().any(|case| case.field.contains(&fault)), "{fault} has no case");
    }
}

#[test]
fn the_documentation_counts_the_cases() {
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

/// A runner tries it first: whoever fails it does not speak that.
#[test]
fn every_protocol_has_one_smallest_case() {
    let cases = built_in();
    for protocol in ["0", "1", "2", "actionloop"] {
        let basic: Vec<_> = cases.iter().filter(|case| case.basic && case.protocol == protocol).collect();
        assert!(matches!(basic[..], [case] if !case.action.is_empty()), "{protocol}: {basic:?}");
    }
}

#[test]
fn every_case_is_as_the_schema_says() {
    let schema: Value = serde_json::from_str(&text("conformance/schema.json")).expect("the schema is JSON");
    for (name, text) in ALL {
        let case = serde_json::from_str(text).expect("a case is JSON");
        fits(&schema, &schema, &case).unwrap_or_else(|reason| panic!("{name}: {reason}"));
    }
    // The schema refuses something, too.
    for wrong in [
        json!({"title": "no steps", "protocol": "1"}),
        json!({"title": "", "protocol": "7", "steps": []}),
        json!({"title": "", "protocol": "1", "steps": [{"jump": "high"}]}),
        json!({"title": "", "protocol": "1", "steps": [{"run": {"expect": {"status": "fine"}}}]}),
        json!({"title": "", "protocol": "2", "steps": [{"run": {"stream": [{"piece": 1}]}}]}),
        json!({"title": "", "protocol": "2", "steps": [{"run": {"stream": [{"leave": false}]}}]}),
    ] {
        assert!(fits(&schema, &schema, &wrong).is_err(), "{wrong}");
        assert!(Case::parse("wrong", &wrong.to_string()).is_err() || wrong["protocol"] == "7", "{wrong}");
    }
}

/// Whether a value is as this part of the schema says. Knows the words that ours uses, and no other.
fn fits(whole: &Value, schema: &Value, value: &Value) -> Result<(), String> {
    for (word, rule) in schema.as_object().expect("a schema is an object") {
        let holds = match word.as_str() {
            "$schema" | "title" | "description" | "$defs" => true,
            "$ref" => {
                let pointer = rule.as_str().and_then(|text| text.strip_prefix('#')).expect("a reference to ourselves");
                return fits(whole, whole.pointer(pointer).expect("it is defined"), value);
            }
            "type" => match rule.as_str().expect("one type") {
                "object" => value.is_object(),
                "array" => value.is_array(),
                "string" => value.is_string(),
                "integer" => value.is_i64(),
                other => panic!("no such type: {other}"),
            },
            "enum" => rule.as_array().expect("a list").contains(value),
            "anyOf" => rule.as_array().expect("a list").iter().any(|rule| fits(whole, rule, value).is_ok()),
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
                    fits(whole, rule, item)?;
                }
                true
            }
            "properties" => {
                for (name, rule) in rule.as_object().expect("an object") {
                    if let Some(member) = value.get(name) {
                        fits(whole, rule, member).map_err(|reason| format!("{name}: {reason}"))?;
                    }
                }
                true
            }
            "additionalProperties" => {
                let known = |name: &String| schema["properties"].get(name).is_some();
                for (name, member) in value.as_object().into_iter().flatten().filter(|(name, _)| !known(name)) {
                    match rule {
                        Value::Bool(false) => return Err(format!("there is no `{name}`")),
                        rule => fits(whole, rule, member).map_err(|reason| format!("{name}: {reason}"))?,
                    }
                }
                true
            }
            other => panic!("the schema uses `{other}`, which this test does not know"),
        };
        if !holds {
            return Err(format!("`{word}: {rule}` does not hold for {value}"));
        }
    }
    Ok(())
}

fn text(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

#[test]
fn the_command_prints_a_table_and_tells_what_fails() {
    let folder = tempfile::tempdir().expect("a folder of its own");
    let group = folder.path().join("mine");
    fs::create_dir(&group).expect("the folder is ours");
    let write = |name: &str, case: &Value| fs::write(group.join(name), case.to_string()).expect("the folder is ours");
    let action = json!(["write 1 {\"openwhisk\":1}", "loop", "read", "on hang wait never", "write 1 @line@"]);
    let case =
        |run: Value| json!({"title": "", "protocol": "1", "action": action, "steps": [{"init": {}}, {"run": run}]});
    write("right.json", &case(json!({"value": {"n": 1}, "expect": {"body": {"n": 1}}})));
    write("wrong.json", &case(json!({"value": {"n": 1}, "expect": {"body": {"n": 2}}})));
    write("hanging.json", &case(json!({"value": {"hang": 1}})));
    let cases = folder.path().to_str().expect("a plain name");
    let played = |more: &[&str]| {
        let mut args = vec!["conformance", "--cases", cases, "--timeout", "2s"];
        let proxy = own_proxy();
        args.extend(["--proxy", &proxy]);
        args.extend(more);
        pipeloop(&args, &[], "")
    };
    let output = played(&[]);
    output.check(1);
    for line in [
        "✓ mine/right ",
        "✗ mine/wrong    step 2, POST /run: expected `{\"n\":2}`, got 200 `{\"n\":1}`",
        "✗ mine/hanging  step 2, POST /run: hangs: no answer within 2s",
        "1 passed, 2 failed",
    ] {
        assert!(output.stdout.contains(line), "{line:?} in:\n{}", output.stdout);
    }
    let output = played(&["mine/right", "--json"]);
    output.check(0);
    let document: Value = serde_json::from_str(&output.stdout).expect("it is JSON");
    assert_eq!(document["cases"][0]["status"], "passed");
    assert_eq!(document["summary"], json!({"passed": 1, "failed": 0, "not_run": 0}));
    played(&["mine/none"]).check(2).says(&["no case matches"]);
}

/// A caller that looks at streams sees what is wrong with one.
#[test]
fn pieces_that_are_not_as_expected_are_told() {
    let folder = tempfile::tempdir().expect("a folder of its own");
    let group = folder.path().join("mine");
    fs::create_dir(&group).expect("the folder is ours");
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
        fs::write(group.join(format!("{name}.json")), case.to_string()).expect("the folder is ours");
    };
    let (events, lines) = ("text/event-stream", "application/x-ndjson");
    for (name, accept) in [("events", events), ("lines", lines)] {
        let to = |what: &str| format!("{name}_{what}");
        write(&to("right"), json!({}), accept, json!([{"chunk": 1}, {"raise": "seen"}, {"result": {}}]));
        write(&to("any"), json!({"two": 1}), accept, json!([{"any_chunks": true}, {"result": {}}]));
        write(&to("other"), json!({}), accept, json!([{"chunk": 2}, {"result": {}}]));
        write(&to("more"), json!({"two": 1}), accept, json!([{"chunk": 1}, {"result": {}}]));
        write(&to("less"), json!({}), accept, json!([{"chunk": 1}, {"result": {}}, {"result": {}}]));
        write(&to("open"), json!({"two": 1}), accept, json!([{"chunk": 1}]));
        write(&to("words"), json!({"crash": 1}), accept, json!([{"chunk": 1}, {"fails": ["8"]}]));
    }
    write("body", json!({}), "*/*", json!([{"result": {}}]));
    let cases = folder.path().to_str().expect("a plain name");
    let output = pipeloop(&["conformance", "--cases", cases, "--proxy", &own_proxy()], &[], "");
    output.check(1);
    for line in ["✓ mine/events_right ", "✓ mine/events_any ", "✓ mine/lines_right ", "✓ mine/lines_any "] {
        assert!(output.stdout.contains(line), "{line:?} in:\n{}", output.stdout);
    }
    for format in ["events", "lines"] {
        for (name, reason) in [
            ("other", "expected `{\"chunk\":2}`, got `{\"chunk\":1}`"),
            ("more", "expected `{\"result\":{}}`, got `{\"chunk\":2}`"),
            ("less", "expected another item, got the end of the body"),
            ("open", "expected the end of the body, got `"),
            (
                "words",
                "expected an `error` whose sentence holds `8`, got `{\"error\":\"the action exited with status 7",
            ),
        ] {
            let name = format!("✗ mine/{format}_{name} ");
            let line = output.stdout.lines().find(|line| line.contains(&name));
            assert!(line.is_some_and(|line| line.contains(reason)), "{name}{reason} in:\n{}", output.stdout);
        }
    }
    assert!(output.stdout.contains("expected a stream, got 200 with a whole body"), "{}", output.stdout);
}

/// Whoever cannot do the smallest is not asked for the rest, and the table says so.
#[test]
fn a_protocol_that_is_not_spoken_is_told_once() {
    let folder = tempfile::tempdir().expect("a folder of its own");
    let group = folder.path().join("mine");
    fs::create_dir(&group).expect("the folder is ours");
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
        fs::write(group.join(format!("{name}.json")), text).expect("the folder is ours");
    }
    let cases = folder.path().to_str().expect("a plain name");
    let played = |more: &[&str]| {
        let proxy = own_proxy();
        pipeloop(&[&["conformance", "--cases", cases, "--proxy", &proxy], more].concat(), &[], "")
    };
    let output = played(&[]);
    output.check(1);
    for line in [
        "✗ mine/smallest ",
        "– mine/a_more    not run: the proxy does not speak version 2, as mine/smallest shows",
        "✗ mine/other ",
        "✓ mine/none ",
        "1 passed, 2 failed, 1 not run",
    ] {
        assert!(output.stdout.contains(line), "{line:?} in:\n{}", output.stdout);
    }
    // By its name it is played.
    let output = played(&["mine/a_more"]);
    assert!(output.stdout.contains("✗ mine/a_more "), "{}", output.stdout);
}

#[test]
fn a_proxy_that_runs_takes_one_case_with_an_action() {
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
