"""Nothing is lost: thousands of requests through a seeded schedule of faults, with a real server, link and device.

    python -m bench.faults [--count 5000] [--seed 1] [--rate 40] [--model zoo:lenet5] [--at CUT]

What goes wrong is `splitpoint.lab.faults`: nine kinds, each as often as the others, and a blackhole of ten seconds.
A third of the requests is a stream, a third is asked one by one, a third by three threads at once; half of them have a
deadline of 250 ms. Exits with 1 if one request was not answered exactly once with what the whole model answers.

A gap is the time between two answers, and requests are 1000 ÷ rate ms apart.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter

from msgspec.structs import replace

from splitpoint.lab import fault_run as ordeal
from splitpoint.lab.faults import KINDS, schedule
from splitpoint.machine import this_machine, versions
from splitpoint.units import counted, ms

BLACKOUT_S = 10.0


def main(arguments: list[str]) -> int:
    options = _options(arguments)
    count = options.count
    planned = list(schedule(options.seed, count))
    black = max((k for k, fault in enumerate(planned) if fault.do == "blackhole"), default=None)
    if black is not None:
        planned[black] = replace(planned[black], seconds=BLACKOUT_S)
    report = ordeal.run(options.model, planned, count=count, at=options.at, rate=options.rate, seed=options.seed)
    print(f"{options.model} cut at {options.at}, {options.rate:g} requests a second, seed {options.seed}")
    print(f"{'fault':<13} {'times':>5} {'server':>7} {'here':>6} {'longest gap ms':>14}  about")
    for toll in report.tolls():
        about = KINDS[toll.kind][0] if toll.kind else "before the first"
        name, times = toll.kind or "none", str(toll.times or "")
        print(f"{name:<13} {times:>5} {toll.by_server:>7} {toll.here:>6} {ms(toll.longest_gap_ms):>14}  {about}")
    print("why answers were not the server's:")
    for why, number in Counter(a.fallback for a in report.answers if a.fallback).most_common(12):
        print(f"  {number:>5}  {why}")
    missed = [a for a in report.answers if a.missed_ms > 0]
    worst = max((a.missed_ms for a in missed), default=0.0)
    print(f"{counted(len(missed), 'deadline')} missed, by {ms(worst)} ms at most")
    print(f"largest relative error {max((a.error for a in report.answers), default=0.0):.1e}")
    print(report.summary)
    for complaint in report.complaints:
        print(f"NOT SOUND: {complaint}")
    return 1 if report.complaints else 0


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rate", type=float, default=40.0)
    parser.add_argument("--model", default="zoo:lenet5")
    parser.add_argument("--at", default="pool1")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    print(this_machine(), ", ".join(f"{k} {v}" for k, v in versions().items()), sep="\n")
    raise SystemExit(main(sys.argv[1:]))
