#!/usr/bin/env python3
# The actionloop dialect without acknowledgement: calls main for each line. The tests replace
# the next line with a `main`.
# MAIN
import json, os, sys

def say(text):
    print(text, flush=True)
    print(text, file=sys.stderr, flush=True)

results = os.fdopen(3, "w")
for line in sys.stdin:
    context = json.loads(line)
    result = main(context.get("value"), context)
    print(result if isinstance(result, str) else json.dumps(result, ensure_ascii=False), file=results, flush=True)
