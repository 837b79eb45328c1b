"""Pictures for the tests, encoded, and the spec of a small input."""

from __future__ import annotations

import io
import struct

import numpy as np
from PIL import Image

from splitpoint.images import (
    InputSpec,
)
from splitpoint.models.zoo import zoo_path
from splitpoint.tensors import Array


def heldout_digits() -> tuple[Array, Array]:
    """Every digit held out of LeNet-5's training: uint8 pictures ``[n, 8, 8]`` and int64 labels ``[n]``."""
    folder = zoo_path("lenet5").parent
    labels = np.array([int(c) for c in "".join((folder / "heldout.txt").read_text().split())])
    with Image.open(folder / "heldout.png") as image:
        sheet = np.asarray(image.convert("L"))
    rows, columns = sheet.shape[0] // 8, sheet.shape[1] // 8
    tiles = sheet.reshape(rows, 8, columns, 8).transpose(0, 2, 1, 3).reshape(-1, 8, 8)
    return tiles[: len(labels)].copy(), labels


def spec(**changes: object) -> InputSpec:
    base: dict[str, object] = {"dtype": "uint8", "layout": "NHWC", "size": (32, 48)}
    return InputSpec(**(base | changes))  # type: ignore[arg-type]


def picture(width: int = 90, height: int = 60) -> Image.Image:
    """A smooth picture without symmetry: each corner and channel differs."""
    y, x = np.mgrid[0:height, 0:width]
    channels = [x * 255 / width, y * 255 / height, 127 + 120 * np.sin(x / 9 + y / 23)]
    return Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))


def encoded(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


# --- grey of more than 8 bits ---------------------------------------------------------------------------------


def tiff(values: Array, sample_format: int, *, white_is_zero: bool = False, bits: int = 0) -> bytes:
    """A grey TIFF, written out (TIFF 6.0): Pillow cannot write all the kinds that it reads."""
    height, width = values.shape
    data = values.astype(values.dtype.newbyteorder("<")).tobytes()
    tags = [(256, width), (257, height), (258, bits or values.itemsize * 8), (259, 1), (262, not white_is_zero),
            (273, 8), (277, 1), (278, height), (279, len(data)), (339, sample_format)]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, int(value)) for tag, value in tags)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + bytes(4)


RAMP = np.linspace(0.0, 1.0, 64).reshape(1, 64).repeat(4, axis=0)
