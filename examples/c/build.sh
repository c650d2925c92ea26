#!/bin/bash
# Builds the programs of this folder as static executables: build.sh OUTDIR
set -euo pipefail
mkdir -p "${1:?usage: build.sh OUTDIR}"
out=$(realpath "$1")
cd "$(dirname "$0")"

for source in *.c; do
    gcc -O2 -Wall -Wextra -static -s -o "$out/${source%.c}" "$source"
done
