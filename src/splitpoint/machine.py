"""This machine: where its cache is, and its processor, cores, memory, clock governor and versions, for measurements.

In a container cores and memory are what the container may have.
"""

from __future__ import annotations

import atexit
import math
import os
import platform
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Annotated

from msgspec import Meta

from splitpoint import cgroup, install
from splitpoint.callbacks import call
from splitpoint.documents import Bytes, Cores, Label
from splitpoint.units import counted, size

#: Set for a command that runs on an emulated slower machine (`splitpoint lab slow`): what its measurements must say.
EMULATED = "SPLITPOINT_EMULATED"
#: Packages whose versions change a measurement or an error report.
PACKAGES = ("splitpoint", "numpy", "onnx", "onnxruntime", "msgspec", "zstandard", "scipy", "Pillow")
EXTRAS: Mapping[str, tuple[str, ...]] = {
    "plot": ("matplotlib",),
    "xlsx": ("openpyxl",),
    "video": ("opencv-python-headless",),
    "heif": ("pi-heif",),
    "tls": ("cryptography",),
    "predict": ("scikit-learn", "threadpoolctl"),
    "torch": ("torch", "torchvision", "timm", "transformers", "onnxscript"),
}


@dataclass(frozen=True, slots=True)
class Machine:
    """`cores` are those this process may use, `cpus` how many of them it may keep busy all the time (0: all; a
    container's quota), `memory_bytes` what it may hold; `governor` is the CPU frequency policy, empty where unknown."""

    system: Label
    processor: Label
    cores: Cores
    memory_bytes: Bytes
    governor: Label
    python: Label
    cpus: Annotated[float, Meta(ge=0, le=1 << 16)] = 0.0

    def __str__(self) -> str:
        quota = f" (a quota of {self.cpus:.3g} CPU)" if self.cpus else ""
        memory = f", {size(self.memory_bytes)}" if self.memory_bytes else ""
        governor = f", governor {self.governor}" if self.governor else ""
        cores = counted(self.cores, "core")
        return f"{self.processor}, {cores}{quota}{memory}{governor}; {self.system}; Python {self.python}"


def this_machine() -> Machine:
    """The machine this process runs on, or the share of it that its container has."""
    quota = _limits().cpus
    return Machine(
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        processor=_processor(),
        cores=usable_cores(),
        memory_bytes=usable_memory(),
        governor=cgroup.read(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")),
        python=platform.python_version(),
        cpus=quota if quota < _affine() else 0.0,
    )


def usable_cores() -> int:
    """How many threads can compute here at a time: the cores this process may use, or fewer by its quota of CPU."""
    quota = _limits().cpus
    # Rounded up, so that no part of a core is left unused; more threads than that would be stopped in turns.
    return max(1, min(_affine(), math.ceil(quota))) if quota else _affine()


def usable_memory() -> int:
    """Bytes that this process may hold, in a container what that may have; 0 where it is not known."""
    memory, limit = _memory(), _limits().memory_bytes
    return min(memory, limit) if memory and limit else memory


def keep_to_memory() -> None:
    """Has this process fail to allocate more than the machine, or its container, has: a model that wants it ends with
    an error of its own, instead of all that runs here being slowed down or killed. Nothing where that is not known."""
    import resource

    usable = usable_memory()
    if not usable or sys.platform != "linux":  # elsewhere it says nothing of mapped memory
        return
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    if most == resource.RLIM_INFINITY or most > usable:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_DATA, (usable, most))


def half_the_memory(most: int) -> int:
    """`most` bytes, or half of what this process may hold where that is less: for what may grow while it runs."""
    usable = usable_memory()
    return min(most, usable // 2) if usable else most


def _limits() -> cgroup.GroupLimits:
    """None for `splitpoint lab slow`: its own control group is how it emulates slower cores, not fewer."""
    return cgroup.GroupLimits(0.0, 0) if os.environ.get(EMULATED) else cgroup.limits()


def _affine() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def now() -> str:
    """Date and time (UTC), as files of measurements have it: ``2026-11-22T17:09:46Z``."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def default_cache(on_note: Callable[[str], None] = lambda text: None) -> Path:
    """Where fetched weights and exported models are kept: ``$SPLITPOINT_CACHE``, or ``splitpoint`` in the user's cache
    (``$XDG_CACHE_HOME``, else ``~/.cache``).

    Without a home that can be written, or has it already, a folder of this user's among the temporary ones, of which
    `on_note` is told once.
    """
    if set_to := os.environ.get("SPLITPOINT_CACHE"):
        return Path(set_to)
    usual = _user_cache()
    if usual is not None and (os.path.isdir(usual) or may_be_written(usual)):
        return usual
    instead = _temporary_cache()
    if instead is None:  # then nothing can be kept, and whoever tries says so
        return usual or Path("/") / ".cache" / "splitpoint"
    if not _noted:
        _noted.append(True)
        why = f"{usual} cannot be made" if usual is not None else "this user has no home folder"
        call(on_note, f"{why}: what is worth keeping goes to {instead} (SPLITPOINT_CACHE names another folder)")
    return instead


#: Whether the note was given.
_noted: list[bool] = []


def _user_cache() -> Path | None:
    if xdg := os.environ.get("XDG_CACHE_HOME"):  # a relative one too, as SPLITPOINT_CACHE: who sets it means it
        return Path(xdg) / "splitpoint"
    home = os.path.expanduser("~")  # as it was where there is neither HOME nor an entry for this user
    return Path(home) / ".cache" / "splitpoint" if os.path.isabs(home) else None


def may_be_written(folder: Path) -> bool:
    """Whether `folder` can be written, or made."""
    there = next(p for p in (folder, *folder.parents) if os.path.lexists(p))
    return os.path.isdir(there) and os.access(there, os.W_OK | os.X_OK)


@cache
def _temporary_cache() -> Path | None:
    """A folder that only this user can write; None if there is no room for temporary files either."""
    try:
        folder = Path(tempfile.gettempdir()) / f"splitpoint-{os.getuid()}"
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        status = folder.lstat()
        if stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o022:
            return folder
        folder = Path(tempfile.mkdtemp(prefix="splitpoint-"))  # that one is another's
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        return folder
    except OSError:
        return None


def versions(packages: tuple[str, ...] = PACKAGES) -> dict[str, str]:
    """Installed version of each package; packages that are not there are left out."""
    by_package = {}
    for name in packages:
        try:
            by_package[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            if name == "onnxruntime":  # onnxruntime-gpu and others bring it, too
                by_package |= install.onnxruntimes()
    return by_package


def _processor() -> str:
    for line in cgroup.read(Path("/proc/cpuinfo")).splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Model", "Hardware"):
            return value.strip()
    # A Jetson or a Raspberry Pi says who it is in the device tree.
    return cgroup.read(Path("/proc/device-tree/model")).rstrip("\0") or platform.processor() or platform.machine()


def _memory() -> int:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return 0
