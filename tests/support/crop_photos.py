"""Writes crops of the photos that come along: pictures to calibrate with where nothing but commands is tried.

    python tests/support/crop_photos.py FOLDER 24

Crops of one photo count as one scene: what a calibration with them says is worth little.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from splitpoint.models.zoo import photos


def write_crops(folder: Path, count: int) -> None:
    """`count` JPEG files of 256 × 256 pixels, the same every time."""
    folder.mkdir(parents=True, exist_ok=True)
    draws = np.random.default_rng(0)
    pictures = [Image.open(path).convert("RGB") for path in photos()]
    for k in range(count):
        picture = pictures[k % len(pictures)]
        x, y = (int(draws.integers(0, side - 256)) if side > 256 else 0 for side in picture.size)
        picture.crop((x, y, x + 256, y + 256)).save(folder / f"photo{k:03}.jpg", quality=92)


if __name__ == "__main__":
    write_crops(Path(sys.argv[1]), int(sys.argv[2]))
