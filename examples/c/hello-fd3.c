/* The actionloop dialect: a whole activation in, its result as a line on descriptor 3, so that
   stdout is free for logs. Both are flushed: the result because the caller waits for it, the log
   so that it comes before its result. No acknowledgement is sent. */
#include <stdio.h>
#include <stdlib.h>
#include "member.h"

int main(void)
{
    char *line = NULL;
    size_t size = 0;
    FILE *results = fdopen(3, "w");

    if (results == NULL) {
        perror("descriptor 3");
        return 1;
    }
    while (getline(&line, &size, stdin) != -1) {
        int length;
        const char *name = string_member(member(line, "value"), "name", "stranger", &length);

        printf("name=%.*s\n", length, name);
        fflush(stdout);
        fprintf(results, "{\"hello\":\"Hello, %.*s\"}\n", length, name);
        fflush(results);
    }
    free(line);
    return 0;
}
