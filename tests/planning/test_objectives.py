"""What is minimised."""

from __future__ import annotations

import pytest
from planning_cases import LENET, planned
from plans import FOUR_G, profiles

from splitpoint.errors import UsageError
from splitpoint.planning.planner import plan


def test_energy_without_watts_and_unknown_objectives_say_what_to_do() -> None:
    with pytest.raises(UsageError, match="--edge-watts"):
        plan(None, profiles(LENET, 3, 0.2), FOUR_G, objective="energy")
    with pytest.raises(UsageError, match="no objective is called speed"):
        planned(objective="speed")
