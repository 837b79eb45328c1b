"""Small networks on devices whose truth is a formula."""

from __future__ import annotations

from latencies import latency
from plans import model_of

import nets
from splitpoint.models.model import Model
from splitpoint.predict.price.prediction import Prediction

LENET, EFFICIENT = "zoo:lenet5", "zoo:efficientnet_lite0"
SLOW = latency()
FAST = latency(name="server", scale=0.1, fixed_ms=0.02)


def net(name: str) -> Model:
    return model_of(name) if ":" in name else nets.load(getattr(nets, name)())


def width(found: Prediction) -> float:
    return found.whole.p90 / found.whole.p10
