"""Which wheel of ONNX Runtime goes with which machine.

Each of them (onnxruntime, onnxruntime-gpu, onnxruntime-openvino, …) brings the same folder `onnxruntime`: whichever
came last is the one that runs, and taking one away breaks the other. So there must be one.
"""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from splitpoint import install
from splitpoint.errors import EngineError

#: What a Jetson says of its system: ``# R36 (release), REVISION: 4.3, GCID: …``.
_RELEASE = Path("/etc/nv_tegra_release")
_L4T = re.compile(r"R(\d+) \(release\), REVISION: (\d+)")
#: Jetson Linux (L4T) → JetPack, by major version (NVIDIA's archive of both).
_JETPACK = {32: "4", 34: "5", 35: "5", 36: "6", 38: "7", 39: "7"}
#: NVIDIA's Jetson AI Lab builds onnxruntime-gpu for aarch64, which PyPI has not: for CUDA 12.6, which came with
#: L4T 36.4 (JetPack 6.1), and the Python 3.10 of Ubuntu 22.04 (dusty-nv/jetson-containers#1283).
_JETSON_INDEX = "https://pypi.jetson-ai-lab.io/jp6/cu126"


def load() -> Any:
    """The module `onnxruntime`. EngineError where none is installed, or what is there is no whole one."""
    try:
        import onnxruntime

        onnxruntime.get_available_providers()
    except (ImportError, AttributeError) as exc:  # the folder may be left with nothing in it
        wheels = install.onnxruntimes()
        line = repair(wheels) if wheels else replace("onnxruntime")
        raise EngineError(f"ONNX Runtime cannot be used ({exc}): {line}") from exc
    return onnxruntime


def replace(*words: str) -> str:
    """The line that takes away what brings `onnxruntime` now and installs `words`: a package, and pip's options."""
    gone = sorted(install.onnxruntimes())
    line = install.pip("install", *words)
    return f"{install.pip('uninstall', '-y', *gone)} && {line}" if gone else line


def repair(wheels: Mapping[str, str]) -> str:
    """The line that leaves one of several: not the plain package, since the other was chosen for a reason."""
    kept = min(wheels, key=lambda name: (name == "onnxruntime", name))
    if kept == "onnxruntime-gpu" and (release := jetson_release()):
        return for_jetson(release)[1]
    return replace(kept if kept == "onnxruntime" else f"{kept}=={wheels[kept]}")


def for_device(name: str, *packages: str) -> str:
    """The line, or the sentence, that says where the `packages` for the `--device` of that name is to be had."""
    if name in ("cuda", "tensorrt") and (release := jetson_release()):
        return for_jetson(release)[1]
    if name in ("cuda", "tensorrt") and platform.machine() == "aarch64":
        return "PyPI has no onnxruntime-gpu for aarch64: build it with --use_cuda, or ask who made this machine"
    return replace(*packages)


def jetson_release() -> str:
    """What a Jetson says of its system; empty elsewhere (and in a container that was not given the file)."""
    try:
        return _RELEASE.read_text(errors="replace")
    except OSError:
        return ""


def for_jetson(release: str, python: tuple[int, int] = sys.version_info[:2]) -> tuple[str, str]:
    """(what system that is, the line that installs its wheel or the sentence that none is known)."""
    version = _L4T.search(release)
    if version is None:
        return "a Jetson of an unknown release", "no wheel with cuda is known for it"
    major, minor = int(version[1]), int(version[2])
    jetpack = f"JetPack {_JETPACK[major]}" if major in _JETPACK else "an unknown JetPack"
    system = f"{jetpack} (L4T {major}.{minor}), Python {python[0]}.{python[1]}"
    if major == 36 and minor >= 4 and python == (3, 10):
        return system, replace("onnxruntime-gpu", "--index-url", _JETSON_INDEX)
    if major == 36 and minor >= 4:
        return system, "no wheel with cuda is known for this Python: JetPack 6's own is 3.10, and has one"
    if major == 36:
        return system, "no wheel with cuda is known for it: there is one for JetPack 6.1 and later (L4T 36.4)"
    return system, "no wheel with cuda is known for it: build ONNX Runtime with --use_cuda --use_tensorrt"
