#!/bin/sh
# Version 1: every result is an error.
echo '{"openwhisk":1}'
while read -r line; do echo '{"error":"no"}'; done
