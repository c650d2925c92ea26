/* Version 2 in an image that holds nothing else: several activations at once, in one thread, CONCURRENCY of them or
 * four. Each says numbers or pieces of a text, one in each round with all others, and then comes to its end:
 *
 * {"ticks":N}          numbers from 0 on, so many or, with -1, until it is cancelled; answers how many
 * {"text":"T"}         pieces of T, each with its number before it; answers the text and how many there were
 *   "pieces":N         so many (none)
 *   "pad_bytes":N      with so many letters behind each
 * {"wait_ms":N}        begins after that (at once)
 * {"every_ms":N}       so often (20 for numbers; pieces as fast as it can)
 * {"then":"…"}         how it comes to its end, other than by its answer:
 *   end, fail          with its chunks; with an error of its own
 *   two, none, deaf    with two answers; when it is cancelled; not even then
 *   broken             with a frame that is none, and when it is cancelled
 *   junk               with its answer, among much that is nobody's
 *   flood              with its answer, behind 4 MiB of log on stderr and 1 MiB in frames
 *   stall              with its answer, after 300 ms in which nothing is read or written
 *   exit, kill, half   with the process: status 3, SIGSEGV, status 3 in the middle of a frame
 *   close              with its channel; the process lives
 *   huge               with a line of 65 MiB
 * "stubborn":1         it does not pause
 *
 * It logs, in frames, that it has begun and that it was cancelled; and on stderr the stop frame. It aborts when the
 * proxy does not keep to the protocol. With CROSS=N it gives every Nth frame to another one, as no action should. */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { MOST = 1024, TICK_MS = 20, MIB = 1 << 20 };

static struct stream {
    long id, ticks, pieces, said, every_ms, pad_bytes;
    int paused, stubborn;
    long long next_ms;
    char text[200], then[8];
} streams[MOST];
static long concurrency = 4, last_id, crosses, frames;
static char mebibyte[MIB];

static void expect(int kept) {
    if (!kept) abort();
}

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

/* A string without escapes. */
static void word(const char *line, const char *name, char *value, size_t room) {
    const char *at = strstr(line, name);
    if (!at) return;
    at += strlen(name);
    size_t length = strcspn(at, "\"");
    expect(length < room);
    memcpy(value, at, length);
    value[length] = 0;
}

static void put(int descriptor, const char *bytes, size_t left) {
    while (left > 0) {
        ssize_t written = write(descriptor, bytes, left);
        if (written < 0 && errno != EINTR) exit(1);
        if (written > 0) bytes += written, left -= (size_t)written;
    }
}

static void say(const char *format, ...) {
    char text[1024];
    va_list values;
    va_start(values, format);
    int length = vsnprintf(text, sizeof text, format, values);
    va_end(values);
    expect(length >= 0 && length < (int)sizeof text);
    put(1, text, (size_t)length);
}

static void fill(int descriptor, long bytes) {
    for (; bytes > 0; bytes -= MIB) put(descriptor, mebibyte, bytes < MIB ? (size_t)bytes : MIB);
}

/* Whose frame it is said to be. */
static long named(struct stream *stream) {
    if (!crosses || ++frames % crosses) return stream->id;
    for (long i = 0; i < concurrency; i++)
        if (streams[i].id && &streams[i] != stream) return streams[i].id;
    return stream->id;
}

static void say_piece(struct stream *stream) {
    if (!stream->text[0]) {
        say("{\"id\":%ld,\"chunk\":%ld}\n", named(stream), stream->said++);
        return;
    }
    say("{\"id\":%ld,\"chunk\":\"%ld of %s ", named(stream), stream->said++, stream->text);
    fill(1, stream->pad_bytes);
    say("\"}\n");
}

static void answer(struct stream *stream) {
    if (stream->text[0])
        say("{\"id\":%ld,\"result\":{\"pieces\":%ld,\"text\":\"%s\"}}\n", named(stream), stream->said, stream->text);
    else
        say("{\"id\":%ld,\"result\":{\"ticks\":%ld}}\n", named(stream), stream->said);
}

/* Of no activation in flight, or of none at all. */
static void say_junk(void) {
    static const char line[] = "no frame\n\n42\n{\"id\":\n\"\xff\xfe\"\n\0\0\0\n[{\"id\":0}]\n{\"id\":0}\n";
    put(1, line, sizeof line - 1);
    static const char *const ids[] = {"", "\"id\":null,", "\"id\":\"1\",", "\"id\":1.0,", "\"id\":0,", "\"id\":-1,",
                                      "\"id\":4294967296,", "\"id\":99999999999999999999,"};
    for (size_t i = 0; i < sizeof ids / sizeof *ids; i++)
        say("{%s\"chunk\":\"stray\"}\n{%s\"log\":\"stray\"}\n{%s\"result\":{\"text\":\"stray\"}}\n{%s\"end\":true}\n",
            ids[i], ids[i], ids[i], ids[i]);
    for (long id = last_id; id > 0 && id > last_id - 4 * concurrency; id--) {
        int in_flight = 0;
        for (long i = 0; i < concurrency; i++) in_flight |= streams[i].id == id;
        if (!in_flight) say("{\"id\":%ld,\"chunk\":\"stray\"}\n{\"id\":%ld,\"result\":{\"text\":\"stray\"}}\n", id, id);
    }
    fill(1, MIB);
    say("\n");
}

