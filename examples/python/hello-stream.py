#!/usr/bin/env python3
"""Streams (protocol version 2): a frame in for each activation, frames out, several at once.

Each activation has a thread of its own, so that one that sleeps delays no other. A frame is
written in one piece and flushed, under a lock: two of them must not mix.
"""

import json
import sys
import threading
import time

writing = threading.Lock()


def send(**frame):
    with writing:
        print(json.dumps(frame), flush=True)


def greet(id, args):
    name = args.get("name") or "stranger"
    send(id=id, log=f"name={name}")
    send(id=id, chunk="Hello, ")
    time.sleep(args.get("ms", 0) / 1000)
    send(id=id, chunk=name)
    send(id=id, result={"hello": f"Hello, {name}"})


print('{"openwhisk":2,"concurrency":16}', flush=True)
for line in sys.stdin:
    frame = json.loads(line)
    if "run" in frame:
        threading.Thread(target=greet, args=(frame["run"], frame["value"])).start()
