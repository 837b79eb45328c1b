"""load(): what a name means, and what is said where it means nothing."""

from __future__ import annotations

import pytest

import nets
from splitpoint.errors import CutError, ModelError
from splitpoint.models import load


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nosuch.onnx", "^no such file: nosuch.onnx$"),
        ("zoo:foo", "^no model foo in the zoo"),
        ("", "^no model is given: a MODEL is an .onnx file"),
        ("lenet5", "has its weights inside"),
        ("zoo:lenet5", "has its weights inside"),
    ],
)
def test_what_is_missing_is_said_before_what_is_wrong_with_weights(name: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load(name, weights="own.pth")


@pytest.mark.parametrize("name", ["", "nosuch.onnx", "zoo:foo", "lenet55"])
def test_nothing_is_called_so(name: str) -> None:
    with pytest.raises(ModelError, match=r"^no (model|such file)"):
        load(name)


def test_the_zoo_needs_no_prefix() -> None:
    assert load("lenet5").fingerprint == load("zoo:lenet5").fingerprint
    assert load("efficientnet_lite0").name == "efficientnet_lite0"


def test_small_weights_count() -> None:
    """They stay in the skeleton and are no blobs."""
    weights = [nets.normal("w", 8, 16), nets.normal("v", 16)]
    nodes = [nets.node("MatMul", ["x", "w"], ["m"]), nets.node("Add", ["m", "v"], ["y"])]
    model = nets.load(nets.proto(nodes, [nets.value("x", [1, 8])], [nets.value("y", None)], weights))
    assert (len(model.blobs), model.nbytes) == (0, 4 * (8 * 16 + 16))
    large = nets.load(nets.measured())
    assert (len(large.blobs), large.nbytes) == (1, 4 * 6 * 64)


def test_an_index_that_is_no_cut() -> None:
    graph = load("lenet5").graph
    for index in (99, -99):
        with pytest.raises(CutError, match=rf"^cut {index} is not in 0…{len(graph.chain()) - 1} \(see splitpoint ins"):
            graph.cut(index)
