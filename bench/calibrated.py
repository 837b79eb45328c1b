"""Calibrations of networks with real weights, for benchmarks: `python -m bench.calibrated [NETWORK …]`.

Tables and settings come from the calibration photos of `bench.photos`: a third of them are learnt from, the others say
which setting keeps how many answers. The test photos judge what was picked: fidelity (the uncut model's top label on
the same input, uncompressed), not accuracy. Both are kept in out/calibrated and made again when they are not there.
The cuts are those where the least crosses: the first of each stretch of the chain that is narrower than what is before
and behind it, and no wider than the input.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import TypeAlias

from msgspec.structs import replace

from bench.common import header
from bench.fidelity import interval
from bench.nets import path_of
from bench.photos import photos
from splitpoint.calibration.calibrations import Calibration, CalibrationRow
from splitpoint.calibration.codec_trials import calibrate
from splitpoint.calibration.files import load_calibration, save_calibration
from splitpoint.calibration.tables import learn_tables
from splitpoint.engines import open_engine
from splitpoint.graph import Cut
from splitpoint.inputs import read_inputs
from splitpoint.models import load
from splitpoint.models.model import Model
from splitpoint.tensors import Array

Inputs: TypeAlias = Mapping[str, Array]
#: Networks whose weights are real.
REAL = ("efficientnet_lite0",)
#: What is tried: one setting is picked by a few answers more or less, so that they are close to each other.
SENT = (
    *("fp16", "int8", "int4", "raw+zstd", "int8+zstd", "int4+zstd"),
    *(f"klt:{level}" for level in range(18, 91, 6)),
    *(f"jpeg:{quality}" for quality in (75, 85, 90, 95, 97, 98, 99)),
    *(f"jpeg444:{quality}" for quality in (85, 90, 92, 94, 95, 96, 97, 98, 99)),
)
#: And of the pictures that are never sent those that keep much.
UNSENT = ("webp:95", "webp:98", "webp:100", "avif:80", "avif:90", "avif:95", "webp-lossless")
_FOLDER = Path("out") / "calibrated"


def narrow_cuts(model: Model) -> list[Cut]:
    """Input, output, and where the least crosses: the first cut of each stretch narrower than what is around it."""
    chain = model.graph.chain()
    inside = [
        cut
        for before, cut, after in zip(chain, chain[1:], _next_other(chain[1:]), strict=False)
        if cut.nbytes < before.nbytes
        and cut.nbytes <= chain[0].nbytes
        and (cut.nbytes < after.nbytes or not after.crossing)
    ]
    return [chain[0], *inside, chain[-1]]


def _next_other(chain: Sequence[Cut]) -> list[Cut]:
    """For each but the last, the next cut that another number of bytes crosses."""
    return [next((c for c in chain[k:] if c.nbytes != cut.nbytes), chain[-1]) for k, cut in enumerate(chain[:-1])]


def read(model: Model, part: str) -> list[dict[str, Array]]:
    """The photos of ``calibration`` or ``test`` as inputs of `model`."""
    return [read_inputs(model, path) for path in photos(part)]


def calibrated(name: str) -> Calibration:
    """What settings keep on calibration photos, with the tables."""

    def at(model: Model, inputs: Sequence[Inputs], cut: Cut) -> Calibration:
        engine, learnt = open_engine(threads=1), len(inputs) // 3
        tables = learn_tables(model, engine, inputs[:learnt], [cut], on_note=print)
        return calibrate(model, engine, inputs[learnt:], codecs=(*SENT, *UNSENT), cuts=[cut], tables=tables)

    return _kept(name, "calibration", at)


def judged(name: str) -> Calibration:
    """The same settings on the test photos, but for pictures that are never sent."""
    tables = calibrated(name).tables

    def at(model: Model, inputs: Sequence[Inputs], cut: Cut) -> Calibration:
        return calibrate(model, open_engine(threads=1), inputs, codecs=SENT, cuts=[cut], tables=tables)

    return _kept(name, "test", at)


def place_of(name: str, part: str = "calibration") -> Path:
    """The file of `calibrated`, or of `judged`."""
    return _FOLDER / f"{name}.{part}.json"


def _kept(name: str, part: str, at: Callable[[Model, Sequence[Inputs], Cut], Calibration]) -> Calibration:
    """What `at` says of all cuts; each is kept when it is done, so that a run that is ended goes on."""
    place = place_of(name, part)
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        model = load(path_of(name))
        inputs = read(model, part)
        pieces = []
        for cut in narrow_cuts(model)[:-1]:
            piece = place.with_suffix(f".{cut.name}.json")
            if not piece.exists():
                began = perf_counter()
                save_calibration(piece, at(model, inputs, cut))
                print(f"{name} at {cut.name}, {part} photos: {perf_counter() - began:.0f} s", flush=True)
            pieces.append(load_calibration(piece))
        rows = tuple(row for piece in pieces for row in piece.rows)
        tables = tuple({t.tensor: t for piece in pieces for t in piece.tables}.values())
        save_calibration(place, replace(pieces[0], rows=rows, tables=tables))
    return load_calibration(place)


def cheapest(calibration: Calibration, prefix: int, agreement: float, kinds: Sequence[str]) -> CalibrationRow | None:
    """The setting of the fewest bytes at a cut, of codecs of these `kinds`, that kept `agreement`."""
    kept = [
        r
        for r in calibration.rows
        if r.prefix == prefix and r.codec.partition(":")[0] in kinds and (r.quality.agreement or 0.0) >= agreement
    ]
    return min(kept, key=lambda r: sum(r.nbytes), default=None)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.calibrated", description="Settings that keep the answers.")
    parser.add_argument("networks", nargs="*", default=REAL)
    print(header(pinned=False))
    for name in parser.parse_args().networks:
        known, test = calibrated(name), judged(name)
        prefixes = load(path_of(name)).graph.prefixes()
        print(f"{name}: settings by {known.inputs} calibration photos, judged on {test.inputs} others")
        print(f"{'at':<26}{'kept':>6}  {'as':<12}{'bytes':>8}{'there':>8}{'bytes':>8}{'on test photos':>20}")
        for prefix in dict.fromkeys(r.prefix for r in known.rows):
            for share in (0.90, 0.95, 0.98):
                for kinds in (("jpeg", "jpeg444"), ("klt",), ("int8", "int4", "int8+zstd", "int4+zstd")):
                    row = cheapest(known, prefix, share, kinds)
                    other = row and test.row(prefix, row.codec)
                    if row and other:
                        same = other.quality.agreement or 0.0
                        low, high = interval(same, test.inputs)
                        print(
                            f"{prefixes[prefix].name:<26}{share:>6.0%}  {row.codec:<12}{sum(row.nbytes):>8}"
                            f"{row.quality.agreement:>8.1%}{sum(other.nbytes):>8}{same:>7.1%} ({low:.1%}–{high:.1%})"
                        )


if __name__ == "__main__":
    main()
