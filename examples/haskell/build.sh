#!/bin/bash
# Builds the program of this folder as a static executable: build.sh OUTDIR
set -euo pipefail
mkdir -p "${1:?usage: build.sh OUTDIR}"
out=$(realpath "$1")
cd "$(dirname "$0")"

ghc -v0 -O -Wall -optl-static -outputdir "$out/objects" -o "$out/hello" hello.hs
