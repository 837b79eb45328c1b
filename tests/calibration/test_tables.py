"""Tables of codecs: learnt once a tensor, of that tensor of that model and no other."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from calibration_cases import ENGINE
from tabled import AT, TENSOR, calibration, digits, lenet, tables_for

import nets
from splitpoint.calibration.calibrations import TensorTables
from splitpoint.calibration.tables import apart, fits, learn_tables, tables_of
from splitpoint.errors import InputError, UsageError
from splitpoint.tensors import TensorSpec


def test_a_tensor_that_crosses_at_several_cuts_is_learnt_once() -> None:
    model, told, done = lenet(), [], []
    cuts = [model.graph.cut(AT), model.graph.cut("pool2"), model.graph.cut(AT)]
    learnt = learn_tables(
        model, ENGINE, digits()[:8], cuts, on_progress=lambda d, total: done.append((d, total)), on_note=told.append
    )
    assert [t.tensor for t in learnt] == [AT, "pool2"]
    assert done == [(1, 2), (2, 2)]
    assert not told
    assert learnt == learn_tables(model, ENGINE, digits()[:8], cuts), "the same inputs give the same bytes"


def test_those_of_a_classifier_can_be_learnt_where_its_tail_looks() -> None:
    model, done = lenet(), []
    cuts = [model.graph.cut("pool2")]
    learnt = learn_tables(
        model, ENGINE, digits()[:12], cuts, metric=True, on_progress=lambda d, total: done.append((d, total))
    )
    assert [t.tensor for t in learnt] == ["pool2"]
    assert learnt != learn_tables(model, ENGINE, digits()[:12], cuts)
    passes = 10 * 16 * 3  # ten digits, a channel and a group of frequencies each
    assert done == [(k + 1, passes + 1) for k in range(passes + 1)]

    numbers = nets.load(nets.residual())
    values = [{"x": v.astype(np.float32)} for v in np.random.default_rng(0).normal(size=(9, 1, 3, 8, 8))]
    inside = [next(c for c in numbers.graph.chain() if c.nodes and c.crossing)]
    plain = learn_tables(numbers, ENGINE, values, inside)
    assert learn_tables(numbers, ENGINE, values, inside, metric=True) == plain != (), "no classifier's: as it is"


def test_what_cannot_be_learnt_is_said_and_the_rest_is_learnt() -> None:
    told: list[str] = []
    cuts = [lenet().graph.cut(AT)]
    assert learn_tables(lenet(), ENGINE, digits()[:3], cuts, on_note=told.append) == ()
    assert learn_tables(lenet(), ENGINE, [digits()[0]] * 9, cuts, on_note=told.append) == ()
    assert [text.partition(":")[0] for text in told] == [f"no tables for {TENSOR}"] * 2
    assert "at least 8" in told[0]
    assert "all alike" in told[1]


def test_they_are_for_tensors_of_one_shape_and_any_batch() -> None:
    tables = tables_for(calibration())
    assert tables.shape == (6, 14, 14)
    assert fits(TensorSpec("x", "float32", (1, 6, 14, 14)), tables)
    assert fits(TensorSpec("x", "float16", ("batch", 6, "h", 14)), tables)
    assert not fits(TensorSpec("x", "int8", (1, 6, 14, 14)), tables)
    assert not fits(TensorSpec("x", "float32", (1, 6, 14, 15)), tables)
    assert not fits(TensorSpec("x", "float32", (6, 14, 14)), tables)
    assert not fits(TensorSpec("x", "float32", ()), tables)


def test_those_of_another_model_or_tensor_are_refused() -> None:
    assert set(tables_of(calibration(), lenet())) == {TENSOR, "pool2"}
    with pytest.raises(InputError, match=r"calib\.json is of lenet5 5a704421ff22, not of net"):
        tables_of(calibration(), nets.load(nets.residual()), "calib.json")
    (first, second) = calibration().tables
    for wrong, why in (
        (TensorTables(second.tensor, first.data), r"has tables of pool2 for \[batch,6,14,14\], but in lenet5 it is"),
        (TensorTables("elsewhere", first.data), "no tensor of that name can travel"),
    ):
        with pytest.raises(InputError, match=why):
            tables_of(msgspec.structs.replace(calibration(), tables=(wrong,)), lenet())


def test_what_is_measured_was_not_learnt_from() -> None:
    learning, measuring = apart(list(range(17)))
    assert learning == list(range(0, 17, 2))
    assert measuring == list(range(1, 17, 2))
    with pytest.raises(UsageError, match="16 inputs are the least"):
        apart(list(range(15)))


def test_tensors_are_held_a_group_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    model, cuts = lenet(), list(lenet().graph.chain())
    together = learn_tables(model, ENGINE, digits()[:8], cuts)
    monkeypatch.setattr("splitpoint.calibration.tables._HELD_NBYTES", 1)
    assert learn_tables(model, ENGINE, digits()[:8], cuts) == together
    assert len({t.tensor for t in together}) == len(together) > 5
    assert all(np.isfinite(tables_for(msgspec.structs.replace(calibration(), tables=together), t.tensor).mean).all()
               for t in together)  # fmt: skip
