"""The networks and pictures that come with splitpoint, and where they lie: ``zoo:NAME`` needs no PyTorch.

What they are, whose they are and how they were made: src/splitpoint/zoo/LICENSES.md, scripts/build_zoo.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import Path

from splitpoint.errors import ModelError, nearest

#: Name → file. The first two are the names to print; the others are what people type.
NAMES: Mapping[str, str] = {
    "efficientnet_lite0": "efficientnet_lite0.onnx",
    "lenet5": "lenet5.onnx",
    "efficientnet-lite0": "efficientnet_lite0.onnx",
    "lenet-5": "lenet5.onnx",
    "lenet_5": "lenet5.onnx",
    "lenet": "lenet5.onnx",
}

#: One of each network, for listings.
ZOO: tuple[str, ...] = ("efficientnet_lite0", "lenet5")


def _folder() -> Path:
    return Path(str(resources.files("splitpoint"))) / "zoo"


def zoo_path(name: str) -> Path:
    """The ONNX file of ``zoo:name``; ModelError names the nearest if there is none.

    >>> zoo_path("lenet-5").name
    'lenet5.onnx'
    """
    file = NAMES.get(name.lower())
    if file is None:
        hint = nearest(name.lower(), NAMES) or f"; the zoo has {' and '.join(ZOO)}"
        raise ModelError(f"no model {name} in the zoo{hint}")
    path = _folder() / file
    if not path.is_file():
        raise ModelError(f"{path} is missing from this installation: reinstall splitpoint")
    return path


def photos() -> list[Path]:
    """Four free photos (JPEG, at most 512 pixels): astronaut, cat, coffee, rocket."""
    return sorted((_folder() / "photos").glob("*.jpg"))


def digits() -> list[Path]:
    """A few 8 x 8 handwritten digits (PNG) that LeNet-5 was not trained on; the file's name is the answer."""
    return sorted((_folder() / "digits").glob("*.png"))
