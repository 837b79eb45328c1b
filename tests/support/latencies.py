"""A device whose truth is a known formula: latency models without trees, so that every sum can be done by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from splitpoint.machine import Machine
from splitpoint.predict.kernels.kernel_kinds import KINDS
from splitpoint.predict.learn.features import feature_names, term_names
from splitpoint.predict.learn.latency_model import KindModel, Latency, LatencyScore, Roofline
from splitpoint.predict.learn.trees import Forest

DEVICE = Machine("Linux", "Cortex-A72", 4, 4 << 30, "performance", "3.11.0")
#: 10⁶ of each term → ms: what a kernel of any kind takes here.
TERMS: Mapping[str, float] = {"1": 0.02, "macs": 0.5, "read": 0.3, "written": 0.4, "weights": 0.2}
#: Four kernels in five are within this share (of the logarithm) of what the formula says.
WIDTH = 0.1


def flat(features: int) -> Forest:
    """A forest that says 0 of everything: one leaf."""
    return Forest(
        start=0.0, step=1.0, thresholds=((),) * features, trees=(1,), feature=(0,), threshold=(0,), right=(0,)
    )


def kind_model(kind: str, base: Mapping[str, float] = TERMS, width: float = WIDTH) -> KindModel:
    """Milliseconds of `kind` by `base` alone."""
    names = feature_names(kind)
    return KindModel(
        method="formula",
        features=names,
        base={"": {t: base[t] for t in term_names(kind) if t in base}},
        forest=flat(len(names)),
        width=flat(len(names)),
        low=-width,
        high=width,
        ranges=((0.0, 1e12),) * len(names),
        linear={"1": 0.5},
        score=LatencyScore(mape=0.05, within5=0.6, within10=0.9, within20=1.0, covered=0.8, count=100),
        rows=100,
    )


def latency(without: tuple[str, ...] = ("other",), **more: Any) -> Latency:
    """A latency file of all kinds but those `without`."""
    known: dict[str, Any] = {
        "name": "bench", "created": "2026-01-01T00:00:00Z", "engine": "onnxruntime", "device": "cpu", "threads": 1,
        "machine": DEVICE, "fixed_ms": 0.05, "scale": 1.1, "spread": 0.08, "rows": 1000,
        "roofline": Roofline(flops_per_ms=4e6, bytes_per_ms=2e6, fixed_ms=0.01, spread=3.0),
        "kinds": {kind: kind_model(kind) for kind in KINDS if kind not in without},
    }  # fmt: skip
    return Latency(**(known | more))


#: A device without fixed parts.
#: The engine's timer sees kernels, not what a run costs beside them: no fixed part, and no scale.
PLAIN = latency(fixed_ms=0.0, scale=1.0)
