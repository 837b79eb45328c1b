"""Which cuts a calibration takes if none is named."""

from __future__ import annotations

from itertools import pairwise

from onnx import helper

import nets
from splitpoint.calibration.worthwhile_cuts import worthwhile
from splitpoint.models import load


def names(model: str) -> list[str]:
    return [cut.name for cut in worthwhile(load(model).graph)]


def test_of_a_network_for_photos_those_that_send_less_than_all_before_them() -> None:
    assert names("zoo:efficientnet_lite0") == [
        "input", "blocks.1.project.norm", "blocks.3.project.norm", "blocks.5.project.norm", "blocks.11.project.norm",
    ]  # fmt: skip
    # pool1 has more values than the picture; behind tanh4 next to nothing is left.
    assert names("zoo:lenet5") == ["input", "pool2", "tanh3"]


def test_an_activation_belongs_to_what_is_before_it_and_the_input_counts_for_pictures_alone() -> None:
    widths = (8, 32, 32, 64, 4, 2)
    products = [helper.make_node("MatMul", [f"h{k}", f"w{k}"], [f"m{k + 1}"], f"m{k + 1}") for k in range(5)]
    relus = [helper.make_node("Relu", [f"m{k}"], [f"h{k}"], f"r{k}") for k in range(1, 6)]
    nodes = [node for pair in zip(products, relus, strict=True) for node in pair]
    weights = [nets.normal(f"w{k}", *pair) for k, pair in enumerate(pairwise(widths))]
    model = nets.load(nets.proto(nodes, [nets.value("h0", [1, 8])], [nets.value("h5", [1, 2])], weights))
    # 32 are more than 8, but nothing says that the 8 can be sent in fewer bytes; the second 32 come later for nothing.
    # What is left behind r4 is 16 of 7,560 operations.
    assert [cut.name for cut in worthwhile(model.graph)] == ["input", "r1"]
