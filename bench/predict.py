"""How well latency is predicted.

    python -m bench.predict seed DIR     # DIR has edge/ and cloud/ with the Neurosurgeon replica's tables
    python -m bench.predict folds DIR edge batchnorm
    python -m bench.predict drift DEVICE.strips.json
    python -m bench.predict budgets DEVICE.strips.json DATA

`seed`: what is learned of nine tenths of the rows of each table, judged on the tenth kept apart (seed 0, as the issue
asks), beside a random forest on the raw columns and the replica's linear regression; and how far identical
configurations in the tables differ, below which no prediction can get. Ten minutes on one core. `folds`: one kind,
every row kept apart once. `drift`: what random networks of an earlier calibration take now. `budgets`: what the first
seconds of a long calibration are worth, judged by the networks in DATA (`splitpoint predict evaluate --data DATA`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from time import perf_counter, process_time, sleep

import msgspec
import numpy as np
from numpy.typing import NDArray

from bench.common import header
from splitpoint.engines import open_engine
from splitpoint.predict.calibrate import ground_truth
from splitpoint.predict.calibrate.collection import load_collection
from splitpoint.predict.calibrate.random_networks import random_network
from splitpoint.predict.calibrate.reference import visit
from splitpoint.predict.kernels.kernel_table import Table, read_tables
from splitpoint.predict.learn.features import columns_of
from splitpoint.predict.learn.linear import fit_linear
from splitpoint.predict.learn.training import FULL, effort_for, leaf_s, learn_kind, learning_s
from splitpoint.predict.price.prediction import predict_latency

Floats = NDArray[np.float64]

SIDES = ("edge", "cloud")
#: Shares within ±10 % of all kinds together.
TARGETS = {"edge": 0.68, "cloud": 0.85}
APART, SEED = 0.1, 0
#: Random networks that are measured again.
AGAIN = 40
#: Seconds that calibrating and learning may take together.
BUDGETS = (30.0, 60.0, 120.0, 300.0)


def seed(arguments: list[str]) -> None:
    """The table for both machines."""
    if len(arguments) != 1:
        raise SystemExit("python -m bench.predict seed DIR, where DIR/edge and DIR/cloud have conv_lat.csv and others")
    for side in SIDES:
        tables, said = read_tables(Path(arguments[0]) / side)
        print(f"\n{side}: {sum(map(len, tables.values()))} rows", *said, sep="\n  ")
        for line in floor(tables):
            print(f"  {line}")
        judge(side, tables)


def floor(tables: Mapping[str, Table]) -> Iterator[str]:
    """How far rows differ that are the same configuration, or whose two neighbours in their only varied size agree."""
    for kind, table in tables.items():
        pairs = repeated(table)
        if len(pairs):
            near = np.abs(table.latency_ms[pairs[:, 0]] / table.latency_ms[pairs[:, 1]] - 1)
            yield (
                f"noise of {kind}: {len(pairs)} configurations are there twice; the second is within 10 % of the first "
                f"in {(near <= 0.1).mean():.0%}, half are within {np.median(near):.1%}, nine tenths within "
                f"{np.quantile(near, 0.9):.0%}"
            )
        off = between(table)
        if len(off):
            yield (
                f"noise of {kind}: {len(off)} rows lie between two with only Cin (or in_features) less and more; from "
                f"the line between those {(off <= 0.1).mean():.0%} are within 10 %, half within {np.median(off):.1%}"
            )


def repeated(table: Table) -> NDArray[np.intp]:
    """Pairs of rows whose columns are all the same (FLOPs, which are rounded, apart)."""
    rows = np.stack([v for name, v in table.columns.items() if name != "FLOPs"], axis=1)
    _, place = np.unique(rows, axis=0, return_inverse=True)
    order = np.argsort(place.ravel(), kind="stable")
    same = np.flatnonzero(np.diff(place.ravel()[order]) == 0)
    return np.stack([order[same], order[same + 1]], axis=1)


def between(table: Table) -> Floats:
    """How far, as a share, each row lies from the line between its neighbours in the size that is sampled densest."""
    name = "in_features" if table.kind == "linear" else "Cin"
    others = [v for n, v in table.columns.items() if n not in (name, "FLOPs")]
    order = np.lexsort([table.columns[name], *others])
    x, y = table.columns[name][order], table.latency_ms[order]
    same = (
        np.all([v[order][2:] == v[order][:-2] for v in others], axis=0) & (np.diff(x)[1:] > 0) & (np.diff(x)[:-1] > 0)
    )
    # Only where sizes are close: latency is no line from 3 to 64 channels.
    same &= x[2:] <= 1.5 * x[:-2]
    share = (x[1:-1] - x[:-2]) / np.maximum(x[2:] - x[:-2], 1e-9)
    line = y[:-2] + share * (y[2:] - y[:-2])
    return np.asarray(np.abs(line / y[1:-1] - 1)[same])


def judge(side: str, tables: Mapping[str, Table]) -> None:
    """Prints a line for each kind and one for all together."""
    print(f"  {'':10} {'rows':>5} {'±5 %':>6} {'±10 %':>6} {'±20 %':>6} {'MAPE':>7} {'in 80 %':>8}"
          f" | {'forest':>6} {'MAPE':>7} | {'linear':>6} {'MAPE':>8} | {'s':>4}")  # fmt: skip
    ours, forests, lines, inside = [], [], [], []
    for kind, table in tables.items():
        order = np.random.default_rng(SEED).permutation(len(table))
        apart, rest = order[: round(APART * len(table))], order[round(APART * len(table)) :]
        started = process_time()
        model, _ = learn_kind(table.take(rest), effort_for(table, FULL), SEED)
        spent = process_time() - started
        test = table.take(apart)
        times = model.predict(kind, test.columns)
        ours.append(np.abs(times.median_ms / test.latency_ms - 1))
        inside.append((times.low_ms <= test.latency_ms) & (test.latency_ms <= times.high_ms))
        forests.append(np.abs(raw_forest(table.take(rest), test) / test.latency_ms - 1))
        lines.append(np.abs(linear(table.take(rest), test) / test.latency_ms - 1))
        show(kind, ours[-1], inside[-1], forests[-1], lines[-1], spent)
    together = np.concatenate(ours)
    show("all", together, np.concatenate(inside), np.concatenate(forests), np.concatenate(lines), None)
    hit = float((together <= 0.1).mean())
    print(f"  target: {TARGETS[side]:.0%} within 10 %: {'met' if hit >= TARGETS[side] else 'MISSED'} ({hit:.1%})")


def show(kind: str, e: Floats, inside: NDArray[np.bool_], forest: Floats, line: Floats, spent: float | None) -> None:
    shares = " ".join(f"{(e <= s).mean():6.1%}" for s in (0.05, 0.1, 0.2))
    print(f"  {kind:10} {len(e):5} {shares} {e.mean():7.1%} {inside.mean():8.1%} | {(forest <= 0.1).mean():6.1%} "
          f"{forest.mean():7.1%} | {(line <= 0.1).mean():6.1%} {line.mean():8.0%} | "
          f"{'' if spent is None else f'{spent:4.0f}'}", flush=True)  # fmt: skip


def raw_forest(train: Table, test: Table) -> Floats:
    """ms by an untuned random forest on the columns as they are: what to be better than."""
    from sklearn.ensemble import RandomForestRegressor

    columns = list(train.columns)
    model = RandomForestRegressor(random_state=SEED)
    model.fit(np.stack([train.columns[c] for c in columns], axis=1), train.latency_ms)
    return np.asarray(model.predict(np.stack([test.columns[c] for c in columns], axis=1)))


def linear(train: Table, test: Table) -> Floats:
    """ms by the replica's linear regression."""
    fit = fit_linear(columns_of(train.kind, train.columns), train.latency_ms)
    columns = columns_of(test.kind, test.columns)
    return np.asarray(fit["1"] + sum(k * columns[name] for name, k in fit.items() if name != "1"))


