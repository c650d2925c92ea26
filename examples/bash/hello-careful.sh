#!/bin/bash
# hello.sh for names that hold quotes, backslashes or wildcards: a pipe loop (protocol
# version 1) in which jq writes the JSON as well as reading it, `read -r` leaves backslashes
# alone, and variables stay quoted. Nothing is held back: echo writes at once, and jq at its end.
echo '{"openwhisk":1}'
while IFS= read -r line; do
    name=$(printf '%s\n' "$line" | jq -r '.name // "stranger"')
    echo "name=$name" >&2
    printf '%s\n' "$line" | jq -c '{hello: "Hello, \(.name // "stranger")"}'
done
