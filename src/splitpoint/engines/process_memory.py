"""This process's memory as engines see it: how much is resident, and what is free given back to the system."""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache
from typing import Any

#: glibc's M_ARENA_MAX, and how many: with two, a thread that compiles holds up nobody.
_ARENA_MAX, _ARENAS = -8, 2


def resident_bytes() -> int:
    """Resident memory of this process; 0 where the system does not say."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def give_back() -> None:
    """Has the C library return free memory to the system; does nothing where it cannot.

    Building a session leaves some 20 MB free in the arena of the thread that did it, for ever. Takes up to 50 ms where
    there is much to return (without the interpreter's lock), less than one otherwise.
    """
    if (trim := _trim()) is not None:
        trim(0)


def few_arenas() -> None:
    """Lets this process's threads share two arenas of the C library; nothing where there is no such thing.

    By default there are eight a core, each of which keeps what its threads once needed at most: a server with many
    clients grew by a fifth that way. Call it at the start of a process of one's own, before it has threads.
    """
    if sys.platform == "linux" and (set_option := getattr(ctypes.CDLL(None), "mallopt", None)) is not None:
        set_option(_ARENA_MAX, _ARENAS)


@cache
def _trim() -> Any:
    """glibc's malloc_trim; None elsewhere."""
    if sys.platform != "linux":
        return None
    return getattr(ctypes.CDLL(None), "malloc_trim", None)
