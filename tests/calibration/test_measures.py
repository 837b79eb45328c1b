"""How alike two answers are."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from splitpoint.calibration.measures import MEASURES, open_measure
from splitpoint.errors import InputError, UsageError
from splitpoint.tensors import Array


def alike(name: str, expected: Array, got: Array) -> float:
    return open_measure(name, "y")({"y": expected}, {"y": got})


def test_one_output() -> None:
    a, b = np.array([[1.0, 3.0, 2.0]]), np.array([[1.0, 2.0, 3.0]])
    assert alike("top1", a, a) == 1
    assert alike("top1", a, b) == 0
    assert alike("cosine", a, 2 * a) == pytest.approx(1)
    assert alike("cosine", np.array([1.0, 0.0]), np.array([1.0, 1.0])) == pytest.approx(0.5**0.5)
    assert alike("cosine", a, np.array([[1.0, np.nan, 3.0]])) == -1
    assert alike("relative", np.array([3.0, 4.0]), np.array([3.0, 3.5])) == pytest.approx(0.9)
    assert alike("relative", np.zeros(2), np.zeros(2)) == 1
    assert alike("relative", np.zeros(2), np.ones(2)) == 0


def test_mean_iou_by_hand() -> None:
    expected, got = np.array([[[0, 0], [1, 1]]]), np.array([[[0, 0], [0, 1]]])
    assert alike("miou", expected, got) == pytest.approx((2 / 3 + 1 / 2) / 2)
    logits = np.stack([np.float32(expected == c) for c in range(3)], axis=1)
    assert alike("miou", logits, logits) == 1
    assert alike("miou", logits, np.stack([np.float32(got == c) for c in range(3)], axis=1)) == pytest.approx(7 / 12)
    with pytest.raises(InputError, match="miou takes"):
        alike("miou", np.zeros((1, 4), np.float32), np.zeros((1, 4), np.float32))


def found(*boxes: tuple[float, float, float, float, float, int], one: bool = False) -> Mapping[str, Array]:
    """Corners, score and class of each, in three outputs or in `one`."""
    table = np.array(boxes, np.float32).reshape(1, -1, 6)
    if one:
        return {"out": table}
    return {"boxes": table[..., :4], "scores": table[..., 4], "labels": table[..., 5].astype(np.int64)}


BIG, SMALL = (0, 0, 10, 10, 0.9, 1), (20, 20, 24, 24, 0.8, 2)


@pytest.mark.parametrize("one", [False, True])
def test_boxes_by_hand(one: bool) -> None:
    f50, f75, precision = (open_measure(name, "") for name in ("boxes50", "boxes75", "map"))
    both = found(BIG, SMALL, one=one)
    for measure in (f50, f75, precision):
        assert measure(both, both) == 1
        assert measure(both, found((0, 0, 10, 10, 0.9, 2), one=one)) == 0, "another class"
    # An IoU of 0.6 with the big one: right at 0.5, wrong at 0.75.
    moved = found((0, 0, 10, 6, 0.9, 1), SMALL, one=one)
    assert f50(both, moved) == 1
    assert f75(both, moved) == pytest.approx(0.5)
    assert precision(both, moved) == pytest.approx((3 / 10 + 1) / 2)  # 0.5, 0.55 and 0.6 of ten thresholds
    # A box twice is one match and one too many; one that nobody is sure of is none.
    assert f50(both, found(BIG, BIG, SMALL, one=one)) == pytest.approx(4 / 5)
    assert f50(both, found(BIG, SMALL, (50, 50, 60, 60, 0.1, 1), one=one)) == 1
    nothing = found((0, 0, 1, 1, 0.01, 1), one=one)
    assert f50(nothing, nothing) == precision(nothing, nothing) == 1
    assert f50(nothing, both) == precision(nothing, both) == 0


def test_precision_counts_a_surer_wrong_box() -> None:
    one = found(BIG)
    wrong_first = found((50, 50, 60, 60, 0.95, 1), BIG)
    wrong_last = found(BIG, (50, 50, 60, 60, 0.5, 1))
    assert open_measure("map", "")(one, wrong_first) == pytest.approx(0.5)
    assert open_measure("map", "")(one, wrong_last) == 1


def test_outputs_that_are_no_boxes() -> None:
    measure = open_measure("boxes50", "")
    for outputs in ({"y": np.zeros((1, 84, 8400))}, {"a": np.zeros((3, 4)), "b": np.zeros((3, 4))}):
        with pytest.raises(InputError, match="--measure module:function"):
            measure(outputs, outputs)
    unclear = {"boxes": np.zeros((3, 4)), "a": np.zeros(3), "b": np.zeros(3)}
    with pytest.raises(InputError, match="boxes' scores is not clear"):
        measure(unclear, unclear)


def half(expected: Mapping[str, Array], got: Mapping[str, Array]) -> float:
    return 0.5 if np.array_equal(expected["y"], got["y"]) else 0.25


def test_a_measure_of_ones_own() -> None:
    assert alike(f"{__name__}:half", np.ones(3), np.ones(3)) == 0.5
    with pytest.raises(UsageError, match="cannot be imported"):
        open_measure("no.such:thing", "y")
    with pytest.raises(UsageError, match=r"no measure is called miuo.*miou"):
        open_measure("miuo", "y")
    assert "map" in MEASURES
