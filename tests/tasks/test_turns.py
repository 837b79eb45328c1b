"""Whose turn it is on the device and on the link."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping
from typing import Any

import pytest

from splitpoint.tasks.turns import SharedDevice, UplinkOrder


class Engine:
    """Sessions that say what they were given, or fail."""

    name, device, threads = "fake", "none", 1

    def compile(self, segment: Any) -> Any:
        class Session:
            inputs, outputs, nbytes = (), (), 7

            def run(self, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
                if "bad" in inputs:
                    raise ValueError("bad")
                return inputs

            def close(self) -> None: ...

        return Session()


def device() -> tuple[SharedDevice, Any]:
    shared = SharedDevice(Engine())  # type: ignore[arg-type]
    return shared, shared.compile(None)  # type: ignore[arg-type]


def free(shared: SharedDevice) -> bool:
    """Whether somebody could have it now."""
    if not shared._free.acquire(blocking=False):
        return False
    shared.drop()
    return True


@pytest.mark.parametrize("inputs", [{"x": 1}, {"bad": 1}])
def test_the_first_run_gives_it_back_even_if_it_fails_and_says_so_once(inputs: Mapping[str, int]) -> None:
    shared, session = device()
    said: list[str] = []
    shared.take()
    shared.lend(lambda: said.append("free" if free(shared) else "taken"))
    assert not free(shared)
    with contextlib.suppress(ValueError):
        session.run(inputs)
    assert said == ["free"]
    session.run({"x": 1})
    shared.give_back()
    assert said == ["free"]
    assert free(shared)


def test_a_thread_that_was_lent_nothing_neither_waits_nor_gives_back() -> None:
    shared, session = device()
    shared.take()
    other = threading.Thread(target=session.run, args=({"x": 1},))
    other.start()
    other.join(10)
    assert not other.is_alive()
    assert not free(shared)
    shared.drop()
    assert free(shared)


def test_uploads_leave_in_their_order_one_after_the_other() -> None:
    now, order, mbit_s = [0.0], list[tuple[int, float]](), [8.0]
    lane = UplinkOrder(lambda nbytes: nbytes * 8e-6 / mbit_s[0], lambda: now[0])
    tickets = [lane.ticket() for _ in range(5)]
    lane.enter(tickets[0], "a", 100_000)
    lane.enter(tickets[1], "a", 100_000)  # the same connection: behind it in any case

    def enter(k: int, connection: str) -> threading.Thread:
        def run() -> None:
            lane.enter(tickets[k], connection, 50_000)
            order.append((k, now[0]))

        thread = threading.Thread(target=run)
        thread.start()
        return thread

    fourth = enter(3, "b")
    lane.leave(tickets[2])  # failed before it was to be sent
    now[0] = 0.185
    fourth.join(0.1)
    assert fourth.is_alive(), "the link is taken until 0.2, but for the last tenth of that upload"
    now[0] = 0.195
    fourth.join(5)
    fifth = enter(4, "a")
    now[0] = 0.2
    fifth.join(0.1)
    assert fifth.is_alive(), "the link is taken until 0.245"
    mbit_s[0] = 800.0  # the link is another one than it was taken for: everything has long left
    fifth.join(5)
    assert order == [(3, 0.195), (4, 0.2)]
