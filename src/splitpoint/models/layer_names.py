"""Which module of the original network a node came from, and the metadata keys we write."""

from __future__ import annotations

import re

from splitpoint.models.dataflow import Proto

LAYER_KEY = "splitpoint.layer"
ALIASES_KEY = "splitpoint.aliases"
UNUSED_KEY = "splitpoint.unused"
SOURCE_KEY = "splitpoint.source"
SHAPES_KEY = "splitpoint.shapes"
VALUES_KEY = "splitpoint.values"
#: The texts in a list as Python writes it.
_QUOTED = re.compile(r"""'([^']*)'|"([^"]*)\"""")


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
    if scopes is not None:  # ``['', 'features', 'features.0', 'conv2d']`` → ``features.0``
        paths = [single or double for single, double in _QUOTED.findall(scopes)[:-1]]
        return next(filter(None, reversed(paths)), "")
    return _torchscript_path(node.name) if node.name.startswith("/") else ""


def _torchscript_path(name: str) -> str:
    """``/layer1/layer1.0/conv1/Conv`` → ``layer1.0.conv1``: children of a Sequential repeat their parent's name."""
    path: list[str] = []
    for part in name.strip("/").split("/")[:-1]:
        if path and part.startswith(path[-1] + "."):
            path[-1] = part
        else:
            path.append(part)
    return ".".join(path)
