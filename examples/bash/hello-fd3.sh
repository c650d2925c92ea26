#!/bin/bash
# The actionloop dialect: a whole activation in, a line each; its result as a line on
# descriptor 3, so that stdout is free for logs. No acknowledgement is sent: the proxy sees
# that the script waits for its first line. Nothing is held back: jq writes when it ends.
while IFS= read -r activation; do
    name=$(printf '%s\n' "$activation" | jq -r '.value.name // "stranger"')
    echo "name=$name"
    printf '%s\n' "$activation" | jq -c '{hello: "Hello, \(.value.name // "stranger")"}' >&3
done
