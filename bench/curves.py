"""Bytes against agreement for networks with real weights: klt at their sensible cuts beside JPEG.

    python -m bench.curves NETWORK … [-o FOLDER] [--cuts NAME …] [--seeds 0] [--calibrate 113] [--photos DIR]

Networks are those of `bench.real_nets`, photos those of `bench.photos`. Answers are compared with the uncut network's
to the raw picture, each network's own kind of answer by `bench.scores`: fidelity, not accuracy. A crop in which the
uncut network sees nothing counts for nothing.

Settings (JPEG's chroma and quality, klt's level at each cut) are picked on the calibration photos, with tables that are
learnt from others than those they are tried on. Then they are judged on the test photos, of which there are two crops:
the one that the network's own preprocessing takes, and the same of a window with 70 % of the sides. Intervals are 95 %
bootstraps that draw photos with all their crops, JPEG's and klt's together. The bytes at a share are interpolated
between settings after isotonic regression, for all alike.
"""

from __future__ import annotations

import argparse
import io
import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from bench.common import header
from bench.photos import photos
from bench.real_nets import NETWORKS, RealNet, path_of
from splitpoint.codecs import open_codec
from splitpoint.codecs.klt import Klt, KltTables, learn
from splitpoint.engines import Engine, open_engine
from splitpoint.images import read_image
from splitpoint.models import load
from splitpoint.models.model import Model
from splitpoint.segments import Halves
from splitpoint.tensors import Array, spec_of

SHARES = (0.90, 0.95, 0.98)
JPEGS = {"4:2:0": (80, 90, 95, 98), "4:4:4": (80, 90, 95, 98, 100)}
LEVELS = tuple(range(20, 101, 8))
CAST = ("int8+zstd", "int4+zstd")
_WINDOW, _DRAWN = 0.7, 1000

Values = Mapping[str, Array]


class Crop(NamedTuple):
    """A crop of photo number `photo`, as the network takes it."""

    photo: int
    pixels: Array


class Point(NamedTuple):
    """A setting: its bytes and the score (0 to 1) of each crop."""

    name: str
    nbytes: Array
    scores: Array

    @property
    def median(self) -> float:
        return float(np.median(self.nbytes))


# --- what is measured -------------------------------------------------------------------------------------------------


def crops(paths: Sequence[Path], network: RealNet, count: int) -> list[Crop]:
    drawn: list[Crop] = []
    for number, path in enumerate(paths):
        with Image.open(path) as image:
            picture = np.asarray(image.convert("RGB"))
        for k in range(count):
            part = window(picture, zlib.crc32(path.name.encode())) if k else picture
            drawn.append(Crop(number, read_image(np.ascontiguousarray(part), network.spec)))
    return drawn


def window(picture: Array, seed: int) -> Array:
    """A part of `picture` with 70 % of its sides, drawn by `seed`."""
    rng = np.random.default_rng(seed)
    height, width = (round(_WINDOW * n) for n in picture.shape[:2])
    y, x = (int(rng.integers(0, n - m + 1)) for n, m in zip(picture.shape[:2], (height, width), strict=True))
    return picture[y : y + height, x : x + width]


