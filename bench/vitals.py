"""How a process is: its memory, file descriptors and threads, as Linux counts them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from splitpoint.units import counted, size


class Vitals(NamedTuple):
    """Of one moment, but `peak_nbytes`: the most memory it ever had."""

    rss_nbytes: int
    peak_nbytes: int
    fds: int
    threads: int

    def __str__(self) -> str:
        return f"{size(self.rss_nbytes)}, {counted(self.fds, 'descriptor')}, {counted(self.threads, 'thread')}"


def vitals(pid: int) -> Vitals:
    """Those of process `pid`. OSError if there is none, or none that may be looked at."""
    fields = {}
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        name, _, value = line.partition(":")
        fields[name] = value.split()

    def nbytes(name: str) -> int:
        return int(fields[name][0]) << 10

    return Vitals(nbytes("VmRSS"), nbytes("VmHWM"), len(os.listdir(f"/proc/{pid}/fd")), int(fields["Threads"][0]))
