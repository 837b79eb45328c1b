"""A pipeline: items are read, begun (head), sent, and their answers received, each step in a thread of its own.

What leaves is bounded by the slowest step alone. Sending is a step because a slow link blocks the sender; receiving, so
that an answer is taken, and its time noted, when it comes and not when the caller asks for it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from queue import SimpleQueue
from typing import Any

from splitpoint.lifetime import foreign
from splitpoint.runtime.threads import begin, join

#: What one step hands to the next: (value, None), (None, what ended it), or (None, None) behind the last.
_Hand = tuple[Any, BaseException | None]
_END: _Hand = (None, None)
#: How long closing waits for what a step is doing.
_JOIN_S = 1.0


def stream(
    items: Iterable[Any], steps: Sequence[Callable[[Any], Any]], abandon: Callable[[Any], None], window: int
) -> Iterator[Any]:
    """Each item through all `steps`, in order; at most `window` taken from `items` and not yet by the caller.

    An item is taken when there is room for it, not before: a camera's is then as fresh as it can be. An exception of
    `items` or of a step is raised in its place, after the results before it. Closing the iterator stops it: what is
    under way is abandoned. Neither items nor what steps return may be None.
    """
    room = threading.Semaphore(window)
    hands: list[SimpleQueue[_Hand]] = [SimpleQueue() for _ in range(len(steps) + 1)]
    stop = threading.Event()
    #: The last step that failed: whatever comes to it, or to one before it, is behind the failure.
    failed = -1

    def read() -> None:
        end = _END
        try:
            source = iter(items)
            while room.acquire() and not stop.is_set() and failed < 0:
                item = next(source, None)
                if item is None:
                    break
                hands[0].put((item, None))
        except BaseException as exc:
            end = (None, exc)
        hands[0].put(end)

    def work(k: int) -> None:
        nonlocal failed
        while True:
            value, exc = hands[k].get()
            if value is None:
                hands[k + 1].put((None, exc))
                return
            try:
                if stop.is_set() or k <= failed:
                    if k:  # what has not begun holds nothing
                        abandon(value)
                    continue
                hands[k + 1].put((steps[k](value), None))
            except BaseException as failure:
                failed = max(failed, k)
                hands[k + 1].put((None, failure))
                room.release()

    threads = [threading.Thread(target=read, name="stream items", daemon=True)]
    threads += [
        threading.Thread(target=work, args=(k,), name=f"stream step {k}", daemon=True) for k in range(len(steps))
    ]

    def consume() -> Iterator[Any]:
        here = os.getpid()
        try:
            for thread in threads:
                begin(thread)
            while True:
                if os.getpid() != here:  # the steps' threads are the parent's
                    raise foreign("stream")
                result, exc = hands[-1].get()
                if exc is not None:
                    raise exc
                if result is None:
                    return
                room.release()
                yield result
        finally:
            if os.getpid() == here:
                stop.set()
                room.release()
                hands[0].put(_END)
                # `items` may be waiting for a camera for ever: its thread ends with the next item.
                join((t for t in threads if t.ident is not None), _JOIN_S)

    return consume()