class Subject:
    """A network, its crops (those it has an answer to), and its uncut answers to them."""

    def __init__(self, name: str, where: Path | None, most: int | None) -> None:
        self.network = NETWORKS[name]
        self.model: Model = load(path_of(name))
        self.engine: Engine = open_engine(threads=1)
        self._whole = self.engine.compile(self.model.whole())
        self.input, self.output = self.model.inputs[0].name, self.model.outputs[0].name
        known = crops(photos("calibration", where), self.network, 1)
        fresh = crops(photos("test", where)[:most], self.network, self.network.crops)
        answers = [self.answer(c.pixels) for c in known]
        self.gallery = answers
        #: All that tables can be learnt from, whether the network sees something there or not.
        self.to_learn = known
        self.known, self.known_answers = self._seen(known, answers)
        self.fresh, self.fresh_answers = self._seen(fresh, [self.answer(c.pixels) for c in fresh])

    def _seen(self, some: list[Crop], answers: list[Array]) -> tuple[list[Crop], list[Array]]:
        kept = [k for k, a in enumerate(answers) if self.network.sees(a)]
        return [some[k] for k in kept], [answers[k] for k in kept]

    def answer(self, pixels: Array) -> Array:
        return self._whole.run({self.input: pixels})[self.output]

    def score(self, whole: Array, other: Array) -> float:
        return self.network.score(whole, other, self.gallery)

    def scored(self, name: str, sizes: Sequence[int], wanted: Sequence[Array], got: Sequence[Array]) -> Point:
        scores = [self.score(a, b) for a, b in zip(wanted, got, strict=True)]
        return Point(name, np.array(sizes), np.array(scores, np.float64))

    def jpeg(self, quality: int, subsampling: str, some: Sequence[Crop], wanted: Sequence[Array]) -> Point:
        sizes, got = [], []
        for crop in some:
            data = io.BytesIO()
            Image.fromarray(crop.pixels[0]).save(data, "JPEG", quality=quality, subsampling=subsampling)
            sizes.append(data.tell())
            got.append(self.answer(np.asarray(Image.open(data))[None]))
        return self.scored(f"jpeg:{quality} {subsampling}", sizes, wanted, got)


class CutSubject:
    """A subject at a cut: what crosses of each crop, and what codecs make of it."""

    def __init__(self, subject: Subject, at: str) -> None:
        self._subject = subject
        cut = subject.model.graph.cut(at)
        self.names = [t.name for t in cut.crossing]
        nodes = subject.model.graph.nodes
        self.work = sum(nodes[i].flops for i in cut.nodes) / sum(n.flops for n in nodes)
        """The device's share of the network's FLOPs."""
        self._halves = Halves(subject.model, cut, subject.engine)
        self.to_learn = [self._crossing(c) for c in subject.to_learn]
        known = {id(c): v for c, v in zip(subject.to_learn, self.to_learn, strict=True)}
        self.known = [known[id(c)] for c in subject.known]
        self._fresh: list[Values] = []

    @property
    def fresh(self) -> list[Values]:
        self._fresh = self._fresh or [self._crossing(c) for c in self._subject.fresh]
        return self._fresh

    def _crossing(self, crop: Crop) -> Values:
        assert self._halves.head
        values = self._halves.head.run({self._subject.input: crop.pixels})
        return {n: values[n] for n in self.names}

    def tables(self, some: Sequence[Values]) -> dict[str, KltTables]:
        return {n: learn([one[n] for one in some]) for n in self.names}

    def klt(
        self, level: int, tables: Mapping[str, KltTables], some: Sequence[Values], wanted: Sequence[Array]
    ) -> Point:
        ways = {n: Klt(f"klt:{level}", t) for n, t in tables.items()}
        return self._through(f"klt:{level}", lambda n: ways[n], some, wanted)

    def cast(self, codec: str, some: Sequence[Values], wanted: Sequence[Array]) -> Point:
        return self._through(codec, lambda n: open_codec(codec), some, wanted)

    def _through(
        self, name: str, way: Callable[[str], object], some: Sequence[Values], wanted: Sequence[Array]
    ) -> Point:
        assert self._halves.tail
        sizes, got = [], []
        for values in some:
            data = {n: way(n).encode(v) for n, v in values.items()}
            back = {n: way(n).decode(data[n], spec_of(n, v)) for n, v in values.items()}
            sizes.append(sum(d.nbytes for d in data.values()))
            got.append(self._halves.tail.run(back)[self._subject.output])
        return self._subject.scored(name, sizes, wanted, got)

    def close(self) -> None:
        self._halves.close()


# --- what follows from it (pure) --------------------------------------------------------------------------------------


