#!/usr/bin/env python3
# The actionloop dialect: logs `early N`, answers, and logs `late N` once the file `go N` exists;
# then it creates the file `said N`. The files are in $SIGNALS.
import json, os, sys, time

results = os.fdopen(3, "w")
for number, line in enumerate(sys.stdin, 1):
    signal = lambda name: os.path.join(os.environ["SIGNALS"], f"{name} {number}")
    print("early", number, flush=True)
    print(json.dumps({"n": number}), file=results, flush=True)
    while not os.path.exists(signal("go")):
        time.sleep(0.002)
    print("late", number, flush=True)
    open(signal("said"), "w").close()
