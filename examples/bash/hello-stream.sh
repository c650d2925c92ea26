#!/bin/bash
# Streams (protocol version 2): a frame in for each activation, frames out, several activations at
# once. Each is answered by a shell of its own, so that one that sleeps delays no other. A frame of up
# to 4096 bytes is written in one piece, and jq writes it at its end: nothing is held back or mixed.
echo '{"openwhisk":2,"concurrency":16}'

greet() {
    local id name ms
    id=$(jq '.run' <<< "$1")
    name=$(jq '.value.name // "stranger"' <<< "$1")
    ms=$(jq '.value.ms // 0' <<< "$1")
    jq -cn --argjson id "$id" --argjson name "$name" '{$id, log: "name=\($name)"}, {$id, chunk: "Hello, "}'
    sleep "$((ms / 1000)).$(printf '%03d' "$((ms % 1000))")"
    jq -cn --argjson id "$id" --argjson name "$name" '{$id, chunk: $name}, {$id, result: {hello: "Hello, \($name)"}}'
}

while IFS= read -r frame; do
    greet "$frame" &
done
wait
