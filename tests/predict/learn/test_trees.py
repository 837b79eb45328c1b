"""How a forest is evaluated."""

from __future__ import annotations

import numpy as np
import pytest

from splitpoint.predict.learn.boost import Boosting, constant, grow
from splitpoint.predict.learn.trees import Forest


def test_rows_are_evaluated_in_pieces_that_fit() -> None:
    rows = np.random.default_rng(0).normal(size=(3000, 3))
    forest = grow(rows[:500], rows[:500, 0], np.ones(500), Boosting(trees=60, leaves=8, bins=32), 0)
    assert np.array_equal(forest.evaluate(rows), np.concatenate([forest.evaluate(r[None]) for r in rows]))


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
