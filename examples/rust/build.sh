#!/bin/bash
# Builds the programs of this folder as static executables: build.sh OUTDIR
set -euo pipefail
mkdir -p "${1:?usage: build.sh OUTDIR}"
out=$(realpath "$1")
cd "$(dirname "$0")"

flags=(--edition 2021 -O -C target-feature=+crt-static -C strip=symbols)
rustc "${flags[@]}" -o "$out/hello" hello.rs
rustc "${flags[@]}" -o "$out/hello-fd3" hello-fd3.rs
rustc "${flags[@]}" -o "$out/hello-stream" hello-stream.rs
