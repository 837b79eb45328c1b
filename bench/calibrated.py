"""Calibrations of networks with real weights, for benchmarks: `python -m bench.calibrated [NETWORK …]`.

A zoo's network has the calibration that comes with it (`scripts/calibrate_zoo.py`). Of others tables and settings come
from the same calibration photos of `bench.photos`: a third of them are learnt from, the others say which setting keeps
how many answers; out/calibrated keeps that. Their cuts are those where the least crosses: the first of each stretch of
the chain that is narrower than what is before and behind it, and no wider than the input.

The test photos judge what was picked: fidelity (the uncut model's top label on the same input, uncompressed), not
accuracy.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
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
from splitpoint.models.zoo import zoo_path
from splitpoint.tensors import Array

Inputs: TypeAlias = Mapping[str, Array]
#: Networks whose weights are real.
REAL = ("efficientnet_lite0",)
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


def place_of(name: str) -> Path:
    """The file of a network's calibration; made, and made to its end, if it is not there."""
    ready = zoo_path(name).with_suffix(".calib.json")
    place = ready if ready.exists() else _FOLDER / f"{name}.calib.json"
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        model = load(path_of(name))
        inputs, engine = read(model, "calibration"), open_engine(threads=1)
        pieces = []
        for cut in narrow_cuts(model)[:-1]:
            piece = place.with_suffix(f".{cut.name}.json")  # a run that is ended goes on
            if not piece.exists():
                began = perf_counter()
                tables = learn_tables(model, engine, inputs[::3], [cut], on_note=print)
                rest = [one for k, one in enumerate(inputs) if k % 3]
                save_calibration(piece, calibrate(model, engine, rest, cuts=[cut], tables=tables, on_note=print))
                print(f"{name} is calibrated at {cut.name}: {perf_counter() - began:.0f} s", flush=True)
            pieces.append(load_calibration(piece))
        rows = tuple(row for piece in pieces for row in piece.rows)
        tables = tuple({t.tensor: t for piece in pieces for t in piece.tables}.values())
        save_calibration(place, replace(pieces[0], rows=rows, tables=tables))
    return place


def calibrated(name: str) -> Calibration:
    """What settings keep on calibration photos, with the tables."""
    return load_calibration(place_of(name))


def judged(model: Model, known: Calibration, at: str, codecs: Sequence[str], inputs: Sequence[Inputs]) -> Calibration:
    """What `codecs` keep at a cut on `inputs`: the test photos."""
    cut, engine = model.graph.cut(at), open_engine(threads=1)
    return calibrate(model, engine, inputs, codecs=codecs, cuts=[cut], tables=known.tables)


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
        model, known = load(path_of(name)), calibrated(name)
        inputs, prefixes = read(model, "test"), model.graph.prefixes()
        print(f"{name}: settings by {known.inputs} calibration photos, judged on {len(inputs)} others")
        print(f"{'at':<26}{'kept':>6}  {'as':<12}{'bytes':>8}{'there':>8}{'bytes':>8}{'on test photos':>20}")
        for prefix in dict.fromkeys(r.prefix for r in known.rows):
            at = prefixes[prefix].name
            rows = {
                (share, kinds): cheapest(known, prefix, share, kinds)
                for share in (0.90, 0.95, 0.98)
                for kinds in (("jpeg",), ("jpeg444",), ("klt",), ("int8", "int4", "int8+zstd", "int4+zstd"))
            }
            picked = list(dict.fromkeys(row.codec for row in rows.values() if row))
            test = judged(model, known, at, picked, inputs)
            for (share, _), row in rows.items():
                if row and (other := test.row(prefix, row.codec)):
                    same = other.quality.agreement or 0.0
                    low, high = interval(same, test.inputs)
                    print(
                        f"{at:<26}{share:>6.0%}  {row.codec:<12}{sum(row.nbytes):>8}{row.quality.agreement:>8.1%}"
                        f"{sum(other.nbytes):>8}{same:>7.1%} ({low:.1%}–{high:.1%})"
                    )


if __name__ == "__main__":
    main()
