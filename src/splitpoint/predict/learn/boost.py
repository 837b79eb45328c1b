"""Boosted trees from scikit-learn, taken out as plain numbers: what trains is an extra, what predicts is not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from splitpoint.errors import EngineError, MissingExtraError
from splitpoint.predict.learn.trees import Forest
from splitpoint.profile.costs import Floats

#: Leaves are written in units of this: a hundredth of a per cent.
_STEP = 1e-4


@dataclass(frozen=True)
class Boosting:
    """How trees are grown. `seeds` forests are averaged, each of its own draw of features at every split."""

    loss: str = "squared_error"
    trees: int = 150
    rate: float = 0.1
    leaves: int = 31
    depth: int = 12
    least: int = 5
    share: float = 0.3
    bins: int = 255
    seeds: int = 1


def need_sklearn() -> None:
    """MissingExtraError unless scikit-learn is there."""
    try:
        import sklearn.ensemble  # noqa: F401
    except ImportError as exc:
        raise MissingExtraError("scikit-learn", "predict", "train a latency model") from exc


def grow(rows: Floats, target: Floats, weights: Floats, how: Boosting, seed: int) -> Forest:
    """A forest that gives `target` for `rows`. Fewer than twice `how.least` rows, and it is their weighted median.

    Trees are grown on ranks among our own cuts, at most `how.bins` a feature: scikit-learn looks for cuts itself as
    carefully for a hundred weighted rows as for a million, which takes longer than all the trees.
    """
    if len(rows) < 2 * how.least:
        return constant(_weighted_median(target, weights), rows.shape[1])
    from sklearn.ensemble import HistGradientBoostingRegressor
    from threadpoolctl import threadpool_limits

    cuts = [_cuts(values, how.bins) for values in rows.T]
    ranks = np.stack([np.searchsorted(c, values) for c, values in zip(cuts, rows.T, strict=True)], axis=1)
    models = []
    for k in range(how.seeds):
        model = HistGradientBoostingRegressor(
            loss=how.loss,
            max_iter=how.trees,
            learning_rate=how.rate,
            max_leaf_nodes=how.leaves,
            max_depth=how.depth,
            min_samples_leaf=how.least,
            max_features=how.share,
            max_bins=255,
            early_stopping=False,
            random_state=1000 * seed + k,
        )
        # Trees of so few rows are done before threads have met: two take half as long again as one, and on a busy
        # machine many times as long.
        with threadpool_limits(1, user_api="openmp"):
            models.append(model.fit(ranks.astype(np.float64), target, weights))
    forest = _taken_out(models, cuts)
    some = slice(None, None, max(1, len(rows) // 200))
    _check(forest, rows[some], np.mean([model.predict(ranks[some].astype(np.float64)) for model in models], axis=0))
    return forest


def _cuts(values: Floats, bins: int) -> Floats:
    """Where a feature may be split: between its values, or between as many quantiles as there may be bins."""
    distinct = np.unique(values)
    if len(distinct) > bins:
        distinct = np.unique(np.quantile(values, np.linspace(0, 1, bins), method="nearest"))
    # Seven digits are enough, and short in a file.
    return np.unique([float(f"{cut:.7g}") for cut in (distinct[1:] + distinct[:-1]) / 2])


def constant(value: float, features: int) -> Forest:
    """A forest without trees."""
    empty: tuple[int, ...] = ()
    return Forest(
        start=value, step=_STEP, thresholds=((),) * features, trees=empty, feature=empty, threshold=empty, right=empty
    )


def _taken_out(models: Sequence[Any], cuts: Sequence[Floats]) -> Forest:
    """The mean of scikit-learn's models as one forest: their thresholds are between ranks, ours are the cuts there."""
    trees = [predictor.nodes for model in models for (predictor,) in model._predictors]
    used = [
        np.unique(np.concatenate([t["num_threshold"][(t["is_leaf"] == 0) & (t["feature_idx"] == f)] for t in trees]))
        for f in range(len(cuts))
    ]
    used = [np.unique(np.floor(ranks).astype(np.intp)) for ranks in used]
    feature: list[int] = []
    threshold: list[int] = []
    right: list[int] = []
    for nodes in trees:
        walked = _preorder(nodes["is_leaf"], nodes["left"], nodes["right"])
        place = {at: k for k, at in enumerate(walked)}
        for k, at in enumerate(walked):
            node = nodes[at]
            if node["is_leaf"]:
                feature.append(0)
                threshold.append(round(float(node["value"]) / len(models) / _STEP))
                right.append(0)
            else:
                f = int(node["feature_idx"])
                feature.append(f)
                threshold.append(int(np.searchsorted(used[f], int(node["num_threshold"]))))
                right.append(place[int(node["right"])] - k)
    return Forest(
        start=float(np.mean([np.ravel(model._baseline_prediction)[0] for model in models])),
        step=_STEP,
        thresholds=tuple(tuple(cut[at].tolist()) for cut, at in zip(cuts, used, strict=True)),
        trees=tuple(len(nodes) for nodes in trees),
        feature=tuple(feature),
        threshold=tuple(threshold),
        right=tuple(right),
    )


def _preorder(leaf: NDArray[np.uint8], left: NDArray[np.uint32], right: NDArray[np.uint32]) -> list[int]:
    """Nodes of one tree, each split before its left side, and that before its right one."""
    order, waiting = [], [0]
    while waiting:
        at = waiting.pop()
        order.append(at)
        if not leaf[at]:
            waiting += [int(right[at]), int(left[at])]
    return order


def _check(forest: Forest, rows: Floats, wanted: Floats) -> None:
    """EngineError unless the forest says what scikit-learn says: its trees are read from inside of it."""
    if np.abs(forest.evaluate(rows) - wanted).max() > _STEP * (1 + len(forest.trees)):
        import sklearn

        raise EngineError(
            f"scikit-learn {sklearn.__version__} keeps its trees in a way that this version cannot read: "
            "install another, such as scikit-learn 1.7"
        )


def _weighted_median(values: Floats, weights: Floats) -> float:
    order = np.argsort(values)
    share = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(share, 0.5 * share[-1])])
