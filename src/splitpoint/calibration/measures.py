"""How alike two answers are: a number from 0 to 1 for each input, 1 if they are the same.

A measure is a function of the whole model's outputs and of those behind a codec, both by name; one's own is named
``module:function``. The mean over the inputs is the agreement.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from splitpoint.errors import InputError, UsageError, nearest
from splitpoint.models.model import Model
from splitpoint.tensors import Array

Outputs = Mapping[str, Array]
Measure = Callable[[Outputs, Outputs], float]

#: What `--measure` takes besides ``module:function``, in words.
MEASURES: Mapping[str, str] = {
    "top1": "the top label stays",
    "cosine": "cosine (embeddings)",
    "relative": "1 - relative error (regression)",
    "miou": "mean IoU of the classes (segmentation: [1, classes, h, w], or whole numbers [1, h, w])",
    "boxes50": "F1 of the boxes matched at an IoU of 0.5 (detection)",
    "boxes75": "F1 of the boxes matched at an IoU of 0.75",
    "map": "average precision at IoU 0.5 to 0.95 against the whole model's own boxes, mean over classes and inputs",
}
#: Boxes that a detector is less sure of than this are noise to `boxes50` and `boxes75`.
SURE = 0.3
_IOUS: Sequence[float] = [percent / 100 for percent in range(50, 100, 5)]


def compared_output(model: Model) -> str:
    """The output that measures of one output look at: the input spec's, or the first of floats."""
    spec = model.input_spec
    floats = [t.name for t in model.outputs if t.dtype.startswith("float")]
    return spec.output if spec is not None and spec.output else (floats or [model.outputs[0].name])[0]


def open_measure(name: str, output: str) -> Measure:
    """The measure of that name; those of one output look at `output`. UsageError if there is none."""
    one: Mapping[str, Callable[[Array, Array], float]] = {
        "top1": _top1, "cosine": cosine, "relative": _relative, "miou": _miou
    }  # fmt: skip
    if name in one:
        of = one[name]
        return lambda expected, got: of(expected[output], got[output])
    if name in MEASURES:
        ious = _IOUS if name == "map" else [float(name.removeprefix("boxes")) / 100]
        score = _precision if name == "map" else _f1
        return lambda expected, got: float(np.mean([score(_boxes(expected), _boxes(got), iou) for iou in ious]))
    module, colon, function = name.partition(":")
    if not colon:
        known = ", ".join(MEASURES)
        raise UsageError(f"no measure is called {name}{nearest(name, MEASURES)} (known: {known}, or module:function)")
    try:
        own: Any = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as exc:
        raise UsageError(f"--measure {name} cannot be imported: {exc}") from exc
    return lambda expected, got: float(own(expected, got))


def cosine(expected: Array, got: Array) -> float:
    """The cosine between two arrays as vectors, 1 for equal ones, -1 where a number is none."""
    a, b = expected.reshape(-1).astype(np.float64), got.reshape(-1).astype(np.float64)
    norm = float(np.linalg.norm(a) * np.linalg.norm(b))
    value = float(a @ b) / norm if norm else float(np.array_equal(a, b))
    return value if np.isfinite(value) else -1.0


def _top1(expected: Array, got: Array) -> float:
    return float(expected.size > 0 and expected.argmax() == got.argmax())


def _relative(expected: Array, got: Array) -> float:
    a, b = expected.astype(np.float64), got.astype(np.float64)
    size, off = float(np.linalg.norm(a)), float(np.linalg.norm(a - b))
    return 1 - off / size if size else float(off == 0)


def _miou(expected: Array, got: Array) -> float:
    a, b = (x.argmax(axis=1) if x.ndim == 4 and x.dtype.kind == "f" else x for x in (expected, got))
    if a.dtype.kind not in "iu":
        raise InputError(f"miou takes [1, classes, h, w] or whole numbers, not an output of {list(a.shape)} {a.dtype}")
    shares = [((a == c) & (b == c)).sum() / ((a == c) | (b == c)).sum() for c in np.union1d(a, b)]
    return float(np.mean(shares)) if shares else 1.0


