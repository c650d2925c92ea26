#!/bin/bash
# Builds the programs of this folder as static executables: build.sh OUTDIR
set -euo pipefail
mkdir -p "${1:?usage: build.sh OUTDIR}"
out=$(realpath "$1")
cd "$(dirname "$0")"

for source in *.hs; do
    program=${source%.hs}
    ghc -v0 -O -Wall -optl-static -outputdir "$out/$program.objects" -o "$out/$program" "$source"
done
