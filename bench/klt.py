"""The codec klt at cuts of EfficientNet-Lite0 beside JPEG: bytes, top-1 agreement, milliseconds.

    python -m bench.klt [--photos DIR] [--calibrate 30 113] [--metric 10] [--cuts blocks.5.project.norm …] [--fast]

Photos are those of `bench.photos`, split by photo: the codec is calibrated on some of ``calibration`` and judged on all
of ``test``. Agreement is with the uncut network on the picture that was not compressed: fidelity, not accuracy.
Intervals are bootstraps over photos, 95 %. The bytes at 90, 95 and 98 % are interpolated between the settings tried on
these very photos, klt's and JPEG's alike: nothing was chosen on others. ``--fast`` measures time only.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
from PIL import Image

from bench.common import EDGE_CORE, header, pin
from bench.photos import photos
from splitpoint.calibration.tail_metric import of_probabilities, tail_metric
from splitpoint.codecs.klt import Klt, KltTables, learn
from splitpoint.engines import Engine, open_engine
from splitpoint.inputs import read_inputs
from splitpoint.models import load
from splitpoint.models.model import Model
from splitpoint.segments import Halves
from splitpoint.tensors import Array, spec_of

MODEL = "zoo:efficientnet_lite0"
CUTS = ("blocks.5.project.norm", "blocks.3.project.norm", "blocks.11.project.norm")
LEVELS = (4, 14, 24, 30, 36, 42, 48, 54, 60, 66, 72, 78, 84)
JPEGS = tuple((q, s) for s in ("4:2:0", "4:4:4") for q in (50, 75, 85, 90, 92, 94, 95, 96, 97, 98, 99))
SHARES = (0.90, 0.95, 0.98)

Point = tuple[str, float, Array]
"""A setting, its median bytes, and for each photo whether the answer stayed."""


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    pin(EDGE_CORE)
    print(header(), flush=True)
    model, engine = load(MODEL), open_engine(threads=1)
    known = [read_inputs(model, p) for p in photos("calibration", options.photos)]
    fresh = [read_inputs(model, p) for p in photos("test", options.photos)]
    print(f"{MODEL}: {len(known)} photos to calibrate, {len(fresh)} others to judge")
    best = {} if options.fast or options.no_jpeg else jpegs(model, engine, fresh)
    for at in options.cuts:
        cut = Halves(model, model.graph.cut(at), engine)
        features = [crossing(cut, one) for one in known]
        others = [crossing(cut, one) for one in fresh]
        kinds = [(n, 0) for n in options.calibrate]
        if options.metric:
            kinds.append((max(options.calibrate), options.metric))
        for count, inputs in kinds:
            start = perf_counter()
            metric = _metric(cut, features[:inputs]) if inputs else None
            tables = learn(features[:count], metric)
            spent = perf_counter() - start
            size, shape = len(tables.to_bytes()), "x".join(map(str, tables.shape))
            seen = f"{min(count, len(known))} photos" + (f", the tail's metric from {inputs}" if inputs else "")
            print(f"\n{at} ({shape}), {seen}: {size} bytes of tables in {spent:.1f} s", flush=True)
            if not options.fast:
                compare(judged(cut, tables, fresh, others), best)
        speed(tables, others[:40])
        cut.close()
        if features[0].shape == (1, 40, 28, 28):
            # No cut of this network is of that size: its features at twice the resolution.
            larger = [f.repeat(2, axis=2).repeat(2, axis=3) for f in features[:30]]
            print("\nfloat32[1,40,56,56], each value four times")
            speed(learn(larger), larger)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.klt", description="The codec klt beside JPEG.")
    parser.add_argument("--photos", type=Path, help="where bench.photos keeps them")
    parser.add_argument("--calibrate", type=int, nargs="+", default=[30, 113], help="how many photos to calibrate on")
    parser.add_argument("--metric", type=int, default=10, help="and once more in the tail's metric from so many photos")
    parser.add_argument("--no-jpeg", action="store_true", help="leave JPEG out")
    parser.add_argument("--cuts", nargs="+", default=CUTS)
    parser.add_argument("--fast", action="store_true", help="milliseconds only")
    return parser.parse_args(arguments)


def crossing(cut: Halves, inputs: dict[str, Array]) -> Array:
    assert cut.head
    return cut.head.run(inputs)[cut.cut.crossing[0].name]


def _metric(cut: Halves, features: Sequence[Array]) -> Array:
    assert cut.tail
    tail, name = cut.tail, cut.cut.crossing[0].name
    return tail_metric(lambda f: of_probabilities(next(iter(tail.run({name: f}).values()))), features)


def jpegs(model: Model, engine: Engine, fresh: Sequence[dict[str, Array]]) -> dict[float, float]:
    """The fewest bytes of any JPEG at each of `SHARES`; prints all."""
    whole = engine.compile(model.whole())
    name, output = model.inputs[0].name, model.outputs[0].name

    def top(picture: Array) -> int:
        return int(whole.run({name: picture})[output].argmax())

    wanted = [top(one[name]) for one in fresh]
    points: dict[str, list[Point]] = {"4:2:0": [], "4:4:4": []}
    for quality, subsampling in JPEGS:
        sizes, same = [], []
        for one, label in zip(fresh, wanted, strict=True):
            data = io.BytesIO()
            Image.fromarray(one[name][0]).save(data, "JPEG", quality=quality, subsampling=subsampling)
            sizes.append(data.tell())
            same.append(top(np.asarray(Image.open(data))[None]) == label)
        points[subsampling].append((f"jpeg:{quality} {subsampling}", median(sizes), np.array(same)))
    whole.close()
    best: dict[float, float] = {}
    for group in points.values():
        for share, nbytes in compare(group, {}).items():
            best[share] = min(nbytes, best.get(share, nbytes))
    return best


def judged(cut: Halves, tables: KltTables, fresh: Sequence[dict[str, Array]], features: Sequence[Array]) -> list[Point]:
    assert cut.tail
    name = cut.cut.crossing[0].name
    output = next(iter(cut.tail.run({name: features[0]})))
    wanted = [int(cut.tail.run({name: f})[output].argmax()) for f in features]
    points = []
    for level in LEVELS:
        klt = Klt(f"klt:{level}", tables)
        data = [klt.encode(f) for f in features]
        answers = [
            cut.tail.run({name: klt.decode(d, spec_of(name, f))})[output] for d, f in zip(data, features, strict=True)
        ]
        same = np.array([int(a.argmax()) == w for a, w in zip(answers, wanted, strict=True)])
        points.append((klt.name, median(d.size for d in data), same))
    return points


def compare(points: Sequence[Point], best: dict[float, float]) -> dict[float, float]:
    """Prints settings, and what `SHARES` take; gives the latter."""
    rng = np.random.default_rng(0)
    for name, nbytes, same in points:
        drawn = same[rng.integers(0, same.size, (2000, same.size))].mean(axis=1)
        low, high = np.percentile(drawn, [2.5, 97.5])
        print(f"  {name:<16}{nbytes:>8.0f} bytes, median{same.mean():>8.1%} ({low:.1%} to {high:.1%})")
    needed: dict[float, float] = {}
    shares = np.maximum.accumulate([float(same.mean()) for _, _, same in points])
    for share in SHARES:
        k = int(np.searchsorted(shares, share))
        if 0 < k < len(points):
            part = (share - shares[k - 1]) / (shares[k] - shares[k - 1])
            needed[share] = points[k - 1][1] * (points[k][1] / points[k - 1][1]) ** part
        beside = f", 1/{best[share] / needed[share]:.1f} of JPEG's" if share in needed and share in best else ""
        print(f"  {share:.0%}: " + (f"{needed[share]:.0f} bytes{beside}" if share in needed else "not among these"))
    return needed


def speed(tables: KltTables, features: Sequence[Array]) -> None:
    for level in (14, 44, 74):
        klt = Klt(f"klt:{level}", tables)
        data = [klt.encode(f) for f in features]
        size = median(d.size for d in data)
        budget = round(0.8 * size)
        print(
            f"  {klt.name}, {size:.0f} bytes: encode {_ms(klt.encode, features)}, decode "
            f"{_ms(lambda d, k=klt: k.decode(d, spec_of('x', features[0])), data)}, within {budget} bytes "
            f"{_ms(lambda f, k=klt, b=budget: k.encode_within(f, b), features)}, 8 decoded together "
            f"{_ms(lambda d, k=klt, e=data: k.decode_many(e[:8], spec_of('x', features[0])), data)} ms"
        )


def _ms(action: Callable[[Array], object], arrays: Sequence[Array], rounds: int = 5) -> str:
    """Median and 90th percentile."""
    taken = []
    for _ in range(rounds):
        for array in arrays:
            start = perf_counter()
            action(array)
            taken.append((perf_counter() - start) * 1e3)
    return f"{median(taken):.2f} (p90 {sorted(taken)[len(taken) * 9 // 10]:.2f})"


if __name__ == "__main__":
    main()
