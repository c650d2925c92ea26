#!/bin/bash
# Builds NAME.exe for each program, and beside it NAME, the executable that starts it: build.sh OUTDIR
set -euo pipefail
mkdir -p "${1:?usage: build.sh OUTDIR}"
out=$(realpath "$1")
cd "$(dirname "$0")"

for source in *.cs; do
    program=${source%.cs}
    mcs -optimize+ -out:"$out/$program.exe" "$source"
    cat > "$out/$program" <<END
#!/bin/sh
dir=\$(dirname "\$(readlink -f "\$0")")
exec mono "\$dir/$program.exe"
END
    chmod 755 "$out/$program"
done
