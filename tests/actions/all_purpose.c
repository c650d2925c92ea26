/* Does what its arguments ask, one line at a time, in an image that holds nothing else: logs, forks, uses memory
 * and sleeps. Version 1 with its results on descriptor 3, so that both stdout and stderr are its log.
 *
 * {"say":"text"}     logs the text on both streams
 * {"echo":"text"}    answers with the text
 * {"orphans":N}      leaves N processes without a parent, and answers how many of them init has adopted
 * {"eat_mib":N}      allocates and touches N MiB of memory
 * {"sleep_ms":N}     sleeps through the signals it handles
 * {"await_signal":1} waits for one of these signals
 * {"flood_mib":N}    logs N MiB on each stream, all in one line
 * {"answer_mib":N}   answers with N MiB
 * {"exit":N}         exits with status N
 *
 * Without a descriptor 3 it speaks version 0: no handshake, and its answers are lines of stdout.
 *
 * It logs the signals it gets, and the end of its input. With STUBBORN set, neither that nor SIGTERM ends it. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static volatile sig_atomic_t got_signal;

static void on_signal(int number) {
    got_signal = 1;
    const char *name = number == SIGUSR1 ? "got SIGUSR1\n" : number == SIGUSR2 ? "got SIGUSR2\n" : "got SIGTERM\n";
    ssize_t ignored = write(2, name, strlen(name));
    (void)ignored;
    if (number == SIGTERM && !getenv("STUBBORN")) _exit(0);
}

static void handle(int number) {
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    sigaction(number, &action, NULL);
}

static pid_t fork_with_retries(void) {
    for (;;) {
        pid_t pid = fork();
        if (pid >= 0 || errno != EAGAIN) return pid;
        sched_yield();
    }
}

/* Each grandchild writes a byte once init is its parent, and exits. */
static long leave_orphans(long count) {
    int ends[2];
    if (pipe(ends) != 0) return -1;
    long adopted = 0;
    for (long i = 0; i < count; i++) {
        pid_t parent = fork_with_retries();
        if (parent == 0) {
            pid_t grandchild = fork_with_retries();
            if (grandchild == 0) {
                while (getppid() != 1) sched_yield();
                ssize_t ignored = write(ends[1], "x", 1);
                (void)ignored;
            }
            _exit(0);
        }
        if (parent < 0) break;
        waitpid(parent, NULL, 0);
        char byte;
        if (read(ends[0], &byte, 1) == 1) adopted++;
    }
    close(ends[0]);
    close(ends[1]);
    return adopted;
}

static void sleep_ms(long ms) {
    struct timespec left = {ms / 1000, ms % 1000 * 1000000};
    while (nanosleep(&left, &left) != 0) {}
}

static char mebibyte[1 << 20];

static void put(int descriptor, const char *bytes, size_t left) {
    while (left > 0) {
        ssize_t written = write(descriptor, bytes, left);
        if (written < 0 && errno != EINTR) abort();
        if (written > 0) bytes += written, left -= (size_t)written;
    }
}

static int number(const char *line, const char *name, long *value) {
    const char *at = strstr(line, name);
    if (!at) return 0;
    *value = strtol(at + strlen(name), NULL, 10);
    return 1;
}

int main(void) {
    handle(SIGUSR1);
    handle(SIGUSR2);
    handle(SIGTERM);
    setvbuf(stdout, NULL, _IOLBF, 0);
    int single_shot = fcntl(3, F_GETFD) < 0;
    if (single_shot) dup2(1, 3);
    else dprintf(3, "{\"openwhisk\":1}\n");
    char *line = NULL;
    size_t capacity = 0;
    while (getline(&line, &capacity, stdin) > 0) {
        long n = 0;
        if (number(line, "\"orphans\":", &n)) {
            dprintf(3, "{\"adopted\":%ld}\n", leave_orphans(n));
            continue;
        }
        if (number(line, "\"eat_mib\":", &n)) {
            for (long i = 0; i < n; i++) {
                char *mib = malloc(1 << 20);
                if (!mib) abort();
                memset(mib, 'x', 1 << 20);
            }
        }
        if (number(line, "\"sleep_ms\":", &n)) {
            dprintf(2, "begun\n");
            sleep_ms(n);
        }
        if (number(line, "\"await_signal\":", &n)) {
            got_signal = 0;
            dprintf(2, "begun\n");
            while (!got_signal) sleep_ms(1);
        }
        if (number(line, "\"exit\":", &n)) exit((int)n);
        memset(mebibyte, 'x', sizeof mebibyte);
        if (number(line, "\"flood_mib\":", &n)) {
            while (n-- > 0) {
                put(1, mebibyte, sizeof mebibyte);
                put(2, mebibyte, sizeof mebibyte);
            }
            if (single_shot) put(1, "\n", 1);
        }
        if (number(line, "\"answer_mib\":", &n)) {
            put(3, "{\"x\":\"", 6);
            while (n-- > 0) put(3, mebibyte, sizeof mebibyte);
            put(3, "\"}\n", 3);
            continue;
        }
        const char *echo = strstr(line, "{\"echo\":\"");
        if (echo) {
            put(3, echo, strcspn(echo, "}"));
            put(3, "}\n", 2);
            continue;
        }
        const char *text = strstr(line, "\"say\":\"");
        if (text) {
            int length = (int)strcspn(text + 7, "\"");
            printf("out: %.*s\n", length, text + 7);
            dprintf(2, "err: %.*s\n", length, text + 7);
        }
        dprintf(3, "{\"pid\":%d,\"parent\":%d,\"user\":%d}\n", getpid(), getppid(), getuid());
    }
    dprintf(2, "end of input\n");
    while (getenv("STUBBORN")) sleep_ms(1000000);
    return 0;
}
