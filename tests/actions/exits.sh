#!/bin/sh
# Version 1: exits with status 3 in the middle of its first activation.
echo '{"openwhisk":1}'
read -r line
echo "last words" >&2
exit 3
