"""What is learned of a device: how near it is, what its file keeps, and what a broken file may not do."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from splitpoint.errors import InputError, MissingExtraError
from splitpoint.predict.kernels.kernel_kinds import KINDS
from splitpoint.predict.kernels.kernel_table import Table
from splitpoint.predict.learn import files
from splitpoint.predict.learn.boost import Boosting, constant, grow
from splitpoint.predict.learn.features import cells_of, columns_of, feature_names, features_of, term_names, terms_of
from splitpoint.predict.learn.files import SHIPPED, latency_bytes, load_latency, parse_latency, save_latency
from splitpoint.predict.learn.latency_model import Latency, cold
from splitpoint.predict.learn.linear import cells_base, fit_base, fit_cells, fit_linear
from splitpoint.predict.learn.training import FULL, QUICK, effort_for, learn_kind, score_of, train
from splitpoint.predict.learn.trees import Forest


def convolutions(rows: int, seed: int = 0, noise: float = 0.03) -> Table:
    """A device that computes 20 GFLOP/s, twice as fast in 3×3 of stride 1, and wastes what is over in blocks of 8."""
    draw = np.random.default_rng(seed)
    c = {
        "HW": draw.choice([7.0, 14, 28, 56, 112], rows),
        "kernel": draw.choice([1.0, 3, 5], rows),
        "stride": draw.choice([1.0, 2], rows),
        "Cin": np.round(2 ** draw.uniform(2, 9, rows)),
        "Cout": np.round(2 ** draw.uniform(2, 9, rows)),
    }
    pixels = np.ceil(c["HW"] / c["stride"]) ** 2
    macs = pixels * c["kernel"] ** 2 * c["Cin"] * np.ceil(c["Cout"] / 8) * 8
    faster = np.where((c["kernel"] == 3) & (c["stride"] == 1), 2.0, 1.0)
    moved = c["HW"] ** 2 * c["Cin"] + pixels * c["Cout"]
    ms = (0.01 + macs / faster / 1e7 + moved / 2e6) * np.exp(noise * draw.normal(size=rows))
    return Table("conv", c | {"FLOPs": 2 * macs}, ms)


def elements(kind: str, rows: int, seed: int = 0) -> Table:
    draw = np.random.default_rng(seed)
    c = {"elements": np.round(10 ** draw.uniform(3, 6, rows)), "op": draw.choice([0.0, 6.0], rows)}
    ms = (0.005 + c["elements"] * np.where(c["op"] == 0, 1e-6, 8e-6)) * np.exp(0.03 * draw.normal(size=rows))
    return Table(kind, c, ms)


@cache
def learned() -> Latency:
    return train({"conv": convolutions(700), "activation": elements("activation", 200)}, name="test", quick=True)


def error(latency: Latency, table: Table) -> np.ndarray[Any, Any]:
    return np.asarray(np.abs(latency.predict(table.kind, table.columns).median_ms / table.latency_ms - 1))


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
    times = learned().predict("conv", apart.columns)
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


def test_far_outside_of_what_was_measured_it_grows_with_the_work_and_is_less_sure() -> None:
    sizes = np.array([112.0, 448.0, 1792.0])
    c = {
        "HW": sizes,
        "kernel": np.full(3, 3.0),
        "stride": np.ones(3),
        "Cin": np.full(3, 64.0),
        "Cout": np.full(3, 64.0),
    }
    times = learned().predict("conv", c | {"FLOPs": np.zeros(3)})
    grows = times.median_ms[1:] / times.median_ms[:-1]
    assert ((grows > 8) & (grows < 32)).all()  # sixteen times the pixels
    assert times.outside[0] == 0
    assert 0 < times.outside[1] < times.outside[2]
    wide = times.high_ms / times.low_ms
    assert wide[0] < wide[1] < wide[2]


def test_a_column_that_never_varied_in_training_makes_nothing_unsure() -> None:
    table = convolutions(50, seed=6)
    fused = {"fused": np.full(50, 2.0), "weights_mb": np.full(50, 90.0), "act": np.full(50, 1.0)}
    times, plain = (learned().predict("conv", c) for c in ({**table.columns, **fused}, table.columns))
    assert times.outside.tolist() == plain.outside.tolist()
    assert times.median_ms.tolist() == plain.median_ms.tolist()


@pytest.mark.parametrize("rows", [1, 2, 9, 30])
def test_few_rows_are_enough_for_a_guess(rows: int) -> None:
    table = convolutions(rows)
    latency = parse_latency(latency_bytes(train({"conv": table}, name="few", quick=True)), "here")
    times = latency.predict("conv", table.columns)
    assert np.isfinite(times.high_ms).all()
    assert (times.low_ms > 0).all()
    assert np.median(np.abs(np.log(times.median_ms / table.latency_ms))) < 1


def test_identical_rows_of_one_configuration() -> None:
    table = Table("softmax", {"rows": np.full(40, 12.0), "width": np.full(40, 197.0)}, np.full(40, 0.25))
    latency = train({"softmax": table}, name="same", quick=True)
    assert latency.predict("softmax", table.columns).median_ms[0] == pytest.approx(0.25, rel=0.01)


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


# --- forests ----------------------------------------------------------------------------------------------------------


def test_a_forest_says_what_scikit_learn_says() -> None:
    from sklearn.ensemble import HistGradientBoostingRegressor

    draw = np.random.default_rng(0)
    rows = np.round(draw.normal(size=(400, 5)))  # few values: both cut between all of them
    target = np.sin(3 * rows[:, 0]) + rows[:, 1] * rows[:, 2]
    how = Boosting(trees=30, leaves=20, depth=6, share=1.0)
    forest = grow(rows, target, np.ones(400), how, seed=0)
    theirs = HistGradientBoostingRegressor(
        max_iter=30, learning_rate=0.1, max_leaf_nodes=20, max_depth=6, min_samples_leaf=5, early_stopping=False,
        random_state=0,
    ).fit(rows, target)  # fmt: skip
    more = np.vstack([rows, rows[:100] + 0.5, draw.normal(size=(2000, 5)) * 3])  # many on a threshold
    assert np.abs(forest.evaluate(more) - theirs.predict(more)).max() < 30 * 1e-4
    assert forest.evaluate(more[:0]).shape == (0,)
    forest.check(5)


def test_a_feature_with_more_values_than_bins_is_cut_at_quantiles() -> None:
    values = np.exp(np.random.default_rng(0).normal(size=1000) * 5)
    forest = grow(values[:, None], np.log(values), np.ones(1000), Boosting(trees=80, bins=32, share=1.0), 0)
    assert 16 < len(forest.thresholds[0]) < 32
    assert np.median(np.abs(forest.evaluate(values[:, None]) - np.log(values))) < 0.3


def test_rows_are_evaluated_in_pieces_that_fit() -> None:
    rows = np.random.default_rng(0).normal(size=(3000, 3))
    forest = grow(rows[:500], rows[:500, 0], np.ones(500), Boosting(trees=60, leaves=8, bins=32), 0)
    assert np.array_equal(forest.evaluate(rows), np.concatenate([forest.evaluate(r[None]) for r in rows]))


def test_configurations_that_repeat_are_evaluated_once_and_come_back_in_place() -> None:
    table = convolutions(40, seed=9)
    again = np.array([3, 3, 39, 0, 3, 17])
    once = learned().predict("conv", table.columns)
    many = learned().predict("conv", table.take(again).columns)
    for ours, theirs in ((many.median_ms, once.median_ms), (many.low_ms, once.low_ms), (many.high_ms, once.high_ms)):
        assert ours.tolist() == theirs[again].tolist()
    nothing = learned().predict("conv", {name: values[:0] for name, values in table.columns.items()})
    assert len(nothing.median_ms) == 0


# --- features and bases -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_kind_has_features_and_terms(kind: str) -> None:
    columns = columns_of(kind, {name: np.array([4.0, 8.0]) for name in KINDS[kind].required})
    features = features_of(kind, columns)
    assert features.shape == (2, len(feature_names(kind)))
    assert np.isfinite(features).all()
    terms = terms_of(kind, columns)
    assert tuple(terms) == term_names(kind)
    assert (np.stack(list(terms.values())) >= 0).all()
    assert len(cells_of(kind, columns)) == 2


def test_groups_of_whole_blocks_are_priced_apart_from_others() -> None:
    sizes = {"HW": 28.0, "kernel": 3.0, "stride": 1.0, "FLOPs": 1.0}
    groups = {"Cin": [64, 104, 104, 12], "Cout": [64, 104, 208, 24], "groups": [4, 13, 26, 2]}
    rows = {k: np.full(4, v) for k, v in sizes.items()} | {k: np.array(v, np.float64) for k, v in groups.items()}
    columns = columns_of("group_conv", rows)
    # 16 → 16, 8 → 8, 4 → 8, 6 → 12 channels a group.
    assert cells_of("group_conv", columns).tolist() == ["block=16", "block=8", "block=1", "block=1"]


def test_a_missing_column_is_named() -> None:
    with pytest.raises(InputError, match="a kernel of kind conv needs the column Cin"):
        columns_of("conv", {"HW": np.ones(1), "kernel": np.ones(1), "stride": np.ones(1)})


def test_a_base_finds_the_price_of_each_term() -> None:
    draw = np.random.default_rng(0)
    terms = {"1": np.ones(200), "macs": 10 ** draw.uniform(0, 3, 200), "read": 10 ** draw.uniform(0, 3, 200)}
    ms = 0.5 + 0.02 * terms["macs"]
    ms[:20] *= 7  # disturbed
    base = fit_base(terms, ms)
    assert base["1"] == pytest.approx(0.5, rel=0.02)
    assert base["macs"] == pytest.approx(0.02, rel=0.02)
    assert base.get("read", 0.0) < 1e-4


def test_a_cell_with_few_rows_uses_the_common_base() -> None:
    cells = np.array(["a"] * 40 + ["b"] * 3)
    terms = {"1": np.ones(43), "read": np.linspace(1, 5, 43)}
    bases = fit_cells(terms, np.where(cells == "a", 1.0, 2.0) * terms["read"], cells)
    assert set(bases) == {"", "a"}
    assert cells_base(bases, terms, cells)[0] == pytest.approx(1.0, rel=0.05)


def test_linear_regression_is_there_to_compare_with() -> None:
    found = fit_linear({"x": np.array([1.0, 2, 3, 4]), "same": np.ones(4)}, np.array([5.0, 7, 9, 11]))
    assert found == pytest.approx({"1": 3.0, "x": 2.0})


# --- files ------------------------------------------------------------------------------------------------------------


def test_comes_back_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "device.latency.json"
    save_latency(path, learned())
    back = load_latency(path)
    assert latency_bytes(back) == latency_bytes(learned())
    table = convolutions(50, seed=8)
    assert back.predict("conv", table.columns).median_ms.tolist() == medians(table).tolist()


def medians(table: Table) -> np.ndarray[Any, Any]:
    return learned().predict("conv", table.columns).median_ms


def test_using_a_file_needs_no_scikit_learn(tmp_path: Path) -> None:
    save_latency(tmp_path / "x.json", learned())
    code = (
        "import sys; sys.modules['sklearn'] = sys.modules['scipy'] = None\n"
        "import numpy as np\n"
        "from splitpoint.predict.learn.files import load_latency\n"
        "c = {k: np.array([v]) for k, v in dict(elements=5e4, op=6.0).items()}\n"
        "print(load_latency(sys.argv[1]).predict('activation', c).median_ms[0])"
    )
    run = subprocess.run([sys.executable, "-c", code, str(tmp_path / "x.json")], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert float(run.stdout) == pytest.approx(0.005 + 5e4 * 8e-6, rel=0.1)


def spoil(change: Callable[[dict[str, Any]], object]) -> bytes:
    value: dict[str, Any] = msgspec.json.decode(latency_bytes(learned()))
    change(value)
    return msgspec.json.encode(value)


def _forest(value: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = value["kinds"]["conv"]["forest"]
    return found


def _set(where: dict[str, Any] | list[Any], key: Any, to: object) -> None:
    where[key] = to


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda v: _set(v, "format", 2), "format 2, and this version reads format 1"),
        (lambda v: v.pop("kinds"), "is not a latency file"),
        (lambda v: _set(v, "convention", "odd"), "counts FLOPs in an unknown way"),
        (lambda v: _set(v, "name", "a\x1b[2J"), "control characters"),
        (lambda v: _set(v, "scale", 0), "makes no sense"),
        (lambda v: _set(v, "spread", -1), "makes no sense"),
        (lambda v: _set(v["roofline"], "flops_per_ms", 0), "makes no sense"),
        (lambda v: _set(v["kinds"], "rnn", v["kinds"]["conv"]), "a kind that is none"),
        (lambda v: _set(v["kinds"]["conv"]["features"], 0, "moon"), "does not know"),
        (lambda v: _set(v["kinds"]["conv"]["base"][""], "moon", 1.0), "does not know"),
        (lambda v: v["kinds"]["conv"]["base"].pop(""), "no base"),
        (lambda v: _set(v["kinds"]["conv"]["base"][""], "macs", -1.0), "makes no sense"),
        (lambda v: v["kinds"]["conv"]["linear"].pop("1"), "no features, no base, or a linear model"),
        (lambda v: v["kinds"]["conv"]["ranges"].pop(), "ranges for"),
        (lambda v: _set(v["kinds"]["conv"]["ranges"], 0, [2, 1]), "ends before it begins"),
        (lambda v: _set(v["kinds"]["conv"], "low", 1.0), "makes no sense"),
        (lambda v: _set(v["kinds"]["conv"]["score"], "within10", 1.5), "makes no sense"),
        (lambda v: _forest(v)["feature"].pop(), "nodes, and there are"),
        (lambda v: _set(_forest(v)["trees"], 0, -5), "nodes, and there are"),
        (lambda v: _set(_forest(v)["feature"], 0, 999), "a feature that is not there"),
        (lambda v: _set(_forest(v)["feature"], 0, -1), "a feature that is not there"),
        (lambda v: _set(_forest(v)["feature"], 0, 1 << 40), "a feature that is not there"),
        (lambda v: _set(_forest(v)["feature"], 0, 1 << 70), "not a latency file|damaged"),
        (lambda v: _set(_forest(v)["threshold"], 0, 99999), "a threshold that is not there"),
        (lambda v: _set(_forest(v)["right"], 0, 1), "leads out of its tree"),
        (lambda v: _set(_forest(v)["right"], 0, -3), "leads out of its tree"),
        (lambda v: _set(_forest(v)["right"], 0, 10**6), "leads out of its tree"),
        (lambda v: _set(_forest(v), "step", 1e9), "a factor that no kernel has"),
        (lambda v: _set(_forest(v), "start", 1e300), "a factor that no kernel has"),
        (lambda v: _forest(v)["thresholds"].pop(), "features with thresholds"),
        (lambda v: max(_forest(v)["thresholds"], key=len).reverse(), "not ascending"),
    ],
)
def test_a_file_that_makes_no_sense_is_refused(change: Callable[[dict[str, Any]], object], said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        parse_latency(spoil(change), "x.json")
    assert str(caught.value).startswith("x.json ")


@pytest.mark.parametrize("data", [b"", b"[1]", b'{"kinds": 1', b"\xff", b'{"kinds":{},"roofline":{},"format":1}'])
def test_what_is_no_latency_file_is_said(data: bytes) -> None:
    with pytest.raises(InputError, match=r"x\.json is "):
        parse_latency(data, "x.json")


def test_a_chain_of_splits_is_too_deep() -> None:
    deep = 70
    forest = Forest(
        start=0.0,
        step=1e-4,
        thresholds=((0.5,),),
        trees=(2 * deep + 1,),
        feature=(0,) * (2 * deep + 1),
        threshold=(0,) * (2 * deep + 1),
        right=tuple(2 * (deep - k) for k in range(deep)) + (0,) * (deep + 1),
    )
    with pytest.raises(ValueError, match="deep"):
        forest.check(1)
    constant(0.5, 3).check(3)


def test_a_name_that_is_none_says_what_there_is() -> None:
    with pytest.raises(InputError, match="did you mean neurosurgeon-edge"):
        load_latency("neurosurgeon-edg")


# --- shipped ----------------------------------------------------------------------------------------------------------

#: Rows of the seed's tables: HW, kernel, stride, Cin, Cout and ms on its edge and on its cloud machine.
PUBLISHED = (
    (27, 5, 1, 256, 512, 23.184, None),
    (27, 5, 1, 1024, 1024, 174.303, None),
    (112, 7, 1, 16, 16, 10.08, None),
    (224, 9, 1, 16, 16, 47.526, None),
    (27, 1, 2, 1024, 512, None, 0.396),
    (13, 7, 2, 128, 16, None, 0.774),
    (14, 9, 1, 16, 1024, None, 1.325),
)


@pytest.mark.parametrize("name", SHIPPED)
def test_the_shipped_files_say_whose_they_are_and_fit_what_was_published(name: str) -> None:
    latency = load_latency(name)
    assert latency.name == name
    assert "Neurosurgeon" in latency.note
    assert latency.convention == "seed"
    assert set(latency.kinds) == {"conv", "dw_conv", "linear", "maxpool", "avgpool", "batchnorm"}
    assert (files._FOLDER / f"{name}.latency.json").stat().st_size < 3_200_000
    place = 5 if name.endswith("edge") else 6
    rows = np.array([r[:5] for r in PUBLISHED if r[place] is not None], float)
    measured = np.array([r[place] for r in PUBLISHED if r[place] is not None], float)
    columns = dict(zip(("HW", "kernel", "stride", "Cin", "Cout"), rows.T, strict=True)) | {"FLOPs": np.zeros(len(rows))}
    assert np.median(np.abs(latency.predict("conv", columns).median_ms / measured - 1)) < 0.15
    for model in latency.kinds.values():
        assert 0.7 <= model.score.covered <= 0.9
