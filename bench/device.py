"""A device process: resident memory with a head, with a local tail too; switching cuts; inspecting 900 nodes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter

from bench.common import SERVE, header, helper

MODEL = "zoo:efficientnet_lite0"

#: A device as `splitpoint run` makes it: fetches its head into an empty cache, answers, then compiles a tail too.
DEVICE = """
import sys
from pathlib import Path
from time import perf_counter
from statistics import median
import numpy as np
import splitpoint as sp

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 1e6

image = np.random.default_rng(0).integers(0, 255, (1, 224, 224, 3), np.uint8)
engine = sp.open_engine(threads=2)
with sp.Edge(sys.argv[1], at="middle", engine=engine, cache=Path(sys.argv[2])) as edge:
    for _ in range(20):
        edge.infer(image)
    print(f"head only {resident():.0f}")
    edge.pull()
    tail = engine.compile(edge.model.tail(edge.cut))
    made = engine.compile(edge.model.head(edge.cut)).run({"image": image})
    for _ in range(20):
        tail.run(made)
    print(f"with a local tail {resident():.0f}")
    here, there = edge.cut, edge.warm("blocks.5")
    times = []
    for k in range(200):
        start = perf_counter()
        edge.switch(there if k % 2 == 0 else here)
        times.append((perf_counter() - start) * 1e3)
    print(f"switch {median(times):.4f}")
"""


def main() -> None:
    with helper(SERVE, MODEL) as server, TemporaryDirectory() as folder:
        assert server.stdout
        address = server.stdout.readline().strip()
        done = subprocess.run(
            [sys.executable, "-c", DEVICE, address, folder], capture_output=True, text=True, check=True
        )
    values = {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in done.stdout.splitlines()}
    print(f"device process with {MODEL}, resident memory:")
    print(f"  head only {values['head only']:.0f} MB (target ≤ 130)")
    print(f"  with a local tail {values['with a local tail']:.0f} MB (target ≤ 200)")
    print(f"switching to a compiled cut: {values['switch']:.4f} ms (target < 1)")
    model = Path(str(__import__("onnx").__file__)).parent / "backend/test/data/light/light_inception_v2.onnx"
    times = []
    for _ in range(3):
        start = perf_counter()
        subprocess.run([sys.executable, "-m", "splitpoint", "inspect", str(model)], capture_output=True, check=True)
        times.append(perf_counter() - start)
    print(f"splitpoint inspect of a 916-node model, process start included: {median(times):.2f} s (target ≤ 3)")


if __name__ == "__main__":
    print(header())
    main()
