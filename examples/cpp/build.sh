#!/bin/bash
# Builds the program of this folder as a static executable: build.sh OUTDIR
set -euo pipefail
mkdir -p "${1:?usage: build.sh OUTDIR}"
out=$(realpath "$1")
cd "$(dirname "$0")"

g++ -std=c++17 -O2 -Wall -Wextra -static -s -o "$out/hello" hello.cpp
