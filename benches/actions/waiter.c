/*
 * The action of the benchmark that takes its time: every activation is answered 5 ms after it came.
 *
 * With ECHO_PROTOCOL=1 one after the other; with ECHO_PROTOCOL=2 as many at once as are sent. In version 2 an
 * activation that asks for a stream gets a chunk at once, which holds the monotonic clock in nanoseconds.
 */
#define _GNU_SOURCE
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { WAIT_NS = 5000000, MOST = 1024 };

static long long now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000LL + time.tv_nsec;
}

static void say(const char *text) {
    size_t length = strlen(text);
    if (write(1, text, length) != (ssize_t)length) exit(2);
}

/* One after the other. */
static void in_turn(void) {
    char line[65536];
    say("{\"openwhisk\":1}\n");
    while (fgets(line, sizeof line, stdin)) {
        nanosleep(&(struct timespec){.tv_nsec = WAIT_NS}, NULL);
        say("{\"waited_ms\":5}\n");
    }
}

/* In the order in which they came, as all wait for as long. */
static struct { unsigned long long id; long long due; } waiting[MOST];
static size_t first, count;

static void begin(char *frame) {
    if (count == MOST) exit(3);
    size_t at = (first + count++) % MOST;
    waiting[at].id = strtoull(frame + strlen("{\"run\":"), NULL, 10);
    if (strstr(frame, "\"stream\"")) {
        char chunk[128];
        snprintf(chunk, sizeof chunk, "{\"id\":%llu,\"chunk\":\"%lld\"}\n", waiting[at].id, now());
        say(chunk);
    }
    waiting[at].due = now() + WAIT_NS;
}

static void at_once(void) {
    static char bytes[1 << 20];
    size_t filled = 0;
    say("{\"openwhisk\":2,\"concurrency\":64}\n");
    for (;;) {
        long long left = count ? waiting[first].due - now() : 0;
        struct timespec timeout = {.tv_nsec = left > 0 ? left : 0};
        struct pollfd input = {.fd = 0, .events = POLLIN};
        if (ppoll(&input, 1, count ? &timeout : NULL, NULL) > 0) {
            ssize_t length = read(0, bytes + filled, sizeof bytes - 1 - filled);
            if (length <= 0) return;
            filled += (size_t)length;
            char *frame = bytes, *end;
            while ((end = memchr(frame, '\n', filled - (size_t)(frame - bytes)))) {
                *end = 0;
                begin(frame);
                frame = end + 1;
            }
            filled -= (size_t)(frame - bytes);
            memmove(bytes, frame, filled);
        }
        while (count && waiting[first].due <= now()) {
            char answer[128];
            snprintf(answer, sizeof answer, "{\"id\":%llu,\"result\":{\"waited_ms\":5}}\n", waiting[first].id);
            say(answer);
            first = (first + 1) % MOST;
            count--;
        }
    }
}

int main(void) {
    const char *protocol = getenv("ECHO_PROTOCOL");
    if (protocol && strcmp(protocol, "2") == 0) at_once();
    else in_turn();
    return 0;
}
