"""Builds the wheel, and beside it a list of what it needs without ONNX Runtime: what a device is given.

    python scripts/wheel.py            # dist/splitpoint-….whl, dist/without-onnxruntime.txt

Who has an ONNX Runtime for his machine (onnxruntime-gpu, -openvino, …) installs from the list, and then the wheel with
`--no-deps`: pip would put the plain onnxruntime over it, since the wheel asks for that name.
"""

from __future__ import annotations

import email
import re
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIST = "without-onnxruntime.txt"


def build(folder: Path) -> Path:
    """The wheel, made in `folder` together with the list."""
    for old in folder.glob("splitpoint-*.whl"):
        old.unlink()
    words = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run(words, check=True)
    (wheel,) = folder.glob("splitpoint-*.whl")
    lines = [line for line in requirements(wheel) if not line.startswith("onnxruntime")]
    (folder / LIST).write_text("\n".join(lines) + "\n")
    return wheel


def requirements(wheel: Path, *, oldest: bool = False) -> list[str]:
    """What the wheel's core needs, as pip reads it; with `oldest`, exactly the lower bound of each."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        requirements = email.message_from_bytes(archive.read(name)).get_all("Requires-Dist", [])
    core = [line for line in requirements if "extra ==" not in line]
    return [re.sub(r">=", "==", line, count=1) for line in core] if oldest else core


if __name__ == "__main__":
    made = build(ROOT / "dist")
    print(f"{made.relative_to(ROOT)}  {made.stat().st_size / 1e6:.0f} MB\n{(made.parent / LIST).relative_to(ROOT)}")
