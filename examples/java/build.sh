#!/bin/bash
# Builds the classes and beside each the executable that starts it, such as `hello-stream` for HelloStream: build.sh OUTDIR
# The flags make a JVM start fast: it lives for long, but its first answer is waited for.
set -euo pipefail
mkdir -p "${1:?usage: build.sh OUTDIR}"
out=$(realpath "$1")
cd "$(dirname "$0")"

javac -encoding UTF-8 -d "$out" ./*.java
for source in *.java; do
    class=${source%.java}
    program=$(sed 's/\B[A-Z]/-&/g' <<< "$class" | tr '[:upper:]' '[:lower:]')
    cat > "$out/$program" <<END
#!/bin/sh
dir=\$(dirname "\$(readlink -f "\$0")")
exec java -XX:TieredStopAtLevel=1 -XX:+UseSerialGC -Xshare:auto -cp "\$dir" $class
END
    chmod 755 "$out/$program"
done
