#!/bin/bash
# Builds the classes and beside each the executable that starts it, `hello` and `hello-stream`: build.sh OUTDIR
# The flags make a JVM start fast: it lives for long, but its first answer is waited for.
set -euo pipefail
mkdir -p "${1:?usage: build.sh OUTDIR}"
out=$(realpath "$1")
cd "$(dirname "$0")"

javac -encoding UTF-8 -d "$out" Hello.java HelloStream.java
for program in hello:Hello hello-stream:HelloStream; do
    cat > "$out/${program%:*}" <<END
#!/bin/sh
dir=\$(dirname "\$(readlink -f "\$0")")
exec java -XX:TieredStopAtLevel=1 -XX:+UseSerialGC -Xshare:auto -cp "\$dir" ${program#*:}
END
    chmod 755 "$out/${program%:*}"
done
