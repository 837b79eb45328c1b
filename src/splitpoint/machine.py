"""This machine: where its cache is, and its processor, cores, memory, clock governor and versions, for measurements."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from splitpoint import install

#: Set for a command that runs on an emulated slower machine (`splitpoint lab slow`): what its measurements must say.
EMULATED = "SPLITPOINT_EMULATED"
#: Packages whose versions change a measurement or an error report.
PACKAGES = ("splitpoint", "numpy", "onnx", "onnxruntime", "msgspec", "zstandard", "scipy", "Pillow")
EXTRAS: Mapping[str, tuple[str, ...]] = {
    "plot": ("matplotlib",),
    "xlsx": ("openpyxl",),
    "tls": ("cryptography",),
    "predict": ("scikit-learn", "threadpoolctl"),
    "torch": ("torch", "torchvision", "timm", "transformers", "onnxscript"),
}


@dataclass(frozen=True, slots=True)
class Machine:
    """`cores` are those this process may use; `governor` is the CPU frequency policy, empty where unknown."""

    system: str
    processor: str
    cores: int
    memory_bytes: int
    governor: str
    python: str

    def __str__(self) -> str:
        memory = f", {self.memory_bytes / 1e9:.0f} GB" if self.memory_bytes else ""
        governor = f", governor {self.governor}" if self.governor else ""
        return f"{self.processor}, {self.cores} cores{memory}{governor}; {self.system}; Python {self.python}"


def this_machine() -> Machine:
    """The machine this process runs on."""
    return Machine(
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        processor=_processor(),
        cores=len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1,
        memory_bytes=_memory(),
        governor=_read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        python=platform.python_version(),
    )


def now() -> str:
    """Date and time (UTC), as files of measurements have it: ``2026-11-22T17:09:46Z``."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def default_cache() -> Path:
    """Where fetched weights and exported models are kept: ``$SPLITPOINT_CACHE``, or ``~/.cache/splitpoint``."""
    set_to = os.environ.get("SPLITPOINT_CACHE")
    return Path(set_to) if set_to else Path.home() / ".cache" / "splitpoint"


def versions(packages: tuple[str, ...] = PACKAGES) -> dict[str, str]:
    """Installed version of each package; packages that are not there are left out."""
    found = {}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            if name == "onnxruntime":  # onnxruntime-gpu and others bring it, too
                found |= install.onnxruntimes()
    return found


def _processor() -> str:
    for line in _read("/proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Model", "Hardware"):
            return value.strip()
    # A Jetson or a Raspberry Pi says who it is in the device tree.
    return _read("/proc/device-tree/model").rstrip("\0") or platform.processor() or platform.machine()


def _memory() -> int:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return 0


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""
