"""A queue in words and cells."""

from __future__ import annotations

import msgspec
from queues import FAST

from splitpoint.tasks.task import QueueSummary, Usage
from splitpoint.tasks.task_rows import summary_lines


def test_the_bound_is_compared_with_what_it_came_to() -> None:
    common = {"policy": "joint", "tasks": 6, "link": FAST, "mean_ms": 9.0, "p95_ms": 20.0, "usage": Usage(0.2, 0, 0)}
    summary = QueueSummary(**common, makespan_ms=435.0, met=0, missed=0, predicted_ms=415.0, bound_ms=300.0)

    def line(**changed: float) -> str:
        lines = summary_lines(msgspec.structs.replace(summary, **changed))
        return next(line for line in lines if "by the profiles" in line)

    least = "by the profiles, any cuts in any order take 300 ms or more"
    assert line() == f"{least}; with everything compiled beforehand it could be up to 1.4 times as fast"
    contradicted = f"{least}; but requests computed 4.8 times as long as profiled: --fresh profiles anew"
    assert line(makespan_ms=2000.0, slower=4.8) == contradicted
    assert line(slower=4.8) == line(), "it took what was predicted"
    agrees = f"{least}; no request refutes the profiles: the rest is waiting, the link, and beginning"
    assert line(makespan_ms=2000.0) == agrees
    assert line(makespan_ms=310.0).startswith("about as fast as it can be")
    assert "%" not in line(makespan_ms=2000.0)


def test_cores_that_are_shared_are_told() -> None:
    common = {"policy": "fifo", "tasks": 1, "link": FAST, "mean_ms": 9.0, "p95_ms": 20.0, "usage": Usage(0.2, 0, 0)}
    summary = QueueSummary(**common, makespan_ms=9.0, met=0, missed=0, predicted_ms=9.0)
    assert not [line for line in summary_lines(summary) if "share cores" in line]
    (line,) = [line for line in summary_lines(msgspec.structs.replace(summary, shared=2.13)) if "share cores" in line]
    assert "each takes 2.1 times as long" in line