# --- detection --------------------------------------------------------------------------------------------------------

#: Boxes float64[n, 4] (two corners), scores float64[n] and classes [n], the surest first.
_Found = tuple[Array, Array, Array]


def _boxes(outputs: Outputs) -> _Found:
    """What a detector found: of outputs [.., n, 4], [.., n] and [.., n] (boxes, scores, classes, by name or dtype), or
    of one [.., n, 6] (corners, score, class). InputError for other detectors."""
    deepest = max(a.ndim for a in outputs.values())
    wide = [a for a in outputs.values() if a.ndim == deepest > 1 and a.shape[-1] in (4, 6)]
    if len(wide) != 1:
        raise InputError(
            "this detector's outputs are neither boxes [n, 4] with scores and classes [n], nor [n, 6]: decode them in "
            "a function of your own, --measure module:function"
        )
    rows = wide[0].reshape(-1, wide[0].shape[-1])
    if rows.shape[1] == 6:
        boxes, scores, classes = rows[:, :4], rows[:, 4], rows[:, 5]
    else:
        flat = {n: a.reshape(-1) for n, a in outputs.items() if a is not wide[0] and a.size == len(rows)}
        scored = [n for n in flat if "score" in n.lower() or "conf" in n.lower()]
        scored = scored or [n for n, a in flat.items() if a.dtype.kind == "f"]
        labels = [n for n in flat if n not in scored]
        if len(scored) != 1 or len(labels) != 1:
            among = ", ".join(outputs)
            raise InputError(f"which of {among} has the boxes' scores is not clear: use --measure module:function")
        boxes, scores, classes = rows, flat[scored[0]], flat[labels[0]]
    order = np.argsort(-scores, kind="stable")
    return boxes[order].astype(np.float64), scores[order].astype(np.float64), classes[order]


def _sure(found: _Found) -> _Found:
    return _kept(found, found[1] >= SURE)


def _kept(found: _Found, which: Array) -> _Found:
    return found[0][which], found[1][which], found[2][which]


def _f1(expected: _Found, got: _Found, iou: float) -> float:
    a, b = _sure(expected), _sure(got)
    total = len(a[0]) + len(b[0])
    return 2 * float(_matched(a, b, iou).sum()) / total if total else 1.0


def _precision(expected: _Found, got: _Found, iou: float) -> float:
    """Average precision (all points), the mean over the classes that the whole model is sure of."""
    truth, values = _sure(expected), []
    for one in np.unique(truth[2]):
        a, b = _kept(truth, truth[2] == one), _kept(got, got[2] == one)
        right = np.cumsum(_matched(a, b, iou))
        precision = right / np.arange(1, len(right) + 1)
        best = np.maximum.accumulate(precision[::-1])[::-1]
        values.append(float((best * np.diff(right, prepend=0)).sum()) / len(a[0]))
    return float(np.mean(values)) if values else float(not len(_sure(got)[0]))


def _matched(expected: _Found, got: _Found, iou: float) -> Array:
    """bool[boxes of `got`]: whether each, the surest first, has a box of its class to itself that it covers so well."""
    (a, _, classes), (b, _, theirs) = expected, got
    low, high = np.maximum(b[:, None, :2], a[None, :, :2]), np.minimum(b[:, None, 2:], a[None, :, 2:])
    common = np.prod(np.clip(high - low, 0, None), axis=2)
    areas = [np.prod(np.clip(x[:, 2:] - x[:, :2], 0, None), axis=1) for x in (b, a)]
    union = areas[0][:, None] + areas[1][None] - common
    shares = np.where((theirs[:, None] == classes[None]) & (union > 0), common / np.maximum(union, 1e-300), 0.0)
    matched = np.zeros(len(b), bool)
    for k in range(len(b)):
        best = int(shares[k].argmax()) if len(a) else 0
        if len(a) and shares[k, best] >= iou:
            matched[k], shares[:, best] = True, -1.0
    return matched