def isotonic(means: Array) -> Array:
    """The closest values to `means` [.., settings] that never fall along the settings (equal weights)."""
    count = means.shape[-1]
    sums = np.concatenate([np.zeros((*means.shape[:-1], 1)), np.cumsum(means, axis=-1)], axis=-1)
    out = np.full(means.shape, -np.inf)
    for start in range(count):
        ends = np.arange(start + 1, count + 1)
        averages = (sums[..., ends] - sums[..., start, None]) / (ends - start)
        # The least average from `start` to any end at or after each place.
        least = np.minimum.accumulate(averages[..., ::-1], axis=-1)[..., ::-1]
        out[..., start:] = np.maximum(out[..., start:], least)
    return out


def at_share(nbytes: Sequence[float] | Array, means: Array, share: float) -> float:
    """The bytes at which settings, the smallest first, reach `share`: interpolated in the logarithm of the bytes.

    The smallest setting's where that reaches it; infinity where none does.
    """
    curve = isotonic(np.asarray(means, np.float64))
    k = int(np.searchsorted(curve, share - 1e-12))
    if k == 0:
        return float(nbytes[0])
    if k == len(curve):
        return float("inf")
    part = (share - curve[k - 1]) / (curve[k] - curve[k - 1])
    return float(np.exp(np.interp(part, [0, 1], np.log([nbytes[k - 1], nbytes[k]]))))


def ordered(points: Sequence[Point]) -> list[Point]:
    return sorted(points, key=lambda p: p.median)


def needs(points: Sequence[Point], share: float) -> float:
    """`at_share` of points."""
    some = ordered(points)
    return at_share([p.median for p in some], np.array([p.scores.mean() for p in some]), share)


def draws(owners: Sequence[int], count: int = _DRAWN, seed: int = 0) -> list[Array]:
    """`count` times the crops of as many photos as there are, drawn with replacement: a photo comes with all its crops.

    >>> [drawn.tolist() for drawn in draws([0, 0, 3], count=2)]
    [[2, 2], [2, 0, 1]]
    """
    of_each = [np.flatnonzero(np.array(owners) == photo) for photo in dict.fromkeys(owners)]
    rng = np.random.default_rng(seed)
    return [np.concatenate([of_each[k] for k in rng.integers(0, len(of_each), len(of_each))]) for _ in range(count)]


def drawn_needs(points: Sequence[Point], share: float, drawn: Sequence[Array]) -> Array:
    """`needs` of each draw."""
    some = ordered(points)
    nbytes, scores = (np.array([getattr(p, key) for p in some]) for key in ("nbytes", "scores"))
    return np.array([at_share(np.median(nbytes[:, one], axis=1), scores[:, one].mean(axis=1), share) for one in drawn])


def interval(values: Array) -> tuple[float, float]:
    """The middle 95 %; infinities are values."""
    low, high = np.quantile(values, [0.025, 0.975], method="nearest")
    return float(low), float(high)


def picked(points: Sequence[Point], share: float) -> str:
    """The smallest setting that reaches `share`; the largest where none does."""
    some = ordered(points)
    curve = isotonic(np.array([p.scores.mean() for p in some]))
    return some[min(int(np.searchsorted(curve, share - 1e-12)), len(some) - 1)].name


def level_at(points: Sequence[Point], share: float) -> int:
    """The level, between those tried, at which klt reaches `share`, rounded up."""
    levels = [int(p.name.partition(":")[2]) for p in points]
    curve = isotonic(np.array([p.scores.mean() for p in points]))
    k = int(np.searchsorted(curve, share - 1e-12))
    if k == 0 or k == len(levels):
        return levels[min(k, len(levels) - 1)]
    part = (share - curve[k - 1]) / (curve[k] - curve[k - 1])
    return int(np.ceil(levels[k - 1] + part * (levels[k] - levels[k - 1]) - 1e-9))


