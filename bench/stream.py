"""How busy a stream keeps device, link and server.

First, over two cores against the whole model on one: head and tail of equal cost, ideally 2×. Then over a shaped link
that takes as long as head and tail each do, the hardest case: ideally one answer every longest stage. There three work
and there are two cores: once as it is, and once with a device that is a machine of its own (emulated, `bench.apart`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from math import ceil
from statistics import median
from time import perf_counter, sleep

import numpy as np

import splitpoint as sp
from bench.apart import Apart
from bench.common import EDGE_CORE, SERVE, SERVER_CORE, header, helper, interleaved, pin
from splitpoint.engines import Engine, Session
from splitpoint.lab.relay import Relay
from splitpoint.link import Link
from splitpoint.models.model import Segment
from splitpoint.segments import Halves, samples_for
from splitpoint.tensors import Array
from splitpoint.trace import Trace, stage_ms

TARGET = 1.6
#: Of what the longest stage allows.
BUSY = 0.9
#: How long a half takes that only waits.
WAIT_MS = 20.0
WAIT = SERVE.replace("engine=sp.open_engine(threads=1)", "engine=Waiting()").replace(
    "import splitpoint as sp\n", "import splitpoint as sp\nfrom bench.stream import Waiting\n"
)


def main(model_name: str = "zoo:efficientnet_lite0", frames: int = 150, rounds: int = 5) -> None:
    pin(EDGE_CORE)
    model, engine = sp.load(model_name), sp.open_engine(threads=1)
    image = samples_for(model, 1)[0]
    cut = _balanced(model, engine, image)
    with helper(SERVE, model_name) as server:
        assert server.stdout
        address = server.stdout.readline().strip()
        two_cores(model, engine, cut, image, address, frames, rounds)
        three_stages(model, engine, cut, image, address, 1.0, frames, rounds)
        three_stages(model, Apart(engine, 1.0), cut, image, address, 1.0, frames, rounds)
    with helper(WAIT, model_name) as server:
        assert server.stdout
        address = server.stdout.readline().strip()
        for rtt_ms in (1.0, 20.0):
            three_stages(model, Waiting(), cut, image, address, rtt_ms, frames, rounds)


def two_cores(
    model: sp.Model, engine: Engine, cut: sp.Cut, image: dict[str, Array], address: str, frames: int, rounds: int
) -> None:
    """A stream against the whole model."""
    whole = engine.compile(model.whole())
    with sp.Edge(address, model, at=cut, engine=engine) as edge:

        def streamed() -> float:
            return 1e3 * _stream_s(edge, image, frames, 4)

        def alone() -> None:
            for _ in range(frames):
                whole.run(image)

        times = interleaved({"stream": streamed, "whole": alone}, rounds, warm=1)
    rate = {name: frames / ms * 1e3 for name, ms in times.items()}
    print(f"{model.name} cut at {cut.name}: {frames} frames, medians of {rounds} interleaved runs")
    print(
        f"  whole on one core {rate['whole']:.1f}/s, stream over two {rate['stream']:.1f}/s: "
        f"{rate['stream'] / rate['whole']:.2f}× (target ≥ {TARGET}×)"
    )


def three_stages(
    model: sp.Model, engine: Engine, cut: sp.Cut, image: dict[str, Array], address: str, rtt_ms: float, frames: int,
    rounds: int,
) -> None:  # fmt: skip
    """A stream over a link that takes as long as the longer half: stages one by one, then all at once."""
    with sp.Edge(address, model, at=cut, engine=engine) as edge:
        alone = [edge.infer(image) for _ in range(30)][5:]
    spent = [stage_ms(r.trace) for r in alone]
    device = median([s["edge"] + s["encode"] for s in spent])
    server = median([s["server"] for s in spent])
    nbytes = alone[0].up_nbytes
    mbps = nbytes * 8e-3 / max(device, server)
    os.sched_setaffinity(0, {EDGE_CORE, SERVER_CORE})  # the relay takes whichever core is free
    relay = Relay(address, Link(mbps, 1000.0, rtt_ms))
    with relay, sp.Edge(relay.address, model, at=cut, engine=engine) as edge:
        pin(EDGE_CORE)
        stages = {"device": device, "link": nbytes * 8e-3 / mbps, "server": server}
        longest = max(stages.values())
        window = ceil((sum(stages.values()) + rtt_ms) / longest) + 1
        _stream_s(edge, image, 20, window)
        traces: list[Trace] = []
        took = [_stream_s(edge, image, frames, window, traces) for _ in range(rounds)]
    rate = frames / median(took)
    spent = [stage_ms(t) for t in traces]
    then = {
        "device": median([s["edge"] + s["encode"] for s in spent]),
        "link": stages["link"],
        "server": median([s["server"] for s in spent]),
    }
    said = ", ".join(f"{name} {ms:.2f}" for name, ms in stages.items())
    does = {Waiting: "wait", Apart: "compute, the device apart (emulated)"}.get(type(engine), "compute")
    print(f"stages that {does}: {said} ms; {mbps:.1f} Mbit/s up, round trip {rtt_ms:g} ms, {window} under way")
    print(
        f"  stream {rate:.1f}/s of {1e3 / longest:.1f}/s: {rate * longest / 1e3:.2f} of 1 ÷ longest stage "
        f"(target ≥ {BUSY}; worst of {rounds} runs {frames / max(took) * longest / 1e3:.2f})"
    )
    slowed = ", ".join(f"{name} {ms:.2f}" for name, ms in then.items())
    print(
        f"  the same stages while all three work: {slowed} ms: {rate * max(then.values()) / 1e3:.2f} of 1 ÷ the longest"
    )


class Waiting:
    """An engine that takes `WAIT_MS` for anything and computes nothing: what is left is the pipeline itself.

    Two cores cannot compute a head and a tail and play the link at once without getting in each other's way; a device,
    a server and a network do.
    """

    name, device, threads = "waiting", "none", 1

    def compile(self, segment: Segment) -> Session:
        return _Waiting(segment)


class _Waiting:
    def __init__(self, segment: Segment) -> None:
        self.inputs, self.outputs, self.nbytes = segment.inputs, segment.outputs, 0
        self._made = {
            t.name: np.zeros([n if isinstance(n, int) else 1 for n in t.shape], t.dtype) for t in segment.outputs
        }

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        sleep(WAIT_MS / 1e3)
        return dict(self._made)

    def close(self) -> None:
        pass


def _stream_s(
    edge: sp.Edge, image: dict[str, Array], frames: int, window: int, traces: list[Trace] | None = None
) -> float:
    """Seconds that a stream of `frames` takes, from the first frame taken to the last answer; `traces` takes theirs."""
    start = perf_counter()
    for result in edge.stream((image for _ in range(frames)), window=window):
        if traces is not None:
            traces.append(result.trace)
    return perf_counter() - start


def _balanced(model: sp.Model, engine: Engine, image: dict[str, Array]) -> sp.Cut:
    """A single-tensor cut whose head and tail take about the same time here."""
    middle = model.graph.middle().index or 0
    balanced: list[tuple[float, int, sp.Cut]] = []
    for cut in model.graph.chain()[max(1, middle - 8) : middle + 9]:
        both = Halves(model, cut, engine)
        assert both.head
        assert both.tail
        tensors = both.head.run(image)
        times = interleaved(
            {
                "head": lambda b=both: b.head.run(image) and None,
                "tail": lambda b=both, m=tensors: b.tail.run(m) and None,
            },
            15,
        )
        both.close()
        gap = abs(times["head"] - times["tail"]) / (times["head"] + times["tail"])
        balanced.append((gap, sum(t.nbytes for t in cut.crossing), cut))
    # Of those as good as equal the one with the fewest bytes: a fast relay would take a core of its own.
    near = [f for f in balanced if f[0] <= 0.08] or [min(balanced, key=lambda f: f[0])]
    return min(near, key=lambda f: f[1])[2]


if __name__ == "__main__":
    print(header())
    main(*sys.argv[1:2])
