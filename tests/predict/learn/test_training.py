"""What is learned of a device: how near it is, what its file keeps, and what a broken file may not do."""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

import numpy as np
import pytest
from trained_tables import convolutions, elements, learned

from splitpoint.errors import InputError, MissingExtraError
from splitpoint.predict.kernels.kernel_table import Table
from splitpoint.predict.learn.boost import Boosting
from splitpoint.predict.learn.files import latency_bytes, parse_latency
from splitpoint.predict.learn.latency_model import Latency, cold
from splitpoint.predict.learn.training import FULL, QUICK, effort_for, learn_kind, score_of, train


def error(latency: Latency, table: Table) -> np.ndarray[Any, Any]:
    times = latency.kinds[table.kind].predict(table.kind, table.columns)
    return np.asarray(np.abs(times.median_ms / table.latency_ms - 1))


# --- how near ---------------------------------------------------------------------------------------------------------


def test_rows_that_were_kept_apart_are_near() -> None:
    apart = convolutions(300, seed=1)
    off = error(learned(), apart)
    linear = np.abs(learned().kinds["conv"].linear_ms("conv", apart.columns) / apart.latency_ms - 1)
    assert np.median(off) < 0.06
    assert (off <= 0.1).mean() > 0.7
    assert off.mean() < linear.mean() / 5
    score = learned().kinds["conv"].score
    assert score.within5 < score.within10 < score.within20 < 1
    assert abs(score.mape - off.mean()) < 0.04
    assert score.count == learned().kinds["conv"].rows == 700


def test_intervals_cover_what_they_say() -> None:
    apart = convolutions(400, seed=2)
    times = learned().kinds["conv"].predict("conv", apart.columns)
    inside = (times.low_ms <= apart.latency_ms) & (apart.latency_ms <= times.high_ms)
    assert 0.7 <= inside.mean() <= 0.9
    assert (times.low_ms <= times.median_ms).all()
    assert (times.median_ms <= times.high_ms).all()
    assert 0.7 <= learned().kinds["conv"].score.covered <= 0.9


def test_rows_too_short_for_the_timer_judge_nothing() -> None:
    score = score_of(np.array([1.1, 2.0, 0.004]), np.array([1.0, 2.0, 0.001]), 0.8)
    assert (score.count, score.mape, score.within20) == (2, pytest.approx(0.05), 1.0)
    none_longer = score_of(np.array([0.004]), np.array([0.001]), 0.8)
    assert (none_longer.count, none_longer.mape) == (1, pytest.approx(3.0))


def test_each_operator_has_a_base_of_its_own() -> None:
    assert set(learned().kinds["activation"].base) == {"", "op=0", "op=6"}
    assert np.median(error(learned(), elements("activation", 200, seed=1))) < 0.05


def test_disturbed_rows_do_not_move_the_others() -> None:
    calm = convolutions(400, noise=0.01)
    late = calm.latency_ms * np.where(np.random.default_rng(5).random(400) < 0.15, 4.0, 1.0)
    trust = Boosting(loss="absolute_error", trees=25, rate=0.2, leaves=12, bins=32)
    model, _ = learn_kind(Table("conv", calm.columns, late), dataclasses.replace(QUICK[0], trust=(trust,)))
    plain, _ = learn_kind(Table("conv", calm.columns, late), QUICK[0])
    apart = convolutions(300, seed=3, noise=0.0)

    def bias(m: Any) -> float:
        return float(np.mean(np.log(m.predict("conv", apart.columns).median_ms / apart.latency_ms)))

    assert abs(bias(model)) < 0.1
    assert bias(model) < bias(plain) - 0.05


@pytest.mark.parametrize("rows", [1, 2, 9, 30])
def test_few_rows_are_enough_for_a_guess(rows: int) -> None:
    table = convolutions(rows)
    latency = parse_latency(latency_bytes(train({"conv": table}, name="few", quick=True)), "here")
    times = latency.kinds["conv"].predict("conv", table.columns)
    assert np.isfinite(times.high_ms).all()
    assert (times.low_ms > 0).all()
    assert np.median(np.abs(np.log(times.median_ms / table.latency_ms))) < 1


def test_identical_rows_of_one_configuration() -> None:
    table = Table("softmax", {"rows": np.full(40, 12.0), "width": np.full(40, 197.0)}, np.full(40, 0.25))
    latency = train({"softmax": table}, name="same", quick=True)
    assert latency.kinds["softmax"].predict("softmax", table.columns).median_ms[0] == pytest.approx(0.25, rel=0.01)


def test_nothing_to_learn_from() -> None:
    with pytest.raises(InputError, match="no measured kernels"):
        train({"conv": convolutions(0)}, name="nothing")


def test_the_same_seed_gives_the_same_file() -> None:
    tables = {"activation": elements("activation", 120)}
    one, two = (latency_bytes(train(tables, name="x", quick=True, seed=4)) for _ in range(2))
    assert one == two


def test_without_scikit_learn_training_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "sklearn.ensemble", None)
    with pytest.raises(MissingExtraError, match=r"\[predict\]\): .* install 'scikit-learn>="):
        train({"conv": convolutions(50)}, name="x")


@pytest.mark.parametrize(("kind", "rows", "leaves", "least"), [
    ("conv", 999, 16, 5), ("conv", 1000, 31, 5), ("conv", 9000, 63, 5), ("batchnorm", 999, 16, 5),
    ("batchnorm", 1640, 16, 15),
])  # fmt: skip
def test_more_rows_get_more_trees_and_few_sizes_smoother_ones(kind: str, rows: int, leaves: int, least: int) -> None:
    effort = effort_for(Table(kind, {}, np.ones(rows)), FULL)
    assert (effort.median.leaves, effort.median.least) == (leaves, least)


# --- whole models and the roofline ------------------------------------------------------------------------------------


def test_strips_say_how_kernels_add_up() -> None:
    table = elements("activation", 400)
    strips = np.repeat(np.arange(50), 8)
    table = Table(table.kind, table.columns, table.latency_ms, strips)
    sums = np.bincount(strips, table.latency_ms)
    draw = np.random.default_rng(1)
    totals = {k: float((0.5 * cold(ms) + 1.2 * ms) * np.exp(0.02 * draw.normal())) for k, ms in enumerate(sums)}
    latency = train({"activation": table}, name="x", totals=totals, quick=True)
    assert latency.fixed_ms == pytest.approx(0.5, rel=0.2)
    assert latency.scale == pytest.approx(1.2, rel=0.05)
    assert 0.005 < latency.spread < 0.15
    assert learned().scale == 1.0
    assert learned().spread == 0.0


def test_the_roofline_is_near_the_device() -> None:
    line = learned().roofline
    assert 5e6 < line.flops_per_ms < 1e8  # 20 to 40 GFLOP/s, a part of which is lost
    assert 1e6 < line.bytes_per_ms < 1e8
    assert 1.5 <= line.spread <= 100
