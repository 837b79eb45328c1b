"""Videos to read, whose frames say which one they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from splitpoint.capture import opencv
from splitpoint.tensors import Array

SIDE = 96


def picture(k: int) -> Array:
    """A picture whose colours say which one it is: red grows, blue shrinks."""
    red = np.linspace(0, 3 * k, SIDE, dtype=np.uint8)
    pixels = np.zeros((SIDE, SIDE, 3), np.uint8)
    pixels[..., 0], pixels[..., 1], pixels[..., 2] = red, red[:, None], 200 - 3 * k
    return pixels


def video(path: Path, frames: int = 20, codec: str = "MJPG") -> Path:
    cv2 = opencv()
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), 30.0, (SIDE, SIDE))
    assert writer.isOpened()
    for k in range(frames):
        writer.write(np.ascontiguousarray(picture(k)[..., ::-1]))
    writer.release()
    return path
