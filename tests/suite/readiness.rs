//! When an action counts as ready: lines that are nearly a handshake, the acknowledgement, and programs that cannot be
//! seen waiting.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::{Proxy, pipeloop_in};

/// An init that must fail well before its limit of 30 s, with these texts.
#[track_caller]
fn check_refused_at_once(args: &[&str], env: &[(&str, &str)], code: &str, texts: &[&str]) {
    let proxy = Proxy::start(args, env);
    let begun = Instant::now();
    proxy.init(code).check_error(502, texts);
    assert!(begun.elapsed() < Duration::from_secs(15), "at once: {:?}", begun.elapsed());
    assert!(proxy.actions().is_empty(), "it is stopped");
}

/// A shell script that prints this, as `printf` understands it, and then answers lines on stdout.
fn prints(text: &str) -> String {
    format!("#!/bin/bash\nprintf '{text}'\nwhile read -r line; do echo \"$line\"; done\n")
}

/// Lines that are nearly a handshake, as `printf` prints them, and what is said about them.
const NEARLY: [(&str, &str); 12] = [
    (r"{\047openwhisk\047: 1}\n", "it is not JSON"),
    (r"{openwhisk:1}\n", "it is not JSON"),
    (r#"\357\273\277{"openwhisk":1}\n"#, "byte-order mark"),
    (r#"\377\376{\0"\0o\0p\0e\0n\0w\0h\0i\0s\0k\0"\0:\0001\0}\0\n\0"#, "UTF-16"),
    (r#"Loading... {"openwhisk":1}\n"#, "other text is before it"),
    (r#"{"openwhisk":1} ready\n"#, "other text is after it"),
    (r#""{\\"openwhisk\\":1}"\n"#, "quotes"),
    (r#"{"OpenWhisk":1}\n"#, "lower case"),
    (r#"{\n  "openwhisk": 1\n}\n"#, "only a part"),
    (r#"{"openwhisk":1}"#, "the newline at its end is missing"),
    (r#"{"openwhisk":1}\r"#, "the newline at its end is missing"),
    (r#"some log\n{"openwhisk":1}"#, "the newline at its end is missing"),
];

#[test]
fn a_line_that_is_nearly_a_handshake_is_named_with_the_right_one() {
    for (text, fault) in NEARLY {
        let expected = [fault, "expected `{\"openwhisk\":1}`, got `"];
        check_refused_at_once(&[], &[], &prints(text), &expected);
        if !text.starts_with("some log") && !text.starts_with(r"{\n") {
            check_refused_at_once(&["--protocol", "1"], &[], &prints(text), &expected);
        }
        // The exit is still told first.
        let exits = format!("#!/bin/bash\nprintf '{text}'\nexit 3\n");
        let proxy = Proxy::plain();
        proxy.init(&exits).check_error(502, &["exited with status 3", expected[0], expected[1]]);
    }
    let version_2 = prints(r"{\047openwhisk\047: 2}\n");
    check_refused_at_once(&[], &[], &version_2, &["expected `{\"openwhisk\":2}`, got `{'openwhisk': 2}`"]);
}

#[test]
fn white_space_before_a_handshake_is_fine() {
    for protocol in ["auto", "1"] {
        for text in [r#"  {"openwhisk":1}\n"#, r#"\t{"openwhisk":1} \r\n"#, r#"\n\n {"openwhisk":1}\n"#] {
            let proxy = Proxy::with_protocol(protocol);
            proxy.init(&prints(text)).check(200, &json!({"ok": true}));
            proxy.run(&json!({"a": 1})).check(200, &json!({"a": 1}));
            assert_eq!(proxy.check_streams(1).stdout, "");
        }
    }
}

#[test]
fn log_lines_about_a_handshake_are_log_lines() {
    let text = r#"openwhisk\n{"log":{"openwhisk":1}}\nsent {\047openwhisk\047: 1}\n{"openwhisk":1}\n"#;
    let proxy = Proxy::plain();
    proxy.init(&prints(text)).check(200, &json!({"ok": true}));
    proxy.run(&json!({"a": 1})).check(200, &json!({"a": 1}));
    let log = "openwhisk\n{\"log\":{\"openwhisk\":1}}\nsent {'openwhisk': 1}\n";
    assert_eq!(proxy.check_streams(1).stdout, log);
}

#[test]
fn a_handshake_that_is_not_flushed_or_on_stderr_is_named() {
    let unflushed =
        "#!/usr/bin/env python3\nimport sys\nprint('{\"openwhisk\":1}')\nfor line in sys.stdin:\n    print(line)\n";
    let stderr = "#!/bin/bash\necho '{\"openwhisk\":1}' >&2\nwhile read -r line; do echo \"$line\"; done\n";
    for (code, fault) in [(unflushed, "only after the end of its input"), (stderr, "it came on stderr")] {
        let proxy = Proxy::start(&["--protocol", "1", "--init-timeout", "1s"], &[]);
        proxy.init(code).check_error(502, &[fault, "expected `{\"openwhisk\":1}`, got `{\"openwhisk\":1}`"]);
    }
}

#[test]
fn a_check_never_misses_a_handshake_that_it_quotes() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("action");
    for protocol in ["auto", "1"] {
        for (text, _) in NEARLY {
            fs::write(&path, prints(text)).expect("the directory is writable");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("its mode can be set");
            let args = ["check", "--protocol", protocol, "--timeout", "1s", "action"];
            let ended = pipeloop_in(directory.path(), &args, &[], "");
            assert!(!ended.stdout.contains("not sent a handshake"), "{text}: {}", ended.stdout);
            assert!(ended.stdout.contains("{\"openwhisk\":1}"), "{text}: {}", ended.stdout);
            assert!(ended.stdout.contains("✗ protocol"), "{text}: {}", ended.stdout);
        }
    }
}

// The acknowledgement.

const ACK: &[(&str, &str)] = &[("OW_WAIT_FOR_ACK", "1")];

#[test]
fn with_auto_anything_but_an_acknowledgement_or_a_handshake_is_an_error_at_once() {
    for line in ["{\"ok\":false}", "{}", "ready", "[]", "{\"ok\":\"true\"}"] {
        let texts = ["descriptor 3", "acknowledgement", "expected `{\"ok\":true}`", line];
        // It lives on, it waits for its input, or its line has no end.
        for rest in ["sleep 600", "while read -r line; do :; done"] {
            let code = format!("#!/bin/bash\necho loading\nprintf '%s\\n' '{line}' >&3\n{rest}\n");
            check_refused_at_once(&[], ACK, &code, &texts);
        }
        let code = format!("#!/bin/bash\nprintf '%s' '{line}' >&3\nwhile read -r line; do :; done\n");
        check_refused_at_once(&[], ACK, &code, &texts);
    }
    let code = "#!/bin/bash\nprintf '%s' '{\"ok\":true}' >&3\nwhile read -r line; do :; done\n";
    check_refused_at_once(
        &[],
        ACK,
        code,
        &["the acknowledgement of the action is malformed", "the newline at its end is missing"],
    );
    check_refused_at_once(&["--protocol", "actionloop"], ACK, code, &["the newline at its end is missing"]);
    let code = "#!/bin/bash\nhead -c 100000 /dev/zero | tr '\\0' x >&3\nsleep 600\n";
    check_refused_at_once(&[], ACK, code, &["is not its acknowledgement", "`xxxx"]);
}

#[test]
fn with_auto_an_acknowledgement_or_a_handshake_is_still_accepted() {
    for (line, fd, wants) in [
        ("{\"ok\":true}", 3, json!({"value": {"a": 1}, "activation_id": "test"})),
        ("{\"openwhisk\":1}", 3, json!({"a": 1})),
        ("{\"openwhisk\":1}", 1, json!({"a": 1})),
    ] {
        let code = format!(
            "#!/bin/bash\necho loading >&2\necho '{line}' >&{fd}\nwhile read -r line; do echo \"$line\" >&{fd}; done\n"
        );
        let proxy = Proxy::start::<&str>(&[], ACK);
        proxy.init(&code).check(200, &json!({"ok": true}));
        proxy.run(&json!({"a": 1})).check(200, &wants);
    }
}

#[test]
fn an_exit_before_the_acknowledgement_says_so() {
    for args in [&[][..], &["--protocol", "actionloop"]] {
        let proxy = Proxy::start(args, ACK);
        let code = "#!/bin/bash\necho a log line\necho oops >&2\nexit 3\n";
        let texts = ["exited with status 3", "not sent its acknowledgement `{\"ok\":true}`", "oops"];
        proxy.init(code).check_error(502, &texts);
        let code = "#!/bin/bash\nprintf '{\"ok\":true}' >&3\nexit 3\n";
        proxy.init(code).check_error(502, &["exited with status 3", "the newline at its end is missing"]);
    }
}

// Programs that cannot be seen waiting, or only in another way.

/// An actionloop program without a handshake or acknowledgement: it must become ready, and answer.
#[track_caller]
fn check_becomes_ready(binary: &[u8]) {
    let proxy = Proxy::start(&["--init-timeout", "10s"], &[]);
    let begun = Instant::now();
    proxy.init_binary(binary).check(200, &json!({"ok": true}));
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    for _ in 0..3 {
        proxy.run(&json!({})).check(200, &json!({"got": 1}));
    }
    proxy.check_streams(3);
}

fn compiled(source: &str, flags: &[&str]) -> Vec<u8> {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let (source_path, program) = (directory.path().join("main.c"), directory.path().join("program"));
    fs::write(&source_path, source).expect("the directory is writable");
    testkit::command::compile_c(flags, &program, &[&source_path]).expect("a C compiler");
    fs::read(program).expect("it was compiled")
}

/// A 32-bit program without a library: `WAIT` is what it does before each read.
#[cfg(target_arch = "x86_64")]
const I386: &str = r#"
static int call(int n, int a, int b, int c, int d, int e) {
    int r;
    __asm__ volatile("int $0x80" : "=a"(r) : "a"(n), "b"(a), "c"(b), "d"(c), "S"(d), "D"(e) : "memory");
    return r;
}
static char line[65536];
void _start(void) {
    for (;;) {
        struct { int fd; short events, revents; } poll = { 0, 1, 0 };
        unsigned set[32] = { 1 };
        (void)poll; (void)set;
        WAIT;
        if (call(3, 0, (int)line, sizeof line, 0, 0) <= 0) call(1, 0, 0, 0, 0, 0);
        call(4, 3, (int)"{\"got\":1}\n", 10, 0, 0);
    }
}
"#;

#[cfg(target_arch = "x86_64")]
#[test]
fn a_32_bit_program_becomes_ready() {
    let flags = ["-m32", "-static", "-nostdlib", "-ffreestanding", "-fno-pic", "-no-pie", "-fno-stack-protector"];
    // read, poll, _newselect.
    for wait in ["", "call(168, (int)&poll, 1, -1, 0, 0)", "call(142, 1, (int)set, 0, 0, 0)"] {
        let flags: Vec<_> = flags.into_iter().map(str::to_owned).chain([format!("-DWAIT={wait}")]).collect();
        let flags: Vec<_> = flags.iter().map(String::as_str).collect();
        check_becomes_ready(&compiled(I386, &flags));
    }
}

#[cfg(target_arch = "x86_64")]
#[test]
fn a_32_bit_program_that_does_not_wait_for_its_input_is_not_ready() {
    let flags = ["-m32", "-static", "-nostdlib", "-ffreestanding", "-fno-pic", "-no-pie", "-fno-stack-protector"];
    // pause().
    let binary = compiled(I386, &[&flags[..], &["-DWAIT=call(29, 0, 0, 0, 0, 0)"]].concat());
    let proxy = Proxy::start(&["--init-timeout", "700ms"], &[]);
    proxy.init_binary(&binary).check_error(502, &["was not ready within"]);
}

#[test]
fn a_program_that_reads_in_another_way_becomes_ready() {
    let answer = "if (n <= 0) return 0; dprintf(3, \"{\\\"got\\\":1}\\n\");";
    let splices = format!(
        "#define _GNU_SOURCE\n#include <fcntl.h>\n#include <stdio.h>\n#include <unistd.h>\n\
         int main(void) {{ int pipes[2]; static char line[65536]; if (pipe(pipes)) return 9;\n\
         for (;;) {{ long n = splice(0, 0, pipes[1], 0, sizeof line, 0); if (n > 0) n = read(pipes[0], line, n); {answer} }} }}\n"
    );
    let sleeps = |sleep: &str| {
        format!(
            "#define _GNU_SOURCE\n#include <errno.h>\n#include <fcntl.h>\n#include <poll.h>\n#include <stdio.h>\n\
             #include <sys/select.h>\n#include <unistd.h>\n\
             int main(void) {{ static char line[65536]; fcntl(0, F_SETFL, O_NONBLOCK);\n\
             for (;;) {{ long n = read(0, line, sizeof line); if (n < 0 && errno == EAGAIN) {{ {sleep}; continue; }} {answer} }} }}\n"
        )
    };
    let selects = sleeps("struct timeval t = {0, 10000}; select(0, 0, 0, 0, &t)");
    for source in [splices, sleeps("usleep(10000)"), sleeps("poll(0, 0, 10)"), selects] {
        check_becomes_ready(&compiled(&source, &[]));
    }
}

/// Reads its stdin through an `io_uring`, and waits for that in the ring or in an epoll set that holds it.
const IO_URING: &str = r#"
#define _GNU_SOURCE
#include <linux/io_uring.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
static char line[65536];
int main(void) {
    struct io_uring_params p;
    memset(&p, 0, sizeof p);
    int ring = syscall(SYS_io_uring_setup, 4, &p);
    if (ring < 0) { perror("io_uring_setup"); return 9; }
    char *sq = mmap(0, p.sq_off.array + p.sq_entries * 4, 3, MAP_SHARED | MAP_POPULATE, ring, IORING_OFF_SQ_RING);
    char *cq = mmap(0, p.cq_off.cqes + p.cq_entries * sizeof(struct io_uring_cqe), 3, MAP_SHARED | MAP_POPULATE, ring,
                    IORING_OFF_CQ_RING);
    struct io_uring_sqe *entries = mmap(0, p.sq_entries * sizeof *entries, 3, MAP_SHARED | MAP_POPULATE, ring,
                                        IORING_OFF_SQES);
    int set = epoll_create1(0);
    struct epoll_event event = { .events = EPOLLIN };
    epoll_ctl(set, EPOLL_CTL_ADD, ring, &event);
    for (;;) {
        unsigned *tail = (unsigned *)(sq + p.sq_off.tail), at = *tail & *(unsigned *)(sq + p.sq_off.ring_mask);
        struct io_uring_sqe *entry = &entries[at];
        memset(entry, 0, sizeof *entry);
        entry->opcode = IORING_OP_READ;
        entry->addr = (unsigned long)line;
        entry->len = sizeof line;
        entry->off = -1;
        ((unsigned *)(sq + p.sq_off.array))[at] = at;
        __atomic_store_n(tail, *tail + 1, __ATOMIC_RELEASE);
        if (syscall(SYS_io_uring_enter, ring, 1, EPOLL ? 0 : 1, EPOLL ? 0 : IORING_ENTER_GETEVENTS, 0, 0) < 0) return 8;
        if (EPOLL) epoll_wait(set, &event, 1, -1);
        unsigned *head = (unsigned *)(cq + p.cq_off.head);
        struct io_uring_cqe *done = (void *)(cq + p.cq_off.cqes);
        int n = done[*head & *(unsigned *)(cq + p.cq_off.ring_mask)].res;
        __atomic_store_n(head, *head + 1, __ATOMIC_RELEASE);
        if (n <= 0) return 0;
        dprintf(3, "{\"got\":1}\n");
    }
}
"#;

#[test]
fn a_program_that_waits_in_an_io_uring_becomes_ready() {
    for epoll in ["-DEPOLL=0", "-DEPOLL=1"] {
        let binary = compiled(IO_URING, &[epoll]);
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("program");
        fs::write(&path, &binary).expect("the directory is writable");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("its mode can be set");
        // Many containers forbid io_uring.
        let tried = std::process::Command::new(&path).stdin(std::process::Stdio::null()).status().expect("it starts");
        if tried.code() == Some(9) {
            return;
        }
        check_becomes_ready(&binary);
    }
}

#[test]
fn a_program_that_sleeps_before_it_reads_is_not_ready_before() {
    let proxy = Proxy::start(&["--init-timeout", "700ms"], &[]);
    let code = "#!/usr/bin/env python3\nimport sys, time\ntime.sleep(600)\n";
    proxy.init(code).check_error(502, &["was not ready within"]);
}
