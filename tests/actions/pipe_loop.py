#!/usr/bin/env python3
# Version 1: calls main for each line. The tests replace the next line with a `main`.
# MAIN
import json, sys

def say(text):
    print(text, file=sys.stderr, flush=True)

whole = globals().get("CONTEXT", False)
print('{"openwhisk":1,"context":true}' if whole else '{"openwhisk":1}', flush=True)
for line in sys.stdin:
    context = json.loads(line)
    result = main(context.get("value") if whole else context, context)
    print(result if isinstance(result, str) else json.dumps(result, ensure_ascii=False), flush=True)
