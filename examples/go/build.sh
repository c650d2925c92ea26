#!/bin/bash
# Builds the programs of this folder as static executables: build.sh OUTDIR
set -euo pipefail
mkdir -p "${1:?usage: build.sh OUTDIR}"
out=$(realpath "$1")
cd "$(dirname "$0")"

export CGO_ENABLED=0
go build -trimpath -ldflags=-s -o "$out/hello" hello.go
go build -trimpath -ldflags=-s -o "$out/hello-fd3" hello-fd3.go
go build -trimpath -ldflags=-s -o "$out/hello-stream" hello-stream.go
