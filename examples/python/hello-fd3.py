#!/usr/bin/env python3
"""The actionloop dialect: a whole activation in, its result as a line on descriptor 3.

Stdout is free for logs. Both are flushed: the result because the caller waits for it, the
log so that it comes before its result. The acknowledgement says that the imports went well.
"""

import json
import sys


def hello(args):
    name = args.get("name") or "stranger"
    print(f"name={name}", flush=True)
    return {"hello": f"Hello, {name}"}


with open(3, "w") as results:
    print('{"ok":true}', file=results, flush=True)
    for line in sys.stdin:
        activation = json.loads(line)
        print(json.dumps(hello(activation["value"])), file=results, flush=True)
