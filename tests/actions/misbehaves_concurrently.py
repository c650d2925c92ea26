#!/usr/bin/env python3
"""Version 2: does what the member "do" of its arguments asks, valid or not, concurrently with all others, and
answers with their "id". CONCURRENCY is how many activations it takes at once. Its log is in frames, so that each line
has an owner.
"""
import json, os, sys, threading, time

lock = threading.Lock()
cancelled = {}


def put(text):
    with lock:
        sys.stdout.write(text)
        sys.stdout.flush()


def frame(**members):
    return json.dumps(members) + "\n"


def work(number, args):
    do, name, nap = args["do"], args["id"], args["ms"] / 1000
    answer = frame(id=number, result={"id": name})
    put(frame(id=number, log=f"begin {name}"))
    if do == "exit":
        os._exit(3)
    if do == "kill":
        os.kill(os.getpid(), 9)
    if do == "half":
        with lock:
            sys.stdout.write(answer[:12])
            sys.stdout.flush()
            os._exit(3)
    if do == "late_for_its_deadline":
        cancelled[number].wait()
    if do == "slow":
        time.sleep(nap)
    if do == "parts":
        for count in range(5):
            put(frame(id=number, chunk=f"{count} of {name}"))
            time.sleep(nap / 5)
    if do == "logs":
        for count in range(50):
            put(frame(id=number, log=f"line {count} of {name}"))
    if do == "number":
        answer = frame(id=number, result=42)
    if do == "big":
        answer = frame(id=number, result={"id": name, "pad": "x" * 300_000})
    put(frame(id=number, log=f"end {name}"))
    put(answer * 2 if do == "two" else answer)
    if do == "leave":
        os._exit(0)
    if do == "stray":
        stray = {"id": f"a stray of {name}"}
        time.sleep(nap)
        for owner in ({"id": number}, {"id": 10**9}, {"id": str(number)}, {}):
            put(frame(**owner, result=stray) + frame(**owner, chunk=stray) + frame(**owner, end=True))
        put("a stray that is no frame\n")


put(frame(openwhisk=2, concurrency=int(os.environ["CONCURRENCY"]), cancel=True))
for line in sys.stdin:
    message = json.loads(line)
    if "run" in message:
        cancelled[message["run"]] = threading.Event()
        threading.Thread(target=work, args=(message["run"], message["value"]), daemon=True).start()
    elif "cancel" in message:
        cancelled[message["cancel"]].set()
os._exit(0)
