"""Where ONNX Runtime lays a tensor out anew."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_models import conv, made

import nets
from nets import node, normal, weight
from splitpoint.predict.kernels.kernels import kernels_of
from splitpoint.profile.kernel_times import marked
from splitpoint.segments import samples_for

# --- layouts ------------------------------------------------------------------------------------------------------


def test_changes_of_layout_are_counted_where_onnx_runtime_makes_them() -> None:
    """Convolution in blocks → Resize of rows → convolution in blocks: one change each way."""
    model = made(
        [
            conv("x", "a"),
            node("Tile", ["a", "times"], ["t"]),
            conv("t", "b"),
            node("Relu", ["b"], ["r"]),
            conv("r", "y"),
        ],
        [normal("w", 16, 16, 3, 3), weight("times", [1, 1, 2, 1], np.int64)],
    )
    assert [k.config["reorder"] for k in kernels_of(model)] == [16 * 240, 16 * 480, 0, 16 * 480]
    times = nets.ENGINE.kernel_times(marked(model), samples_for(model, 1)[0], 1, 0)
    assert sum("ReorderOutput" in name for name, _ in times) in (0, 2)  # other processors have no blocks


@pytest.mark.parametrize(("channels", "blocks"), [(16, True), (12, True), (18, False), (3, True)])
def test_which_convolutions_work_on_blocks(channels: int, blocks: bool) -> None:
    model = made([conv("x", "y")], [normal("w", 16, channels, 3, 3)], [1, channels, 8, 8])
    [kernel] = kernels_of(model)
    assert kernel.config["reorder"] == (16 * 64 if blocks else 0)
