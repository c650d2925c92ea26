#!/bin/bash
# Builds hello.exe and beside it `hello`, the executable that starts it: build.sh OUTDIR
set -euo pipefail
mkdir -p "${1:?usage: build.sh OUTDIR}"
out=$(realpath "$1")
cd "$(dirname "$0")"

mcs -optimize+ -out:"$out/hello.exe" hello.cs
cat > "$out/hello" <<'END'
#!/bin/sh
dir=$(dirname "$(readlink -f "$0")")
exec mono "$dir/hello.exe"
END
chmod 755 "$out/hello"
