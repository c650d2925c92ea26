/* A single shot (protocol version 0): started anew for each activation, with its arguments as a
   line on stdin (and in argv[1] too, unless they are too long for the command line). The last line
   on stdout is the result, all before it is log. Nothing to flush: the end of main does it. */
#include <stdio.h>
#include <stdlib.h>
#include "member.h"

int main(void)
{
    char *line = NULL;
    size_t size = 0;
    int length;
    const char *name;

    if (getline(&line, &size, stdin) == -1) {
        fputs("no arguments on stdin\n", stderr);
        return 1;
    }
    name = string_member(line, "name", "stranger", &length);
    printf("name=%.*s\n", length, name);
    printf("{\"hello\":\"Hello, %.*s\"}\n", length, name);
    free(line);
    return 0;
}
