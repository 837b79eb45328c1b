"""Layers of a random network have the shapes that they say, and the FLOPs that the graph counts; onnx is the oracle."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest

from splitpoint.models import model as building
from splitpoint.models.weights import StandIn
from splitpoint.predict.calibrate.network_builder import Sketch

LAYERS: dict[str, Callable[[Sketch, str], str]] = {
    "convolution": lambda net, x: net.conv(x, 24, 3, 2, act="Relu"),
    "in groups": lambda net, x: net.conv(x, 16, 3, 1, 16, act="HardSwish"),
    "pool": lambda net, x: net.pool(x, kernel=3, pad=1),
    "weighed channels": lambda net, x: net.excite(x, 0.25, "Relu", "Sigmoid"),
    "norm": lambda net, x: net.batch_norm(x, "Relu"),
    "sum": lambda net, x: net.sum(x, net.act(x, "Gelu")),
    "transposed": lambda net, x: net.transpose(x, 0, 2, 3, 1),
    "joined": lambda net, x: net.concat([x, x]),
    "classes": lambda net, x: net.classify(x),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_has_the_shape_it_says(name: str) -> None:
    net = Sketch(np.random.default_rng(0), 1e6)
    result = LAYERS[name](net, net.conv(net.image(20), 16, 3))
    proto = net.proto(result)
    inferred = onnx.shape_inference.infer_shapes(proto, strict_mode=True)
    (told,) = inferred.graph.output
    assert tuple(d.dim_value for d in told.type.tensor_type.shape.dim) == tuple(net.shape(result))
    model = building.build(proto, StandIn(proto), name)
    # Elementwise layers are not counted while a network is drawn.
    assert net.flops == pytest.approx(sum(n.flops for n in model.graph.nodes), rel=0.2)


def test_the_same_seed_draws_the_same() -> None:
    first, second = (Sketch(np.random.default_rng(3), 1e6) for _ in range(2))
    one, other = (net.proto(net.conv(net.image(16), net.width(8, 64), net.pick(1, 3, 5))) for net in (first, second))
    assert one == other
