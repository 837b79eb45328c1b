"""How alike two answers of a network are, from 0 to 1, for networks whose raw outputs say nothing by themselves.

`yolo` and `centres` are detectors' (their boxes are matched at an IoU of 0.5; by `yolo75` and `centres75` at 0.75).
`yolo_measure` and `centres_measure` are for ``splitpoint calibrate-codecs --measure bench.scores:NAME``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from splitpoint.calibration.measures import Outputs, open_measure
from splitpoint.tensors import Array

#: Boxes below this score are not looked at, and of two that share more than `_SAME` of their area the surer is kept.
LEAST, _SAME = 0.3, 0.45
#: What of a map, 0 to 1, counts as salient.
SALIENT = 0.8
_STRIDE = 4
"""Pixels of the picture that a place of CenterNet's maps is."""
_CLASSES = 80


class Score(Protocol):
    def __call__(self, whole: Array, other: Array, gallery: Sequence[Array], /) -> float:
        """How alike the whole network's answer and the `other` are. `gallery` has its answers to other photos."""


def same_label(whole: Array, other: Array, gallery: Sequence[Array] = ()) -> float:
    return float(whole.argmax() == other.argmax())


def nearest(whole: Array, other: Array, gallery: Sequence[Array]) -> float:
    """Whether an embedding's nearest among those of the gallery, by the cosine, stays. It is none of them itself."""
    known = np.stack([one.reshape(-1) for one in gallery if not np.array_equal(one, whole)]).astype(np.float64)
    known /= np.linalg.norm(known, axis=1, keepdims=True)
    return float((known @ whole.reshape(-1)).argmax() == (known @ other.reshape(-1)).argmax())


def saliency(whole: Array, other: Array, gallery: Sequence[Array] = ()) -> float:
    """IoU of what is salient in two maps."""
    a, b = whole >= SALIENT, other >= SALIENT
    return float((a & b).sum() / (a | b).sum()) if (a | b).any() else 1.0


class Boxes(NamedTuple):
    """float64[n, 4] (two corners), float64[n] and int64[n], the surest first."""

    corners: Array
    scores: Array
    classes: Array


def yolo_boxes(raw: Array) -> Boxes:
    """What a YOLOv8 says, of its raw output [1, 4 + classes, places]: centres, sizes and a score for each class."""
    rows = raw[0].T.astype(np.float64)
    classes = rows[:, 4:].argmax(axis=1)
    scores = rows[np.arange(len(rows)), 4 + classes]
    half = rows[:, 2:4] / 2
    corners = np.concatenate([rows[:, :2] - half, rows[:, :2] + half], axis=1)
    return _thinned(corners, scores, classes)


def centre_boxes(raw: Array) -> Boxes:
    """What CenterNet says, of its maps [1, classes + 4, h, w]: how much each place is a centre, and how far its box
    goes to the left, up, right and down. Only the peaks among their eight neighbours count."""
    heat, far = raw[0, :_CLASSES].astype(np.float64), raw[0, _CLASSES:].astype(np.float64)
    edged = np.pad(heat, ((0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
    classes, y, x = np.nonzero(heat >= LEAST)  # few of them, so that only their neighbours are looked at
    peak = np.ones(len(classes), bool)
    for dy in range(3):
        for dx in range(3):
            peak &= heat[classes, y, x] >= edged[classes, y + dy, x + dx]
    classes, y, x = classes[peak], y[peak], x[peak]
    left, up, right, down = far[:, y, x]
    at_x, at_y = x * _STRIDE, y * _STRIDE
    corners = np.stack([at_x - left, at_y - up, at_x + right, at_y + down], axis=1)
    return _thinned(corners, heat[classes, y, x], classes)


def _thinned(corners: Array, scores: Array, classes: Array) -> Boxes:
    """The boxes that are sure enough, without those that a surer one of their class covers."""
    order = [int(k) for k in np.argsort(-scores, kind="stable") if scores[k] >= LEAST]
    kept: list[int] = []
    for k in order:
        if all(classes[k] != classes[o] or _iou(corners[k], corners[o]) <= _SAME for o in kept):
            kept.append(k)
    return Boxes(corners[kept].reshape(-1, 4), scores[kept], classes[kept])


def _iou(a: Array, b: Array) -> float:
    sides = np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None)
    common = float(sides.prod())
    union = float((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod()) - common
    return common / union if union > 0 else 0.0


def _matched(measure: str, a: Boxes, b: Boxes) -> float:
    compare = open_measure(measure, "boxes")
    return compare(*({"boxes": c.corners, "scores": c.scores, "classes": c.classes} for c in (a, b)))


def yolo(whole: Array, other: Array, gallery: Sequence[Array] = ()) -> float:
    return _matched("boxes50", yolo_boxes(whole), yolo_boxes(other))


def yolo75(whole: Array, other: Array, gallery: Sequence[Array] = ()) -> float:
    return _matched("boxes75", yolo_boxes(whole), yolo_boxes(other))


def centres(whole: Array, other: Array, gallery: Sequence[Array] = ()) -> float:
    return _matched("boxes50", centre_boxes(whole), centre_boxes(other))


def centres75(whole: Array, other: Array, gallery: Sequence[Array] = ()) -> float:
    return _matched("boxes75", centre_boxes(whole), centre_boxes(other))


def yolo_measure(whole: Outputs, other: Outputs) -> float:
    [name] = whole
    return yolo(whole[name], other[name])


def centres_measure(whole: Outputs, other: Outputs) -> float:
    [name] = whole
    return centres(whole[name], other[name])


# --- whether there is anything to keep --------------------------------------------------------------------------------


def always(whole: Array) -> bool:
    return True


def sees_salience(whole: Array) -> bool:
    return bool((whole >= SALIENT).any())


def sees_yolo(whole: Array) -> bool:
    return len(yolo_boxes(whole).scores) > 0


def sees_centres(whole: Array) -> bool:
    return len(centre_boxes(whole).scores) > 0
