/* A pipe loop (protocol version 1): a line of arguments in, a line of result out, logs on stderr.
   The flush is for stdout being a pipe: C would keep the line in its buffer while the caller waits
   for it. The name goes back as it came, escapes and all. */
#include <stdio.h>
#include <stdlib.h>
#include "member.h"

int main(void)
{
    char *line = NULL;
    size_t size = 0;

    puts("{\"openwhisk\":1}");
    fflush(stdout);
    while (getline(&line, &size, stdin) != -1) {
        int length;
        const char *name = string_member(line, "name", "stranger", &length);

        fprintf(stderr, "name=%.*s\n", length, name);
        printf("{\"hello\":\"Hello, %.*s\"}\n", length, name);
        fflush(stdout);
    }
    free(line);
    return 0;
}
