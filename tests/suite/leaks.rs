//! Activations, callers and restarts leak no memory, descriptors or processes.
//!
//! `cargo bench --bench soak` tests the same for hours and under every fault at once.

use serde_json::json;

use crate::support::processes::{self, ResourceUsage, resource_usage};
use crate::support::{Proxy, compile, eventually};

/// Callers of every kind, and one crash.
fn round(proxy: &Proxy) {
    let mut kept = proxy.caller();
    for n in 0..50 {
        let value = json!({ "value": {"say": n.to_string()} }).to_string();
        assert_eq!(kept.call("POST", "/run", value.as_bytes()).status, 200);
    }
    assert_eq!(proxy.run(&json!({})).status, 200, "on a connection of its own");
    // Callers that leave: without a request, in the middle of a request, and before their answer.
    drop(proxy.caller());
    proxy.caller().send(b"POST /run HTTP/1.1\r\nHost: te").expect("half a head is sent");
    proxy.caller().send_request("POST", "/run", br#"{"value":{"sleep_ms":1}}"#);
    proxy.run(&json!({"exit": 3})).check_error(502, &["status 3"]);
}

#[test]
fn activations_and_restarts_leak_nothing() {
    const ROUNDS: usize = 60;
    /// The memory an allocator may keep.
    const GROWTH_KIB: u64 = 2 * 1024;
    let directory = tempfile::tempdir().expect("a temporary directory");
    let action = compile("all_purpose.c", directory.path());
    let mut proxy = Proxy::start(&[action], &[]);
    let settled = || {
        assert_eq!(proxy.run(&json!({})).status, 200);
        // The proxy needs a moment to notice that callers left.
        eventually("the process of the action is alive", || {
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
    assert!(memory_kib < before.memory_kib + GROWTH_KIB, "{memory_kib} KiB, before: {before:?}");
    proxy.stop();
}

#[test]
fn memory_of_large_messages_is_returned_to_the_system() {
    /// The memory that may stay: pages that hold small blocks.
    const MAX_KEPT_KIB: u64 = 3 * 1024;
    let directory = tempfile::tempdir().expect("a temporary directory");
    let action = compile("all_purpose.c", directory.path());
    let mut proxy = Proxy::start(&[action], &[]);
    assert_eq!(proxy.run(&json!({})).status, 200);
    let before = resource_usage(proxy.pid());
    // Sizes an allocator cannot simply reuse, on kept connections, with small messages between them.
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
    let ResourceUsage { peak_kib, .. } = eventually("memory is returned", || {
        Some(resource_usage(proxy.pid())).filter(|now| now.memory_kib < before.memory_kib + MAX_KEPT_KIB)
    });
    assert!(peak_kib > before.memory_kib + 8 * 1024, "large messages used it: {peak_kib} KiB");
    drop(kept);
    proxy.stop();
}
