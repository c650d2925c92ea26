/* Version 2 in an image that holds nothing else: several activations at once in one thread, up to CONCURRENCY, which
 * is 4 by default. Each activation streams numbers or chunks of a text, one chunk in each round, and then ends:
 *
 * {"ticks":N}          N numbers from 0 on, or with -1 numbers until it is cancelled; answers with their count
 * {"text":"T"}         chunks with a number and T; answers with the text and the count of chunks
 *   "chunks":N         N chunks (default 0)
 *   "pad_bytes":N      N letters after each
 * {"wait_ms":N}        the first chunk after N ms (default 0)
 * {"every_ms":N}       one chunk every N ms (default 20 for numbers, 0 for a text)
 * {"then":"…"}         the end, if it is not an answer:
 *   end, fail          an end frame; an error frame
 *   two, none, deaf    two answers; an end only when it is cancelled; no end even then
 *   broken             a malformed frame, and an end when it is cancelled
 *   junk               an answer among many stray frames and lines
 *   flood              an answer after 4 MiB of log on stderr and 1 MiB in frames
 *   stall              an answer after 300 ms without reading or writing
 *   exit, kill, half   the process ends: status 3, SIGSEGV, status 3 in the middle of a frame
 *   close              the result channel is closed; the process keeps running
 *   huge               a line of 65 MiB
 * "stubborn":1         it ignores `pause`
 *
 * It logs in frames that it has begun and that it was cancelled, and on stderr the stop frame. It aborts when the
 * proxy breaks the protocol. With CROSS=N every Nth frame carries the id of another activation, as no action should. */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { MAX_STREAMS = 1024, TICK_MS = 20, MIB = 1 << 20 };

static struct stream {
    long id, ticks, chunks, sent, every_ms, pad_bytes;
    int paused, stubborn;
    long long next_ms;
    char text[200], then[8];
} streams[MAX_STREAMS];
static long concurrency = 4, last_id, crosses, frames;
static char mebibyte[MIB];

