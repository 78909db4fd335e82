"""Stands in for the measuring process: a fake device that measures, fails, crashes or hangs as its first argument
says."""

import json
import os
import sys
import time

mode = sys.argv[1]
options = dict(zip(sys.argv[2::2], sys.argv[3::2], strict=False))
report = os.fdopen(int(options["--report"]), "w", buffering=1)


def say(**message):
    report.write(json.dumps(message) + "\n")


def entry(name, error=0.0, commit="c"):
    return {
        "id": name,
        "family": "launch",
        "kernel": "torch",
        "operation": "empty",
        "dtype": "uint8",
        "shape": {"n": 1},
        "group": "launch",
        "flops": 0,
        "bytes": 1,
        "launches": 1,
        "check": {"against": "x", "error": error, "tolerance": 0.5, "compared": 1},
        "timing": {
            "time_us": 1.0,
            "low_us": 1.0,
            "high_us": 1.0,
            "samples": 1,
            "includes": "x",
            "warm_us": None,
            "host_us": None,
        },
        "date": "2026-11-20T00:00:00Z",
        "commit": commit,
        "state": {},
        "energy": None,
    }


if mode == "dead":
    sys.exit("no device here")
print("a library prints what it likes")  # standard output is no part of the protocol
name = "another chip" if mode == "other_device" else "a chip"
say(
    event="hello",
    device={"name": name, "kind": "cpu", "sensors": "none"},
    checks=[{"name": "product", "ok": True, "detail": "right"}, {"name": "triton", "ok": False, "detail": "none"}],
)
orders = json.loads(sys.stdin.readline())
for index, case in enumerate(orders["cases"]):
    say(event="start", id=case)
    if "bad" in case or mode == "wrong_check":
        if mode == "crash":
            os._exit(11)
        if mode == "hang":
            time.sleep(60)
        if mode == "wrong_check":
            say(event="measurement", measurement=entry(case, error=1.0))
            continue
        say(event="failure", id=case, reason="too large")
        continue
    if mode == "slow" and index > 1:
        time.sleep(60)
    say(event="measurement", measurement=entry(case, commit=orders["commit"]))
say(event="done")
