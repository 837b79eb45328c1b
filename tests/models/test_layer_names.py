"""Layer paths, as each exporter writes them."""

from __future__ import annotations

from typing import Any

import pytest

import nets
from nets import node, value
from splitpoint.models.layer_names import path_of


def layered(**props: str) -> Any:
    made = node("Relu", ["x"], ["y"], name=props.pop("name", "n0"))
    for key, text in props.items():
        made.metadata_props.add(key=key.replace("__", "."), value=text)
    return made


@pytest.mark.parametrize(
    ("made", "layer"),
    [
        (layered(splitpoint__layer="a.b"), "a.b"),
        (layered(**{"pkg.torch.onnx.name_scopes": "['', 'features', 'features.0', 'conv2d']"}), "features.0"),
        (layered(**{"pkg.torch.onnx.name_scopes": "['', 'conv2d']"}), ""),
        (layered(**{"pkg.torch.onnx.name_scopes": "5"}), ""),
        (layered(**{"pkg.torch.onnx.name_scopes": "[" * 5000}), ""),
        (layered(**{"pkg.torch.onnx.name_scopes": "__import__('os')"}), ""),
        (layered(name="/layer1/layer1.0/conv1/Conv"), "layer1.0.conv1"),
        (layered(name="/Relu"), ""),
        (layered(name="/features/features.0/Conv_1"), "features.0"),
        (layered(name="plain"), ""),
    ],
)
def test_layer_paths_of_exporters(made: Any, layer: str) -> None:
    assert path_of(made) == layer
    model = nets.proto([made], [value("x", [2])], [value("y", [2])])
    (found,) = nets.load(model).graph.nodes
    assert found.layer == (layer or made.name)


def test_metadata_is_stripped_to_the_layer() -> None:
    model = nets.residual()
    model.graph.node[0].doc_string = "/home/me/secret.py"
    model.graph.node[0].metadata_props.add(key="pkg.torch.onnx.stack_trace", value="/home/me/secret.py")
    model.graph.node[0].metadata_props.add(key="splitpoint.layer", value="stem.conv")
    model.graph.doc_string = model.doc_string = "/home/me/secret.py"
    model.graph.input[0].doc_string = "/home/me/secret.py"
    model.graph.metadata_props.add(key="k", value="/home/me/secret.py")
    loaded = nets.load(model)
    assert b"secret" not in loaded.graph_bytes()
    assert loaded.graph.nodes[0].layer == "stem.conv"
    assert loaded.fingerprint == nets.load(nets.residual()).fingerprint
