"""How clean each way of slowing a device is: `python -m bench.slow`.

Computations from 0.2 to 200 ms (heads of EfficientNet-Lite0, all of it, all of it for 16 images), one thread, as they
are and 2 and 8 times slower by each method; back to back, and apart (30 ms of rest between runs, as requests come).
Ratio of medians, and how far the 10th and 90th percentiles lie from the median.
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
from splitpoint.models import load
model = load("zoo:efficientnet_lite0")
engine = open_engine(threads=1)
image = np.random.default_rng(0).integers(0, 255, (1, 224, 224, 3), np.uint8)
cases = {"normalize.mul": 1, "stem.relu6": 1, "blocks.3.project.norm": 1, "output": 1, "output, 16 images": 16}
spans = {}
for name, batch in cases.items():
    session = engine.compile(model.head(model.graph.cut(name.partition(",")[0])))
    feed = {"image": np.repeat(image, batch, 0)}
    for rest in (0.0, 0.03):
        times = []
        end = time.monotonic() + 0.8
        for k in range(40):
            if rest:
                time.sleep(rest)
            began = time.perf_counter()
            session.run(feed)
            times.append((time.perf_counter() - began) * 1e3)
            if time.monotonic() > end and k > 5:
                break
        spans[f"{name}, {'apart' if rest else 'back to back'}"] = list(np.percentile(times[3:], (10, 50, 90)))
print(json.dumps(spans))
"""

Found = dict[str, list[float]]


def measure(method: str, factor: float) -> Found:
    """Percentiles 10, 50, 90 in ms by case, in a process of its own."""
    command = [sys.executable, "-c", CODE]
    if method == "none":
        text = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    else:
        with slowed(factor, method=method) as slow:
            process = slow.start(command, stdout=subprocess.PIPE, text=True)
            text, _ = process.communicate()
    spans: Found = json.loads(text)
    return spans


def main(rounds: int = 2) -> None:
    """Rounds of everything in turns; of each case the round with the least median counts: others may compute here."""
    cases = [("none", 1.0), *((m, f) for f in (2.0, 8.0) for m in ("stretched", "quota", "stop"))]
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
            print(f"{factor:g}x {method:9} {name:36} median ÷ unslowed {mid / base[name][1]:6.2f}   {spread}")


if __name__ == "__main__":
    main()
