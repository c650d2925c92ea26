#!/usr/bin/env python3
"""A single shot (protocol version 0): started anew for each activation.

The arguments are on stdin (and in sys.argv[1] too, unless they are too long for the command
line). The last line on stdout is the result, all before it is log. Nothing to flush: the
end of a process does it.
"""

import json
import sys

name = json.load(sys.stdin).get("name") or "stranger"
print(f"name={name}")
print(json.dumps({"hello": f"Hello, {name}"}))