static void expect(int holds) {
    if (!holds) abort();
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
static void word(const char *line, const char *name, char *value, size_t size) {
    const char *at = strstr(line, name);
    if (!at) return;
    at += strlen(name);
    size_t length = strcspn(at, "\"");
    expect(length < size);
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

static void print(const char *format, ...) {
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

/* The id that the next frame of this stream carries. */
static long id_for(struct stream *stream) {
    if (!crosses || ++frames % crosses) return stream->id;
    for (long i = 0; i < concurrency; i++)
        if (streams[i].id && &streams[i] != stream) return streams[i].id;
    return stream->id;
}

static void print_chunk(struct stream *stream) {
    if (!stream->text[0]) {
        print("{\"id\":%ld,\"chunk\":%ld}\n", id_for(stream), stream->sent++);
        return;
    }
    print("{\"id\":%ld,\"chunk\":\"%ld of %s ", id_for(stream), stream->sent++, stream->text);
    fill(1, stream->pad_bytes);
    print("\"}\n");
}

static void answer(struct stream *stream) {
    if (stream->text[0])
        print("{\"id\":%ld,\"result\":{\"chunks\":%ld,\"text\":\"%s\"}}\n", id_for(stream), stream->sent, stream->text);
    else
        print("{\"id\":%ld,\"result\":{\"ticks\":%ld}}\n", id_for(stream), stream->sent);
}

/* Frames of no activation in flight, and lines that are not frames. */
static void print_junk(void) {
    static const char line[] = "no frame\n\n42\n{\"id\":\n\"\xff\xfe\"\n\0\0\0\n[{\"id\":0}]\n{\"id\":0}\n";
    put(1, line, sizeof line - 1);
    static const char *const ids[] = {"", "\"id\":null,", "\"id\":\"1\",", "\"id\":1.0,", "\"id\":0,", "\"id\":-1,",
                                      "\"id\":4294967296,", "\"id\":99999999999999999999,"};
    for (size_t i = 0; i < sizeof ids / sizeof *ids; i++)
        print("{%s\"chunk\":\"stray\"}\n{%s\"log\":\"stray\"}\n{%s\"result\":{\"text\":\"stray\"}}\n{%s\"end\":true}\n",
            ids[i], ids[i], ids[i], ids[i]);
    for (long id = last_id; id > 0 && id > last_id - 4 * concurrency; id--) {
        int in_flight = 0;
        for (long i = 0; i < concurrency; i++) in_flight |= streams[i].id == id;
        if (!in_flight) print("{\"id\":%ld,\"chunk\":\"stray\"}\n{\"id\":%ld,\"result\":{\"text\":\"stray\"}}\n", id, id);
    }
    fill(1, MIB);
    print("\n");
}

static void finish(struct stream *stream) {
    const char *then = stream->then;
    if (!strcmp(then, "exit")) exit(3);
    if (!strcmp(then, "kill")) raise(SIGSEGV);
    if (!strcmp(then, "half")) {
        print("{\"id\":%ld,\"resu", stream->id);
        exit(3);
    }
    if (!strcmp(then, "close")) {
        close(1);
        for (;;) pause();
    }
    if (!strcmp(then, "huge")) {
        print("{\"id\":%ld,\"chunk\":\"", stream->id);
        fill(1, 65L * MIB);
        print("\"}\n");
    }
    if (!strcmp(then, "none") || !strcmp(then, "deaf") || !strcmp(then, "broken")) {
        if (then[0] == 'b') print("{\"id\":%ld,\"chunk\":1,\"result\":{}}\n", stream->id);
        stream->next_ms = -1;
        return;
    }
    if (!strcmp(then, "junk")) print_junk();
    if (!strcmp(then, "stall")) poll(NULL, 0, 300);
    if (!strcmp(then, "flood")) {
        fill(2, 4L * MIB);
        for (int i = 0; i < 1024; i++)
            print("{\"id\":%ld,\"log\":\"%d of %s %.*s\"}\n", stream->id, i, stream->text, 700, mebibyte);
    }
    if (!strcmp(then, "end")) print("{\"id\":%ld,\"end\":true}\n", id_for(stream));
    else if (!strcmp(then, "fail")) print("{\"id\":%ld,\"error\":\"%s\"}\n", id_for(stream), stream->text);
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
            stream->chunks = stream->ticks;
            stream->every_ms = TICK_MS;
        }
        number(line, "\"chunks\":", &stream->chunks);
        number(line, "\"pad_bytes\":", &stream->pad_bytes);
        number(line, "\"every_ms\":", &stream->every_ms);
        number(line, "\"wait_ms\":", &wait_ms);
        number(line, "\"stubborn\":", &stubborn);
        word(line, "\"text\":\"", stream->text, sizeof stream->text);
        word(line, "\"then\":\"", stream->then, sizeof stream->then);
        stream->stubborn = stubborn != 0;
        stream->next_ms = now_ms() + wait_ms;
        print("{\"id\":%ld,\"log\":\"begun\"}\n", id);
        return;
    }
    abort();
}

static void handle(const char *line) {
    long id;
    struct stream *stream;
    if (number(line, "{\"run\":", &id)) {
        begin(id, line);
    } else if (number(line, "{\"cancel\":", &id)) {
        if (!(stream = stream_of(id)) || !strcmp(stream->then, "deaf")) return;
        stream->id = 0;
        print("{\"id\":%ld,\"log\":\"cancelled\"}\n{\"id\":%ld,\"end\":true}\n", id, id);
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

/* Reads and handles the available input. Returns whether it has ended. */
static int read_input(void) {
    static char *buffer;
    static size_t length, capacity;
    if (capacity - length < 65536 + 1) {
        capacity = 2 * capacity + 2 * 65536;
        expect((buffer = realloc(buffer, capacity)) != NULL);
    }
    ssize_t count = read(0, buffer + length, 65536);
    if (count <= 0) return 1;
    char *end, *line = buffer, *fresh = buffer + length;
    length += (size_t)count;
    buffer[length] = 0;
    for (; (end = strchr(fresh, '\n')); fresh = line = end + 1) {
        *end = 0;
        handle(line);
    }
    length -= (size_t)(line - buffer);
    memmove(buffer, line, length);
    return 0;
}

int main(void) {
    const char *setting = getenv("CONCURRENCY");
    if (setting) concurrency = strtol(setting, NULL, 10);
    expect(concurrency > 0 && concurrency <= MAX_STREAMS);
    if ((setting = getenv("CROSS"))) crosses = strtol(setting, NULL, 10);
    memset(mebibyte, 'x', sizeof mebibyte);
    print("{\"openwhisk\":2,\"concurrency\":%ld,\"cancel\":true,\"pause\":true,\"stop\":true}\n", concurrency);
    for (;;) {
        long long wait = -1, now = now_ms();
        /* The last one first, so that activations that came together end in another order. */
        for (long i = concurrency - 1; i >= 0; i--) {
            struct stream *stream = &streams[i];
            if (!stream->id || stream->next_ms < 0 || (stream->paused && !stream->stubborn)) continue;
            if (stream->next_ms <= now) {
                if (stream->sent == stream->chunks) {
                    finish(stream);
                    continue;
                }
                print_chunk(stream);
                stream->next_ms = now + stream->every_ms;
            }
            if (wait < 0 || stream->next_ms - now < wait) wait = stream->next_ms - now;
        }
        struct pollfd input = {.fd = 0, .events = POLLIN};
        int ready = poll(&input, 1, wait < 0 ? -1 : (int)wait);
        if (ready > 0 && read_input()) return 0;
    }
}
