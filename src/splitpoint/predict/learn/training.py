"""Learns a device from measured kernels: `train` makes a `Latency` of tables.

A kind's base says how large a kernel is, boosted trees on the logarithm of measured ÷ base say how well it runs.
Both are robust: what a row says counts the less, the further it lies from what trees that never saw it expect. All
scores and intervals come from rows kept apart (cross-validation; whole strips where rows say which they are from).
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from splitpoint.callbacks import call
from splitpoint.errors import InputError
from splitpoint.machine import Machine
from splitpoint.predict.kernels.kernel_kinds import KINDS
from splitpoint.predict.kernels.kernel_table import Table
from splitpoint.predict.learn.boost import Boosting, constant, grow, need_sklearn
from splitpoint.predict.learn.features import cells_of, columns_of, feature_names, features_of, terms_of
from splitpoint.predict.learn.latency_model import (
    COLD_MS,
    TELLING_MS,
    TWO_PER_MAC,
    KindModel,
    Latency,
    LatencyScore,
    Roofline,
    cold,
)
from splitpoint.predict.learn.linear import cells_base, fit_base, fit_cells, fit_linear
from splitpoint.predict.learn.trees import Forest
from splitpoint.profile.costs import Floats, Ints
from splitpoint.trace import Clock

_Bases = dict[str, dict[str, float]]

#: Of the interval: what lies below and above it.
_TAIL = 0.1
#: Rows this far off, as a share, count half (or, where rows are further off usually, those as far as that).
_SIGMA = 0.1
#: Rows and features of the small forest that is timed to tell how quickly this machine learns.
_TIMED = (400, 60)
#: Rows from which on trees can be smooth.
_SMOOTH_FROM = 1000
#: Rows from which on it can be told where errors are densest, and the kernel of that density.
_MANY, _KERNEL = 200, 0.06
#: Errors smaller than this are all alike to the width of an interval.
_LEAST_ERROR = 0.005
#: The farthest end of an interval that a file may have, in units of its width (`KindModel.low`).
_FARTHEST = 100.0
#: With fewer rows nothing can be kept apart.
_FEWEST = 10
#: Of a kind that was in fewer networks (or has fewer rows, where those do not say of which network) too little is
#: known: a tenth beyond each end of its range is less than one of them (less than three).
_FEW_NETWORKS, _FEW_ROWS = 10, 30
#: Of a normal variable: standard deviations from the median to the 90th percentile.
_TO_P90 = 1.2816


@dataclass(frozen=True)
class Effort:
    """How much work training one kind is: the trees that tell which rows to trust, one round after the other (none: all
    rows are trusted), those of the median, those of the width, and the folds of cross-validation.
    """

    trust: tuple[Boosting, ...]
    median: Boosting
    width: Boosting
    folds: int


# Settings were chosen by cross-validation within nine tenths of the seed's rows. A tree takes 1 to 5 ms.
_WIDTH = Boosting(trees=40, leaves=8, least=20, bins=64)
_FIRST = Boosting(loss="absolute_error", trees=80, rate=0.2, bins=64)
#: Effort from so many rows on.
FULL: Mapping[int, Effort] = {
    0: Effort(
        (dataclasses.replace(_FIRST, trees=30, leaves=8),), Boosting(trees=60, rate=0.15, leaves=8, bins=64), _WIDTH, 5
    ),
    400: Effort((dataclasses.replace(_FIRST, leaves=16),), Boosting(trees=120, leaves=16, bins=64, seeds=2), _WIDTH, 5),
    1000: Effort((_FIRST, Boosting(trees=150)), Boosting(trees=200, seeds=3), _WIDTH, 5),
    5000: Effort((_FIRST, Boosting(trees=150)), Boosting(trees=250, rate=0.08, leaves=63, seeds=3), _WIDTH, 5),
}
#: For choosing what to measure next.
QUICK: Mapping[int, Effort] = {
    0: Effort((), Boosting(trees=30, rate=0.2, leaves=12, bins=32), dataclasses.replace(_WIDTH, trees=10, rate=0.3), 2),
}


def effort_for(table: Table, efforts: Mapping[int, Effort]) -> Effort:
    """The effort for this table: where two sizes or one tell rows apart, all else is noise, and trees are smoother."""
    effort = efforts[max(least for least in efforts if least <= len(table))]
    if len(KINDS[table.kind].required) > 2 or len(table) < _SMOOTH_FROM:
        return effort
    smoother = dataclasses.replace(effort.median, leaves=min(effort.median.leaves, 16), least=15)
    return dataclasses.replace(effort, median=smoother)


def leaf_s(clock: Clock = time.perf_counter) -> float:
    """Seconds in which this machine grows one leaf, by a small forest. MissingExtraError without scikit-learn."""
    rows = np.random.default_rng(0).random(_TIMED)
    need_sklearn()
    grow(rows[:20], rows[:20, 0], np.ones(20), _WIDTH, 0)  # what is imported is not counted
    times = [clock()]
    for _ in range(3):
        grow(rows, rows[:, 0], np.ones(len(rows)), _WIDTH, 0)
        times.append(clock())
    return float(np.diff(times).min()) / _leaves(_WIDTH, *_TIMED)


def learning_s(tables: Mapping[str, Table], leaf_s: float) -> float:
    """Seconds that `train` is expected to take for `tables`, where a leaf takes `leaf_s`."""
    leaves = 0.0
    for table in tables.values():
        effort = effort_for(table, FULL)
        size = len(table), len(feature_names(table.kind))
        leaves += effort.folds * sum(_leaves(how, *size) for how in (*effort.trust, effort.median))
        leaves += _leaves(effort.width, *size) + effort.median.seeds * _leaves(effort.median, *size)
    return leaves * leaf_s


def _leaves(how: Boosting, rows: int, features: int) -> float:
    """How many leaves of the forest that `leaf_s` times take as long as this one. Measured: 20 ms a forest,
    0.05 ms a leaf and 0.0012 ms more for each feature, and no more leaves than one for eight rows.
    """
    if rows < 2 * how.least:
        return 0.0
    return 163 + how.trees * min(how.leaves, rows / 8) * (42 + features) / (42 + _TIMED[1])


def train(
    tables: Mapping[str, Table],
    *,
    name: str,
    engine: str = "",
    device: str = "",
    threads: int = 0,
    created: str = "",
    machine: Machine | None = None,
    versions: Mapping[str, str] | None = None,
    convention: str = TWO_PER_MAC,
    note: str = "",
    totals: Mapping[int, float] | None = None,
    seed: int = 0,
    quick: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Latency:
    """What `tables` say of a device, and with what `totals` (strip → ms of the whole) how kernels add up.

    `quick` takes a second for a few thousand rows, and is less accurate. `progress` is told each kind before its turn.
    MissingExtraError without scikit-learn; InputError if there is nothing to learn from.
    """
    need_sklearn()
    kinds: dict[str, KindModel] = {}
    expected: dict[str, Floats] = {}
    tables = {kind: table for kind, table in tables.items() if len(table)}
    if not tables:
        raise InputError("there are no measured kernels to learn from")
    for kind, table in tables.items():
        if progress is not None:
            call(progress, kind)
        kinds[kind], expected[kind] = learn_kind(table, effort_for(table, QUICK if quick else FULL), seed)
    roofline = fit_roofline(tables)
    for kind, model in kinds.items():
        if model.networks == 1:  # none could be kept apart: no better known than what was never measured
            kinds[kind] = msgspec.structs.replace(model, shared=float(np.log(roofline.spread)) / _TO_P90)
    fixed_ms, scale, spread = _law(tables, expected, totals or {})
    return Latency(
        name=name,
        created=created,
        engine=engine,
        device=device,
        threads=threads,
        machine=machine,
        versions=dict(versions or {}),
        convention=convention,
        note=note,
        kinds=kinds,
        fixed_ms=fixed_ms,
        cold_ms=COLD_MS,
        scale=scale,
        spread=spread,
        roofline=roofline,
        rows=sum(len(table) for table in tables.values()),
        lacking=tuple(
            kind for kind, m in kinds.items() if (m.networks or m.rows) < (_FEW_NETWORKS if m.networks else _FEW_ROWS)
        ),
    )


def learn_kind(table: Table, effort: Effort, seed: int = 0) -> tuple[KindModel, Floats]:
    """The model of one kind, and what it would have said of each row (ms) had it not seen it."""
    data = _Data.of(table)
    folds = _folds(table, effort.folds, seed)
    weights = np.ones(len(table))
    for trees in effort.trust:
        weights = _trust(data.log_ms - _kept_apart(data, weights, folds, trees, seed))
    once = dataclasses.replace(effort.median, seeds=1)
    expected = _kept_apart(data, weights, folds, once, seed)
    shift = _densest(data.log_ms - expected)
    expected += shift
    errors = data.log_ms - expected
    width = _width(data.features, errors, effort.width, seed)
    low, high, covered = _interval(errors, np.exp(width.evaluate(data.features)), folds)
    beyond = max(1.0, -low / _FARTHEST, high / _FARTHEST)  # few rows, one far off: the same interval in larger units
    width, low, high = msgspec.structs.replace(width, start=width.start + math.log(beyond)), low / beyond, high / beyond
    base, forest = _fit(data, weights, effort.median, seed)
    forest = msgspec.structs.replace(forest, start=forest.start + shift)
    columns = columns_of(table.kind, table.columns)
    model = KindModel(
        method="boosted trees on the logarithm of measured ÷ base",
        features=data.names,
        base=base,
        forest=forest,
        width=width,
        low=low,
        high=high,
        ranges=tuple(zip(data.features.min(axis=0).tolist(), data.features.max(axis=0).tolist(), strict=True)),
        linear=fit_linear(columns, table.latency_ms),
        score=score_of(np.exp(expected), table.latency_ms, covered),
        rows=len(table),
        networks=0 if table.origin is None else len(np.unique(table.origin)),
        shared=_shared(table, expected),
        ops=_operators(table),
    )
    return model, np.exp(expected)


def _operators(table: Table) -> tuple[int, ...]:
    """The operators that rows of the table are of; where rows say of which network, of two networks or more: of an
    operator of one, none could be kept apart.
    """
    if "op" not in table.columns:
        return ()
    ops, origin = table.columns["op"].astype(int), table.origin
    least = 1 if origin is None or len(np.unique(origin)) < 2 else 2
    kept = [op for op in np.unique(ops).tolist() if origin is None or len(np.unique(origin[ops == op])) >= least]
    return tuple(op for op in kept if op >= 0)


def score_of(predicted_ms: Floats, measured_ms: Floats, covered: float) -> LatencyScore:
    """How near predictions are to what was measured, by the rows that a timer tells apart if there are any."""
    telling = measured_ms >= TELLING_MS
    judged = telling if telling.any() else np.ones(len(measured_ms), bool)
    error = np.abs(predicted_ms / measured_ms - 1)[judged]
    within5, within10, within20 = (float((error <= share).mean()) for share in (0.05, 0.1, 0.2))
    return LatencyScore(
        mape=float(error.mean()),
        within5=within5,
        within10=within10,
        within20=within20,
        covered=covered,
        count=len(error),
    )


def fit_roofline(tables: Mapping[str, Table]) -> Roofline:
    """FLOPs and bytes a ms, as the middle of the kernels that compute most and least a byte reach them."""
    parts = []
    for table in tables.values():
        terms, nothing = terms_of(table.kind, columns_of(table.kind, table.columns)), np.zeros(len(table))
        elements = np.sum([terms.get(name, nothing) for name in ("read", "written", "weights")], axis=0)
        parts.append((2e6 * terms.get("macs", nothing), 4e6 * elements, table.latency_ms))
    flops, moved, ms = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.argsort(flops / np.maximum(moved, 1.0))
    # The larger of each: small ones are all fixed cost.
    part = max(1, len(order) // 3)
    computing, moving = order[-part:], order[:part]
    computing = computing[flops[computing] >= np.median(flops[computing])]
    moving = moving[moved[moving] >= np.median(moved[moving])]
    flops_per_ms = max(float(np.median(flops[computing] / ms[computing])), 1.0)
    bytes_per_ms = max(float(np.median(moved[moving] / ms[moving])), 1.0)
    fixed_ms = float(np.quantile(ms, 0.05))
    line = np.maximum(np.maximum(flops / flops_per_ms, moved / bytes_per_ms), fixed_ms)
    spread = float(np.exp(np.quantile(np.abs(np.log(ms / line)), 1 - 2 * _TAIL)))
    return Roofline(
        flops_per_ms=flops_per_ms, bytes_per_ms=bytes_per_ms, fixed_ms=fixed_ms, spread=min(max(spread, 1.5), 100.0)
    )


# --- one kind ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Data:
    """Rows of one kind as cells, terms, features (and their names) and ms."""

    cells: NDArray[np.str_]
    terms: Mapping[str, Floats]
    names: tuple[str, ...]
    features: Floats
    ms: Floats
    log_ms: Floats

    @classmethod
    def of(cls, table: Table) -> _Data:
        columns = columns_of(table.kind, table.columns)
        ms = table.latency_ms
        kind, names = table.kind, feature_names(table.kind)
        features = features_of(kind, columns)
        differ = np.ptp(features, axis=0) > 0  # what is the same in all rows says nothing, and may be more elsewhere
        differ[0] |= not differ.any()
        used = tuple(name for name, kept in zip(names, differ.tolist(), strict=True) if kept)
        return cls(cells_of(kind, columns), terms_of(kind, columns), used, features[:, differ], ms, np.log(ms))

    def take(self, rows: NDArray[np.bool_]) -> _Data:
        terms = {name: values[rows] for name, values in self.terms.items()}
        return _Data(self.cells[rows], terms, self.names, self.features[rows], self.ms[rows], self.log_ms[rows])


def _fit(data: _Data, weights: Floats, how: Boosting, seed: int) -> tuple[_Bases, Forest]:
    """The bases and the forest of these rows."""
    bases = fit_cells(data.terms, data.ms, data.cells)
    ratio = data.log_ms - np.log(cells_base(bases, data.terms, data.cells))
    return bases, grow(data.features, ratio, weights, how, seed)


def _kept_apart(data: _Data, weights: Floats, folds: Ints, how: Boosting, seed: int) -> Floats:
    """Logarithm of the ms that each row is expected to take by a model of the other folds."""
    expected = np.full(len(folds), np.log(np.median(data.ms)))
    for fold in np.unique(folds) if len(np.unique(folds)) > 1 else ():
        apart = folds == fold
        bases, forest = _fit(data.take(~apart), weights[~apart], how, seed)
        left = data.take(apart)
        expected[apart] = np.log(cells_base(bases, left.terms, left.cells)) + forest.evaluate(left.features)
    return expected


def _folds(table: Table, count: int, seed: int) -> Ints:
    """A fold for each row; rows of one strip are in the same one, because a strip is disturbed as a whole."""
    draw = np.random.default_rng(seed)
    if table.origin is None or len(np.unique(table.origin)) < 2:
        return draw.permutation(np.arange(len(table)) % min(count, max(1, len(table))))
    alone = table.origin < 0
    strips, place = np.unique(table.origin, return_inverse=True)
    folds = draw.permutation(np.arange(len(strips)) % min(count, len(strips)))[place]
    folds[alone] = draw.integers(0, count, int(alone.sum()))
    return np.asarray(folds, np.int64)


def _trust(errors: Floats) -> Floats:
    """The weight of each row: 1 where it is as expected, towards 0 where it is far off (Cauchy's)."""
    sigma = max(_SIGMA, float(np.median(np.abs(errors))))
    return np.asarray(1 / (1 + (errors / sigma) ** 2))


def _densest(errors: Floats) -> float:
    """Where errors are densest within ±10 %: disturbed kernels are slower, so most lie below the middle. 0 for few."""
    if len(errors) < _MANY:
        return 0.0
    places = np.linspace(-0.1, 0.1, 41)
    density = [np.exp(-0.5 * ((errors - place) / _KERNEL) ** 2).sum() for place in places]
    return float(places[int(np.argmax(density))])


def _width(features: Floats, errors: Floats, how: Boosting, seed: int) -> Forest:
    """The logarithm of how far off a kernel of these features is, usually."""
    target = np.log(np.maximum(np.abs(errors), _LEAST_ERROR))
    if len(errors) < _FEWEST:
        return constant(float(np.median(target)), features.shape[1])
    return grow(features, target, np.ones(len(target)), how, seed)


def _interval(errors: Floats, width: Floats, folds: Ints) -> tuple[float, float, float]:
    """Low and high in units of width, so that a tenth lies beyond each (split conformal), and the share they cover."""
    ratio = errors / width
    low, high = _ends(ratio)
    inside = [(ratio[folds == f], *_ends(ratio[folds != f])) for f in np.unique(folds) if (folds != f).any()]
    covered = sum(int(((part >= a) & (part <= b)).sum()) for part, a, b in inside) / max(1, len(ratio))
    return min(low, 0.0), max(high, 0.0), covered


def _shared(table: Table, expected: Floats) -> float:
    """What kernels of one network are off together (`KindModel.shared`), by the logarithms expected of rows kept apart.

    One network's error is the logarithm of its kernels together, measured ÷ expected.
    """
    if table.origin is None or len(np.unique(table.origin)) < 2:
        return 0.0
    _, place = np.unique(table.origin, return_inverse=True)
    measured, thought = np.bincount(place, table.latency_ms), np.bincount(place, np.exp(expected))
    return _within(np.log(measured / thought)) / _TO_P90


def _within(errors: Floats) -> float:
    """How far from 0 four of five such errors lie, one more included: few say less, so it is farther (split conformal;
    of fewer than ten Student's t, as the largest of them are hardly the extremes).
    """
    from scipy.special import stdtrit

    if len(errors) < _FEWEST:
        return float(np.sqrt(np.mean(errors**2)) * stdtrit(len(errors), 1 - _TAIL))
    share = min(1.0, (1 - 2 * _TAIL) * (1 + 1 / len(errors)))
    return float(np.quantile(np.abs(errors), share, method="higher"))


def _ends(ratio: Floats) -> tuple[float, float]:
    """The 10th and the 90th percentile that hold for one more row, too (the extremes of fewer than ten)."""
    share = min(1.0, (1 - _TAIL) * (1 + 1 / len(ratio)))
    return float(np.quantile(ratio, 1 - share, method="lower")), float(np.quantile(ratio, share, method="higher"))


# --- all together -----------------------------------------------------------------------------------------------------


def _law(
    tables: Mapping[str, Table], expected: Mapping[str, Floats], totals: Mapping[int, float]
) -> tuple[float, float, float]:
    """`fixed_ms`, `scale` and `spread` of whole models, by strips that were kept apart; (0, 1, 0) without any."""
    sums = dict.fromkeys(totals, 0.0)
    for kind, table in tables.items():
        if table.origin is not None:
            for strip, ms in zip(table.origin.tolist(), expected[kind].tolist(), strict=True):
                if strip in sums:
                    sums[strip] += ms
    pairs = [(sums[s], totals[s]) for s in totals if sums[s] > 0 and totals[s] > 0]
    if not pairs:
        return 0.0, 1.0, 0.0
    kernels, whole = np.array(pairs).T
    line = {} if len(pairs) < _FEWEST else fit_base({"cold": cold(kernels), "kernels": kernels}, whole)
    fixed_ms, scale = line.get("cold", 0.0), line.get("kernels", 0.0)
    if not scale:
        ratios = np.log(whole / kernels)
        others = [np.median(np.delete(ratios, k)) for k in range(len(ratios))] if len(ratios) > 1 else ratios
        return 0.0, float(np.exp(np.median(ratios))), _within(ratios - others)  # each as the others tell it
    return fixed_ms, scale, _within(np.log(whole / (fixed_ms * cold(kernels) + scale * kernels)))
