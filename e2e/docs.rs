//! Builds the Dockerfiles of `docs/containers.md` and runs its commands.

use std::fs;

use serde_json::json;

use crate::engine::Container;
use crate::images::{self, root};

/// The fenced blocks of a language.
fn blocks(language: &str) -> Vec<String> {
    let text = fs::read_to_string(root().join("docs/containers.md")).expect("the document can be read");
    let fence = format!("```{language}\n");
    text.split(&fence).skip(1).map(|rest| rest.split("```").next().expect("a first part").to_owned()).collect()
}

/// Builds every Dockerfile, under the image name that the commands use.
fn build_images() {
    images::debian_base();
    let script = fs::read(root().join("tests/actions/counter.sh")).expect("the action can be read");
    let files = [("my-static-action", images::all_purpose_code()), ("my-script.sh", &script)];
    let dockerfiles = blocks("dockerfile");
    assert_eq!(dockerfiles.len(), 4, "the document has one Dockerfile for each kind of image");
    for dockerfile in dockerfiles {
        let name = match &dockerfile {
            text if text.contains("my-static-action") => "my-static-action",
            text if text.contains("my-script.sh") => "my-script",
            text if text.contains("sed") => "my-command",
            _ => "my-runtime",
        };
        images::build(name, &dockerfile, &files);
    }
}

#[test]
fn every_documented_image_runs_with_and_without_its_options() {
    build_images();
    let commands = blocks("sh");
    assert_eq!(commands.len(), 3, "the document has one command for each image");
    for command in commands {
        let words: Vec<_> = command.split_whitespace().collect();
        let ["docker", "run", "-d", "-p", "8080:8080", options @ .., image] = &words[..] else {
            panic!("an unexpected command: {command}");
        };
        for options in [options, &[]] {
            let container = Container::serving(image, options, &[]);
            if *image == "my-runtime" {
                container.init(images::all_purpose_code()).check(200, &json!({"ok": true}));
            }
            let response = container.run(&json!({"say": "hello"}));
            assert_eq!(response.status, 200, "{}", response.text());
            container.check_sentinels(1);
            container.docker(&["stop"]);
            assert_eq!(container.wait(), "0");
        }
    }
    // A command line, with a terminal of its own, and the proxy as PID 1.
    let container = Container::serving("my-command", &["--read-only", "--cap-drop", "ALL"], &[]);
    for name in ["Mike", "Ann"] {
        container.run(&json!({"name": name})).check(200, &json!({"hello": name}));
    }
    container.check_sentinels(2);
    container.docker(&["stop"]);
    assert_eq!(container.wait(), "0");
}
