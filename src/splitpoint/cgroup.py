"""What a control group lets this process have, in versions 1 and 2: a container's CPUs and memory.

The system tells of the whole machine: a container with half a CPU and 900 MB sees all cores and all memory. The limits
are in files of the group and of every group above it; the smallest counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

#: Of /proc/self/mountinfo (thousands of mounts) and of a file with one limit: bytes that are looked at.
_MOST_TABLE, _MOST_VALUE = 1 << 20, 4096
_OCTAL = re.compile(r"\\([0-7]{3})")
_NUMBER = re.compile(r"[0-9]{1,20}")


class GroupLimits(NamedTuple):
    """`cpus`: how many this process may keep busy (0.5: half of one); `memory_bytes`: what it may hold. 0: no limit."""

    cpus: float
    memory_bytes: int


def limits(root: Path = Path("/")) -> GroupLimits:
    """The smallest limits of this process's groups; `root` is where /proc and the groups are looked for."""
    cpus: list[float] = []
    nbytes: list[int] = []
    for version, controllers, folder in groups(root):
        if version == 2:
            quota, _, period = _read(folder / "cpu.max", _MOST_VALUE).partition(" ")
            cpus.append(_share(quota, period))
            nbytes.append(_number(_read(folder / "memory.max", _MOST_VALUE)))
        if "cpu" in controllers:
            quota, period = (_read(folder / f"cpu.cfs_{what}_us", _MOST_VALUE) for what in ("quota", "period"))
            cpus.append(_share(quota, period))
        if "memory" in controllers:
            nbytes.append(_number(_read(folder / "memory.limit_in_bytes", _MOST_VALUE)))
    return GroupLimits(
        min((n for n in cpus if n > 0), default=0.0),
        # Version 1 writes "no limit" as a number near 2^63.
        min((n for n in nbytes if 0 < n < 1 << 60), default=0),
    )


def groups(root: Path) -> Iterator[tuple[int, frozenset[str], Path]]:
    """(version, controllers, folder) of every group that holds this process and can be seen, the innermost first."""
    mine = list(_own_groups(_read(root / "proc/self/cgroup", _MOST_TABLE)))
    for version, controllers, mounted, place in _mounts(_read(root / "proc/self/mountinfo", _MOST_TABLE)):
        path = next((p for names, p in mine if names & controllers or names == controllers), None)
        if path is None:
            continue
        top = root / place.lstrip("/")
        # A container may see only its own part of the tree, or see it from another namespace.
        inside = _below(path, mounted)
        folder = top / inside if inside is not None else top
        if not folder.is_dir():
            folder = top
        while True:
            yield version, controllers, folder
            if folder == top:
                break
            folder = folder.parent


def _own_groups(text: str) -> Iterator[tuple[frozenset[str], str]]:
    """(controllers, path) by line: ``4:cpu,cpuacct:/docker/ab12``; version 2 names no controllers: ``0::/``."""
    for line in text.splitlines():
        number, _, rest = line.partition(":")
        names, colon, path = rest.partition(":")
        if colon and number.isdigit():
            yield frozenset(names.split(",")) if names else frozenset(), path


def _mounts(text: str) -> Iterator[tuple[int, frozenset[str], str, str]]:
    """(version, controllers, the group that is mounted, where) for each hierarchy that is mounted."""
    for line in text.splitlines():
        before, dash, after = line.partition(" - ")
        fields, kind = before.split(" "), after.split(" ")
        if not dash or len(fields) < 5 or len(kind) < 3:
            continue
        mounted, place = (_OCTAL.sub(lambda m: chr(int(m[1], 8)), fields[k]) for k in (3, 4))
        if kind[0] == "cgroup2":
            yield 2, frozenset(), mounted, place
        elif kind[0] == "cgroup" and (controllers := frozenset(kind[2].split(",")) & {"cpu", "memory"}):
            yield 1, controllers, mounted, place


def _below(path: str, top: str) -> str | None:
    """``/docker/ab/c`` below ``/docker/ab`` is ``c``; None where it is not below, or leads out."""
    if ".." in path.split("/"):
        return None
    top = top.rstrip("/")
    return path[len(top) :].lstrip("/") if path == top or path.startswith(f"{top}/") else None


def _share(quota: str, period: str) -> float:
    most, of = _number(quota), _number(period)
    return most / of if of else 0.0


def _number(text: str) -> int:
    """The number, or 0 for ``max``, ``-1`` and whatever else is none."""
    return int(text) if _NUMBER.fullmatch(text) else 0


def _read(path: Path, most: int) -> str:
    try:
        with path.open("rb") as file:
            return file.read(most).decode("utf-8", "replace").strip()
    except OSError:
        return ""