def worth_testing(points: Sequence[Point]) -> list[int]:
    """Of the levels tried on calibration photos, those from the last below 89 % to the first at 99 %, and one more."""
    levels = [int(p.name.partition(":")[2]) for p in points]
    curve = isotonic(np.array([p.scores.mean() for p in points]))
    first = max(0, int(np.searchsorted(curve, 0.89 - 1e-12)) - 1)
    last = min(len(levels), int(np.searchsorted(curve, 0.99 - 1e-12)) + 2)
    return levels[first:last]


# --- a run ------------------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.curves", description="klt and JPEG at equal fidelity.")
    parser.add_argument("networks", nargs="+", choices=list(NETWORKS), metavar="NETWORK", help=", ".join(NETWORKS))
    parser.add_argument("--cuts", nargs="+", help="instead of the network's sensible ones")
    parser.add_argument(
        "--calibrate", type=int, nargs="+", default=[113], help="how many photos tables are learnt from"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="which, where that is not all of them")
    parser.add_argument("--photos", type=Path, help="where bench.photos keeps them")
    parser.add_argument("--levels", type=int, nargs="*", default=[], help="of klt to test beside those worth testing")
    parser.add_argument("--test", type=int, help="use the first so many of the test photos")
    parser.add_argument("-o", "--output", type=Path, help="a folder for what each crop's bytes and scores are")
    options = parser.parse_args(arguments)
    print(header(), flush=True)
    for name in options.networks:
        run(name, options)


def run(name: str, options: argparse.Namespace) -> None:
    subject = Subject(name, options.photos, options.test)
    owners = [c.photo for c in subject.fresh]
    log = _Log(name, owners, options.output)
    log.say(
        f"\n{name}: {subject.network.what} ({subject.network.package}, {subject.network.licence})\n"
        f"{len(subject.known)} crops of calibration photos, {len(owners)} of {len(set(owners))} test photos"
    )
    known = [
        subject.jpeg(q, s, subject.known, subject.known_answers) for s, qualities in JPEGS.items() for q in qualities
    ]
    for point in known:
        log.point(point, "calibration photos")
    # Which chroma: the one that took less on the calibration photos, or the one that gets there.
    chroma = {share: min(JPEGS, key=lambda s, at=share: (needs(_of(known, s), at), s)) for share in SHARES}
    tested = {
        s: [subject.jpeg(q, s, subject.fresh, subject.fresh_answers) for q in JPEGS[s]] for s in set(chroma.values())
    }
    for points in tested.values():
        for point in points:
            log.point(point)
    for share in SHARES:
        points = tested[chroma[share]]
        log.share(f"JPEG {chroma[share]}", share, points, picked(_of(known, chroma[share]), share), {})
    rivals = {share: tested[chroma[share]] for share in SHARES}
    for at in options.cuts or subject.network.cuts:
        cut = CutSubject(subject, at)
        log.say(f"\n{at} ({cut.work:.0%} of the FLOPs on the device)")
        for codec in CAST:
            log.point(cut.cast(codec, cut.fresh, subject.fresh_answers))
        for count in options.calibrate:
            for seed in options.seeds if count < len(cut.to_learn) else [0]:
                _klt(subject, cut, count, seed, options.levels, rivals, log)
        cut.close()


def _of(points: Sequence[Point], subsampling: str) -> list[Point]:
    return [p for p in points if p.name.endswith(subsampling)]


