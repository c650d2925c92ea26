//! An action that is part of the image and is named on the command line of `serve`.

use serde_json::json;

use crate::support::{Proxy, action_path};

fn proxy() -> Proxy {
    let action = action_path("prints_env");
    Proxy::start(&[action.as_os_str()], &[])
}

#[test]
fn an_action_in_the_image_runs_without_init() {
    proxy().run(&json!({})).check(200, &json!({"GREETING": ""}));
}

#[test]
fn init_without_code_is_accepted_once_and_sets_env() {
    let mut proxy = proxy();
    proxy.run(&json!({})).check(200, &json!({"GREETING": ""}));
    let init = json!({"name": "image", "main": "main", "binary": false, "env": {"GREETING": "hello"}});
    proxy.init_value(&init).check(200, &json!({"ok": true}));
    proxy.run(&json!({})).check(200, &json!({"GREETING": "hello"}));
    proxy.init_value(&init).check(403, &json!({"error": "Cannot initialize the action more than once."}));
    proxy.check_streams(2);
    proxy.stop();
}

#[test]
fn init_with_code_does_not_replace_an_action_in_the_image() {
    let proxy = proxy();
    proxy.init("#!/bin/sh\n").check(403, &json!({"error": "Cannot initialize the action more than once."}));
    proxy.run(&json!({})).check(200, &json!({"GREETING": ""}));
}
