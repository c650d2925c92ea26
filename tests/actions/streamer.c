/* Version 2 in an image that holds nothing else: up to four streams at once, in one thread. Each says a number
 * every twenty milliseconds, from 0 on: {"ticks":N} so many of them, {"ticks":-1} until it is cancelled.
 *
 * It logs, in frames, that a stream has begun and that it was cancelled; and on stderr the stop frame. */
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { MOST = 4, TICK_MS = 20 };

static struct stream {
    long id, ticks, said;
    long long next_ms;
} streams[MOST];

static long long now_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000LL + now.tv_nsec / 1000000;
}

static int number(const char *line, const char *name, long *value) {
    const char *at = strstr(line, name);
    if (!at) return 0;
    *value = strtol(at + strlen(name), NULL, 10);
    return 1;
}

static void take(const char *line) {
    long id;
    if (number(line, "{\"run\":", &id)) {
        for (int i = 0; i < MOST; i++) {
            struct stream *stream = &streams[i];
            if (stream->id) continue;
            *stream = (struct stream){.id = id, .next_ms = now_ms()};
            number(line, "\"ticks\":", &stream->ticks);
            dprintf(1, "{\"id\":%ld,\"log\":\"begun\"}\n", id);
            return;
        }
        abort();
    }
    if (number(line, "{\"cancel\":", &id)) {
        for (int i = 0; i < MOST; i++) {
            if (streams[i].id != id) continue;
            streams[i].id = 0;
            dprintf(1, "{\"id\":%ld,\"log\":\"cancelled\"}\n{\"id\":%ld,\"end\":true}\n", id, id);
        }
    }
    if (strstr(line, "{\"stop\":")) dprintf(2, "stop\n");
}

int main(void) {
    static char buffer[65536];
    size_t held = 0;
    dprintf(1, "{\"openwhisk\":2,\"concurrency\":%d,\"cancel\":true,\"stop\":true}\n", MOST);
    for (;;) {
        long long wait = -1, now = now_ms();
        for (int i = 0; i < MOST; i++) {
            struct stream *stream = &streams[i];
            if (stream->id && stream->next_ms <= now) {
                if (stream->said == stream->ticks) {
                    dprintf(1, "{\"id\":%ld,\"result\":{\"ticks\":%ld}}\n", stream->id, stream->said);
                    stream->id = 0;
                } else {
                    dprintf(1, "{\"id\":%ld,\"chunk\":%ld}\n", stream->id, stream->said++);
                    stream->next_ms = now + TICK_MS;
                }
            }
            if (stream->id && (wait < 0 || stream->next_ms - now < wait)) wait = stream->next_ms - now;
        }
        struct pollfd input = {.fd = 0, .events = POLLIN};
        if (poll(&input, 1, wait < 0 ? -1 : wait > 0 ? (int)wait : 0) <= 0) continue;
        ssize_t count = read(0, buffer + held, sizeof buffer - 1 - held);
        if (count <= 0) break;
        held += (size_t)count;
        buffer[held] = 0;
        char *end, *line = buffer;
        for (; (end = strchr(line, '\n')); line = end + 1) {
            *end = 0;
            take(line);
        }
        held -= (size_t)(line - buffer);
        memmove(buffer, line, held);
    }
    return 0;
}
