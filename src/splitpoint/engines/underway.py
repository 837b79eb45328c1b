"""The runs that are under way in this process, and how one is given up from another thread.

A session's `run` cannot be interrupted by an exception: it is native code. ONNX Runtime looks between two operators
whether it is to end (`RunOptions.terminate`); a process can be killed. So an engine puts each run into `noted` while it
lasts, and `give_up` tells it to end; `run` then raises EngineError in its own thread. A run that never looks goes on.

An engine of your own does the same if its runs can be ended.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from threading import get_ident as get_ident
from time import monotonic
from typing import Protocol

from splitpoint.errors import EngineError


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


#: No run that is only measured or tried takes longer, seconds: a large network on a small board takes one minute.
LONGEST_S = 300.0
#: How often a run is looked at, as a share of what it may take, and at least how often, seconds.
_LOOKS, _LOOK_S = 0.1, 1.0


@contextmanager
def limited(what: str, most_s: float | None = None) -> Iterator[None]:
    """Inside, a run of this thread's that takes longer than `most_s` (`LONGEST_S`) is told to end: EngineError.

    It costs a run nothing: another thread looks now and then which one is under way.
    """
    limit_s, thread, done = LONGEST_S if most_s is None else most_s, get_ident(), threading.Event()
    too_long = EngineError(f"{what} took longer than {limit_s:g} s in one run and was given up: does a loop in it end?")
    ended = False

    def watch() -> None:
        nonlocal ended
        seen, since = None, 0.0
        while not done.wait(min(_LOOKS * limit_s, _LOOK_S)):
            run = noted.get(thread)
            if run is not seen:
                seen, since = run, monotonic()
            elif run is not None and monotonic() - since > limit_s:
                run.terminate = ended = True

    watcher = threading.Thread(target=watch, name="limited", daemon=True)
    with suppress(RuntimeError):  # no thread left: then the user's signal is all there is
        watcher.start()
    try:
        yield
    except EngineError as exc:
        if ended:
            raise too_long from exc
        raise
    finally:
        done.set()
        if watcher.ident is not None:
            watcher.join()
    if ended:
        raise too_long
