"""Jobs in threads: one after the other, told when they fail, and none begun once it is over."""

from __future__ import annotations

import threading

from serving import nothing_leaks

from splitpoint.runtime.client.jobs import Jobs
from splitpoint.runtime.events import Event


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
