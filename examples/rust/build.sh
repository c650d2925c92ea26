#!/bin/bash
# Builds the programs of this folder as static executables: build.sh OUTDIR
set -euo pipefail
mkdir -p "${1:?usage: build.sh OUTDIR}"
out=$(realpath "$1")
cd "$(dirname "$0")"

flags=(--edition 2021 -O -C target-feature=+crt-static -C strip=symbols)
for source in hello*.rs; do
    rustc "${flags[@]}" -o "$out/${source%.rs}" "$source"
done
