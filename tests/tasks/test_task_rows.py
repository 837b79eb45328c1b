"""A queue in words and cells."""

from __future__ import annotations

from queues import FAST
from serving import interruptible, nothing_leaks  # noqa: F401  # a fixture is used by its name

from splitpoint.tasks.task import QueueSummary, Usage
from splitpoint.tasks.task_rows import said


def test_the_bound_is_compared_with_what_it_came_to() -> None:
    common = {"policy": "joint", "tasks": 6, "link": FAST, "mean_ms": 9.0, "p95_ms": 20.0, "usage": Usage(0.2, 0, 0)}
    summary = QueueSummary(**common, makespan_ms=435.0, met=0, missed=0, predicted_ms=315.0, bound_ms=300.0)
    (line,) = [line for line in said(summary) if "no order" in line]
    assert line == "no cuts and no order are predicted to take less than 300 ms: this is within 45.0%"
