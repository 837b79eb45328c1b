"""What is learned of a device: how near it is, what its file keeps, and what a broken file may not do."""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

import numpy as np
import pytest
from trained_tables import convolutions, elements, learned

from splitpoint.errors import InputError, MissingExtraError
from splitpoint.predict.kernels.kernel_kinds import KINDS
from splitpoint.predict.kernels.kernel_table import Table
from splitpoint.predict.learn.boost import Boosting
from splitpoint.predict.learn.files import latency_bytes, parse_latency
from splitpoint.predict.learn.latency_model import Latency, cold
from splitpoint.predict.learn.training import FULL, QUICK, effort_for, leaf_s, learn_kind, learning_s, score_of, train


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


@pytest.mark.parametrize("factor", [1000.0, 0.001])
def test_a_row_far_off_among_few_that_are_alike_leaves_a_file_that_can_be_read(factor: float) -> None:
    """It is more than a hundred times farther off than the others usually are."""
    one = convolutions(1, noise=0.0)
    columns = {name: np.repeat(values, 8) for name, values in one.columns.items()}
    table = Table("conv", columns, one.latency_ms * np.array([1.0] * 7 + [factor]))
    latency = train({"conv": table}, name="few", quick=True)
    kind = parse_latency(latency_bytes(latency), "it").kinds["conv"]
    times = kind.predict("conv", columns)
    assert times.low_ms[0] <= table.latency_ms.min() * 1.01
    assert times.high_ms[0] >= table.latency_ms.max() * 0.99


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


def test_of_few_strips_each_is_judged_by_the_others() -> None:
    tables = {"activation": in_networks(2, 0.0)}
    kernels = [float(tables["activation"].latency_ms[8 * k : 8 * k + 8].sum()) for k in range(2)]
    both = train(tables, name="x", totals={0: kernels[0], 1: 2 * kernels[1]}, quick=True)
    assert both.spread > np.log(1.5)
    one = train({"activation": in_networks(1, 0.0)}, name="x", totals={0: kernels[0]}, quick=True)
    assert one.spread == 0.0  # not known


def test_the_roofline_is_near_the_device() -> None:
    line = learned().roofline
    assert 5e6 < line.flops_per_ms < 1e8  # 20 to 40 GFLOP/s, a part of which is lost
    assert 1e6 < line.bytes_per_ms < 1e8
    assert 1.5 <= line.spread <= 100


# --- few rows ---------------------------------------------------------------------------------------------------------


def in_networks(networks: int, off: float) -> Table:
    """Activations in so many networks of eight; in each all take longer or shorter by the same share, `off` usually."""
    table = elements("activation", 8 * networks)
    strips = np.repeat(np.arange(networks), 8)
    factor = np.exp(off * np.random.default_rng(2).normal(size=networks))[strips]
    return Table(table.kind, table.columns, table.latency_ms * factor, strips)


def test_what_kernels_of_one_network_share_is_learned_of_networks_kept_apart() -> None:
    calm, shaken = (train({"activation": in_networks(40, off)}, name="x", quick=True) for off in (0.0, 0.5))
    assert calm.kinds["activation"].networks == 40
    assert calm.kinds["activation"].shared < 0.15
    assert 0.35 < shaken.kinds["activation"].shared < 0.8


def test_rows_of_few_networks_are_judged_by_other_networks() -> None:
    """Eight kernels of a network are alike: rows apart, of the same networks, would seem near."""
    model = train({"activation": in_networks(4, 1.0)}, name="x", quick=True).kinds["activation"]
    assert model.shared > 0.5
    assert model.score.mape > 0.3


def test_too_little_is_in_the_file_and_said() -> None:
    few, enough = in_networks(3, 0.1), convolutions(100)
    depthwise = {name: enough.columns[name][:4] for name in KINDS["dw_conv"].required}
    tables = {"activation": few, "conv": enough, "dw_conv": Table("dw_conv", depthwise, enough.latency_ms[:4])}
    latency = train(tables, name="x", quick=True)
    assert latency.lacking == ("activation", "dw_conv")
    again = parse_latency(latency_bytes(latency), "here")
    assert again == latency
    said = again.too_little()
    assert said.startswith("too little was measured of activation (3 networks), dw_conv (4 rows): ranges are wide")
    assert "dw_conv" not in again.too_little({"conv", "activation"})
    assert again.too_little({"conv"}) == ""


def test_a_kind_of_one_network_is_known_as_badly_as_one_never_measured() -> None:
    latency = train({"activation": in_networks(1, 0.0)}, name="x", quick=True)
    assert latency.kinds["activation"].shared == pytest.approx(np.log(latency.roofline.spread) / 1.2816)


def test_an_operator_counts_as_measured_once_it_was_in_two_networks() -> None:
    table = in_networks(4, 0.1)
    ops = np.where(table.origin == 0, 7.0, 0.0)
    ops[-1] = 3.0
    ops[-9] = 3.0
    networks = Table("activation", table.columns | {"op": ops}, table.latency_ms, table.origin)
    assert train({"activation": networks}, name="x", quick=True).kinds["activation"].ops == (0, 3)
    alone = Table("activation", networks.columns, networks.latency_ms)
    assert train({"activation": alone}, name="x", quick=True).kinds["activation"].ops == (0, 3, 7)
    assert train({"conv": convolutions(40)}, name="x", quick=True).kinds["conv"].ops == ()


def test_how_long_learning_takes_follows_from_rows_and_kinds() -> None:
    ticks = iter([0.0, 0.9, 1.3, 1.8])
    leaf = leaf_s(lambda: next(ticks))
    assert 0 < leaf < 0.4 / 200
    one = learning_s({"conv": convolutions(50)}, leaf)
    assert learning_s({"conv": convolutions(50), "linear": convolutions(50)}, leaf) > 1.5 * one
    assert learning_s({"conv": convolutions(1200)}, leaf) > 3 * one
    assert learning_s({}, leaf) == 0.0
