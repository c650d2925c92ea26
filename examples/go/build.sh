#!/bin/bash
# Builds the programs of this folder as static executables: build.sh OUTDIR
set -euo pipefail
mkdir -p "${1:?usage: build.sh OUTDIR}"
out=$(realpath "$1")
cd "$(dirname "$0")"

export CGO_ENABLED=0
for source in *.go; do
    go build -trimpath -ldflags=-s -o "$out/${source%.go}" "$source"
done
