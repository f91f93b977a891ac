#!/usr/bin/env python3
"""A reward as a program: does the reasoning speak of the side that the reference's region lies on?

thinkvg grpo --rewards answer=1,grounding=1,format=1,program:configs/rewards/laterality.py=0.5 ...

One completion a line comes in as JSON; one line a completion goes out: a number, null (not applicable), or an object
with "value" and "reason". See include/thinkvg/rewards/options.h, ProgramOptions, for the fields.
"""
import json
import sys


def sides(text):
    words = set(text.lower().replace(",", " ").replace(".", " ").split())
    found = {side for side in ("left", "right") if side in words}
    return {"left", "right"} if "bilateral" in words or "both" in words else found


def score(rollout):
    wanted = set().union(*(sides(region["ref"]) for region in rollout["reference_regions"]), set())
    if not wanted:
        return {"value": None, "reason": "the reference names no side"}
    said = sides(rollout["parsed"]["think"])
    if said == wanted:
        return {"value": 1, "reason": "speaks of the right side"}
    return {"value": 0, "reason": f"speaks of {sorted(said)}, the reference of {sorted(wanted)}"}


for line in sys.stdin:
    print(json.dumps(score(json.loads(line))), flush=True)