def _klt(
    subject: Subject,
    cut: CutSubject,
    count: int,
    seed: int,
    levels: Sequence[int],
    rivals: Mapping[float, Sequence[Point]],
    log: _Log,
) -> None:
    chosen = np.random.default_rng(seed).permutation(len(cut.to_learn))[:count]
    folds: list[tuple[Sequence[int], set[int]]]
    if count < len(cut.to_learn) - 20:
        folds = [(chosen, set(range(len(cut.to_learn))) - set(chosen.tolist()))]
    else:  # two halves, each judged with the other's tables
        folds = [(chosen[0::2], set(chosen[1::2].tolist())), (chosen[1::2], set(chosen[0::2].tolist()))]
    index = {id(c): k for k, c in enumerate(subject.to_learn)}
    place = [index[id(c)] for c in subject.known]
    learnt = [cut.tables([cut.to_learn[k] for k in fold]) for fold, _ in folds]
    known: list[Point] = []
    for level in LEVELS:
        parts = []
        for tables, (_, judged) in zip(learnt, folds, strict=True):
            its = [k for k, p in enumerate(place) if p in judged]
            parts.append(cut.klt(level, tables, [cut.known[k] for k in its], [subject.known_answers[k] for k in its]))
        known.append(
            Point(f"klt:{level}", *(np.concatenate([getattr(p, k) for p in parts]) for k in ("nbytes", "scores")))
        )
        if known[-1].scores.mean() >= 0.995 and len(known) > 2:
            break
    words = f"{min(count, len(cut.to_learn))} photos" + (f", seed {seed}" if count < len(cut.to_learn) else "")
    tables = cut.tables([cut.to_learn[k] for k in chosen])
    size = sum(len(t.to_bytes()) for t in tables.values())
    log.say(f"  klt, {words}: {size} bytes of tables")
    for point in known:
        log.point(point, "calibration photos")
    at = {share: level_at(known, share) for share in SHARES}
    tested = []
    for level in sorted({*worth_testing(known), *at.values(), *levels}):
        tested.append(cut.klt(level, tables, cut.fresh, subject.fresh_answers))
        log.point(tested[-1])
    for share in SHARES:
        log.share(f"klt, {words}", share, tested, f"klt:{at[share]}", rivals)


class _Log:
    """Prints, and keeps."""

    def __init__(self, network: str, owners: Sequence[int], folder: Path | None) -> None:
        self._owners, self._drawn = owners, draws(owners)
        self._path = folder / f"{network}.jsonl" if folder else None
        if folder and self._path:
            folder.mkdir(parents=True, exist_ok=True)
            with self._path.open("a") as file:
                file.write(json.dumps({"network": network, "photos": list(owners)}) + "\n")

    def say(self, text: str) -> None:
        print(text, flush=True)
        self._keep({"text": text})

    def point(self, point: Point, where: str = "") -> None:
        text = f"  {point.name:<16}{point.median:>9.0f} bytes{point.scores.mean():>8.1%}"
        if where:
            print(f"{text}  ({where})", flush=True)
        else:
            low, high = interval(np.array([point.scores[one].mean() for one in self._drawn]))
            print(f"{text} ({low:.1%} to {high:.1%})", flush=True)
        self._keep(
            {"setting": point.name, "where": where or "test", "bytes": point.nbytes.tolist(),
             "scores": [round(s, 5) for s in point.scores.tolist()]}
        )  # fmt: skip

    def share(
        self, words: str, share: float, points: Sequence[Point], pick: str, rivals: Mapping[float, Sequence[Point]]
    ) -> None:
        drawn = drawn_needs(points, share, self._drawn)
        [one] = [p for p in points if p.name == pick]
        text = f"  {share:.0%}, {words}: {_bytes(needs(points, share))} ({' to '.join(map(_bytes, interval(drawn)))})"
        text += f"; picked {pick}: {one.median:.0f} bytes, {one.scores.mean():.1%}"
        if rivals:
            ours, theirs = needs(points, share), needs(rivals[share], share)
            if np.isfinite(ours) and np.isfinite(theirs):
                with np.errstate(invalid="ignore"):
                    ratios = drawn_needs(rivals[share], share, self._drawn) / drawn
                ends = " to ".join(f"{e:.1f}" for e in interval(np.nan_to_num(ratios, nan=1.0, posinf=np.inf)))
                text += f"; 1/{theirs / ours:.1f} of JPEG's ({ends})"
        self.say(text)

    def _keep(self, row: Mapping[str, object]) -> None:
        if self._path:
            with self._path.open("a") as file:
                file.write(json.dumps(row) + "\n")


def _bytes(number: float) -> str:
    return f"{number:.0f} bytes" if np.isfinite(number) else "none"


if __name__ == "__main__":
    main()
