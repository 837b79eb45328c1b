"""Writes the photos of a folder as the frames of a video: python tests/support/crop_video.py FOLDER walk.mp4"""

from __future__ import annotations

import sys
from pathlib import Path

import cv2


def write_video(folder: Path, out: Path) -> None:
    """Ten frames a second, of 256 × 256 pixels."""
    video = cv2.VideoWriter(str(out), cv2.VideoWriter.fourcc(*"mp4v"), 10, (256, 256))
    for path in sorted(folder.glob("*.jpg")):
        video.write(cv2.imread(str(path)))
    video.release()


if __name__ == "__main__":
    write_video(Path(sys.argv[1]), Path(sys.argv[2]))
