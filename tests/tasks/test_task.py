"""What a task may say."""

from __future__ import annotations

import pytest
from serving import interruptible, nothing_leaks  # noqa: F401  # a fixture is used by its name

from splitpoint.errors import UsageError
from splitpoint.tasks.task import Task


@pytest.mark.parametrize("field", ["arrival_s", "deadline_s"])
@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf"), 1e9])
def test_a_task_has_times_that_can_be(field: str, seconds: float) -> None:
    with pytest.raises(UsageError):
        Task(name="a", model="b", **{field: seconds})
