"""The device is one thing: who has it computes, and who waits gets it when the head before has run."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping
from typing import Any

import pytest

from splitpoint.tasks.device_turns import SharedDevice


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
