"""Shapes by a run of the whole model, where inference does not know them."""

from __future__ import annotations

from typing import Any

import nets
from nets import node, value
from splitpoint.errors import ModelError
from splitpoint.models import shapes


def test_a_model_that_does_not_run_on_made_up_inputs_is_opened_by_inference() -> None:
    def probe(*_: object) -> Any:
        raise ModelError("the inputs make no sense")

    pool = node("MaxPool", ["x"], ["y"], kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1)
    proto = nets.proto([pool], [value("x", ["batch", 2, 13, 17])], [value("y", [1, 9, 9, 9])])
    assert shapes.shapes_of(proto, probe).free["y"].shape[:2] == ("batch", 2)
