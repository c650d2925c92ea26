//! Nothing that an activation, a caller or a restart takes is kept.
//!
//! `cargo bench --bench soak` has the same for hours and under every fault at once.

use serde_json::json;

use crate::support::processes::{self, ResourceUsage, resource_usage};
use crate::support::{Proxy, compile, eventually};

/// Callers of every kind, and a death for each round.
fn round(proxy: &Proxy) {
    let mut kept = proxy.caller();
    for n in 0..50 {
        let value = json!({ "value": {"say": n.to_string()} }).to_string();
        assert_eq!(kept.call("POST", "/run", value.as_bytes()).status, 200);
    }
    assert_eq!(proxy.run(&json!({})).status, 200, "on a connection of its own");
    // Callers that leave: without a word, in the middle of a word, and before their answer.
    drop(proxy.caller());
    proxy.caller().send(b"POST /run HTTP/1.1\r\nHost: te").expect("half a head is sent");
    proxy.caller().send_request("POST", "/run", br#"{"value":{"sleep_ms":1}}"#);
    proxy.run(&json!({"exit": 3})).check_error(502, &["status 3"]);
}

#[test]
fn nothing_is_kept_of_thousands_of_activations_and_of_restarts() {
    const ROUNDS: usize = 60;
    /// What an allocator may keep for itself.
    const GROWTH_KIB: u64 = 2 * 1024;
    let folder = tempfile::tempdir().expect("a folder of its own");
    let action = compile("butler.c", folder.path());
    let mut proxy = Proxy::start(&[action], &[]);
    let settled = || {
        assert_eq!(proxy.run(&json!({})).status, 200);
        // Callers that left are noticed in a moment.
        eventually("its process is there", || {
            Some(processes::settled_usage(proxy.pid(), 50)).filter(|now| now.children == 1)
        })
    };
    (0..5).for_each(|_| round(&proxy));
    let before = settled();
    (0..ROUNDS).for_each(|_| round(&proxy));
    let ResourceUsage { descriptors, memory_kib, children, .. } = eventually("as many descriptors as before", || {
        Some(settled()).filter(|now| now.descriptors <= before.descriptors)
    });
    assert_eq!((descriptors, children), (before.descriptors, 1));
    assert!(memory_kib < before.memory_kib + GROWTH_KIB, "{memory_kib} KiB, and before {before:?}");
    proxy.stop();
}

#[test]
fn memory_of_large_messages_is_given_back_once_nobody_needs_it() {
    /// What may stay: pieces that small blocks stand in.
    const MAX_KEPT_KIB: u64 = 3 * 1024;
    let folder = tempfile::tempdir().expect("a folder of its own");
    let action = compile("butler.c", folder.path());
    let mut proxy = Proxy::start(&[action], &[]);
    assert_eq!(proxy.run(&json!({})).status, 200);
    let before = resource_usage(proxy.pid());
    // Sizes that an allocator cannot simply use again, on connections that stay, with small messages between.
    let mut kept: Vec<_> = (0..2).map(|_| proxy.caller()).collect();
    for mebibytes in [1, 3, 6, 8, 2, 5, 1] {
        for caller in &mut kept {
            let text = "x".repeat(mebibytes << 20);
            let body = json!({ "value": {"echo": text} }).to_string();
            let response = caller.call("POST", "/run", body.as_bytes());
            assert_eq!((response.status, response.json()), (200, json!({ "echo": text })));
            assert_eq!(caller.call("POST", "/run", br#"{"value":{}}"#).status, 200);
        }
    }
    let ResourceUsage { peak_kib, .. } = eventually("memory is given back", || {
        Some(resource_usage(proxy.pid())).filter(|now| now.memory_kib < before.memory_kib + MAX_KEPT_KIB)
    });
    assert!(peak_kib > before.memory_kib + 8 * 1024, "it was needed: {peak_kib} KiB");
    drop(kept);
    proxy.stop();
}
