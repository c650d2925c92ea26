#!/usr/bin/env python3
"""Version 2: runs the steps in the arguments of each activation, concurrently with all others.

HANDSHAKE holds the handshake's members, IDS=no leaves ids out, FD=3 selects descriptor 3, and REPORT names a file
that gets every other message: cancel, pause, resume, stop and the end of the input.
"""
import json, os, sys, threading, time

out = os.fdopen(int(os.environ.get("FD", "1")), "w")
with_ids = os.environ.get("IDS") != "no"
lock, report_lock = threading.Lock(), threading.Lock()
going, cancelled = {}, set()


def raw(text):
    with lock:
        out.write(text + "\n")
        out.flush()


def report(text):
    if "REPORT" in os.environ:
        with report_lock, open(os.environ["REPORT"], "a") as file:
            file.write(text + "\n")


def run(number, steps):
    def frame(**members):
        if with_ids:
            members["id"] = number
        raw(json.dumps(members))

    for step in steps:
        verb, rest = step[0], step[1:]
        if verb in ("chunk", "result", "error", "log"):
            frame(**{verb: rest[0]})
        elif verb == "end":
            frame(end=True)
        elif verb == "raw":
            raw(rest[0].replace("ID", str(number)))
        elif verb == "stderr":
            print(rest[0], file=sys.stderr, flush=True)
        elif verb == "wait":
            while not os.path.exists(rest[0]):
                time.sleep(0.002)
        elif verb == "wait_cancel":
            while number not in cancelled:
                time.sleep(0.002)
        elif verb == "exit":
            os._exit(rest[0])
        elif verb == "flood":
            count = 0
            while number not in cancelled and count < rest[1]:
                going[number].wait()
                frame(chunk="x" * rest[0])
                count += 1
            report(f"flooded {count}")
        elif verb == "drip":
            # Numbered chunks: their size in bytes, their count, and the milliseconds between them.
            count = 0
            while number not in cancelled and count < rest[1]:
                going[number].wait()
                frame(chunk=f"{count} ".ljust(rest[0], "x"))
                count += 1
                time.sleep(rest[2] / 1000)
            report(f"dripped {count}")
        elif verb == "pid":
            frame(result={"pid": os.getpid()})
        elif verb == "report":
            report(rest[0])


raw(json.dumps({"openwhisk": 2, **json.loads(os.environ.get("HANDSHAKE", "{}"))}))
for line in sys.stdin:
    message = json.loads(line)
    if "run" in message:
        number = message["run"]
        going[number] = threading.Event()
        going[number].set()
        steps = message["value"].get("do", [["result", message]])
        threading.Thread(target=run, args=(number, steps), daemon=True).start()
        continue
    if "cancel" in message:
        going[message["cancel"]].set()
        cancelled.add(message["cancel"])
    elif "pause" in message:
        going[message["pause"]].clear()
    elif "resume" in message:
        going[message["resume"]].set()
    report(line.strip())
report("end of input")
os._exit(0)
