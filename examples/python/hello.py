#!/usr/bin/env python3
"""A pipe loop (protocol version 1): a line of arguments in, a line of result out.

Each answer is flushed, since stdout is a pipe: Python would keep the line in its buffer
while the caller waits for it. Logs go to stderr.
"""

import json
import sys


def hello(args):
    name = args.get("name") or "stranger"
    print(f"name={name}", file=sys.stderr)
    return {"hello": f"Hello, {name}"}


print('{"openwhisk":1}', flush=True)
for line in sys.stdin:
    print(json.dumps(hello(json.loads(line))), flush=True)
