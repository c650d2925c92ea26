#!/bin/bash
# Builds the programs of this folder as static executables: build.sh OUTDIR
set -euo pipefail
mkdir -p "${1:?usage: build.sh OUTDIR}"
out=$(realpath "$1")
cd "$(dirname "$0")"

for program in hello hello-fd3 hello-once; do
    gcc -O2 -Wall -Wextra -static -s -o "$out/$program" "$program.c"
done
