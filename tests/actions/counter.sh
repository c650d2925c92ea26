#!/bin/sh
# Version 1: counts its activations, and answers with the count and its arguments.
echo '{"openwhisk":1}'
n=0
while read -r line; do
  n=$((n + 1))
  echo "log of $n" >&2
  printf '{"n":%d,"got":%s}\n' "$n" "$line"
done
