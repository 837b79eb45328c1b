"""What a control group lets this process have, in versions 1 and 2: a container's CPUs and memory.

The system tells of the whole machine: a container with half a CPU and 900 MB sees all cores and all memory. The limits
are in files of the group and of every group above it; the smallest counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

#: Bytes of a file that are looked at: /proc/self/mountinfo may have thousands of mounts.
_MOST = 1 << 20
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
            quota, _, period = read(folder / "cpu.max").partition(" ")
            cpus.append(_share(quota, period))
            nbytes.append(_number(read(folder / "memory.max")))
        if "cpu" in controllers:
            quota, period = (read(folder / f"cpu.cfs_{what}_us") for what in ("quota", "period"))
            cpus.append(_share(quota, period))
        if "memory" in controllers:
            nbytes.append(_number(read(folder / "memory.limit_in_bytes")))
    return GroupLimits(
        min((n for n in cpus if n > 0), default=0.0),
        # Version 1 writes "no limit" as a number near 2^63.
        min((n for n in nbytes if 0 < n < 1 << 60), default=0),
    )


def groups(root: Path) -> Iterator[tuple[int, frozenset[str], Path]]:
    """(version, controllers, folder) of every group that holds this process and can be seen, the innermost first."""
    mine = list(_own_groups(read(root / "proc/self/cgroup")))
    for version, controllers, mounted, place in _mounts(read(root / "proc/self/mountinfo")):
        path = next((p for names, p in mine if names & controllers or names == controllers), None)
        if path is None:
            continue
        top = root / place.lstrip("/")
        # A container may see only its own part of the tree, or see it from another namespace.
        inside = path.is_relative_to(mounted) and ".." not in path.parts
        folder = top / path.relative_to(mounted) if inside else top
        if not folder.is_dir():
            folder = top
        for group in (folder, *folder.parents):
            yield version, controllers, group
            if group == top:
                break


def _own_groups(text: str) -> Iterator[tuple[frozenset[str], PurePosixPath]]:
    """(controllers, path) by line: ``4:cpu,cpuacct:/docker/ab12``; version 2 names no controllers: ``0::/``."""
    for line in text.splitlines():
        number, _, rest = line.partition(":")
        names, colon, path = rest.partition(":")
        if colon and number.isdigit():
            yield frozenset(names.split(",")) if names else frozenset(), PurePosixPath(path)


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


def _share(quota: str, period: str) -> float:
    most, of = _number(quota), _number(period)
    return most / of if of else 0.0


def _number(text: str) -> int:
    """The number, or 0 for ``max``, ``-1`` and whatever else is none."""
    return int(text) if _NUMBER.fullmatch(text) else 0


def read(path: Path) -> str:
    """What the system says in a file, without blanks around it; ``""`` if it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(_MOST).decode("utf-8", "replace").strip()
    except OSError:
        return ""
