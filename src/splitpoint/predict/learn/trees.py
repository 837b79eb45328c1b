"""Forests of decision trees as plain numbers, evaluated for many rows at once without scikit-learn."""

from __future__ import annotations

from functools import cached_property

import msgspec
import numpy as np
from numpy.typing import NDArray

from splitpoint.profile.costs import Floats

IndexArray = NDArray[np.intp]

#: Of one forest: nodes, and steps from a root to its farthest leaf.
MOST_NODES, MOST_DEPTH = 2_000_000, 64
#: Of a logarithm of a factor: its exponential and that times any base are finite.
_MOST_LOG = 300.0
#: Rows × trees walked at once: what stays in the processor's cache.
_AT_ONCE = 1 << 17


class Forest(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """``start + step × Σ value`` of the leaf that a row reaches in each tree.

    Nodes are in the order in which they are visited, trees one after the other: the left child of a split is the next
    node, `right` says how many further the right one is, 0 at a leaf. A row goes left where its feature is at most
    ``thresholds[feature][threshold]``. At a leaf `threshold` is its value in units of `step`, an integer: files stay
    small and readable.

    >>> stump = Forest(start=1.0, step=0.5, thresholds=((10.0,),), trees=(3,), feature=(0, 0, 0), threshold=(0, -1, 4),
    ...                right=(2, 0, 0))
    >>> stump.evaluate(np.array([[9.0], [11.0]]))
    array([0.5, 3. ])
    """

    start: float
    step: float
    thresholds: tuple[tuple[float, ...], ...]
    """Of each feature, ascending."""
    trees: tuple[int, ...]
    """The number of nodes in each tree."""
    feature: tuple[int, ...]
    threshold: tuple[int, ...]
    right: tuple[int, ...]

    def evaluate(self, rows: Floats) -> Floats:
        """The value of each row (one column a feature)."""
        if not self.trees:
            return np.full(len(rows), self.start)
        ranks = self._ranks(rows)
        chunk = max(1, _AT_ONCE // len(self.trees))
        sums = [self._sums(ranks[k : k + chunk]) for k in range(0, len(rows), chunk)]
        return np.asarray(self.start + self.step * np.concatenate([*sums, np.zeros(0)]))

    def _ranks(self, rows: Floats) -> IndexArray:
        """How many thresholds of each feature lie below each value: comparing those is comparing the values."""
        columns = [np.searchsorted(t, rows[:, k], side="left") for k, t in enumerate(self._sorted)]
        return np.stack(columns, axis=1)

    def _sums(self, ranks: IndexArray) -> Floats:
        """The sum of the leaves of each row, all trees of all rows walked a level at a time."""
        feature, threshold, _ = self._nodes
        rows, width = ranks.shape
        flat = ranks.ravel()
        at = np.tile(self._roots, rows)
        offset = np.repeat(np.arange(rows) * width, len(self._roots))
        # "clip" spares numpy a copy: `check` has seen to it that no index is out of bounds.
        for _ in range(self._depth):
            rank = flat.take(offset + feature.take(at, mode="clip"), mode="clip")
            at = self._children.take(2 * at + (rank > threshold.take(at, mode="clip")), mode="clip")
        return np.asarray(threshold.take(at).reshape(rows, -1).sum(axis=1), np.float64)

    @cached_property
    def _sorted(self) -> list[Floats]:
        return [np.array(t, np.float64) for t in self.thresholds]

    @cached_property
    def _nodes(self) -> tuple[IndexArray, IndexArray, IndexArray]:
        return (np.array(self.feature, np.intp), np.array(self.threshold, np.intp), np.array(self.right, np.intp))

    @cached_property
    def _children(self) -> IndexArray:
        """Left and right child of each node in turn; a leaf is its own on both sides, so who has arrived stays."""
        _, _, right = self._nodes
        both = np.stack([np.minimum(right, 1), right], axis=1)
        return np.asarray((np.arange(len(right))[:, None] + both).ravel(), np.intp)

    @cached_property
    def _roots(self) -> IndexArray:
        return np.asarray(np.cumsum([0, *self.trees])[:-1], np.intp)

    @cached_property
    def _depth(self) -> int:
        """Steps from a root to its farthest leaf, at most `MOST_DEPTH` + 1."""
        _, _, right = self._nodes
        at, depth = self._roots, 0
        while depth <= MOST_DEPTH:
            at = at[right[at] != 0]
            if not len(at):
                break
            at, depth = np.unique(np.concatenate([at + 1, at + right[at]])), depth + 1
        return depth

    def check(self, features: int) -> None:
        """ValueError unless it is a forest over so many features, all of whose rows arrive at a leaf."""
        nodes = len(self.feature)
        if not nodes == len(self.threshold) == len(self.right) == sum(self.trees) <= MOST_NODES:
            raise ValueError(f"its trees have {sum(self.trees)} nodes, and there are {nodes} (at most {MOST_NODES:,})")
        if len(self.thresholds) != features or min(self.trees, default=1) < 1:
            raise ValueError(
                f"{len(self.thresholds)} features with thresholds, but {features} features, or empty trees"
            )
        if not (np.isfinite([self.start, self.step]).all() and all(_ascends(t) for t in self._sorted)):
            raise ValueError("its thresholds are not ascending finite numbers")
        try:
            feature, threshold, right = self._nodes
        except OverflowError as exc:
            raise ValueError("a number in its trees is too large") from exc
        at = np.arange(len(feature))
        ends = np.repeat(np.cumsum(self.trees), self.trees) if self.trees else at
        split = right != 0
        counts = np.array([len(t) for t in self.thresholds])
        if not ((feature >= 0) & (feature < len(counts))).all():
            raise ValueError("a split in it asks for a feature that is not there")
        if not ((threshold[split] >= 0) & (threshold[split] < counts[feature[split]])).all():
            raise ValueError("a split in it asks for a threshold that is not there")
        if not ((right[split] >= 2) & (at[split] + right[split] < ends[split])).all():
            raise ValueError("a split in it leads out of its tree")
        leaves = np.where(split, 0.0, np.abs(threshold.astype(np.float64)))
        most = np.maximum.reduceat(leaves, self._roots).sum() if self.trees else 0.0
        if abs(self.start) + abs(self.step) * most > _MOST_LOG:
            raise ValueError("its leaves make a factor that no kernel has")
        if self._depth > MOST_DEPTH:
            raise ValueError(f"a tree in it is {self._depth} deep, more than {MOST_DEPTH}")


def _ascends(values: Floats) -> bool:
    return bool(np.isfinite(values).all() and (np.diff(values) > 0).all())
