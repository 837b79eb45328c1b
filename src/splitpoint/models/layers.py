"""Which module of the original network a node came from, and the metadata keys we write."""

from __future__ import annotations

import ast

from splitpoint.models.dataflow import Proto

LAYER_KEY = "splitpoint.layer"
ALIASES_KEY = "splitpoint.aliases"
UNUSED_KEY = "splitpoint.unused"
SOURCE_KEY = "splitpoint.source"
SHAPES_KEY = "splitpoint.shapes"
VALUES_KEY = "splitpoint.values"


def metadata(proto: Proto) -> dict[str, str]:
    return {p.key: p.value for p in proto.metadata_props}


def path_of(node: Proto) -> str:
    """The module path of a node: ours, the dynamo exporter's or the TorchScript exporter's; ``""`` if none.

    >>> import onnx
    >>> path_of(onnx.helper.make_node("Conv", ["x"], ["y"], name="/layer1/layer1.0/conv1/Conv"))
    'layer1.0.conv1'
    """
    props = metadata(node)
    if LAYER_KEY in props:
        return props[LAYER_KEY]
    scopes = props.get("pkg.torch.onnx.name_scopes")
    if scopes is not None:
        return _dynamo_path(scopes)
    return _torchscript_path(node.name) if node.name.startswith("/") else ""


def _dynamo_path(scopes: str) -> str:
    """``['', 'features', 'features.0', 'conv2d']`` → ``features.0``."""
    try:
        parsed = ast.literal_eval(scopes)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return ""
    parts = parsed[:-1] if isinstance(parsed, (list, tuple)) else []
    paths = [s for s in parts if isinstance(s, str) and s]
    return paths[-1] if paths else ""


def _torchscript_path(name: str) -> str:
    """``/layer1/layer1.0/conv1/Conv`` → ``layer1.0.conv1``: children of a Sequential repeat their parent's name."""
    path: list[str] = []
    for part in name.strip("/").split("/")[:-1]:
        if path and part.startswith(path[-1] + "."):
            path[-1] = part
        else:
            path.append(part)
    return ".".join(path)