def folds(arguments: list[str]) -> None:
    """Every row of a kind kept apart once, ten times a tenth: one tenth may flatter either."""
    if len(arguments) != 3:
        raise SystemExit("python -m bench.predict folds DIR edge|cloud KIND")
    table = read_tables(Path(arguments[0]) / arguments[1])[0][arguments[2]]
    order = np.random.default_rng(SEED).permutation(len(table))
    ours, forests = [], []
    for k in range(10):
        apart, rest = table.take(order[k::10]), table.take(np.setdiff1d(order, order[k::10]))
        model, _ = learn_kind(rest, effort_for(rest, FULL), SEED)
        ours.append(np.abs(model.predict(table.kind, apart.columns).median_ms / apart.latency_ms - 1))
        forests.append(np.abs(raw_forest(rest, apart) / apart.latency_ms - 1))
    for name, errors in (("ours", np.concatenate(ours)), ("forest", np.concatenate(forests))):
        print(f"{name:6} {(errors <= 0.1).mean():.1%} of {len(errors)} within 10 %, mean error {errors.mean():.1%}")


def drift(arguments: list[str]) -> None:
    """Random networks of a calibration measured again: how much faster or slower this machine is by now."""
    if len(arguments) != 1:
        raise SystemExit("python -m bench.predict drift DEVICE.strips.json")
    collection = load_collection(Path(arguments[0]))
    engine = open_engine(collection.engine, device=collection.device, threads=collection.threads)
    usual = [s for s in collection.strips if 5 < s.whole_ms < 200]
    chosen = [usual[k] for k in np.random.default_rng(SEED).permutation(len(usual))[:AGAIN]]
    ratios = []
    for s in chosen:
        taken = visit(random_network(s.seed, s.family, s.work), engine, perf_counter, sleep)
        ratios.append(float(np.median(taken)) / s.whole_ms)
    low, middle, high = np.quantile(ratios, (0.25, 0.5, 0.75))
    print(
        f"{len(chosen)} networks of {arguments[0]} take {middle:.3f}x as long as then "
        f"(half of them {low:.3f}…{high:.3f})"
    )


