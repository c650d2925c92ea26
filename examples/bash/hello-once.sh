#!/bin/bash
# A single shot (protocol version 0): started anew for each activation, with its arguments on
# stdin (and as $1 too, unless they are too long for the command line). The last line on
# stdout is the result, all before it is log. Nothing to flush: the end of a process does it.
arguments=$(cat)
name=$(printf '%s\n' "$arguments" | jq -r '.name // "stranger"')
echo "name=$name"
printf '%s\n' "$arguments" | jq -c '{hello: "Hello, \(.name // "stranger")"}'
