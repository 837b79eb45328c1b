"""Forests: scikit-learn is the oracle."""

from __future__ import annotations

import numpy as np

from splitpoint.predict.learn.boost import Boosting, grow

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
