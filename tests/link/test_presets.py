"""Links by name."""

from __future__ import annotations

import pytest

from splitpoint.link import Link
from splitpoint.link.presets import PRESETS, nearest_preset


def test_presets_are_those_of_the_papers() -> None:
    ups = {name: (link.up_mbps, link.rtt_ms) for name, link in PRESETS.items()}
    assert ups == {
        "cat1": (0.13, 100),
        "3g": (1.1, 60),
        "4g": (5.85, 40),
        "wifi": (18.88, 10),
        "wifi5": (100, 3),
        "lan": (1000, 0.3),
    }
    assert all(link.name == name and link.down_mbps >= link.up_mbps for name, link in PRESETS.items())


@pytest.mark.parametrize(
    ("up", "name"), [(0.01, "cat1"), (2, "3g"), (3, "4g"), (40, "wifi"), (50, "wifi5"), (1e5, "lan")]
)
def test_the_nearest_preset_is_so_as_a_factor(up: float, name: str) -> None:
    assert nearest_preset(Link(up, 1, 1)) == name
