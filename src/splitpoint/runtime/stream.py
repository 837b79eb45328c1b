"""A pipeline of three: begin (head, send) → finish (receive) → whoever iterates, in order and bounded.

Receiving has a thread of its own, so that an answer is taken, and its time noted, when it comes and not when the
caller asks for it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from queue import SimpleQueue
from typing import TypeVar

Item = TypeVar("Item")
Ticket = TypeVar("Ticket")
Out = TypeVar("Out")


def stream(
    items: Iterable[Item],
    begin: Callable[[Item], Ticket],
    finish: Callable[[Ticket], Out],
    abandon: Callable[[Ticket], None],
    window: int,
) -> Iterator[Out]:
    """``finish(begin(item))`` for each item in order, at most `window` begun and not yet taken by the caller.

    An exception of `items`, `begin` or `finish` is raised in its place, after the results before it. Closing the
    iterator stops it: what is under way is abandoned.
    """
    room = threading.Semaphore(window)
    begun: SimpleQueue[tuple[Ticket | None, BaseException | None]] = SimpleQueue()
    ready: SimpleQueue[tuple[Out | None, BaseException | None]] = SimpleQueue()
    stop = threading.Event()

    def produce() -> None:
        try:
            for item in items:
                room.acquire()
                if stop.is_set():
                    return
                begun.put((begin(item), None))
        except BaseException as exc:
            begun.put((None, exc))
        else:
            begun.put((None, None))
        finally:
            if stop.is_set():
                begun.put((None, None))

    def collect() -> None:
        while True:
            ticket, exc = begun.get()
            if ticket is None:
                ready.put((None, exc))
                return
            if stop.is_set():
                abandon(ticket)
                continue
            try:
                ready.put((finish(ticket), None))
            except BaseException as failure:
                stop.set()
                ready.put((None, failure))

    producer = threading.Thread(target=produce, name="stream head", daemon=True)
    collector = threading.Thread(target=collect, name="stream answers", daemon=True)

    def consume() -> Iterator[Out]:
        producer.start()
        collector.start()
        try:
            while True:
                result, exc = ready.get()
                if exc is not None:
                    raise exc
                if result is None:
                    return
                room.release()
                yield result
        finally:
            stop.set()
            room.release()
            # `items` may be waiting for a camera for ever: its thread ends with the next item.
            producer.join(1.0)
            collector.join(1.0)

    return consume()
