"""Small models for the rules of kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import nets
from nets import node, proto, value
from splitpoint.models.model import Model

IMAGE = [1, 16, 20, 12]


def made(nodes: Sequence[Any], weights: Sequence[Any] = (), x: Sequence[int] = IMAGE, out: str = "y") -> Model:
    return nets.load(proto(nodes, [value("x", list(x))], [value(out, None)], weights, opset=20, ir=10))


def conv(x: str, y: str, w: str = "w", **attributes: Any) -> Any:
    return node("Conv", [x, w], [y], pads=[1, 1, 1, 1], **attributes)
