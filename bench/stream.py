"""A stream over two cores against the whole model on one: head and tail of equal cost, ideally 2×."""

from __future__ import annotations

import sys
from time import perf_counter

import splitpoint as sp
from bench.common import EDGE_CORE, SERVE, header, helper, interleaved, pin
from splitpoint.segments import halves, samples_for
from splitpoint.tensors import Array

TARGET = 1.6


def main(model_name: str = "zoo:efficientnet_lite0", frames: int = 150, rounds: int = 5) -> None:
    pin(EDGE_CORE)
    model, engine = sp.load(model_name), sp.open_engine(threads=1)
    image = samples_for(model, 1)[0]
    cut = _balanced(model, engine, image)
    whole = engine.compile(model.whole())
    with helper(SERVE, model_name) as server:
        assert server.stdout
        with sp.Edge(server.stdout.readline().strip(), model, at=cut, engine=engine) as edge:

            def streamed() -> float:
                start = perf_counter()
                for _ in edge.stream(image for _ in range(frames)):
                    pass
                return (perf_counter() - start) * 1e3

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


def _balanced(model: sp.Model, engine: sp.Engine, image: dict[str, Array]) -> sp.Cut:
    """The single-tensor cut whose head and tail take the most equal time here."""
    middle = model.graph.middle().index or 0
    best: tuple[float, sp.Cut] | None = None
    for cut in model.graph.chain()[max(1, middle - 8) : middle + 9]:
        both = halves(model, cut, engine)
        assert both.head
        assert both.tail
        made = both.head.run(image)
        times = interleaved(
            {"head": lambda b=both: b.head.run(image) and None, "tail": lambda b=both, m=made: b.tail.run(m) and None},
            15,
        )
        both.close()
        gap = abs(times["head"] - times["tail"])
        if best is None or gap < best[0]:
            best = (gap, cut)
    assert best
    return best[1]


if __name__ == "__main__":
    print(header())
    main(*sys.argv[1:2])