static void finish(struct stream *stream) {
    const char *then = stream->then;
    if (!strcmp(then, "exit")) exit(3);
    if (!strcmp(then, "kill")) raise(SIGSEGV);
    if (!strcmp(then, "half")) {
        say("{\"id\":%ld,\"resu", stream->id);
        exit(3);
    }
    if (!strcmp(then, "close")) {
        close(1);
        for (;;) pause();
    }
    if (!strcmp(then, "huge")) {
        say("{\"id\":%ld,\"chunk\":\"", stream->id);
        fill(1, 65L * MIB);
        say("\"}\n");
    }
    if (!strcmp(then, "none") || !strcmp(then, "deaf") || !strcmp(then, "broken")) {
        if (then[0] == 'b') say("{\"id\":%ld,\"chunk\":1,\"result\":{}}\n", stream->id);
        stream->next_ms = -1;
        return;
    }
    if (!strcmp(then, "junk")) say_junk();
    if (!strcmp(then, "stall")) poll(NULL, 0, 300);
    if (!strcmp(then, "flood")) {
        fill(2, 4L * MIB);
        for (int i = 0; i < 1024; i++)
            say("{\"id\":%ld,\"log\":\"%d of %s %.*s\"}\n", stream->id, i, stream->text, 700, mebibyte);
    }
    if (!strcmp(then, "end")) say("{\"id\":%ld,\"end\":true}\n", named(stream));
    else if (!strcmp(then, "fail")) say("{\"id\":%ld,\"error\":\"%s\"}\n", named(stream), stream->text);
    else answer(stream);
    if (!strcmp(then, "two")) answer(stream);
    stream->id = 0;
}

static struct stream *stream_of(long id) {
    expect(id > 0 && id <= last_id);
    for (long i = 0; i < concurrency; i++)
        if (streams[i].id == id) return &streams[i];
    return NULL;
}

static void begin(long id, const char *line) {
    expect(id == ++last_id);
    for (long i = 0; i < concurrency; i++) {
        struct stream *stream = &streams[i];
        if (stream->id) continue;
        *stream = (struct stream){.id = id};
        long stubborn = 0, wait_ms = 0;
        if (number(line, "\"ticks\":", &stream->ticks)) {
            stream->pieces = stream->ticks;
            stream->every_ms = TICK_MS;
        }
        number(line, "\"pieces\":", &stream->pieces);
        number(line, "\"pad_bytes\":", &stream->pad_bytes);
        number(line, "\"every_ms\":", &stream->every_ms);
        number(line, "\"wait_ms\":", &wait_ms);
        number(line, "\"stubborn\":", &stubborn);
        word(line, "\"text\":\"", stream->text, sizeof stream->text);
        word(line, "\"then\":\"", stream->then, sizeof stream->then);
        stream->stubborn = stubborn != 0;
        stream->next_ms = now_ms() + wait_ms;
        say("{\"id\":%ld,\"log\":\"begun\"}\n", id);
        return;
    }
    abort();
}

static void take(const char *line) {
    long id;
    struct stream *stream;
    if (number(line, "{\"run\":", &id)) {
        begin(id, line);
    } else if (number(line, "{\"cancel\":", &id)) {
        if (!(stream = stream_of(id)) || !strcmp(stream->then, "deaf")) return;
        stream->id = 0;
        say("{\"id\":%ld,\"log\":\"cancelled\"}\n{\"id\":%ld,\"end\":true}\n", id, id);
    } else if (number(line, "{\"pause\":", &id)) {
        if (!(stream = stream_of(id))) return;
        expect(!stream->paused);
        stream->paused = 1;
    } else if (number(line, "{\"resume\":", &id)) {
        if (!(stream = stream_of(id))) return;
        expect(stream->paused);
        stream->paused = 0;
    } else if (strstr(line, "{\"stop\":")) {
        for (long i = 0; i < concurrency; i++) expect(!streams[i].id);
        dprintf(2, "stop\n");
    } else abort();
}

/* Takes what has come. Whether that was the end. */
static int take_input(void) {
    static char *buffer;
    static size_t held, room;
    if (room - held < 65536 + 1) expect((buffer = realloc(buffer, room = 2 * room + 2 * 65536)) != NULL);
    ssize_t count = read(0, buffer + held, 65536);
    if (count <= 0) return 1;
    char *end, *line = buffer, *fresh = buffer + held;
    held += (size_t)count;
    buffer[held] = 0;
    for (; (end = strchr(fresh, '\n')); fresh = line = end + 1) {
        *end = 0;
        take(line);
    }
    held -= (size_t)(line - buffer);
    memmove(buffer, line, held);
    return 0;
}

int main(void) {
    const char *setting = getenv("CONCURRENCY");
    if (setting) concurrency = strtol(setting, NULL, 10);
    expect(concurrency > 0 && concurrency <= MOST);
    if ((setting = getenv("CROSS"))) crosses = strtol(setting, NULL, 10);
    memset(mebibyte, 'x', sizeof mebibyte);
    say("{\"openwhisk\":2,\"concurrency\":%ld,\"cancel\":true,\"pause\":true,\"stop\":true}\n", concurrency);
    for (;;) {
        long long wait = -1, now = now_ms();
        /* The last one first: so what came together ends in another order. */
        for (long i = concurrency - 1; i >= 0; i--) {
            struct stream *stream = &streams[i];
            if (!stream->id || stream->next_ms < 0 || (stream->paused && !stream->stubborn)) continue;
            if (stream->next_ms <= now) {
                if (stream->said == stream->pieces) {
                    finish(stream);
                    continue;
                }
                say_piece(stream);
                stream->next_ms = now + stream->every_ms;
            }
            if (wait < 0 || stream->next_ms - now < wait) wait = stream->next_ms - now;
        }
        struct pollfd input = {.fd = 0, .events = POLLIN};
        int ready = poll(&input, 1, wait < 0 ? -1 : (int)wait);
        if (ready > 0 && take_input()) return 0;
    }
}
