"""How truly each way of slowing a device slows it: `python -m bench.slow`.

Heads of EfficientNet-Lite0 from 0.1 to 10 ms, one thread, in a process for each way, all on one core. They take turns
of some runs each: as they are (twice: how far two runs of the same differ), and 8 times slower. *Apart* is with 30 ms
of rest before every run, as requests come; *back to back* without, so that a slowed run follows its own wait. Medians
÷ the unslowed one's, and how far the 10th and 90th percentiles lie from the median. ``--all``: also 2 times slower,
by stopping, and 4 images at once (some 40 ms unslowed); that takes minutes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import numpy as np

from bench.common import EDGE_CORE, header
from splitpoint.errors import EngineError
from splitpoint.lab.slow_device import slowed

#: Cut → images at once.
CASES = {
    "normalize.mul": 1, "stem.relu6": 1, "blocks.1.project.norm": 1, "blocks.3.project.norm": 1, "output": 1,
}  # fmt: skip
RESTS_MS = (30, 0)
#: Ways of slowing, and how much.
WAYS = [("stretched", 8.0), ("quota", 8.0)]
#: Turns of each way, after one that does not count.
TURNS = 4

CODE = """
import json, sys, time
import numpy as np
from bench.common import pin
from splitpoint.engines import open_engine
from splitpoint.models import load
pin(int(sys.argv[1]))
model, engine = load("zoo:efficientnet_lite0"), open_engine(threads=1)
image = np.random.default_rng(0).integers(0, 255, (1, 224, 224, 3), np.uint8)
sessions = {}
print(flush=True)
for line in sys.stdin:
    name, images, rest_ms = json.loads(line)
    if name not in sessions:
        sessions[name] = engine.compile(model.head(model.graph.cut(name)))
    feed, taken, end = {"image": np.repeat(image, images, 0)}, [], time.monotonic() + 0.3
    while len(taken) < 4 or (len(taken) < 11 and time.monotonic() < end):
        if rest_ms:
            time.sleep(rest_ms / 1e3)
        began = time.perf_counter()
        sessions[name].run(feed)
        taken.append((time.perf_counter() - began) * 1e3)
    print(json.dumps(taken[1:]), flush=True)
"""


def started(ways: Sequence[tuple[str, float]], stack: ExitStack) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A process for every way that this machine allows, ready, and two that are not slowed."""
    command = [sys.executable, "-c", CODE, str(EDGE_CORE)]
    options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    for name in ("as it is", "again"):
        process = stack.enter_context(subprocess.Popen(command, **options))  # type: ignore[call-overload]
        stack.callback(process.stdin.close)
        yield name, process
    for method, factor in ways:
        try:
            slow = stack.enter_context(slowed(factor, method=method))
        except EngineError as exc:
            print(f"{method}: {exc}")
            continue
        process = slow.start(command, **options)
        stack.enter_context(process)
        stack.callback(process.stdin.close)
        yield f"{factor:g}x {method}", process


def measure(
    processes: dict[str, subprocess.Popen[str]], case: tuple[str, int, int]
) -> dict[str, tuple[float, float, float]]:
    """Percentiles 10, 50, 90 in ms of each of `processes`, which take turns at the case (cut, images, rest in ms)."""
    taken: dict[str, list[float]] = {way: [] for way in processes}
    for turn in range(1 + TURNS):
        for way, process in processes.items():
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(json.dumps(case) + "\n")
            process.stdin.flush()
            times = json.loads(process.stdout.readline())
            taken[way] += times if turn else []
    return {way: tuple(np.percentile(times, (10, 50, 90)).tolist()) for way, times in taken.items()}


def main(arguments: Sequence[str] = ()) -> None:
    parser = argparse.ArgumentParser(description="How truly each way of slowing a device slows it.")
    parser.add_argument("--all", action="store_true", help="also 2 times slower, by stopping, and 4 images at once")
    more = parser.parse_args(arguments).all
    ways = [*WAYS, ("stop", 8.0), *((m, 2.0) for m in ("stretched", "quota", "stop"))] if more else WAYS
    with ExitStack() as stack:
        processes = dict(started(ways, stack))
        for process in processes.values():
            assert process.stdout is not None
            process.stdout.readline()
        for rest_ms in RESTS_MS:
            print(f"{'apart' if rest_ms else 'back to back'}: ms unslowed; median ÷ that (p10, p90)")
            for cut, images in (CASES | {"output, 4 images": 4} if more else CASES).items():
                spans = measure(processes, (cut.partition(",")[0], images, rest_ms))
                base = spans.pop("as it is")
                said = [f"{w} {m / base[1]:.2f} ({a / m - 1:+.0%}, {b / m - 1:+.0%})" for w, (a, m, b) in spans.items()]
                print(f"  {cut:22} {base[1]:7.2f} ({base[0] / base[1] - 1:+.0%}, {base[2] / base[1] - 1:+.0%}); "
                      + "; ".join(said), flush=True)  # fmt: skip


if __name__ == "__main__":
    print(header())
    main(sys.argv[1:])
