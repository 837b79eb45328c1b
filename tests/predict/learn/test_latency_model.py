"""A latency model away from what it was trained on."""

from __future__ import annotations

import numpy as np
from trained_tables import convolutions, learned


def test_far_outside_of_what_was_measured_it_grows_with_the_work_and_is_less_sure() -> None:
    sizes = np.array([112.0, 448.0, 1792.0])
    c = {
        "HW": sizes,
        "kernel": np.full(3, 3.0),
        "stride": np.ones(3),
        "Cin": np.full(3, 64.0),
        "Cout": np.full(3, 64.0),
    }
    times = learned().kinds["conv"].predict("conv", c | {"FLOPs": np.zeros(3)})
    grows = times.median_ms[1:] / times.median_ms[:-1]
    assert ((grows > 8) & (grows < 32)).all()  # sixteen times the pixels
    wide = times.high_ms / times.low_ms
    assert wide[0] < wide[1] < wide[2]


def test_a_column_that_never_varied_in_training_makes_nothing_unsure() -> None:
    table = convolutions(50, seed=6)
    fused = {"fused": np.full(50, 2.0), "weights_mb": np.full(50, 90.0), "act": np.full(50, 1.0)}
    times, plain = (learned().kinds["conv"].predict("conv", c) for c in ({**table.columns, **fused}, table.columns))
    for ours, theirs in zip(
        (times.median_ms, times.low_ms, times.high_ms), (plain.median_ms, plain.low_ms, plain.high_ms), strict=True
    ):
        assert ours.tolist() == theirs.tolist()


def test_configurations_that_repeat_are_evaluated_once_and_come_back_in_place() -> None:
    table = convolutions(40, seed=9)
    again = np.array([3, 3, 39, 0, 3, 17])
    once = learned().kinds["conv"].predict("conv", table.columns)
    many = learned().kinds["conv"].predict("conv", table.take(again).columns)
    for ours, theirs in ((many.median_ms, once.median_ms), (many.low_ms, once.low_ms), (many.high_ms, once.high_ms)):
        assert ours.tolist() == theirs[again].tolist()
    nothing = learned().kinds["conv"].predict("conv", {name: values[:0] for name, values in table.columns.items()})
    assert len(nothing.median_ms) == 0
