"""How clean each way of slowing a device is: `python -m bench.slow`.

A whole EfficientNet-Lite0 and a head of a millisecond or so, one thread, as it is and 2, 4 and 16 times slower by
each method; back to back, and apart (30 ms of rest between runs, as requests come). Ratio of medians, and how far the
10th and 90th percentiles lie from the median.
"""

from __future__ import annotations

import json
import subprocess
import sys

from splitpoint.errors import EngineError
from splitpoint.lab.slow_device import slowed

CODE = """
import json, sys, time
import numpy as np
from splitpoint.engines import open_engine
from splitpoint.lab.slow_device import Stretched
from splitpoint.models import load
factor = float(sys.argv[1])
model = load("zoo:efficientnet_lite0")
engine = Stretched(open_engine(threads=1), factor)
image = np.random.default_rng(0).integers(0, 255, (1, 224, 224, 3), np.uint8)
sessions = {"whole": model.whole(), "head": model.head(model.graph.cut("stem.relu6"))}
spans = {}
for name, segment in sessions.items():
    session = engine.compile(segment)
    feed = {"image": image} if "image" in [t.name for t in session.inputs] else {session.inputs[0].name: image}
    for rest in (0.0, 0.03):
        times = []
        end = time.monotonic() + 1.2
        for k in range(64):
            if rest:
                time.sleep(rest)
            began = time.perf_counter()
            session.run(feed)
            times.append((time.perf_counter() - began) * 1e3)
            if time.monotonic() > end and k > 10:
                break
        spans[f"{name}, {'apart' if rest else 'back to back'}"] = list(np.percentile(times[3:], (10, 50, 90)))
print(json.dumps(spans))
"""

Found = dict[str, list[float]]


def measure(method: str, factor: float) -> Found:
    """Percentiles 10, 50, 90 in ms by case, in a process of its own."""
    if method in ("none", "stretched"):
        command = [sys.executable, "-c", CODE, str(factor if method == "stretched" else 1)]
        text = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    else:
        with slowed(factor, method=method) as slow:
            process = slow.start([sys.executable, "-c", CODE, "1"], stdout=subprocess.PIPE, text=True)
            text, _ = process.communicate()
    spans: Found = json.loads(text)
    return spans


def main(rounds: int = 2) -> None:
    """Rounds of everything in turns; of each case the round with the least median counts: others may compute here."""
    cases = [("none", 1.0), *((m, f) for f in (2.0, 4.0, 16.0) for m in ("stretched", "quota", "stop"))]
    best: dict[tuple[str, float], Found] = {}
    for _ in range(rounds):
        for method, factor in cases:
            try:
                spans = measure(method, factor)
            except EngineError as exc:
                print(f"{method}: {exc}")
                continue
            kept = best.setdefault((method, factor), spans)
            for name, values in spans.items():
                kept[name] = min(kept[name], values, key=lambda v: v[1])
    base = best.pop(cases[0])
    print("as it is: " + "; ".join(f"{k} {v[1]:.2f} ms ({v[0]:.2f}…{v[2]:.2f})" for k, v in base.items()))
    for (method, factor), spans in best.items():
        for name, (low, mid, high) in spans.items():
            spread = f"p10 {low / mid - 1:+.0%}, p90 {high / mid - 1:+.0%}"
            print(f"{factor:g}x {method:9} {name:20} median ÷ unslowed {mid / base[name][1]:6.2f}   {spread}")


if __name__ == "__main__":
    main()
