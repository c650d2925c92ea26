/*
 * The action of the benchmark: answers every line with itself. It does as little as an action can,
 * so that what is measured is the proxy.
 *
 * As an ActionLoop executable it answers on descriptor 3, after the acknowledgement if that is
 * awaited; with ECHO_PROTOCOL=1 it shakes hands and answers on standard output.
 */
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

int main(void) {
    const char *protocol = getenv("ECHO_PROTOCOL");
    int results = 3;
    if (protocol && strcmp(protocol, "1") == 0) {
        results = 1;
        say(results, "{\"openwhisk\":1}\n");
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
            write_all(results, line, filled);
            filled = 0;
        }
    }
}
