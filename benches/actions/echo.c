/*
 * The action of the benchmark: answers every line with itself. It does as little as an action can,
 * so that what is measured is the proxy.
 *
 * As an ActionLoop executable it answers on descriptor 3, after the acknowledgement if that is
 * awaited; with ECHO_PROTOCOL=1 it shakes hands and answers on standard output, and with
 * ECHO_PROTOCOL=2 in frames.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void write_all(int fd, const char *bytes, size_t length) {
    while (length > 0) {
        ssize_t written = write(fd, bytes, length);
        if (written < 0) exit(2);
        bytes += written;
        length -= (size_t)written;
    }
}

static void say(int fd, const char *text) { write_all(fd, text, strlen(text)); }

/* {"run":ID,"value":VALUE,"context":{}} becomes {"id":ID,"result":VALUE}, where it stands. */
static void answer_frame(int fd, char *line, size_t length) {
    static const char end[] = ",\"context\":{}}\n";
    char *value = memchr(line, ',', length);
    if (!value || length < sizeof end || memcmp(line + length - (sizeof end - 1), end, sizeof end - 1) != 0) exit(3);
    *value = 0;
    char head[64];
    int head_length = snprintf(head, sizeof head, "{\"id\":%s,\"result\":", line + strlen("{\"run\":"));
    value += strlen(",\"value\":");
    char *start = value - head_length; /* Both heads are as long. */
    if (start != line) exit(4);
    memcpy(start, head, (size_t)head_length);
    memcpy(line + length - (sizeof end - 1), "}\n", 2);
    write_all(fd, start, (size_t)(line + length - (sizeof end - 1) + 2 - start));
}

int main(void) {
    const char *protocol = getenv("ECHO_PROTOCOL");
    int results = 3, frames = 0;
    if (protocol && strcmp(protocol, "1") == 0) {
        results = 1;
        say(results, "{\"openwhisk\":1}\n");
    } else if (protocol && strcmp(protocol, "2") == 0) {
        results = 1;
        frames = 1;
        say(results, "{\"openwhisk\":2}\n");
    } else if (getenv("__OW_WAIT_FOR_ACK")) {
        say(results, "{\"ok\":true}\n");
    }

    size_t capacity = 64 * 1024, filled = 0;
    char *line = malloc(capacity);
    if (!line) return 2;
    for (;;) {
        if (filled == capacity) {
            capacity *= 2;
            line = realloc(line, capacity);
            if (!line) return 2;
        }
        ssize_t count = read(0, line + filled, capacity - filled);
        if (count < 0) return 2;
        if (count == 0) return 0;
        size_t scanned = filled;
        filled += (size_t)count;
        /* One activation at a time: a newline is the last byte there is. */
        if (memchr(line + scanned, '\n', filled - scanned)) {
            if (frames) answer_frame(results, line, filled);
            else write_all(results, line, filled);
            filled = 0;
        }
    }
}