def budgets(arguments: list[str]) -> None:
    """Of every budget: how many networks lie in their ranges (80 % should), how wide those are, and the errors."""
    if len(arguments) != 2:
        raise SystemExit("python -m bench.predict budgets DEVICE.strips.json DATA")
    whole, data = load_collection(Path(arguments[0])), Path(arguments[1])
    kept = {name: model for name in ground_truth.names(data) if (model := ground_truth.kept(data, name)) is not None}
    truth = ground_truth.load(data, kept)
    if truth is None:
        raise SystemExit(f"{data} has no measured networks: splitpoint predict evaluate --data {data}")
    leaf = leaf_s()
    spent = np.cumsum([s.spent_s for s in whole.strips])
    spent *= whole.spent_s / spent[-1]  # learning between the strips counts as well
    for budget in BUDGETS:
        part = whole
        for k in range(1, len(spent) + 1):
            part = msgspec.structs.replace(whole, strips=whole.strips[:k], spent_s=float(spent[k - 1]))
            if part.left_s(budget) <= learning_s(part.tables(), leaf):
                break
        started = perf_counter()
        latency = part.learned(name="part")
        took = perf_counter() - started
        said = [
            (name, network.median, predict_latency(model, latency).whole)
            for name, model in kept.items() if (network := truth.whole(name)) is not None
        ]  # fmt: skip
        outside = [f"{name} {ms:.3g} ms ({r})" for name, ms, r in said if not r.p10 <= ms <= r.p90]
        inside = len(said) - len(outside)
        width = np.median([r.p90 / r.p10 for _, _, r in said])
        off = [max(r.median / ms, ms / r.median) for _, ms, r in said]
        print(
            f"{budget:4.0f} s: {len(part.strips)} networks, {part.rows} kernels in {part.spent_s:.0f} s; "
            f"learned in {took:.0f} s (expected {learning_s(part.tables(), leaf):.0f}); {inside} of {len(said)} in "
            f"their ranges ({inside / len(said):.0%}), the upper end {width:.2f} times the lower; off by "
            f"{np.median(off):.2f}, {max(off):.2f} at most; {len(latency.lacking)} kinds with too little; "
            f"outside: {', '.join(outside) or 'none'}", flush=True,
        )  # fmt: skip


PARTS: Mapping[str, Callable[[list[str]], None]] = {"seed": seed, "folds": folds, "drift": drift, "budgets": budgets}


def main(arguments: list[str]) -> None:
    if not arguments or arguments[0] not in PARTS:
        raise SystemExit(f"python -m bench.predict PART: {', '.join(PARTS)}")
    print(header())
    PARTS[arguments[0]](arguments[1:])


if __name__ == "__main__":
    main(sys.argv[1:])
