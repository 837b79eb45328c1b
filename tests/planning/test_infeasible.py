"""Constraints that no plan keeps."""

from __future__ import annotations

from typing import Any

import pytest
from planning_cases import planned

from splitpoint.errors import UsageError


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"deadline_ms": 20.0}, ("an answer within 20.0 ms cannot be had:", "all on the device, which takes 90.0 ms")),
        (
            {"deadline_ms": 60.0, "keep_input_local": True, "codecs": ("jpeg:90",)},
            ("an answer within 60.0 ms cannot be had together with keeping the input on the device",),
        ),
        (
            {"max_edge_memory": 1.0, "keep_input_local": True},
            ("at most 1 B on the device cannot be had together with", "which holds "),
        ),
    ],
)  # fmt: skip
def test_contradictory_constraints_name_the_one_and_the_nearest_plan(
    limits: dict[str, Any], words: tuple[str, ...]
) -> None:
    with pytest.raises(UsageError) as refused:
        planned(**limits)
    assert all(w in str(refused.value) for w in words)
    assert "the nearest plan is " in str(refused.value)
