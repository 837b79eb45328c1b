"""The runs that are under way in this process, and how one is given up from another thread.

A session's `run` cannot be interrupted by an exception: it is native code. ONNX Runtime looks between two operators
whether it is to end (`RunOptions.terminate`); a process can be killed. So an engine puts each run into `noted` while it
lasts, and `give_up` tells it to end; `run` then raises EngineError in its own thread. A run that never looks goes on.

An engine of your own does the same if its runs can be ended.
"""

from __future__ import annotations

from collections.abc import Iterable
from threading import get_ident as get_ident
from typing import Protocol


class RunUnderWay(Protocol):
    """A run that ends soon after its `terminate` is set to True. Setting it again is harmless."""

    terminate: bool


#: Thread → what it runs; a thread runs one thing at a time.
noted: dict[int, RunUnderWay] = {}


def give_up(threads: Iterable[int] | None = None) -> int:
    """Tells the runs under way in these `threads` (by `threading.get_ident`; None: in all) to end. How many there were.

    Takes no lock: it may be called from a signal handler.
    """
    under_way = dict(noted)
    runs = [under_way[k] for k in (under_way if threads is None else threads) if k in under_way]
    for run in runs:
        run.terminate = True
    return len(runs)
