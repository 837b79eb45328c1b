"""A thread of ours that fails goes on, or ends loudly what it was for: nobody waits for ever for one that is dead."""

from __future__ import annotations

import ast
import threading
from pathlib import Path
from typing import Any

import pytest
from serving import nothing_leaks

import splitpoint
from splitpoint.runtime.events import Event
from splitpoint.runtime.stream.pipeline import stream
from splitpoint.runtime.threads import Jobs, persist

pytestmark = pytest.mark.usefixtures("no_leaks")


def test_a_failing_step_is_told_once_and_tried_again_with_longer_and_longer_pauses() -> None:
    outcomes: list[Exception | bool] = [ValueError("a"), ValueError("a"), OSError("b"), True, OSError("b"), False]
    told: list[Event] = []
    pauses: list[float] = []

    def step() -> bool:
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    persist(step, "counting", told.append, pauses.append)
    reasons = [e.sentence.removeprefix("counting failed and goes on: ") for e in told]
    assert reasons == ["ValueError('a')", "OSError('b')", "OSError('b')"]
    assert pauses == [0.01, 0.02, 0.04, 0.01]


def test_one_who_cannot_be_told_stops_nothing() -> None:
    outcomes: list[Exception | bool] = [ValueError("a"), False]

    def step() -> bool:
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def deaf(event: Event) -> None:
        raise BrokenPipeError

    persist(step, "counting", deaf, lambda s: None)
    assert not outcomes


def test_a_stream_whose_abandoning_fails_ends_too() -> None:
    def abandon(value: Any) -> None:
        raise RuntimeError("it cannot be given up")

    def step(value: int) -> int:
        if value == 2:
            raise ValueError("two")
        return value

    out = stream(range(1, 9), [lambda v: v, step, lambda v: v], abandon, 4)
    assert next(out) == 1
    with pytest.raises((ValueError, RuntimeError)):
        list(out)


#: Threads that end by themselves, and who hears of what goes wrong in them.
ONCE = {
    ("server.py", "p.connection.close"): "close() waits for it",
    ("admission.py", "self._serve"): "one connection's: whatever it raises is that connection's end",
    ("channel.py", "self._read"): "the same on the device",
    ("profile_jobs.py", "self._work"): "each profile's failure is its answer",
    ("held_weights.py", "self._run"): "a failure is told: there will be no local fallback",
    ("local_tail.py", "work"): "found again by whoever needs the tail",
    ("pacing.py", "self._watch"): "a failure is raised where the next frame is taken",
    ("pipeline.py", "read"): "a failure is raised where the result is taken",
    ("pipeline.py", "work"): "the same",
    ("server.py", "self._close"): "the end of a server that `on_event` closes: nobody waits for it",
    ("model_binding.py", "work"): "the first connection: raised where that is waited for",
    ("threads.py", "run"): "what is done beside: its failure is told",
}


def test_every_thread_of_the_runtime_persists_or_is_known_to_end() -> None:
    found = set()
    for path in (Path(splitpoint.__file__).parent / "runtime").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "threading.Thread":
                target = next(ast.unparse(k.value) for k in node.keywords if k.arg == "target")
                if target != "persist":
                    found.add((path.name, target))
    assert found <= set(ONCE), "a loop runs `persist`; say of others who hears of their failure"
    assert set(ONCE) <= found, "these are gone"


def test_they_come_one_after_the_other_and_a_failure_ends_none_but_itself() -> None:
    told: list[Event] = []
    order: list[int] = []
    first = threading.Event()

    def fails() -> None:
        assert first.wait(10)
        order.append(1)
        raise ValueError("the first")

    with nothing_leaks():
        jobs = Jobs(told.append)
        jobs.add(fails)
        jobs.add(lambda: order.append(2 if jobs.mine else -2))
        assert not jobs.mine
        first.set()
        jobs._last.join(10)  # type: ignore[union-attr]
        assert order == [1, 2]
        assert [(e.kind, str(e)) for e in told] == [("notice", "the first")]
        jobs.close()
        jobs.add(lambda: order.append(3))
        jobs.close()
    assert order == [1, 2]


def test_what_is_being_done_when_it_closes_is_waited_for_and_not_told() -> None:
    told: list[Event] = []

    def looks() -> None:
        assert jobs.closed.wait(10)
        raise ValueError("because it was closed")

    with nothing_leaks():
        jobs = Jobs(told.append)
        jobs.add(looks)
        jobs.add(lambda: told.append(Event("notice", "never")))
        jobs.close()
    assert told == []
